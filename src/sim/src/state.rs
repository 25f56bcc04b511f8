//! The history of keys, and what requests mean on it: the reference that everything is compared with.

use std::{cmp::Ordering, collections::BTreeMap};

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;

/// One version of a key; a deletion has version 0.
#[derive(Debug, Clone)]
struct Version {
    modified: i64,
    create: i64,
    version: i64,
    value: Bytes,
    lease: i64,
}

/// Keys with all their versions.
#[derive(Debug, Default)]
pub struct Keys {
    keys: BTreeMap<Bytes, Vec<Version>>,
    /// 0 stands for the revision 1 of an empty store.
    revision: i64,
}

impl Keys {
    /// The newest revision; 1 if nothing was ever written.
    pub fn revision(&self) -> i64 {
        self.revision.max(1)
    }

    /// Says that everything up to this revision is here.
    pub fn set_revision(&mut self, revision: i64) {
        self.revision = revision;
    }

    /// A key as it was at a revision.
    pub fn live(&self, key: &[u8], at: i64) -> Option<pb::KeyValue> {
        live(key, self.keys.get(key)?, at)
    }

    /// The keys of a range as they were at a revision, in order.
    pub fn range(&self, key: &[u8], range_end: &[u8], at: i64) -> Vec<pb::KeyValue> {
        if range_end.is_empty() {
            return self.live(key, at).into_iter().collect();
        }
        let from = self.keys.range::<[u8], _>((std::ops::Bound::Included(key), std::ops::Bound::Unbounded));
        from.take_while(|(k, _)| range_end == [0] || k.as_ref() < range_end)
            .filter_map(|(k, versions)| live(k, versions, at))
            .collect()
    }

    /// Puts a key at a revision; the event, with what was there before the revision.
    pub fn put(&mut self, key: &Bytes, value: Bytes, lease: i64, revision: i64) -> pb::Event {
        let prev_kv = self.live(key, revision - 1);
        let (create, version) =
            self.live(key, i64::MAX).map_or((revision, 1), |kv| (kv.create_revision, kv.version + 1));
        let new = Version { modified: revision, create, version, value, lease };
        let kv = kv_of(key, &new);
        self.keys.entry(key.clone()).or_default().push(new);
        pb::Event { r#type: pb::EventType::Put.into(), kv: Some(kv), prev_kv }
    }

    /// Deletes a key at a revision; the event if it was there.
    pub fn delete(&mut self, key: &Bytes, revision: i64) -> Option<pb::Event> {
        self.live(key, i64::MAX)?;
        let prev_kv = self.live(key, revision - 1);
        let gone = Version { modified: revision, create: 0, version: 0, value: Bytes::new(), lease: 0 };
        let kv = kv_of(key, &gone);
        self.keys.entry(key.clone()).or_default().push(gone);
        Some(pb::Event { r#type: pb::EventType::Delete.into(), kv: Some(kv), prev_kv })
    }

    /// True if the key was there without a break from one revision to the other.
    pub fn lived_through(&self, key: &[u8], from: i64, upto: i64) -> bool {
        let Some(versions) = self.keys.get(key) else { return false };
        live(key, versions, from).is_some()
            && !versions.iter().any(|v| v.version == 0 && v.modified > from && v.modified <= upto)
    }
}

fn live(key: &[u8], versions: &[Version], at: i64) -> Option<pb::KeyValue> {
    let version = &versions[..versions.partition_point(|v| v.modified <= at)].last()?;
    (version.version > 0).then(|| kv_of(key, version))
}

fn kv_of(key: &[u8], version: &Version) -> pb::KeyValue {
    pb::KeyValue {
        key: Bytes::copy_from_slice(key),
        create_revision: version.create,
        mod_revision: version.modified,
        version: version.version,
        value: version.value.clone(),
        lease: version.lease,
    }
}

/// True if a request with these two fields means this key.
pub fn in_range(wanted: &[u8], key: &[u8], range_end: &[u8]) -> bool {
    match range_end {
        [] => wanted == key,
        [0] => wanted >= key,
        end => wanted >= key && wanted < end,
    }
}

/// Whether a compare holds for the keys of its range.
pub fn holds(compare: &pb::Compare, kvs: &[pb::KeyValue]) -> bool {
    let none = pb::KeyValue::default();
    let number = |actual: i64, union: Option<i64>| actual.cmp(&union.unwrap_or(0));
    let one = |kv: &pb::KeyValue| {
        let union = compare.target_union.clone();
        let ordering = match (compare.target(), union) {
            (pb::CompareTarget::Version, u) => number(kv.version, u.and_then(int)),
            (pb::CompareTarget::Create, u) => number(kv.create_revision, u.and_then(int)),
            (pb::CompareTarget::Mod, u) => number(kv.mod_revision, u.and_then(int)),
            (pb::CompareTarget::Lease, u) => number(kv.lease, u.and_then(int)),
            (pb::CompareTarget::Value, Some(pb::TargetUnion::Value(v))) => kv.value.cmp(&v),
            (pb::CompareTarget::Value, _) => kv.value.as_ref().cmp(&[]),
        };
        match compare.result() {
            pb::CompareResult::Equal => ordering == Ordering::Equal,
            pb::CompareResult::NotEqual => ordering != Ordering::Equal,
            pb::CompareResult::Greater => ordering == Ordering::Greater,
            pb::CompareResult::Less => ordering == Ordering::Less,
        }
    };
    if kvs.is_empty() {
        // No key counts as one of zeros, but has no value.
        return compare.target() != pb::CompareTarget::Value && one(&none);
    }
    kvs.iter().all(one)
}

fn int(union: pb::TargetUnion) -> Option<i64> {
    match union {
        pb::TargetUnion::Version(n)
        | pb::TargetUnion::CreateRevision(n)
        | pb::TargetUnion::ModRevision(n)
        | pb::TargetUnion::Lease(n) => Some(n),
        pb::TargetUnion::Value(_) => None,
    }
}

/// What a Range answers, but for the header.
pub fn answer(keys: &Keys, request: &pb::RangeRequest, at: i64) -> pb::RangeResponse {
    let mut kvs = keys.range(&request.key, &request.range_end, at);
    let count = kvs.len() as i64;
    if request.count_only {
        return pb::RangeResponse { count, ..Default::default() };
    }
    kvs.retain(|kv| {
        (request.min_mod_revision == 0 || kv.mod_revision >= request.min_mod_revision)
            && (request.max_mod_revision == 0 || kv.mod_revision <= request.max_mod_revision)
            && (request.min_create_revision == 0 || kv.create_revision >= request.min_create_revision)
            && (request.max_create_revision == 0 || kv.create_revision <= request.max_create_revision)
    });
    match request.sort_target() {
        pb::SortTarget::Key => {}
        pb::SortTarget::Version => kvs.sort_by_key(|kv| kv.version),
        pb::SortTarget::Create => kvs.sort_by_key(|kv| kv.create_revision),
        pb::SortTarget::Mod => kvs.sort_by_key(|kv| kv.mod_revision),
        pb::SortTarget::Value => kvs.sort_by(|a, b| a.value.cmp(&b.value)),
    }
    if request.sort_order() == pb::SortOrder::Descend {
        kvs.reverse();
    }
    let limit = usize::try_from(request.limit).unwrap_or(0);
    let more = limit > 0 && kvs.len() > limit;
    if more {
        kvs.truncate(limit);
    }
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    pb::RangeResponse { header: None, kvs, more, count }
}
