package check

import (
	"hash/fnv"
	"sync"
	"time"
)

// Recorder builds a history from many goroutines.
type Recorder struct {
	mu    sync.Mutex
	h     History
	keys  map[string]uint32
	kvs   map[KV]uint32
	since time.Time
	last  []int64 // per watch: highest revision delivered or passed
	ends  []int64 // per watch: highest revision of an event delivered
}

// NewRecorder returns a recorder whose times count from now.
func NewRecorder() *Recorder {
	return &Recorder{
		keys:  map[string]uint32{},
		kvs:   map[KV]uint32{},
		since: time.Now(),
		h:     History{Owned: map[uint32]bool{}, LeaseKeys: map[uint32]bool{}, Gone: map[uint32]time.Duration{}},
	}
}

// Digest identifies a value.
func Digest(value []byte) uint64 {
	f := fnv.New64a()
	_, _ = f.Write(value) // never fails
	return f.Sum64()
}

// Now is the time since the start of the run.
func (r *Recorder) Now() time.Duration { return time.Since(r.since) }

// Key returns the number of a key.
func (r *Recorder) Key(name string) uint32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.key(name)
}

func (r *Recorder) key(name string) uint32 {
	id, ok := r.keys[name]
	if !ok {
		id = uint32(len(r.h.Keys))
		r.h.Keys = append(r.h.Keys, name)
		r.keys[name] = id
	}
	return id
}

// Own says that nobody but recorded writes changes a key; with lease set, the
// end of its lease may delete it.
func (r *Recorder) Own(name string, lease bool) uint32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := r.key(name)
	r.h.Owned[id] = true
	if lease {
		r.h.LeaseKeys[id] = true
	}
	return id
}

// Intern returns the index of a kv.
func (r *Recorder) Intern(kv KV) uint32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.intern(kv)
}

func (r *Recorder) intern(kv KV) uint32 {
	id, ok := r.kvs[kv]
	if !ok {
		id = uint32(len(r.h.KVs))
		r.h.KVs = append(r.h.KVs, kv)
		r.kvs[kv] = id
	}
	return id
}

// AddWatch opens the log of a watch and returns its number.
func (r *Recorder) AddWatch(w WatchLog) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Watches = append(r.h.Watches, w)
	r.last = append(r.last, w.Start-1)
	r.ends = append(r.ends, 0)
	return len(r.h.Watches) - 1
}

// Event is an event as a client hands it over: Prev is nil without prev_kv.
type Event struct {
	KV       KV
	Prev     *KV
	PrevLost bool
}

// Deliver records one response of a watch.
func (r *Recorder) Deliver(watch int, response uint32, events []Event) {
	now := r.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	w := &r.h.Watches[watch]
	for _, e := range events {
		d := Delivery{KV: r.intern(e.KV), Prev: None, Response: response, PrevLost: e.PrevLost}
		if e.Prev != nil {
			d.Prev = r.intern(*e.Prev)
		}
		if e.KV.Tomb && r.h.LeaseKeys[e.KV.Key] {
			if _, known := r.h.Gone[e.KV.Key]; !known {
				r.h.Gone[e.KV.Key] = now
			}
		}
		w.Deliveries = append(w.Deliveries, d)
		r.last[watch] = max(r.last[watch], e.KV.Mod)
		r.ends[watch] = max(r.ends[watch], e.KV.Mod)
	}
}

// Progress records a progress notification.
func (r *Recorder) Progress(watch int, rev int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := &r.h.Watches[watch]
	w.Progress = append(w.Progress, Progress{After: len(w.Deliveries), Rev: rev})
	r.last[watch] = max(r.last[watch], rev)
}

// Reached is the highest revision a watch has delivered or passed.
func (r *Recorder) Reached(watch int) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last[watch]
}

// Delivered is the highest revision of an event a watch has delivered.
func (r *Recorder) Delivered(watch int) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ends[watch]
}

// Complete says up to which revision a watch has to be complete.
func (r *Recorder) Complete(watch int, until int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Watches[watch].Until = until
}

// Gone tells when the deletion of a lease key was first seen.
func (r *Recorder) Gone(key uint32) (time.Duration, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, ok := r.h.Gone[key]
	return at, ok
}

// AddWrite records a write.
func (r *Recorder) AddWrite(w Write) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Writes = append(r.h.Writes, w)
}

// AddRead records a read.
func (r *Recorder) AddRead(read Read) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Reads = append(r.h.Reads, read)
}

// AddLease records the life of a lease.
func (r *Recorder) AddLease(l LeaseLog) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Leases = append(r.h.Leases, l)
}

// Update changes the history under the recorder's lock.
func (r *Recorder) Update(f func(h *History)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.h)
}

// History returns what was recorded. Nothing may be recorded afterwards.
func (r *Recorder) History() *History {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.End = r.Now()
	return &r.h
}
