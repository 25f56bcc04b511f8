package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/sharded-etcd/sharded-etcd/e2e/workload/check"
)

// counters are what the STM clients know of the numbers they count up.
type counters struct {
	mu        sync.Mutex
	acked     map[string]int64
	ambiguous map[string]int64
}

func (c *counters) add(key string, acked bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.acked == nil {
		c.acked, c.ambiguous = map[string]int64{}, map[string]int64{}
	}
	if acked {
		c.acked[key]++
	} else {
		c.ambiguous[key]++
	}
}

// counter counts numbers up with clientv3's software transactional memory,
// which compares mod revisions with "<" and reads at old revisions.
type counter struct {
	*env
	name   string
	cli    *clientv3.Client
	rnd    *rand.Rand
	shared *counters
	seq    int
}

const (
	stmClients  = 2
	counterGap  = 100 * time.Millisecond
	counterText = "%s %s %d count %d"
)

func (e *env) counterKey(n int) string {
	return fmt.Sprintf("%sstm-%s/count", e.cfg.Prefixes[n%len(e.cfg.Prefixes)], e.run)
}

func (c *counter) loop() {
	for c.pause(time.Duration(c.rnd.Int64N(int64(2 * counterGap)))) {
		c.count(c.counterKey(c.rnd.IntN(len(c.cfg.Prefixes))))
	}
}

// parseCount reads the number out of a counter's value; there is none yet in
// an empty one.
func parseCount(value string) (n int64, err error) {
	if value == "" {
		return 0, nil
	}
	var run, name string
	var seq int
	_, err = fmt.Sscanf(value, counterText, &run, &name, &seq, &n)
	return n, err
}

func (c *counter) count(key string) {
	ctx, cancel := context.WithTimeout(context.Background(), c.cfg.OpTimeout)
	defer cancel()
	id := c.rec.Own(key, false)
	floor := c.floor.Load()
	// Every attempt writes a value of its own; the last one is in doubt when
	// the answer is, the ones before it failed their compare.
	var tried []check.Write
	var broken error
	resp, err := concurrency.NewSTM(c.cli, func(s concurrency.STM) error {
		old := s.Get(key)
		n, err := parseCount(old)
		if err != nil {
			broken = fmt.Errorf("counter %q holds %q: %w", key, old, err)
			return broken
		}
		c.seq++
		value := fmt.Sprintf(counterText, c.run, c.name, c.seq, n+1)
		tried = append(tried, check.Write{Actor: c.name, Key: id, Digest: check.Digest([]byte(value)), Floor: floor, Outcome: check.Voided})
		s.Put(key, value)
		return nil
	}, concurrency.WithAbortContext(ctx), concurrency.WithIsolation(concurrency.SerializableSnapshot))
	if broken != nil {
		c.led.Fail(chkCounter, "%v", broken)
		return
	}
	defer func() {
		for _, w := range tried {
			c.rec.AddWrite(w)
		}
	}()
	switch {
	case err == nil && len(tried) > 0:
		last := &tried[len(tried)-1]
		last.Outcome, last.Rev = check.Acked, resp.Header.Revision
		c.saw(resp.Header.Revision)
		c.stats.stmCommits.Add(1)
		c.shared.add(key, true)
	case err != nil && classify(err) == ambiguous && len(tried) > 0:
		tried[len(tried)-1].Outcome = check.Pending
		c.shared.add(key, false)
		c.failed("stm", err)
	case err != nil:
		c.failed("stm", err)
	}
}

// countersRight checks that each number is what was counted: at least the
// acknowledged increments, at most the ambiguous ones more, and one for each
// version of the key.
func (r *runner) countersRight() error {
	for n := range r.cfg.Prefixes {
		key := r.counterKey(n)
		r.counters.mu.Lock()
		acked, ambiguous := r.counters.acked[key], r.counters.ambiguous[key]
		r.counters.mu.Unlock()
		err := r.retry("get", func(ctx context.Context) error {
			resp, err := r.admin.Get(ctx, key)
			if err != nil {
				return err
			}
			got, version := int64(0), int64(0)
			if len(resp.Kvs) == 1 {
				version = resp.Kvs[0].Version
				if got, err = parseCount(string(resp.Kvs[0].Value)); err != nil {
					r.led.Fail(chkCounter, "%q holds %q: %v", key, resp.Kvs[0].Value, err)
					return nil
				}
			}
			r.led.That(got == version && got >= acked && got <= acked+ambiguous, chkCounter,
				"%q counts %d at version %d; %d increments were acknowledged, %d ambiguous", key, got, version, acked, ambiguous)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
