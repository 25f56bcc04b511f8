//! HashKV as etcd 3.7 computes it (server/storage/mvcc/hash.go), so that an engine and an etcd with the same history
//! agree at every revision.
//!
//! One history is answered differently: a Txn may delete a key and put it again, in one revision (a delete without an
//! end beside a put). etcd that compacts at exactly that revision loses the put; here the key stays and is hashed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crc32c::{crc32c, crc32c_append};
use parking_lot::Mutex;
use sharded_etcd_shard::Result;

use crate::{
    errors,
    history::{History, Pin, ReadAhead, database_key, database_value},
    mvcc::Store,
    shared::Shared,
};

/// Hashes of compactions that are remembered, as in etcd (`hashStorageMaxSize`).
const HASHES_MAX: usize = 10;

/// Hashing a compaction of a store of so many keys is followed by a rest of [`REST_FACTOR`] times as long.
const MANY_KEYS: usize = 20_000;
const REST_FACTOR: u32 = 10;

/// A hash of the keys, and of which history it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KvHash {
    pub(crate) hash: u32,
    /// The compaction that the history begins at; -1 for the beginning.
    pub(crate) compact_revision: i64,
    /// The last revision of the history.
    pub(crate) revision: i64,
}

/// Hashes of what compactions compacted, which nothing else tells afterwards. Not durable, as in etcd.
#[derive(Debug, Default)]
pub(crate) struct CompactionHashes {
    /// By revision.
    newest: Mutex<Vec<KvHash>>,
    is_running: AtomicBool,
    /// No compaction is hashed before.
    rests_until: Mutex<Option<Instant>>,
}

impl CompactionHashes {
    fn get(&self, revision: i64) -> Option<KvHash> {
        self.newest.lock().iter().find(|hash| hash.revision == revision).copied()
    }

    fn put(&self, hash: KvHash) {
        let mut newest = self.newest.lock();
        newest.push(hash);
        newest.sort_unstable_by_key(|hash| hash.revision);
        if newest.len() > HASHES_MAX {
            newest.remove(0);
        }
    }

    /// Says that a hash is under way. False if one is already, as etcd skips it in that case too, or if they come so
    /// fast that they would take most of a processor; there is none for this compaction then.
    pub(crate) fn begin(&self) -> bool {
        let rests = self.rests_until.lock().is_some_and(|until| Instant::now() < until);
        !rests && !self.is_running.swap(true, Ordering::AcqRel)
    }

    /// Says that it is not, after it took so long for so many keys.
    pub(crate) fn end(&self, took: Duration, keys: usize) {
        let rest = (keys >= MANY_KEYS).then(|| Instant::now() + REST_FACTOR * took);
        *self.rests_until.lock() = rest;
        self.is_running.store(false, Ordering::Release);
    }
}

/// Hashes what a compaction from `before` to `compacted` is about to give back, and remembers it. The caller has
/// pinned the history since before the compaction, and said [`CompactionHashes::begin`].
pub(crate) fn hash_compaction(shared: &Shared, store: &Store, before: i64, compacted: i64) {
    let begun = Instant::now();
    if let Some(history) = History::gather(shared, store, before, compacted) {
        // A compaction keeps the tombstones of its own revision, and counts them.
        let is_filtered = history.has_live || history.has_deleted;
        // None is remembered if a value cannot be read.
        if let Ok(hash) = shared.read(sum(history, is_filtered)) {
            shared.hashes.put(KvHash { hash, compact_revision: before, revision: compacted });
        }
    }
    shared.hashes.end(begun.elapsed(), store.keys());
}

/// The hash up to `revision`, 0 for the newest one, and the newest revision. May take long: not for an async task.
pub(crate) fn hash_kv(shared: &Arc<Shared>, revision: i64) -> Result<(KvHash, i64)> {
    if let Some(hash) = shared.hashes.get(revision) {
        return Ok((hash, shared.published.load().revision()));
    }
    let _pin = Pin::new(shared);
    let store = shared.published.load_full();
    let compact_revision = store.compact_revision();
    if revision > 0 && revision < compact_revision {
        return Err(errors::compacted());
    }
    if revision > store.revision() {
        return Err(errors::future_revision());
    }
    let revision = if revision == 0 { store.revision() } else { revision };
    let history = History::gather(shared, &store, compact_revision, revision).ok_or_else(errors::stopped)?;
    let has_live = history.has_live;
    let hash = shared.read(sum(history, has_live))?;
    Ok((KvHash { hash, compact_revision, revision }, store.revision()))
}

/// With `is_filtered`, versions that a compaction at the history's end would drop do not count.
fn sum(history: History, is_filtered: bool) -> Result<u32> {
    let mut crc = crc32c(b"key");
    let mut buffer = Vec::new();
    let base = history.base.into_iter().filter(|base| base.is_kept || !is_filtered);
    let mut versions: Vec<_> = base.map(|base| base.version).collect();
    versions.extend(history.later);
    let mut values = ReadAhead::new(&versions);
    for version in &versions {
        buffer.clear();
        database_key(version, &mut buffer);
        database_value(version, values.next()?, &mut buffer);
        crc = crc32c_append(crc, &buffer);
    }
    Ok(crc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_of_compactions_leave_time_for_others() {
        let hashes = CompactionHashes::default();
        assert!(hashes.begin() && !hashes.begin());
        hashes.end(Duration::from_secs(60), 100);
        assert!(hashes.begin(), "a small store has no need of it");
        hashes.end(Duration::from_secs(60), MANY_KEYS);
        assert!(!hashes.begin());
    }
}
