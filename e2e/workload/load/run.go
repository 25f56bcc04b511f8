package load

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/sharded-etcd/sharded-etcd/e2e/workload/check"
)

// sharedLeaseTTL is the TTL in seconds of the leases that writers attach keys
// to: longer than any run, so that only their revoke ends them.
const sharedLeaseTTL = 7200

// writersPerLease writers share one lease.
const writersPerLease = 4

// runner holds what a run consists of.
type runner struct {
	*env
	writers []*writer
	watches []*watch
	shared  []clientv3.LeaseID
	admin   *clientv3.Client
	finish  chan struct{} // ends the lease keepers, after the final listing
	cancel  context.CancelFunc
	ctx     context.Context
	actors  sync.WaitGroup
	keepers sync.WaitGroup
	probes  sync.WaitGroup
	probing chan struct{}
	// counters are what the STM clients count up.
	counters counters
}

// Run runs the load, ends it and judges it. An error means that no judgement
// was possible.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	e := &env{cfg: cfg, rec: check.NewRecorder(), led: check.NewLedger(), stop: make(chan struct{})}
	began := time.Now()
	e.run = fmt.Sprintf("s%d-%x", cfg.Seed, began.UnixMilli())
	runCtx, cancel := context.WithCancel(context.Background())
	r := &runner{env: e, finish: make(chan struct{}), probing: make(chan struct{}), cancel: cancel, ctx: runCtx}
	defer r.close()
	if err := r.setUp(); err != nil {
		return nil, err
	}
	r.start()
	r.wait(ctx)
	stoppedAt := e.rec.Now()
	close(e.stop)
	r.logf("stopping after %v", stoppedAt.Round(time.Millisecond))
	err := r.quiesce()
	if err == nil {
		err = r.end()
	}
	if err != nil {
		r.cutShort(err)
	}
	r.release()
	h := e.rec.History()
	h.OneRevision = cfg.OneRevision
	h.FaultMax = cfg.FaultMax
	h.Outages = e.outages.list(e.rec.Now())
	check.Check(h, e.led)
	r.live(stoppedAt)
	return e.report(h, began, stoppedAt), nil
}

func (r *runner) logf(format string, args ...any) {
	if !r.cfg.Quiet {
		fmt.Fprintf(os.Stderr, "workload: "+format+"\n", args...)
	}
}

// quiesce waits for all actors. Some recipes clean up without a deadline of
// their own (Mutex.Lock does when it is cancelled), which would never end at an
// endpoint that is gone: after a while the clients are closed under them.
func (r *runner) quiesce() error {
	done := make(chan struct{})
	go func() {
		r.actors.Wait()
		close(done)
	}()
	limit := 2 * (r.cfg.OpTimeout + r.cfg.FinalWait)
	if waitFor(done, limit) {
		r.cancel() // the watches end without a verdict
		for _, cli := range r.clients {
			_ = cli.Close() // what it interrupts is what it is for
		}
		<-done
		return fmt.Errorf("clients did not come to an end within %v: the endpoint does not answer", limit)
	}
	return nil
}

// release ends everything that still runs.
func (r *runner) release() {
	for _, end := range []chan struct{}{r.finish, r.probing} {
		select {
		case <-end:
		default:
			close(end)
		}
	}
	r.cancel()
	r.keepers.Wait()
	r.probes.Wait()
	for _, w := range r.watches {
		<-w.done
	}
}

func (r *runner) close() {
	r.cancel()
	for _, cli := range r.clients {
		_ = cli.Close() // nothing is under way any more
	}
}

// setUp reads the state before the run, grants the shared leases and opens
// the long watches.
func (r *runner) setUp() error {
	var err error
	if r.admin, err = r.dial(); err != nil {
		return err
	}
	if err := r.base(); err != nil {
		return err
	}
	for range (r.cfg.Writers + writersPerLease - 1) / writersPerLease {
		ctx, cancel := r.op()
		resp, err := r.admin.Grant(ctx, sharedLeaseTTL)
		cancel()
		if err != nil {
			return fmt.Errorf("cannot grant a lease: %w", err)
		}
		r.shared = append(r.shared, resp.ID)
	}
	for n := range r.cfg.Writers {
		w, err := newWriter(r.env, n, r.shared[n/writersPerLease])
		if err != nil {
			return err
		}
		r.writers = append(r.writers, w)
	}
	r.watches, err = r.longWatches(r.ctx)
	return err
}

// base lists everything in the scopes at one revision.
func (r *runner) base() error {
	kvs, rev, err := r.listScopes(r.admin, 0)
	if err != nil {
		return fmt.Errorf("cannot list the state before the run: %w", err)
	}
	r.baseRev = rev
	r.saw(rev)
	dirs := []check.Range{check.Prefix(r.electDir(0) + "/")}
	for n := range lockNames {
		dirs = append(dirs, check.Prefix(r.lockDir(n)+"/"))
	}
	r.rec.Update(func(h *check.History) {
		h.Scopes, h.BaseRev, h.Base, h.LockDirs = r.scopes(), rev, kvs, dirs
	})
	r.logf("run %s: seed %d, %d keys at revision %d before", r.run, r.cfg.Seed, len(kvs), rev)
	return nil
}

const listPage = 1000

// listScopes lists all scopes at one revision, or at the newest if it is 0.
func (r *runner) listScopes(cli *clientv3.Client, rev int64) ([]uint32, int64, error) {
	var out []uint32
	for _, scope := range r.scopes() {
		for start := scope.Start; ; {
			ctx, cancel := r.op()
			opts := []clientv3.OpOption{clientv3.WithRange(scope.End), clientv3.WithLimit(listPage)}
			if rev > 0 {
				opts = append(opts, clientv3.WithRev(rev))
			}
			resp, err := cli.Get(ctx, start, opts...)
			cancel()
			if err != nil {
				return nil, 0, err
			}
			if rev == 0 {
				rev = resp.Header.Revision
			}
			for _, kv := range resp.Kvs {
				out = append(out, r.rec.Intern(r.kv(kv)))
			}
			if !resp.More || len(resp.Kvs) == 0 {
				break
			}
			start = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
		}
	}
	return out, rev, nil
}

// start starts all actors.
func (r *runner) start() {
	r.startReaders() // before the writers, as it looks at their keys
	for _, w := range r.writers {
		r.actor(w.loop)
	}
	r.startLeases()
	for n := range r.cfg.Lockers {
		if cli := r.client(); cli != nil {
			l := &locker{env: r.env, name: fmt.Sprintf("locker%02d", n), cli: cli, rnd: r.rng(uint64(200 + n))}
			r.actor(func() { l.loop(r.ctx) })
		}
	}
	if r.cfg.Lockers > 0 {
		for range 2 {
			if cli := r.client(); cli != nil {
				r.actor(func() { r.observe(r.ctx, cli) })
			}
		}
	}
	for n, prefix := range r.cfg.Prefixes {
		if cli := r.client(); cli != nil {
			f := &reflector{env: r.env, cli: cli, rnd: r.rng(uint64(500 + n)), prefix: prefix}
			r.watches = append(r.watches, f.open(r.ctx))
			r.actor(f.loop)
		}
	}
	for n := range stmClients {
		if cli := r.client(); cli != nil {
			c := &counter{env: r.env, name: fmt.Sprintf("stm%02d", n), cli: cli, rnd: r.rng(uint64(600 + n)), shared: &r.counters}
			r.actor(c.loop)
		}
	}
	late := &latecomer{env: r.env, rnd: r.rng(400), ctx: r.ctx}
	r.actor(late.loop)
	for n, w := range r.watches {
		if w.kind == all {
			r.actor(func() { r.progressAsker(w, 100*time.Millisecond) })
		} else if w.kind == narrow && n%5 == 0 {
			r.actor(func() { r.progressAsker(w, time.Second) })
		}
	}
	if r.cfg.Compact > 0 {
		c := &compactor{env: r.env}
		for _, endpoint := range r.cfg.Endpoints {
			if cli := r.clientOf(endpoint); cli != nil {
				c.clis = append(c.clis, cli)
			}
		}
		r.actor(c.loop)
	}
	for _, endpoint := range r.cfg.Endpoints {
		if cli := r.clientOf(endpoint); cli != nil {
			r.probes.Go(func() { r.probe(cli, endpoint) })
		}
	}
}

func (r *runner) actor(f func()) { r.actors.Go(f) }

func (r *runner) client() *clientv3.Client {
	cli, err := r.dial()
	if err != nil {
		r.led.Fail(chkErrors, "%v", err)
		return nil
	}
	return cli
}

func (r *runner) clientOf(endpoint string) *clientv3.Client {
	cli, err := Dial([]string{endpoint})
	if err != nil {
		r.led.Fail(chkErrors, "%v", err)
		return nil
	}
	r.clientMu.Lock()
	r.clients = append(r.clients, cli)
	r.clientMu.Unlock()
	return cli
}

func (r *runner) startReaders() {
	for n := range r.cfg.Readers {
		cli := r.client()
		if cli == nil {
			return
		}
		rd := &reader{env: r.env, cli: cli, rnd: r.rng(uint64(100 + n))}
		var names []string
		for _, w := range r.writers {
			for _, d := range w.dirs {
				for _, k := range d.keys {
					names = append(names, k.name)
				}
			}
		}
		rd.keys = func() string { return names[rd.rnd.IntN(len(names))] }
		r.actor(rd.loop)
	}
}

func (r *runner) startLeases() {
	for n := range r.cfg.Leases {
		for role, name := range []string{"keeper", "dropper", "revoker"} {
			cli := r.client()
			if cli == nil {
				return
			}
			l := &leaser{env: r.env, name: fmt.Sprintf("%s%02d", name, n), cli: cli, rnd: r.rng(uint64(300 + 3*n + role))}
			switch role {
			case 0:
				r.keepers.Go(func() { l.keep(r.ctx, n%2 == 0, r.finish) })
			case 1:
				r.actor(l.drop)
			default:
				r.actor(l.revoke)
			}
		}
	}
}

const (
	probeGap     = 200 * time.Millisecond
	probeTimeout = time.Second
)

// probe finds out when an endpoint does not answer for a key of each prefix.
func (r *runner) probe(cli *clientv3.Client, endpoint string) {
	for waitFor(r.probing, probeGap) {
		for _, prefix := range r.cfg.Prefixes {
			at := r.rec.Now()
			ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
			_, err := cli.Get(ctx, prefix+"own-w00/"+r.run+"-w00-000.0", clientv3.WithKeysOnly())
			cancel()
			r.outages.report(endpoint+" "+prefix, err == nil, at, r.rec.Now())
		}
	}
}

// wait waits for the end of the run.
func (r *runner) wait(ctx context.Context) {
	var end <-chan time.Time
	if r.cfg.Duration > 0 {
		t := time.NewTimer(r.cfg.Duration)
		defer t.Stop()
		end = t.C
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	lines := time.NewTicker(10 * time.Second)
	defer lines.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-end:
			return
		case <-tick.C:
			if r.cfg.UntilFile != "" {
				if _, err := os.Stat(r.cfg.UntilFile); err == nil {
					return
				}
			}
		case <-lines.C:
			r.logf("%v: %d writes acknowledged, %d ambiguous, %d reads, revision %d", r.rec.Now().Round(time.Second),
				r.stats.acked.Load(), r.stats.ambiguous.Load(), r.stats.reads.Load(), r.floor.Load())
		}
	}
}

// live checks that the run did something worth judging.
func (r *runner) live(ran time.Duration) {
	r.led.That(r.stats.acked.Load() >= int64(ran.Seconds())*int64(r.cfg.Writers)/2, "load-live",
		"%d writes in %v by %d writers: too few to judge", r.stats.acked.Load(), ran, r.cfg.Writers)
	if ran > 20*time.Second && r.cfg.Lockers > 0 {
		r.led.That(r.stats.guarded.Load() > 0 && r.stats.campaigns.Load() > 0, chkLocks, "%d guarded writes, %d elections won in %v",
			r.stats.guarded.Load(), r.stats.campaigns.Load(), ran)
	}
	if ran > 20*time.Second && r.cfg.Leases > 0 {
		r.led.That(r.stats.leasesDropped.Load() > 0 && r.stats.leasesRevoked.Load() > 0 && r.stats.keepalives.Load() > 0, chkLeaseKept,
			"%d keepalives, %d leases dropped, %d revoked in %v", r.stats.keepalives.Load(), r.stats.leasesDropped.Load(), r.stats.leasesRevoked.Load(), ran)
	}
}
