//! Metrics of the moves that this process executes.

use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// Stalls that are remembered between two calls of [`MoveCounters::take_stalls`].
const STALLS_MAX: usize = 10_000;
/// Upper bounds of the buckets of the stall histogram, in seconds. The aims are p50 0.04, p99 0.25, never above 0.5.
const STALL_BUCKETS: [f64; 10] = [0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.25, 0.5, 1.0, 2.0];
/// Phases that a move is reported in.
const PHASES: [&str; 7] = ["open", "copy", "tail", "close", "flip", "purge", "abort"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: Phase,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Phase(&'static str);

impl EncodeLabelValue for Phase {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }
}

/// Counters over all moves of this process.
#[derive(Debug)]
pub struct MoveCounters {
    /// Moves that ended with a new owner.
    pub moved: Counter,
    /// Moves that were aborted.
    pub aborted: Counter,
    /// Executions that failed and were tried again.
    pub retried: Counter,
    /// Bytes imported.
    pub bytes: Counter,
    /// Keys imported.
    pub keys: Counter,
    /// Splits done.
    pub splits: Counter,
    /// Merges done.
    pub merges: Counter,
    stall_seconds: Histogram,
    under_way: Family<PhaseLabel, Gauge>,
    stalls: Mutex<Vec<Duration>>,
}

impl Default for MoveCounters {
    fn default() -> Self {
        Self {
            moved: Counter::default(),
            aborted: Counter::default(),
            retried: Counter::default(),
            bytes: Counter::default(),
            keys: Counter::default(),
            splits: Counter::default(),
            merges: Counter::default(),
            stall_seconds: Histogram::new(STALL_BUCKETS),
            under_way: Family::default(),
            stalls: Mutex::default(),
        }
    }
}

impl MoveCounters {
    /// Adds them to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("moves_done", "Moves that ended with a new owner", self.moved.clone());
        registry.register("moves_aborted", "Moves that were aborted", self.aborted.clone());
        registry.register(
            "moves_retried",
            "Executions of moves that failed and were tried again",
            self.retried.clone(),
        );
        registry.register("moves_bytes", "Bytes imported by moves", self.bytes.clone());
        registry.register("moves_keys", "Keys imported by moves", self.keys.clone());
        registry.register("splits_done", "Ranges split", self.splits.clone());
        registry.register("merges_done", "Ranges merged", self.merges.clone());
        registry.register(
            "move_stall_seconds",
            "Seconds from the close of a move's source to the flip, or to its release",
            self.stall_seconds.clone(),
        );
        registry.register("moves_under_way", "Moves under way by phase", self.under_way.clone());
    }

    /// Takes the write stalls since the last call; at most 10,000.
    pub fn take_stalls(&self) -> Vec<Duration> {
        std::mem::take(&mut self.stalls.lock())
    }

    pub(crate) fn stalled(&self, stall: Duration) {
        self.stall_seconds.observe(stall.as_secs_f64());
        let mut stalls = self.stalls.lock();
        if stalls.len() < STALLS_MAX {
            stalls.push(stall);
        }
    }

    pub(crate) fn phases(&self, now: &[&'static str]) {
        for phase in PHASES {
            let count = now.iter().filter(|p| **p == phase).count();
            let gauge = self.under_way.get_or_create(&PhaseLabel { phase: Phase(phase) });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}
