//! Snapshots in etcd's own form, so that etcd's tools and etcd itself take them, and the way back.
//!
//! A snapshot is the database file of one state, with its history since the compaction, and the SHA-256 of the file
//! behind it. Buckets and their records are those of etcd 3.7 (server/storage/schema).

mod records;
mod restore;
mod stream;

use std::{cell::RefCell, sync::Arc};

use bytes::Bytes;
use crc32c::crc32c_append;
use prost::Message;
use sharded_etcd_etcd_api::messages as pb;

pub use crate::bolt::BoltError;
use crate::{
    bolt::{Bucket, Layout, Pairs, SmallPairs},
    history::{History, database_key, database_key_len, database_value, database_value_len},
    mvcc::{Store, VersionRef},
    shared::{RAFT_TERM, Shared},
    values::{self, ValueError},
};
use records::LeaseRecord;
pub use restore::{RestoreError, RestoreOptions, Restored, restore};
pub(crate) use stream::stream;

/// The version of the form of the data, which the API calls the storage version.
pub(crate) const STORAGE_VERSION: &str = "3.7.0";
/// Length of the checksum behind the file.
const SHA256_BYTES: u64 = 32;
/// Database files are whole disk sectors: a remainder of [`SHA256_BYTES`] says that there is a checksum.
const SECTOR_BYTES: u64 = 512;

/// Who a member is, which a snapshot tells.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) client_urls: Arc<[String]>,
}

/// The database of the newest state, laid out. None when the engine ended meanwhile. May take long: not for an async
/// task.
pub(crate) fn newest(shared: &Arc<Shared>, member: &Member) -> Option<(i64, Layout)> {
    let (store, history) = History::newest(shared)?;
    Some((store.revision(), Layout::new(buckets(shared, &store, history, member))))
}

/// A hash of everything but what no client decides, as etcd's `Hash` (server/storage/backend/backend.go).
pub(crate) fn hash(layout: &Layout) -> Result<u32, ValueError> {
    let mut crc = 0;
    let mut buffer = Vec::new();
    for Bucket { name, pairs } in layout.buckets() {
        crc = crc32c_append(crc, name.as_bytes());
        for at in 0..pairs.count() {
            buffer.clear();
            pairs.key(at, &mut buffer);
            if *name == "meta" && records::IGNORED_BY_HASH.contains(&buffer.as_slice()) {
                continue;
            }
            pairs.value(at, &mut buffer)?;
            crc = crc32c_append(crc, &buffer);
        }
    }
    Ok(crc)
}

fn buckets(shared: &Shared, store: &Store, history: History, member: &Member) -> Vec<Bucket> {
    let small = |name, pairs| Bucket { name, pairs: Box::new(SmallPairs::new(pairs)) as Box<dyn Pairs> };
    let alarms = store.alarms().iter().map(|alarm| {
        let record = pb::AlarmMember { member_id: alarm.member_id, alarm: alarm.kind };
        (record.encode_to_vec(), Vec::new())
    });
    let leases = store.leases().map(|(id, lease)| {
        let record = LeaseRecord { id, ttl: lease.ttl, remaining_ttl: lease.remaining };
        (id.to_be_bytes().to_vec(), record.encode_to_vec())
    });
    vec![
        small("alarm", alarms.collect()),
        small("auth", vec![(records::AUTH_REVISION.to_vec(), 1u64.to_be_bytes().to_vec())]),
        small("authRoles", Vec::new()),
        small("authUsers", Vec::new()),
        small("cluster", records::cluster()),
        Bucket { name: "key", pairs: Box::new(Versions::new(history.into_versions())) },
        small("lease", leases.collect()),
        small("members", vec![records::member(shared.member_id, member)]),
        small("members_removed", Vec::new()),
        small("meta", records::meta(shared.member_id, store, RAFT_TERM)),
    ]
}

/// The bucket of the keys.
struct Versions {
    versions: Vec<VersionRef>,
    /// Values that were read ahead, as they are asked for in order, and which version the first one belongs to.
    ahead: RefCell<(usize, Vec<Bytes>)>,
}

impl Versions {
    fn new(versions: Vec<VersionRef>) -> Self {
        Self { versions, ahead: RefCell::default() }
    }

    fn read(&self, at: usize) -> Result<Bytes, ValueError> {
        let mut ahead = self.ahead.borrow_mut();
        let (first, values) = &mut *ahead;
        if !(*first..*first + values.len()).contains(&at) {
            let rest = &self.versions[at..];
            *values = values::read_all(rest[..values::window(rest)].iter().map(|version| &**version))?;
            *first = at;
        }
        Ok(values[at - *first].clone())
    }
}

impl Pairs for Versions {
    fn count(&self) -> usize {
        self.versions.len()
    }

    fn lens(&self, at: usize) -> (usize, usize) {
        (database_key_len(&self.versions[at]), database_value_len(&self.versions[at]))
    }

    fn key(&self, at: usize, out: &mut Vec<u8>) {
        database_key(&self.versions[at], out);
    }

    fn value(&self, at: usize, out: &mut Vec<u8>) -> Result<(), ValueError> {
        database_value(&self.versions[at], self.read(at)?, out);
        Ok(())
    }
}
