package check

// keyWrites are the writes to one key, found by what identifies them.
type keyWrites struct {
	exact   map[int64]*Write  // acknowledged, by revision
	ranged  []*Write          // acknowledged, revision known by bounds
	digests map[uint64]*Write // puts by value
	deletes []*Write          // ambiguous deletes
}

// checkWrites matches writes and events of the keys that were written.
func (l *line) checkWrites(led *Ledger) {
	h := l.h
	keys := map[uint32]*keyWrites{}
	for i := range h.Writes {
		w := &h.Writes[i]
		k := keys[w.Key]
		if k == nil {
			k = &keyWrites{exact: map[int64]*Write{}, digests: map[uint64]*Write{}}
			keys[w.Key] = k
		}
		k.add(h, w, led)
	}
	matched := map[*Write]bool{}
	for key, k := range keys {
		for _, e := range l.byKey[key] {
			l.matchEvent(k, e, matched, led)
		}
	}
	for i := range h.Writes {
		w := &h.Writes[i]
		if w.Outcome != Acked || w.Rev <= h.BaseRev || w.Rev > h.FinalRev {
			continue
		}
		led.That(matched[w], WriteVisible, "%s: %s was acknowledged at %d, but no watcher saw it", w.Actor, h.describeWrite(w), w.Rev)
	}
}

func (h *History) describeWrite(w *Write) string {
	if w.Delete {
		return "delete of \"" + h.Keys[w.Key] + "\""
	}
	return "put of \"" + h.Keys[w.Key] + "\""
}

func (k *keyWrites) add(h *History, w *Write, led *Ledger) {
	if !w.Delete {
		if other := k.digests[w.Digest]; other != nil && other.Outcome != Voided && w.Outcome != Voided {
			led.Fail(WriteVisible, "%s: value #%016x was written twice; the generator is broken", w.Actor, w.Digest)
		}
		k.digests[w.Digest] = w
	}
	switch w.Outcome {
	case Acked:
		led.That(w.Rev > w.Floor, WriteOrder, "%s: %s got revision %d, but %d had been acknowledged before it was sent",
			w.Actor, h.describeWrite(w), w.Rev, w.Floor)
		if w.RevLow != 0 {
			k.ranged = append(k.ranged, w)
			return
		}
		if other := k.exact[w.Rev]; other != nil {
			led.Fail(WriteOrder, "%s and %s both got revision %d on %q", w.Actor, other.Actor, w.Rev, h.Keys[w.Key])
		}
		k.exact[w.Rev] = w
	case Pending:
		if w.Delete {
			k.deletes = append(k.deletes, w)
		}
	case Voided:
	}
}

// matchEvent finds the one write that an event is the effect of.
func (l *line) matchEvent(k *keyWrites, e uint32, matched map[*Write]bool, led *Ledger) {
	h := l.h
	kv := h.KVs[e]
	if w := k.exact[kv.Mod]; w != nil {
		matched[w] = true
		l.compareWrite(w, e, led)
		return
	}
	for _, w := range k.ranged {
		if !matched[w] && w.Delete == kv.Tomb && kv.Mod > w.RevLow && kv.Mod <= w.Rev && (kv.Tomb || w.Digest == kv.Digest) {
			matched[w] = true
			l.compareWrite(w, e, led)
			return
		}
	}
	if kv.Tomb {
		for _, w := range k.deletes {
			if !matched[w] && kv.Mod > w.Floor {
				matched[w] = true
				led.Pass(WritePhantom, 1)
				return
			}
		}
		before := l.prev[e]
		byLease := h.LeaseKeys[kv.Key] && before != None && h.KVs[before].Lease != 0
		ok := byLease || !h.Owned[kv.Key]
		led.That(ok, WritePhantom, "%s: nobody deleted it", h.describe(e))
		return
	}
	w := k.digests[kv.Digest]
	switch {
	case w == nil:
		led.That(!h.Owned[kv.Key], WritePhantom, "%s: nobody wrote it", h.describe(e))
	case w.Outcome == Voided:
		led.Fail(WritePhantom, "%s: %s said that it was not applied", h.describe(e), w.Actor)
	case w.Outcome == Acked:
		led.Fail(WriteVisible, "%s: %s got revision %d for it", h.describe(e), w.Actor, w.Rev)
	case matched[w]:
		led.Fail(WritePhantom, "%s: an ambiguous write of %s took effect twice", h.describe(e), w.Actor)
	default:
		matched[w] = true
		led.That(kv.Mod > w.Floor && kv.Lease == w.Lease, WritePhantom, "%s: %s wrote it with lease %x after revision %d",
			h.describe(e), w.Actor, w.Lease, w.Floor)
	}
}

// compareWrite compares an event with the acknowledged write that caused it.
func (l *line) compareWrite(w *Write, e uint32, led *Ledger) {
	h := l.h
	led.That(h.is(w, e), WriteVisible, "%s: %s became %s, expected create %d version %d lease %x value #%016x",
		w.Actor, h.describeWrite(w), h.describe(e), w.Create, w.Version, w.Lease, w.Digest)
}

// is tells whether a kv is the state that an acknowledged write left.
func (h *History) is(w *Write, i uint32) bool {
	kv := h.KVs[i]
	if w.Delete || kv.Tomb {
		return w.Delete == kv.Tomb
	}
	create := w.Create
	if create == -1 {
		create = kv.Mod
	}
	return kv.Digest == w.Digest && kv.Lease == w.Lease &&
		(w.RevLow != 0 || kv.Mod == w.Rev) &&
		(create == 0 || kv.Create == create) &&
		(w.Version == 0 || kv.Version == w.Version)
}

// checkFinal compares the last listing with the last acknowledged write of
// every owned key.
func (l *line) checkFinal(led *Ledger) {
	h := l.h
	last := map[uint32]*Write{}
	pending := map[uint32][]*Write{}
	for i := range h.Writes {
		w := &h.Writes[i]
		switch {
		case !h.Owned[w.Key] || w.Rev > h.FinalRev:
		case w.Outcome == Pending:
			pending[w.Key] = append(pending[w.Key], w)
		case w.Outcome == Acked && (last[w.Key] == nil || w.Rev > last[w.Key].Rev):
			last[w.Key] = w
		}
	}
	final := make(map[uint32]uint32, len(h.Final))
	for _, i := range h.Final {
		final[h.KVs[i].Key] = i
	}
	for key, w := range last {
		got, ok := final[key]
		if !ok {
			got = None
		}
		good := (!ok && w.Delete) || (ok && !w.Delete && h.is(w, got)) || (!ok && h.LeaseKeys[key])
		for _, p := range pending[key] {
			good = good || (p.Delete && !ok) || (ok && !p.Delete && h.KVs[got].Digest == p.Digest)
		}
		led.That(good, FinalState, "%q is %s at the end; last acknowledged was the %s of %s at %d (value #%016x lease %x)",
			h.Keys[key], h.describe(got), h.describeWrite(w), w.Actor, w.Rev, w.Digest, w.Lease)
	}
}
