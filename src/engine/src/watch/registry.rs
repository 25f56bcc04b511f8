//! Who watches what.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Probe;
use crate::mvcc::{Changes, KeyRange};

/// What the committer and one watcher share.
#[derive(Debug, Default)]
pub struct Handle {
    /// The first revision that the watcher has not looked at and that may concern it; 0 when it is in sync.
    pending: AtomicI64,
    wake: Notify,
}

impl Handle {
    /// The first revision to look at, 0 for none.
    pub fn pending(&self) -> i64 {
        self.pending.load(Ordering::Acquire)
    }

    /// Says from where the watcher goes on; only the watcher itself calls this.
    pub fn set_pending(&self, revision: i64) {
        // In one order with the marks: see `Registry::mark`.
        self.pending.store(revision, Ordering::SeqCst);
    }

    /// Waits until [`Self::mark`] was called since the last wait.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    fn mark(&self, revision: i64) {
        if self.pending.compare_exchange(0, revision, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            self.wake.notify_one();
        }
    }
}

type Group = HashMap<u64, Arc<Handle>>;

/// All watchers, grouped by what they watch.
#[derive(Debug)]
pub struct Registry {
    inner: Mutex<Groups>,
    /// The newest revision that watchers may read; written under the lock.
    marked: AtomicI64,
}

#[derive(Debug, Default)]
struct Groups {
    next_id: u64,
    single: HashMap<Bytes, Group>,
    ranges: HashMap<KeyRange, Group>,
}

impl Registry {
    /// One without watchers, which may read up to `revision`.
    pub fn new(revision: i64) -> Self {
        Self { inner: Mutex::default(), marked: AtomicI64::new(revision) }
    }

    /// The newest revision that watchers may read.
    pub fn marked(&self) -> i64 {
        self.marked.load(Ordering::SeqCst)
    }

    /// The newest revision that watchers may read, if all of these have taken out everything up to it. What they took
    /// out is not newer, so that it may follow as their progress.
    pub fn seen_by<'a>(&self, mut probes: impl Iterator<Item = &'a Probe>) -> Option<i64> {
        // Nothing is marked in between.
        let _groups = self.inner.lock();
        let revision = self.marked();
        probes.all(|probe| probe.has_seen(revision)).then_some(revision)
    }

    /// Adds a watcher; revisions published from now on are marked.
    pub fn register(self: &Arc<Self>, range: KeyRange) -> Registration {
        let handle = Arc::new(Handle::default());
        let mut groups = self.inner.lock();
        groups.next_id += 1;
        let id = groups.next_id;
        let group = match &range {
            KeyRange::One(key) => groups.single.entry(key.clone()).or_default(),
            _ => groups.ranges.entry(range.clone()).or_default(),
        };
        group.insert(id, Arc::clone(&handle));
        Registration { registry: Arc::clone(self), id, range, handle }
    }

    /// Lets watchers read up to `last`, and marks those that these revisions concern. Called after they are in the log.
    pub fn mark(&self, revisions: &[Changes], last: i64) {
        let groups = self.inner.lock();
        // First: a watcher that is still at work is not marked, and looks at this once it is done.
        self.marked.store(last, Ordering::SeqCst);
        for version in revisions.iter().flat_map(Changes::as_slice) {
            if groups.single.is_empty() {
                break;
            }
            if let Some(group) = groups.single.get(&*version.key) {
                group.values().for_each(|handle| handle.mark(version.mod_revision));
            }
        }
        for (range, group) in &groups.ranges {
            // Only the first match counts: the watchers read on from there by themselves.
            let first =
                revisions.iter().flat_map(Changes::as_slice).find(|version| range.contains(&version.key));
            if let Some(version) = first {
                group.values().for_each(|handle| handle.mark(version.mod_revision));
            }
        }
    }

    /// The oldest position at or after `floor` of watchers that are not in sync.
    pub fn oldest_pending(&self, floor: i64) -> Option<i64> {
        let groups = self.inner.lock();
        groups
            .single
            .values()
            .chain(groups.ranges.values())
            .flat_map(HashMap::values)
            .map(|handle| handle.pending())
            .filter(|pending| *pending >= floor.max(1))
            .min()
    }

    /// The number of watchers, and of those that have history to look at.
    pub fn counts(&self) -> (usize, usize) {
        let groups = self.inner.lock();
        let handles = groups.single.values().chain(groups.ranges.values()).flat_map(HashMap::values);
        handles.fold((0, 0), |(all, behind), handle| (all + 1, behind + usize::from(handle.pending() > 0)))
    }

    /// Wakes every watcher, for the end.
    pub fn wake_all(&self) {
        let groups = self.inner.lock();
        groups
            .single
            .values()
            .chain(groups.ranges.values())
            .flat_map(HashMap::values)
            .for_each(|handle| handle.wake.notify_one());
    }

    fn remove(&self, id: u64, range: &KeyRange) {
        let mut groups = self.inner.lock();
        match range {
            KeyRange::One(key) => {
                if let Some(group) = groups.single.get_mut(key) {
                    group.remove(&id);
                    if group.is_empty() {
                        groups.single.remove(key);
                    }
                }
            }
            _ => {
                if let Some(group) = groups.ranges.get_mut(range) {
                    group.remove(&id);
                    if group.is_empty() {
                        groups.ranges.remove(range);
                    }
                }
            }
        }
    }
}

/// A watcher's place in the registry; dropping it takes the watcher out.
#[derive(Debug)]
pub struct Registration {
    registry: Arc<Registry>,
    id: u64,
    /// What is watched.
    pub range: KeyRange,
    /// What the committer and the watcher share.
    pub handle: Arc<Handle>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.remove(self.id, &self.range);
    }
}
