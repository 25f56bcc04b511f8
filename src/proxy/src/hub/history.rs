//! Replays: reads the past of some shards, in the line's order, for watchers that start there.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::StreamExt;
use sharded_etcd_core::keyspace::ShardIx;
use sharded_etcd_shard::{Result, Shard, ShardError, WatchStream};
use tokio::sync::oneshot;
use tonic::Code;

use super::{
    actor::Message,
    event::Revision,
    merge::{ReplayId, ReplayOutcome, ReplayShard},
    read::{Read, Reading, open, read},
    translate::Translator,
};

/// How long a shard may take to go on with its history, in a replay.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Revisions handed to the merge at once.
const PART_REVISIONS_MAX: usize = 1_000;

/// Bytes handed to the merge at once; one revision may exceed it.
const PART_BYTES_MAX: usize = 1 << 20;

/// Revisions translated at once: their previous key-value pairs are read together.
const BATCH_REVISIONS_MAX: usize = 512;

/// Reads the given history of shards up to revision `upto` and hands it to the merge, part by part.
pub(crate) async fn replay(reading: Reading, replay: ReplayId, shards: Vec<ReplayShard>, upto: i64) {
    let compacted = reading.ctx.line.cut().compacted;
    let outcome = match run(&reading, replay, shards, upto).await {
        Ok(()) => ReplayOutcome::Done,
        Err((shard, error)) if reading.is_gone(&error, compacted).await => ReplayOutcome::Compacted(shard),
        Err((shard, error)) => {
            tracing::warn!(shard = shard.0, %error, "history for watchers cannot be read yet");
            ReplayOutcome::Failed
        }
    };
    // If the hub is gone, so are its watchers.
    let _ = reading.inbox.send(Message::ReplayEnded { replay, outcome }).await;
}

/// One shard of a replay.
struct Source {
    shard: ShardIx,
    connection: Arc<dyn Shard>,
    events: WatchStream,
    translator: Translator,
    /// Read up to this local revision, ...
    local: i64,
    /// ... of this one.
    upto: i64,
    /// Number of `local`.
    number: i64,
    /// Read and not handed on yet.
    revisions: VecDeque<Arc<Revision>>,
}

async fn run(
    reading: &Reading,
    replay: ReplayId,
    shards: Vec<ReplayShard>,
    upto: i64,
) -> std::result::Result<(), (ShardIx, ShardError)> {
    let mut sources = Vec::with_capacity(shards.len());
    for of in shards {
        sources.push(Source::open(reading, of).await.map_err(|error| (of.shard, error))?);
    }
    loop {
        // The order is known up to where the shard that is read the least far has been read.
        let next = sources.iter_mut().filter(|s| s.local < s.upto).min_by_key(|s| s.number);
        let known = next.as_ref().map_or(upto, |s| s.number);
        let ended = next.is_none();
        if let Some(source) = next {
            let shard = source.shard;
            source.read(reading).await.map_err(|error| (shard, error))?;
        }
        let mut due: Vec<_> = sources
            .iter_mut()
            .flat_map(|s| std::iter::from_fn(|| s.revisions.pop_front_if(|r| r.global <= known)))
            .collect();
        due.sort_unstable_by_key(|r| r.global);
        if !hand_on(reading, replay, due, known).await || ended {
            return Ok(());
        }
    }
}

/// Hands revisions to the merge, after which everything up to `known` is there. False if nobody wants more.
async fn hand_on(reading: &Reading, replay: ReplayId, mut due: Vec<Arc<Revision>>, known: i64) -> bool {
    loop {
        let part = part_of(&due);
        let rest = due.split_off(part);
        let upto = if rest.is_empty() { known } else { due.last().map_or(known, |r| r.global) };
        let (reply, wanted) = oneshot::channel();
        let message = Message::Replayed { replay, revisions: due, upto, reply };
        if reading.inbox.send(message).await.is_err() || !wanted.await.unwrap_or(false) {
            return false;
        }
        if rest.is_empty() {
            return true;
        }
        due = rest;
    }
}

/// How many of the revisions fit into one part; at least one, if there is one.
fn part_of(due: &[Arc<Revision>]) -> usize {
    let mut bytes = 0;
    let fits = |r: &&Arc<Revision>| {
        let room = bytes < PART_BYTES_MAX;
        bytes += r.bytes;
        room
    };
    due.iter().take(PART_REVISIONS_MAX).take_while(fits).count()
}

impl Source {
    async fn open(reading: &Reading, of: ReplayShard) -> Result<Self> {
        let connection = reading.ctx.shards.get(of.shard).await?;
        let events = open(connection.as_ref(), of.from).await?;
        Ok(Self {
            shard: of.shard,
            connection,
            events,
            translator: reading.translator(of.shard),
            local: of.from - 1,
            upto: of.upto,
            number: 0,
            revisions: VecDeque::new(),
        })
    }

    /// Reads on, by one message.
    async fn read(&mut self, reading: &Reading) -> Result<()> {
        let silent = |_| ShardError::ambiguous(Code::Unavailable, "the shard's history does not go on");
        let ended = || ShardError::ambiguous(Code::Unavailable, "the watch over the shard ended");
        let message = tokio::time::timeout(SILENCE_MAX, self.events.next()).await.map_err(silent)?;
        let mut revisions = match message.unwrap_or_else(|| Err(ended())).and_then(read)? {
            Read::Revisions(revisions) => revisions,
            Read::Compacted(_) => {
                return Err(ShardError::refused(Code::OutOfRange, sharded_etcd_shard::ERR_COMPACTED));
            }
        };
        let Some(last) = revisions.last().map(|r| r.local.min(self.upto)) else { return Ok(()) };
        revisions.retain(|r| r.local > self.local && r.local <= self.upto);
        for batch in revisions.chunks(BATCH_REVISIONS_MAX) {
            let drafts = self.translator.draft(batch);
            self.revisions.extend(self.translator.resolve(self.connection.as_ref(), &drafts, true).await?);
        }
        self.local = self.local.max(last);
        // If it is not mapped any more it is compacted, and whoever needs it will be told so.
        self.number = reading.ctx.line.with_fold(|f| f.global(self.shard, self.local)).unwrap_or(self.number);
        Ok(())
    }
}
