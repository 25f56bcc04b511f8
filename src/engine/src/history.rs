//! All versions of a store in the order of their revisions, as etcd's database has them.
//!
//! The store is ordered by key and compaction cuts history off beside its readers, so what hashes and snapshots need
//! is gathered first, as pointers: 16 bytes a version. Compaction gives nothing back meanwhile (see [`Pin`]); what was
//! gathered stays whole afterwards, whatever happens to the store.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use prost::{Message, encoding::encoded_len_varint};
use sharded_etcd_etcd_api::messages as pb;

use crate::{
    mvcc::{EventLog, Store, Version, VersionRef},
    shared::Shared,
    values::{self, ValueError},
};

/// Revisions that are taken from the log before the writer may add to it again.
const SLICE_REVISIONS: i64 = 1024;

/// How many readers keep history from being given back.
#[derive(Debug, Default)]
pub(crate) struct Pins(Mutex<usize>);

impl Pins {
    /// Whether anybody needs history as it is.
    pub(crate) fn is_pinned(&self) -> bool {
        *self.0.lock() > 0
    }

    /// Gives history back, unless somebody needs it: until that is done nobody begins to.
    pub(crate) fn unless_pinned<T>(&self, collect: impl FnOnce() -> T) -> Option<T> {
        let pins = self.0.lock();
        (*pins == 0).then(collect)
    }
}

/// While this lives, compaction hides history but cuts nothing off.
pub(crate) struct Pin(Arc<Shared>);

impl Pin {
    /// Waits for the slice of a compaction that is under way, well below a millisecond.
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        *shared.pins.0.lock() += 1;
        Self(Arc::clone(shared))
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        *self.0.pins.0.lock() -= 1;
        self.0.wake_committer();
    }
}

/// A version that was live at the compaction.
#[derive(Debug, Clone)]
pub(crate) struct Base {
    pub(crate) version: VersionRef,
    /// Whether it is still the newest one at the revision gathered for: whether a compaction there would keep it.
    pub(crate) is_kept: bool,
}

/// What is in the key bucket of an etcd that compacted at one revision, up to another one.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Live at the compaction, by revision.
    pub(crate) base: Vec<Base>,
    /// Tombstones of the compaction's own revision: a watch from there sees them.
    pub(crate) tombstones: Vec<VersionRef>,
    /// After the compaction, by revision.
    pub(crate) later: Vec<VersionRef>,
    /// Whether any key is live at the revision gathered for.
    pub(crate) has_live: bool,
    /// Whether any key was deleted in that very revision.
    pub(crate) has_deleted: bool,
}

impl History {
    /// The newest state with its history. None when the engine ended in the middle of a publication.
    pub(crate) fn newest(shared: &Arc<Shared>) -> Option<(Arc<Store>, Self)> {
        let _pin = Pin::new(shared);
        let store = shared.published.load_full();
        let history = Self::gather(shared, &store, store.compact_revision(), store.revision())?;
        Some((store, history))
    }

    /// Everything from what was live at `compacted` up to `revision`, which the store has. The caller holds a [`Pin`]
    /// since before it took the store. None when the engine ended in the middle of a publication.
    pub(crate) fn gather(shared: &Shared, store: &Store, compacted: i64, revision: i64) -> Option<Self> {
        // The store is published a moment before the log has its newest revisions.
        while shared.log.read().last_revision() < store.revision() {
            if shared.is_closed() {
                return None;
            }
            std::thread::yield_now();
        }
        let mut history = Self::default();
        for (_, head) in store.chains() {
            history.look_at(head, compacted, revision);
        }
        history.base.sort_unstable_by_key(|base| (base.version.mod_revision, base.version.sub));
        history.take_tombstones(&shared.log, compacted);
        let mut next = compacted.saturating_add(1).max(shared.log.read().first_revision());
        while next <= revision {
            let log = shared.log.read();
            let end = revision.min(next.saturating_add(SLICE_REVISIONS - 1));
            for revision in next..=end {
                let changes = log.get(revision).unwrap_or_default();
                history.later.extend(changes.iter().cloned());
            }
            next = end + 1;
        }
        Some(history)
    }

    /// Everything, by revision.
    pub(crate) fn into_versions(self) -> Vec<VersionRef> {
        let mut versions: Vec<_> =
            self.base.into_iter().map(|base| base.version).chain(self.tombstones).collect();
        versions.sort_unstable_by_key(|version| (version.mod_revision, version.sub));
        versions.extend(self.later);
        versions
    }

    fn look_at(&mut self, head: &VersionRef, compacted: i64, revision: i64) {
        let Some(newest) = Version::at(head, revision) else { return };
        // A put behind a delete in one revision: a compaction there would keep neither, as in etcd.
        let mut is_deleted = false;
        let mut next = Some(VersionRef::clone(&newest));
        while let Some(version) = next.filter(|version| version.mod_revision == revision) {
            is_deleted |= !version.is_live();
            next = version.previous();
        }
        self.has_deleted |= is_deleted;
        let is_kept = newest.is_live() && !is_deleted;
        self.has_live |= is_kept;
        let Some(version) = Version::at(&newest, compacted).filter(|version| version.is_live()) else {
            return;
        };
        let is_kept = is_kept && VersionRef::ptr_eq(&version, &newest);
        self.base.push(Base { version, is_kept });
    }

    fn take_tombstones(&mut self, log: &RwLock<EventLog>, compacted: i64) {
        let log = log.read();
        let changes = log.get(compacted).unwrap_or_default();
        for (at, version) in changes.iter().enumerate() {
            let is_last = changes[at + 1..].iter().all(|later| later.key != version.key);
            if !version.is_live() && is_last {
                self.tombstones.push(VersionRef::clone(version));
            }
        }
    }
}

/// etcd's database key of a version: its revision, and a mark on a tombstone.
pub(crate) fn database_key(version: &Version, out: &mut Vec<u8>) {
    out.extend_from_slice(&version.mod_revision.to_be_bytes());
    out.push(b'_');
    out.extend_from_slice(&u64::from(version.sub).to_be_bytes());
    if !version.is_live() {
        out.push(b't');
    }
}

/// Length of [`database_key`].
pub(crate) fn database_key_len(version: &Version) -> usize {
    if version.is_live() { 17 } else { 18 }
}

/// etcd's database value of a version: a whole `KeyValue`, for a tombstone one with the key only.
pub(crate) fn database_value(version: &Version, value: Bytes, out: &mut Vec<u8>) {
    let pair = if version.is_live() {
        version.with_value(value)
    } else {
        pb::KeyValue { key: version.key.to_bytes(), ..Default::default() }
    };
    // A vector has room for everything.
    let _ = pair.encode(out);
}

/// Values of versions in their order, read ahead in pieces.
pub(crate) struct ReadAhead<'a> {
    rest: &'a [VersionRef],
    values: std::vec::IntoIter<Bytes>,
}

impl<'a> ReadAhead<'a> {
    pub(crate) fn new(versions: &'a [VersionRef]) -> Self {
        Self { rest: versions, values: Vec::new().into_iter() }
    }

    /// The next value; empty behind the last one.
    pub(crate) fn next(&mut self) -> Result<Bytes, ValueError> {
        if self.values.len() == 0 {
            let (now, later) = self.rest.split_at(values::window(self.rest));
            self.values = values::read_all(now.iter().map(|version| &**version))?.into_iter();
            self.rest = later;
        }
        Ok(self.values.next().unwrap_or_default())
    }
}

/// Length of [`database_value`].
pub(crate) fn database_value_len(version: &Version) -> usize {
    let bytes = |len: usize| if len == 0 { 0 } else { 1 + encoded_len_varint(len as u64) + len };
    let number = |value: i64| if value == 0 { 0 } else { 1 + encoded_len_varint(value as u64) };
    if !version.is_live() {
        return bytes(version.key.len());
    }
    let numbers = [version.create_revision, version.mod_revision, version.version, version.lease];
    bytes(version.key.len()) + bytes(version.value_len()) + numbers.map(number).iter().sum::<usize>()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::mvcc::Key;

    #[test]
    fn lengths_are_those_of_the_encoding() {
        let value = |len: usize| Bytes::from(vec![7; len]);
        let mut versions = vec![Version::delete(Key::from(&*value(300)), (1 << 40, 3), None)];
        for (len, lease, live) in
            [(0, 0, None), (1, -1, Some((2, 1))), (127, 5, None), (128, i64::MAX, Some((9, 1 << 30)))]
        {
            versions.push(Version::put(
                Key::from(&*value(len.max(1))),
                value(len),
                lease,
                (12, 0),
                live,
                None,
            ));
        }
        for version in versions {
            let (mut key, mut data) = (Vec::new(), Vec::new());
            database_key(&version, &mut key);
            database_value(&version, version.value().unwrap(), &mut data);
            assert_eq!((key.len(), data.len()), (database_key_len(&version), database_value_len(&version)));
            let decoded = pb::KeyValue::decode(data.as_slice()).unwrap();
            assert_eq!(decoded.key, version.key);
            assert_eq!(decoded.mod_revision, if version.is_live() { 12 } else { 0 });
        }
    }
}
