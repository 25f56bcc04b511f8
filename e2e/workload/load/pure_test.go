package load

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sharded-etcd/sharded-etcd/e2e/workload/check"
)

func TestClassify(t *testing.T) {
	for _, c := range []struct {
		err       error
		want      verdict
		transient bool
	}{
		{rpctypes.ErrLeaseNotFound, refused, false},
		{rpctypes.ErrRequestTooLarge, refused, false},
		{rpctypes.ErrNoSpace, refused, false},
		{rpctypes.ErrTooManyRequests, refused, true},
		{rpctypes.ErrTimeout, ambiguous, true},
		{rpctypes.ErrLeaderChanged, ambiguous, true},
		{context.DeadlineExceeded, ambiguous, true},
		{fmt.Errorf("wrapped: %w", context.DeadlineExceeded), ambiguous, true},
		{status.Error(codes.Unavailable, "error reading from server: EOF"), ambiguous, true},
		{status.Error(codes.Unknown, "who knows"), ambiguous, false},
		{status.Error(codes.Internal, "stream reset"), ambiguous, false},
		{status.Error(codes.InvalidArgument, "keys on two shards"), refused, false},
		{errors.New("no status"), ambiguous, false},
	} {
		if got := classify(c.err); got != c.want {
			t.Errorf("%v: classified %d", c.err, got)
		}
		if got := transient(c.err); got != c.transient {
			t.Errorf("%v: transient %v", c.err, got)
		}
	}
}

func TestErrorCountsForgetKeys(t *testing.T) {
	var e errorCounts
	for i := range 3 {
		e.add("txn", status.Errorf(codes.FailedPrecondition, "%q is on shard %q", fmt.Sprint("/a/", i), "s"))
	}
	e.add("put", context.DeadlineExceeded)
	got := e.list()
	if len(got) != 2 || got[0].Count != 3 || got[1].Count != 1 {
		t.Errorf("got %v", got)
	}
	for i := range 2 * maxErrorTexts {
		e.add(fmt.Sprint("op ", i), context.DeadlineExceeded)
	}
	if got := e.list(); len(got) != maxErrorTexts+1 {
		t.Errorf("%d different texts are kept", len(got))
	}
}

func TestOutages(t *testing.T) {
	const s = time.Second
	var o outages
	o.report("a", true, 0, s)
	o.report("a", false, 2*s, 3*s)
	o.report("b", false, 3*s, 4*s)
	o.report("a", false, 3*s, 4*s)
	o.report("a", true, 5*s, 5*s)
	if got := o.list(6 * s); !slices.Equal(got, []check.Outage{{From: 2 * s, To: 6 * s}}) {
		t.Errorf("while b is away: %v", got)
	}
	o.report("b", true, 7*s, 8*s)
	o.blip(20 * s)
	o.blip(20*s + s/2)
	want := []check.Outage{{From: 2 * s, To: 8 * s}, {From: 19 * s, To: 20*s + s/2}}
	if got := o.list(30 * s); !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	for _, c := range []struct {
		from, to time.Duration
		want     bool
	}{{0, s, false}, {0, 2 * s, true}, {8 * s, 9 * s, true}, {9 * s, 10 * s, false}, {0, 30 * s, true}} {
		if got := o.during(c.from, c.to); got != c.want {
			t.Errorf("during %v to %v: %v", c.from, c.to, got)
		}
	}
}

func TestStalls(t *testing.T) {
	var s stalls
	for i := range 100 {
		s.add("w", "k", 0, time.Duration(i+1)*time.Millisecond, 99*time.Millisecond)
	}
	if p := s.quantile(0.5); p < 50*time.Millisecond || p > 54*time.Millisecond {
		t.Errorf("median %v", p)
	}
	longest, over := s.lists()
	if len(longest) != 1 || longest[0].Millis != 100 || len(over) != 1 {
		t.Errorf("longest %v, over the limit %v", longest, over)
	}
}

func TestParseCount(t *testing.T) {
	for value, want := range map[string]int64{"": 0, fmt.Sprintf(counterText, "run", "stm00", 3, 17): 17} {
		if got, err := parseCount(value); err != nil || got != want {
			t.Errorf("%q: %d, %v", value, got, err)
		}
	}
	if _, err := parseCount("something else"); err == nil {
		t.Error("no error for a broken value")
	}
}

func TestValidate(t *testing.T) {
	good := func() Config {
		return Config{Endpoints: []string{"a"}, Duration: 1, Prefixes: []string{"/a/", "/b/"}, LockPrefix: "/locks/",
			Writers: 1, Watchers: 1, KeysPerDir: 2, Rate: 1, ValueBytes: 40}
	}
	c := good()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Config){
		"no endpoint":         func(c *Config) { c.Endpoints = nil },
		"no end":              func(c *Config) { c.Duration = 0 },
		"no prefix":           func(c *Config) { c.Prefixes = nil },
		"prefix without end":  func(c *Config) { c.Prefixes[0] = "/a" },
		"prefix in a prefix":  func(c *Config) { c.Prefixes[1] = "/a/b/" },
		"same prefix twice":   func(c *Config) { c.Prefixes[1] = "/a/" },
		"locks in a prefix":   func(c *Config) { c.LockPrefix = "/a/locks/" },
		"no writer":           func(c *Config) { c.Writers = 0 },
		"no watcher":          func(c *Config) { c.Watchers = 0 },
		"too few keys":        func(c *Config) { c.KeysPerDir = 1 },
		"no rate":             func(c *Config) { c.Rate = 0 },
		"values not distinct": func(c *Config) { c.ValueBytes = 8 },
	} {
		c := good()
		spoil(&c)
		if err := c.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestCompactionEndsWatch: an idle watch that a compaction has overtaken owes nothing after that; any other end is a fault.
func TestCompactionEndsWatch(t *testing.T) {
	e := &env{rec: check.NewRecorder(), led: check.NewLedger(), stop: make(chan struct{})}
	open := func(start int64) *watch {
		return &watch{name: "w", start: start, log: e.rec.AddWatch(check.WatchLog{Name: "w", Start: start})}
	}
	e.compact.Store(10)
	idle, ahead := open(5), open(20)
	e.watchEnded(idle, rpctypes.ErrCompacted, 10)
	e.watchEnded(ahead, rpctypes.ErrCompacted, 10)
	if !idle.over.Load() || ahead.over.Load() {
		t.Errorf("over: idle %v, ahead of the compaction %v", idle.over.Load(), ahead.over.Load())
	}
	r := &runner{env: e}
	r.catchUp(idle, 30)
	e.rec.Update(func(h *check.History) {
		if until := h.Watches[idle.log].Until; until != 4 {
			t.Errorf("complete until %d, not up to its start", until)
		}
	})
}
