//! Records in meta.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Record;
use crate::{
    hash::fnv1a,
    keyspace::{KeyRange, RangeEntry, Rid, ShardIx},
};

/// Identity of the topology: [`TopologyId`].
pub const TOPOLOGY_ID: &[u8] = b"t/id";
/// What a topology is being started with, until it is: [`FirstRecord`].
pub const FIRST: &[u8] = b"t/first";
/// The log: its entries are the revisions of this one key.
pub const CUT_LATEST: &[u8] = b"cut/latest";
/// The compare-and-swap key of map changes: [`MapRecord`].
pub const MAP: &[u8] = b"map";
/// The chunks of all checkpoints, and behind them the head.
pub const CHECKPOINTS_PREFIX: &[u8] = b"ckpt/";
/// The newest checkpoint of the fold: [`CheckpointHead`].
pub const CHECKPOINT_HEAD: &[u8] = b"ckpt/head";
/// All moves: [`MoveRecord`].
pub const MOVES_PREFIX: &[u8] = b"moves/";
/// All leases.
pub const LEASE_PREFIX: &[u8] = b"lease/";
/// All proxies: [`ProxyRecord`], each on a lease of its own.
pub const PROXIES_PREFIX: &[u8] = b"proxies/";
/// The leading shard manager, on its lease.
pub const MANAGER_LEADER: &[u8] = b"manager/leader";

/// Identity of a topology, written once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopologyId {
    /// Uid of the resource (in `up`: of the data folder).
    pub uid: String,
    /// The cluster id that clients see in every header.
    pub cluster_id: u64,
}

impl TopologyId {
    /// The identity that follows from a resource's uid alone, so that all who start the topology agree on it.
    pub fn of_uid(uid: impl Into<String>) -> Self {
        let uid = uid.into();
        // 0 is etcd's "none".
        let cluster_id = fnv1a(uid.as_bytes()).max(1);
        Self { uid, cluster_id }
    }
}

impl Record for TopologyId {
    const WHAT: &'static str = "the topology's identity (t/id)";
}

/// What a topology is being started with: written once all shards answer, before the first of them is claimed, so that
/// whoever goes on with it claims the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstRecord {
    /// Uid of the resource.
    pub uid: String,
    /// Names and incarnations of the shards; their places are their join numbers.
    pub shards: Vec<(String, u32)>,
    /// The first ranges.
    pub ranges: Vec<RangeEntry>,
}

impl Record for FirstRecord {
    const WHAT: &'static str = "the start of the topology (t/first)";
}

/// Value of [`MAP`]. What counts is the key's mod revision; the generation is for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapRecord {
    /// Generation of the range map.
    pub generation: u64,
}

impl Record for MapRecord {
    const WHAT: &'static str = "the range map's generation (map)";
}

/// Where the newest checkpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointHead {
    /// Log position (meta revision) of the fold in it.
    pub position: i64,
    /// Its chunks are `ckpt/<id>/0` … `ckpt/<id>/<chunks - 1>`. It begins with the position in 16 hexadecimal digits, so that
    /// the chunks of older ones lie before those of newer ones, and all before the head.
    pub id: String,
    /// Number of chunks, of at most 1 MiB each.
    pub chunks: u32,
    /// CRC-32 would not see a chunk of another checkpoint; the length of the whole does.
    pub bytes: u64,
}

impl Record for CheckpointHead {
    const WHAT: &'static str = "the checkpoint's head (ckpt/head)";
}

/// Key of one chunk of a checkpoint.
pub fn checkpoint_chunk(id: &str, n: u32) -> Bytes {
    format!("ckpt/{id}/{n:08}").into()
}

/// Prefix of all chunks of a checkpoint.
pub fn checkpoint_prefix(id: &str) -> Bytes {
    format!("ckpt/{id}/").into()
}

/// A proxy that serves, on its lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyRecord {
    /// Its member name.
    pub name: String,
    /// What clients are told to dial.
    pub client_urls: Vec<String>,
    /// Revision of the line up to which all of its watchers are served; physical compaction stays below.
    pub revision: i64,
    /// Generation of the routing file's contents that it acts on; absent where it has none, as under `up`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// Digest of the shards that it has connections to, names and incarnations: contents of one generation may differ in
    /// them, as a shard is routed only once it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards: Option<u64>,
}

impl Record for ProxyRecord {
    const WHAT: &'static str = "a proxy's registration (proxies/)";
}

/// Key of a proxy's registration.
pub fn proxy_key(member_id: u64) -> Bytes {
    format!("proxies/{member_id:016x}").into()
}

/// State of a lease in meta.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseState {
    /// Keys may be attached.
    Live,
    /// Being revoked, or expired: its keys are under deletion.
    Revoking,
    /// All of its keys are gone, for clients it is no more; its shadows on the shards are being dropped.
    Gone,
}

/// A lease that a client granted: `lease/<id>`. Its *epoch* is this key's create revision in meta.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// Granted time to live in seconds; 0 of a record that a sweep made, see [`Self::is_for_clients`].
    pub ttl: i64,
    /// State.
    pub state: LeaseState,
    /// The client chose the id, so it may come back; an id that the topology chose never does.
    #[serde(default, skip_serializing_if = "is_false")]
    pub chosen: bool,
    /// Who is ending it: a random number for each attempt. `LeaseRevoke` cannot be guarded, so only one may send it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub helper: Option<u64>,
    /// A `LeaseRevoke` with unknown outcome may still be on its way somewhere, as its helper vanished or got no answer:
    /// an id that a client chose must rest before it is granted again.
    #[serde(default, skip_serializing_if = "is_false")]
    pub uncertain: bool,
}

impl LeaseRecord {
    /// Whether clients know the lease. They do not once its keys are gone, nor if a sweep made the record: what it found
    /// without one may be what a lease that ended a moment ago has left, which was told to be gone.
    pub fn is_for_clients(&self) -> bool {
        self.state != LeaseState::Gone && self.ttl > 0
    }
}

// Serde passes a reference.
fn is_false(value: &bool) -> bool {
    !*value
}

impl Record for LeaseRecord {
    const WHAT: &'static str = "a lease (lease/)";
}

/// Key of a lease's record.
pub fn lease_key(id: i64) -> Bytes {
    format!("lease/{id:016x}").into()
}

/// Key that lives on the real lease: when it is gone, the lease has expired.
pub fn lease_alive_key(id: i64) -> Bytes {
    format!("lease/{id:016x}/alive").into()
}

/// Key that registers the shadow of a lease on a shard.
pub fn lease_shadow_key(id: i64, shard: ShardIx) -> Bytes {
    format!("lease/{id:016x}/shadow/{:08}", shard.0).into()
}

/// Prefix of all shadow registrations of a lease.
pub fn lease_shadow_prefix(id: i64) -> Bytes {
    format!("lease/{id:016x}/shadow/").into()
}

/// The lease id in a key below `lease/`, and what follows it (`""`, `"alive"`, `"shadow/00000001"`).
pub fn lease_id_of_key(key: &[u8]) -> Option<(i64, &str)> {
    let text = std::str::from_utf8(key.strip_prefix(LEASE_PREFIX)?).ok()?;
    let (id, rest) = text.split_once('/').unwrap_or((text, ""));
    (id.len() == 16).then(|| u64::from_str_radix(id, 16).ok())?.map(|id| (id as i64, rest))
}

/// One move of one ownership: `moves/<rid>`. Flip and abort both compare it, so the decision is in meta alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRecord {
    /// Id of the move; the rid of the ownership that it makes is derived from it.
    pub id: String,
    /// The ownership that ends.
    pub rid: Rid,
    /// The ownership that begins.
    pub new_rid: Rid,
    /// The keys.
    pub range: KeyRange,
    /// Source.
    pub from: ShardIx,
    /// Destination.
    pub to: ShardIx,
    /// Where it is.
    pub phase: MovePhase,
    /// Why the planner asked for it, in words.
    pub reason: String,
}

impl Record for MoveRecord {
    const WHAT: &'static str = "a move (moves/)";
}

/// Phase of a move, as far as meta knows; finer steps are in the shards' own records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MovePhase {
    /// Copy, tail, verify, close and seal.
    Copying,
    /// Decided: the destination owns the range; the source is to be purged.
    Flipped,
    /// Decided: nothing happened; the destination is to be purged.
    Aborting,
}

/// Key of a move.
pub fn move_key(rid: &Rid) -> Bytes {
    format!("moves/{rid}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_from_the_uid() {
        let id = TopologyId::of_uid("8f2c");
        assert_eq!(id, TopologyId::of_uid("8f2c"));
        assert_ne!(id.cluster_id, TopologyId::of_uid("8f2d").cluster_id);
        assert_ne!(TopologyId::of_uid("").cluster_id, 0);
    }

    #[test]
    fn registrations_of_proxies_without_a_generation_are_read() {
        let mut record = ProxyRecord {
            name: "p".into(),
            client_urls: vec![],
            revision: 7,
            generation: None,
            shards: None,
        };
        let before = br#"{"v":1,"name":"p","client_urls":[],"revision":7}"#;
        assert_eq!(record.encode().as_ref(), before);
        (record.generation, record.shards) = (Some(3), Some(u64::MAX));
        assert_eq!(ProxyRecord::decode(&record.encode()).unwrap(), record);
    }

    #[test]
    fn lease_records_are_small() {
        let record =
            LeaseRecord { ttl: 9, state: LeaseState::Live, chosen: false, helper: None, uncertain: false };
        assert_eq!(record.encode().as_ref(), br#"{"v":1,"ttl":9,"state":"live"}"#);
        let ending = LeaseRecord { state: LeaseState::Gone, helper: Some(u64::MAX), chosen: true, ..record };
        assert_eq!(LeaseRecord::decode(&ending.encode()).unwrap(), ending);
    }

    #[test]
    fn lease_keys_map_back() {
        for id in [1, i64::MAX, -5] {
            assert_eq!(lease_id_of_key(&lease_key(id)), Some((id, "")));
            assert_eq!(lease_id_of_key(&lease_alive_key(id)), Some((id, "alive")));
            assert_eq!(lease_id_of_key(&lease_shadow_key(id, ShardIx(3))), Some((id, "shadow/00000003")));
        }
        assert_eq!(lease_id_of_key(b"lease/xyz"), None);
    }
}
