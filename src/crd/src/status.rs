//! The status of the resource; `status -o json` prints the same.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most ranges that a status lists, so that its size stays bounded.
pub const RANGES_LISTED_MAX: usize = 100;

/// What there is.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct ShardedEtcdStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where clients connect to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Label selector of the shards' pods, for the scale sub-resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Number of shards, those that leave included.
    pub shards: i64,
    /// Keys of clients over all shards.
    pub keys: i64,
    /// Bytes of clients' keys and values over all shards.
    pub bytes: i64,
    /// The newest revision.
    pub revision: i64,
    /// Revisions below it are compacted.
    pub compact_revision: i64,
    /// Ready, Reconciling, Stalled, Balanced, AwaitingApproval.
    pub conditions: Vec<Condition>,
    /// The shards.
    pub topology: Vec<ShardStatus>,
    /// Which shard owns what.
    pub range_map: RangeMapStatus,
    /// Moves under way.
    pub moves: Vec<MoveStatus>,
    /// What clients do; absent if they do next to nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load: Option<LoadStatus>,
}

/// One aspect of the state, in the shape of Kubernetes' own conditions.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Name of the aspect.
    #[serde(rename = "type")]
    pub type_: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// One word why, in CamelCase.
    pub reason: String,
    /// Why, for people.
    pub message: String,
    /// When `status` changed last, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<String>,
    /// Generation of the spec that it speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Whether a condition holds.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Not known.
    Unknown,
}

impl From<bool> for ConditionStatus {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// One shard.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ShardStatus {
    /// Its name, `shard-<index>`.
    pub shard: String,
    /// Which shard of that name it is, from 0: raised when one that has left is made anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<i64>,
    /// What it is doing.
    pub phase: ShardPhase,
    /// Members that it should have.
    pub members: i64,
    /// Members that answer.
    pub ready: i64,
    /// Its leader, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Size of its database in bytes, history and free pages included.
    pub db_size: i64,
    /// Keys of clients that it owns.
    pub keys: i64,
    /// Bytes of keys and values of clients that it owns.
    pub bytes: i64,
    /// Ranges that it owns.
    pub ranges: i64,
    /// What is wrong, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What a shard is doing.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardPhase {
    /// It is starting and owns nothing yet.
    Joining,
    /// It serves its ranges.
    Serving,
    /// It is being emptied, to be removed.
    Draining,
    /// It does not answer.
    Unreachable,
    /// It answers, but with a history that is not the one known, so it is not used.
    Quarantined,
}

/// Which shard owns what.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct RangeMapStatus {
    /// Raised with each change.
    pub generation: i64,
    /// Number of ranges.
    pub total: i64,
    /// The first ranges, at most 100.
    #[schemars(length(max = 100))]
    pub ranges: Vec<RangeStatus>,
}

/// One range.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RangeStatus {
    /// First key, in the notation of [`key_text`].
    pub start: String,
    /// First key after it; empty for the end of the keyspace.
    pub end: String,
    /// Its owner.
    pub shard: String,
    /// Keys in it, if counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<i64>,
    /// Bytes of keys and values in it, if counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
    /// Id of the shard's ownership of it.
    pub rid: String,
}

/// A move under way.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct MoveStatus {
    /// The range, for people.
    pub range: String,
    /// Shard that gives it.
    pub from: String,
    /// Shard that takes it.
    pub to: String,
    /// Where the move is.
    pub phase: String,
    /// Copied part in percent, 0 to 100.
    pub progress: i64,
    /// How long writes to the range were held, in milliseconds; absent before the flip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stall_ms: Option<i64>,
    /// Why it moves.
    pub reason: String,
}

/// What clients do, by the second: means over about a minute, with two significant digits.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadStatus {
    /// The shards that have any load.
    pub shards: Vec<ShardLoad>,
    /// The busiest ranges, at most 10.
    #[schemars(length(max = 10))]
    pub ranges: Vec<RangeLoad>,
    /// The busiest keys, at most 10, if any has a load to speak of.
    #[schemars(length(max = 10))]
    pub keys: Vec<KeyLoad>,
}

/// What clients do on one shard, by the second.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct ShardLoad {
    /// The shard.
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
    /// What it costs the shard: a read counts 1, a write 4, 16 KiB 1 more.
    pub operations: i64,
}

/// What clients do in one range, by the second.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct RangeLoad {
    /// First key, in the notation of [`key_text`].
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

/// What clients do to one key, by the second.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct KeyLoad {
    /// The key, in the notation of [`key_text`].
    pub key: String,
    /// The shard that it is on.
    pub shard: String,
    /// As of a shard, at least.
    pub operations: i64,
}

/// A key as text: printable ASCII as it is, a backslash as `\\`, every other byte as `\xNN`.
pub fn key_text(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_shape() {
        let status = ShardedEtcdStatus {
            shards: 1,
            conditions: vec![Condition {
                type_: "Ready".into(),
                status: true.into(),
                reason: "Serving".into(),
                message: "all shards serve".into(),
                last_transition_time: None,
                observed_generation: None,
            }],
            range_map: RangeMapStatus {
                generation: 1,
                total: 1,
                ranges: vec![RangeStatus {
                    start: key_text(b""),
                    end: key_text(b"a\xff"),
                    shard: "shard-0".into(),
                    keys: Some(3),
                    bytes: None,
                    rid: "b-shard-0".into(),
                }],
            },
            ..ShardedEtcdStatus::default()
        };
        assert_eq!(
            serde_json::to_string(&status).expect("plain data"),
            r#"{"shards":1,"keys":0,"bytes":0,"revision":0,"compactRevision":0,"conditions":[{"type":"Ready","status":"True","reason":"Serving","message":"all shards serve"}],"topology":[],"rangeMap":{"generation":1,"total":1,"ranges":[{"start":"","end":"a\\xff","shard":"shard-0","keys":3,"rid":"b-shard-0"}]},"moves":[]}"#
        );
    }
}
