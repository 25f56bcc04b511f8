//! What is kept of the past: checkpoints of the fold, compaction of the line, of meta and of the shards.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use sharded_etcd_core::{
    keyspace::{KeyRange, ShardIx, successor},
    line::{Entry, Fold},
    moves::ops,
    records::{Cursor, CursorStage, MovePhase, MoveRecord, PROXIES_PREFIX, ProxyRecord, Record, cursor_key},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::{Line, Shards, write_checkpoint};
use sharded_etcd_shard::ShardError;
use tokio::time::Instant;

use crate::{ManagerError, error::Result, mover::observe::get};

/// Marks of (time, revision) that are kept for one retention.
const MARKS: u32 = 20;
/// Keys of one page when live revisions are gathered.
const PAGE: i64 = 5000;

/// When history is cut off.
#[derive(Debug, Clone)]
pub struct HistoryOptions {
    /// Log entries after which a checkpoint is written. Default 2,000.
    pub checkpoint_entries: i64,
    /// A changed fold is written after this time at the latest. Default 30 s.
    pub checkpoint_interval: Duration,
    /// How often shards are compacted. Default 10 s.
    pub compact_interval: Duration,
    /// How long a proxy that lags may hold back the compaction of shards. Default 5 min.
    pub lag_max: Duration,
    /// Segments above which those that no live key needs are left out of checkpoints. Default 100,000.
    pub segments_max: usize,
}

impl Default for HistoryOptions {
    fn default() -> Self {
        Self {
            checkpoint_entries: 2000,
            checkpoint_interval: Duration::from_secs(30),
            compact_interval: Duration::from_secs(10),
            lag_max: Duration::from_secs(300),
            segments_max: 100_000,
        }
    }
}

/// Cuts history off; one for each term of a leader.
pub(crate) struct History {
    line: Arc<Line>,
    shards: Arc<Shards>,
    options: HistoryOptions,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Log entries and position of the last checkpoint, and when it was written.
    written: Option<(i64, i64, Instant)>,
    /// Segments that the last condensation left.
    condensed_to: usize,
    compacted_at: Option<Instant>,
    /// Local revision that each shard was compacted to.
    physical: HashMap<ShardIx, i64>,
    /// Revisions of the line over the last retention.
    marks: VecDeque<(Instant, i64)>,
    /// Since when proxies hold the compaction back.
    held_since: Option<Instant>,
}

impl History {
    pub(crate) fn new(line: Arc<Line>, shards: Arc<Shards>, options: HistoryOptions) -> Self {
        Self { line, shards, options, state: Mutex::default() }
    }

    /// Everything that is due.
    pub(crate) async fn tick(&self, retention: Option<Duration>) -> Result<()> {
        if let Some(retention) = retention {
            self.compact_line(retention).await?;
        }
        let due = {
            let mut state = self.state.lock();
            let due = state.compacted_at.is_none_or(|at| at.elapsed() >= self.options.compact_interval);
            if due {
                state.compacted_at = Some(Instant::now());
            }
            due
        };
        self.checkpoint().await?;
        if due {
            self.compact_shards().await?;
        }
        Ok(())
    }

    /// Compacts the line at the revision of one retention ago.
    async fn compact_line(&self, retention: Duration) -> Result<()> {
        let cut = self.line.cut();
        let target = {
            let marks = &mut self.state.lock().marks;
            let now = Instant::now();
            if marks.back().is_none_or(|(at, _)| now - *at >= retention / MARKS) {
                marks.push_back((now, cut.revision));
            }
            let mut target = None;
            while marks.front().is_some_and(|(at, _)| now - *at >= retention) {
                target = marks.pop_front().map(|(_, revision)| revision);
            }
            target
        };
        if let Some(revision) = target.filter(|&r| r > cut.compacted && r > 1) {
            tracing::debug!(revision, "compacting the line");
            self.line.append(&Entry::Compact(revision)).await?;
        }
        Ok(())
    }

    /// Drops history on the shards that nobody can ask for any more.
    async fn compact_shards(&self) -> Result<()> {
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

    async fn compact_shard(&self, ix: ShardIx, revision: i64) -> std::result::Result<(), ShardError> {
        match self.shards.get(ix).await?.compact(pb::CompactionRequest { revision, physical: false }).await {
            Err(error) if error.is_compacted() => Ok(()),
            answer => answer.map(|_| ()),
        }
    }

    /// The compaction, not beyond what registered proxies still have to deliver, unless they lag for too long.
    async fn within_reach_of_proxies(&self, compacted: i64) -> Result<i64> {
        let range = ops::range_request(&KeyRange::prefix(PROXIES_PREFIX));
        let answer = self.line.meta().range(range).await.map_err(ManagerError::Meta)?;
        let slowest =
            answer.kvs.iter().filter_map(|kv| ProxyRecord::decode(&kv.value).ok()).map(|p| p.revision).min();
        let mut state = self.state.lock();
        match slowest {
            Some(slowest) if slowest < compacted => {
                let since = *state.held_since.get_or_insert_with(Instant::now);
                Ok(if since.elapsed() < self.options.lag_max { slowest } else { compacted })
            }
            _ => {
                state.held_since = None;
                Ok(compacted)
            }
        }
    }

    /// What moves still have to read of their sources and copies.
    async fn held_by_moves(&self) -> Result<HashMap<ShardIx, i64>> {
        let mut held: HashMap<ShardIx, i64> = HashMap::new();
        for record in read_moves(&self.line).await? {
            if record.phase != MovePhase::Copying {
                continue;
            }
            let cursor = async {
                let destination = self.shards.get(record.to).await?;
                Ok::<_, ShardError>(destination.range(get(cursor_key(&record.id))).await?.kvs.pop())
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

    /// Writes a checkpoint when it is due, and drops the log's history before the last but one.
    async fn checkpoint(&self) -> Result<()> {
        let (entries, position) = self.line.with_fold(|fold| (fold.entries, fold.position));
        let before = self.state.lock().written;
        let due = match before {
            None => true,
            Some((e, p, at)) => {
                entries - e >= self.options.checkpoint_entries
                    || (position > p && at.elapsed() >= self.options.checkpoint_interval)
            }
        };
        if !due {
            return Ok(());
        }
        let mut fold = self.line.with_fold(Fold::clone);
        // Reading all keys is paid for by as many segments as were left the last time.
        let enough = self.options.segments_max.max(self.state.lock().condensed_to.saturating_mul(2));
        if fold.segment_count() > enough
            && let Some(needed) = self.live_revisions(&fold).await?
        {
            let segments = fold.segment_count();
            fold.condense(&needed);
            self.state.lock().condensed_to = fold.segment_count();
            tracing::info!(before = segments, after = fold.segment_count(), "condensed the checkpoint");
        }
        let meta = self.line.meta();
        write_checkpoint(meta.as_ref(), &fold).await?;
        // So that the next checkpoint, and this process, are as small.
        self.line.condense(&fold);
        self.state.lock().written = Some((fold.entries, fold.position, Instant::now()));
        // One checkpoint more than needed, so that who follows closely never has to start over.
        if let Some((_, revision, _)) = before {
            match meta.compact(pb::CompactionRequest { revision, physical: false }).await {
                Err(error) if error.is_compacted() => {}
                answer => {
                    answer.map_err(ManagerError::Meta)?;
                }
            }
        }
        Ok(())
    }

    /// For each shard, the local create and mod revisions of all keys that were alive at the compaction revision.
    ///
    /// What was created or modified later has a later revision, and those segments stay anyway. `None` if a shard cannot be
    /// asked: then nothing may be left out.
    async fn live_revisions(&self, fold: &Fold) -> Result<Option<Vec<Vec<i64>>>> {
        let mut all = Vec::with_capacity(fold.shards().len());
        for (i, shard) in fold.shards().iter().enumerate() {
            let ix = ShardIx(u32::try_from(i).unwrap_or(u32::MAX));
            let at = fold.local_at_most(ix, fold.compacted).unwrap_or(shard.l0);
            let mut needed = Vec::new();
            if !shard.left {
                let Ok(connection) = self.shards.get(ix).await else { return Ok(None) };
                let mut rest = KeyRange::whole().clamped();
                loop {
                    let request = pb::RangeRequest {
                        limit: PAGE,
                        keys_only: true,
                        revision: at,
                        serializable: true,
                        ..ops::range_request(&rest)
                    };
                    let Ok(answer) = connection.range(request).await else { return Ok(None) };
                    needed.extend(answer.kvs.iter().flat_map(|kv| [kv.create_revision, kv.mod_revision]));
                    match answer.kvs.last() {
                        Some(last) if answer.more => rest.start = successor(&last.key),
                        _ => break,
                    }
                }
                needed.sort_unstable();
                needed.dedup();
            }
            all.push(needed);
        }
        Ok(Some(all))
    }
}

/// All moves that are written down.
pub(crate) async fn read_moves(line: &Line) -> Result<Vec<MoveRecord>> {
    let range = ops::range_request(&KeyRange::prefix(sharded_etcd_core::records::MOVES_PREFIX));
    let answer = line.meta().range(range).await.map_err(ManagerError::Meta)?;
    let records = answer.kvs.iter().map(|kv| MoveRecord::decode(&kv.value).map_err(ManagerError::from));
    records.collect()
}
