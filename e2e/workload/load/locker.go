package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/sharded-etcd/sharded-etcd/e2e/workload/check"
)

// locker takes locks and leadership with the official recipes, and writes
// under their guard. What a lock gives is fencing: at the revision of each
// guarded write its writer holds the lock. That is what is checked; the times
// of holders may overlap when a session expires.
type locker struct {
	*env
	name string
	cli  *clientv3.Client
	rnd  *rand.Rand
	seq  int
}

const (
	sessionTTL  = 5   // seconds
	observerTTL = 600 // seconds; an observer holds nothing
	lockNames   = 2
	lockWait    = 40 * time.Second
	holdMax     = 30 * time.Millisecond
	lockSessMax = 6
)

func (e *env) lockDir(n int) string { return fmt.Sprintf("%s%s-lock-%d", e.cfg.LockPrefix, e.run, n) }
func (e *env) electDir(n int) string {
	return fmt.Sprintf("%s%s-elect-%d", e.cfg.LockPrefix, e.run, n)
}

// guardKey is written under the lock's guard from another directory.
func (e *env) guardKey(n int) string {
	return fmt.Sprintf("%sguarded/%s-%d", e.cfg.Prefixes[n%len(e.cfg.Prefixes)], e.run, n)
}

func (l *locker) loop(ctx context.Context) {
	for l.pause(time.Duration(l.rnd.Int64N(int64(100 * time.Millisecond)))) {
		session, err := l.session(ctx, l.cli, sessionTTL)
		if err != nil {
			l.failed("session", err)
			l.pause(resolvePause)
			continue
		}
		good := true
		for n := 1 + l.rnd.IntN(lockSessMax); n > 0 && good && !l.stopped(); n-- {
			if l.rnd.IntN(3) == 0 {
				good = l.lead(session)
			} else {
				good = l.lock(session)
			}
		}
		if good && l.rnd.IntN(6) == 0 {
			session.Orphan() // the lock keys go when the lease expires
		} else if err := session.Close(); err != nil {
			l.closeFailed(err)
		}
	}
}

// session makes a session. Its context ends only with the whole run, so that
// closing it still works after the stop; only its start is bounded.
func (e *env) session(ctx context.Context, cli *clientv3.Client, ttl int) (*concurrency.Session, error) {
	ctx, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(e.cfg.OpTimeout, cancel)
	session, err := concurrency.NewSession(cli, concurrency.WithTTL(ttl), concurrency.WithContext(ctx))
	if err != nil || !late.Stop() {
		cancel()
		if err == nil || ctx.Err() != nil {
			err = context.DeadlineExceeded
		}
		return nil, err
	}
	return session, nil
}

// closeFailed judges the error of a session's end. The lease is gone before
// only if it expired, or if clientv3 sent the revoke again after an outage.
func (l *locker) closeFailed(err error) {
	if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		l.failed("session close", err)
		return
	}
	now := l.rec.Now()
	l.errs.add("session close", err)
	again := l.cfg.Tolerate && (len(l.cfg.Endpoints) > 1 || l.outages.during(now-lockWait, now))
	l.led.That(again, chkLocks, "%s: session close: %v, without an outage", l.name, err)
}

// lockContext ends with the wait or, soon, with the run.
func (l *locker) lockContext() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), lockWait)
	go func() {
		select {
		case <-l.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

func (l *locker) value(token int64) string {
	l.seq++
	return fmt.Sprintf("%s %s %d token %d", l.run, l.name, l.seq, token)
}

// lock takes a lock once. It tells whether the session is still good.
func (l *locker) lock(session *concurrency.Session) bool {
	n := l.rnd.IntN(lockNames)
	m := concurrency.NewMutex(session, l.lockDir(n))
	ctx, cancel := l.lockContext()
	err := m.Lock(ctx)
	cancel()
	if err != nil {
		return l.gaveUp("lock", err, session)
	}
	l.stats.locks.Add(1)
	l.led.Pass(chkLocks, 1)
	good := true
	token := int64(0)
	for i := 1 + l.rnd.IntN(3); i > 0 && good; i-- {
		var got int64
		got, good = l.guardedWrite(m.IsOwner(), m.Key(), session)
		if got != 0 {
			l.led.That(token == 0 || got == token, chkLocks, "%s: the create revision of its lock key went from %d to %d", l.name, token, got)
			token = got
			good = good && l.guardedElsewhere(m.IsOwner(), n, token)
		}
		time.Sleep(time.Duration(l.rnd.Int64N(int64(holdMax))))
	}
	octx, ocancel := l.op()
	defer ocancel()
	if err := m.Unlock(octx); err != nil {
		l.gaveUp("unlock", err, session)
		return false
	}
	return good
}

// gaveUp judges a failed step of a recipe. After it nobody knows what the
// session holds, so that it is given up.
func (l *locker) gaveUp(op string, err error, session *concurrency.Session) bool {
	if l.stopped() && errors.Is(err, context.Canceled) {
		return false
	}
	if errors.Is(err, concurrency.ErrSessionExpired) {
		now := l.rec.Now()
		l.led.That(l.cfg.Tolerate && l.outages.during(now-lockWait, now), chkLocks, "%s: %s: %v, without an outage", l.name, op, err)
		return false
	}
	select {
	case <-session.Done():
		now := l.rec.Now()
		l.led.That(l.cfg.Tolerate && l.outages.during(now-lockWait, now), chkLocks, "%s: %s: the session ended, without an outage: %v", l.name, op, err)
		return false
	default:
	}
	l.failed(op, err)
	return false
}

// guardedWrite writes the holder's own key under the guard, and returns the
// key's create revision: the fencing token.
func (l *locker) guardedWrite(owner clientv3.Cmp, key string, session *concurrency.Session) (int64, bool) {
	value := l.value(0)
	w := check.Write{Actor: l.name, Key: l.rec.Key(key), Digest: check.Digest([]byte(value)), Lease: int64(session.Lease()), Floor: l.floor.Load()}
	ctx, cancel := l.op()
	defer cancel()
	resp, err := l.cli.Txn(ctx).If(owner).
		Then(clientv3.OpPut(key, value, clientv3.WithIgnoreLease()), clientv3.OpGet(key)).Commit()
	if err != nil {
		l.failed("guarded write", err)
		w.Outcome = check.Pending
		if classify(err) == refused {
			w.Outcome = check.Voided
		}
		l.rec.AddWrite(w)
		return 0, false
	}
	l.saw(resp.Header.Revision)
	if !resp.Succeeded {
		w.Outcome = check.Voided
		l.rec.AddWrite(w)
		l.fencedOff(key)
		return 0, false
	}
	l.stats.guarded.Add(1)
	w.Rev = resp.Header.Revision
	l.rec.AddWrite(w)
	got := resp.Responses[1].GetResponseRange()
	if !l.led.That(len(got.Kvs) == 1 && got.Kvs[0].ModRevision == resp.Header.Revision && got.Kvs[0].Lease == int64(session.Lease()), chkAnswer,
		"guarded write of %q at %d: the Get after it gave %v", key, resp.Header.Revision, got.Kvs) {
		return 0, false
	}
	return got.Kvs[0].CreateRevision, true
}

// fencedOff judges the loss of a lock: only an expired session loses one.
func (l *locker) fencedOff(key string) {
	l.stats.fencedOff.Add(1)
	now := l.rec.Now()
	l.led.That(l.outages.during(now-lockWait, now), chkLocks, "%s lost %q at %v, without an outage", l.name, key, now)
}

// guardedElsewhere writes a key of another directory under the lock's guard.
// An endpoint over several shards may refuse that, in which case nothing is
// written.
func (l *locker) guardedElsewhere(owner clientv3.Cmp, n int, token int64) bool {
	key := l.guardKey(n)
	value := l.value(token)
	w := check.Write{Actor: l.name, Key: l.rec.Own(key, false), Digest: check.Digest([]byte(value)), Floor: l.floor.Load(), Token: token}
	ctx, cancel := l.op()
	defer cancel()
	resp, err := l.cli.Txn(ctx).If(owner).Then(clientv3.OpPut(key, value)).Commit()
	defer func() { l.rec.AddWrite(w) }()
	switch {
	case err != nil && classify(err) == refused:
		l.errs.add("guarded write to another directory", err)
		l.stats.crossRefused.Add(1)
		w.Outcome = check.Voided
		return true
	case err != nil:
		l.failed("guarded write to another directory", err)
		w.Outcome = check.Pending
		return false
	case !resp.Succeeded:
		l.saw(resp.Header.Revision)
		w.Outcome = check.Voided
		l.fencedOff(key)
		return false
	}
	l.saw(resp.Header.Revision)
	w.Rev = resp.Header.Revision
	l.stats.crossDone.Add(1)
	return true
}

// lead wins an election, proclaims and resigns. It tells whether the session
// is still good.
func (l *locker) lead(session *concurrency.Session) bool {
	el := concurrency.NewElection(session, l.electDir(0))
	ctx, cancel := l.lockContext()
	err := el.Campaign(ctx, l.value(0))
	cancel()
	if err != nil {
		return l.gaveUp("campaign", err, session)
	}
	l.stats.campaigns.Add(1)
	l.led.Pass(chkLocks, 1)
	octx, ocancel := l.op()
	defer ocancel()
	for range l.rnd.IntN(3) {
		value := l.value(0)
		w := check.Write{Actor: l.name, Key: l.rec.Key(el.Key()), Digest: check.Digest([]byte(value)), Lease: int64(session.Lease()),
			Floor: l.floor.Load(), Outcome: check.Pending}
		err := el.Proclaim(octx, value)
		if errors.Is(err, concurrency.ErrElectionNotLeader) {
			w.Outcome = check.Voided
			l.fencedOff(el.Key())
		}
		l.rec.AddWrite(w) // the recipe hides the revision
		if err != nil {
			return l.gaveUp("proclaim", err, session)
		}
		time.Sleep(time.Duration(l.rnd.Int64N(int64(holdMax))))
	}
	if err := el.Resign(octx); err != nil {
		return l.gaveUp("resign", err, session)
	}
	return true
}

// observe follows the leaders of an election.
func (e *env) observe(ctx context.Context, cli *clientv3.Client) {
	session, err := e.session(ctx, cli, observerTTL)
	if err != nil {
		e.failed("session", err)
		return
	}
	defer session.Orphan()
	el := concurrency.NewElection(session, e.electDir(0))
	created, mod := int64(0), int64(0)
	for !e.stopped() {
		octx, cancel := context.WithCancel(ctx)
		ch := el.Observe(octx)
		for open := true; open && !e.stopped(); {
			var resp *clientv3.GetResponse
			select {
			case <-e.stop:
				open = false
				continue
			case resp, open = <-ch:
			}
			if !open || len(resp.Kvs) == 0 {
				continue
			}
			kv := resp.Kvs[0]
			e.stats.observed.Add(1)
			// The next leader's key may be older than the last one's proclamation.
			e.led.That(kv.CreateRevision > created || (kv.CreateRevision == created && kv.ModRevision >= mod), chkObserve,
				"leader %q created %d mod %d was observed after one created %d mod %d", kv.Key, kv.CreateRevision, kv.ModRevision, created, mod)
			created, mod = kv.CreateRevision, kv.ModRevision
		}
		cancel()
		if !e.stopped() {
			now := e.rec.Now()
			e.led.That(e.cfg.Tolerate && e.outages.during(now-e.cfg.OpTimeout, now), chkObserve, "an observer was closed at %v, without an outage", now)
			e.pause(resolvePause)
		}
	}
}
