//! Reading whole shards: the base stream of each shard, which never ends, and replays of history.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use sharded_etcd_core::{
    keyspace::{RESERVED, ShardIx},
    records,
    translate::StoredOverride,
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Result, Shard, ShardError, WatchStream};
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::{
    actor::{Message, Phase},
    overrides::Overrides,
    translate::{RawRevision, Translator, WantedPrev},
};
use crate::context::Context;

/// Bytes of events read and not yet part of the line, at most, before reading stops; one message may exceed it.
const AHEAD_BYTES_MAX: usize = 32 << 20;

/// Revisions translated at once.
const BATCH_REVISIONS_MAX: usize = 512;

/// Bytes of events translated at once; one revision may exceed it.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// Pauses between two tries to reach a shard grow from the first to the second.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What all readers share.
#[derive(Clone)]
pub(crate) struct Reading {
    pub(crate) ctx: Arc<Context>,
    pub(crate) overrides: Arc<Overrides>,
    pub(crate) wanted: WantedPrev,
    pub(crate) inbox: mpsc::Sender<Message>,
    pub(crate) fences: broadcast::Sender<ShardIx>,
}

impl Reading {
    pub(crate) fn translator(&self, shard: ShardIx) -> Translator {
        Translator::new(Arc::clone(&self.ctx), shard, Arc::clone(&self.overrides), Arc::clone(&self.wanted))
    }

    /// True if what failed with `error` is compacted for good: `compacted` was known before it was asked for, and is the line's
    /// newest compaction still. If that has moved on meanwhile it is to be judged again, as at the compaction's very revision
    /// nothing older is needed; so it is if the newest is not known.
    pub(crate) async fn is_gone(&self, error: &ShardError, compacted: i64) -> bool {
        if !error.is_compacted() {
            return false;
        }
        match self.ctx.line.refresh().await {
            Ok(cut) => cut.compacted <= compacted,
            Err(error) => {
                tracing::warn!(%error, "whether history is compacted cannot be read yet");
                false
            }
        }
    }
}

/// Opens a watch over everything in a shard, the hidden space too, from a local revision on.
pub(crate) async fn open(shard: &dyn Shard, from: i64) -> Result<WatchStream> {
    open_above(shard, b"\0", from).await
}

async fn open_above(shard: &dyn Shard, key: &'static [u8], from: i64) -> Result<WatchStream> {
    let create = pb::WatchCreateRequest {
        key: Bytes::from_static(key),
        range_end: Bytes::from_static(b"\0"),
        start_revision: from,
        ..Default::default()
    };
    shard.watch(create).await
}

/// What one message of a watch over a shard says.
pub(crate) enum Read {
    /// Whole revisions, ascending; none at all in the first message.
    Revisions(Vec<RawRevision>),
    /// The start is compacted; what there is begins at this local revision.
    Compacted(i64),
}

/// Takes a message apart.
///
/// etcd never parts a revision over messages unless it is asked to, so what is behind the last one is complete.
pub(crate) fn read(response: pb::WatchResponse) -> Result<Read> {
    if response.compact_revision > 0 {
        return Ok(Read::Compacted(response.compact_revision));
    }
    if response.canceled {
        let reason = format!("the shard cancelled the watch over it: {}", response.cancel_reason);
        return Err(ShardError::ambiguous(Code::Unavailable, reason));
    }
    let mut revisions: Vec<RawRevision> = Vec::new();
    for event in response.events {
        let local = event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        match revisions.last_mut() {
            Some(last) if last.local == local => last.events.push(event),
            _ => revisions.push(RawRevision { local, events: vec![event] }),
        }
    }
    Ok(Read::Revisions(revisions))
}

/// The base stream of one shard: reads it for as long as the shard is part of the line.
pub(crate) struct BaseStream {
    reading: Reading,
    shard: ShardIx,
    phase: Phase,
    /// Nobody watches: only the topology's own records are read.
    asleep: bool,
    /// First local revision not read yet.
    next: i64,
    translator: Translator,
    /// For [`Overrides::told`].
    stream: u64,
    /// Read, and not yet part of the line.
    ahead: VecDeque<RawRevision>,
    ahead_bytes: usize,
    pause: Duration,
}

/// Why reading stopped.
enum Broken {
    Shard(ShardError),
    /// What comes next is compacted, up to before this local revision if that is known.
    Compacted(Option<i64>),
    /// The hub is gone.
    Closed,
}

impl From<ShardError> for Broken {
    fn from(error: ShardError) -> Self {
        if error.is_compacted() { Self::Compacted(None) } else { Self::Shard(error) }
    }
}

impl BaseStream {
    /// A base stream from behind a local revision.
    pub(crate) fn behind(reading: Reading, shard: ShardIx, local: i64, phase: Phase, asleep: bool) -> Self {
        let translator = reading.translator(shard);
        let stream = reading.overrides.begin(shard);
        Self {
            stream,
            reading,
            shard,
            phase,
            asleep,
            next: local + 1,
            translator,
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            pause: PAUSE_MIN,
        }
    }

    /// Reads until `stop`; begins again where it was whenever the stream breaks.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            let broken = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                broken = self.follow() => broken,
            };
            let broken = match broken {
                Broken::Compacted(left) => tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    broken = self.skip_what_is_compacted(left) => broken,
                },
                broken => Some(broken),
            };
            match broken {
                Some(Broken::Closed) => return,
                Some(Broken::Shard(error)) => {
                    // Once per outage: later tries say the same.
                    if self.pause < PAUSE_MAX {
                        tracing::warn!(shard = self.shard.0, next = self.next, %error, "following the shard again");
                    }
                }
                Some(Broken::Compacted(_)) | None => {}
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.pause) => self.pause = (self.pause * 2).min(PAUSE_MAX),
            }
        }
    }

    async fn follow(&mut self) -> Broken {
        let ctx = Arc::clone(&self.reading.ctx);
        let connection = match ctx.shards.get(self.shard).await {
            Ok(connection) => connection,
            Err(error) => return error.into(),
        };
        let from = if self.asleep { RESERVED } else { b"\0" };
        let mut events = match open_above(connection.as_ref(), from, self.next).await {
            Ok(events) => events,
            Err(error) => return error.into(),
        };
        let mut cuts = ctx.line.subscribe();
        loop {
            tokio::select! {
                biased;
                message = events.next(), if self.ahead_bytes < AHEAD_BYTES_MAX => {
                    let ended = || ShardError::ambiguous(Code::Unavailable, "the watch over the shard ended");
                    match message.unwrap_or_else(|| Err(ended())).and_then(read) {
                        Ok(Read::Revisions(revisions)) => self.take(revisions),
                        Ok(Read::Compacted(left)) => return Broken::Compacted(Some(left)),
                        Err(error) => return error.into(),
                    }
                }
                changed = cuts.changed(), if !self.ahead.is_empty() => {
                    if changed.is_err() {
                        return Broken::Closed;
                    }
                }
            }
            let v = cuts.borrow_and_update().v(self.shard);
            if let Err(broken) = self.translate(connection.as_ref(), v).await {
                return broken;
            }
        }
    }

    fn take(&mut self, revisions: Vec<RawRevision>) {
        self.pause = PAUSE_MIN;
        // A member that is behind may answer with less than the one before it did.
        for revision in revisions {
            if revision.local < self.next {
                continue;
            }
            self.next = revision.local + 1;
            self.look_at_records(&revision);
            if self.asleep {
                continue;
            }
            self.ahead_bytes += revision.bytes();
            self.ahead.push_back(revision);
        }
        self.reading.ctx.line.observe(self.shard, self.next - 1);
    }

    /// The topology's own records pass by too: fences, which held writes wait for, and overrides.
    fn look_at_records(&self, revision: &RawRevision) {
        let mut fence = false;
        for kv in revision.events.iter().filter_map(|e| e.kv.as_ref()) {
            let Some(record) = kv.key.strip_prefix(RESERVED) else { continue };
            if record.starts_with(b"F/") {
                fence = true;
            } else if let Some(key) = records::overridden_key(&kv.key)
                && let Some(o) = StoredOverride::from_kv(kv)
            {
                // Deletions have no value, so are none.
                self.reading.overrides.told(self.stream, self.shard, Bytes::copy_from_slice(&key), o);
            }
        }
        if fence {
            // Without receivers there is nobody to tell.
            let _ = self.reading.fences.send(self.shard);
        }
    }

    /// Translates what is part of the line by now (up to local revision `v`) and hands it to the merge.
    async fn translate(&mut self, connection: &dyn Shard, v: i64) -> std::result::Result<(), Broken> {
        loop {
            let batch = self.batch(v);
            let (Some(first), Some(upto)) = (batch.first().map(|r| r.local), batch.last().map(|r| r.local))
            else {
                return Ok(());
            };
            let drafts = self.translator.draft(&batch);
            let mut pause = PAUSE_MIN;
            let revisions = loop {
                match self.translator.resolve(connection, &drafts, false).await {
                    Ok(revisions) => break revisions,
                    Err(error) if error.is_compacted() => {
                        // They are not lost yet: what is not compacted of them is read once more.
                        self.begin_again_at(first);
                        return Err(Broken::Compacted(None));
                    }
                    Err(error) => {
                        // The events are here already: the stream need not break for it.
                        tracing::warn!(shard = self.shard.0, %error, "reading overrides again");
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(PAUSE_MAX);
                    }
                }
            };
            let ready = Message::Ready { phase: self.phase, shard: self.shard, revisions, upto };
            self.reading.inbox.send(ready).await.map_err(|_| Broken::Closed)?;
        }
    }

    fn batch(&mut self, v: i64) -> Vec<RawRevision> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < BATCH_REVISIONS_MAX && bytes < BATCH_BYTES_MAX {
            let Some(revision) = self.ahead.pop_front_if(|r| r.local <= v) else { break };
            bytes += revision.bytes();
            batch.push(revision);
        }
        self.ahead_bytes -= bytes;
        batch
    }

    /// Forgets what was read and not handed on.
    fn begin_again_at(&mut self, local: i64) {
        self.ahead.clear();
        self.ahead_bytes = 0;
        self.translator.skip();
        self.next = local;
    }

    /// History that this process has not read is gone: goes on from what is left, or from behind the line's compaction if
    /// that is not known, and tells the merge.
    async fn skip_what_is_compacted(&mut self, left: Option<i64>) -> Option<Broken> {
        // The newest cut: a compaction never reaches beyond the line.
        if let Err(error) = self.reading.ctx.line.refresh().await {
            tracing::warn!(%error, "the line's end is not known");
            return None;
        }
        let (v, compacted) = self.reading.ctx.line.with_fold(|fold| {
            let v = fold.shard(self.shard).map_or(0, |shard| shard.v);
            (v, fold.local_at_most(self.shard, fold.compacted).unwrap_or(v))
        });
        // Watchers that need nothing of what is gone must not be told that it is: it is above the line's compaction that
        // they are served. No shard is compacted beyond that; what cannot be read of it all the same is passed over.
        let beyond = if compacted < self.next { v } else { compacted };
        let upto = left.map_or(beyond, |left| left - 1).min(v);
        // Overrides that were written there are passed over, too.
        self.stream = self.reading.overrides.begin(self.shard);
        if self.asleep {
            // Fences that were written there are read by whoever waits for one.
            self.next = upto + 1;
            return None;
        }
        tracing::error!(
            shard = self.shard.0,
            from = self.next,
            upto,
            "the shard is compacted beyond what was read of it; watchers that need this part start over"
        );
        self.begin_again_at(upto + 1);
        let gap = Message::Gap { phase: self.phase, shard: self.shard, upto };
        self.reading.inbox.send(gap).await.err().map(|_| Broken::Closed)
    }
}
