//! The state of a topology in the shape of the resource's status, as JSON.
//!
//! The same fields as `ShardedEtcdStatus` of the crate `crd`, which is not used here: it would bring all of kube along.

use serde::Serialize;

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
