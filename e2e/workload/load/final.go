package load

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/sharded-etcd/sharded-etcd/e2e/workload/check"
)

// end brings the run to a state that can be judged: the shared leases are
// revoked, every watch has caught up, everything is listed. The steps wait for
// an endpoint that is away, up to FinalWait each.
func (r *runner) end() error {
	if err := r.revokeShared(); err != nil {
		return err
	}
	r.finalProgress()
	close(r.finish)
	r.keepers.Wait()
	if err := r.orphans(); err != nil {
		return err
	}
	final, err := r.markEnd()
	if err != nil {
		return err
	}
	for _, w := range r.watches {
		r.catchUp(w, final)
	}
	if err := r.replay(final); err != nil {
		return err
	}
	close(r.probing)
	r.probes.Wait()
	if err := r.countersRight(); err != nil {
		return err
	}
	return r.listAll(final)
}

// cutShort prepares the judgement of a run whose end failed: what the watch of
// everything has delivered can still be judged, the final state cannot.
func (r *runner) cutShort(err error) {
	r.led.Fail("run-ended", "%v", err)
	reached := r.baseRev
	for _, w := range r.watches {
		if w.kind == all {
			reached = max(reached, r.rec.Delivered(w.log))
			r.rec.Complete(w.log, reached)
		}
	}
	r.rec.Update(func(h *check.History) { h.FinalRev, h.Unfinished = reached, true })
}

// oldest is the first revision of the run that can still be read.
func (r *runner) oldest() int64 { return max(r.baseRev, r.compact.Load()) }

// replay watches the whole run once more, through every endpoint: whatever has
// moved since, the events of the past are the same.
func (r *runner) replay(final int64) error {
	for n, endpoint := range r.cfg.Endpoints {
		cli := r.clientOf(endpoint)
		if cli == nil {
			return fmt.Errorf("no client for %s", endpoint)
		}
		w := r.openWatch(cli, r.ctx, "replay through "+endpoint, check.Range{Start: "\x00", End: "\x00"}, r.oldest()+1, n%2 == 0, all)
		r.catchUp(w, final)
		w.cancel()
		<-w.done
	}
	return nil
}

// retry repeats a step while the endpoint is away.
func (r *runner) retry(what string, step func(context.Context) error) error {
	deadline := r.rec.Now() + r.cfg.FinalWait
	for {
		ctx, cancel := r.op()
		err := step(ctx)
		cancel()
		if err == nil {
			return nil
		}
		r.failed(what, err)
		if !transient(err) || r.rec.Now() > deadline {
			return fmt.Errorf("%s failed at the end of the run: %w", what, err)
		}
		time.Sleep(resolvePause)
	}
}

// revokeShared lists what is attached to the leases the writers shared,
// revokes them and records the deletes that have to follow.
func (r *runner) revokeShared() error {
	for n, id := range r.shared {
		attached := map[uint32]bool{}
		log := check.LeaseLog{Name: fmt.Sprintf("shared lease %d", n), ID: int64(id), TTL: sharedLeaseTTL * time.Second, End: check.Revoked}
		err := r.retry("time to live", func(ctx context.Context) error {
			resp, err := r.admin.TimeToLive(ctx, id, clientv3.WithAttachedKeys())
			if err != nil {
				return err
			}
			r.led.That(resp.TTL > 0, chkLeaseKept, "shared lease %x of %d s is gone at the end: TTL %d", id, sharedLeaseTTL, resp.TTL)
			clear(attached)
			for _, k := range resp.Keys {
				attached[r.rec.Key(string(k))] = true
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, w := range r.writers {
			for _, d := range w.dirs {
				for _, k := range d.keys {
					want := k.kv.Version > 0 && k.kv.Lease == int64(id)
					r.led.That(attached[k.id] == want, chkLeaseView, "%q is attached to %x: %v, expected %v", k.name, id, attached[k.id], want)
					if want {
						log.Keys = append(log.Keys, k.id)
					}
				}
			}
		}
		r.rec.Update(func(h *check.History) {
			for key := range attached {
				h.LeaseKeys[key] = true
			}
		})
		log.Renewals = []check.Renewal{{Answered: r.rec.Now()}}
		log.RevokeSent = r.rec.Now()
		tries := 0
		err = r.retry("revoke", func(ctx context.Context) error {
			tries++
			ctx, sent := countAttempts(ctx)
			_, err := r.admin.Revoke(ctx, id)
			again := tries > 1 || r.resent(sent)
			if again && errors.Is(err, rpctypes.ErrLeaseNotFound) {
				return nil
			}
			return err
		})
		if err != nil {
			return err
		}
		r.rec.AddLease(log)
	}
	return nil
}

// finalProgress asks for progress until a watch has passed what was
// acknowledged before, as a consistent read from a cache does.
func (r *runner) finalProgress() {
	for _, w := range r.watches {
		if w.kind != all {
			continue
		}
		target := r.floor.Load()
		deadline := r.rec.Now() + r.cfg.FinalWait
		for r.rec.Reached(w.log) < target && r.rec.Now() < deadline {
			ctx, cancel := context.WithTimeout(w.ctx, r.cfg.OpTimeout)
			err := w.cli.RequestProgress(ctx)
			cancel()
			if err != nil {
				r.failed("progress request", err)
			}
			time.Sleep(resolvePause)
		}
		got := r.rec.Reached(w.log)
		r.led.That(got >= target, chkProgress, "%s: progress requests led to %d in %v, but %d had been acknowledged", w.name, got, r.cfg.FinalWait, target)
	}
}

// orphans checks that every key with a lease has a live one. An expiry that is
// under way gets its time.
func (r *runner) orphans() error {
	deadline := r.rec.Now() + r.cfg.FinalWait
	for {
		dead, err := r.deadLeases()
		if err != nil {
			return err
		}
		if len(dead) == 0 {
			r.led.Pass(chkOrphans, 1)
			return nil
		}
		if r.rec.Now() > deadline {
			for key, id := range dead {
				r.led.Fail(chkOrphans, "%q is attached to lease %x, which does not exist", key, id)
			}
			return nil
		}
		time.Sleep(10 * resolvePause)
	}
}

func (r *runner) deadLeases() (map[string]int64, error) {
	alive := map[int64]bool{}
	dead := map[string]int64{}
	err := r.retry("list of leased keys", func(ctx context.Context) error {
		for _, scope := range r.scopes() {
			resp, err := r.admin.Get(ctx, scope.Start, clientv3.WithRange(scope.End), clientv3.WithKeysOnly())
			if err != nil {
				return err
			}
			for _, kv := range resp.Kvs {
				if kv.Lease == 0 {
					continue
				}
				is, known := alive[kv.Lease]
				if !known {
					ttl, err := r.admin.TimeToLive(ctx, clientv3.LeaseID(kv.Lease))
					if err != nil {
						return err
					}
					is = ttl.TTL > 0
					alive[kv.Lease] = is
				}
				if !is {
					dead[string(kv.Key)] = kv.Lease
				}
			}
		}
		return nil
	})
	return dead, err
}

// markEnd writes a last key into the range of every watch, so that each one
// has an event to come to; the last revision is where the judgement ends.
func (r *runner) markEnd() (int64, error) {
	final := int64(0)
	marked := map[string]bool{}
	for n, w := range r.watches {
		key := w.rng.Start + "end-" + r.run
		if w.kind == all {
			key = r.cfg.Prefixes[0] + "end-" + r.run
		}
		if marked[key] {
			continue
		}
		marked[key] = true
		id := r.rec.Own(key, false)
		err := r.retry("last put", func(ctx context.Context) error {
			value := fmt.Sprintf("%s end %d %d", r.run, n, r.rec.Now())
			out := check.Write{Actor: "end", Key: id, Digest: check.Digest([]byte(value)), Floor: r.floor.Load()}
			resp, err := r.admin.Put(ctx, key, value)
			if err != nil {
				out.Outcome = check.Pending
				r.rec.AddWrite(out)
				return err
			}
			r.saw(resp.Header.Revision)
			out.Rev = resp.Header.Revision
			r.rec.AddWrite(out)
			final = out.Rev
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return final, nil
}

// catchUp waits until a watch has seen the last event of its range.
func (r *runner) catchUp(w *watch, final int64) {
	if w.over.Load() {
		r.rec.Complete(w.log, r.rec.Reached(w.log))
		return
	}
	target, err := r.newest(r.admin, w.rng)
	if err != nil {
		r.failed("newest key", err)
		target = final
	}
	r.await(w, min(target, final), r.rec.Now()+r.cfg.FinalWait)
	// Whether it came or not, it had to: what is missing is named one by one.
	r.rec.Complete(w.log, final)
}

// pastLists is how many revisions of the past are listed at the end.
const pastLists = 4

// listAll lists everything at the end, through every endpoint, and again as it
// was at some revisions of the run, the first one among them.
func (r *runner) listAll(final int64) error {
	revs := []int64{final}
	for n := range int64(pastLists) {
		revs = append(revs, r.oldest()+(final-r.oldest())*n/pastLists)
	}
	for n, endpoint := range r.cfg.Endpoints {
		cli := r.clientOf(endpoint)
		if cli == nil {
			return fmt.Errorf("no client for %s", endpoint)
		}
		for _, rev := range revs {
			kvs, err := r.listAt(cli, "last list through "+endpoint, rev)
			if err != nil {
				return err
			}
			if n == 0 && rev == final {
				r.rec.Update(func(h *check.History) { h.FinalRev, h.Final = final, kvs })
			}
		}
	}
	return nil
}

// listAt lists and records everything at a revision.
func (r *runner) listAt(cli *clientv3.Client, kind string, rev int64) ([]uint32, error) {
	var kvs []uint32
	err := r.retry("last list", func(context.Context) error {
		var err error
		kvs, _, err = r.listScopes(cli, rev)
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, scope := range r.scopes() {
		read := check.Read{Kind: kind, Range: scope, Rev: rev, Header: rev}
		r.rec.Update(func(h *check.History) {
			for _, i := range kvs {
				if scope.Contains(h.Keys[h.KVs[i].Key]) {
					read.KVs = append(read.KVs, i)
				}
			}
		})
		read.Count = int64(len(read.KVs))
		r.rec.AddRead(read)
	}
	return kvs, nil
}
