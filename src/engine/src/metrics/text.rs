//! The text that `/metrics` answers.

use std::{fmt::Debug, sync::atomic::Ordering};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
    registry::Registry,
};
use tonic::Code;

use super::{
    Metrics,
    calls::{METHODS, code_name},
    process::Process,
};
use crate::{ETCD_VERSION, EngineConfig, shared::Shared};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    grpc_code: &'static str,
    grpc_method: &'static str,
    grpc_service: &'static str,
    grpc_type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Started {
    grpc_method: &'static str,
    grpc_service: &'static str,
    grpc_type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServerVersion {
    server_version: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClusterVersion {
    cluster_version: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServerId {
    server_id: String,
}

/// Metrics as they are now.
struct Now(Registry);

impl Now {
    fn add(&mut self, name: &str, help: &str, metric: impl EncodeMetric + Debug + Send + Sync + 'static) {
        self.0.register(name, help, metric);
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl TryInto<i64>) {
        self.add(name, help, ConstGauge::new(value.try_into().unwrap_or(i64::MAX)));
    }

    /// `_total` is added to the name.
    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.add(name, help, ConstCounter::new(value));
    }

    fn label<L>(&mut self, name: &str, help: &str, label: L)
    where
        L: EncodeLabelSet + Clone + std::hash::Hash + Eq + Debug + Send + Sync + 'static,
    {
        let family = Family::<L, Gauge>::default();
        family.get_or_create(&label).set(1);
        self.add(name, help, family);
    }
}

/// Everything about an engine, in the OpenMetrics text format.
pub(crate) fn encode(shared: &Shared, config: &EngineConfig) -> String {
    let mut now = Now(Registry::default());
    server(&mut now, shared, config);
    keys(&mut now, shared);
    leases_and_watches(&mut now, shared);
    log(&mut now, &shared.metrics);
    calls(&mut now, &shared.metrics);
    process(&mut now);
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &now.0);
    text
}

fn server(now: &mut Now, shared: &Shared, config: &EngineConfig) {
    let has_leader = i64::from(shared.failure.read().is_none());
    now.gauge("etcd_server_has_leader", "Whether writes are possible", has_leader);
    now.gauge("etcd_server_is_leader", "Whether this is the leader, which it always is", 1);
    now.counter("etcd_server_leader_changes_seen", "Leaders seen after the first one: none", 0);
    let applied = shared.published.load().applied();
    now.gauge("etcd_server_proposals_committed_total", "Changes committed", applied);
    now.gauge("etcd_server_proposals_applied_total", "Changes applied", applied);
    now.counter(
        "etcd_server_proposals_failed",
        "Batches that could not be written",
        shared.metrics.failed.get(),
    );
    now.gauge("etcd_server_quota_backend_bytes", "The quota", config.quota());
    let server_version = ETCD_VERSION;
    now.label("etcd_server_version", "The etcd release that is followed", ServerVersion { server_version });
    now.label("etcd_cluster_version", "The version of the API", ClusterVersion { cluster_version: "3.7" });
    let server_id = format!("{:x}", shared.member_id);
    now.label("etcd_server_id", "The member id", ServerId { server_id });
}

fn keys(now: &mut Now, shared: &Shared) {
    let store = shared.published.load();
    now.gauge("etcd_mvcc_db_total_size_in_bytes", "Size of the data before a defragmentation", store.size());
    now.gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "Size of the data", store.size_in_use());
    now.gauge("etcd_debugging_mvcc_current_revision", "The newest revision", store.revision());
    now.gauge("etcd_debugging_mvcc_compact_revision", "The compaction", store.compact_revision());
    let help = "Keys, with those deleted whose history is kept";
    now.gauge("etcd_debugging_mvcc_keys_total", help, store.keys() as u64);
    let metrics = &shared.metrics;
    now.counter("etcd_mvcc_put", "Keys put", metrics.puts.get());
    now.counter("etcd_mvcc_delete", "Keys deleted", metrics.deletes.get());
    now.counter("etcd_mvcc_txn", "Revisions of more than one change", metrics.txns.get());
    let ranges = |name| {
        let method = METHODS.iter().position(|(_, method, _)| *method == name);
        let fine = method.and_then(|at| metrics.calls.by_code(at).find(|(code, _)| *code == Code::Ok));
        fine.map_or(0, |(_, count)| count)
    };
    now.counter(
        "etcd_mvcc_range",
        "Ranges, without those in transactions",
        ranges("Range") + ranges("RangeStream"),
    );
}

fn leases_and_watches(now: &mut Now, shared: &Shared) {
    let metrics = &shared.metrics;
    let leases = shared.published.load().leases().count();
    // etcd has no such metric.
    now.gauge("sharded_etcd_leases", "Leases", leases as u64);
    now.counter("etcd_debugging_lease_granted", "Leases granted", metrics.leases_granted.get());
    now.counter("etcd_debugging_lease_revoked", "Leases that ended", metrics.leases_revoked.get());
    now.counter("etcd_debugging_lease_renewed", "Renewals of leases", metrics.leases_renewed.get());
    now.counter("etcd_debugging_server_lease_expired", "Leases that expired", metrics.leases_expired.get());
    let (watchers, slow) = shared.watchers.counts();
    let streams = metrics.watch_streams.load(Ordering::Relaxed);
    now.gauge("etcd_debugging_mvcc_watch_stream_total", "Watch streams", streams);
    now.gauge("etcd_debugging_mvcc_watcher_total", "Watchers", watchers as u64);
    now.gauge("etcd_debugging_mvcc_slow_watcher_total", "Watchers with history to read", slow as u64);
    now.counter("etcd_debugging_mvcc_events", "Events sent to watchers", metrics.watch_events.get());
}

fn log(now: &mut Now, metrics: &Metrics) {
    let help = "Seconds that writing a batch to the log and syncing it took";
    now.add("etcd_disk_wal_fsync_duration_seconds", help, metrics.log_seconds.clone());
    now.gauge("etcd_disk_wal_write_bytes_total", "Bytes written to the log", metrics.log_bytes.get());
}

fn calls(now: &mut Now, metrics: &Metrics) {
    let handled = Family::<Call, Counter>::default();
    let started = Family::<Started, Counter>::default();
    for (at, &(grpc_service, grpc_method, grpc_type)) in METHODS.iter().enumerate() {
        for (code, count) in metrics.calls.by_code(at) {
            let call = Call { grpc_code: code_name(code), grpc_method, grpc_service, grpc_type };
            handled.get_or_create(&call).inc_by(count);
        }
        let call = Started { grpc_method, grpc_service, grpc_type };
        started.get_or_create(&call).inc_by(metrics.calls.started(at));
    }
    now.add("grpc_server_handled", "Calls that ended, by method and code", handled);
    now.add("grpc_server_started", "Calls that began, by method", started);
}

fn process(now: &mut Now) {
    let process = Process::read();
    if let Some(seconds) = process.cpu_seconds {
        now.add("process_cpu_seconds", "Processor time", ConstCounter::new(seconds));
    }
    if let Some(bytes) = process.resident_bytes {
        now.gauge("process_resident_memory_bytes", "Resident memory", bytes);
    }
    if let Some(bytes) = process.virtual_bytes {
        now.gauge("process_virtual_memory_bytes", "Virtual memory", bytes);
    }
    if let Some(files) = process.open_files {
        now.gauge("process_open_fds", "Open files", files);
    }
    if let Some(started) = process.started {
        let seconds = ConstGauge::new(started.as_secs_f64());
        now.add("process_start_time_seconds", "When the process began, since the epoch", seconds);
    }
}
