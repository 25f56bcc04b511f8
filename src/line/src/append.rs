//! Appending cuts, in batches: one small meta write for all writers of a moment.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use rand::Rng;
use sharded_etcd_core::{keyspace::ShardIx, line::Entry, records};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::Shard;
use tokio::time::Instant;

use crate::{Line, LineError, Wake};

/// How long one append, or one read of the log's end, may take. Both are sent again then, perhaps to another member:
/// whoever waits for them has longer than that.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Meta did not answer within [`ANSWER_MAX`].
pub(crate) fn unanswered(what: &'static str) -> LineError {
    LineError::Timeout { what, ms: ANSWER_MAX.as_millis() }
}

/// What this process has seen of the shards.
pub(crate) struct Appender {
    /// Highest local revision seen of each shard, by join number.
    seen: Mutex<Vec<i64>>,
    wanted: Wake,
    noticed: Wake,
    /// Since when an append has been under way, or has failed again and again.
    unanswered_since: Mutex<Option<Instant>>,
}

impl Appender {
    pub(crate) fn new(shards: usize) -> Self {
        Self {
            seen: Mutex::new(vec![0; shards]),
            wanted: Wake::new(),
            noticed: Wake::new(),
            unanswered_since: Mutex::new(None),
        }
    }

    pub(crate) fn resize(&self, shards: usize) {
        let mut seen = self.seen.lock();
        if seen.len() < shards {
            seen.resize(shards, 0);
        }
    }

    /// True if meta has not answered an append for longer than `most`.
    pub(crate) fn is_stuck(&self, most: Duration) -> bool {
        self.unanswered_since.lock().is_some_and(|since| since.elapsed() > most)
    }

    /// An answer waits for a cut that covers this.
    pub(crate) fn want(&self, shard: ShardIx, local: i64) {
        self.note(shard, local);
        self.wanted.notify_one();
    }

    /// Seen, and nobody waits.
    pub(crate) fn saw(&self, shard: ShardIx, local: i64) {
        self.note(shard, local);
        self.noticed.notify_one();
    }

    fn note(&self, shard: ShardIx, local: i64) {
        let mut seen = self.seen.lock();
        if seen.len() <= shard.index() {
            seen.resize(shard.index() + 1, 0);
        }
        let known = &mut seen[shard.index()];
        *known = (*known).max(local);
    }

    /// What was seen above a vector.
    fn uncovered(&self, vector: &[i64]) -> Vec<(ShardIx, i64)> {
        let seen = self.seen.lock();
        let above = seen.iter().zip(vector).enumerate().filter(|(_, (seen, v))| seen > v);
        above.map(|(i, (&seen, _))| (ShardIx(i as u32), seen)).collect()
    }
}

/// Puts an entry at the log's end; its position, and the previous end's place in the log.
pub(crate) async fn put_entry(meta: &dyn Shard, entry: &Entry) -> Result<(i64, i64, Bytes), LineError> {
    let value = entry.encode();
    let put = pb::PutRequest {
        key: Bytes::from_static(records::CUT_LATEST),
        value: value.clone(),
        prev_kv: true,
        ..Default::default()
    };
    let answer = meta.put(put).await?;
    let position = answer.header.map_or(0, |h| h.revision);
    Ok((position, answer.prev_kv.map_or(0, |kv| kv.version), value))
}

impl Line {
    /// Appends a cut whenever an answer waits for one, with all that was seen until then; what gathers meanwhile is
    /// the next batch. What nobody waits for is appended once it has been uncovered for a while.
    pub(crate) async fn append_loop(self: Arc<Self>) {
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return,
                () = self.appender.wanted.notified() => {}
                () = self.linger() => {}
            }
            let above = self.appender.uncovered(&self.cut().vector);
            if above.is_empty() {
                continue;
            }
            if let Err(error) = self.append_cut(above).await {
                self.stats.appends_unknown.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, source = ?std::error::Error::source(&error), "a cut was not confirmed; appending again");
                // Meta is in trouble: do not hammer it. Answers that wait have their own bound.
                let pause = Duration::from_millis(crate::random::rng().random_range(20..60));
                tokio::select! {
                    biased;
                    () = self.shutdown.cancelled() => return,
                    () = tokio::time::sleep(pause) => self.appender.wanted.notify_one(),
                }
            }
        }
    }

    /// Until something has been seen and stayed uncovered for the configured time, with jitter, as all proxies see it.
    async fn linger(&self) {
        self.appender.noticed.notified().await;
        let most = self.options.uncovered_max;
        let jitter = most.mul_f64(crate::random::rng().random_range(0.0..0.5));
        tokio::time::sleep(most + jitter).await;
    }

    async fn append_cut(&self, above: Vec<(ShardIx, i64)>) -> Result<(), LineError> {
        self.appender.unanswered_since.lock().get_or_insert_with(Instant::now);
        let entry = Entry::Adv(above);
        let put = tokio::time::timeout(ANSWER_MAX, put_entry(self.meta.as_ref(), &entry)).await;
        let (position, before, value) = put.map_err(|_| unanswered("a cut to be appended"))??;
        *self.appender.unanswered_since.lock() = None;
        self.stats.appends.fetch_add(1, Ordering::Relaxed);
        // If the entry before mine is my fold's end I know the result; else the watch brings what is between.
        self.fold_entry(position, before + 1, &value)?;
        Ok(())
    }
}
