//! What the planner is given.

use bytes::Bytes;

use crate::{
    keyspace::{KeyRange, Rid},
    load::HotKey,
};

/// The state of a topology at one generation of its range map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// Generation of the range map.
    pub generation: u64,
    /// The shards, those that leave included.
    pub shards: Vec<ShardView>,
    /// The ranges, sorted by start; they tile the keyspace.
    pub ranges: Vec<RangeView>,
}

/// One shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardView {
    /// Its name, `shard-<index>`.
    pub name: String,
    /// Whether it can give and take.
    pub state: ShardState,
    /// Bytes of its database that are in use, with history and all that lies beside clients' keys and values; 0 if that is
    /// not known.
    pub used_bytes: u64,
}

/// Whether a shard can give and take ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardState {
    /// It gives and takes.
    Active,
    /// It gives only: it leaves the topology. A shard whose index the topology does not have counts as such, too.
    Draining,
    /// Not part of the line yet: it neither gives nor takes.
    Joining,
    /// It does not answer: it neither gives nor takes.
    Unreachable,
}

/// One range, with what a scan of it found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeView {
    /// The keys.
    pub range: KeyRange,
    /// Id of the owner's ownership.
    pub rid: Rid,
    /// Name of the owner.
    pub shard: String,
    /// Number of keys.
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Where it could be split, in key order, with what lies before each point: what [`super::CutScan`] gives.
    /// `None`: not known, as the range was not scanned since it came to be; it is then never split for its size, and
    /// not moved for balance if it is too large for one move.
    pub cuts: Option<Vec<CutPoint>>,
    /// What clients do to it, in operations a second (see [`crate::load::Rates::work`]), at its highest of late.
    pub work: u64,
    /// The key with a fair part of that, if there is one.
    pub hot: Option<HotKey>,
    /// True if it was moved so recently, or so often, that it is not moved for its load now.
    pub rests: bool,
    /// Name of the shard that a move under way takes it to.
    pub moving_to: Option<String>,
    /// True if it was moved so recently that it should stay for now; pins and drains move it all the same.
    pub moved_recently: bool,
}

/// A legal boundary inside a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutPoint {
    /// First key of the right part; strictly inside the range.
    pub at: Bytes,
    /// Keys of the range before it.
    pub keys_before: u64,
    /// Bytes of the range before it.
    pub bytes_before: u64,
    /// Of the range's work, what is done to keys before it: what [`crate::load::cuts_with_work`] gives, else 0.
    pub work_before: u64,
    /// True if no scan has counted what lies before it: keys and bytes are guesses, so only load is parted there.
    pub guessed: bool,
}

/// Sizes and numbers that bound what is planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes in one move; larger ranges are split first.
    pub move_bytes_max: u64,
    /// Most steps in one plan; a longer way is planned in pieces.
    pub steps_max: usize,
    /// Differences from the fair share below this number of keys are left alone.
    pub tolerance_keys: u64,
    /// Differences from the fair share below this number of bytes are left alone.
    pub tolerance_bytes: u64,
    /// Ranges of one shard above which small neighbours are merged.
    pub ranges_per_shard_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            move_bytes_max: 512 << 20,
            steps_max: 256,
            tolerance_keys: 100,
            tolerance_bytes: 1 << 20,
            ranges_per_shard_max: 64,
        }
    }
}
