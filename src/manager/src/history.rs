//! What is kept of the past: compaction of the line after its retention, and when checkpoints are written and shards are
//! compacted. How that is done is in [`sharded_etcd_line::upkeep`].

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use sharded_etcd_core::{line::Entry, records::MoveRecord};
use sharded_etcd_line::{
    Line, Shards,
    upkeep::{self, Upkeep, UpkeepOptions},
};
use tokio::time::Instant;

use crate::error::Result;

/// Marks of (time, revision) that are kept for one retention.
const MARKS: u32 = 20;

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
    upkeep: Upkeep,
    options: HistoryOptions,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Position of the last checkpoint, log entries in it, and when it was written.
    written: Option<(i64, i64, Instant)>,
    compacted_at: Option<Instant>,
    /// Revisions of the line over the last retention.
    marks: VecDeque<(Instant, i64)>,
}

impl History {
    pub(crate) fn new(line: Arc<Line>, shards: Arc<Shards>, options: HistoryOptions) -> Self {
        let kept = UpkeepOptions { lag_max: options.lag_max, segments_max: options.segments_max };
        let upkeep = Upkeep::new(Arc::clone(&line), shards, kept);
        Self { line, upkeep, options, state: Mutex::default() }
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
            self.upkeep.compact_shards().await?;
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

    /// Writes a checkpoint when it is due.
    async fn checkpoint(&self) -> Result<()> {
        let (entries, position) = self.line.with_fold(|fold| (fold.entries, fold.position));
        let due = match self.state.lock().written {
            None => true,
            Some((p, e, at)) => {
                entries - e >= self.options.checkpoint_entries
                    || (position > p && at.elapsed() >= self.options.checkpoint_interval)
            }
        };
        if due {
            let (position, entries) = self.upkeep.checkpoint().await?;
            self.state.lock().written = Some((position, entries, Instant::now()));
        }
        Ok(())
    }
}

/// All moves that are written down.
pub(crate) async fn read_moves(line: &Line) -> Result<Vec<MoveRecord>> {
    Ok(upkeep::read_moves(line).await?)
}
