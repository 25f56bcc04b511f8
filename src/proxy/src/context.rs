//! What every part of the proxy needs: the line, the shards, who this proxy is, and its limits.

use std::{sync::Arc, time::Duration};

use sharded_etcd_core::hash::fnv1a;
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::{Line, LineError, Shards};
use sharded_etcd_shard::ShardError;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Code, Status};

use crate::metrics::Metrics;

/// Who this proxy is to clients.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its name, unique in the topology.
    pub name: String,
    /// Its member id: a hash of the name.
    pub member_id: u64,
    /// What clients are told to dial.
    pub client_urls: Vec<String>,
}

impl Identity {
    /// The identity of the proxy of that name.
    pub fn new(name: impl Into<String>, client_urls: Vec<String>) -> Self {
        let name = name.into();
        // 0 is etcd's "none".
        let member_id = fnv1a(name.as_bytes()).max(1);
        Self { name, member_id, client_urls }
    }
}

/// The shortest interval of progress notifications. (etcd: `minWatchProgressInterval`.)
pub const PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Limits of what clients may ask, and of what the proxy keeps for them.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Operations of one transaction: compares, success and failure each. etcd's default, 128.
    pub txn_ops_max: usize,
    /// Bytes of one request as a client sends it. etcd's default, 1.5 MiB.
    pub request_bytes_max: usize,
    /// Bytes of a watch answer from which on it is parted for a client that asked for fragments. etcd's default: what a
    /// request may have, and 512 KiB (`grpcOverheadBytes`).
    pub fragment_bytes: usize,
    /// Bytes of one shard that clients may fill, 0 for no bound of the proxy's own.
    pub quota_bytes: i64,
    /// How long a write waits for a range whose fence is closed. 2 s.
    pub held_max: Duration,
    /// How many writes wait so at once for one range. 1,000.
    pub held_requests_max: usize,
    /// Bytes of the requests that wait so at once for one range. 16 MiB.
    pub held_bytes_max: usize,
    /// How often watchers that asked for it get a progress notification when nothing happens. etcd's default, 10 min.
    pub progress_interval: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            txn_ops_max: 128,
            request_bytes_max: 3 << 19,
            fragment_bytes: (3 << 19) + (512 << 10),
            quota_bytes: 0,
            held_max: Duration::from_secs(2),
            held_requests_max: 1_000,
            held_bytes_max: 16 << 20,
            progress_interval: Duration::from_secs(600),
        }
    }
}

/// Shared by all parts of a proxy.
pub struct Context {
    /// The revision line.
    pub line: Arc<Line>,
    /// Checked connections to the shards.
    pub shards: Arc<Shards>,
    /// Who this proxy is.
    pub identity: Identity,
    /// Limits.
    pub limits: Limits,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the proxy is about to stop: it still serves, and says that it is not ready any more.
    pub draining: CancellationToken,
    /// Cancelled when the proxy stops.
    pub shutdown: CancellationToken,
    /// Everything that runs in the background is spawned here.
    pub tasks: TaskTracker,
    /// For what a request begins and does not wait for: it outlives the threads that serve clients.
    pub runtime: tokio::runtime::Handle,
    /// The raft term that clients see: meta's, when the proxy started.
    pub raft_term: u64,
}

impl Context {
    /// A response header at a revision of the line.
    pub fn header(&self, revision: i64) -> pb::ResponseHeader {
        pb::ResponseHeader {
            cluster_id: self.line.cut().cluster_id,
            member_id: self.identity.member_id,
            revision,
            raft_term: self.raft_term,
        }
    }
}

/// A shard's error as a client sees it: etcd's own code and text, or what happened to which shard.
pub fn status_of(error: ShardError) -> Status {
    Status::new(error.code, error.message)
}

/// An error of the line as a client sees it.
pub fn line_status(error: LineError) -> Status {
    match error {
        LineError::Meta(source) => {
            // A full or failing meta has an answer of its own; an unreachable one is nothing the client did.
            Status::new(source.code, format!("meta: {}", source.message))
        }
        LineError::Broken(_) => Status::new(Code::DataLoss, error.to_string()),
        LineError::Timeout { .. } | LineError::NotBootstrapped | LineError::Closed => {
            Status::unavailable(error.to_string())
        }
    }
}
