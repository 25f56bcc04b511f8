//! A snapshot of the line, cheap to hand around.

use std::sync::Arc;

use sharded_etcd_core::{
    keyspace::{RangeMap, ShardIx},
    line::Fold,
};

/// The line at one log position.
#[derive(Debug, Clone)]
pub struct Cut {
    /// Log position.
    pub position: i64,
    /// Newest revision.
    pub revision: i64,
    /// Revisions below are compacted.
    pub compacted: i64,
    /// The cluster id that clients see.
    pub cluster_id: u64,
    /// Highest local revision of each shard that is part of the line, by join number.
    pub vector: Arc<[i64]>,
    /// The current range map.
    pub map: Arc<RangeMap>,
    /// Names of the shards, by join number.
    pub names: Arc<[Arc<str>]>,
    /// Which of them have left.
    pub left: Arc<[bool]>,
}

impl Cut {
    pub(crate) fn of(fold: &Fold) -> Self {
        Self {
            position: fold.position,
            revision: fold.revision,
            compacted: fold.compacted,
            cluster_id: fold.cluster_id,
            vector: fold.vector().into(),
            map: Arc::clone(fold.map()),
            names: fold.shards().iter().map(|s| Arc::from(s.name.as_str())).collect(),
            left: fold.shards().iter().map(|s| s.left).collect(),
        }
    }

    /// The cut of `fold`, sharing with the one before what did not change.
    pub(crate) fn next(before: &Self, fold: &Fold) -> Self {
        let shards = fold.shards();
        let same =
            shards.len() == before.left.len() && shards.iter().zip(&*before.left).all(|(s, &l)| s.left == l);
        if !same {
            return Self::of(fold);
        }
        Self {
            position: fold.position,
            revision: fold.revision,
            compacted: fold.compacted,
            vector: fold.vector().into(),
            map: Arc::clone(fold.map()),
            ..before.clone()
        }
    }

    /// True if local revision `local` of `shard` is part of the line.
    pub fn covers(&self, shard: ShardIx, local: i64) -> bool {
        self.v(shard) >= local
    }

    /// The highest local revision of `shard` that is part of the line; 0 for a shard that has not joined.
    pub fn v(&self, shard: ShardIx) -> i64 {
        self.vector.get(shard.index()).copied().unwrap_or(0)
    }

    /// The name of a shard.
    pub fn name(&self, shard: ShardIx) -> &str {
        self.names.get(shard.index()).map_or("?", |n| n)
    }
}
