//! Splits and merges, carried out step by step.

use std::sync::Arc;

use bytes::Bytes;
use sharded_etcd_core::{
    keyspace::{Rid, ShardIx},
    moves::{Reshape, ReshapeStep, pending_reshape, propose_merge, propose_split, reshape_step},
    records::move_key,
};
use sharded_etcd_line::{Line, Shards};

use crate::{
    Failpoints, ManagerError,
    error::Result,
    mover::observe::{get, map_view, read_claims, read_map},
};

/// Steps of one split or merge, with those lost to others.
const STEPS_MAX: usize = 50;

/// Carries out splits and merges; what it needs of the process.
#[derive(Clone)]
pub struct Reshaper {
    /// The line.
    pub line: Arc<Line>,
    /// The shards.
    pub shards: Arc<Shards>,
    /// For tests.
    pub failpoints: Failpoints,
}

impl Reshaper {
    /// Splits the range `rid` at `at`; the children, left and right. `None` if it cannot be done now: the range is gone,
    /// moves, or another split or merge is under way on its shard.
    ///
    /// # Errors
    /// If the shard, meta or the line failed. What was begun is finished by [`Reshaper::finish_pending`].
    pub async fn split(&self, rid: &Rid, at: &Bytes, id: &str) -> Result<Option<(Rid, Rid)>> {
        let map = self.line.cut().map.clone();
        let Some(shard) = map.by_rid(rid).map(|e| e.shard) else { return Ok(None) };
        let Some(reshape) = propose_split(&map, rid, at, id) else { return Ok(None) };
        let done = self.run(shard, &reshape).await?;
        Ok(done.then(|| (reshape.new[0].0.clone(), reshape.new[1].0.clone())))
    }

    /// Merges two neighbours; the range that they make. `None` if it cannot be done now.
    ///
    /// # Errors
    /// See [`Reshaper::split`].
    pub async fn merge(&self, left: &Rid, right: &Rid, id: &str) -> Result<Option<Rid>> {
        let map = self.line.cut().map.clone();
        let Some(shard) = map.by_rid(left).map(|e| e.shard) else { return Ok(None) };
        let Some(reshape) = propose_merge(&map, left, right, id) else { return Ok(None) };
        let done = self.run(shard, &reshape).await?;
        Ok(done.then(|| reshape.new[0].0.clone()))
    }

    /// Finishes what somebody has begun on a shard; true if there was something.
    ///
    /// # Errors
    /// See [`Reshaper::split`].
    pub async fn finish_pending(&self, shard: ShardIx) -> Result<bool> {
        let connection = self.shards.get(shard).await?;
        let claims = read_claims(connection.as_ref()).await?;
        let Some(reshape) = pending_reshape(&claims.value) else { return Ok(false) };
        tracing::info!(id = %reshape.id, "finishing a split or merge");
        self.run(shard, &reshape).await?;
        Ok(true)
    }

    /// True if it was done, by whomever.
    async fn run(&self, ix: ShardIx, reshape: &Reshape) -> Result<bool> {
        let shard = self.shards.get(ix).await?;
        let meta = self.line.meta();
        for _ in 0..STEPS_MAX {
            // Claims first: what they say of the map is compared with a newer map. See the order in `reshape_step`.
            let claims = read_claims(shard.as_ref()).await?;
            let map = read_map(meta.as_ref()).await.map_err(ManagerError::Meta)?;
            let Some((old, _)) = reshape.old.first().or(reshape.new.first()) else { return Ok(false) };
            let seen = map_view(&self.line, map, old).await?;
            let folded = self.line.cut().map.clone();
            let Some(step) = reshape_step(reshape, ix, &folded, &seen, &claims) else {
                return Ok(reshape.new.iter().all(|(rid, _)| folded.by_rid(rid).is_some()));
            };
            if matches!(step, ReshapeStep::Open(_)) && self.is_moved(reshape).await? {
                // It would have to wait, and the move would have to give way.
                return Ok(false);
            }
            let name = step.name();
            self.failpoints.before(name).await?;
            let answer = match step {
                ReshapeStep::Open(txn) | ReshapeStep::Close(txn) | ReshapeStep::Cancel(txn) => {
                    shard.txn(txn).await?
                }
                ReshapeStep::Log(txn) => meta.txn(txn).await.map_err(ManagerError::Meta)?,
            };
            if !answer.succeeded {
                if name == "reshape-log" {
                    // A move of the old range is under way, or the map changed: not now.
                    let moved = self.wait_for_map(seen.modified).await?;
                    if !moved {
                        return Ok(false);
                    }
                }
                continue;
            }
            if name == "reshape-log" {
                self.line.at_position(answer.header.map_or(0, |h| h.revision)).await?;
            }
            tracing::info!(id = %reshape.id, step = name, "split or merge");
            self.failpoints.after(name).await?;
        }
        Ok(false)
    }

    /// True if a move of one of the old ranges is written down.
    async fn is_moved(&self, reshape: &Reshape) -> Result<bool> {
        for (rid, _) in &reshape.old {
            let answer = self.line.meta().range(get(move_key(rid))).await.map_err(ManagerError::Meta)?;
            if !answer.kvs.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// True if the map has changed since.
    async fn wait_for_map(&self, modified: i64) -> Result<bool> {
        let map = read_map(self.line.meta().as_ref()).await.map_err(ManagerError::Meta)?;
        Ok(map.is_some_and(|kv| kv.mod_revision > modified))
    }
}
