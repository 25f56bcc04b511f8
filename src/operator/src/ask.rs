//! Asks the shard manager of a topology.

use async_trait::async_trait;

use crate::model::TopologyAnswer;

/// Asks the shard manager of a resource; bounded in time.
#[async_trait]
pub trait Ask: Send + Sync + 'static {
    /// What the shard manager of the resource `name` in `namespace` answers.
    async fn ask(&self, namespace: &str, name: &str) -> TopologyAnswer;
}
