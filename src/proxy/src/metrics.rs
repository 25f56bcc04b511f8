//! What the proxy counts, in the Prometheus text format.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::load::Load;

/// Label: which call.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Call {
    /// The gRPC method's name.
    pub method: &'static str,
    /// `ok`, or the gRPC code.
    pub code: &'static str,
}

/// Label: which shard.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfShard {
    /// Its name.
    pub shard: String,
}

/// The proxy's counters and gauges.
pub struct Metrics {
    registry: parking_lot::Mutex<Registry>,
    /// What clients do to each range, for the shard manager.
    pub load: Load,
    /// Requests answered.
    pub requests: Family<Call, Counter>,
    /// Writes that wait for a closed fence now.
    pub held_writes: Gauge,
    /// How long held writes waited, in seconds.
    pub held_seconds: Histogram,
    /// Held writes refused, as too many waited or for too long.
    pub held_refused: Counter,
    /// Writes whose outcome could not be told to the client.
    pub ambiguous_writes: Counter,
    /// Guarded transactions sent again (stale map, lease marker or read guard).
    pub write_retries: Counter,
    /// Shards in quarantine, 1 each.
    pub quarantined: Family<OfShard, Gauge>,
    /// Local revisions of a shard that no cut covers yet, as far as this proxy has seen them.
    pub line_revision: Gauge,
    /// Log position folded.
    pub line_position: Gauge,
    /// Segments of the mapping from local revisions to numbers of the line.
    pub line_segments: Gauge,
    /// Cuts appended by this proxy.
    pub line_appends: Gauge<i64>,
    /// Reads of the log's end.
    pub line_refreshes: Gauge<i64>,
    /// Seconds that a write waited for the cut that covers it.
    pub cut_wait_seconds: Histogram,
    /// Watchers open.
    pub watchers: Gauge,
    /// Watchers that fell behind and read history.
    pub watchers_slow: Gauge,
    /// Events sent to watchers.
    pub watch_events: Counter,
    /// Revisions that the watch hub is behind the line.
    pub watch_lag_revisions: Gauge,
    /// Leases known.
    pub leases: Gauge<f64, AtomicU64>,
    /// Leases that expired or were revoked with this proxy's help.
    pub leases_ended: Counter,
}

fn seconds() -> Histogram {
    Histogram::new([0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0])
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All counters at zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: parking_lot::Mutex::new(Registry::with_prefix("sharded_etcd")),
            load: Load::default(),
            requests: Family::default(),
            held_writes: Gauge::default(),
            held_seconds: seconds(),
            held_refused: Counter::default(),
            ambiguous_writes: Counter::default(),
            write_retries: Counter::default(),
            quarantined: Family::default(),
            line_revision: Gauge::default(),
            line_position: Gauge::default(),
            line_segments: Gauge::default(),
            line_appends: Gauge::default(),
            line_refreshes: Gauge::default(),
            cut_wait_seconds: seconds(),
            watchers: Gauge::default(),
            watchers_slow: Gauge::default(),
            watch_events: Counter::default(),
            watch_lag_revisions: Gauge::default(),
            leases: Gauge::default(),
            leases_ended: Counter::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = self.registry.get_mut();
        macro_rules! register {
            ($($name:ident: $help:literal;)*) => {$( registry.register(stringify!($name), $help, self.$name.clone()); )*};
        }
        register! {
            requests: "Requests answered, by method and code";
            held_writes: "Writes that wait for a closed fence now";
            held_seconds: "Seconds that held writes waited";
            held_refused: "Held writes refused";
            ambiguous_writes: "Writes whose outcome could not be told";
            write_retries: "Guarded transactions sent again";
            quarantined: "Shards in quarantine";
            line_revision: "Newest revision of the line";
            line_position: "Log position folded";
            line_segments: "Segments of the revision mapping";
            line_appends: "Cuts appended by this proxy";
            line_refreshes: "Reads of the log's end";
            cut_wait_seconds: "Seconds that writes waited for their cut";
            watchers: "Watchers open";
            watchers_slow: "Watchers that read history as they fell behind";
            watch_events: "Events sent to watchers";
            watch_lag_revisions: "Revisions that the watch hub is behind the line";
            leases: "Leases known";
            leases_ended: "Leases ended with this proxy's help";
        }
    }

    /// Lets another part (the shard manager, in one process) add its own metrics.
    pub fn with_registry(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.registry.lock());
    }

    /// The text that `/metrics` answers.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry.lock());
        text
    }
}
