package bulk

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/sharded-etcd/sharded-etcd/e2e/workload/check"
)

// Seed says which keys to fill.
type Seed struct {
	Prefix     string
	Keys       int
	Dirs       int
	ValueBytes int
	Random     uint64
	Parallel   int
}

// Key is the name of the n-th key.
func (s Seed) Key(n int) string {
	return fmt.Sprintf("%sdir-%04d/key-%08d", s.Prefix, n%s.Dirs, n)
}

// Value is the value of the n-th key: the same for the same seed.
func (s Seed) Value(n int) []byte {
	rnd := rand.New(rand.NewPCG(s.Random, uint64(n)))
	out := fmt.Appendf(make([]byte, 0, s.ValueBytes), "%d ", n)
	for len(out) < s.ValueBytes {
		out = append(out, byte('a'+rnd.IntN(26)))
	}
	return out
}

// Fill puts all keys. A put with an ambiguous answer is sent again, as its
// effect is the same.
func (s Seed) Fill(ctx context.Context, cli *clientv3.Client) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	for p := range s.Parallel {
		group.Go(func() {
			for n := p; n < s.Keys && ctx.Err() == nil; n += s.Parallel {
				if err := s.putOne(ctx, cli, n); err != nil {
					cancel(err)
				}
			}
		})
	}
	group.Wait()
	return context.Cause(ctx)
}

const fillTries = 5

func (s Seed) putOne(ctx context.Context, cli *clientv3.Client, n int) error {
	var err error
	for range fillTries {
		call, stop := context.WithTimeout(ctx, callTimeout)
		_, err = cli.Put(call, s.Key(n), string(s.Value(n)))
		stop()
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
	return fmt.Errorf("cannot put %q in %d tries: %w", s.Key(n), fillTries, err)
}

// stateKey is what a state file keeps of a key.
type stateKey struct {
	Key     string `json:"key"`
	Digest  uint64 `json:"digest"`
	Create  int64  `json:"create"`
	Mod     int64  `json:"mod"`
	Version int64  `json:"version"`
	Lease   int64  `json:"lease"`
}

func stateOf(kv *mvccpb.KeyValue) stateKey {
	return stateKey{string(kv.Key), check.Digest(kv.Value), kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease}
}

// Record writes the state of every key of a prefix to a file, one JSON object
// a line.
func Record(ctx context.Context, cli *clientv3.Client, prefix, path string) (int64, error) {
	var buf bytes.Buffer
	out := json.NewEncoder(&buf)
	n := int64(0)
	if _, err := walk(ctx, cli, prefix, func(kv *mvccpb.KeyValue) error {
		n++
		return out.Encode(stateOf(kv))
	}); err != nil {
		return n, err
	}
	if err := os.WriteFile(path, buf.Bytes(), 0o644); err != nil {
		return n, fmt.Errorf("cannot write the state file: %w", err)
	}
	return n, nil
}

// Verified is the outcome of Verify.
type Verified struct {
	Equal, Missing, Extra, Changed int64
	Details                        []string
}

// Same tells whether every key is as it was.
func (v *Verified) Same() bool { return v.Missing+v.Extra+v.Changed == 0 }

func (v *Verified) note(format string, args ...any) {
	if len(v.Details) < maxShown {
		v.Details = append(v.Details, fmt.Sprintf(format, args...))
	}
}

// Verify compares a prefix with a state file: value, create and mod revision,
// version and lease of every key.
func Verify(ctx context.Context, cli *clientv3.Client, prefix, path string) (*Verified, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the state file: %w", err)
	}
	defer func() { _ = file.Close() }()
	want := map[string]stateKey{}
	in := json.NewDecoder(bufio.NewReader(file))
	for {
		var k stateKey
		if err := in.Decode(&k); err == io.EOF {
			break
		} else if err != nil {
			return nil, fmt.Errorf("state file %s is broken after %d keys: %w", path, len(want), err)
		}
		want[k.Key] = k
	}
	v := &Verified{}
	if _, err := walk(ctx, cli, prefix, func(kv *mvccpb.KeyValue) error {
		got := stateOf(kv)
		old, known := want[got.Key]
		delete(want, got.Key)
		switch {
		case !known:
			v.Extra++
			v.note("%q was not there before", got.Key)
		case old != got:
			v.Changed++
			v.note("%q was %+v, is %+v", got.Key, old, got)
		default:
			v.Equal++
		}
		return nil
	}); err != nil {
		return nil, err
	}
	for key := range want {
		v.Missing++
		v.note("%q is missing", key)
	}
	return v, nil
}
