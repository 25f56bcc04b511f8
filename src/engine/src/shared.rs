//! What the committer publishes and everybody else reads.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::Result;
use tokio::sync::Notify;
use tonic::Code;

use crate::{
    hash::CompactionHashes,
    history::Pins,
    lease::LeaseClock,
    metrics::Metrics,
    mvcc::{EventLog, Store},
    watch::Registry,
};

/// etcd has a term of at least 1 once it has a leader; this engine is always its own.
pub(crate) const RAFT_TERM: u64 = 2;

/// State that is durable, and who waits for more of it.
#[derive(Debug)]
pub struct Shared {
    pub(crate) cluster_id: u64,
    pub(crate) member_id: u64,
    /// The newest durable state.
    pub(crate) published: ArcSwap<Store>,
    /// Its history, for watchers.
    pub(crate) log: RwLock<EventLog>,
    pub(crate) watchers: Arc<Registry>,
    pub(crate) leases: Mutex<LeaseClock>,
    /// Fires after leases were revoked.
    pub(crate) revoked: Notify,
    /// Why nothing can be written any more.
    pub(crate) failure: RwLock<Option<Arc<str>>>,
    /// Whether the committer has something to look at although nobody writes.
    pub(crate) wants_tick: AtomicBool,
    /// Who needs history that compaction would give back.
    pub(crate) pins: Pins,
    pub(crate) hashes: CompactionHashes,
    pub(crate) metrics: Metrics,
    /// Fires when the committer has something to look at, and when a lease is to run: see `engine::expire`.
    pub(crate) wake: Notify,
    /// Whether a value was found damaged since the start.
    damaged: AtomicBool,
    closed: AtomicBool,
}

impl Shared {
    pub(crate) fn new(cluster_id: u64, member_id: u64, store: Store, log: EventLog) -> Self {
        Self {
            cluster_id,
            member_id,
            watchers: Arc::new(Registry::new(store.revision())),
            published: ArcSwap::from_pointee(store),
            log: RwLock::new(log),
            leases: Mutex::default(),
            revoked: Notify::new(),
            failure: RwLock::default(),
            wants_tick: AtomicBool::new(false),
            pins: Pins::default(),
            hashes: CompactionHashes::default(),
            metrics: Metrics::default(),
            wake: Notify::new(),
            damaged: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        }
    }

    /// Passes a result on, and remembers if a value was damaged: the alarm CORRUPT goes up then.
    pub(crate) fn read<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && error.code == Code::DataLoss
        {
            self.found_damage();
        }
        result
    }

    /// A value is damaged.
    pub(crate) fn found_damage(&self) {
        self.damaged.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Whether a value was found damaged since this was asked last.
    pub(crate) fn take_damaged(&self) -> bool {
        self.damaged.load(Ordering::Acquire) && self.damaged.swap(false, Ordering::AcqRel)
    }

    /// A full header with this revision.
    pub(crate) fn header(&self, revision: i64) -> pb::ResponseHeader {
        pb::ResponseHeader {
            cluster_id: self.cluster_id,
            member_id: self.member_id,
            revision,
            raft_term: RAFT_TERM,
        }
    }

    /// A full header with the newest revision.
    pub(crate) fn current_header(&self) -> pb::ResponseHeader {
        self.header(self.published.load().revision())
    }

    /// Completes a header that carries a revision only.
    pub(crate) fn fill(&self, header: &mut Option<pb::ResponseHeader>) {
        let revision = header.as_ref().map_or(0, |header| header.revision);
        *header = Some(self.header(revision));
    }

    /// Has the committer look at what there is to do.
    pub(crate) fn wake_committer(&self) {
        self.wants_tick.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Ends watchers and everybody who waits.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.watchers.wake_all();
        self.revoked.notify_waiters();
    }
}
