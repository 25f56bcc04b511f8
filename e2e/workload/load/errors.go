package load

import (
	"context"
	"errors"
	"regexp"
	"sort"
	"sync"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// verdict says what an error tells about the request.
type verdict uint8

const (
	// ambiguous: the request may or may not have taken effect.
	ambiguous verdict = iota
	// refused: the request had no effect, and never will.
	refused
)

// codeOf finds the gRPC code in what clientv3 returns.
func codeOf(err error) codes.Code {
	var e rpctypes.EtcdError
	switch {
	case errors.As(err, &e):
		return e.Code()
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	}
	return status.Code(err)
}

// classify tells whether an error leaves the outcome open. Everything that a
// broken connection or a late answer can look like is ambiguous; Unavailable
// is so too, as its text does not bind the server.
func classify(err error) verdict {
	switch codeOf(err) {
	case codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition, codes.OutOfRange,
		codes.ResourceExhausted, codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented, codes.AlreadyExists:
		return refused
	}
	return ambiguous
}

// transient tells whether an error may come from a server that is away for a
// while, and so is forgiven when outages are expected.
func transient(err error) bool {
	switch codeOf(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return true
	}
	return errors.Is(err, rpctypes.ErrTooManyRequests)
}

// errorCounts counts error texts by what was tried. The number of different
// texts is bounded.
type errorCounts struct {
	mu sync.Mutex
	n  map[string]int64
}

const maxErrorTexts = 200

var quoted = regexp.MustCompile(`"[^"]*"`)

func (e *errorCounts) add(op string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.n == nil {
		e.n = map[string]int64{}
	}
	// Texts that differ in the names of keys only are one.
	text := op + ": " + codeOf(err).String() + ": " + quoted.ReplaceAllString(err.Error(), `"…"`)
	if _, known := e.n[text]; !known && len(e.n) >= maxErrorTexts {
		text = "(other)"
	}
	e.n[text]++
}

// ErrorCount is how often one error text was seen.
type ErrorCount struct {
	Text  string `json:"text"`
	Count int64  `json:"count"`
}

func (e *errorCounts) list() []ErrorCount {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make([]ErrorCount, 0, len(e.n))
	for text, n := range e.n {
		out = append(out, ErrorCount{text, n})
	}
	sort.Slice(out, func(i, j int) bool {
		return out[i].Count > out[j].Count || (out[i].Count == out[j].Count && out[i].Text < out[j].Text)
	})
	return out
}
