//! How an engine is run.

use std::{fmt, path::PathBuf, time::Duration};

use crate::{disk::Disk, lease, quota, values, wal::IoHook};

/// Configuration of an [`Engine`](crate::Engine). Start from [`EngineConfig::new`].
#[derive(Clone)]
pub struct EngineConfig {
    /// Directory of the data; made if it is not there. One process at a time.
    pub dir: PathBuf,
    /// Name of the member, for logs and thread names.
    pub name: String,
    /// The cluster id in all headers. None: chosen at random when the directory is first used. It is kept there, and
    /// opening with another one is refused.
    pub cluster_id: Option<u64>,
    /// Size at which puts are refused and the alarm NOSPACE goes up, in bytes; 0 for etcd's default of 2 GiB, negative for none.
    pub quota_bytes: i64,
    /// Compares or operations in one Txn at most (etcd: `--max-txn-ops`).
    pub max_txn_ops: usize,
    /// Size of an encoded request at most (etcd: `--max-request-bytes`).
    pub max_request_bytes: usize,
    /// How long a write waits for its answer; then it fails and may or may not have been applied. Default 7 s, what
    /// etcd itself gives a request.
    pub request_timeout: Duration,
    /// The same for a defragmentation and a compaction that waits for its space. Default 10 min.
    pub maintenance_timeout: Duration,
    /// Shortest time to live of a lease, in seconds; shorter ones are raised to it, as etcd does.
    pub lease_ttl_seconds_min: i64,
    /// How often is looked for what is to be done beside requests. Leases end at their deadline, not at a tick.
    pub lease_tick: Duration,
    /// How often leases that nobody renewed meanwhile have what is left of their time written down, so that they go on
    /// from there after a crash. Default 5 min, as etcd's lease checkpoints.
    pub lease_checkpoint_interval: Duration,
    /// How often a watcher that asked for it gets a progress notification when there are no events.
    pub progress_interval: Duration,
    /// Size of a log segment in bytes, allocated when the segment is made; the first ones of a new log are smaller.
    pub segment_bytes: u64,
    /// Log bytes after which a checkpoint is written; more if the last checkpoint was larger.
    pub checkpoint_wal_bytes: u64,
    /// Requests that wait for the writer at most; more of them wait to get in.
    pub queue_requests_max: usize,
    /// Called before the log touches the disk, for fault injection in tests.
    pub io_hook: Option<IoHook>,
    /// Bytes of new values that stay in memory although they are in a file.
    pub(crate) recent_bytes: usize,
    pub(crate) disk: Disk,
}

impl EngineConfig {
    /// etcd's defaults for a data directory.
    pub fn new(dir: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        Self {
            dir: dir.into(),
            name: name.into(),
            cluster_id: None,
            quota_bytes: 0,
            max_txn_ops: 128,
            max_request_bytes: 3 * 512 * 1024,
            request_timeout: Duration::from_secs(7),
            maintenance_timeout: Duration::from_secs(600),
            lease_ttl_seconds_min: lease::TTL_SECONDS_MIN,
            lease_tick: Duration::from_millis(500),
            lease_checkpoint_interval: Duration::from_secs(300),
            progress_interval: Duration::from_secs(600),
            segment_bytes: 16 << 20,
            checkpoint_wal_bytes: 64 << 20,
            queue_requests_max: 4096,
            io_hook: None,
            recent_bytes: values::RECENT_BYTES_MAX,
            disk: Disk::Real,
        }
    }

    /// The quota in bytes with the default filled in, as etcd shows it: negative for none.
    pub fn quota(&self) -> i64 {
        if self.quota_bytes == 0 { quota::DEFAULT_QUOTA_BYTES } else { self.quota_bytes }
    }

    /// The same as a limit.
    pub(crate) fn quota_limit(&self) -> u64 {
        u64::try_from(self.quota()).unwrap_or(u64::MAX)
    }
}

impl fmt::Debug for EngineConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineConfig")
            .field("dir", &self.dir)
            .field("name", &self.name)
            .field("cluster_id", &self.cluster_id)
            .field("quota_bytes", &self.quota_bytes)
            .field("max_txn_ops", &self.max_txn_ops)
            .field("max_request_bytes", &self.max_request_bytes)
            .finish_non_exhaustive()
    }
}
