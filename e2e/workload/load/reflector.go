package load

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/sharded-etcd/sharded-etcd/e2e/workload/check"
)

// reflector watches as kube-apiserver does: with a leader required, prev_kv and
// progress notifications, and it starts its watch again by itself, from the
// revision after the last event or bookmark. All its watches together have to
// deliver every event once.
type reflector struct {
	*env
	cli      *clientv3.Client
	rnd      *rand.Rand
	prefix   string
	watch    *watch
	response uint32
}

const (
	reflectorLife  = 6 * time.Second // mean time between its own restarts
	reflectorProbe = 150 * time.Millisecond
)

// open makes the log under which all its watches are recorded.
func (f *reflector) open(ctx context.Context) *watch {
	start := f.baseRev + 1
	name := "reflector of " + f.prefix
	rng := check.Prefix(f.prefix)
	ctx, cancel := context.WithCancel(ctx)
	f.watch = &watch{name: name, rng: rng, start: start, prev: true, kind: whole, cli: f.cli, ctx: ctx, cancel: cancel, done: make(chan struct{})}
	f.watch.log = f.rec.AddWatch(check.WatchLog{Name: name, Range: rng, PrevKV: true, Start: start})
	go func() {
		defer close(f.watch.done)
		for f.watch.ctx.Err() == nil && f.once() {
			f.stats.reflectorStarts.Add(1)
		}
	}()
	return f.watch
}

// loop asks for progress, as the consistent reads of a watch cache do.
func (f *reflector) loop() { f.progressAsker(f.watch, reflectorProbe) }

// once runs one watch until it ends or is old enough. It tells whether to
// start another one.
func (f *reflector) once() bool {
	life := reflectorLife/2 + time.Duration(f.rnd.Int64N(int64(reflectorLife)))
	if f.stopped() {
		life = time.Hour // the last one stays to catch up
	}
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(f.watch.ctx))
	defer cancel()
	start := f.rec.Reached(f.watch.log) + 1
	end := time.NewTimer(life)
	defer end.Stop()
	ch := f.cli.Watch(ctx, f.prefix, clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithProgressNotify(), clientv3.WithRev(start))
	for {
		select {
		case <-f.watch.ctx.Done():
			return false
		case <-end.C:
			return true
		case resp, open := <-ch:
			if f.watch.ctx.Err() != nil {
				return false
			}
			if !open {
				f.led.Fail(chkWatchAlive, "%s was closed by the client library without a reason, at %v", f.watch.name, f.rec.Now())
				return false
			}
			if err := resp.Err(); err != nil {
				return f.again(err, start, resp.CompactRevision)
			}
			f.response++
			f.take(f.watch, f.response, resp)
		}
	}
}

// again judges the end of a watch. A lost leader is news only when no outage
// is expected; a compaction only if it is not behind the watch.
func (f *reflector) again(err error, start, compacted int64) bool {
	if errors.Is(err, rpctypes.ErrCompacted) {
		f.watchEnded(f.watch, err, compacted)
		return false
	}
	f.errs.add("watch with a leader required", err)
	now := f.rec.Now()
	f.outages.blip(now)
	f.led.That(f.cfg.Tolerate && transient(err), chkWatchAlive, "%s from %d was cancelled at %v: %v", f.watch.name, start, now, err)
	return waitFor(f.watch.ctx.Done(), resolvePause)
}
