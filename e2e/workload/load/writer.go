package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/sharded-etcd/sharded-etcd/e2e/workload/check"
)

// writer owns its keys: nobody else writes them, so that it knows the state of
// each one exactly, unless an answer was ambiguous. A key whose state cannot be
// told is retired: it gets no further writes, and a new key takes its place.
type writer struct {
	*env
	name  string
	cli   *clientv3.Client
	rnd   *rand.Rand
	dirs  []*dir
	lease clientv3.LeaseID // shared by many keys, for the whole run
	seq   int
	// wanting is when the writer began to want the write it has no
	// acknowledgement for; negative when it wants none.
	wanting time.Duration
}

// dir is a directory: Txns and range deletes stay within one.
type dir struct {
	path  string
	split bool   // its keys may live on several shards
	tree  string // the parent directory, of which all is deleted at times
	// clouded directories hold retired keys, of which nobody knows whether
	// they exist: no more range deletes there.
	clouded bool
	keys    []*ownKey
}

// ownKey is a key slot and the last acknowledged state of its present key.
type ownKey struct {
	dir  *dir
	slot string // full name without the generation
	gen  int
	name string
	id   uint32
	kv   check.KV // Version 0: the key does not exist
}

// intent is one key's part of a write.
type intent struct {
	key    *ownKey
	del    bool
	value  string
	digest uint64
	lease  int64
	floor  int64
}

func newWriter(e *env, n int, lease clientv3.LeaseID) (*writer, error) {
	cli, err := e.dial()
	if err != nil {
		return nil, err
	}
	w := &writer{env: e, name: fmt.Sprintf("w%02d", n), cli: cli, rnd: e.rng(uint64(n)), lease: lease, wanting: -1}
	for i, prefix := range e.cfg.Prefixes {
		tree := fmt.Sprintf("%stree-%s/", prefix, w.name)
		for _, sub := range []string{prefix, fmt.Sprintf("%sns%d/", prefix, (n+i)%3), fmt.Sprintf("%sown-%s/", prefix, w.name), tree + "x/", tree + "y/"} {
			d := &dir{path: sub, split: e.cfg.splittable(prefix)}
			if strings.HasPrefix(sub, tree) {
				d.tree = tree
			}
			for k := range e.cfg.KeysPerDir {
				key := &ownKey{dir: d, slot: fmt.Sprintf("%s%s-%s-%03d", d.path, e.run, w.name, k)}
				w.renew(key)
				d.keys = append(d.keys, key)
			}
			w.dirs = append(w.dirs, d)
		}
	}
	return w, nil
}

// renew gives a slot a key that was never used.
func (w *writer) renew(k *ownKey) {
	k.name = fmt.Sprintf("%s.%d", k.slot, k.gen)
	k.gen++
	k.id = w.rec.Own(k.name, false)
	k.kv = check.KV{}
}

// prefix is what all keys of this writer in a directory begin with.
func (w *writer) prefix(d *dir) string { return d.path + w.run + "-" + w.name + "-" }

// loop writes at the configured rate until the run stops.
func (w *writer) loop() {
	gap := time.Duration(float64(time.Second) / w.cfg.Rate)
	for w.pause(gap/2 + time.Duration(w.rnd.Int64N(int64(gap)))) {
		w.step()
	}
	if w.wanting >= 0 {
		w.satisfied("(never acknowledged)")
	}
}

func (w *writer) put(k *ownKey, lease int64) intent {
	w.seq++
	size := w.cfg.ValueBytes
	if w.rnd.IntN(50) == 0 {
		size *= 10
	}
	value := make([]byte, 0, size)
	value = fmt.Appendf(value, "%s %s %d ", w.run, w.name, w.seq)
	for len(value) < size {
		value = append(value, byte('a'+w.rnd.IntN(26)))
	}
	return intent{key: k, value: string(value), digest: check.Digest(value), lease: lease}
}

// step makes one random write.
func (w *writer) step() {
	d := w.dirs[w.rnd.IntN(len(w.dirs))]
	k := d.keys[w.rnd.IntN(len(d.keys))]
	exists := k.kv.Version > 0
	switch p := w.rnd.IntN(100); {
	case p < 25:
		w.plainPut(k, 0)
	case p < 35:
		w.plainPut(k, int64(w.lease))
	case p < 40 && exists:
		w.keepLeasePut(k)
	case p < 46:
		w.staleUpdate(k)
	case p < 52 && exists:
		w.plainDelete(k)
	case p < 58 && exists:
		w.guardedDelete(k)
	case p < 66 && !d.split:
		w.severalKeys(d)
	case p < 68 && d.tree != "":
		w.deleteTree(d.tree)
	case p < 68:
		w.deleteRange(d)
	default:
		w.guardedPut(k)
	}
}

// plainPut puts without a condition; prev_kv is asked for half of the time.
func (w *writer) plainPut(k *ownKey, lease int64) {
	in := w.put(k, lease)
	opts := []clientv3.OpOption{}
	if lease != 0 {
		opts = append(opts, clientv3.WithLease(clientv3.LeaseID(lease)))
	}
	prev := w.rnd.IntN(2) == 0
	if prev {
		opts = append(opts, clientv3.WithPrevKV())
	}
	before := k.kv
	w.send("put", 0, true, []intent{in}, func(ctx context.Context) (int64, bool, error) {
		resp, err := w.cli.Put(ctx, k.name, in.value, opts...)
		if err != nil {
			return 0, false, err
		}
		if prev {
			w.samePrev("put", before, resp.PrevKv != nil, func() check.KV { return w.kv(resp.PrevKv) })
		} else {
			w.led.That(resp.PrevKv == nil, chkAnswer, "put of %q: prev_kv that was not asked for", k.name)
		}
		return resp.Header.Revision, true, nil
	})
}

// keepLeasePut changes the value and keeps the lease.
func (w *writer) keepLeasePut(k *ownKey) {
	in := w.put(k, k.kv.Lease)
	w.send("put ignore_lease", 0, true, []intent{in}, func(ctx context.Context) (int64, bool, error) {
		resp, err := w.cli.Put(ctx, k.name, in.value, clientv3.WithIgnoreLease())
		if err != nil {
			return 0, false, err
		}
		return resp.Header.Revision, true, nil
	})
}

func (w *writer) plainDelete(k *ownKey) {
	before := k.kv
	w.send("delete", 0, true, []intent{{key: k, del: true}}, func(ctx context.Context) (int64, bool, error) {
		resp, err := w.cli.Delete(ctx, k.name, clientv3.WithPrevKV())
		if err != nil {
			return 0, false, err
		}
		w.led.That(resp.Deleted == 1, chkAnswer, "delete of %q deleted %d keys", k.name, resp.Deleted)
		w.samePrev("delete", before, len(resp.PrevKvs) == 1, func() check.KV { return w.kv(resp.PrevKvs[0]) })
		return resp.Header.Revision, true, nil
	})
}

// guardedPut writes as kube-apiserver does: If mod(key)==rev Then Put Else Get.
func (w *writer) guardedPut(k *ownKey) {
	lease := int64(0)
	if w.rnd.IntN(4) == 0 {
		lease = int64(w.lease)
	}
	in := w.put(k, lease)
	w.guarded("guarded put", k, in, k.kv.Mod, true)
}

func (w *writer) guardedDelete(k *ownKey) {
	w.guarded("guarded delete", k, intent{key: k, del: true}, k.kv.Mod, true)
}

// staleUpdate has a guard that must fail.
func (w *writer) staleUpdate(k *ownKey) {
	guard := k.kv.Mod - 1
	if k.kv.Mod == 0 {
		guard = w.baseRev
	}
	w.guarded("stale put", k, w.put(k, 0), guard, false)
}

func (w *writer) guarded(op string, k *ownKey, in intent, guard int64, expect bool) {
	before := k.kv
	then := clientv3.OpDelete(k.name)
	if !in.del {
		then = clientv3.OpPut(k.name, in.value, clientv3.WithLease(clientv3.LeaseID(in.lease)))
	}
	w.send(op, guard, expect, []intent{in}, func(ctx context.Context) (int64, bool, error) {
		resp, err := w.cli.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(k.name), "=", guard)).
			Then(then).Else(clientv3.OpGet(k.name)).Commit()
		if err != nil {
			return 0, false, err
		}
		if !resp.Succeeded {
			got := resp.Responses[0].GetResponseRange()
			w.samePrev(op+" else", before, len(got.Kvs) == 1, func() check.KV { return w.kv(got.Kvs[0]) })
		}
		return resp.Header.Revision, resp.Succeeded, nil
	})
}

// severalKeys writes several keys of one directory in one Txn, and reads one
// of them in it.
func (w *writer) severalKeys(d *dir) {
	order := w.rnd.Perm(len(d.keys))
	first, second := d.keys[order[0]], d.keys[order[1]]
	in := []intent{w.put(first, 0), w.put(second, int64(w.lease))}
	ops := []clientv3.Op{
		clientv3.OpPut(first.name, in[0].value),
		clientv3.OpPut(second.name, in[1].value, clientv3.WithLease(w.lease)),
	}
	if len(order) > 2 && d.keys[order[2]].kv.Version > 0 {
		third := d.keys[order[2]]
		in = append(in, intent{key: third, del: true})
		ops = append(ops, clientv3.OpDelete(third.name))
	}
	ops = append(ops, clientv3.OpGet(second.name))
	guards := []clientv3.Cmp{
		clientv3.Compare(clientv3.ModRevision(first.name), "=", first.kv.Mod),
		clientv3.Compare(clientv3.Version(second.name), "=", second.kv.Version),
	}
	if second.kv.Version > 0 {
		guards = append(guards,
			clientv3.Compare(clientv3.CreateRevision(second.name), "<", second.kv.Create+1),
			clientv3.Compare(clientv3.LeaseValue(second.name), "=", clientv3.LeaseID(second.kv.Lease)))
	}
	w.send("txn of several keys", 0, true, in, func(ctx context.Context) (int64, bool, error) {
		resp, err := w.cli.Txn(ctx).If(guards...).Then(ops...).Commit()
		if err != nil {
			return 0, false, err
		}
		if resp.Succeeded {
			got := resp.Responses[len(ops)-1].GetResponseRange()
			ok := len(got.Kvs) == 1 && string(got.Kvs[0].Value) == in[1].value && got.Kvs[0].ModRevision == resp.Header.Revision
			w.led.That(ok, chkAnswer, "txn at %d: the Get after the Put of %q gave %v", resp.Header.Revision, second.name, got.Kvs)
		}
		return resp.Header.Revision, resp.Succeeded, nil
	})
}

// deleteRange deletes all keys of this writer in a directory.
func (w *writer) deleteRange(d *dir) {
	op := "delete range"
	if d.split {
		op = splitDelete
	}
	w.deletePrefix(op, w.prefix(d), d)
}

// deleteTree deletes several directories, which may live on several shards.
func (w *writer) deleteTree(tree string) {
	var dirs []*dir
	for _, d := range w.dirs {
		if d.tree == tree {
			dirs = append(dirs, d)
		}
	}
	w.deletePrefix(splitDelete, tree, dirs...)
}

func (w *writer) deletePrefix(op, prefix string, dirs ...*dir) {
	var in []intent
	for _, d := range dirs {
		if d.clouded {
			return
		}
		for _, k := range d.keys {
			if k.kv.Version > 0 {
				in = append(in, intent{key: k, del: true})
			}
		}
	}
	if len(in) == 0 {
		return
	}
	w.send(op, 0, true, in, func(ctx context.Context) (int64, bool, error) {
		resp, err := w.cli.Delete(ctx, prefix, clientv3.WithPrefix(), clientv3.WithPrevKV())
		if err != nil {
			return 0, false, err
		}
		got := map[uint32]check.KV{}
		for _, kv := range resp.PrevKvs {
			state := w.kv(kv)
			got[state.Key] = state
		}
		w.led.That(int(resp.Deleted) == len(in) && len(resp.PrevKvs) == len(in), chkAnswer,
			"delete of %q: %d deleted and %d prev_kvs, but %d keys existed", prefix, resp.Deleted, len(resp.PrevKvs), len(in))
		for _, i := range in {
			w.led.That(got[i.key.id] == i.key.kv, chkAnswer, "delete of %q: prev_kv of %q is %+v, not %+v", prefix, i.key.name, got[i.key.id], i.key.kv)
		}
		return resp.Header.Revision, true, nil
	})
}

// splitDelete may take several revisions, the last one in the header.
const splitDelete = "delete range over shards"

// samePrev compares a state in an answer with the known one.
func (w *writer) samePrev(op string, want check.KV, present bool, got func() check.KV) {
	if !present || want.Version == 0 {
		w.led.That(!present && want.Version == 0, chkAnswer, "%s by %s: state in the answer is present: %v, but the version was %d", op, w.name, present, want.Version)
		return
	}
	g := got()
	w.led.That(g == want, chkAnswer, "%s by %s: state in the answer is %+v, not %+v", op, w.name, g, want)
}

// send makes a write and takes in what its answer says. A guard above 0 is the
// mod revision that the write compares; expect says how the guard must decide.
func (w *writer) send(op string, guard int64, expect bool, in []intent, call func(context.Context) (int64, bool, error)) {
	floor := w.floor.Load()
	for i := range in {
		in[i].floor = floor
	}
	if w.wanting < 0 {
		w.wanting = w.rec.Now()
	}
	ctx, cancel := w.op()
	rev, applied, err := call(ctx)
	cancel()
	switch {
	case err == nil:
		w.saw(rev)
		w.led.That(rev >= floor, check.ReadOrder, "%s by %s: header revision %d, but %d had been acknowledged before it was sent", op, w.name, rev, floor)
		w.led.That(applied == expect, chkGuard, "%s of %q by %s: guard (mod %d) held: %v, expected %v; last acknowledged state %+v",
			op, in[0].key.name, w.name, guard, applied, expect, in[0].key.kv)
		switch {
		case applied:
			low := int64(0)
			if op == splitDelete {
				low = floor
			}
			w.applied(in, rev, low)
		case expect:
			// The state is not what it should be; judge no further on it.
			w.open(in)
		default:
			w.void(in)
			w.stats.guardFailed.Add(1)
		}
		w.satisfied(in[0].key.name)
	case classify(err) == refused:
		w.failed(op, err)
		w.stats.refused.Add(1)
		w.void(in)
	default:
		w.failed(op, err)
		w.stats.ambiguous.Add(1)
		switch {
		case !expect:
			w.void(in) // no key will ever have that mod revision again
		case guard > 0 && len(in) == 1:
			w.resolve(in[0], guard)
		default:
			w.open(in)
		}
	}
}

// satisfied ends the time of wanting a write.
func (w *writer) satisfied(key string) {
	w.stalls.add(w.name, key, w.wanting, w.rec.Now()-w.wanting, w.cfg.StallReport)
	w.wanting = -1
}

func (w *writer) record(i intent, outcome check.Outcome) check.Write {
	return check.Write{Actor: w.name, Key: i.key.id, Delete: i.del, Outcome: outcome, Digest: i.digest, Floor: i.floor, Lease: i.lease}
}

// applied records writes that took effect at rev, or in (low, rev].
func (w *writer) applied(in []intent, rev, low int64) {
	for _, i := range in {
		k := i.key
		out := w.record(i, check.Acked)
		out.Rev, out.RevLow = rev, low
		if i.del {
			if k.kv.Version > 0 {
				w.rec.AddWrite(out)
			}
			k.kv = check.KV{}
			continue
		}
		next := check.KV{Key: k.id, Digest: i.digest, Create: k.kv.Create, Mod: rev, Version: k.kv.Version + 1, Lease: i.lease}
		if next.Version == 1 {
			next.Create = rev
		}
		k.kv = next
		out.Create, out.Version = next.Create, next.Version
		w.rec.AddWrite(out)
	}
	w.stats.acked.Add(1)
}

// void records writes that never take effect.
func (w *writer) void(in []intent) {
	for _, i := range in {
		if !i.del {
			w.rec.AddWrite(w.record(i, check.Voided))
		}
	}
}

// open records writes that may take effect at any time, and retires the keys.
func (w *writer) open(in []intent) {
	for _, i := range in {
		w.rec.AddWrite(w.record(i, check.Pending))
	}
	for _, i := range in {
		w.retire(i.key)
	}
}

func (w *writer) retire(k *ownKey) {
	k.dir.clouded = true
	w.renew(k)
}

const (
	resolveFor   = 60 * time.Second
	resolvePause = 100 * time.Millisecond
)

// resolve finds out what became of an ambiguous write that compares the mod
// revision of an existing key: either its effect is seen, or another write
// with the same guard overtakes it, after which it can never apply.
func (w *writer) resolve(first intent, guard int64) {
	attempts := []intent{first}
	k := first.key
	until := w.rec.Now() + resolveFor
	stopping := false
	for w.rec.Now() < until {
		if !stopping && w.stopped() {
			stopping = true
			until = min(until, w.rec.Now()+w.cfg.FinalWait)
		}
		kv, rev, err := w.get(w.cli, k.name)
		if err != nil {
			w.failed("get to resolve", err)
			time.Sleep(resolvePause)
			continue
		}
		if kv != nil && kv.Mod == guard {
			if w.overtake(k, guard, &attempts) {
				return
			}
			continue
		}
		hit := -1
		for n, a := range attempts {
			if (kv == nil && a.del) || (kv != nil && !a.del && a.digest == kv.Digest) {
				hit = n
			}
		}
		if hit < 0 {
			w.led.Fail(chkGuard, "%q of %s: after an ambiguous write with guard %d it is %+v, which nobody wrote", k.name, w.name, guard, kv)
			break
		}
		w.void(append(append([]intent(nil), attempts[:hit]...), attempts[hit+1:]...))
		if kv == nil {
			w.applied(attempts[hit:hit+1], rev, max(attempts[hit].floor, 1))
		} else {
			w.applied(attempts[hit:hit+1], kv.Mod, 0)
		}
		w.stats.resolved.Add(1)
		w.satisfied(k.name)
		return
	}
	for _, a := range attempts {
		w.rec.AddWrite(w.record(a, check.Pending))
	}
	w.retire(k)
}

// overtake writes with the guard of the ambiguous attempts. It tells whether
// that settled the matter.
func (w *writer) overtake(k *ownKey, guard int64, attempts *[]intent) bool {
	in := w.put(k, 0)
	in.floor = w.floor.Load()
	ctx, cancel := w.op()
	defer cancel()
	resp, err := w.cli.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(k.name), "=", guard)).
		Then(clientv3.OpPut(k.name, in.value)).Commit()
	switch {
	case err != nil && classify(err) == refused:
		w.failed("guarded put to resolve", err)
		w.void([]intent{in})
		time.Sleep(resolvePause)
	case err != nil:
		w.failed("guarded put to resolve", err)
		*attempts = append(*attempts, in)
		time.Sleep(resolvePause)
	case resp.Succeeded:
		w.saw(resp.Header.Revision)
		w.void(*attempts)
		w.applied([]intent{in}, resp.Header.Revision, 0)
		w.stats.resolved.Add(1)
		w.satisfied(k.name)
		return true
	default:
		w.saw(resp.Header.Revision)
		w.void([]intent{in})
	}
	return false
}
