//! The state that one revision names: keys, leases, alarms.

use std::{collections::BTreeSet, sync::Arc};

use imbl::{OrdMap, OrdSet};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::Result;

use super::{
    EventLog, FIRST_EVENT_REVISION, Key, RangeScan, Version, VersionRef, index::Index, key_range::bounds,
    write::WriteTxn,
};
use crate::errors;

/// The live version at `revision` of a key whose newest version is `head`.
pub(super) fn live_at(head: &VersionRef, revision: i64) -> Option<Found<'_>> {
    if head.mod_revision <= revision {
        return head.is_live().then_some(Found::Head(head));
    }
    Version::at(head, revision).filter(|version| version.is_live()).map(Found::Old)
}

/// A version that is the newest one of its key, or an older one.
pub(super) enum Found<'a> {
    Head(&'a VersionRef),
    Old(VersionRef),
}

impl std::ops::Deref for Found<'_> {
    type Target = VersionRef;

    fn deref(&self) -> &VersionRef {
        match self {
            Found::Head(version) => version,
            Found::Old(version) => version,
        }
    }
}

/// A lease and the keys attached to it. When it expires is not part of the store: see [`crate::lease`].
#[derive(Debug, Clone, PartialEq)]
pub struct Lease {
    /// Granted time to live in seconds.
    pub ttl: i64,
    /// Seconds of it that are left after a restart, when that was last written down; 0 for all of them.
    pub remaining: i64,
    /// The attached keys.
    pub keys: OrdSet<Key>,
}

/// An alarm of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alarm {
    /// `AlarmType` of the API, never NONE.
    pub kind: i32,
    /// The member that raised it.
    pub member_id: u64,
}

/// Keys, leases and alarms at one revision. Cloning is cheap and gives an independent snapshot.
#[derive(Debug, Clone)]
pub struct Store {
    pub(super) index: Index,
    pub(super) leases: OrdMap<i64, Lease>,
    pub(super) alarms: Arc<BTreeSet<Alarm>>,
    pub(super) revision: i64,
    pub(super) compact_revision: i64,
    pub(super) applied: u64,
    pub(super) size_in_use: u64,
    pub(super) size: u64,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            index: Index::default(),
            leases: OrdMap::new(),
            alarms: Arc::default(),
            // etcd's empty store is at revision 1 and compacted at -1, so that Compact(0) passes.
            revision: 1,
            compact_revision: -1,
            applied: 0,
            size_in_use: 0,
            size: 0,
        }
    }
}

impl Store {
    /// The current revision, 1 when nothing was ever written.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The revision of the last compaction, -1 before the first one.
    pub fn compact_revision(&self) -> i64 {
        self.compact_revision
    }

    /// Number of changes applied so far, what the API calls the raft index.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Number of keys that have a version which is kept, deleted ones included.
    pub fn keys(&self) -> usize {
        self.index.len()
    }

    /// Bytes of all versions that are kept, an estimate.
    pub fn size_in_use(&self) -> u64 {
        self.size_in_use
    }

    /// The most that [`Self::size_in_use`] was since the start or the last [`Self::defragment`]: it behaves as the
    /// size of etcd's database file, whose free pages are used again but given back by a defragmentation only.
    pub fn size(&self) -> u64 {
        self.size.max(self.size_in_use)
    }

    /// Sets [`Self::size`] to what is in use.
    pub fn defragment(&mut self) {
        self.size = self.size_in_use;
    }

    /// A lease by its id.
    pub fn lease(&self, id: i64) -> Option<&Lease> {
        self.leases.get(&id)
    }

    /// All leases by ascending id.
    pub fn leases(&self) -> impl Iterator<Item = (i64, &Lease)> {
        self.leases.iter().map(|(id, lease)| (*id, lease))
    }

    /// Alarms that are up.
    pub fn alarms(&self) -> &BTreeSet<Alarm> {
        &self.alarms
    }

    /// Whether any member raised an alarm of this kind.
    pub fn has_alarm(&self, kind: pb::AlarmType) -> bool {
        self.alarms.iter().any(|alarm| alarm.kind == kind as i32)
    }

    /// Refuses a revision that does not exist yet or was compacted, as etcd checks Ranges inside a Txn beforehand.
    pub fn check_revision(&self, revision: i64) -> Result<()> {
        match revision {
            0 => Ok(()),
            r if r > self.revision => Err(errors::future_revision()),
            r if r < self.compact_revision => Err(errors::compacted()),
            _ => Ok(()),
        }
    }

    /// Answers a Range, with the newest revision in the header and nothing else there.
    pub fn range(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse> {
        self.range_at(request, self.revision)
    }

    /// Answers a Range for a reader whose newest revision is `newest`: inside a Txn that wrote already, one more.
    pub(super) fn range_at(&self, request: &pb::RangeRequest, newest: i64) -> Result<pb::RangeResponse> {
        let mut scan = RangeScan::new(self, request.clone(), newest)?;
        while !scan.step(self, usize::MAX)? {}
        Ok(scan.finish())
    }

    /// The newest live version of a key, at the newest revision.
    pub fn get(&self, key: &[u8]) -> Option<&VersionRef> {
        self.index.get(key).filter(|head| head.is_live())
    }

    /// Number of keys in a range at a revision.
    pub fn count(&self, key: &[u8], range_end: &[u8], revision: i64) -> i64 {
        let mut count = 0;
        self.visit(key, range_end, revision, |_| count += 1);
        count
    }

    /// Calls `each` for every live version of a range at a revision, in key order.
    pub(super) fn visit(
        &self,
        key: &[u8],
        range_end: &[u8],
        revision: i64,
        mut each: impl FnMut(&VersionRef),
    ) {
        if range_end.is_empty() {
            if let Some(found) = self.index.get(key).and_then(|head| live_at(head, revision)) {
                each(&found);
            }
            return;
        }
        let Some(bounds) = bounds(key, range_end) else { return };
        for (_, head) in self.index.range(bounds) {
            if let Some(found) = live_at(head, revision) {
                each(&found);
            }
        }
    }

    /// Whether every live key of a range, at the newest revision, satisfies `holds`; `None` when there is no key.
    pub fn all(
        &self,
        key: &[u8],
        range_end: &[u8],
        mut holds: impl FnMut(&Version) -> Result<bool>,
    ) -> Result<Option<bool>> {
        if range_end.is_empty() {
            return self.get(key).map(|version| holds(version)).transpose();
        }
        let Some(bounds) = bounds(key, range_end) else { return Ok(None) };
        let mut any = false;
        for (_, head) in self.index.range(bounds) {
            if head.is_live() {
                any = true;
                if !holds(head)? {
                    return Ok(Some(false));
                }
            }
        }
        Ok(any.then_some(true))
    }

    /// Begins a write. Nothing is written before [`WriteTxn::end`] but what the transaction did is in the store.
    pub fn write(&mut self) -> WriteTxn<'_> {
        WriteTxn::new(self)
    }

    /// Adds a lease; the caller checked that it does not exist.
    pub fn grant(&mut self, id: i64, ttl: i64) {
        self.leases.insert(id, Lease { ttl, remaining: 0, keys: OrdSet::new() });
        self.applied += 1;
    }

    /// Writes down how much of a lease's time is left, in seconds; 0 for all of it. False if it is not there.
    pub fn set_remaining(&mut self, id: i64, seconds: i64) -> bool {
        let Some(lease) = self.leases.get_mut(&id) else { return false };
        lease.remaining = seconds;
        self.applied += 1;
        true
    }

    /// Removes a lease and deletes its keys in one revision, in key order as etcd does. False if it is not there.
    pub fn revoke(&mut self, id: i64) -> (bool, Option<super::Changes>) {
        let Some(lease) = self.leases.get(&id).cloned() else { return (false, None) };
        let mut txn = self.write();
        for key in &lease.keys {
            txn.delete_range(key, &[]);
        }
        let changes = txn.end();
        self.leases.remove(&id);
        if changes.is_none() {
            self.applied += 1;
        }
        (true, changes)
    }

    /// Removes a lease whose keys are deleted already, for replay. False if it is not there.
    pub fn forget_lease(&mut self, id: i64, counted: bool) -> bool {
        self.applied += u64::from(!counted);
        self.leases.remove(&id).is_some()
    }

    /// Makes history below `revision` unreadable. The space is given back by [`Self::collect`].
    pub fn compact(&mut self, revision: i64) -> Result<()> {
        if revision <= self.compact_revision {
            return Err(errors::compacted());
        }
        if revision > self.revision {
            return Err(errors::future_revision());
        }
        self.compact_revision = revision;
        self.applied += 1;
        Ok(())
    }

    /// Raises an alarm; false if it was up already.
    pub fn raise(&mut self, alarm: Alarm) -> bool {
        let new = Arc::make_mut(&mut self.alarms).insert(alarm);
        self.applied += u64::from(new);
        new
    }

    /// Takes an alarm down; false if it was not up.
    pub fn disarm(&mut self, alarm: Alarm) -> bool {
        let was_up = Arc::make_mut(&mut self.alarms).remove(&alarm);
        self.applied += u64::from(was_up);
        was_up
    }

    /// Gives back what `changes` made superfluous: the versions before them and, for tombstones that are still the
    /// newest version of their key, the key's place in the index. Only for changes at or below the compaction.
    ///
    /// A tombstone of the compaction's own revision stays until the next one, as in etcd: a watch from there sees it,
    /// also after a restart.
    ///
    /// Returns the cut-off chains; dropping them may take long.
    pub fn collect(&mut self, changes: &[VersionRef]) -> Vec<VersionRef> {
        let mut garbage = Vec::new();
        for version in changes {
            if let Some(older) = version.cut() {
                let mut next = Some(VersionRef::clone(&older));
                while let Some(dropped) = next {
                    self.size_in_use = self.size_in_use.saturating_sub(dropped.size());
                    next = dropped.previous();
                }
                garbage.push(older);
            }
            if !version.is_live()
                && version.mod_revision < self.compact_revision
                && self.index.get(&version.key).is_some_and(|head| VersionRef::ptr_eq(head, version))
            {
                self.index.remove(&version.key);
                self.size_in_use = self.size_in_use.saturating_sub(version.size());
            }
        }
        garbage
    }

    /// Every key with all its versions, newest first, in key order: what a checkpoint stores.
    pub fn chains(&self) -> impl Iterator<Item = (&Key, &VersionRef)> {
        self.index.iter()
    }
}

/// Builds a store from a checkpoint.
#[derive(Debug, Default)]
pub struct Restore {
    store: Store,
    history: Vec<VersionRef>,
}

impl Restore {
    /// Begins with the numbers of the checkpoint.
    pub fn new(revision: i64, compact_revision: i64, applied: u64, alarms: BTreeSet<Alarm>) -> Self {
        let store =
            Store { revision, compact_revision, applied, alarms: Arc::new(alarms), ..Store::default() };
        Self { store, history: Vec::new() }
    }

    /// Adds a lease without keys; they come with [`Self::chain`].
    pub fn lease(&mut self, id: i64, ttl: i64) {
        self.store.leases.insert(id, Lease { ttl, remaining: 0, keys: OrdSet::new() });
    }

    /// Says how much of a lease's time is left; see [`Lease::remaining`].
    pub fn remaining(&mut self, id: i64, seconds: i64) {
        if let Some(lease) = self.store.leases.get_mut(&id) {
            lease.remaining = seconds;
        }
    }

    /// Adds versions of a key, oldest first; newer ones of the same key may follow.
    pub fn chain(&mut self, key: &[u8], versions: Vec<super::version::StoredVersion>) {
        let mut head = self.store.index.get(key).cloned();
        let key = head.as_ref().map_or_else(|| Key::from(key), |head| head.key.clone());
        for fields in versions {
            let version = VersionRef::new(Version::restored(key.clone(), fields, head.take()));
            self.store.size_in_use += version.size();
            if version.mod_revision >= self.store.compact_revision {
                self.history.push(VersionRef::clone(&version));
            }
            head = Some(version);
        }
        if let Some(head) = head {
            self.store.index.insert(key, head);
        }
    }

    /// The store and its history from the compaction on.
    pub fn finish(mut self) -> (Store, EventLog) {
        self.store.size = self.store.size_in_use;
        for (key, head) in self.store.index.iter() {
            if head.is_live()
                && head.lease != 0
                && let Some(lease) = self.store.leases.get_mut(&head.lease)
            {
                lease.keys.insert(key.clone());
            }
        }
        let first = self.store.compact_revision.max(FIRST_EVENT_REVISION);
        let mut log = EventLog::new(first);
        self.history.sort_unstable_by_key(|version| (version.mod_revision, version.sub));
        let mut versions = self.history.into_iter().peekable();
        for revision in first..=self.store.revision {
            let mut changes = Vec::new();
            while let Some(version) = versions.next_if(|version| version.mod_revision <= revision) {
                if version.mod_revision == revision {
                    changes.push(version);
                }
            }
            log.push(changes.into());
        }
        (self.store, log)
    }
}
