package load

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/sharded-etcd/sharded-etcd/e2e/workload/check"
)

// leaser plays one role in the life of leases. Each of its leases has keys of
// its own, in several directories, and so on several shards.
type leaser struct {
	*env
	name string
	cli  *clientv3.Client
	rnd  *rand.Rand
	gen  int
	seq  int
}

// lease is a granted lease and what is attached to it.
type lease struct {
	id   clientv3.LeaseID
	log  check.LeaseLog
	keys []*leaseKey
}

type leaseKey struct {
	name    string
	id      uint32
	version int64
	create  int64
	unsure  bool // an ambiguous put: nobody knows what is attached
}

const (
	attachTries = 3
	watchLeases = time.Second
)

// grant grants a lease with a TTL in seconds and puts keys under it.
func (l *leaser) grant(ttl int64, keys int) *lease {
	l.gen++
	ctx, cancel := l.op()
	sent := l.rec.Now()
	resp, err := l.cli.Grant(ctx, ttl)
	cancel()
	if err != nil {
		l.failed("grant", err)
		return nil
	}
	l.stats.leasesGranted.Add(1)
	out := &lease{id: resp.ID, log: check.LeaseLog{
		Name: fmt.Sprintf("lease %d of %s", l.gen, l.name), ID: int64(resp.ID), TTL: time.Duration(resp.TTL) * time.Second,
		Renewals: []check.Renewal{{Lower: sent, Answered: l.rec.Now()}}, End: check.Abandoned,
	}}
	for k := range keys {
		prefix := l.cfg.Prefixes[(k+l.gen)%len(l.cfg.Prefixes)]
		name := fmt.Sprintf("%sleased/%s-%s-%d-%d", prefix, l.run, l.name, l.gen, k)
		key := &leaseKey{name: name, id: l.rec.Own(name, true)}
		out.keys = append(out.keys, key)
		out.log.Keys = append(out.log.Keys, key.id)
		for range attachTries {
			if l.attach(out.id, key) || key.unsure {
				break
			}
		}
	}
	return out
}

// attach puts a key under a lease, and tells whether that was acknowledged.
func (l *leaser) attach(id clientv3.LeaseID, key *leaseKey) bool {
	rev, err := l.write(key.name, key.id, id, func(w *check.Write) {
		w.Version, w.Create = key.version+1, key.create
		if key.version == 0 {
			w.Create = -1
		}
		if key.unsure {
			w.Version, w.Create = 0, 0
		}
	})
	if err != nil {
		key.unsure = key.unsure || classify(err) == ambiguous
		if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			l.failed("put with lease", err)
		}
		return false
	}
	if key.version == 0 {
		key.create = rev
	}
	key.version++
	return true
}

// write puts a value of its own and records what became of it.
func (l *leaser) write(name string, key uint32, id clientv3.LeaseID, expect func(*check.Write)) (int64, error) {
	l.seq++
	value := fmt.Sprintf("%s %s %d", l.run, l.name, l.seq)
	w := check.Write{Actor: l.name, Key: key, Digest: check.Digest([]byte(value)), Lease: int64(id), Floor: l.floor.Load()}
	ctx, cancel := l.op()
	defer cancel()
	resp, err := l.cli.Put(ctx, name, value, clientv3.WithLease(id))
	switch {
	case err == nil:
		l.saw(resp.Header.Revision)
		w.Rev = resp.Header.Revision
		expect(&w)
		l.stats.acked.Add(1)
	case classify(err) == ambiguous:
		w.Outcome = check.Pending
		l.stats.ambiguous.Add(1)
	default:
		w.Outcome = check.Voided
	}
	l.rec.AddWrite(w)
	if err != nil {
		return 0, err
	}
	return w.Rev, nil
}

// renew sends one keepalive and records its answer.
func (l *leaser) renew(x *lease) error {
	ctx, cancel := l.op()
	defer cancel()
	sent := l.rec.Now()
	_, err := l.cli.KeepAliveOnce(ctx, x.id)
	if err != nil {
		return err
	}
	x.log.Renewals = append(x.log.Renewals, check.Renewal{Lower: sent, Answered: l.rec.Now()})
	l.stats.keepalives.Add(1)
	return nil
}

// keep keeps a lease alive for the entire run, over a stream or one by one.
func (l *leaser) keep(ctx context.Context, stream bool, finish <-chan struct{}) {
	for {
		x := l.grant(5+l.rnd.Int64N(6), 3)
		if x == nil {
			if !waitFor(finish, time.Second) {
				return
			}
			continue
		}
		x.log.Stream, x.log.End = stream, check.Kept
		lost := false
		if stream {
			lost = l.keepStream(ctx, x, finish)
		} else {
			lost = l.keepOnce(x, finish)
		}
		if !lost {
			l.finish(x)
			return
		}
		l.stats.leasesLost.Add(1)
		l.judgeLoss(x)
		l.rec.AddLease(x.log)
	}
}

// judgeLoss decides whether a lease that was kept alive could be lost: only if
// no answer came for a whole TTL, which only an outage excuses.
func (l *leaser) judgeLoss(x *lease) {
	now := l.rec.Now()
	last := x.log.Renewals[len(x.log.Renewals)-1]
	early := now < last.Lower+x.log.TTL
	if x.log.Stream {
		early = early && !l.outages.during(last.Lower-x.log.TTL, now)
	}
	// Of several endpoints the one of the stream may stand still without any request that fails.
	excused := l.cfg.Tolerate && (len(l.cfg.Endpoints) > 1 || l.outages.during(last.Lower-time.Second, now))
	l.led.That(!early && excused, chkLeaseKept, "%s (%x) was lost at %v; last keepalive sent at %v, answered at %v, TTL %v, outage in between: %v",
		x.log.Name, x.log.ID, now, last.Lower, last.Answered, x.log.TTL, excused)
}

func (l *leaser) keepStream(ctx context.Context, x *lease, finish <-chan struct{}) (lost bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers, err := l.cli.KeepAlive(ctx, x.id)
	if err != nil {
		l.failed("keepalive", err)
		return true
	}
	tick := time.NewTicker(watchLeases)
	defer tick.Stop()
	// Looking waits for the server; it must not keep answers from being
	// noted at the time at which they come.
	looked := make(chan bool, 1)
	looking, silent := false, false
	defer func() {
		if looking {
			<-looked
		}
	}()
	for {
		select {
		case <-finish:
			return false
		case a, open := <-answers:
			if !open {
				return true
			}
			last := x.log.Renewals[len(x.log.Renewals)-1]
			x.log.Renewals = append(x.log.Renewals, check.Renewal{Lower: last.Answered, Answered: l.rec.Now()})
			l.stats.keepalives.Add(1)
			l.led.That(a.TTL > 0, chkLeaseKept, "%s (%x): a keepalive was answered with TTL %d", x.log.Name, x.log.ID, a.TTL)
		case <-tick.C:
			l.notSilent(x, &silent)
			if !looking {
				looking = true
				go func() { looked <- l.look(x) }()
			}
		case alive := <-looked:
			looking = false
			if !alive {
				return true
			}
		}
	}
}

// notSilent reports, once, a keepalive stream without an answer for a whole
// TTL: clientv3 waits longer for a first answer, but the lease does not.
func (l *leaser) notSilent(x *lease, reported *bool) {
	now := l.rec.Now()
	last := x.log.Renewals[len(x.log.Renewals)-1]
	if *reported || now-last.Answered <= x.log.TTL {
		return
	}
	*reported = true
	// Of several endpoints the one of the stream may stand still without any request that fails.
	excused := l.cfg.Tolerate && (len(l.cfg.Endpoints) > 1 || l.outages.during(last.Answered, now))
	l.led.That(excused, chkLeaseKept, "%s (%x): no keepalive answered for %v, TTL %v", x.log.Name, x.log.ID, now-last.Answered, x.log.TTL)
}

func (l *leaser) keepOnce(x *lease, finish <-chan struct{}) (lost bool) {
	gap := x.log.TTL / 4
	for waitFor(finish, gap) {
		if err := l.renew(x); err != nil {
			if errors.Is(err, rpctypes.ErrLeaseNotFound) {
				return true
			}
			l.failed("keepalive once", err)
			continue
		}
		if !l.look(x) {
			return true
		}
	}
	return false
}

// waitFor waits unless the channel closes first.
func waitFor(end <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-end:
		return false
	case <-t.C:
		return true
	}
}

// look reads what the server says about a lease that is kept alive; now and
// then it writes one of the keys again. It tells whether the lease lives.
func (l *leaser) look(x *lease) bool {
	ctx, cancel := l.op()
	resp, err := l.cli.TimeToLive(ctx, x.id, clientv3.WithAttachedKeys())
	cancel()
	if err != nil {
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return false
		}
		l.failed("time to live", err)
		return true
	}
	if resp.TTL <= 0 {
		return false
	}
	l.led.That(time.Duration(resp.GrantedTTL)*time.Second == x.log.TTL && time.Duration(resp.TTL)*time.Second <= x.log.TTL, chkLeaseView,
		"%s (%x): TTL %d s of %d s, granted %v", x.log.Name, x.log.ID, resp.TTL, resp.GrantedTTL, x.log.TTL)
	l.sameKeys(x, resp.Keys)
	if l.rnd.IntN(2) == 0 {
		l.attach(x.id, x.keys[l.rnd.IntN(len(x.keys))])
	}
	return true
}

func (l *leaser) sameKeys(x *lease, got [][]byte) {
	var have, want []string
	for _, k := range got {
		have = append(have, string(k))
	}
	for _, k := range x.keys {
		if k.unsure {
			return
		}
		if k.version > 0 {
			want = append(want, k.name)
		}
	}
	slices.Sort(have)
	slices.Sort(want)
	l.led.That(slices.Equal(have, want), chkLeaseView, "%s (%x) has keys %q, not %q", x.log.Name, x.log.ID, have, want)
}

// finish revokes a lease at the end of its role. A lease that was lost in an
// outage at its end is noticed here first.
func (l *leaser) finish(x *lease) {
	x.log.RevokeSent = l.rec.Now()
	ctx, cancel := l.op()
	defer cancel()
	ctx, sent := countAttempts(ctx)
	_, err := l.cli.Revoke(ctx, x.id)
	switch {
	case err == nil:
		x.log.End = check.Revoked
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		l.errs.add("revoke", err)
		x.log.End = check.Abandoned
		if !l.resent(sent) {
			l.stats.leasesLost.Add(1)
			l.judgeLoss(x)
		}
	default:
		l.failed("revoke", err)
		x.log.End = check.Abandoned
	}
	l.rec.AddLease(x.log)
}

// drop grants leases and leaves them to expire, one after the other.
func (l *leaser) drop() {
	for l.pause(time.Duration(l.rnd.Int64N(int64(time.Second)))) {
		x := l.grant(2+l.rnd.Int64N(3), 4)
		if x == nil {
			continue
		}
		for n := l.rnd.IntN(3); n > 0 && l.pause(x.log.TTL/3); n-- {
			if err := l.renew(x); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
				l.failed("keepalive once", err)
			}
		}
		x.log.End = check.Dropped
		for _, k := range x.keys {
			if k.unsure {
				x.log.End = check.Abandoned // a late put may meet a dead lease, or not
			}
		}
		l.awaitExpiry(x)
		l.rec.AddLease(x.log)
		l.stats.leasesDropped.Add(1)
	}
}

// awaitExpiry waits until the keys of a lease are gone or overdue; package
// check judges when they went.
func (l *leaser) awaitExpiry(x *lease) {
	last := x.log.Renewals[len(x.log.Renewals)-1].Answered
	limit := time.Duration(math.MaxInt64) // an outage without end moves the deadline for ever
	for {
		left := 0
		for _, k := range x.keys {
			if _, gone := l.rec.Gone(k.id); !gone && k.version > 0 {
				left++
			}
		}
		now := l.rec.Now()
		if limit == math.MaxInt64 && l.stopped() {
			limit = now + l.cfg.FinalWait
		}
		if left == 0 || now > limit || now > check.EndDeadline(last, x.log.TTL, l.cfg.FaultMax, l.outages.list(now)) {
			return
		}
		time.Sleep(5 * pollGap)
	}
}

// revoke grants leases and revokes them.
func (l *leaser) revoke() {
	for l.pause(300*time.Millisecond + time.Duration(l.rnd.Int64N(int64(time.Second)))) {
		if x := l.grant(60, 4); x != nil {
			l.revokeOne(x)
			l.rec.AddLease(x.log)
		}
	}
}

const revokeTries = 50

func (l *leaser) revokeOne(x *lease) {
	// One key leaves the lease before, and so has to stay.
	free := x.keys[0]
	x.log.Keys = x.log.Keys[1:]
	x.keys = x.keys[1:]
	detached := false
	if !free.unsure && free.version > 0 {
		_, err := l.write(free.name, free.id, 0, func(w *check.Write) { w.Version, w.Create = free.version+1, free.create })
		if err != nil {
			l.failed("put without lease", err)
		}
		detached = err == nil
	}
	x.log.RevokeSent = l.rec.Now()
	before := l.floor.Load()
	tries := 0
	for ; tries < revokeTries; tries++ {
		ctx, cancel := l.op()
		ctx, sent := countAttempts(ctx)
		resp, err := l.cli.Revoke(ctx, x.id)
		cancel()
		if err == nil {
			l.saw(resp.Header.Revision)
			l.led.That(resp.Header.Revision >= before, check.ReadOrder, "revoke by %s: header revision %d, but %d had been acknowledged before it was sent", l.name, resp.Header.Revision, before)
			break
		}
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			known := tries == 0 && l.rec.Now() < x.log.Renewals[0].Lower+x.log.TTL && !l.resent(sent)
			l.led.That(!known, chkRevoke, "%s (%x): %v at the first revoke", x.log.Name, x.log.ID, err)
			break
		}
		l.failed("revoke", err)
		time.Sleep(resolvePause)
	}
	if tries == revokeTries {
		return
	}
	x.log.End = check.Revoked
	for _, k := range x.keys {
		if k.unsure {
			x.log.End = check.Abandoned
		}
	}
	l.stats.leasesRevoked.Add(1)
	l.afterRevoke(x)
	if detached {
		kv, _, err := l.get(l.cli, free.name)
		if err != nil {
			l.failed("get", err)
		} else {
			l.led.That(kv != nil, chkRevoke, "%s (%x): %q had left the lease, but was deleted with it", x.log.Name, x.log.ID, free.name)
		}
	}
}

// afterRevoke checks that nothing is left and nothing attaches.
func (l *leaser) afterRevoke(x *lease) {
	for _, k := range x.keys {
		kv, rev, err := l.get(l.cli, k.name)
		if err != nil {
			l.failed("get", err)
			continue
		}
		l.led.That(kv == nil, chkRevoke, "%s (%x) was revoked, but %q is there at %d", x.log.Name, x.log.ID, k.name, rev)
	}
	late := x.keys[0]
	_, err := l.write(late.name, late.id, x.id, func(*check.Write) {})
	l.notFound("put", x, err)
	ctx, cancel := l.op()
	defer cancel()
	_, err = l.cli.KeepAliveOnce(ctx, x.id)
	l.notFound("keepalive", x, err)
	ttl, err := l.cli.TimeToLive(ctx, x.id)
	if err != nil {
		l.failed("time to live", err)
	} else {
		l.led.That(ttl.TTL == -1, chkRevoke, "%s (%x) was revoked, but its TTL is %d", x.log.Name, x.log.ID, ttl.TTL)
	}
}

func (l *leaser) notFound(op string, x *lease, err error) {
	if err != nil && transient(err) {
		l.failed(op+" after a revoke", err)
		return
	}
	l.led.That(errors.Is(err, rpctypes.ErrLeaseNotFound), chkRevoke, "%s with %s (%x) after its revoke: %v instead of %v",
		op, x.log.Name, x.log.ID, err, rpctypes.ErrLeaseNotFound)
}
