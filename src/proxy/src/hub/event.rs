//! What the hub hands around: events as clients know them, one revision at a time.

use std::sync::Arc;

use sharded_etcd_core::keyspace::ShardIx;
use sharded_etcd_etcd_api::messages as pb;
use tokio::sync::OnceCell;

/// Memory that an event costs beside its bytes, roughly.
const OVERHEAD_BYTES: usize = 256;

/// A previous key-value pair as clients know it, once it is known; there may be none.
pub(crate) type Prev = OnceCell<Option<pb::KeyValue>>;

/// One event as clients see it. Its previous key-value pair is looked up once, for all watchers that want it.
#[derive(Debug)]
pub(crate) struct HubEvent {
    /// Type and key-value pair, with revisions of the line.
    pub(crate) event: pb::Event,
    /// The shard that wrote it.
    pub(crate) shard: ShardIx,
    /// The shard's local revision of it.
    pub(crate) local: i64,
    /// Flip that brought the key's range to the shard, 0 for none (see `RangeEntry::imported_at`).
    pub(crate) imported_at: i64,
    /// The key-value pair before this revision, once known.
    pub(crate) prev: Prev,
}

impl HubEvent {
    /// The key.
    pub(crate) fn key(&self) -> &[u8] {
        self.event.kv.as_ref().map_or(&[], |kv| &kv.key)
    }

    /// Number of the line.
    pub(crate) fn revision(&self) -> i64 {
        self.event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
    }

    /// True for a deletion.
    pub(crate) fn is_delete(&self) -> bool {
        self.event.r#type == i32::from(pb::EventType::Delete)
    }

    /// True if it can be sent to a watcher that wants previous key-value pairs. (etcd: an event that creates its key
    /// has none; the others have what was there one revision before.)
    pub(crate) fn has_prev(&self) -> bool {
        self.prev.initialized()
    }

    /// The message to send.
    pub(crate) fn message(&self, with_prev: bool) -> pb::Event {
        let mut event = self.event.clone();
        if with_prev && !sharded_etcd_core::sabotage::Sabotage::ForgetPrev.is_on() {
            event.prev_kv = self.prev.get().cloned().flatten();
        }
        event
    }

    /// Memory that it keeps, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let of = |kv: &pb::KeyValue| kv.key.len() + kv.value.len();
        let prev = self.prev.get().and_then(Option::as_ref).map_or(0, of);
        OVERHEAD_BYTES + self.event.kv.as_ref().map_or(0, of) + prev
    }
}

/// All events of one revision that clients may see; at least one.
#[derive(Debug)]
pub(crate) struct Revision {
    /// Number of the line.
    pub(crate) global: i64,
    /// Local revision of the shard that wrote it.
    pub(crate) local: i64,
    /// In the shard's order. One key may be in several of them: a transaction may put and delete it.
    pub(crate) events: Vec<Arc<HubEvent>>,
    /// Memory that they keep, in bytes, when they came.
    pub(crate) bytes: usize,
}

impl Revision {
    /// A revision of these events.
    pub(crate) fn new(global: i64, local: i64, events: Vec<Arc<HubEvent>>) -> Self {
        let bytes = events.iter().map(|e| e.bytes()).sum();
        Self { global, local, events, bytes }
    }
}

/// Identifies one watcher of this hub, for ever.
pub(crate) type WatcherId = u64;

/// Identifies one client stream of this hub, for ever.
pub(crate) type StreamId = u64;

/// What the hub sends to a client stream, in the order in which the client must get it.
#[derive(Debug)]
pub(crate) enum Delivery {
    /// Whole revisions.
    Events {
        /// For whom.
        watcher: WatcherId,
        /// The watcher has now been sent everything up to this revision.
        revision: i64,
        /// Ascending.
        events: Vec<Arc<HubEvent>>,
        /// For the header: where the watcher is not at the end yet, that is, as etcd's `syncWatchers` has it; else
        /// `revision`.
        header: i64,
        /// Events up to this revision come without the previous key-value pair, as that is compacted: at the very
        /// revision of a compaction etcd has an event, but not what was before it (its `sendLoop` reads one revision
        /// earlier and leaves out what it does not get).
        no_prev_upto: i64,
        /// What it takes of the stream's room, to be given back.
        bytes: usize,
    },
    /// Everything up to this revision has been sent to this watcher.
    Progress {
        /// For whom.
        watcher: WatcherId,
        /// Up to here.
        revision: i64,
    },
    /// Everything up to this revision has been sent to all watchers of the stream.
    ProgressOfAll {
        /// The youngest of them: it says nothing of watchers that began later, and must not reach the client after the
        /// answer that one of these was created.
        youngest: WatcherId,
        /// Up to here.
        revision: i64,
    },
    /// The hub has ended the watcher.
    Ended {
        /// Which.
        watcher: WatcherId,
        /// The first revision from which it could be started again, if history that it needs is compacted; else 0.
        compact_revision: i64,
        /// Why, if not for compaction.
        reason: String,
    },
}
