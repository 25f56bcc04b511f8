package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/sharded-etcd/sharded-etcd/e2e/workload/check"
)

// Invariants judged while the run goes on.
const (
	chkErrors     = "errors-expected"   // no error that the run does not allow
	chkWatchAlive = "watch-alive"       // no watch cancelled or closed
	chkWatchLive  = "watch-live"        // watches catch up in bounded time
	chkProgress   = "progress-live"     // a progress request is answered with a fresh revision
	chkGuard      = "guards-right"      // compares decide by the last acknowledged state
	chkAnswer     = "answers-right"     // prev_kv and Get inside answers
	chkLeaseKept  = "lease-kept"        // leases kept alive stay
	chkLeaseView  = "lease-view"        // TimeToLive and Leases tell the truth
	chkRevoke     = "lease-revoke"      // after a revoke nothing is left and nothing attaches
	chkOrphans    = "lease-orphans"     // no key is attached to a dead lease
	chkLocks      = "lock-live"         // locks and elections are won
	chkObserve    = "election-observed" // observers see leaders in order
	chkCompact    = "compaction"        // below ErrCompacted, at or above served
	chkFuture     = "future-revision"   // ErrFutureRev for revisions to come
	chkCounter    = "stm-counter"       // no increment is lost or done twice
	chkPages      = "paged-list"        // pages at one revision fit together
)

// env is what all actors of a run share.
type env struct {
	cfg  Config
	run  string // part of every key of this run
	rec  *check.Recorder
	led  *check.Ledger
	errs errorCounts
	// floor is the highest revision that any answer has shown to anybody.
	floor    atomic.Int64
	baseRev  int64
	compact  atomic.Int64 // highest compaction asked for
	outages  outages
	stalls   stalls
	stats    stats
	clients  []*clientv3.Client
	clientMu sync.Mutex
	dialed   int
	// stop ends the actors' loops; what is under way is finished.
	stop chan struct{}
}

type stats struct {
	acked, ambiguous, resolved, refused, guardFailed atomic.Int64
	reads, lists, readKVs                            atomic.Int64
	locks, guarded, fencedOff, campaigns, observed   atomic.Int64
	crossRefused, crossDone                          atomic.Int64
	leasesGranted, leasesLost, leasesDropped         atomic.Int64
	leasesRevoked, stmCommits, reflectorStarts       atomic.Int64
	keepalives, compactions, lateWatches, progress   atomic.Int64
}

func (e *env) stopped() bool {
	select {
	case <-e.stop:
		return true
	default:
		return false
	}
}

// pause waits, but not past the end of the run. It tells whether to go on.
func (e *env) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-e.stop:
		return false
	case <-t.C:
		return true
	}
}

func (e *env) rng(actor uint64) *rand.Rand {
	return rand.New(rand.NewPCG(e.cfg.Seed, actor))
}

// dial makes a client of its own for an actor. Clients take the endpoints in
// turn; every third one, when there are several, knows them all.
func (e *env) dial() (*clientv3.Client, error) {
	e.clientMu.Lock()
	n := e.dialed
	e.dialed++
	e.clientMu.Unlock()
	endpoints := []string{e.cfg.Endpoints[n%len(e.cfg.Endpoints)]}
	if len(e.cfg.Endpoints) > 1 && n%3 == 2 {
		endpoints = e.cfg.Endpoints
	}
	cli, err := Dial(endpoints)
	if err != nil {
		return nil, err
	}
	e.clientMu.Lock()
	e.clients = append(e.clients, cli)
	e.clientMu.Unlock()
	return cli, nil
}

// Dial makes a client with kube-apiserver's keepalive settings. It does not
// wait for a connection.
func Dial(endpoints []string) (*clientv3.Client, error) {
	cli, err := clientv3.New(clientv3.Config{
		Endpoints:            endpoints,
		DialTimeout:          20 * time.Second,
		DialKeepAliveTime:    30 * time.Second,
		DialKeepAliveTimeout: 10 * time.Second,
		Logger:               zap.NewNop(),
		DialOptions:          []grpc.DialOption{grpc.WithChainUnaryInterceptor(noteAttempt)},
	})
	if err != nil {
		return nil, fmt.Errorf("cannot make a client for %v: %w", endpoints, err)
	}
	return cli, nil
}

// op is the context of one request. It outlives the end of the run, so that
// nothing becomes ambiguous just because the run ends.
func (e *env) op() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), e.cfg.OpTimeout)
}

// saw notes that a revision was shown to a client.
func (e *env) saw(rev int64) {
	for {
		old := e.floor.Load()
		if rev <= old || e.floor.CompareAndSwap(old, rev) {
			return
		}
	}
}

// failed counts an error and judges whether the run allows it.
func (e *env) failed(op string, err error) {
	e.errs.add(op, err)
	if transient(err) {
		// A request that was cut off by the end of the run is no news.
		if errors.Is(err, context.Canceled) && e.stopped() {
			return
		}
		e.outages.blip(e.rec.Now())
		if e.cfg.Tolerate {
			e.led.Pass(chkErrors, 1)
			return
		}
	}
	e.led.Fail(chkErrors, "%s, answered at %v: %s: %v", op, e.rec.Now(), codeOf(err), err)
}

// attempts is how often a request was sent.
type attempts struct{ n atomic.Int64 }

type attemptsKey struct{}

// countAttempts makes a context whose request tells how often it was sent:
// clientv3 sends some again by itself, revokes among them, when it is told
// that the server is unavailable (clientv3's retry.go).
func countAttempts(ctx context.Context) (context.Context, *attempts) {
	sent := new(attempts)
	return context.WithValue(ctx, attemptsKey{}, sent), sent
}

// noteAttempt runs inside of clientv3's own interceptor, which retries.
func noteAttempt(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if sent, ok := ctx.Value(attemptsKey{}).(*attempts); ok {
		sent.n.Add(1)
	}
	return invoke(ctx, method, req, reply, cc, opts...)
}

// resent tells whether a request was sent again after one that failed, which
// only an outage excuses: a lease that the first revoke ended is then not found.
func (e *env) resent(sent *attempts) bool {
	return e.cfg.Tolerate && sent.n.Load() > 1
}

// kv translates what a client got; prev_kv and Get answers are never
// tombstones.
func (e *env) kv(kv *mvccpb.KeyValue) check.KV {
	return check.KV{
		Key: e.rec.Key(string(kv.Key)), Digest: check.Digest(kv.Value),
		Create: kv.CreateRevision, Mod: kv.ModRevision, Version: kv.Version, Lease: kv.Lease,
	}
}

func (e *env) event(ev *clientv3.Event) check.Event {
	var out check.Event
	if ev.Type == clientv3.EventTypeDelete {
		// etcd fills nothing but key and mod revision; keep what is there
		// so that anything more shows up as a difference.
		out.KV = e.kv(ev.Kv)
		out.KV.Tomb = true
		out.KV.Digest = 0
	} else {
		out.KV = e.kv(ev.Kv)
	}
	if ev.PrevKv != nil {
		prev := e.kv(ev.PrevKv)
		out.Prev = &prev
	}
	out.PrevLost = ev.Kv.ModRevision <= e.compact.Load()
	return out
}

// get reads one key linearizably, records the read and returns its state;
// nil means that the key does not exist.
func (e *env) get(cli *clientv3.Client, key string) (*check.KV, int64, error) {
	ctx, cancel := e.op()
	defer cancel()
	floor := e.floor.Load()
	resp, err := cli.Get(ctx, key)
	if err != nil {
		return nil, 0, err
	}
	rev := resp.Header.Revision
	e.addRead("get", check.Range{Start: key}, resp, rev, floor, nil)
	if len(resp.Kvs) == 0 {
		return nil, rev, nil
	}
	kv := e.kv(resp.Kvs[0])
	return &kv, rev, nil
}

// addRead records an answer to a range request, read at rev.
func (e *env) addRead(kind string, r check.Range, resp *clientv3.GetResponse, rev, floor int64, set func(*check.Read)) {
	read := check.Read{Kind: kind, Range: r, Rev: rev, Header: resp.Header.Revision, Floor: floor, Count: resp.Count, More: resp.More}
	for _, kv := range resp.Kvs {
		read.KVs = append(read.KVs, e.rec.Intern(e.kv(kv)))
	}
	if set != nil {
		set(&read)
	}
	e.rec.AddRead(read)
	if floor > 0 {
		e.saw(resp.Header.Revision)
	}
	e.stats.reads.Add(1)
	e.stats.readKVs.Add(int64(len(resp.Kvs)))
}
