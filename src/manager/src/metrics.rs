//! Metrics of the moves that this process executes, and of the plans of the leader.

use std::{sync::atomic::AtomicU64, time::Duration};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use sharded_etcd_core::placement::Plan;

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

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MeasureLabel {
    measure: &'static str,
}

/// What the leader's newest plan says; nothing in a process that does not lead.
#[derive(Debug, Default)]
pub(crate) struct PlanGauges {
    imbalance: Family<MeasureLabel, Gauge<f64, AtomicU64>>,
    steps: Gauge,
    waits: Gauge,
}

impl PlanGauges {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "imbalance_ratio",
            "What the fullest shard has of its fair share, in keys, bytes and load",
            self.imbalance.clone(),
        );
        registry.register("planned_steps", "Steps of the newest plan", self.steps.clone());
        registry.register("plan_waits", "Reasons why something is not done now", self.waits.clone());
    }

    pub(crate) fn show(&self, plan: &Plan, waits: usize) {
        for (measure, figures) in [("keys", &plan.keys), ("bytes", &plan.bytes), ("load", &plan.load)] {
            let ratio = figures.highest_percent as f64 / 100.0;
            self.imbalance.get_or_create(&MeasureLabel { measure }).set(ratio);
        }
        self.steps.set(i64::try_from(plan.steps.len()).unwrap_or(i64::MAX));
        self.waits.set(i64::try_from(waits).unwrap_or(i64::MAX));
    }

    /// Another process leads, or none.
    pub(crate) fn clear(&self) {
        self.imbalance.clear();
        self.steps.set(0);
        self.waits.set(0);
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
    /// Of the newest plan.
    pub(crate) plans: PlanGauges,
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
            plans: PlanGauges::default(),
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
        self.plans.register(registry);
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use sharded_etcd_core::placement::Figures;

    use super::*;

    fn shown(registry: &Registry) -> Vec<String> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        let names = ["imbalance_ratio", "planned_steps", "plan_waits"];
        let is_of_a_plan = |line: &&str| names.iter().any(|name| line.starts_with(name));
        let mut lines: Vec<String> = text.lines().filter(is_of_a_plan).map(str::to_owned).collect();
        lines.sort();
        lines
    }

    #[test]
    fn gauges_show_the_newest_plan_of_who_leads() {
        let (counters, mut registry) = (MoveCounters::default(), Registry::default());
        counters.register(&mut registry);
        assert_eq!(shown(&registry), ["plan_waits 0", "planned_steps 0"]);
        let figures = |highest_percent| Figures { highest_percent, ..Figures::default() };
        let mut plan = Plan {
            parent_generation: 1,
            steps: Vec::new(),
            waits: Vec::new(),
            balanced: false,
            keys: figures(150),
            bytes: figures(100),
            load: figures(233),
            truncated: false,
        };
        counters.plans.show(&plan, 3);
        let expected = [
            "imbalance_ratio{measure=\"bytes\"} 1.0",
            "imbalance_ratio{measure=\"keys\"} 1.5",
            "imbalance_ratio{measure=\"load\"} 2.33",
            "plan_waits 3",
            "planned_steps 0",
        ];
        assert_eq!(shown(&registry), expected);
        plan.load = figures(u64::MAX);
        counters.plans.show(&plan, usize::MAX);
        assert!(shown(&registry).contains(&format!("plan_waits {}", i64::MAX)));
        // Another one leads: a figure of an old plan would be a lie.
        counters.plans.clear();
        assert_eq!(shown(&registry), ["plan_waits 0", "planned_steps 0"]);
    }

    #[test]
    fn moves_are_counted_by_phase_and_stalls_are_given_once() {
        let (counters, mut registry) = (MoveCounters::default(), Registry::default());
        counters.register(&mut registry);
        counters.phases(&["copy", "copy", "flip"]);
        counters.phases(&["copy"]);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("moves_under_way{phase=\"copy\"} 1\n"), "{text}");
        assert!(text.contains("moves_under_way{phase=\"flip\"} 0\n"), "{text}");
        counters.stalled(Duration::from_millis(30));
        assert_eq!(counters.take_stalls(), [Duration::from_millis(30)]);
        assert!(counters.take_stalls().is_empty());
        (0..STALLS_MAX + 5).for_each(|_| counters.stalled(Duration::ZERO));
        assert_eq!(counters.take_stalls().len(), STALLS_MAX);
    }
}
