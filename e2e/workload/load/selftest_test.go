package load

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/sharded-etcd/sharded-etcd/e2e/workload/check"
	"github.com/sharded-etcd/sharded-etcd/e2e/workload/etcdtest"
)

func config(endpoint string, d time.Duration) Config {
	return Config{
		Endpoints: []string{endpoint}, Duration: d, Seed: 1, Writers: 4, Watchers: 2, Readers: 1, Lockers: 2, Leases: 2,
		Prefixes: []string{"/registry/pods/", "/app/"}, LockPrefix: "/locks/", KeysPerDir: 3, ValueBytes: 64, Rate: 30,
		OpTimeout: 5 * time.Second, StallReport: 2 * time.Second, FinalWait: 3 * time.Second, CompactLag: 100, Quiet: true,
		OneRevision: true,
	}
}

func judge(t *testing.T, cfg Config) map[string]check.Result {
	t.Helper()
	rep, err := Run(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]check.Result{}
	for _, r := range rep.Invariants {
		out[r.Name] = r
	}
	return out
}

func green(t *testing.T, results map[string]check.Result) {
	t.Helper()
	if len(results) < 25 {
		t.Errorf("only %d invariants were judged", len(results))
	}
	for _, r := range results {
		if !r.OK {
			t.Errorf("%s: %d violations:\n%s", r.Name, r.Violations, strings.Join(r.Details, "\n"))
		}
	}
}

func TestEtcdIsGreen(t *testing.T) {
	e := etcdtest.Start(t)
	cfg := config(e.Endpoint, 8*time.Second)
	cfg.Compact = 2 * time.Second
	green(t, judge(t, cfg))
}

// TestEtcdIsGreenWhenKilled kills, restarts and stops etcd while clients run.
func TestEtcdIsGreenWhenKilled(t *testing.T) {
	e := etcdtest.Start(t)
	cfg := config(e.Endpoint, 0)
	cfg.Tolerate = true
	cfg.FinalWait = 30 * time.Second
	cfg.UntilFile = filepath.Join(t.TempDir(), "stop")
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The load goes on for a while between the faults.
		for range 3 {
			time.Sleep(2 * time.Second)
			e.Kill()
			e.Restart()
		}
		time.Sleep(2 * time.Second)
		e.Signal(syscall.SIGSTOP)
		time.Sleep(2 * time.Second)
		e.Signal(syscall.SIGCONT)
		time.Sleep(3 * time.Second)
		if err := os.WriteFile(cfg.UntilFile, nil, 0o600); err != nil {
			t.Error(err)
		}
	}()
	results := judge(t, cfg)
	<-done
	green(t, results)
}

// TestLiesAreCaught puts a proxy with one fault before a real etcd.
func TestLiesAreCaught(t *testing.T) {
	var newest atomic.Int64 // of the one lie that reads at old revisions
	lies := []struct {
		name string
		want string
		lie  func(t *testing.T, etcd string) *liar
	}{
		{"nothing but the truth", "", func(*testing.T, string) *liar { return &liar{} }},
		{"event dropped", check.WatchComplete, func(*testing.T, string) *liar {
			return &liar{response: onEvents(func(s *lieStream, r *pb.WatchResponse) []*pb.WatchResponse {
				if s.count == 60 {
					return nil
				}
				return []*pb.WatchResponse{r}
			})}
		}},
		{"event sent twice", check.WatchUnique, func(*testing.T, string) *liar {
			return &liar{response: onEvents(func(s *lieStream, r *pb.WatchResponse) []*pb.WatchResponse {
				if s.count == 60 {
					return []*pb.WatchResponse{r, r}
				}
				return []*pb.WatchResponse{r}
			})}
		}},
		{"responses swapped", check.WatchOrder, func(*testing.T, string) *liar {
			return &liar{response: onEvents(func(s *lieStream, r *pb.WatchResponse) []*pb.WatchResponse {
				if r.WatchId != 0 {
					return []*pb.WatchResponse{r}
				}
				if s.held == nil && s.count > 60 {
					s.held = encode(r)
					return nil
				}
				out := []*pb.WatchResponse{r}
				if len(s.held) > 0 {
					old := newWatchResponse()
					if err := proto.Unmarshal(s.held, old); err != nil {
						panic(err)
					}
					out = append(out, old)
					s.held = []byte{}
				}
				return out
			})}
		}},
		{"revision in two responses", check.WatchAtomic, func(*testing.T, string) *liar {
			return &liar{response: onEvents(func(_ *lieStream, r *pb.WatchResponse) []*pb.WatchResponse {
				n := len(r.Events)
				if n < 2 || r.Events[0].Kv.ModRevision != r.Events[1].Kv.ModRevision {
					return []*pb.WatchResponse{r}
				}
				rest := &pb.WatchResponse{Header: r.Header, WatchId: r.WatchId, Events: r.Events[1:]}
				r.Events = r.Events[:1]
				return []*pb.WatchResponse{r, rest}
			})}
		}},
		{"prev_kv left out", check.WatchPrevKV, func(*testing.T, string) *liar {
			return &liar{response: onEvents(func(s *lieStream, r *pb.WatchResponse) []*pb.WatchResponse {
				if s.count%20 == 0 {
					for _, e := range r.Events {
						e.PrevKv = nil
					}
				}
				return []*pb.WatchResponse{r}
			})}
		}},
		{"wrong version in an event", check.WatchAgree, func(*testing.T, string) *liar {
			return &liar{response: onEvents(func(s *lieStream, r *pb.WatchResponse) []*pb.WatchResponse {
				if s.count == 60 && r.Events[0].Type == mvccpb.Event_PUT {
					r.Events[0].Kv.Version++
				} else if s.count == 60 {
					s.count--
				}
				return []*pb.WatchResponse{r}
			})}
		}},
		{"progress ahead of events", check.WatchProgress, func(*testing.T, string) *liar {
			return &liar{response: onEvents(func(s *lieStream, r *pb.WatchResponse) []*pb.WatchResponse {
				if s.count != 60 {
					return []*pb.WatchResponse{r}
				}
				header := &pb.ResponseHeader{ClusterId: r.Header.ClusterId, MemberId: r.Header.MemberId, RaftTerm: r.Header.RaftTerm, Revision: r.Header.Revision + 5}
				return []*pb.WatchResponse{r, {Header: header, WatchId: r.WatchId}}
			})}
		}},
		{"put acknowledged but done elsewhere", check.WriteVisible, func(*testing.T, string) *liar {
			n := atomic.Int64{}
			return &liar{request: onRequest(methodPut, func() *pb.PutRequest { return &pb.PutRequest{} }, func(r *pb.PutRequest) {
				if n.Add(1)%50 == 0 && !r.PrevKv && !r.IgnoreLease {
					r.Key = append([]byte("/elsewhere"), r.Key...)
				}
			})}
		}},
		{"stale read under a fresh header", check.ReadSnapshot, func(*testing.T, string) *liar {
			l := &liar{request: onRequest(methodRange, func() *pb.RangeRequest { return &pb.RangeRequest{} }, func(r *pb.RangeRequest) {
				if rev := newest.Load() - 20; r.Revision == 0 && rev > 5 && len(r.RangeEnd) == 0 {
					r.Revision = rev
				}
			})}
			l.response = onResponse(methodPut, func() *pb.PutResponse { return &pb.PutResponse{} }, func(_ *lieStream, r *pb.PutResponse) []*pb.PutResponse {
				newest.Store(r.Header.Revision)
				return []*pb.PutResponse{r}
			})
			return l
		}},
		{"header going back", check.ReadOrder, func(*testing.T, string) *liar {
			return &liar{response: onResponse(methodRange, func() *pb.RangeResponse { return &pb.RangeResponse{} }, func(_ *lieStream, r *pb.RangeResponse) []*pb.RangeResponse {
				r.Header.Revision -= 2
				return []*pb.RangeResponse{r}
			})}
		}},
		{"guard ignored", chkGuard, func(*testing.T, string) *liar {
			return &liar{request: onRequest(methodTxn, func() *pb.TxnRequest { return &pb.TxnRequest{} }, func(r *pb.TxnRequest) { r.Compare = nil })}
		}},
		{"delete not done", chkAnswer, func(*testing.T, string) *liar {
			return &liar{request: onRequest(methodDelete, func() *pb.DeleteRangeRequest { return &pb.DeleteRangeRequest{} }, func(r *pb.DeleteRangeRequest) {
				r.Key, r.RangeEnd = []byte("/elsewhere"), nil
			})}
		}},
		{"lease revoked early", check.LeaseEarly, func(t *testing.T, etcd string) *liar {
			cli, err := Dial([]string{etcd})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cli.Close() })
			return &liar{response: onResponse(methodGrant, func() *pb.LeaseGrantResponse { return &pb.LeaseGrantResponse{} }, func(_ *lieStream, r *pb.LeaseGrantResponse) []*pb.LeaseGrantResponse {
				if r.TTL <= 5 {
					time.AfterFunc(time.Second, func() {
						ctx, cancel := context.WithTimeout(context.Background(), time.Second)
						defer cancel()
						_, _ = cli.Revoke(ctx, clientv3.LeaseID(r.ID)) // it may be gone already
					})
				}
				return []*pb.LeaseGrantResponse{r}
			})}
		}},
		{"keepalive not passed on", chkLeaseKept, func(*testing.T, string) *liar {
			return &liar{response: onResponse(methodKeepAlive, func() *pb.LeaseKeepAliveResponse { return &pb.LeaseKeepAliveResponse{} }, func(*lieStream, *pb.LeaseKeepAliveResponse) []*pb.LeaseKeepAliveResponse {
				return nil
			})}
		}},
		{"revoke of another lease", chkRevoke, func(t *testing.T, etcd string) *liar {
			cli, err := Dial([]string{etcd})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cli.Close() })
			return &liar{request: onRequest(methodRevoke, func() *pb.LeaseRevokeRequest { return &pb.LeaseRevokeRequest{} }, func(r *pb.LeaseRevokeRequest) {
				resp, err := cli.Grant(context.Background(), 60)
				if err != nil {
					panic(err)
				}
				r.ID = int64(resp.ID)
			})}
		}},
		{"lock taken from its holder", check.LockFencing, func(*testing.T, string) *liar {
			return &liar{response: func(s *lieStream, body []byte) [][]byte {
				if s.method != methodRange {
					return [][]byte{body}
				}
				var req pb.RangeRequest
				if err := proto.Unmarshal(s.request, &req); err != nil {
					panic(err)
				}
				if req.MaxCreateRevision == 0 {
					return [][]byte{body}
				}
				var resp pb.RangeResponse
				if err := proto.Unmarshal(body, &resp); err != nil {
					panic(err)
				}
				resp.Kvs, resp.Count = nil, 0 // "nobody is before you"
				return [][]byte{encode(&resp)}
			}}
		}},
	}
	for _, c := range lies {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e := etcdtest.Start(t)
			cfg := config(startLiar(t, e.Endpoint, c.lie(t, e.Endpoint)), 3*time.Second)
			if c.want == chkLeaseKept {
				cfg.Duration = 14 * time.Second // longer than any TTL
			}
			results := judge(t, cfg)
			if c.want == "" {
				green(t, results)
				return
			}
			if r, judged := results[c.want]; !judged || r.OK {
				var failed []string
				for _, r := range results {
					if !r.OK {
						failed = append(failed, fmt.Sprintf("%s: %s", r.Name, r.Details[0]))
					}
				}
				t.Errorf("%s was not reported; reported were:\n%s", c.want, strings.Join(failed, "\n"))
			}
		})
	}
}
