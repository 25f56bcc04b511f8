// Package check decides, from what the clients of a run recorded, whether the
// store under test kept etcd's promises. It is pure: it knows no client, no
// clock and no network, so each promise has a unit test with a broken history.
//
// The central notion is the line: the union of all events that any watcher
// saw, in revision order. Writes, reads, watches, leases and locks are all
// compared with it, so that a disagreement between any two of them shows.
package check

import "time"

// None is the index of no kv.
const None = ^uint32(0)

// Range is a key interval [Start, End) with etcd's conventions: an empty End
// means the single key Start, "\x00" means everything from Start on.
type Range struct {
	Start string
	End   string
}

// Contains tells whether key lies in the range.
func (r Range) Contains(key string) bool {
	switch r.End {
	case "":
		return key == r.Start
	case "\x00":
		return key >= r.Start
	default:
		return key >= r.Start && key < r.End
	}
}

// Prefix is the range of all keys that begin with p. It follows etcd: a prefix
// of nothing but 0xff bytes has no end.
func Prefix(p string) Range {
	end := []byte(p)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return Range{Start: p, End: string(end[:i+1])}
		}
	}
	return Range{Start: p, End: "\x00"}
}

// KV is one state of a key as a client saw it; equal values are interned to
// one index. A tombstone (a DELETE event) has only Key and Mod.
type KV struct {
	Key     uint32
	Tomb    bool
	Digest  uint64
	Create  int64
	Mod     int64
	Version int64
	Lease   int64
}

// Delivery is one event as one watcher received it.
type Delivery struct {
	KV       uint32
	Prev     uint32 // None when the event carried no prev_kv
	Response uint32 // number of the response on this watch that carried it
	// PrevLost says that a compaction at or above the event's revision had
	// been asked for when it arrived: etcd then leaves prev_kv out.
	PrevLost bool
}

// Progress is a progress notification, received after the first After
// deliveries of a watch.
type Progress struct {
	After int
	Rev   int64
}

// WatchLog is everything that one watch delivered. Every event in Range with a
// revision in [Start, Until] has to be in it.
type WatchLog struct {
	Name       string
	Range      Range
	PrevKV     bool
	Start      int64
	Until      int64
	Deliveries []Delivery
	Progress   []Progress
}

// Outcome says what a client knows about a write of its own.
type Outcome uint8

const (
	// Acked writes took effect, at revision Rev or in (RevLow, Rev].
	Acked Outcome = iota
	// Pending writes had an ambiguous answer: they may take effect once, at
	// any time after Floor, or never.
	Pending
	// Voided writes never take effect: their guard failed or an error said so.
	Voided
)

// Write is one write to one key.
type Write struct {
	Actor   string
	Key     uint32
	Delete  bool
	Outcome Outcome
	Digest  uint64 // of the value; values are unique in a run
	// Floor is the highest revision acknowledged to anybody before the write
	// was sent; its own revision has to be above.
	Floor int64
	// RevLow, when not 0, makes Rev an upper bound: the revision is in
	// (RevLow, Rev]. Deletes of ranges and writes found by a read are so.
	RevLow  int64
	Rev     int64
	Create  int64 // expected; 0 is not checked, -1 means Rev itself
	Version int64 // expected; 0 is not checked
	Lease   int64
	// Token, when not 0, is the fencing token under which it was written.
	Token int64
}

// Sort is the order a limited read asked for.
type Sort uint8

const (
	// ByKey is the default order.
	ByKey Sort = iota
	// ByModDesc is the newest modification first.
	ByModDesc
	// ByCreateAsc is the oldest key first.
	ByCreateAsc
)

// Read is a read of a range at a revision.
type Read struct {
	Kind   string
	Range  Range
	Rev    int64 // revision at which it was read
	Header int64 // revision of the answer's header
	// Floor is the highest revision acknowledged to anybody before a
	// linearizable read was sent; 0 for serializable ones.
	Floor     int64
	KVs       []uint32
	Limit     int // 0: all
	Sort      Sort
	NoValues  bool // keys only: digests are not compared
	CountOnly bool
	Count     int64
	More      bool
}

// Renewal is an answered grant or keepalive. The server renewed the lease at
// some time in [Lower, Answered].
type Renewal struct {
	Lower    time.Duration
	Answered time.Duration
}

// LeaseEnd is how a lease is meant to end.
type LeaseEnd uint8

const (
	// Kept leases are kept alive; losing one is legal only when no answer came
	// for a whole TTL.
	Kept LeaseEnd = iota
	// Dropped leases are left to expire.
	Dropped
	// Revoked leases were revoked, which was acknowledged.
	Revoked
	// Abandoned leases ended in an ambiguous way; only an early end is wrong.
	Abandoned
)

// LeaseLog is the life of one lease. Times count from the start of the run.
type LeaseLog struct {
	Name     string
	ID       int64
	TTL      time.Duration
	Stream   bool // renewed over a stream, so Lower is an estimate
	Keys     []uint32
	Renewals []Renewal
	End      LeaseEnd
	// RevokeSent is when a revoke was first sent; 0 when none was.
	RevokeSent time.Duration
}

// Outage is a time in which the endpoint did not answer.
type Outage struct {
	From, To time.Duration
}

// History is everything that the clients of one run recorded.
type History struct {
	Keys     []string
	KVs      []KV
	Scopes   []Range  // the ranges whose base state is known
	BaseRev  int64    // revision of Base
	Base     []uint32 // kvs alive in the scopes at BaseRev
	FinalRev int64    // the line is complete up to here
	Final    []uint32 // kvs alive in the scopes at FinalRev, as listed

	// Unfinished runs have no final listing.
	Unfinished bool

	Watches []WatchLog
	Writes  []Write
	Reads   []Read
	Leases  []LeaseLog
	Outages []Outage
	End     time.Duration

	// Owned keys are written by nobody but recorded writes.
	Owned map[uint32]bool
	// LeaseKeys may also be deleted by the end of their lease.
	LeaseKeys map[uint32]bool
	// Gone is when a lease key's deletion was first seen.
	Gone map[uint32]time.Duration
	// OneRevision asks that a revoke deletes all keys in one revision, as
	// one etcd does.
	OneRevision bool
	// FaultMax is how long a fault lasts at most that clients may not see.
	FaultMax time.Duration
	// LockDirs are directories in which only the oldest key's holder may
	// write a second time: locks and elections.
	LockDirs []Range
}

func (h *History) inScope(key string) bool {
	for _, s := range h.Scopes {
		if s.Contains(key) {
			return true
		}
	}
	return false
}
