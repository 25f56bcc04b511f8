package check

import (
	"fmt"
	"sort"
)

// Names of the invariants, as they are printed.
const (
	WatchAgree    = "watch-agree"     // watchers saw the same events
	WatchOrder    = "watch-order"     // revisions never go back
	WatchAtomic   = "watch-atomic"    // one revision, one response
	WatchUnique   = "watch-unique"    // no event twice
	WatchComplete = "watch-complete"  // no event missing
	WatchRange    = "watch-range"     // nothing but what was asked for
	WatchPrevKV   = "watch-prev-kv"   // prev_kv is the state before
	WatchProgress = "watch-progress"  // nothing older after a progress answer
	KeyLives      = "key-lives"       // create, mod and version in step
	WriteVisible  = "write-visible"   // every acknowledged write, once, as written
	WritePhantom  = "write-phantom"   // no event without a write
	WriteOrder    = "write-real-time" // revisions follow real time
	ReadSnapshot  = "read-snapshot"   // every read equals the line at its revision
	ReadOrder     = "read-real-time"  // header revisions never go back
	FinalState    = "final-state"     // the store holds what was acknowledged
	LeaseEarly    = "lease-not-early" // no lease ends before its TTL
	LeaseEnds     = "lease-ends"      // dropped and revoked leases end, with all keys
	LeaseZombie   = "lease-no-zombie" // no keepalive answered after the end
	LockFencing   = "lock-fencing"    // guarded writes follow the fencing tokens
)

// line is the union of all events seen, in revision order, with each event's
// predecessor on its key.
type line struct {
	h      *History
	events []uint32            // kv indexes, ordered by revision
	at     map[uint32]struct{} // the same as a set
	prev   map[uint32]uint32   // event → state of the key before it
	byKey  map[uint32][]uint32 // key → its events in order
}

// describe prints a kv for people.
func (h *History) describe(i uint32) string {
	if i == None {
		return "nothing"
	}
	kv := h.KVs[i]
	if kv.Tomb {
		return fmt.Sprintf("DELETE %q @%d", h.Keys[kv.Key], kv.Mod)
	}
	return fmt.Sprintf("%q @%d create %d version %d lease %x value #%016x",
		h.Keys[kv.Key], kv.Mod, kv.Create, kv.Version, kv.Lease, kv.Digest)
}

// buildLine merges what all watches delivered and checks each key's life.
func buildLine(h *History, led *Ledger) *line {
	l := &line{h: h, at: map[uint32]struct{}{}, prev: map[uint32]uint32{}, byKey: map[uint32][]uint32{}}
	for w := range h.Watches {
		for _, d := range h.Watches[w].Deliveries {
			kv := h.KVs[d.KV]
			if _, ok := l.at[d.KV]; ok || kv.Mod <= h.BaseRev || kv.Mod > h.FinalRev || !h.inScope(h.Keys[kv.Key]) {
				continue
			}
			l.at[d.KV] = struct{}{}
			l.events = append(l.events, d.KV)
		}
	}
	// Stable: two events of one key in one revision (a put and a delete in
	// nested Txns) stay in the order in which they were delivered.
	sort.SliceStable(l.events, func(i, j int) bool { return h.KVs[l.events[i]].Mod < h.KVs[l.events[j]].Mod })

	state := make(map[uint32]uint32, len(h.Base))
	for _, b := range h.Base {
		state[h.KVs[b].Key] = b
	}
	for _, e := range l.events {
		kv := h.KVs[e]
		before, ok := state[kv.Key]
		if !ok {
			before = None
		}
		l.prev[e] = before
		state[kv.Key] = e
		l.byKey[kv.Key] = append(l.byKey[kv.Key], e)
		l.checkLife(e, before, led)
	}
	led.Pass(WatchAgree, len(l.events))
	return l
}

// checkLife compares an event with the state of its key before it.
func (l *line) checkLife(e, before uint32, led *Ledger) {
	h := l.h
	kv := h.KVs[e]
	var old *KV
	if before != None {
		old = &h.KVs[before]
	}
	if old != nil && old.Mod == kv.Mod && old.Tomb == kv.Tomb {
		led.Fail(WatchAgree, "two watchers saw revision %d of one key differently: %s and %s", kv.Mod, h.describe(before), h.describe(e))
		return
	}
	alive := old != nil && !old.Tomb
	switch {
	case kv.Tomb:
		led.That(alive, KeyLives, "%s, but the key did not exist before: %s", h.describe(e), h.describe(before))
	case kv.Version < 1 || kv.Create > kv.Mod || (kv.Create == kv.Mod) != (kv.Version == 1):
		led.Fail(KeyLives, "%s: create equals mod exactly if the version is 1", h.describe(e))
	case !alive:
		led.That(kv.Version == 1, KeyLives, "%s, but the key did not exist before", h.describe(e))
	default:
		led.That(kv.Version == old.Version+1 && kv.Create == old.Create, KeyLives,
			"%s does not follow %s", h.describe(e), h.describe(before))
	}
}

// Check runs every check on a history.
func Check(h *History, led *Ledger) {
	l := buildLine(h, led)
	l.checkWatches(led)
	l.checkWrites(led)
	l.checkReads(led)
	if !h.Unfinished {
		l.checkFinal(led)
	}
	l.checkLeases(led)
	l.checkLocks(led)
}
