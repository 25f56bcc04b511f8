package check

import "sort"

// sweep walks the line and knows the state of every key at the revision it
// stands at.
type sweep struct {
	l      *line
	next   int
	keys   []uint32 // all keys in byte order
	rank   []int    // key → place in keys
	live   []uint32 // place → kv, or None
	sorted []string // names in order, for range bounds
}

func newSweep(l *line) *sweep {
	h := l.h
	s := &sweep{l: l, keys: make([]uint32, len(h.Keys)), rank: make([]int, len(h.Keys)),
		live: make([]uint32, len(h.Keys)), sorted: make([]string, len(h.Keys))}
	for i := range s.keys {
		s.keys[i] = uint32(i)
		s.live[i] = None
	}
	sort.Slice(s.keys, func(i, j int) bool { return h.Keys[s.keys[i]] < h.Keys[s.keys[j]] })
	for place, key := range s.keys {
		s.rank[key] = place
		s.sorted[place] = h.Keys[key]
	}
	for _, b := range h.Base {
		s.live[s.rank[h.KVs[b].Key]] = b
	}
	return s
}

// advance moves to a revision, which must not be lower than before.
func (s *sweep) advance(rev int64) {
	h := s.l.h
	for ; s.next < len(s.l.events); s.next++ {
		e := s.l.events[s.next]
		kv := h.KVs[e]
		if kv.Mod > rev {
			return
		}
		if kv.Tomb {
			e = None
		}
		s.live[s.rank[kv.Key]] = e
	}
}

// list returns the kvs alive in a range, in key order.
func (s *sweep) list(r Range) []uint32 {
	from := sort.SearchStrings(s.sorted, r.Start)
	var out []uint32
	for place := from; place < len(s.sorted) && r.Contains(s.sorted[place]); place++ {
		if s.live[place] != None {
			out = append(out, s.live[place])
		}
	}
	return out
}

// checkReads compares every read with the line at its revision.
func (l *line) checkReads(led *Ledger) {
	h := l.h
	order := make([]int, len(h.Reads))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(i, j int) bool { return h.Reads[order[i]].Rev < h.Reads[order[j]].Rev })
	s := newSweep(l)
	for _, i := range order {
		r := &h.Reads[i]
		led.That(r.Header >= r.Floor && r.Header >= r.Rev, ReadOrder,
			"%s of %q: header revision %d, but %d had been acknowledged before it was sent (read at %d)", r.Kind, r.Range.Start, r.Header, r.Floor, r.Rev)
		if r.Rev < h.BaseRev || r.Rev > h.FinalRev {
			continue
		}
		s.advance(r.Rev)
		l.compareRead(r, s.list(r.Range), led)
	}
}

func (l *line) compareRead(r *Read, want []uint32, led *Ledger) {
	h := l.h
	total := len(want)
	led.That(r.Count == int64(total), ReadSnapshot, "%s of %q at %d: count %d, but %d keys were alive", r.Kind, r.Range.Start, r.Rev, r.Count, total)
	if r.CountOnly {
		return
	}
	field := func(i uint32) int64 { return 0 }
	switch r.Sort {
	case ByKey:
	case ByModDesc:
		field = func(i uint32) int64 { return -h.KVs[i].Mod }
	case ByCreateAsc:
		field = func(i uint32) int64 { return h.KVs[i].Create }
	}
	sort.SliceStable(want, func(i, j int) bool { return field(want[i]) < field(want[j]) })
	if r.Limit > 0 && total > r.Limit {
		want = want[:r.Limit]
	}
	led.That(r.More == (total > len(want)), ReadSnapshot, "%s of %q at %d: more is %v with %d of %d keys", r.Kind, r.Range.Start, r.Rev, r.More, len(want), total)
	bad := 0
	for i := 0; i < max(len(want), len(r.KVs)) && bad < 3; i++ {
		a, b := None, None
		if i < len(r.KVs) {
			a = r.KVs[i]
		}
		if i < len(want) {
			b = want[i]
		}
		if a == b || (a != None && b != None && l.sameKV(r, a, b, field)) {
			continue
		}
		bad++
		led.Fail(ReadSnapshot, "%s of %q at %d, item %d of %d: read %s, the events up to there give %s",
			r.Kind, r.Range.Start, r.Rev, i, len(want), h.describe(a), h.describe(b))
	}
	if bad == 0 {
		led.Pass(ReadSnapshot, 1)
	}
}

// sameKV compares a kv read with the expected one. Ties of a sort may come in
// any order.
func (l *line) sameKV(r *Read, a, b uint32, field func(uint32) int64) bool {
	x, y := l.h.KVs[a], l.h.KVs[b]
	if r.Sort != ByKey && x.Key != y.Key {
		return field(a) == field(b)
	}
	if r.NoValues {
		x.Digest, y.Digest = 0, 0
	}
	return x == y
}
