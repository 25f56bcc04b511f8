//! What can go wrong with the line.

use sharded_etcd_shard::ShardError;

/// Why the line could not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Meta answered with an error or not at all.
    #[error("meta cannot be reached")]
    Meta(#[source] ShardError),
    /// Something did not come within the bound.
    #[error("waited {ms} ms for {what}; check that meta is reachable")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// For how long, in milliseconds.
        ms: u128,
    },
    /// Meta holds no topology.
    #[error("meta holds no topology: it has not been bootstrapped")]
    NotBootstrapped,
    /// The log or a checkpoint cannot be used.
    #[error("the revision line is unusable: {0}")]
    Broken(String),
    /// The process is shutting down.
    #[error("shutting down")]
    Closed,
}

impl From<ShardError> for LineError {
    fn from(error: ShardError) -> Self {
        Self::Meta(error)
    }
}
