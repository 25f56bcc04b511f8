//! Which connection belongs to which shard: filled by the program, read by proxy and manager.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::RwLock;

use crate::Shard;

/// The shards that this process can reach, by name (`shard-0`, `shard-1`, …), and meta apart from them.
///
/// Programs add shards as the routing file or the spec names them and remove those that are gone; readers look a
/// shard up for each request, so a replaced connection is taken at once.
#[derive(Clone, Default)]
pub struct ShardDirectory {
    shards: Arc<RwLock<BTreeMap<String, Arc<dyn Shard>>>>,
}

impl ShardDirectory {
    /// An empty directory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces the connection to a shard.
    pub fn insert(&self, name: impl Into<String>, shard: Arc<dyn Shard>) {
        self.shards.write().insert(name.into(), shard);
    }

    /// Forgets a shard; requests under way keep their connection.
    pub fn remove(&self, name: &str) -> Option<Arc<dyn Shard>> {
        self.shards.write().remove(name)
    }

    /// The connection to a shard, if this process has one.
    pub fn get(&self, name: &str) -> Option<Arc<dyn Shard>> {
        self.shards.read().get(name).cloned()
    }

    /// The names of all shards here, sorted.
    pub fn names(&self) -> Vec<String> {
        self.shards.read().keys().cloned().collect()
    }
}
