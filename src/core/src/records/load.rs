//! What proxies tell of the load that they see.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Record;
use crate::keyspace::{KeyRange, hex};

/// The load that each proxy sees, on the lease of its registration: [`LoadRecord`].
pub const LOAD_PREFIX: &[u8] = b"load/";

/// Key of what a proxy tells.
pub fn load_key(member_id: u64) -> Bytes {
    format!("load/{member_id:016x}").into()
}

/// The busiest ranges and keys as one proxy sees them. Names are short as there may be hundreds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LoadRecord {
    /// Sorted by start; of a range map that the proxy knew, which need not be the newest.
    pub ranges: Vec<RangeLoad>,
    /// Sorted by key; the busiest keys, and a sample of where the work lies.
    pub keys: Vec<KeyLoad>,
}

impl Record for LoadRecord {
    const WHAT: &'static str = "the load that a proxy sees (load/)";
}

/// What clients of one proxy do to a range, by the second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeLoad {
    /// The keys.
    #[serde(flatten)]
    pub range: KeyRange,
    /// Requests that read.
    #[serde(rename = "r", default, skip_serializing_if = "is_zero")]
    pub reads: u64,
    /// Requests that write.
    #[serde(rename = "w", default, skip_serializing_if = "is_zero")]
    pub writes: u64,
    /// Bytes given to clients.
    #[serde(rename = "rb", default, skip_serializing_if = "is_zero")]
    pub read_bytes: u64,
    /// Bytes taken from clients.
    #[serde(rename = "wb", default, skip_serializing_if = "is_zero")]
    pub written_bytes: u64,
    /// Events sent to watchers.
    #[serde(rename = "e", default, skip_serializing_if = "is_zero")]
    pub events: u64,
}

/// What clients of one proxy do to a key, see [`crate::load::Rates::work`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyLoad {
    /// The key.
    #[serde(with = "hex")]
    pub key: Bytes,
    /// Work on it, and maybe on keys that were seldom asked for.
    #[serde(rename = "w")]
    pub work: u64,
    /// Work on it for sure.
    #[serde(rename = "s", default, skip_serializing_if = "is_zero")]
    pub sure: u64,
}

/// What the leading shard manager tells the next one: [`MemoryRecord`].
pub const MEMORY: &[u8] = b"manager/memory";

/// What the planner is to remember whoever leads; see [`crate::load::Memory`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryRecord {
    /// Ranges that were moved lately, the oldest first.
    pub rests: Vec<RangeRest>,
    /// The busiest ranges, sorted by start, without overlap.
    pub peaks: Vec<RangePeak>,
    /// Ranges whose move a person aborted lately, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aborted: Vec<RangeAborted>,
}

impl Record for MemoryRecord {
    const WHAT: &'static str = "what the planner remembers (manager/memory)";
}

/// The load of a range at its highest of late.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangePeak {
    /// The keys.
    #[serde(flatten)]
    pub range: KeyRange,
    /// Operations a second, see [`crate::load::Rates::work`].
    #[serde(rename = "w")]
    pub work: u64,
}

/// A range that was moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeRest {
    /// The keys.
    #[serde(flatten)]
    pub range: KeyRange,
    /// How often it was moved soon again.
    #[serde(rename = "n")]
    pub times: u32,
    /// Seconds that it still rests for, from when this was written.
    #[serde(rename = "r", default, skip_serializing_if = "is_zero")]
    pub rest_s: u64,
    /// Seconds until it is forgotten how often it was moved.
    #[serde(rename = "k")]
    pub kept_s: u64,
}

/// A range whose move a person aborted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeAborted {
    /// The keys.
    #[serde(flatten)]
    pub range: KeyRange,
    /// Seconds for which the planner leaves it alone, from when this was written.
    #[serde(rename = "r")]
    pub rest_s: u64,
}

// Serde passes a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_an_older_release_remembered_is_read() {
        let old = br#"{"v":1,"rests":[{"start":"61","end":"62","n":1,"k":9}],"peaks":[]}"#;
        let told = MemoryRecord::decode(&Bytes::from_static(old)).unwrap();
        assert!(told.aborted.is_empty() && told.rests.len() == 1);
        assert_eq!(told.encode().as_ref(), old, "and nothing is written that it would not know");
    }

    #[test]
    fn what_is_zero_takes_no_room() {
        let range = KeyRange::new("a", "");
        let idle = RangeLoad { range, reads: 7, writes: 0, read_bytes: 0, written_bytes: 0, events: 0 };
        let key = KeyLoad { key: Bytes::from_static(b"a"), work: 3, sure: 0 };
        let record = LoadRecord { ranges: vec![idle], keys: vec![key] };
        let bytes = record.encode();
        assert_eq!(
            bytes.as_ref(),
            br#"{"v":1,"ranges":[{"start":"61","end":"","r":7}],"keys":[{"key":"61","w":3}]}"#
        );
        assert_eq!(LoadRecord::decode(&bytes).unwrap(), record);
        assert_eq!(load_key(255).as_ref(), b"load/00000000000000ff");
    }
}
