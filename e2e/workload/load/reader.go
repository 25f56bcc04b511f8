package load

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/sharded-etcd/sharded-etcd/e2e/workload/check"
)

// reader makes all kinds of reads; package check compares each with the line.
type reader struct {
	*env
	cli  *clientv3.Client
	rnd  *rand.Rand
	keys func() string // a random key of the run
}

const (
	readerGap   = 50 * time.Millisecond
	pageSize    = 17
	historyBack = 500
	// maxReadKVs bounds what reads keep in memory, over the whole run.
	maxReadKVs = 4_000_000
)

func (r *reader) loop() {
	for n := 0; r.pause(readerGap/2 + time.Duration(r.rnd.Int64N(int64(readerGap)))); n++ {
		if n%20 == 19 {
			r.list()
			continue
		}
		switch r.rnd.IntN(8) {
		case 0:
			r.old()
		case 1:
			r.serializable()
		case 2:
			r.severalRanges()
		case 3:
			r.sorted()
		case 4:
			r.future()
		default:
			if _, _, err := r.get(r.cli, r.keys()); err != nil {
				r.failed("get", err)
			}
		}
	}
}

func (r *reader) prefix() string { return r.cfg.Prefixes[r.rnd.IntN(len(r.cfg.Prefixes))] }

func (r *reader) read(kind, start, end string, rev int64, floor int64, set func(*check.Read), opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	ctx, cancel := r.op()
	defer cancel()
	if end != "" {
		opts = append(opts, clientv3.WithRange(end))
	}
	if rev > 0 {
		opts = append(opts, clientv3.WithRev(rev))
	}
	resp, err := r.cli.Get(ctx, start, opts...)
	if err != nil {
		return nil, err
	}
	at := rev
	if at == 0 {
		at = resp.Header.Revision
	}
	r.addRead(kind, check.Range{Start: start, End: end}, resp, at, floor, set)
	return resp, nil
}

// old reads a key, or a directory, as it was some hundred revisions ago.
func (r *reader) old() {
	rev := max(r.floor.Load()-r.rnd.Int64N(historyBack), r.baseRev)
	key, end := r.keys(), ""
	if r.rnd.IntN(4) == 0 && r.stats.readKVs.Load() < maxReadKVs {
		key = r.prefix()
		end = clientv3.GetPrefixRangeEnd(key)
	}
	_, err := r.read("get at an old revision", key, end, rev, r.floor.Load(), nil)
	r.allowCompacted("get at an old revision", rev, err)
}

// allowCompacted judges an error of a read at an old revision.
func (r *reader) allowCompacted(op string, rev int64, err error) {
	switch {
	case err == nil:
	case errors.Is(err, rpctypes.ErrCompacted):
		asked := r.compact.Load()
		r.led.That(rev < asked, chkCompact, "%s %d: compacted, but the highest compaction asked for is %d", op, rev, asked)
	default:
		r.failed(op, err)
	}
}

func (r *reader) serializable() {
	if _, err := r.read("serializable get", r.keys(), "", 0, 0, nil, clientv3.WithSerializable()); err != nil {
		r.failed("serializable get", err)
	}
}

// severalRanges reads keys of several directories at one revision.
func (r *reader) severalRanges() {
	ctx, cancel := r.op()
	defer cancel()
	floor := r.floor.Load()
	keys := []string{r.keys(), r.keys(), r.keys()}
	dir := r.prefix()
	end := clientv3.GetPrefixRangeEnd(dir)
	resp, err := r.cli.Txn(ctx).Then(clientv3.OpGet(keys[0]), clientv3.OpGet(keys[1]), clientv3.OpGet(keys[2]),
		clientv3.OpGet(dir, clientv3.WithRange(end), clientv3.WithCountOnly())).Commit()
	if err != nil {
		r.failed("read-only txn", err)
		return
	}
	rev := resp.Header.Revision
	for i, part := range resp.Responses {
		got := (*clientv3.GetResponse)(part.GetResponseRange())
		got.Header = resp.Header // parts may leave it out
		if i < len(keys) {
			r.addRead("get in a txn", check.Range{Start: keys[i]}, got, rev, floor, nil)
		} else {
			r.addRead("count in a txn", check.Range{Start: dir, End: end}, got, rev, floor, func(x *check.Read) { x.CountOnly = true })
		}
	}
}

// sorted reads with limits, orders and filters.
func (r *reader) sorted() {
	dir := r.prefix()
	end := clientv3.GetPrefixRangeEnd(dir)
	floor := r.floor.Load()
	limit := 1 + r.rnd.IntN(5)
	var err error
	switch r.rnd.IntN(4) {
	case 0:
		_, err = r.read("newest keys", dir, end, 0, floor, func(x *check.Read) { x.Limit, x.Sort = limit, check.ByModDesc },
			clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend), clientv3.WithLimit(int64(limit)))
	case 1:
		_, err = r.read("oldest keys", dir, end, 0, floor, func(x *check.Read) { x.Limit, x.Sort = limit, check.ByCreateAsc },
			clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend), clientv3.WithLimit(int64(limit)))
	case 2:
		_, err = r.read("count", dir, end, 0, floor, func(x *check.Read) { x.CountOnly = true }, clientv3.WithCountOnly())
	default:
		_, err = r.read("first keys", dir, end, 0, floor, func(x *check.Read) { x.Limit = limit }, clientv3.WithLimit(int64(limit)))
	}
	if err != nil {
		r.failed("sorted get", err)
	}
}

func (r *reader) future() {
	ctx, cancel := r.op()
	defer cancel()
	_, err := r.cli.Get(ctx, r.keys(), clientv3.WithRev(r.floor.Load()+1_000_000))
	switch {
	case errors.Is(err, rpctypes.ErrFutureRev):
		r.led.Pass(chkFuture, 1)
	case err != nil && classify(err) == ambiguous:
		r.failed("get at a future revision", err)
	default:
		r.led.Fail(chkFuture, "get at a revision 1,000,000 ahead: %v instead of %v", err, rpctypes.ErrFutureRev)
	}
}

// list reads a whole prefix, at once or in pages as kube-apiserver does: every
// page at the first one's revision, from the last key on.
func (r *reader) list() {
	prefix := r.prefix()
	end := clientv3.GetPrefixRangeEnd(prefix)
	if r.stats.readKVs.Load() > maxReadKVs {
		return
	}
	r.stats.lists.Add(1)
	floor := r.floor.Load()
	if r.rnd.IntN(2) == 0 {
		if _, err := r.read("list", prefix, end, 0, floor, nil); err != nil {
			r.failed("list", err)
		}
		return
	}
	start, rev, seen := prefix, int64(0), 0
	total := int64(-1)
	for {
		resp, err := r.read("page", start, end, rev, floor, func(x *check.Read) { x.Limit = pageSize }, clientv3.WithLimit(pageSize))
		if err != nil {
			r.allowCompacted("page", rev, err)
			return
		}
		if rev == 0 {
			rev, total = resp.Header.Revision, resp.Count
		}
		r.led.That(resp.Count == total-int64(seen), chkPages, "page of %q at %d from %q: count %d, but %d were left of %d",
			prefix, rev, start, resp.Count, total-int64(seen), total)
		seen += len(resp.Kvs)
		if !resp.More || len(resp.Kvs) == 0 {
			r.led.That(int64(seen) == total, chkPages, "list of %q at %d: %d keys in pages, but the first page counted %d", prefix, rev, seen, total)
			return
		}
		start = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

// compactor compacts at intervals and checks both sides of the border.
type compactor struct {
	*env
	clis []*clientv3.Client // one for each endpoint
}

func (c *compactor) loop() {
	for c.pause(c.cfg.Compact) {
		rev := c.floor.Load() - c.cfg.CompactLag
		if rev <= c.compact.Load() || rev <= c.baseRev {
			continue
		}
		c.compact.Store(rev)
		ctx, cancel := c.op()
		_, err := c.clis[0].Compact(ctx, rev)
		cancel()
		if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
			c.failed("compact", err)
			continue
		}
		c.stats.compactions.Add(1)
		for i, cli := range c.clis {
			c.border(cli, c.cfg.Endpoints[i], rev)
		}
	}
}

func (c *compactor) border(cli *clientv3.Client, endpoint string, rev int64) {
	for _, prefix := range c.cfg.Prefixes {
		for _, at := range []int64{rev - 1, rev, rev + 1} {
			ctx, cancel := context.WithTimeout(context.Background(), c.cfg.OpTimeout)
			_, err := cli.Get(ctx, prefix, clientv3.WithRev(at), clientv3.WithPrefix(), clientv3.WithCountOnly())
			cancel()
			switch {
			case err != nil && transient(err):
				c.failed("get at a compaction", err)
			case at < rev:
				c.led.That(errors.Is(err, rpctypes.ErrCompacted), chkCompact, "%s: read of %q at %d after compaction at %d: %v instead of %v",
					endpoint, prefix, at, rev, err, rpctypes.ErrCompacted)
			default:
				c.led.That(err == nil, chkCompact, "%s: read of %q at %d after compaction at %d: %v", endpoint, prefix, at, rev, err)
			}
		}
	}
}
