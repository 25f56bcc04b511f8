//! One write transaction on the store.

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::Result;

use super::{Changes, Key, Store, Version, VersionRef, store::Lease};
use crate::values::Value;

/// Writes of one revision: all changes share the main revision, `sub` orders them.
pub struct WriteTxn<'a> {
    store: &'a mut Store,
    /// The store's revision at the begin; what is written gets the next one.
    begin: i64,
    changes: Vec<VersionRef>,
}

impl<'a> WriteTxn<'a> {
    pub(super) fn new(store: &'a mut Store) -> Self {
        let begin = store.revision;
        Self { store, begin, changes: Vec::new() }
    }

    /// The store as the transaction sees it.
    pub fn store(&self) -> &Store {
        self.store
    }

    /// The newest revision that a read in this transaction sees.
    pub fn revision(&self) -> i64 {
        if self.changes.is_empty() { self.begin } else { self.begin + 1 }
    }

    /// A Range that sees what was written before it in the transaction.
    pub fn range(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse> {
        self.store.range_at(request, self.revision())
    }

    /// Calls `each` for every key of a range as the transaction sees it, in key order.
    pub fn visit(&self, key: &[u8], range_end: &[u8], each: impl FnMut(&VersionRef)) {
        self.store.visit(key, range_end, self.revision(), each);
    }

    /// Puts a key and returns the revision. The lease, if any, must exist.
    ///
    /// Key and value are copied: what a request brings are slices of a network buffer many times their size.
    pub fn put(&mut self, key: &[u8], value: &[u8], lease: i64) -> i64 {
        self.put_value(key, Bytes::copy_from_slice(value).into(), lease)
    }

    /// Like [`Self::put`] with a value that is somewhere already.
    pub(crate) fn put_value(&mut self, key: &[u8], value: Value, lease: i64) -> i64 {
        let stamp = (self.begin + 1, self.changes.len() as u32);
        let (version, old_lease) = match self.store.index.get_mut(key) {
            Some(head) => {
                let live = head.is_live().then_some((head.create_revision, head.version));
                let old_lease = head.lease;
                let version = VersionRef::new(Version::put(
                    head.key.clone(),
                    value,
                    lease,
                    stamp,
                    live,
                    Some(VersionRef::clone(head)),
                ));
                *head = VersionRef::clone(&version);
                (version, old_lease)
            }
            None => {
                let key = Key::from(key);
                let version = VersionRef::new(Version::put(key.clone(), value, lease, stamp, None, None));
                self.store.index.insert(key, VersionRef::clone(&version));
                (version, 0)
            }
        };
        if old_lease != lease {
            self.detach(old_lease, &version.key);
            if lease != 0
                && let Some(lease) = self.store.leases.get_mut(&lease)
            {
                lease.keys.insert(version.key.clone());
            }
        }
        self.push(version);
        self.begin + 1
    }

    /// Deletes the keys of a range; returns how many, and the revision for the answer's header.
    pub fn delete_range(&mut self, key: &[u8], range_end: &[u8]) -> (i64, i64) {
        let mut doomed = Vec::new();
        self.store.visit(key, range_end, self.revision(), |version| doomed.push(VersionRef::clone(version)));
        let deleted = doomed.len() as i64;
        for version in doomed {
            self.delete(version);
        }
        (deleted, self.revision())
    }

    fn delete(&mut self, head: VersionRef) {
        let stamp = (self.begin + 1, self.changes.len() as u32);
        let key = head.key.clone();
        self.detach(head.lease, &key);
        let tombstone = VersionRef::new(Version::delete(key, stamp, Some(head)));
        if let Some(head) = self.store.index.get_mut(&tombstone.key) {
            *head = VersionRef::clone(&tombstone);
        }
        self.push(tombstone);
    }

    fn detach(&mut self, lease: i64, key: &Key) {
        if lease != 0
            && let Some(Lease { keys, .. }) = self.store.leases.get_mut(&lease)
        {
            keys.remove(key);
        }
    }

    fn push(&mut self, version: VersionRef) {
        self.store.size_in_use += version.size();
        self.changes.push(version);
    }

    /// Ends the transaction: the revision goes up by one if anything was written.
    pub fn end(self) -> Option<Changes> {
        if self.changes.is_empty() {
            return None;
        }
        self.store.revision = self.begin + 1;
        self.store.applied += 1;
        self.store.size = self.store.size.max(self.store.size_in_use);
        Some(self.changes.into())
    }
}
