//! Records of etcd's database beside the keys (server/storage/schema, server/lease/leasepb of etcd 3.7).

use serde_json::json;

use super::{Member, STORAGE_VERSION};
use crate::mvcc::Store;

pub(super) const CONSISTENT_INDEX: &[u8] = b"consistent_index";
pub(super) const SCHEDULED_COMPACTION: &[u8] = b"scheduledCompactRev";
pub(super) const FINISHED_COMPACTION: &[u8] = b"finishedCompactRev";
pub(super) const AUTH_ENABLED: &[u8] = b"authEnabled";
pub(super) const AUTH_REVISION: &[u8] = b"authRevision";
const TERM: &[u8] = b"term";
const STORAGE: &[u8] = b"storageVersion";

/// Records of the bucket meta that etcd leaves out of its hash.
pub(super) const IGNORED_BY_HASH: [&[u8]; 3] = [CONSISTENT_INDEX, TERM, STORAGE];

/// `leasepb.Lease`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct LeaseRecord {
    #[prost(int64, tag = "1")]
    pub(super) id: i64,
    /// Seconds granted.
    #[prost(int64, tag = "2")]
    pub(super) ttl: i64,
    /// Seconds left when they were last written down; 0 for all of them.
    #[prost(int64, tag = "3")]
    pub(super) remaining_ttl: i64,
}

type Pair = (Vec<u8>, Vec<u8>);

pub(super) fn meta(member_id: u64, store: &Store, term: u64) -> Vec<Pair> {
    let number = |number: u64| number.to_be_bytes().to_vec();
    // 0 would mean that it is unknown.
    let index = store.applied().max(1);
    let voters = json!({ "voters": [member_id], "auto_leave": false });
    let mut pairs = vec![
        (CONSISTENT_INDEX.to_vec(), number(index)),
        (TERM.to_vec(), number(term)),
        (b"confState".to_vec(), voters.to_string().into_bytes()),
        (STORAGE.to_vec(), STORAGE_VERSION.as_bytes().to_vec()),
    ];
    let compacted = store.compact_revision();
    if compacted >= 0 {
        let mut revision = compacted.to_be_bytes().to_vec();
        revision.push(b'_');
        revision.extend_from_slice(&[0; 8]);
        pairs.push((SCHEDULED_COMPACTION.to_vec(), revision.clone()));
        pairs.push((FINISHED_COMPACTION.to_vec(), revision));
    }
    pairs
}

pub(super) fn cluster() -> Vec<Pair> {
    let downgrade = json!({ "target-version": "", "enabled": false });
    vec![
        (b"clusterVersion".to_vec(), STORAGE_VERSION.as_bytes().to_vec()),
        (b"downgrade".to_vec(), downgrade.to_string().into_bytes()),
    ]
}

/// etcd wants a peer URL of every member. An engine has none, and who restores gives new ones.
pub(super) fn member(id: u64, member: &Member) -> Pair {
    let record = json!({
        "id": id,
        "peerURLs": ["http://localhost:2380"],
        "name": member.name,
        "clientURLs": &*member.client_urls,
    });
    (format!("{id:x}").into_bytes(), record.to_string().into_bytes())
}

/// The revision of a record that names one.
pub(super) fn main_revision(bytes: &[u8]) -> Option<i64> {
    let main = i64::from_be_bytes(bytes.get(..8)?.try_into().ok()?);
    (bytes.len() == 17 && bytes[8] == b'_' && main >= 0).then_some(main)
}
