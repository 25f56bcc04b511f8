// Package bulk copies, compares, fills and verifies whole prefixes through
// unmodified etcd clients.
package bulk

import (
	"context"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	page        = 500
	callTimeout = 30 * time.Second
	maxShown    = 20
)

// walk reads all keys of a prefix at one revision, in key order, page by page.
func walk(ctx context.Context, cli *clientv3.Client, prefix string, f func(*mvccpb.KeyValue) error) (int64, error) {
	end := clientv3.GetPrefixRangeEnd(prefix)
	start, rev := prefix, int64(0)
	if prefix == "" {
		start, end = "\x00", "\x00"
	}
	for {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		opts := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(page)}
		if rev > 0 {
			opts = append(opts, clientv3.WithRev(rev))
		}
		resp, err := cli.Get(call, start, opts...)
		cancel()
		if err != nil {
			return rev, fmt.Errorf("cannot list %q from %q at revision %d: %w", prefix, start, rev, err)
		}
		if rev == 0 {
			rev = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			if err := f(kv); err != nil {
				return rev, err
			}
		}
		if !resp.More || len(resp.Kvs) == 0 {
			return rev, nil
		}
		start = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

// Copied counts what Copy did.
type Copied struct {
	Keys, Bytes int64
}

// Copy copies all keys and values of a prefix, without leases. Each key is put
// on its own; parallel puts keep the order of nothing.
func Copy(ctx context.Context, from, to *clientv3.Client, prefix string, parallel int) (Copied, error) {
	var done Copied
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan *mvccpb.KeyValue, parallel)
	finished := make(chan struct{})
	for range parallel {
		go func() {
			defer func() { finished <- struct{}{} }()
			for kv := range work {
				if ctx.Err() != nil {
					continue
				}
				call, stop := context.WithTimeout(ctx, callTimeout)
				_, err := to.Put(call, string(kv.Key), string(kv.Value))
				stop()
				if err != nil {
					cancel(fmt.Errorf("cannot put %q: %w", kv.Key, err))
				}
			}
		}()
	}
	_, err := walk(ctx, from, prefix, func(kv *mvccpb.KeyValue) error {
		done.Keys++
		done.Bytes += int64(len(kv.Key) + len(kv.Value))
		select {
		case work <- kv:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	close(work)
	for range parallel {
		<-finished
	}
	if cause := context.Cause(ctx); cause != nil {
		return done, cause
	}
	return done, err
}

// Difference is the outcome of Diff.
type Difference struct {
	Equal, OnlyA, OnlyB, Values int64
	Bytes                       int64
	RevisionA, RevisionB        int64
	Details                     []string // the first ones
}

// Same tells whether both sides hold the same keys and values.
func (d *Difference) Same() bool { return d.OnlyA+d.OnlyB+d.Values == 0 }

func (d *Difference) note(format string, args ...any) {
	if len(d.Details) < maxShown {
		d.Details = append(d.Details, fmt.Sprintf(format, args...))
	}
}

// Diff compares a prefix on two endpoints, key by key and value by value.
func Diff(ctx context.Context, a, b *clientv3.Client, prefix string) (*Difference, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	left, right := stream(ctx, a, prefix), stream(ctx, b, prefix)
	d := &Difference{}
	x, y := <-left, <-right
	for x.err == nil && y.err == nil && (x.kv != nil || y.kv != nil) {
		switch {
		case y.kv == nil || (x.kv != nil && string(x.kv.Key) < string(y.kv.Key)):
			d.OnlyA++
			d.note("only on A: %q", x.kv.Key)
			x = <-left
		case x.kv == nil || string(x.kv.Key) > string(y.kv.Key):
			d.OnlyB++
			d.note("only on B: %q", y.kv.Key)
			y = <-right
		default:
			if string(x.kv.Value) == string(y.kv.Value) {
				d.Equal++
				d.Bytes += int64(len(x.kv.Key) + len(x.kv.Value))
			} else {
				d.Values++
				d.note("%q: %d bytes on A, %d bytes on B, not equal", x.kv.Key, len(x.kv.Value), len(y.kv.Value))
			}
			x, y = <-left, <-right
		}
	}
	for _, err := range []error{x.err, y.err} {
		if err != nil {
			return d, err
		}
	}
	d.RevisionA, d.RevisionB = x.rev, y.rev
	return d, nil
}

// item is a key, or the end of the stream with the revision or an error.
type item struct {
	kv  *mvccpb.KeyValue
	rev int64
	err error
}

func stream(ctx context.Context, cli *clientv3.Client, prefix string) <-chan item {
	out := make(chan item, page)
	go func() {
		defer close(out)
		rev, err := walk(ctx, cli, prefix, func(kv *mvccpb.KeyValue) error {
			select {
			case out <- item{kv: kv}:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		select {
		case out <- item{rev: rev, err: err}:
		case <-ctx.Done():
		}
	}()
	return out
}
