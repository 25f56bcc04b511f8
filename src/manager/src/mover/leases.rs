//! Shadows of leases on a move's destination.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use sharded_etcd_core::{
    keyspace::ShardIx,
    lease::{self, LeaseFacts},
    moves::ops,
    records::{LeaseState, lease_key, lease_shadow_key},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::Shard;

use crate::{ManagerError, error::Result};

/// Races with a revocation that one lease may lose before the move is told to look again.
const TRIES_MAX: usize = 10;

/// The leases that this executor has made ready on the destination.
#[derive(Debug, Default)]
pub(crate) struct Shadows {
    /// True: keys may be attached on the destination; false: the lease is over.
    ready: HashMap<i64, bool>,
}

impl Shadows {
    /// Forgets what was made ready: a shadow was dropped meanwhile.
    pub(crate) fn forget(&mut self) {
        self.ready.clear();
    }

    /// True if keys of this lease can be attached on the destination. If not, the lease is over, and the deletes of its
    /// keys are in the source's history, which the tail brings.
    pub(crate) fn is_ready(&self, id: i64) -> bool {
        id != 0 && self.ready.get(&id).copied().unwrap_or(false)
    }

    /// Registers and grants what is not ready yet.
    pub(crate) async fn make_ready(
        &mut self,
        meta: &dyn Shard,
        shard: &dyn Shard,
        ix: ShardIx,
        ids: impl IntoIterator<Item = i64>,
    ) -> Result<()> {
        let ids: HashSet<i64> =
            ids.into_iter().filter(|&id| id != 0 && !self.ready.contains_key(&id)).collect();
        for id in ids {
            let ready = register(meta, id, ix).await?;
            if ready {
                grant(shard, id).await?;
            }
            self.ready.insert(id, ready);
        }
        Ok(())
    }
}

/// Registers the shadow while the lease is there, alive or under revocation: its end waits for all that are registered.
///
/// No marker is put here: the first attach on the shard does it, or the revocation.
async fn register(meta: &dyn Shard, id: i64, ix: ShardIx) -> Result<bool> {
    for _ in 0..TRIES_MAX {
        let answer = meta.txn(lease::read_txn(id)).await.map_err(ManagerError::Meta)?;
        let facts = LeaseFacts::from_answer(id, answer)?;
        match &facts.record {
            None => return Ok(false),
            Some(record) if record.state == LeaseState::Gone => return Ok(false),
            Some(_) if facts.shadows.contains(&ix) => return Ok(true),
            Some(_) => {}
        }
        let txn = ops::txn(
            vec![ops::modified_at(lease_key(id), facts.modified)],
            vec![ops::put(lease_shadow_key(id, ix), Bytes::new())],
        );
        if meta.txn(txn).await.map_err(ManagerError::Meta)?.succeeded {
            return Ok(true);
        }
    }
    Err(ManagerError::Slow { what: "registering a lease's shadow", ms: 0 })
}

async fn grant(shard: &dyn Shard, id: i64) -> Result<()> {
    match shard.lease_grant(pb::LeaseGrantRequest { id, ttl: lease::SHADOW_TTL_SECONDS }).await {
        Err(error) if !error.is_lease_exist() => Err(error.into()),
        _ => Ok(()),
    }
}
