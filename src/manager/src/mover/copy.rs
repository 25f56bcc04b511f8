//! Copying a range as it was at one revision of the source.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use sharded_etcd_core::{
    keyspace::{KeyRange, successor},
    moves::{BATCH_BYTES_MAX, BATCH_KEYS_MAX, Change, Observation, Pace, Stored, import_txn, ops},
    records::{Cursor, CursorStage, MoveRecord, cursor_key, fence_key},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Shard, ShardError};
use tokio::time::Instant;

use super::{Interrupt, Mover, observe::get, read::KeyReader};

/// Tries to import one batch, when leases end at the same time.
const IMPORT_TRIES_MAX: usize = 20;

impl Mover<'_> {
    /// [`Work::Copy`](sharded_etcd_core::moves::Work::Copy).
    pub(crate) async fn copy(&mut self, seen: &mut Observation) -> Result<(), Interrupt> {
        let Some((record, mut cursor)) = record_and_cursor(seen) else { return Err(Interrupt::Lost) };
        let copy_at = cursor.value.copy_at;
        let CursorStage::Copy { next } = cursor.value.stage.clone() else { return Err(Interrupt::Lost) };
        let source = self.shard(record.from).await?;
        let overrides = self.source_was_imported(&record);
        let rest = KeyRange { start: next, end: record.range.end.clone() };
        self.count_progress(&record, source.as_ref(), copy_at, &rest.start).await?;
        let line = self.context.line.clone();
        let mut reader = KeyReader::new(line, source, record.from, &rest, copy_at, overrides);
        let mut queue = VecDeque::new();
        let mut more = read_more(&mut reader, &mut queue, copy_at).await?;
        let mut pace = Pacer::new();
        loop {
            let begun = Instant::now();
            self.context.failpoints.before("copy").await?;
            let batch = take_batch(&mut queue);
            let stage = match batch.last() {
                Some(last) if more || !queue.is_empty() => CursorStage::Copy { next: successor(last.key()) },
                _ => CursorStage::Tail { revision: copy_at + 1, sub: 0 },
            };
            let tail = matches!(stage, CursorStage::Tail { .. });
            // The source is read while the destination writes.
            let import = self.import(&record, &mut cursor, batch, Cursor { copy_at, stage });
            let read =
                async { if more { read_more(&mut reader, &mut queue, copy_at).await } else { Ok(false) } };
            ((), more) = tokio::try_join!(import, read)?;
            note_cursor(seen, &cursor);
            self.context.failpoints.after("copy").await?;
            if tail {
                return Ok(());
            }
            pace.rest(self, &record, begun).await?;
        }
    }

    /// Whether keys of the range may have overrides on the source.
    pub(crate) fn source_was_imported(&self, record: &MoveRecord) -> bool {
        self.context.line.cut().map.by_rid(&record.rid).is_none_or(|e| e.imported_at > 0)
    }

    /// Imports one batch and moves the cursor on. Leases that are over are left out of it.
    pub(crate) async fn import(
        &mut self,
        record: &MoveRecord,
        cursor: &mut Stored<Cursor>,
        batch: Vec<Change>,
        next: Cursor,
    ) -> Result<(), Interrupt> {
        let size = bytes(batch.iter());
        if self.stall.is_none() {
            self.context.throttle.take(size).await;
        }
        let destination = self.shard(record.to).await?;
        for _ in 0..IMPORT_TRIES_MAX {
            let leases = batch.iter().filter_map(|c| match c {
                Change::Put(kv) if kv.lease != 0 => Some(kv.lease),
                _ => None,
            });
            self.shadows.make_ready(self.meta.as_ref(), destination.as_ref(), record.to, leases).await?;
            let ready: Vec<Change> = batch.iter().cloned().map(|c| self.without_ended_lease(c)).collect();
            let txn = import_txn(&record.id, cursor.modified, &ready, &next);
            let answer = match destination.txn(txn).await {
                Err(error) if error.is_lease_not_found() => {
                    self.shadows.forget();
                    continue;
                }
                answer => answer?,
            };
            if !answer.succeeded {
                return Err(Interrupt::Lost);
            }
            *cursor = Stored { value: next, modified: answer.header.map_or(0, |h| h.revision) };
            let keys = batch.len() as u64;
            self.progress(|p| {
                p.keys_done += keys;
                p.bytes_done += size as u64;
            });
            return Ok(());
        }
        Err(Interrupt::GiveUp("leases of its keys ended again and again while they were imported".to_owned()))
    }

    fn without_ended_lease(&self, change: Change) -> Change {
        match change {
            Change::Put(kv) if kv.lease != 0 && !self.shadows.is_ready(kv.lease) => {
                Change::Put(pb::KeyValue { lease: 0, ..kv })
            }
            change => change,
        }
    }

    async fn count_progress(
        &self,
        record: &MoveRecord,
        source: &dyn sharded_etcd_shard::Shard,
        revision: i64,
        next: &Bytes,
    ) -> Result<(), Interrupt> {
        let count = |range: KeyRange| async move {
            if range.is_empty() {
                return Ok::<_, Interrupt>(0);
            }
            let request = pb::RangeRequest { count_only: true, revision, ..ops::range_request(&range) };
            let answer = source.range(request).await.map_err(|e| history_gone(e, revision))?;
            Ok(u64::try_from(answer.count).unwrap_or(0))
        };
        let total = count(record.range.clamped()).await?;
        let left = count(KeyRange { start: next.clone(), end: record.range.end.clone() }.clamped()).await?;
        self.progress(|p| {
            p.keys_total = total;
            p.keys_done = total - left.min(total);
        });
        Ok(())
    }
}

/// How often the shards are looked at while a range is copied.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Slows a copy down while it slows its shards down, see [`Pace`].
struct Pacer {
    pace: Pace,
    looked: Option<Instant>,
}

impl Pacer {
    fn new() -> Self {
        Self { pace: Pace::default(), looked: None }
    }

    /// Looks at the shards now and then, and rests after an import that began at `begun`.
    async fn rest(
        &mut self,
        mover: &Mover<'_>,
        record: &MoveRecord,
        begun: Instant,
    ) -> Result<(), Interrupt> {
        let worked = begun.elapsed();
        if self.looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
            let (source, destination) = (mover.shard(record.from).await?, mover.shard(record.to).await?);
            // Waits for everything that the shard has taken up before, as clients' reads and writes do.
            let look = |shard: Arc<dyn Shard>, key| async move {
                let since = Instant::now();
                shard.range(get(key)).await?;
                Ok::<_, ShardError>(since.elapsed())
            };
            let (source, destination) = tokio::try_join!(
                look(source, fence_key(&record.rid)),
                look(destination, cursor_key(&record.id))
            )?;
            let before = self.pace.percent();
            self.pace.observe(source, destination);
            self.looked = Some(Instant::now());
            if self.pace.percent() < before {
                tracing::debug!(rid = %record.rid, ?source, ?destination, percent = self.pace.percent(), "move slows down");
            }
        }
        let pause = self.pace.pause(worked);
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }
}

/// A compacted history cannot be read again: the copy has to begin anew, as another move.
pub(crate) fn history_gone(error: sharded_etcd_shard::ShardError, revision: i64) -> Interrupt {
    if error.is_compacted() {
        Interrupt::GiveUp(format!("the source's history at local revision {revision} was compacted under it"))
    } else {
        Interrupt::from(error)
    }
}

pub(crate) fn record_and_cursor(seen: &Observation) -> Option<(MoveRecord, Stored<Cursor>)> {
    Some((seen.record.as_ref()?.value.clone(), seen.destination.as_ref()?.cursor.clone()?))
}

pub(crate) fn note_cursor(seen: &mut Observation, cursor: &Stored<Cursor>) {
    if let Some(destination) = &mut seen.destination {
        destination.cursor = Some(cursor.clone());
    }
}

fn bytes<'a>(changes: impl Iterator<Item = &'a Change>) -> usize {
    changes.map(Change::bytes).sum()
}

/// Reads until there is a full batch; true if there may be more.
async fn read_more(
    reader: &mut KeyReader,
    queue: &mut VecDeque<Change>,
    copy_at: i64,
) -> Result<bool, Interrupt> {
    while queue.len() < BATCH_KEYS_MAX && bytes(queue.iter()) < BATCH_BYTES_MAX {
        match reader.page().await.map_err(|e| history_gone(e, copy_at))? {
            Some(page) => queue.extend(page.into_iter().map(Change::Put)),
            None => return Ok(false),
        }
    }
    Ok(true)
}

/// The first changes that fit one import, at least one if there is one.
fn take_batch(queue: &mut VecDeque<Change>) -> Vec<Change> {
    let mut batch = Vec::new();
    let mut size = 0;
    while let Some(change) = queue.front() {
        if batch.len() == BATCH_KEYS_MAX || (size > 0 && size + change.bytes() > BATCH_BYTES_MAX) {
            break;
        }
        size += change.bytes();
        batch.extend(queue.pop_front());
    }
    batch
}
