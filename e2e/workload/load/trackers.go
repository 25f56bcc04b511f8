package load

import (
	"sort"
	"sync"
	"time"

	"github.com/sharded-etcd/sharded-etcd/e2e/workload/check"
)

// outages knows when the endpoints did not answer.
type outages struct {
	mu   sync.Mutex
	down map[string]time.Duration // what is away, and since when
	past []check.Outage
}

const (
	maxOutages = 10_000
	blipWidth  = time.Second
)

// report notes whether something answered; at is when it was asked.
func (o *outages) report(what string, ok bool, at, now time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.down == nil {
		o.down = map[string]time.Duration{}
	}
	since, down := o.down[what]
	switch {
	case ok && down:
		delete(o.down, what)
		if len(o.past) < maxOutages {
			o.past = append(o.past, check.Outage{From: since, To: now})
		}
	case !ok && !down:
		o.down[what] = at
	}
}

// blip notes that a request failed for lack of an answer at a time: a restart
// may be too short for the probes to see.
func (o *outages) blip(now time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if n := len(o.past); n > 0 && o.past[n-1].To >= now-blipWidth {
		o.past[n-1].To = max(o.past[n-1].To, now)
		return
	}
	if len(o.past) < maxOutages {
		o.past = append(o.past, check.Outage{From: max(0, now-blipWidth), To: now})
	}
}

// list returns all outages so far, merged and in order; those that go on end
// now.
func (o *outages) list(now time.Duration) []check.Outage {
	o.mu.Lock()
	all := append([]check.Outage(nil), o.past...)
	for _, since := range o.down {
		all = append(all, check.Outage{From: since, To: now})
	}
	o.mu.Unlock()
	sort.Slice(all, func(i, j int) bool { return all[i].From < all[j].From })
	var out []check.Outage
	for _, x := range all {
		if n := len(out); n > 0 && x.From <= out[n-1].To {
			out[n-1].To = max(out[n-1].To, x.To)
		} else {
			out = append(out, x)
		}
	}
	return out
}

// during tells whether anything was away in [from, to].
func (o *outages) during(from, to time.Duration) bool {
	for _, x := range o.list(to) {
		if x.From <= to && x.To >= from {
			return true
		}
	}
	return false
}

// Stall is a time in which a writer wanted to write and had no answer.
type Stall struct {
	Writer    string  `json:"writer"`
	Key       string  `json:"key"`
	AtSeconds float64 `json:"at_seconds"`
	Millis    float64 `json:"millis"`
}

// stalls keeps the longest write stalls and all latencies in buckets.
type stalls struct {
	mu      sync.Mutex
	longest map[string]Stall // by writer
	over    []Stall
	buckets [latencyBuckets]int64
	count   int64
}

const (
	latencyBuckets = 400
	maxStalls      = 100
)

// Bucket i ends at 0.1 ms · 1.04^i: 4 % resolution up to about 10 minutes.
var bucketEnds = func() [latencyBuckets]time.Duration {
	var ends [latencyBuckets]time.Duration
	v := float64(100 * time.Microsecond)
	for i := range ends {
		ends[i] = time.Duration(v)
		v *= 1.04
	}
	return ends
}()

func (s *stalls) add(writer, key string, since, took, reportOver time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.longest == nil {
		s.longest = map[string]Stall{}
	}
	s.count++
	i := sort.Search(latencyBuckets-1, func(i int) bool { return bucketEnds[i] >= took })
	s.buckets[i]++
	st := Stall{Writer: writer, Key: key, AtSeconds: since.Seconds(), Millis: float64(took.Microseconds()) / 1000}
	if st.Millis > s.longest[writer].Millis {
		s.longest[writer] = st
	}
	if took > reportOver && len(s.over) < maxStalls {
		s.over = append(s.over, st)
	}
}

// quantile returns the latency below which a share of the writes stayed.
func (s *stalls) quantile(q float64) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	want := int64(q * float64(s.count))
	for i, n := range s.buckets {
		if want -= n; want < 0 {
			return bucketEnds[i]
		}
	}
	return bucketEnds[latencyBuckets-1]
}

func (s *stalls) lists() (longest, over []Stall) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.longest {
		longest = append(longest, st)
	}
	sort.Slice(longest, func(i, j int) bool { return longest[i].Millis > longest[j].Millis })
	return longest, append([]Stall(nil), s.over...)
}
