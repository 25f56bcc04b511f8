package check

import "time"

// endSlack is how much later than its TTL a lease may end: etcd checks for
// expiry twice a second and revokes at a bounded rate.
const endSlack = 10 * time.Second

// clockSlack forgives rounding between the clocks of client and server.
const clockSlack = 50 * time.Millisecond

// streamSlack forgives that clientv3 may have sent the request of a stream's
// answer up to two of its 500 ms rounds before the answer before.
const streamSlack = time.Second

// overlapsOutage tells whether the endpoint was away in [from, to].
func (h *History) overlapsOutage(from, to time.Duration) bool {
	for _, o := range h.Outages {
		if o.From <= to && o.To >= from {
			return true
		}
	}
	return false
}

// EndDeadline is when a lease must be gone whose last answer came at answered.
// A server that restarts, or gets a new leader, grants every lease its full TTL
// again, so each outage before the deadline moves it. A fault of at most
// faultMax may keep a lease from ending without being an outage: where a range
// is closed for a move whose executor is away, nobody can delete its keys.
func EndDeadline(answered, ttl, faultMax time.Duration, outages []Outage) time.Duration {
	slack := endSlack + faultMax
	deadline := answered + ttl + slack
	for _, o := range outages {
		if o.From <= deadline && o.To > answered {
			deadline = max(deadline, o.To+ttl+slack)
		}
	}
	return deadline
}

// checkLeases checks when the keys of each lease went away.
func (l *line) checkLeases(led *Ledger) {
	most := 0
	for i := range l.h.Leases {
		lease := &l.h.Leases[i]
		l.checkLease(lease, led)
		if lease.End == Revoked {
			most = max(most, l.checkRevoke(lease, led))
		}
	}
	if most > 0 {
		led.Note(LeaseEnds, "a revoke took up to %d revisions", most)
	}
}

// checkRevoke counts the revisions in which a revoke deleted its keys.
func (l *line) checkRevoke(lease *LeaseLog, led *Ledger) int {
	revs := map[int64]bool{}
	for _, key := range lease.Keys {
		events := l.byKey[key]
		if n := len(events); n > 0 && l.h.KVs[events[n-1]].Tomb && l.h.Gone[key] >= lease.RevokeSent {
			revs[l.h.KVs[events[n-1]].Mod] = true
		}
	}
	if l.h.OneRevision {
		led.That(len(revs) <= 1, LeaseEnds, "%s (%x): its revoke deleted keys in %d revisions", lease.Name, lease.ID, len(revs))
	}
	return len(revs)
}

func (l *line) checkLease(lease *LeaseLog, led *Ledger) {
	h := l.h
	if len(lease.Renewals) == 0 {
		return
	}
	last := lease.Renewals[len(lease.Renewals)-1]
	deadline := EndDeadline(last.Answered, lease.TTL, h.FaultMax, h.Outages)
	lost, alive := 0, 0
	for _, key := range lease.Keys {
		gone, isGone := h.Gone[key]
		if !isGone {
			if len(l.byKey[key]) > 0 {
				alive++
			}
			continue
		}
		lost++
		if lease.RevokeSent != 0 && gone >= lease.RevokeSent {
			continue
		}
		l.checkExpiry(lease, key, gone, led)
		if lease.End == Dropped {
			led.That(gone <= deadline, LeaseEnds, "%s: %q went at %v, due by %v (TTL %v, last answer at %v)",
				lease.Name, h.Keys[key], gone, deadline, lease.TTL, last.Answered)
		}
	}
	switch {
	case alive == 0:
		led.Pass(LeaseEnds, 1)
	case lease.End == Revoked:
		led.Fail(LeaseEnds, "%s (%x) was revoked, but %d of its keys are left", lease.Name, lease.ID, alive)
	case lease.End == Dropped && h.End > deadline:
		led.Fail(LeaseEnds, "%s (%x) was due by %v, but %d of its keys are left", lease.Name, lease.ID, deadline, alive)
	case lost > 0 && lease.End != Abandoned && h.End > deadline:
		led.Fail(LeaseEnds, "%s (%x) ended for %d keys, but %d are left", lease.Name, lease.ID, lost, alive)
	default:
		led.Pass(LeaseEnds, 1)
	}
}

// checkExpiry checks that a key that went by expiry was not due to live, and
// that nobody was told afterwards that the lease is alive.
func (l *line) checkExpiry(lease *LeaseLog, key uint32, gone time.Duration, led *Ledger) {
	h := l.h
	early := false
	slack := clockSlack
	if lease.Stream {
		slack = streamSlack
	}
	for _, r := range lease.Renewals {
		if r.Lower > gone {
			// A stream's answer may be to a request sent long before.
			if !lease.Stream || !h.overlapsOutage(gone-lease.TTL, r.Answered) {
				led.Fail(LeaseZombie, "%s (%x): a keepalive sent at %v was answered, but %q had gone at %v",
					lease.Name, lease.ID, r.Lower, h.Keys[key], gone)
			}
			break
		}
		if gone+slack >= r.Lower+lease.TTL {
			continue
		}
		if r.Answered > gone && lease.Stream {
			continue
		}
		if lease.Stream && h.overlapsOutage(r.Lower-lease.TTL, gone) {
			continue
		}
		early = true
		led.Fail(LeaseEarly, "%s (%x): %q went at %v, but a keepalive sent at %v was answered at %v and the TTL is %v",
			lease.Name, lease.ID, h.Keys[key], gone, r.Lower, r.Answered, lease.TTL)
		break
	}
	if !early {
		led.Pass(LeaseEarly, 1)
	}
	led.Pass(LeaseZombie, 1)
}
