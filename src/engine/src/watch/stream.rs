//! One watcher: a position in the log and what to show of it.

use std::sync::Arc;

use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::ShardError;

use super::registry::{Handle, Registration};
use crate::{
    mvcc::{FIRST_EVENT_REVISION, KeyRange, Version, VersionRef},
    shared::Shared,
    values::{ValueError, read_all},
};

/// Revisions with events in one answer at most, as in etcd (`watchBatchMaxRevs`).
const BATCH_REVISIONS_MAX: usize = 1000;
/// An answer is closed after the revision that makes it this large, so that catching up stays below the 4 MiB that
/// gRPC clients decode by default. One revision may be larger.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Revisions looked at before the lock on the log is given back.
const SCAN_REVISIONS_MAX: i64 = 2048;

/// What a watch request asks for, beside range and start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Settings {
    /// Leave puts out.
    pub no_put: bool,
    /// Leave deletes out.
    pub no_delete: bool,
    /// Show the key before each event.
    pub prev_kv: bool,
}

/// What a watcher has to say next.
#[derive(Debug)]
pub enum Batch {
    /// Whole revisions in order, never empty.
    Events {
        /// The events.
        events: Vec<pb::Event>,
        /// The store's revision, as in the headers of etcd's `syncWatchers`; a watcher that catches up may not have
        /// come so far.
        revision: i64,
    },
    /// History that the watcher still needed is gone; it ends.
    Compacted {
        /// The revision of the compaction.
        compact_revision: i64,
    },
    /// A value cannot be read; the watcher ends.
    Unreadable {
        /// Why.
        error: ShardError,
    },
}

/// What one look at the history gave.
enum Step {
    Batch(Batch),
    /// Nothing for this watcher so far, and there may be more to look at.
    Behind,
    /// Everything was looked at.
    InSync,
}

/// A registered watcher.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
    registration: Registration,
    settings: Settings,
    /// The first revision that the request asks for; without one, that of the store when it was made.
    start: i64,
    /// The first revision that may be delivered.
    next: i64,
    /// Whether the start lies in the past and was not compared with the compaction yet. Later a watcher is served as
    /// long as the history it needs is still there, which is a little longer.
    starts_in_past: bool,
}

/// Tells how far a watcher is.
#[derive(Debug, Clone)]
pub struct Probe {
    handle: Arc<Handle>,
    start: i64,
}

impl Probe {
    /// Whether the watcher has taken out everything up to `revision`, up to which watchers were marked, and has not
    /// to wait for its start, as etcd's progress has it. See [`Registry::seen_by`](super::Registry::seen_by).
    pub(super) fn has_seen(&self, revision: i64) -> bool {
        self.handle.pending() == 0 && revision >= self.start
    }
}

impl Watcher {
    /// Watches from `start_revision`, or from the next revision if that is 0. Returns it with the revision of the
    /// store at its creation.
    pub fn new(shared: Arc<Shared>, range: KeyRange, start_revision: i64, settings: Settings) -> (Self, i64) {
        // First registered, then looked at: a revision published between the two is marked and filtered by `next`.
        let registration = shared.watchers.register(range);
        let current = shared.published.load().revision();
        let next = if start_revision == 0 { current + 1 } else { start_revision };
        let starts_in_past = start_revision != 0 && start_revision <= current;
        if starts_in_past {
            registration.handle.set_pending(start_revision);
        }
        let start = if start_revision == 0 { current } else { start_revision };
        let watcher = Self { shared, registration, settings, start, next, starts_in_past };
        (watcher, current)
    }

    /// The revision up to which the watcher has seen everything, if it is in sync and has reached its start.
    pub fn progress(&self) -> Option<i64> {
        self.shared.watchers.seen_by(std::iter::once(&self.probe()))
    }

    /// Something that tells how far the watcher is while somebody else polls it.
    pub fn probe(&self) -> Probe {
        Probe { handle: Arc::clone(&self.registration.handle), start: self.start }
    }

    /// Waits for the next batch. Cancel safe. None when the engine is closed.
    pub async fn next(&mut self) -> Option<Batch> {
        loop {
            match self.step() {
                Step::Batch(batch) => return Some(batch),
                // A long history without a single event for this watcher: others have their turn.
                Step::Behind => tokio::task::yield_now().await,
                Step::InSync if self.shared.is_closed() => return None,
                Step::InSync => self.registration.handle.woken().await,
            }
        }
    }

    /// Looks at one slice of the history.
    fn step(&mut self) -> Step {
        let handle = &self.registration.handle;
        let pending = handle.pending();
        if pending == 0 {
            return Step::InSync;
        }
        let from = pending.max(self.next);
        if std::mem::take(&mut self.starts_in_past) {
            let compact_revision = self.shared.published.load().compact_revision();
            if from < compact_revision {
                return Step::Batch(Batch::Compacted { compact_revision });
            }
        }
        let scan = match self.scan(from) {
            Ok(scan) => scan,
            Err(compact_revision) => return Step::Batch(Batch::Compacted { compact_revision }),
        };
        // First: once it says that it is further, compaction may give back what `prev_kv` shows.
        let events = self.shared.read(self.events(&scan.events));
        self.next = self.next.max(scan.next);
        if scan.reached_end {
            handle.set_pending(0);
            // A revision that came between the scan and this found the watcher pending and did not mark it.
            if self.shared.watchers.marked() >= scan.next {
                handle.set_pending(scan.next);
            }
        } else {
            handle.set_pending(scan.next);
        }
        match events {
            Ok(events) if events.is_empty() => Step::Behind,
            Ok(events) => Step::Batch(Batch::Events { events, revision: scan.last }),
            Err(error) => Step::Batch(Batch::Unreadable { error }),
        }
    }

    /// Collects what concerns this watcher from `from` on; the compaction's revision if that is gone.
    fn scan(&self, from: i64) -> Result<Scan, i64> {
        // What is in the log and not marked yet has to wait: a progress answer could not cover it.
        let marked = self.shared.watchers.marked();
        let log = self.shared.log.read();
        // Nothing ever happened before, so that is not missing.
        let from = from.max(FIRST_EVENT_REVISION);
        if from < log.first_revision() {
            return Err(self.shared.published.load().compact_revision());
        }
        let last = marked.min(from.saturating_add(SCAN_REVISIONS_MAX));
        let mut scan = Scan { events: Vec::new(), next: from, last: marked, reached_end: false };
        let (mut revisions, mut bytes) = (0, 0);
        while scan.next <= last && revisions < BATCH_REVISIONS_MAX && bytes < BATCH_BYTES_MAX {
            let Some(changes) = log.get(scan.next) else { break };
            let before = scan.events.len();
            for version in changes {
                let filtered = if version.is_live() { self.settings.no_put } else { self.settings.no_delete };
                if !filtered && self.registration.range.contains(&version.key) {
                    bytes += version.key.len() + version.value_len() + EVENT_OVERHEAD_BYTES;
                    scan.events.push(VersionRef::clone(version));
                }
            }
            revisions += usize::from(scan.events.len() > before);
            scan.next += 1;
        }
        scan.reached_end = scan.next > scan.last;
        Ok(scan)
    }

    /// The events of these versions, whose values are read together.
    fn events(&self, versions: &[VersionRef]) -> sharded_etcd_shard::Result<Vec<pb::Event>> {
        let values = read_all(versions.iter().map(|version| &**version))?;
        let mut events = Vec::with_capacity(versions.len());
        for (version, value) in versions.iter().zip(values) {
            let kind = if version.is_live() { pb::EventType::Put } else { pb::EventType::Delete };
            let is_create = version.create_revision == version.mod_revision;
            let prev_kv =
                if self.settings.prev_kv && !is_create { previous_key_value(version)? } else { None };
            events.push(pb::Event { r#type: kind as i32, kv: Some(version.with_value(value)), prev_kv });
        }
        Ok(events)
    }
}

/// What one event weighs in an answer beside its key and value, about.
const EVENT_OVERHEAD_BYTES: usize = 48;

struct Scan {
    events: Vec<VersionRef>,
    /// The first revision that was not looked at.
    next: i64,
    /// The last revision that watchers may read.
    last: i64,
    reached_end: bool,
}

/// The key one revision before the event, as etcd reads it: what the same revision did before does not count.
fn previous_key_value(version: &Version) -> Result<Option<pb::KeyValue>, ValueError> {
    let before = version.previous().and_then(|previous| Version::at(&previous, version.mod_revision - 1));
    before.filter(|before| before.is_live()).map(|before| before.to_key_value()).transpose()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::{
        mvcc::{Changes, EventLog, Store},
        txn,
    };

    /// A store whose committer is this test.
    struct Stored {
        store: Store,
        shared: Arc<Shared>,
    }

    impl Stored {
        fn new() -> Self {
            let store = Store::default();
            let log = EventLog::new(FIRST_EVENT_REVISION);
            Self { shared: Arc::new(Shared::new(1, 1, store.clone(), log)), store }
        }

        /// Publishes a put and does not mark it yet.
        fn publish(&mut self, key: &'static str) -> Vec<Changes> {
            let request = pb::PutRequest { key: key.into(), value: "v".into(), ..Default::default() };
            let (_, changes) = txn::put(&mut self.store, &request).unwrap();
            let changes: Vec<Changes> = changes.into_iter().collect();
            self.shared.published.store(Arc::new(self.store.clone()));
            changes.iter().for_each(|changes| self.shared.log.write().push(changes.clone()));
            changes
        }

        fn mark(&self, changes: &[Changes]) {
            self.shared.watchers.mark(changes, self.store.revision());
        }

        fn watch(&self, start_revision: i64) -> Watcher {
            let all = KeyRange::new(vec![0].into(), vec![0].into());
            Watcher::new(Arc::clone(&self.shared), all, start_revision, Settings::default()).0
        }
    }

    /// The revisions that the watcher delivers without waiting.
    fn delivered(watcher: &mut Watcher) -> Vec<i64> {
        let mut revisions = Vec::new();
        while let Some(Some(batch)) = watcher.next().now_or_never() {
            let Batch::Events { events, revision } = batch else { panic!("{batch:?}") };
            assert!(events.iter().all(|event| event.kv.as_ref().unwrap().mod_revision <= revision));
            revisions.extend(events.into_iter().map(|event| event.kv.unwrap().mod_revision));
        }
        revisions
    }

    #[test]
    fn a_watcher_delivers_nothing_that_its_progress_does_not_cover() {
        let mut stored = Stored::new();
        let first = stored.publish("a");
        stored.mark(&first);
        let mut late = stored.watch(2);
        // In the log while the watcher reads, and not marked before it is done.
        let second = stored.publish("b");
        assert_eq!((delivered(&mut late), late.progress()), (vec![2], Some(2)));
        stored.mark(&second);
        assert_eq!(late.progress(), None, "it is marked and has not looked");
        assert_eq!((delivered(&mut late), late.progress()), (vec![3], Some(3)));
        assert_eq!((delivered(&mut late), late.progress()), (vec![], Some(3)));
    }

    #[test]
    fn a_watcher_from_now_on_says_nothing_of_the_time_before() {
        let mut stored = Stored::new();
        let first = stored.publish("a");
        let mut watcher = stored.watch(0);
        assert_eq!(watcher.progress(), None, "the revision that it was made at is not marked");
        stored.mark(&first);
        assert_eq!((delivered(&mut watcher), watcher.progress()), (vec![], Some(2)));
        let second = stored.publish("b");
        assert_eq!((delivered(&mut watcher), watcher.progress()), (vec![], Some(2)));
        stored.mark(&second);
        assert_eq!((delivered(&mut watcher), watcher.progress()), (vec![3], Some(3)));
    }
}
