//! What a user asked for, checked once: a [`Topology`] can only be had from [`validate`], so nothing behind it meets a
//! bad input.
//!
//! ```text
//! custom resource --(crate crd)--> Draft --validate--> Topology --(placement)--> Plan
//! ```

mod draft;
mod layout;

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;

use crate::keyspace::Rules;

pub use draft::{
    BOUNDARIES_MAX, BYTES_PER_SECOND_MIN, CONCURRENT_MOVES_MAX, Draft, DraftPin, DraftWeight, FieldError,
    LOAD_TOLERANCE, LOAD_TOLERANCE_MAX, LOAD_TOLERANCE_MIN, NAME_BYTES_MAX, PREFIX_BYTES_MAX,
    QUOTA_BYTES_MIN, RETENTION_MIN, SHARDS_MAX, WEIGHT, WEIGHT_MAX, validate,
};
pub use layout::PinnedRange;

/// A topology as a user wants it: checked, complete with defaults, and consistent in itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// Name of the topology; the names of its objects start with it.
    pub name: String,
    /// Generation of the resource that this comes from; 0 where there is none, as under `up`. Who acts on it says so, and
    /// what needs everybody to know of a change waits for it.
    pub generation: i64,
    /// Number of shards, `shard-0` to `shard-<shards - 1>`; 1 to [`SHARDS_MAX`].
    pub shards: u32,
    /// How keys may be spread.
    pub keyspace: Keyspace,
    /// How and how fast data may be moved.
    pub rebalance: Rebalance,
    /// How long old revisions stay readable; `None`: until a client compacts.
    pub compaction_retention: Option<Duration>,
    /// Largest database of one shard in bytes; `None`: the engine's own limit.
    pub quota_bytes: Option<u64>,
}

/// How keys may be spread over the shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyspace {
    /// Where boundaries may lie.
    pub rules: Rules,
    /// Boundaries that exist from the start and are never merged away; sorted, without repetition.
    pub presplit: Vec<Bytes>,
    /// Prefixes with a fixed shard; sorted by prefix, without repetition. The longest that fits a key wins.
    pub pins: Vec<Pin>,
}

/// A prefix whose keys always live on one shard.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pin {
    /// All keys that start with it are meant.
    pub prefix: Bytes,
    /// Index of the shard, below [`Topology::shards`].
    pub shard: u32,
}

/// How and how fast data may be moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebalance {
    /// Whether plans are carried out.
    pub mode: RebalanceMode,
    /// Moves under way at the same time, over all shards; 1 to [`CONCURRENT_MOVES_MAX`].
    pub moves_max: u32,
    /// Bound on the copying of all moves together, in bytes a second; `None`: as fast as it goes.
    pub bytes_per_second_max: Option<u64>,
    /// Differences of load between shards below this, in operations a second, are left alone;
    /// [`LOAD_TOLERANCE_MIN`] to [`LOAD_TOLERANCE_MAX`]. See [`crate::load::Rates::work`].
    pub load_tolerance: u64,
    /// Weights by index of the shard, below [`Topology::shards`]; 1 to [`WEIGHT_MAX`]. Who has none has [`WEIGHT`].
    pub weights: BTreeMap<u32, u32>,
    /// The plan that may be carried out in mode Manual: an id as [`crate::orders::plan_id`] gives.
    pub approved_plan: Option<String>,
}

impl Default for Rebalance {
    fn default() -> Self {
        Self {
            mode: RebalanceMode::Automatic,
            moves_max: 1,
            bytes_per_second_max: None,
            load_tolerance: LOAD_TOLERANCE,
            weights: BTreeMap::new(),
            approved_plan: None,
        }
    }
}

impl Rebalance {
    /// The share that the shard with this index is to have of keys, bytes and load, relative to those of the others.
    pub fn weight(&self, shard: u32) -> u32 {
        self.weights.get(&shard).copied().unwrap_or(WEIGHT)
    }
}

/// Whether plans are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RebalanceMode {
    /// Plans are carried out.
    #[default]
    Automatic,
    /// Plans are shown and wait for approval.
    Manual,
    /// Nothing new is begun; moves under way are finished.
    Paused,
}

/// The name of the shard with this index, `shard-<index>`.
pub fn shard_name(index: u32) -> String {
    format!("shard-{index}")
}

/// The index in a shard's name; `None` if it is no name that [`shard_name`] gives.
pub fn shard_index(name: &str) -> Option<u32> {
    let index = name.strip_prefix("shard-")?.parse().ok()?;
    (shard_name(index) == name).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_names() {
        assert_eq!(shard_index(&shard_name(12)), Some(12));
        for other in ["shard-", "shard-01", "shard--1", "shard-+1", "x", "shard-99999999999"] {
            assert_eq!(shard_index(other), None, "{other}");
        }
    }
}
