package check

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// world plays a correct store and the clients on it; tests then break the
// history in one place.
type world struct {
	rec    *Recorder
	state  map[string]KV
	rev    int64
	events []Event // of the revision under way
	watch  []int
	seq    int
}

const second = time.Second

// newWorld starts at revision 10 with one key there from before. Three watches
// run: one with prev_kv, one without, and one over a part.
func newWorld() *world {
	w := &world{rec: NewRecorder(), state: map[string]KV{}, rev: 10}
	old := KV{Key: w.rec.Key("/p/old"), Digest: 1, Create: 4, Mod: 7, Version: 3}
	w.state["/p/old"] = old
	base := w.rec.Intern(old)
	w.rec.Update(func(h *History) {
		h.Scopes, h.BaseRev, h.Base = []Range{Prefix("/p/"), Prefix("/lock/")}, 10, []uint32{base}
		h.LockDirs = []Range{Prefix("/lock/x/")}
	})
	for _, r := range []struct {
		rng  Range
		prev bool
	}{{Prefix("/p/"), true}, {Prefix("/p/"), false}, {Prefix("/p/a"), true}, {Prefix("/lock/"), true}} {
		w.watch = append(w.watch, w.rec.AddWatch(WatchLog{Name: fmt.Sprintf("watch %d", len(w.watch)), Range: r.rng, PrevKV: r.prev, Start: 11}))
	}
	return w
}

func (w *world) change(key string, f func(old KV) KV) KV {
	old := w.state[key]
	next := f(old)
	next.Key, next.Mod = w.rec.Key(key), w.rev
	e := Event{KV: next}
	if old.Version > 0 {
		e.Prev = &old
	}
	w.state[key] = next
	if next.Tomb {
		delete(w.state, key)
	}
	w.events = append(w.events, e)
	return next
}

// commit ends a revision: every watch gets its events in one response.
func (w *world) commit() {
	for i, log := range w.watch {
		var mine []Event
		h := &w.rec.h
		for _, e := range w.events {
			if h.Watches[log].Range.Contains(h.Keys[e.KV.Key]) {
				if !h.Watches[log].PrevKV {
					e.Prev = nil
				}
				mine = append(mine, e)
			}
		}
		if len(mine) > 0 {
			w.rec.Deliver(w.watch[i], uint32(w.rev), mine)
		}
	}
	w.events = nil
}

func (w *world) put(key string, lease int64, more ...string) {
	floor := w.rev
	w.rev++
	for _, k := range append([]string{key}, more...) {
		w.seq++
		digest := uint64(1000 + w.seq)
		id := w.rec.Own(k, false)
		kv := w.change(k, func(old KV) KV {
			kv := KV{Digest: digest, Create: old.Create, Version: old.Version + 1, Lease: lease}
			if kv.Version == 1 {
				kv.Create = w.rev
			}
			return kv
		})
		w.rec.AddWrite(Write{Actor: "w", Key: id, Digest: digest, Floor: floor, Rev: w.rev, Create: kv.Create, Version: kv.Version, Lease: lease})
	}
	w.commit()
}

func (w *world) del(key string) {
	floor := w.rev
	w.rev++
	w.change(key, func(KV) KV { return KV{Tomb: true} })
	w.rec.AddWrite(Write{Actor: "w", Key: w.rec.Own(key, false), Delete: true, Floor: floor, Rev: w.rev})
	w.commit()
}

// silent changes a key without a recorded write, as a lock recipe or the end
// of a lease does.
func (w *world) silent(key string, f func(old KV) KV) {
	w.rev++
	w.change(key, f)
	w.commit()
}

func (w *world) list(kind, prefix string) Read {
	r := Read{Kind: kind, Range: Prefix(prefix), Rev: w.rev, Header: w.rev, Floor: w.rev}
	var keys []string
	for k := range w.state {
		if r.Range.Contains(k) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		r.KVs = append(r.KVs, w.rec.Intern(w.state[k]))
	}
	r.Count = int64(len(keys))
	return r
}

// history ends the run correctly.
func (w *world) history() *History {
	var final []uint32
	for _, kv := range w.state {
		final = append(final, w.rec.Intern(kv))
	}
	h := w.rec.History()
	h.FinalRev, h.Final, h.End = w.rev, final, 1000*second
	for i := range h.Watches {
		if h.Watches[i].Until == 0 {
			h.Watches[i].Until = w.rev
		}
	}
	return h
}

// story is a correct run of some length.
func story() *world {
	w := newWorld()
	w.put("/p/a", 0)
	w.put("/p/a", 5)
	w.put("/p/b", 0, "/p/a1", "/p/c")
	w.rec.AddRead(w.list("list", "/p/"))
	w.del("/p/a")
	w.put("/p/a", 0)
	w.put("/p/b", 0)
	w.del("/p/b")
	w.put("/p/old", 0)
	w.rec.AddRead(w.list("list", "/p/"))
	w.rec.Progress(w.watch[0], w.rev)
	w.put("/p/a1", 0)
	return w
}

func failures(h *History) (names []string, details string) {
	led := NewLedger()
	Check(h, led)
	for _, r := range led.Results() {
		if !r.OK {
			names = append(names, r.Name)
			details += strings.Join(r.Details, "\n") + "\n"
		}
	}
	return names, details
}

func expect(t *testing.T, h *History, want ...string) {
	t.Helper()
	got, details := failures(h)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("violated: %v, expected %v\n%s", got, want, details)
	}
}

func TestCorrectHistoryPasses(t *testing.T) {
	w := story()
	expect(t, w.history())
	led := NewLedger()
	Check(w.rec.History(), led)
	for _, name := range []string{WatchComplete, WatchPrevKV, WatchOrder, WatchAtomic, WatchUnique, WatchProgress, KeyLives,
		WriteVisible, WriteOrder, ReadSnapshot, ReadOrder, FinalState} {
		if !slices.ContainsFunc(led.Results(), func(r Result) bool { return r.Name == name && r.Checked > 0 }) {
			t.Errorf("%s was not checked at all", name)
		}
	}
}

// TestBrokenHistories breaks a correct history in one way each.
func TestBrokenHistories(t *testing.T) {
	drop := func(log *WatchLog, i int) { log.Deliveries = slices.Delete(log.Deliveries, i, i+1) }
	cases := []struct {
		name  string
		spoil func(w *world, h *History)
		want  []string
	}{
		{"event lost on one watch", func(w *world, h *History) { drop(&h.Watches[1], 3) }, []string{WatchComplete}},
		{"event twice", func(w *world, h *History) {
			l := &h.Watches[1]
			l.Deliveries = slices.Insert(l.Deliveries, 3, l.Deliveries[2])
		}, []string{WatchUnique}},
		{"event again later", func(w *world, h *History) {
			l := &h.Watches[1]
			l.Deliveries = append(l.Deliveries, l.Deliveries[2])
		}, []string{WatchUnique, WatchOrder}},
		{"events out of order", func(w *world, h *History) {
			l := &h.Watches[1]
			l.Deliveries[0], l.Deliveries[1] = l.Deliveries[1], l.Deliveries[0]
		}, []string{WatchOrder}},
		{"revision in two responses", func(w *world, h *History) { h.Watches[1].Deliveries[3].Response++ }, []string{WatchAtomic}},
		{"prev_kv of another revision", func(w *world, h *History) {
			l := &h.Watches[0]
			l.Deliveries[5].Prev = l.Deliveries[0].KV
		}, []string{WatchPrevKV}},
		{"prev_kv missing", func(w *world, h *History) { h.Watches[0].Deliveries[1].Prev = None }, []string{WatchPrevKV}},
		{"prev_kv not asked for", func(w *world, h *History) { h.Watches[1].Deliveries[1].Prev = h.Watches[1].Deliveries[0].KV }, []string{WatchPrevKV}},
		{"prev_kv on a create", func(w *world, h *History) { h.Watches[0].Deliveries[0].Prev = h.Base[0] }, []string{WatchPrevKV}},
		{"event before the start", func(w *world, h *History) { h.Watches[2].Start = 12 }, []string{WatchRange}},
		{"event of another range", func(w *world, h *History) {
			h.Watches[2].Deliveries = append(h.Watches[2].Deliveries, h.Watches[0].Deliveries[len(h.Watches[0].Deliveries)-1])
			h.Watches[2].Range = Prefix("/p/a/")
			h.Watches[2].Deliveries = h.Watches[2].Deliveries[len(h.Watches[2].Deliveries)-1:]
		}, []string{WatchRange}},
		{"event after progress past it", func(w *world, h *History) { h.Watches[0].Progress[0].Rev = w.rev }, []string{WatchProgress}},
		{"progress goes back", func(w *world, h *History) {
			l := &h.Watches[0]
			l.Progress = append(l.Progress, Progress{After: len(l.Deliveries), Rev: 12})
		}, []string{WatchProgress}},
		{"watchers disagree", func(w *world, h *History) {
			kv := h.KVs[h.Watches[1].Deliveries[0].KV]
			kv.Digest = 77
			h.KVs = append(h.KVs, kv)
			h.Watches[1].Deliveries[0].KV = uint32(len(h.KVs) - 1)
		}, []string{WatchAgree, WatchComplete, WriteVisible, WatchPrevKV}},
		{"write lost everywhere", func(w *world, h *History) {
			h.Writes = append(h.Writes, Write{Actor: "w", Key: w.rec.key("/p/z"), Digest: 99, Floor: 11, Rev: 12, Create: -1, Version: 1})
			h.Owned[h.Writes[len(h.Writes)-1].Key] = true
		}, []string{WriteVisible, FinalState}},
		{"write at another revision", func(w *world, h *History) { h.Writes[0].Rev, h.Writes[0].Create = 10, 0; h.BaseRev = 9 }, []string{WriteVisible, WriteOrder}},
		{"write with another version", func(w *world, h *History) { h.Writes[1].Version = 5 }, []string{WriteVisible}},
		{"write with another create revision", func(w *world, h *History) { h.Writes[1].Create = 12 }, []string{WriteVisible}},
		{"write without its lease", func(w *world, h *History) { h.Writes[1].Lease = 0 }, []string{WriteVisible}},
		{"write of another value", func(w *world, h *History) { h.Writes[0].Digest = 4711 }, []string{WriteVisible}},
		{"revision goes back for writers", func(w *world, h *History) { h.Writes[1].Floor = h.Writes[1].Rev }, []string{WriteOrder}},
		{"failed guard applied", func(w *world, h *History) { h.Writes[1].Outcome = Voided }, []string{WritePhantom}},
		{"event nobody wrote", func(w *world, h *History) { h.Writes = slices.Delete(h.Writes, 1, 2) }, []string{WritePhantom}},
		{"delete nobody sent", func(w *world, h *History) {
			h.Writes = slices.DeleteFunc(h.Writes, func(x Write) bool { return x.Delete && h.Keys[x.Key] == "/p/b" })
		}, []string{WritePhantom, FinalState}},
		{"ambiguous write applied before it was sent", func(w *world, h *History) {
			h.Writes[1].Outcome, h.Writes[1].Floor = Pending, h.Writes[1].Rev
		}, []string{WritePhantom}},
		{"read misses a key", func(w *world, h *History) { r := &h.Reads[0]; r.KVs = r.KVs[1:]; r.Count-- }, []string{ReadSnapshot}},
		{"read of an old state", func(w *world, h *History) { r := &h.Reads[1]; r.KVs = h.Reads[0].KVs; r.Count = h.Reads[0].Count }, []string{ReadSnapshot}},
		{"wrong count", func(w *world, h *History) { h.Reads[0].Count++ }, []string{ReadSnapshot}},
		{"wrong more", func(w *world, h *History) { h.Reads[0].More = true }, []string{ReadSnapshot}},
		{"revision goes back for readers", func(w *world, h *History) { h.Reads[0].Floor = h.Reads[0].Header + 1 }, []string{ReadOrder}},
		{"final state misses a key", func(w *world, h *History) {
			h.Final = slices.DeleteFunc(h.Final, func(i uint32) bool { return h.Keys[h.KVs[i].Key] == "/p/a" })
		}, []string{FinalState}},
		{"final state has a deleted key", func(w *world, h *History) { h.Final = append(h.Final, h.Watches[1].Deliveries[2].KV) }, []string{FinalState}},
		{"final state with another mod revision", func(w *world, h *History) {
			for i, f := range h.Final {
				if h.Keys[h.KVs[f].Key] == "/p/c" {
					kv := h.KVs[f]
					kv.Mod++
					h.KVs = append(h.KVs, kv)
					h.Final[i] = uint32(len(h.KVs) - 1)
				}
			}
		}, []string{FinalState}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			w := story()
			h := w.history()
			c.spoil(w, h)
			expect(t, h, c.want...)
		})
	}
}

// TestKeyLives changes what the store says about a key itself, on all watches.
func TestKeyLives(t *testing.T) {
	for name, broken := range map[string]func(KV) KV{
		"version skips":       func(kv KV) KV { kv.Version++; return kv },
		"create changes":      func(kv KV) KV { kv.Create++; return kv },
		"new life":            func(kv KV) KV { kv.Create, kv.Version = kv.Mod, 1; return kv },
		"version without key": func(kv KV) KV { kv.Version = 0; return kv },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.silent("/p/free", func(KV) KV { return KV{Digest: 5, Create: w.rev, Version: 1} })
			w.silent("/p/free", func(old KV) KV {
				return broken(KV{Digest: 6, Create: old.Create, Mod: w.rev, Version: old.Version + 1})
			})
			expect(t, w.history(), KeyLives)
		})
	}
	t.Run("delete of nothing", func(t *testing.T) {
		w := newWorld()
		w.silent("/p/free", func(KV) KV { return KV{Tomb: true} })
		expect(t, w.history(), KeyLives)
	})
}

func TestUnfinishedRunIsJudgedWithoutFinalState(t *testing.T) {
	h := story().history()
	h.Final, h.Unfinished = nil, true
	expect(t, h)
	h.Watches[1].Deliveries[3].Response++
	expect(t, h, WatchAtomic)
}

func TestPrevKVMayBeLostToCompaction(t *testing.T) {
	w := story()
	h := w.history()
	d := &h.Watches[0].Deliveries[1]
	d.Prev, d.PrevLost = None, true
	expect(t, h)
	d.Prev = h.Base[0]
	expect(t, h, WatchPrevKV)
}

func TestAmbiguousWrites(t *testing.T) {
	t.Run("never applied", func(t *testing.T) {
		w := story()
		w.rec.AddWrite(Write{Actor: "w", Key: w.rec.Own("/p/a", false), Outcome: Pending, Digest: 31, Floor: 12})
		expect(t, w.history())
	})
	t.Run("applied late", func(t *testing.T) {
		w := story()
		w.rec.AddWrite(Write{Actor: "w", Key: w.rec.Own("/p/a", false), Outcome: Pending, Digest: 31, Floor: 12})
		w.silent("/p/a", func(old KV) KV { return KV{Digest: 31, Create: old.Create, Version: old.Version + 1} })
		expect(t, w.history())
	})
	t.Run("applied twice", func(t *testing.T) {
		w := story()
		w.rec.AddWrite(Write{Actor: "w", Key: w.rec.Own("/p/a", false), Outcome: Pending, Digest: 31, Floor: 12})
		for range 2 {
			w.silent("/p/a", func(old KV) KV { return KV{Digest: 31, Create: old.Create, Version: old.Version + 1} })
		}
		expect(t, w.history(), WritePhantom)
	})
	t.Run("one delete explains one deletion", func(t *testing.T) {
		w := story()
		w.rec.AddWrite(Write{Actor: "w", Key: w.rec.Own("/p/c", false), Outcome: Pending, Delete: true, Floor: 12})
		w.silent("/p/c", func(KV) KV { return KV{Tomb: true} })
		expect(t, w.history())
		w = story()
		w.rec.AddWrite(Write{Actor: "w", Key: w.rec.Own("/p/c", false), Outcome: Pending, Delete: true, Floor: 12})
		w.silent("/p/c", func(KV) KV { return KV{Tomb: true} })
		w.put("/p/c", 0)
		w.silent("/p/c", func(KV) KV { return KV{Tomb: true} })
		expect(t, w.history(), WritePhantom)
	})
	t.Run("revision known by bounds", func(t *testing.T) {
		w := story()
		w.silent("/p/c", func(KV) KV { return KV{Tomb: true} })
		out := Write{Actor: "w", Key: w.rec.Own("/p/c", false), Delete: true, Floor: w.rev - 1, RevLow: w.rev - 1, Rev: w.rev + 3}
		w.put("/p/a", 0)
		w.put("/p/a", 0)
		w.put("/p/a", 0)
		w.rec.AddWrite(out)
		expect(t, w.history())
		h := w.rec.History()
		h.Writes[len(h.Writes)-1].RevLow = out.RevLow + 1
		expect(t, h, WriteVisible, WritePhantom)
	})
}

func TestReadsWithLimitAndOrder(t *testing.T) {
	newest := func() (*world, Read) {
		w := story()
		r := w.list("newest", "/p/")
		slices.SortFunc(r.KVs, func(a, b uint32) int { return int(w.rec.h.KVs[b].Mod - w.rec.h.KVs[a].Mod) })
		r.KVs, r.Limit, r.Sort, r.More = r.KVs[:2], 2, ByModDesc, true
		return w, r
	}
	w, r := newest()
	w.rec.AddRead(r)
	expect(t, w.history())
	w, r = newest()
	r.KVs[0], r.KVs[1] = r.KVs[1], r.KVs[0]
	w.rec.AddRead(r)
	expect(t, w.history(), ReadSnapshot)
	w, r = newest()
	r.More = false
	w.rec.AddRead(r)
	expect(t, w.history(), ReadSnapshot)
}

// leased is a run with a lease on two keys that go at the given times.
func leased(l LeaseLog, gone ...time.Duration) *History {
	w := newWorld()
	l.Name, l.ID = "lease", 5
	for i, at := range gone {
		key := fmt.Sprintf("/p/leased%d", i)
		w.put(key, 5)
		id := w.rec.Own(key, true)
		l.Keys = append(l.Keys, id)
		if at == 0 {
			continue
		}
		w.silent(key, func(KV) KV { return KV{Tomb: true} })
		w.rec.h.Gone[id] = at
	}
	w.rec.AddLease(l)
	return w.history()
}

func TestLeases(t *testing.T) {
	renewals := []Renewal{{0, second / 10}, {2 * second, 2*second + second/10}}
	dropped := LeaseLog{TTL: 4 * second, End: Dropped, Renewals: renewals}
	kept := LeaseLog{TTL: 4 * second, End: Kept, Renewals: renewals}
	revoked := LeaseLog{TTL: 60 * second, End: Revoked, Renewals: renewals, RevokeSent: 3 * second}
	outage := []Outage{{From: 5 * second, To: 30 * second}}

	t.Run("in time", func(t *testing.T) { expect(t, leased(dropped, 7*second, 7*second)) })
	t.Run("early", func(t *testing.T) { expect(t, leased(dropped, 5*second, 7*second), LeaseEarly) })
	t.Run("early before the renewal is known", func(t *testing.T) {
		l := dropped
		l.Renewals = []Renewal{{0, second}}
		expect(t, leased(l, 3*second, 5*second), LeaseEarly)
	})
	t.Run("late", func(t *testing.T) { expect(t, leased(dropped, 7*second, 17*second), LeaseEnds) })
	t.Run("never", func(t *testing.T) { expect(t, leased(dropped, 7*second, 0), LeaseEnds) })
	t.Run("late after an outage", func(t *testing.T) {
		h := leased(dropped, 40*second, 40*second)
		h.Outages = outage
		expect(t, h)
		h.Outages[0].To = 20 * second
		expect(t, h, LeaseEnds)
	})
	t.Run("late for a fault that is no outage", func(t *testing.T) {
		h := leased(dropped, 40*second, 40*second)
		h.Outages = []Outage{{From: 5 * second, To: 20 * second}}
		h.FaultMax = 10 * second
		expect(t, h)
		h.FaultMax = 5 * second
		expect(t, h, LeaseEnds)
	})
	t.Run("kept lost early", func(t *testing.T) { expect(t, leased(kept, 3*second, 3*second), LeaseEarly) })
	t.Run("kept lost by half", func(t *testing.T) { expect(t, leased(kept, 7*second, 0), LeaseEnds) })
	t.Run("kept", func(t *testing.T) { expect(t, leased(kept, 0, 0)) })
	t.Run("answered after the end", func(t *testing.T) {
		l := kept
		l.Renewals = append(slices.Clone(renewals), Renewal{8 * second, 8*second + 1})
		expect(t, leased(l, 7*second, 7*second), LeaseZombie)
	})
	t.Run("revoked", func(t *testing.T) { expect(t, leased(revoked, 4*second, 4*second)) })
	t.Run("revoked in two revisions", func(t *testing.T) {
		h := leased(revoked, 4*second, 4*second)
		h.OneRevision = true
		expect(t, h, LeaseEnds)
	})
	t.Run("revoked by half", func(t *testing.T) { expect(t, leased(revoked, 4*second, 0), LeaseEnds) })
	t.Run("gone before the revoke", func(t *testing.T) { expect(t, leased(revoked, 2*second, 4*second), LeaseEarly) })
	t.Run("deleted without a lease", func(t *testing.T) {
		h := leased(kept, 0, 7*second)
		for i := range h.KVs {
			h.KVs[i].Lease = 0
		}
		for i := range h.Writes {
			h.Writes[i].Lease = 0
		}
		h.Leases = nil
		expect(t, h, WritePhantom)
	})
}

func TestLockDirectories(t *testing.T) {
	// Two holders in a row; the second one's key is there while the first holds.
	run := func(early bool) *History {
		w := newWorld()
		create := func(k string) { w.silent(k, func(KV) KV { return KV{Digest: 1, Create: w.rev, Version: 1} }) }
		again := func(k string) {
			w.silent(k, func(old KV) KV { return KV{Digest: uint64(w.rev), Create: old.Create, Version: old.Version + 1} })
		}
		create("/lock/x/1")
		create("/lock/x/2")
		again("/lock/x/1")
		if early {
			again("/lock/x/2")
		}
		w.silent("/lock/x/1", func(KV) KV { return KV{Tomb: true} })
		again("/lock/x/2")
		return w.history()
	}
	expect(t, run(false))
	expect(t, run(true), LockFencing)
}

func TestFencingTokens(t *testing.T) {
	run := func(tokens ...int64) *History {
		w := newWorld()
		for i, token := range tokens {
			w.put("/p/guarded", 0)
			w.rec.h.Writes[i].Token = token
		}
		return w.history()
	}
	expect(t, run(5, 5, 9))
	expect(t, run(5, 9, 5), LockFencing)
}

func TestRanges(t *testing.T) {
	for _, c := range []struct {
		r    Range
		key  string
		want bool
	}{
		{Prefix("/a/"), "/a/b", true},
		{Prefix("/a/"), "/a", false},
		{Prefix("/a/"), "/a0", false},
		{Prefix("\xff"), "\xff\xff", true},
		{Prefix("a\xff"), "b", false},
		{Range{Start: "/a"}, "/a", true},
		{Range{Start: "/a"}, "/a/", false},
		{Range{Start: "b", End: "\x00"}, "z", true},
		{Range{Start: "b", End: "\x00"}, "a", false},
	} {
		if got := c.r.Contains(c.key); got != c.want {
			t.Errorf("%q in %q: %v", c.key, c.r, got)
		}
	}
}

func TestLedgerKeepsFirstDetailsAndAllCounts(t *testing.T) {
	led := NewLedger()
	for i := range 3 * maxDetails {
		led.Fail("x", "violation %d", i)
	}
	led.Pass("y", 2)
	r := led.Results()
	if len(r) != 2 || r[0].OK || r[0].Violations != 3*maxDetails || len(r[0].Details) != maxDetails || r[0].Details[0] != "violation 0" {
		t.Errorf("unexpected verdict %+v", r[0])
	}
	if !r[1].OK || r[1].Checked != 2 {
		t.Errorf("unexpected verdict %+v", r[1])
	}
}
