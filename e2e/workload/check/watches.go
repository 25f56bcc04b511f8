package check

// checkWatches compares what each watch delivered with the line.
func (l *line) checkWatches(led *Ledger) {
	for w := range l.h.Watches {
		l.checkWatch(&l.h.Watches[w], led)
	}
}

func (l *line) checkWatch(w *WatchLog, led *Ledger) {
	h := l.h
	seen := make(map[uint32]struct{}, len(w.Deliveries))
	passed := int64(0) // highest progress so far
	next := 0          // next progress notification
	for i, d := range w.Deliveries {
		for next < len(w.Progress) && w.Progress[next].After <= i {
			passed = l.checkProgress(w, next, passed, led)
			next++
		}
		kv := h.KVs[d.KV]
		led.That(kv.Mod > passed, WatchProgress, "%s: %s came after progress to %d", w.Name, h.describe(d.KV), passed)
		led.That(kv.Mod >= w.Start && w.Range.Contains(h.Keys[kv.Key]), WatchRange,
			"%s from %d: %s was not asked for", w.Name, w.Start, h.describe(d.KV))
		if _, dup := seen[d.KV]; dup {
			led.Fail(WatchUnique, "%s: %s came twice", w.Name, h.describe(d.KV))
		} else {
			led.Pass(WatchUnique, 1)
		}
		seen[d.KV] = struct{}{}
		if i > 0 {
			last := w.Deliveries[i-1]
			before := h.KVs[last.KV].Mod
			led.That(kv.Mod >= before, WatchOrder, "%s: %s came after revision %d", w.Name, h.describe(d.KV), before)
			led.That(kv.Mod != before || d.Response == last.Response, WatchAtomic,
				"%s: revision %d came in two responses", w.Name, kv.Mod)
		}
		l.checkPrev(w, d, led)
	}
	for ; next < len(w.Progress); next++ {
		passed = l.checkProgress(w, next, passed, led)
	}
	for _, e := range l.events {
		kv := h.KVs[e]
		if kv.Mod < w.Start || kv.Mod > w.Until || !w.Range.Contains(h.Keys[kv.Key]) {
			continue
		}
		_, ok := seen[e]
		led.That(ok, WatchComplete, "%s, complete from %d to %d, never saw %s", w.Name, w.Start, w.Until, h.describe(e))
	}
}

func (l *line) checkProgress(w *WatchLog, i int, passed int64, led *Ledger) int64 {
	rev := w.Progress[i].Rev
	led.That(rev >= passed, WatchProgress, "%s: progress went back from %d to %d", w.Name, passed, rev)
	return max(rev, passed)
}

func (l *line) checkPrev(w *WatchLog, d Delivery, led *Ledger) {
	h := l.h
	want, inLine := l.prev[d.KV]
	if !inLine {
		return // outside the scopes or after the end: the state before is not known
	}
	if want != None && h.KVs[want].Mod == h.KVs[d.KV].Mod {
		return // two events of one key in one revision: etcd takes prev_kv from before both
	}
	if !w.PrevKV || (want != None && h.KVs[want].Tomb) {
		want = None
	}
	ok := d.Prev == want || (d.Prev == None && d.PrevLost)
	led.That(ok, WatchPrevKV, "%s: %s had prev_kv %s, not %s", w.Name, h.describe(d.KV), h.describe(d.Prev), h.describe(want))
}
