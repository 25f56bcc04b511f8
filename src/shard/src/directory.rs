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
    shards: Arc<RwLock<BTreeMap<String, Entry>>>,
}

struct Entry {
    incarnation: Option<u32>,
    connection: Arc<dyn Shard>,
}

impl ShardDirectory {
    /// An empty directory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces the connection to a shard.
    pub fn insert(&self, name: impl Into<String>, connection: Arc<dyn Shard>) {
        self.shards.write().insert(name.into(), Entry { incarnation: None, connection });
    }

    /// The same for a shard whose incarnation is known.
    pub fn insert_incarnation(&self, name: impl Into<String>, incarnation: u32, connection: Arc<dyn Shard>) {
        let entry = Entry { incarnation: Some(incarnation), connection };
        self.shards.write().insert(name.into(), entry);
    }

    /// Forgets a shard; requests under way keep their connection.
    pub fn remove(&self, name: &str) -> Option<Arc<dyn Shard>> {
        self.shards.write().remove(name).map(|entry| entry.connection)
    }

    /// The connection to a shard, if this process has one.
    pub fn get(&self, name: &str) -> Option<Arc<dyn Shard>> {
        self.shards.read().get(name).map(|entry| Arc::clone(&entry.connection))
    }

    /// The incarnation that a connection leads to, if this process was told.
    pub fn incarnation(&self, name: &str) -> Option<u32> {
        self.shards.read().get(name).and_then(|entry| entry.incarnation)
    }

    /// A digest of names and incarnations: two processes that know the same shards have the same one.
    pub fn digest(&self) -> u64 {
        // FNV-1a: stable over releases, which the standard library's hashers are not.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for (name, entry) in self.shards.read().iter() {
            let incarnation = entry.incarnation.map_or(u64::MAX, u64::from).to_le_bytes();
            // No name holds a zero byte.
            for byte in name.bytes().chain([0]).chain(incarnation) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        hash
    }

    /// The names of all shards here, sorted.
    pub fn names(&self) -> Vec<String> {
        self.shards.read().keys().cloned().collect()
    }
}
