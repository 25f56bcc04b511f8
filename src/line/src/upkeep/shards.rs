//! Compaction of the shards.

use std::collections::HashMap;

use sharded_etcd_core::{
    keyspace::{KeyRange, ShardIx},
    moves::ops,
    records::{Cursor, CursorStage, MovePhase, PROXIES_PREFIX, ProxyRecord, Record, cursor_key},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::ShardError;
use tokio::time::Instant;

use super::{Upkeep, UpkeepError, read_moves};

impl Upkeep {
    /// Drops history on the shards that nobody can ask for any more.
    ///
    /// # Errors
    /// If meta fails. A shard that fails is said in the log, and the others are compacted.
    pub async fn compact_shards(&self) -> Result<(), UpkeepError> {
        let target = self.within_reach_of_proxies(self.line.cut().compacted).await?;
        if target <= 1 {
            return Ok(());
        }
        let held = self.held_by_moves().await?;
        let locals: Vec<(ShardIx, i64)> = self.line.with_fold(|fold| {
            let all = fold.shards().iter().enumerate().filter(|(_, s)| !s.left);
            all.filter_map(|(i, s)| {
                let ix = ShardIx(u32::try_from(i).ok()?);
                let local = fold.local_at_most(ix, target)?.min(s.v);
                (local > s.l0).then_some((ix, local))
            })
            .collect()
        });
        for (ix, local) in locals {
            let local = local.min(held.get(&ix).copied().unwrap_or(i64::MAX));
            if self.state.lock().physical.get(&ix).is_some_and(|&done| done >= local) {
                continue;
            }
            match self.compact_shard(ix, local).await {
                Ok(()) => {
                    self.state.lock().physical.insert(ix, local);
                }
                // The next one may be well.
                Err(error) => tracing::warn!(shard = ix.0, %error, "cannot compact a shard"),
            }
        }
        Ok(())
    }

    async fn compact_shard(&self, ix: ShardIx, revision: i64) -> Result<(), ShardError> {
        match self.shards.get(ix).await?.compact(pb::CompactionRequest { revision, physical: false }).await {
            Err(error) if error.is_compacted() => Ok(()),
            answer => answer.map(|_| ()),
        }
    }

    /// The compaction, not beyond what registered proxies still have to deliver, unless they lag for too long.
    async fn within_reach_of_proxies(&self, compacted: i64) -> Result<i64, UpkeepError> {
        let range = ops::range_request(&KeyRange::prefix(PROXIES_PREFIX));
        let answer = self.line.meta().range(range).await.map_err(UpkeepError::Meta)?;
        let slowest =
            answer.kvs.iter().filter_map(|kv| ProxyRecord::decode(&kv.value).ok()).map(|p| p.revision).min();
        let mut state = self.state.lock();
        match slowest {
            Some(slowest) if slowest < compacted => {
                // One that has come past what it held back then is not slow: there is something newer to be held back.
                let held = state.held.filter(|&(_, target)| slowest < target);
                let (since, _) = *state.held.insert(held.unwrap_or_else(|| (Instant::now(), compacted)));
                Ok(if since.elapsed() < self.options.lag_max { slowest } else { compacted })
            }
            _ => {
                state.held = None;
                Ok(compacted)
            }
        }
    }

    /// What moves still have to read of their sources and copies.
    async fn held_by_moves(&self) -> Result<HashMap<ShardIx, i64>, UpkeepError> {
        let mut held: HashMap<ShardIx, i64> = HashMap::new();
        for record in read_moves(&self.line).await? {
            if record.phase != MovePhase::Copying {
                continue;
            }
            let cursor = async {
                let destination = self.shards.get(record.to).await?;
                let cursor = pb::RangeRequest { key: cursor_key(&record.id), ..Default::default() };
                Ok::<_, ShardError>(destination.range(cursor).await?.kvs.pop())
            };
            let Ok(cursor) = cursor.await else {
                // Not known how far it is.
                held.insert(record.from, 0);
                continue;
            };
            let Some(cursor) = cursor else { continue };
            let copied_at = cursor.mod_revision;
            let cursor = Cursor::decode(&cursor.value)?;
            let needed = match cursor.stage {
                CursorStage::Copy { .. } => cursor.copy_at,
                CursorStage::Tail { revision, .. } => revision - 1,
                CursorStage::Sealed { .. } | CursorStage::Void => continue,
            };
            // The copy is compared as it was at its cursor.
            for (ix, needed) in [(record.from, needed), (record.to, copied_at)] {
                let least = held.entry(ix).or_insert(needed);
                *least = (*least).min(needed);
            }
        }
        Ok(held)
    }
}
