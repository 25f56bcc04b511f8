//! The line client: follows the log in meta, folds it, appends cuts in batches, and answers what the line is now.
//!
//! One [`Line`] serves a whole process: the proxy's services and the shard manager share it. It starts from the newest
//! checkpoint and the log behind it, and from then on folds every entry, in order, from whichever source brings it
//! first: the watch on the log, an answer to an append of its own, or a linearizable read of the log's end.

mod append;
pub mod bootstrap;
mod checkpoint;
mod condense;
mod cut;
mod error;
mod follow;
pub mod latest;
pub mod random;
mod refresh;
mod shards;
pub mod upkeep;
mod waiters;

use std::{
    sync::{Arc, atomic::AtomicI64},
    time::Duration,
};

use parking_lot::RwLock;
use sharded_etcd_core::{
    keyspace::ShardIx,
    line::{Entry, Fold},
};
use sharded_etcd_shard::Shard;
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use waiters::Until;

pub use checkpoint::{CheckpointError, write_checkpoint};
pub use cut::Cut;
pub use error::LineError;
pub use shards::Shards;

/// How a [`Line`] behaves.
#[derive(Debug, Clone)]
pub struct LineOptions {
    /// How long a wait for a cut or for the log's end may take. Default 5 s.
    pub wait_max: Duration,
    /// Local revisions seen and not in any cut for this long are appended by whoever sees them. Default 20 ms.
    pub uncovered_max: Duration,
    /// If meta does not answer appends for this long, writes are refused before they are sent. Default 1 s.
    pub stuck_max: Duration,
    /// Segments in memory above which the newest checkpoint is looked at for those that no live key needs; 24 bytes each.
    /// Default 100,000.
    pub segments_max: usize,
    /// How often that is looked at. Default 30 s.
    pub condense_interval: Duration,
    /// What was written on a shard and is in nobody's answer or watch is found, by proxies, within this time. Default 10 s.
    pub unseen_max: Duration,
    /// When a proxy does the shard manager's part in keeping the log short.
    pub caretaker: upkeep::CaretakerOptions,
}

impl Default for LineOptions {
    fn default() -> Self {
        Self {
            wait_max: Duration::from_secs(5),
            uncovered_max: Duration::from_millis(20),
            stuck_max: Duration::from_secs(1),
            segments_max: 100_000,
            condense_interval: Duration::from_secs(30),
            unseen_max: Duration::from_secs(10),
            caretaker: upkeep::CaretakerOptions::default(),
        }
    }
}

/// The line as this process knows it. See the crate's documentation.
pub struct Line {
    meta: Arc<dyn Shard>,
    options: LineOptions,
    fold: RwLock<Fold>,
    cut: latest::Sender<Arc<Cut>>,
    waiters: waiters::Waiters,
    appender: append::Appender,
    refresher: refresh::Refresher,
    /// Why the fold cannot go on; once set, nothing is served any more.
    broken: watch::Sender<Option<String>>,
    /// Counters for metrics.
    pub stats: Stats,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// What happened since the start, for metrics.
#[derive(Debug, Default)]
pub struct Stats {
    /// Cuts appended by this process.
    pub appends: AtomicI64,
    /// Appends with unknown outcome.
    pub appends_unknown: AtomicI64,
    /// Reads of the log's end.
    pub refreshes: AtomicI64,
    /// Times that the follower had to start over.
    pub restarts: AtomicI64,
    /// Segments dropped from memory as no live key needs them.
    pub condensed: AtomicI64,
}

impl Line {
    /// Reads the newest checkpoint and the log behind it, and starts to follow.
    ///
    /// # Errors
    /// If meta cannot be read, holds no topology ([`LineError::NotBootstrapped`]), or a log that cannot be folded.
    pub async fn start(meta: Arc<dyn Shard>, options: LineOptions) -> Result<Arc<Self>, LineError> {
        let fold = follow::load(meta.as_ref()).await?;
        let line = Arc::new(Self {
            cut: latest::Sender::new(Arc::new(Cut::of(&fold))),
            waiters: waiters::Waiters::default(),
            appender: append::Appender::new(fold.shards().len()),
            refresher: refresh::Refresher::default(),
            broken: watch::Sender::new(None),
            stats: Stats::default(),
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
            fold: RwLock::new(fold),
            meta,
            options,
        });
        line.tasks.spawn(Arc::clone(&line).follow());
        line.tasks.spawn(Arc::clone(&line).append_loop());
        line.tasks.spawn(Arc::clone(&line).refresh_loop());
        line.tasks.spawn(Arc::clone(&line).condense_loop());
        Ok(line)
    }

    /// Stops following and appending; waits until the tasks are done.
    pub async fn close(&self) {
        self.shutdown.cancel();
        self.waiters.give_up();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The newest cut that this process has folded.
    pub fn cut(&self) -> Arc<Cut> {
        self.cut.borrow().clone()
    }

    /// A receiver that sees every change of the cut (or only the newest, if it is slow).
    pub fn subscribe(&self) -> latest::Receiver<Arc<Cut>> {
        self.cut.subscribe()
    }

    /// Looks into the fold, for example to translate revisions. Keep it short: it holds up the folding.
    pub fn with_fold<T>(&self, look: impl FnOnce(&Fold) -> T) -> T {
        look(&self.fold.read())
    }

    /// Why nothing can be served, if so: the log cannot be folded by this release.
    pub fn broken(&self) -> Option<String> {
        self.broken.borrow().clone()
    }

    /// How it behaves.
    pub fn options(&self) -> &LineOptions {
        &self.options
    }

    /// The connection to meta.
    pub fn meta(&self) -> &Arc<dyn Shard> {
        &self.meta
    }

    /// Waits until local revision `local` of `shard` is part of the line; appends a cut if nobody else did.
    ///
    /// # Errors
    /// [`LineError::Timeout`] if that takes longer than `wait_max`: the write is durable, its number is not known.
    pub async fn cover(&self, shard: ShardIx, local: i64) -> Result<Arc<Cut>, LineError> {
        if let Some(cut) = self.newest_if(|cut| cut.covers(shard, local)) {
            return Ok(cut);
        }
        self.wait_for(Until::Covered(shard, local), "a cut that covers a write").await
    }

    /// Notes a local revision seen in an answer or watch event of a checked connection; if no cut covers it within
    /// `uncovered_max`, one is appended.
    pub fn observe(&self, shard: ShardIx, local: i64) {
        if !self.cut.borrow().covers(shard, local) {
            self.appender.saw(shard, local);
        }
    }

    /// The line as of a moment after this call: one linearizable read of the log's end for all callers that wait.
    ///
    /// # Errors
    /// [`LineError::Timeout`] or [`LineError::Meta`] if meta does not answer.
    pub async fn refresh(&self) -> Result<Arc<Cut>, LineError> {
        let position = self.refresher.position(self.options.wait_max).await?;
        self.at_position(position).await
    }

    /// Says whether a write may be sent: if meta has not answered appends for a while, only after it has answered a read.
    /// A write that is sent and cannot be numbered has an outcome that its client never learns (protocol: trap 11).
    ///
    /// # Errors
    /// [`LineError::Meta`] or [`LineError::Timeout`] if meta is away: do not send.
    pub async fn ready_for_writes(&self) -> Result<(), LineError> {
        if self.appender.is_stuck(self.options.stuck_max) {
            self.refresh().await?;
        }
        Ok(())
    }

    /// Waits until all entries up to a log position are folded.
    ///
    /// # Errors
    /// [`LineError::Timeout`] if that takes longer than `wait_max`.
    pub async fn at_position(&self, position: i64) -> Result<Arc<Cut>, LineError> {
        if let Some(cut) = self.newest_if(|cut| cut.position >= position) {
            return Ok(cut);
        }
        self.wait_for(Until::Position(position), "the log's end").await
    }

    /// Appends an entry unconditionally and waits until it is folded. For entries that any order is right for: joins,
    /// leaves, compactions. Map changes go through a Txn that compares the map's key, then [`Line::at_position`].
    ///
    /// # Errors
    /// [`LineError::Meta`] if meta did not take it; the outcome may be unknown, and a repeat does no harm.
    pub async fn append(&self, entry: &Entry) -> Result<Arc<Cut>, LineError> {
        let position = append::put_entry(self.meta.as_ref(), entry).await?.0;
        self.at_position(position).await
    }

    fn newest_if(&self, enough: impl FnOnce(&Cut) -> bool) -> Option<Arc<Cut>> {
        let cut = self.cut.borrow();
        enough(&cut).then(|| Arc::clone(&cut))
    }

    async fn wait_for(&self, until: Until, what: &'static str) -> Result<Arc<Cut>, LineError> {
        let mut waiting = self.waiters.enter(until);
        if let Some(cut) = self.newest_if(|cut| until.is_met(cut)) {
            return Ok(cut);
        }
        if self.shutdown.is_cancelled() {
            return Err(LineError::Closed);
        }
        if let Some(why) = self.broken() {
            return Err(LineError::Broken(why));
        }
        if let Until::Covered(shard, local) = until {
            self.appender.want(shard, local);
        }
        match tokio::time::timeout(self.options.wait_max, &mut waiting.answer).await {
            Ok(Ok(cut)) => Ok(cut),
            Ok(Err(_)) => Err(self.broken().map_or(LineError::Closed, LineError::Broken)),
            Err(_) => Err(LineError::Timeout { what, ms: self.options.wait_max.as_millis() }),
        }
    }

    /// Folds the entry at `position` if it is the next one; true if the fold is at or past `position` then.
    ///
    /// `number` is the entry's place in the log, from 1 (the `version` of the log's key), which tells the next entry.
    fn fold_entry(&self, position: i64, number: i64, value: &[u8]) -> Result<bool, LineError> {
        let cut = {
            let mut fold = self.fold.write();
            if position <= fold.position {
                return Ok(true);
            }
            if number != fold.entries + 1 {
                return Ok(false);
            }
            let entry = Entry::decode(value).map_err(|e| self.stop(e.to_string()))?;
            fold.apply(position, &entry).map_err(|e| self.stop(e.to_string()))?;
            Arc::new(Cut::next(&self.cut.borrow(), &fold))
        };
        self.publish(cut);
        Ok(true)
    }

    fn publish(&self, cut: Arc<Cut>) {
        self.appender.resize(cut.vector.len());
        // Two sources may publish at once: the newer cut stays.
        self.cut.send_if_modified(|old| {
            let newer = cut.position > old.position;
            if newer {
                *old = Arc::clone(&cut);
            }
            newer
        });
        self.waiters.publish(&cut);
    }

    fn stop(&self, why: String) -> LineError {
        tracing::error!(reason = %why, "the log cannot be folded; nothing is served any more");
        self.broken.send_replace(Some(why.clone()));
        self.waiters.give_up();
        LineError::Broken(why)
    }
}

/// Wakes one loop; missed wake-ups are kept.
type Wake = Notify;
