//! A connection that has been checked: it talks to the etcd cluster that joined, and with its history.
//!
//! Placeholder type; the checks are added with the line client.

use std::sync::Arc;

use crate::Shard;

/// A [`Shard`] whose answers are checked for the cluster id it joined with.
pub struct CheckedShard {
    /// The connection underneath.
    pub inner: Arc<dyn Shard>,
    /// The etcd cluster id that every answer must carry.
    pub cluster_id: u64,
}
