//! The state of a topology in the shape of the resource's status, as JSON.
//!
//! The same fields as `ShardedEtcdStatus` of the crate `crd`, which is not used here: it would bring all of kube along.

use serde::{Deserialize, Serialize};

/// Ranges listed at most.
pub(crate) const RANGES_LISTED_MAX: usize = 100;

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TopologyStatus {
    /// Generation of the resource that the leading shard manager acts on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) observed_generation: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) endpoint: Option<String>,
    pub(crate) shards: i64,
    pub(crate) keys: i64,
    pub(crate) bytes: i64,
    pub(crate) revision: i64,
    pub(crate) compact_revision: i64,
    pub(crate) conditions: Vec<Condition>,
    pub(crate) topology: Vec<ShardStatus>,
    pub(crate) range_map: RangeMapStatus,
    pub(crate) moves: Vec<MoveStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) load: Option<LoadStatus>,
    /// The newest incarnation of each shard that has left; the same name may be in `topology` again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) left: Vec<LeftShard>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct LeftShard {
    pub(crate) shard: String,
    pub(crate) incarnation: u32,
}

#[derive(Debug, Serialize)]
pub(crate) struct Condition {
    #[serde(rename = "type")]
    pub(crate) type_: &'static str,
    pub(crate) status: &'static str,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Condition {
    pub(crate) fn new(
        type_: &'static str,
        holds: Option<bool>,
        reason: &'static str,
        message: String,
    ) -> Self {
        let status = match holds {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        };
        Self { type_, status, reason, message }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ShardStatus {
    pub(crate) shard: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) incarnation: Option<i64>,
    pub(crate) phase: String,
    pub(crate) members: i64,
    pub(crate) ready: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) leader: Option<String>,
    pub(crate) db_size: i64,
    pub(crate) keys: i64,
    pub(crate) bytes: i64,
    pub(crate) ranges: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RangeMapStatus {
    pub(crate) generation: i64,
    pub(crate) total: i64,
    pub(crate) ranges: Vec<RangeStatus>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RangeStatus {
    pub(crate) start: String,
    pub(crate) end: String,
    pub(crate) shard: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) keys: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bytes: Option<i64>,
    pub(crate) rid: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MoveStatus {
    pub(crate) range: String,
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) phase: String,
    pub(crate) progress: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stall_ms: Option<i64>,
    pub(crate) reason: String,
}

/// What clients do, by the second, in figures with two digits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadStatus {
    /// The shards that have any load.
    pub shards: Vec<ShardLoad>,
    /// The busiest ranges, at most 10.
    pub ranges: Vec<RangeLoad>,
    /// The busiest keys, at most 10.
    pub keys: Vec<KeyLoad>,
}

/// What clients do on one shard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShardLoad {
    /// Its name.
    pub shard: String,
    /// Requests that read.
    pub reads: i64,
    /// Requests that write.
    pub writes: i64,
    /// Bytes given to clients.
    pub read_bytes: i64,
    /// Bytes taken from clients.
    pub written_bytes: i64,
    /// Events sent to watchers.
    pub watch_events: i64,
    /// What it costs the shard, see [`sharded_etcd_core::load::Rates::work`].
    pub operations: i64,
}

/// What clients do in one range.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RangeLoad {
    /// First key, printable.
    pub start: String,
    /// First key after it; empty for the end of the keyspace.
    pub end: String,
    /// Its owner.
    pub shard: String,
    /// Requests that read.
    pub reads: i64,
    /// Requests that write.
    pub writes: i64,
    /// As of a shard.
    pub operations: i64,
}

/// What clients do to one key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyLoad {
    /// The key, printable.
    pub key: String,
    /// The shard that it is on.
    pub shard: String,
    /// As of a shard, at least.
    pub operations: i64,
}
