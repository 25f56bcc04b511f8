//! What can go wrong in the shard manager.

use sharded_etcd_core::records::RecordError;
use sharded_etcd_line::{LineError, bootstrap::BootstrapError, upkeep::UpkeepError};
use sharded_etcd_shard::ShardError;

/// Why a piece of the manager's work did not get on. What it left behind is found and gone on with later.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// A shard failed; the error names it.
    #[error("shard call failed: {0}")]
    Shard(#[from] ShardError),
    /// Meta failed.
    #[error("meta call failed: {0}")]
    Meta(ShardError),
    /// The line failed.
    #[error(transparent)]
    Line(#[from] LineError),
    /// A shard cannot be taken in.
    #[error(transparent)]
    Join(#[from] BootstrapError),
    /// A stored record cannot be read by this release.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// History could not be cut off, or moves not be read.
    #[error(transparent)]
    Upkeep(#[from] UpkeepError),
    /// Something took longer than its bound.
    #[error("{what} took longer than {ms} ms")]
    Slow {
        /// What.
        what: &'static str,
        /// The bound in milliseconds.
        ms: u128,
    },
    /// A test stopped the executor here.
    #[error("stopped by a failpoint at {0}")]
    Failpoint(String),
}

/// Result of the manager's work.
pub type Result<T> = std::result::Result<T, ManagerError>;
