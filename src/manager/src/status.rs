//! What the shard manager is doing, for people and for other processes.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sharded_etcd_core::{keyspace::Rid, placement::Wait, records::Record};

use crate::{
    held::Held,
    progress::{FinishedMove, MoveProgress},
    report::LoadStatus,
};

/// Key in meta, on the leader's lease, with the leader's [`Report`].
pub(crate) const REPORT_KEY: &[u8] = b"manager/report";
/// Ranges of a report at most, so that its size is bounded; the largest are reported.
pub(crate) const REPORT_RANGES_MAX: usize = 2000;

/// What a shard manager is doing; see [`Manager::status`](crate::Manager::status).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ManagerStatus {
    /// True if this one leads; the others know nothing else.
    pub leading: bool,
    /// True once every range has been read, so that the rest means something.
    pub complete: bool,
    /// True if no shard is above its share, see the planner.
    pub balanced: bool,
    /// Nothing is planned, nothing moves, nothing waits to join or leave.
    pub settled: bool,
    /// What waits for a person, if anything does.
    pub held: Option<Held>,
    /// Moves under way.
    pub moves: Vec<MoveProgress>,
    /// The last moves that are over, oldest first.
    pub finished: Vec<FinishedMove>,
    /// What clients do, if it is anything to speak of.
    pub load: Option<LoadStatus>,
    /// Steps of the newest plan, in words.
    pub steps: Vec<String>,
    /// What is not done, and why.
    pub waits: Vec<Wait>,
    /// The shards.
    pub shards: Vec<ShardReport>,
    /// Generation of the range map that this speaks of.
    pub generation: u64,
    /// Generation of the resource that is acted on, see [`Topology::generation`](sharded_etcd_core::topology::Topology).
    pub spec_generation: i64,
    /// What went wrong at the last look, if anything.
    pub error: Option<String>,
}

/// One shard, as the manager sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardReport {
    /// Its name.
    pub name: String,
    /// `Serving`, `Draining`, `Joining`, `Unreachable` or `Quarantined`.
    pub phase: String,
    /// Keys that it owns.
    pub keys: u64,
    /// Bytes of keys and values that it owns.
    pub bytes: u64,
    /// Ranges that it owns.
    pub ranges: u64,
    /// What is wrong, or what it waits for; empty for nothing.
    pub message: String,
}

/// What the leader tells other processes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Its name.
    pub leader: String,
    /// Generation of the resource that it acts on; 0 where there is none.
    #[serde(default)]
    pub generation: i64,
    /// See [`ManagerStatus::balanced`].
    pub balanced: bool,
    /// See [`ManagerStatus::settled`].
    pub settled: bool,
    /// See [`ManagerStatus::held`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// The shards.
    pub shards: Vec<ShardReport>,
    /// Keys and bytes of ranges.
    pub sizes: Vec<(Rid, u64, u64)>,
    /// Moves under way.
    pub moves: Vec<MoveReport>,
    /// The last moves that failed: range and reason.
    pub failures: Vec<(String, String)>,
    /// What clients do, if it is anything to speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<LoadStatus>,
    /// Steps of the newest plan, in words; at most 20.
    pub steps: Vec<String>,
    /// What is not done, and why; at most 20.
    pub waits: Vec<(String, String)>,
}

impl Record for Report {
    const WHAT: &'static str = "the shard manager's report (manager/report)";
}

/// One move in a [`Report`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MoveReport {
    /// Its id.
    pub id: String,
    /// Phase in words.
    pub phase: String,
    /// Progress in percent.
    pub percent: u64,
    /// How long writers waited, in milliseconds.
    pub stall_ms: Option<u64>,
    /// What it waits for.
    pub message: String,
}

impl Report {
    /// From the leader's status and the sizes of ranges.
    pub(crate) fn new(leader: &str, status: &ManagerStatus, mut sizes: Vec<(Rid, u64, u64)>) -> Self {
        sizes.sort_by(|a, b| (b.2, &a.0).cmp(&(a.2, &b.0)));
        sizes.truncate(REPORT_RANGES_MAX);
        sizes.sort();
        Self {
            leader: leader.to_owned(),
            generation: status.spec_generation,
            balanced: status.balanced,
            settled: status.settled,
            held: status.held.clone(),
            shards: status.shards.clone(),
            sizes,
            moves: status
                .moves
                .iter()
                .map(|m| MoveReport {
                    id: m.id.clone(),
                    phase: m.phase.to_owned(),
                    percent: m.percent(),
                    stall_ms: m.stall_ms,
                    message: m.message.clone(),
                })
                .collect(),
            failures: status
                .finished
                .iter()
                .rev()
                .filter_map(|f| Some((f.last.range.to_string(), f.failure.clone()?)))
                .take(10)
                .collect(),
            load: status.load.clone(),
            steps: status.steps.iter().take(20).cloned().collect(),
            waits: status.waits.iter().take(20).map(|w| (w.what.clone(), w.reason.clone())).collect(),
        }
    }

    /// Its key in meta.
    pub fn key() -> Bytes {
        Bytes::from_static(REPORT_KEY)
    }
}
