// Package hot puts a skewed load on an endpoint: a few directories get most of
// the requests. It measures and judges nothing but errors.
package hot

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/sharded-etcd/sharded-etcd/e2e/workload/bulk"
)

// Config says what is done to the keys of a seed, which are there already.
type Config struct {
	Seed bulk.Seed
	// Exponent of the Zipf distribution: the n-th directory gets requests in
	// proportion to 1/n^Exponent; 0 is even.
	Exponent float64
	// Reads is the part of the requests that read, 0 to 1.
	Reads    float64
	Clients  int
	Duration time.Duration
	Timeout  time.Duration
	// Random seeds all choices.
	Random uint64
}

// Latency of requests, in milliseconds.
type Latency struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// Result of a run.
type Result struct {
	Seconds   float64 `json:"seconds"`
	PerSecond float64 `json:"per_second"`
	Reads     int     `json:"reads"`
	Writes    int     `json:"writes"`
	Errors    int     `json:"errors"`
	FirstErr  string  `json:"first_error,omitempty"`
	Read      Latency `json:"read_millis"`
	Write     Latency `json:"write_millis"`
}

// Pick chooses directories by their rank.
type Pick struct {
	upto []float64
}

// NewPick makes the distribution over so many directories.
func NewPick(dirs int, exponent float64) Pick {
	p := Pick{upto: make([]float64, dirs)}
	sum := 0.0
	for n := range dirs {
		sum += math.Pow(float64(n+1), -exponent)
		p.upto[n] = sum
	}
	return p
}

// Dir is the directory for a number from 0 to 1.
func (p Pick) Dir(at float64) int {
	at *= p.upto[len(p.upto)-1]
	n := sort.SearchFloat64s(p.upto, at)
	return min(n, len(p.upto)-1)
}

// client is what one of them saw.
type client struct {
	reads, writes []time.Duration
	errors        int
	first         error
}

// Run sends requests, each client one after the other, until the time is over.
func Run(ctx context.Context, cli *clientv3.Client, cfg Config) (Result, error) {
	perDir := cfg.Seed.Keys / max(cfg.Seed.Dirs, 1)
	if perDir < 1 || cfg.Clients < 1 {
		return Result{}, errors.New("there has to be a key in each directory, and a client")
	}
	pick := NewPick(cfg.Seed.Dirs, cfg.Exponent)
	begun := time.Now()
	until := begun.Add(cfg.Duration)
	clients := make([]client, cfg.Clients)
	var group sync.WaitGroup
	for i := range clients {
		group.Go(func() { clients[i] = one(ctx, cli, cfg, pick, perDir, uint64(i), until) })
	}
	group.Wait()
	return sum(clients, time.Since(begun)), ctx.Err()
}

func one(ctx context.Context, cli *clientv3.Client, cfg Config, pick Pick, perDir int, id uint64, until time.Time) client {
	var seen client
	rnd := rand.New(rand.NewPCG(cfg.Random, id))
	for ctx.Err() == nil && time.Now().Before(until) {
		// The n-th key of a seed is in directory n mod Dirs.
		n := pick.Dir(rnd.Float64()) + rnd.IntN(perDir)*cfg.Seed.Dirs
		reads := rnd.Float64() < cfg.Reads
		call, stop := context.WithTimeout(ctx, cfg.Timeout)
		begun := time.Now()
		var err error
		if reads {
			_, err = cli.Get(call, cfg.Seed.Key(n))
		} else {
			_, err = cli.Put(call, cfg.Seed.Key(n), string(cfg.Seed.Value(n)))
		}
		took := time.Since(begun)
		stop()
		switch {
		case err != nil && ctx.Err() != nil:
		case err != nil:
			seen.errors++
			if seen.first == nil {
				seen.first = fmt.Errorf("%q: %w", cfg.Seed.Key(n), err)
			}
		case reads:
			seen.reads = append(seen.reads, took)
		default:
			seen.writes = append(seen.writes, took)
		}
	}
	return seen
}

func sum(clients []client, took time.Duration) Result {
	var reads, writes []time.Duration
	r := Result{Seconds: took.Seconds()}
	for _, c := range clients {
		reads, writes = append(reads, c.reads...), append(writes, c.writes...)
		r.Errors += c.errors
		if r.FirstErr == "" && c.first != nil {
			r.FirstErr = c.first.Error()
		}
	}
	r.Reads, r.Writes = len(reads), len(writes)
	r.PerSecond = float64(len(reads)+len(writes)) / took.Seconds()
	r.Read, r.Write = latency(reads), latency(writes)
	return r
}

// latency sorts what it is given; zero for nothing.
func latency(took []time.Duration) Latency {
	if len(took) == 0 {
		return Latency{}
	}
	slices.Sort(took)
	at := func(part float64) float64 {
		n := min(int(part*float64(len(took))), len(took)-1)
		return float64(took[n].Microseconds()) / 1000
	}
	return Latency{P50: at(0.5), P99: at(0.99), Max: at(1)}
}
