package bulk

import (
	"context"
	"path/filepath"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/sharded-etcd/sharded-etcd/e2e/workload/etcdtest"
)

func client(t *testing.T, endpoint string) *clientv3.Client {
	t.Helper()
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cli.Close() })
	return cli
}

func TestSeedDependsOnNothingElse(t *testing.T) {
	s := Seed{Prefix: "/s/", Keys: 10, Dirs: 3, ValueBytes: 50, Random: 4}
	if s.Key(7) != "/s/dir-0001/key-00000007" {
		t.Errorf("unexpected key %q", s.Key(7))
	}
	if string(s.Value(7)) != string(s.Value(7)) || len(s.Value(7)) != 50 {
		t.Errorf("unexpected value %q", s.Value(7))
	}
	other := s
	other.Random = 5
	if string(s.Value(7)) == string(other.Value(7)) || string(s.Value(7)) == string(s.Value(8)) {
		t.Error("values do not depend on the seed and the number")
	}
}

func TestCopyDiffSeedVerify(t *testing.T) {
	ctx := t.Context()
	a, b := client(t, etcdtest.Start(t).Endpoint), client(t, etcdtest.Start(t).Endpoint)
	s := Seed{Prefix: "/s/", Keys: page + 37, Dirs: 3, ValueBytes: 50, Random: 4, Parallel: 8}
	if err := s.Fill(ctx, a); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(t.TempDir(), "state")
	if n, err := Record(ctx, a, s.Prefix, state); err != nil || n != int64(s.Keys) {
		t.Fatalf("recorded %d keys: %v", n, err)
	}
	if n, err := Copy(ctx, a, b, s.Prefix, 8); err != nil || n.Keys != int64(s.Keys) {
		t.Fatalf("copied %d keys: %v", n.Keys, err)
	}
	diff := func(onlyA, onlyB, values int64) {
		t.Helper()
		d, err := Diff(ctx, a, b, s.Prefix)
		if err != nil {
			t.Fatal(err)
		}
		if d.OnlyA != onlyA || d.OnlyB != onlyB || d.Values != values || d.Equal+onlyA+values != int64(s.Keys) || d.Same() != (onlyA+onlyB+values == 0) {
			t.Errorf("unexpected difference %+v", d)
		}
	}
	diff(0, 0, 0)
	verify := func(missing, extra, changed int64) {
		t.Helper()
		v, err := Verify(ctx, a, s.Prefix, state)
		if err != nil {
			t.Fatal(err)
		}
		if v.Missing != missing || v.Extra != extra || v.Changed != changed || v.Equal != int64(s.Keys)-missing-changed {
			t.Errorf("unexpected verdict %+v", v)
		}
	}
	verify(0, 0, 0)
	must[*clientv3.DeleteResponse](t)(b.Delete(ctx, s.Key(5)))
	must[*clientv3.PutResponse](t)(b.Put(ctx, s.Key(6), "other"))
	must[*clientv3.PutResponse](t)(b.Put(ctx, s.Prefix+"new", "other"))
	diff(1, 1, 1)
	// The same value again changes the revision and the version.
	must[*clientv3.PutResponse](t)(a.Put(ctx, s.Key(6), string(s.Value(6))))
	must[*clientv3.DeleteResponse](t)(a.Delete(ctx, s.Key(7)))
	must[*clientv3.PutResponse](t)(a.Put(ctx, s.Prefix+"new", "new"))
	verify(1, 1, 1)
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.Fill(cancelled, a); err == nil {
		t.Error("fill went on after it was cancelled")
	}
}

// must ends the test when a call failed.
func must[R any](t *testing.T) func(R, error) {
	return func(_ R, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
}
