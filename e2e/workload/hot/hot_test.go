package hot

import (
	"math"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/sharded-etcd/sharded-etcd/e2e/workload/bulk"
	"github.com/sharded-etcd/sharded-etcd/e2e/workload/etcdtest"
)

func TestPickFollowsTheDistribution(t *testing.T) {
	const dirs, draws = 64, 100_000
	share := func(exponent float64, upto int) float64 {
		p, hits := NewPick(dirs, exponent), 0
		for n := range draws {
			// Evenly, so that the result is the same each time.
			if p.Dir((float64(n)+0.5)/draws) < upto {
				hits++
			}
		}
		return float64(hits) / draws
	}
	harmonic := func(n int) float64 {
		sum := 0.0
		for i := range n {
			sum += 1 / float64(i+1)
		}
		return sum
	}
	for _, upto := range []int{1, 21, 64} {
		if got, want := share(1, upto), harmonic(upto)/harmonic(dirs); math.Abs(got-want) > 0.001 {
			t.Errorf("the first %d directories get %.3f of the requests, not %.3f", upto, got, want)
		}
		if got, want := share(0, upto), float64(upto)/dirs; math.Abs(got-want) > 0.001 {
			t.Errorf("the first %d of even directories get %.3f of the requests, not %.3f", upto, got, want)
		}
	}
	if p := NewPick(3, 1); p.Dir(0) != 0 || p.Dir(1) != 2 {
		t.Errorf("the ends are directories %d and %d", p.Dir(0), p.Dir(1))
	}
}

func TestLatencies(t *testing.T) {
	var took []time.Duration
	for n := range 1000 {
		took = append(took, time.Duration(1000-n)*time.Millisecond)
	}
	if got := latency(took); got != (Latency{P50: 501, P99: 991, Max: 1000}) {
		t.Errorf("unexpected latencies %+v", got)
	}
	if got := latency(nil); got != (Latency{}) {
		t.Errorf("unexpected latencies of nothing %+v", got)
	}
}

func TestRunReadsAndWrites(t *testing.T) {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{etcdtest.Start(t).Endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cli.Close() })
	s := bulk.Seed{Prefix: "/hot/", Keys: 40, Dirs: 8, ValueBytes: 50, Random: 4, Parallel: 4}
	if err := s.Fill(t.Context(), cli); err != nil {
		t.Fatal(err)
	}
	before, err := cli.Get(t.Context(), s.Prefix, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Seed: s, Exponent: 1, Reads: 0.5, Clients: 4, Duration: time.Second, Timeout: 10 * time.Second, Random: 7}
	got, err := Run(t.Context(), cli, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got.Errors != 0 || got.Reads == 0 || got.Writes == 0 || got.PerSecond <= 0 {
		t.Errorf("unexpected result %+v", got)
	}
	after, err := cli.Get(t.Context(), s.Prefix, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	// It writes what is there, and to no other key.
	if after.Count != int64(s.Keys) {
		t.Errorf("%d keys", after.Count)
	}
	if written := after.Header.Revision - before.Header.Revision; written != int64(got.Writes) {
		t.Errorf("%d writes, but %d revisions", got.Writes, written)
	}
	if _, err := Run(t.Context(), cli, Config{Seed: bulk.Seed{Keys: 1, Dirs: 2}, Clients: 1}); err == nil {
		t.Error("a directory without a key is accepted")
	}
}
