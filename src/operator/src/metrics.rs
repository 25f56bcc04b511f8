//! What the operator counts.

use std::sync::Arc;

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// How a reconcile ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    result: &'static str,
}

/// A write to the API server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Write {
    kind: String,
    verb: &'static str,
}

/// The operator's own metrics.
pub(crate) struct Metrics {
    registry: Registry,
    reconciles: Family<Ended, Counter>,
    reconcile_seconds: Histogram,
    writes: Family<Write, Counter>,
    asks_failed: Counter,
    resources: Gauge,
    resources_not_ready: Gauge,
    leader: Gauge,
    memory: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix("sharded_etcd_operator");
        let reconciles = Family::default();
        registry.register("reconciles", "Reconciles, by result", reconciles.clone());
        let buckets = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0];
        let reconcile_seconds = Histogram::new(buckets);
        registry.register_with_unit(
            "reconcile",
            "Time that a reconcile takes",
            Unit::Seconds,
            reconcile_seconds.clone(),
        );
        let writes = Family::default();
        registry.register(
            "api_writes",
            "Writes to the API server, by kind of object and verb",
            writes.clone(),
        );
        let asks_failed = Counter::default();
        registry.register(
            "asks_failed",
            "Questions to shard managers that got no answer",
            asks_failed.clone(),
        );
        let [resources, resources_not_ready, leader, memory] = std::array::from_fn(|_| Gauge::default());
        registry.register("resources", "Resources", resources.clone());
        registry.register("resources_not_ready", "Resources that are not ready", resources_not_ready.clone());
        registry.register("leader", "1 if this replica acts, 0 if it stands by", leader.clone());
        registry.register_with_unit(
            "resident_memory",
            "Resident memory of the process",
            Unit::Bytes,
            memory.clone(),
        );
        Arc::new(Self {
            registry,
            reconciles,
            reconcile_seconds,
            writes,
            asks_failed,
            resources,
            resources_not_ready,
            leader,
            memory,
        })
    }

    pub(crate) fn reconciled(&self, result: &'static str, seconds: f64) {
        self.reconciles.get_or_create(&Ended { result }).inc();
        self.reconcile_seconds.observe(seconds);
    }

    pub(crate) fn wrote(&self, kind: &str, verb: &'static str) {
        self.writes.get_or_create(&Write { kind: kind.to_owned(), verb }).inc();
    }

    pub(crate) fn ask_failed(&self) {
        self.asks_failed.inc();
    }

    pub(crate) fn set_leader(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// Everything, in the text format of OpenMetrics.
    pub(crate) fn text(&self, resources: usize, not_ready: usize) -> String {
        self.resources.set(i64::try_from(resources).unwrap_or(i64::MAX));
        self.resources_not_ready.set(i64::try_from(not_ready).unwrap_or(i64::MAX));
        self.memory.set(resident_bytes().unwrap_or_default());
        let mut out = String::new();
        // Writing into a string cannot fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

/// `None` where there is no /proc.
fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_in_the_text() {
        let metrics = Metrics::new();
        metrics.reconciled("ok", 0.01);
        metrics.wrote("StatefulSet", "apply");
        metrics.ask_failed();
        metrics.set_leader(true);
        let text = metrics.text(3, 1);
        for line in [
            "sharded_etcd_operator_reconciles_total{result=\"ok\"} 1",
            "sharded_etcd_operator_reconcile_seconds_count 1",
            "sharded_etcd_operator_api_writes_total{kind=\"StatefulSet\",verb=\"apply\"} 1",
            "sharded_etcd_operator_asks_failed_total 1",
            "sharded_etcd_operator_resources 3",
            "sharded_etcd_operator_resources_not_ready 1",
            "sharded_etcd_operator_leader 1",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
