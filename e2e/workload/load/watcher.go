package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/sharded-etcd/sharded-etcd/e2e/workload/check"
)

// watch is one watch that nobody but clientv3 itself ever resumes.
type watch struct {
	log    int // its number at the recorder
	name   string
	rng    check.Range
	start  int64
	prev   bool
	bounds []clientv3.OpOption
	done   chan struct{}
	cancel context.CancelFunc
	kind   watchKind
	cli    *clientv3.Client
	ctx    context.Context
	// over is set once a compaction has ended it: it has to be complete up to there, and goes no further.
	over atomic.Bool
}

type watchKind uint8

const (
	whole  watchKind = iota // one of the prefixes
	narrow                  // a part of one
	all                     // every key there is
)

// openWatch starts a watch at a revision and records what it delivers.
func (e *env) openWatch(cli *clientv3.Client, parent context.Context, name string, rng check.Range, start int64, prev bool, kind watchKind, opts ...clientv3.OpOption) *watch {
	ctx, cancel := context.WithCancel(parent)
	w := &watch{name: name, rng: rng, start: start, prev: prev, done: make(chan struct{}), cancel: cancel, kind: kind, cli: cli, ctx: ctx}
	w.log = e.rec.AddWatch(check.WatchLog{Name: name, Range: rng, PrevKV: prev, Start: start})
	opts = append(opts, clientv3.WithRev(start))
	if rng.End == "\x00" {
		opts = append(opts, clientv3.WithFromKey())
	} else if rng.End != "" {
		opts = append(opts, clientv3.WithRange(rng.End))
	}
	if prev {
		opts = append(opts, clientv3.WithPrevKV())
	}
	go func() {
		defer close(w.done)
		// clientv3 returns only when the server has created the watch.
		e.follow(w, cli.Watch(ctx, rng.Start, opts...))
	}()
	return w
}

func (e *env) follow(w *watch, ch clientv3.WatchChan) {
	for response := uint32(0); ; response++ {
		resp, open := <-ch
		if w.ctx.Err() != nil {
			return
		}
		if !open {
			e.led.Fail(chkWatchAlive, "%s was closed by the client library without a reason, at %v", w.name, e.rec.Now())
			return
		}
		if err := resp.Err(); err != nil {
			e.watchEnded(w, err, resp.CompactRevision)
			return
		}
		e.take(w, response, resp)
	}
}

// take records one response of a watch.
func (e *env) take(w *watch, response uint32, resp clientv3.WatchResponse) {
	if resp.IsProgressNotify() {
		e.stats.progress.Add(1)
		e.rec.Progress(w.log, resp.Header.Revision)
		return
	}
	events := make([]check.Event, 0, len(resp.Events))
	top := int64(0)
	for _, ev := range resp.Events {
		out := e.event(ev)
		top = max(top, out.KV.Mod)
		events = append(events, out)
	}
	e.led.That(resp.Header.Revision >= top, check.WatchProgress, "%s: header revision %d below the event's %d", w.name, resp.Header.Revision, top)
	e.rec.Deliver(w.log, response, events)
}

// watchEnded judges the end of a watch that nobody asked for: only a start
// below a compaction allows it.
func (e *env) watchEnded(w *watch, err error, compacted int64) {
	e.errs.add("watch", err)
	asked := e.compact.Load()
	next := e.rec.Reached(w.log) + 1
	if errors.Is(err, rpctypes.ErrCompacted) && next < asked && compacted <= asked {
		// A watch that saw nothing for long is behind the compaction when its connection breaks, with etcd too.
		e.led.Pass(chkWatchAlive, 1)
		w.over.Store(true)
		return
	}
	e.led.Fail(chkWatchAlive, "%s, next revision %d, was cancelled at %v: %v (compacted %d, asked for %d)", w.name, next, e.rec.Now(), err, compacted, asked)
}

// longWatches opens the watches that live for the whole run. Each watcher is
// one client, with all its watches on one stream, as kube-apiserver has them.
func (e *env) longWatches(ctx context.Context) ([]*watch, error) {
	var out []*watch
	start := e.baseRev + 1
	for n := range e.cfg.Watchers {
		cli, err := e.dial()
		if err != nil {
			return nil, err
		}
		prev := n%2 == 0
		var opts []clientv3.OpOption
		if n%4 < 2 {
			opts = append(opts, clientv3.WithProgressNotify())
		}
		if n%3 == 1 {
			opts = append(opts, clientv3.WithFragment())
		}
		for _, scope := range e.scopes() {
			out = append(out, e.openWatch(cli, ctx, fmt.Sprintf("watcher %d of %s", n, scope.Start), scope, start, prev, whole, opts...))
		}
		prefix := e.cfg.Prefixes[n%len(e.cfg.Prefixes)]
		own := check.Prefix(fmt.Sprintf("%sown-w%02d/", prefix, n%e.cfg.Writers))
		out = append(out, e.openWatch(cli, ctx, fmt.Sprintf("watcher %d of %s", n, own.Start), own, start, prev, narrow, opts...))
		ns := check.Prefix(fmt.Sprintf("%sns%d/", prefix, n%3))
		out = append(out, e.openWatch(cli, ctx, fmt.Sprintf("watcher %d of %s", n, ns.Start), ns, start, !prev, narrow, opts...))
		if n == 0 {
			out = append(out, e.openWatch(cli, ctx, "watcher 0 of everything", check.Range{Start: "\x00", End: "\x00"}, start, true, all))
		}
	}
	return out, nil
}

// scopes are the ranges whose full history is recorded.
func (e *env) scopes() []check.Range {
	var out []check.Range
	for _, p := range e.cfg.Prefixes {
		out = append(out, check.Prefix(p))
	}
	return append(out, check.Prefix(e.cfg.LockPrefix))
}

// latecomer opens watches in mid-run that start in the past.
type latecomer struct {
	*env
	rnd    *rand.Rand
	ctx    context.Context
	runs   int
	maxRun int // watches from the run's first revision; they see everything
}

const (
	lateGap      = 4 * time.Second
	lateBack     = 400
	lateCatchUp  = 30 * time.Second
	lateFromBase = 5
)

func (l *latecomer) loop() {
	cli, err := l.dial()
	if err != nil {
		l.led.Fail(chkErrors, "%v", err)
		return
	}
	for n := 0; l.pause(lateGap); n++ {
		start := max(l.floor.Load()-l.rnd.Int64N(lateBack), l.baseRev+1)
		if n%8 == 4 && l.runs < lateFromBase && l.compact.Load() == 0 {
			start = l.baseRev + 1
			l.runs++
		}
		if start < l.compact.Load() {
			continue
		}
		prefix := l.cfg.Prefixes[l.rnd.IntN(len(l.cfg.Prefixes))]
		l.once(cli, n, check.Prefix(prefix), start)
	}
}

// once watches until it has caught up with what was acknowledged when it
// began, and a little longer.
func (l *latecomer) once(cli *clientv3.Client, n int, rng check.Range, start int64) {
	// The newest key of the range tells how far the watch has to come.
	target, err := l.newest(cli, rng)
	if err != nil {
		l.failed("newest key", err)
		return
	}
	w := l.openWatch(cli, l.ctx, fmt.Sprintf("late watch %d of %s", n, rng.Start), rng, start, n%2 == 0, whole)
	l.stats.lateWatches.Add(1)
	if target >= start {
		l.await(w, target, l.rec.Now()+lateCatchUp)
	}
	l.pause(time.Second)
	until := l.rec.Reached(w.log)
	w.cancel()
	<-w.done
	l.rec.Complete(w.log, until)
}

// newest is the highest mod revision of the keys alive in a range.
func (e *env) newest(cli *clientv3.Client, rng check.Range) (int64, error) {
	ctx, cancel := e.op()
	defer cancel()
	resp, err := cli.Get(ctx, rng.Start, clientv3.WithRange(rng.End), clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend),
		clientv3.WithLimit(1), clientv3.WithKeysOnly())
	if err != nil || len(resp.Kvs) == 0 {
		return 0, err
	}
	return resp.Kvs[0].ModRevision, nil
}

const pollGap = 20 * time.Millisecond

// await waits until a watch has reached a revision; an outage gives it more
// time. It tells whether it did.
func (e *env) await(w *watch, rev int64, deadline time.Duration) bool {
	from := e.rec.Now()
	for e.rec.Reached(w.log) < rev {
		select {
		case <-w.done:
			return false // judged where it ended
		case <-time.After(pollGap):
		}
		now := e.rec.Now()
		if e.outages.during(now-time.Second, now) && now < from+3*lateCatchUp {
			deadline = max(deadline, now+lateCatchUp)
		}
		if now > deadline {
			e.led.Fail(chkWatchLive, "%s from %d: reached %d in %v, but not %d", w.name, w.start, e.rec.Reached(w.log), (now - from).Round(time.Millisecond), rev)
			return false
		}
	}
	e.led.Pass(chkWatchLive, 1)
	return true
}

// progressAsker asks for progress on a stream, as kube-apiserver does for its
// consistent reads from cache.
func (e *env) progressAsker(w *watch, gap time.Duration) {
	for e.pause(gap) {
		ctx, cancel := context.WithTimeout(w.ctx, e.cfg.OpTimeout)
		err := w.cli.RequestProgress(ctx)
		cancel()
		if err != nil && w.ctx.Err() == nil {
			e.failed("progress request", err)
		}
	}
}
