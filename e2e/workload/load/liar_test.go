package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// liar is a proxy before a real etcd that passes every message on, unless a
// test makes it tell a lie. It shows that the workload catches what a broken
// endpoint does, over the whole way from the wire to the verdict.
type liar struct {
	target *grpc.ClientConn
	// request may change a request; returning nil swallows it and the answer
	// comes from response alone.
	request func(method string, body []byte) []byte
	// response turns an answer into the messages to send in its place.
	response func(s *lieStream, body []byte) [][]byte
}

// lieStream is what a liar knows of one call.
type lieStream struct {
	method  string
	request []byte // the first message
	held    []byte // for lies that hold a message back
	count   int
}

// raw passes messages as bytes.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error) {
	b, ok := v.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("cannot marshal %T", v)
	}
	return *b, nil
}

func (raw) Unmarshal(data []byte, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("cannot unmarshal into %T", v)
	}
	*b = append([]byte(nil), data...)
	return nil
}

func (raw) Name() string { return "proto" }

// startLiar serves on a free port until the test ends.
func startLiar(t *testing.T, etcd string, l *liar) string {
	t.Helper()
	conn, err := grpc.NewClient(etcd, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{}), grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	l.target = conn
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.UnknownServiceHandler(l.handle))
	var served sync.WaitGroup
	served.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() {
		server.Stop()
		served.Wait()
		_ = conn.Close()
	})
	return listener.Addr().String()
}

func (l *liar) handle(_ any, down grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(down)
	in, _ := metadata.FromIncomingContext(down.Context())
	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(down.Context(), in.Copy()))
	defer cancel()
	up, err := l.target.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		return err
	}
	s := &lieStream{method: method}
	first := make(chan struct{})
	go func() {
		for once := true; ; once = false {
			var body []byte
			err := down.RecvMsg(&body)
			if once {
				s.request = body
				close(first)
			}
			if errors.Is(err, io.EOF) {
				_ = up.CloseSend()
				return
			}
			if err != nil {
				cancel()
				return
			}
			if l.request != nil {
				body = l.request(method, body)
			}
			if err := up.SendMsg(&body); err != nil {
				return
			}
		}
	}()
	<-first
	for {
		var body []byte
		if err := up.RecvMsg(&body); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			if status.Code(err) == codes.Unknown {
				return status.Error(codes.Unavailable, err.Error())
			}
			return err
		}
		out := [][]byte{body}
		if l.response != nil {
			out = l.response(s, body)
		}
		for _, m := range out {
			if err := down.SendMsg(&m); err != nil {
				return err
			}
		}
	}
}

const (
	methodRange     = "/etcdserverpb.KV/Range"
	methodPut       = "/etcdserverpb.KV/Put"
	methodTxn       = "/etcdserverpb.KV/Txn"
	methodDelete    = "/etcdserverpb.KV/DeleteRange"
	methodWatch     = "/etcdserverpb.Watch/Watch"
	methodGrant     = "/etcdserverpb.Lease/LeaseGrant"
	methodKeepAlive = "/etcdserverpb.Lease/LeaseKeepAlive"
	methodRevoke    = "/etcdserverpb.Lease/LeaseRevoke"
)

// onRequest changes the requests of one method.
func onRequest[M proto.Message](method string, empty func() M, f func(M)) func(string, []byte) []byte {
	return func(m string, body []byte) []byte {
		if m != method {
			return body
		}
		msg := empty()
		if err := proto.Unmarshal(body, msg); err != nil {
			panic(err)
		}
		f(msg)
		return encode(msg)
	}
}

// onResponse changes the answers of one method.
func onResponse[M proto.Message](method string, empty func() M, f func(*lieStream, M) []M) func(*lieStream, []byte) [][]byte {
	return func(s *lieStream, body []byte) [][]byte {
		if s.method != method {
			return [][]byte{body}
		}
		msg := empty()
		if err := proto.Unmarshal(body, msg); err != nil {
			panic(err)
		}
		var out [][]byte
		for _, m := range f(s, msg) {
			out = append(out, encode(m))
		}
		return out
	}
}

func encode(m proto.Message) []byte {
	body, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return body
}

func newWatchResponse() *pb.WatchResponse { return &pb.WatchResponse{} }

// onEvents changes the responses of watches that carry events.
func onEvents(f func(*lieStream, *pb.WatchResponse) []*pb.WatchResponse) func(*lieStream, []byte) [][]byte {
	return onResponse(methodWatch, newWatchResponse, func(s *lieStream, r *pb.WatchResponse) []*pb.WatchResponse {
		if len(r.Events) == 0 {
			return []*pb.WatchResponse{r}
		}
		s.count++
		return f(s, r)
	})
}
