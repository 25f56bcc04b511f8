package check

import "sort"

// checkLocks checks that whoever wrote under a lock or as a leader was the
// holder at that revision: in a directory of a lock or an election the oldest
// key holds, and only the holder writes its key again. Guarded writes
// elsewhere carry the holder's create revision, which must never go back.
func (l *line) checkLocks(led *Ledger) {
	for _, dir := range l.h.LockDirs {
		l.checkLockDir(dir, led)
	}
	l.checkTokens(led)
}

func (l *line) checkLockDir(dir Range, led *Ledger) {
	h := l.h
	live := map[uint32]int64{} // key → create revision
	for _, b := range h.Base {
		if kv := h.KVs[b]; dir.Contains(h.Keys[kv.Key]) {
			live[kv.Key] = kv.Create
		}
	}
	for _, e := range l.events {
		kv := h.KVs[e]
		if !dir.Contains(h.Keys[kv.Key]) {
			continue
		}
		if kv.Tomb {
			delete(live, kv.Key)
			continue
		}
		live[kv.Key] = kv.Create
		if kv.Version == 1 {
			continue
		}
		oldest := kv.Create
		for _, create := range live {
			oldest = min(oldest, create)
		}
		led.That(oldest == kv.Create, LockFencing, "%s was written as by the holder, but a key created at %d was there", h.describe(e), oldest)
	}
}

// checkTokens looks at guarded writes outside the lock's directory.
func (l *line) checkTokens(led *Ledger) {
	h := l.h
	tokens := map[uint64]*Write{}
	guarded := map[uint32]bool{}
	for i := range h.Writes {
		if w := &h.Writes[i]; w.Token != 0 {
			tokens[w.Digest] = w
			guarded[w.Key] = true
		}
	}
	keys := make([]uint32, 0, len(guarded))
	for key := range guarded {
		keys = append(keys, key)
	}
	sort.Slice(keys, func(i, j int) bool { return keys[i] < keys[j] })
	for _, key := range keys {
		highest := int64(0)
		for _, e := range l.byKey[key] {
			w := tokens[h.KVs[e].Digest]
			if w == nil {
				continue
			}
			led.That(w.Token >= highest, LockFencing, "%s was written under token %d by %s after one of token %d", h.describe(e), w.Token, w.Actor, highest)
			highest = max(highest, w.Token)
		}
	}
}
