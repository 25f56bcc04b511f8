//! Following the source: its events, in order, onto the destination.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use sharded_etcd_core::{
    keyspace::{KeyRange, ShardIx},
    moves::{BATCH_BYTES_MAX, BATCH_KEYS_MAX, Change, Observation, Session, Stored},
    records::{Cursor, CursorStage, MoveRecord},
    translate::client_kv,
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::LineError;
use sharded_etcd_shard::{Shard, WatchStream};
use tokio::time::Instant;

use super::{
    Interrupt, Mover,
    copy::{history_gone, note_cursor, record_and_cursor},
    read::read_override,
};
use crate::{ManagerError, error::Result as ManagerResult};

/// Events of the range that are held at most, before they are applied.
const PENDING_MAX: usize = 10_000;
/// Revisions that the tail may be behind the line when it counts as caught up.
const LAG_MAX: i64 = 100;
/// Longest wait for an event when there should be one.
const EVENT_WAIT: Duration = Duration::from_secs(1);
/// A cursor that has nothing to import is moved on after so many revisions, or this time: what it holds back is the
/// compaction of the source.
const IDLE_REVISIONS: i64 = 1000;
const IDLE_TIME: Duration = Duration::from_secs(2);
/// Changed keys that are compared one by one; with more, the whole range is compared again.
const CHANGED_MAX: usize = 20_000;
/// Rounds of catching up and comparing before the source is closed with more changed keys than wished.
const ROUNDS_MAX: u32 = 20;
/// Overrides of changed keys that are read at the same time.
const OVERRIDE_READS: usize = 32;

/// An event in the moving range.
struct Received {
    revision: i64,
    /// Its place among all events of its revision.
    place: u64,
    event: pb::Event,
}

/// A watch on the whole source, and what it has brought.
pub(crate) struct Tail {
    /// Never locked: it makes a stream that is only `Send` shareable, and so the executor's futures `Send`.
    events: Mutex<WatchStream>,
    range: KeyRange,
    /// Where the destination's cursor was when the watch began: earlier events are applied.
    begin: (i64, u64),
    pending: VecDeque<Received>,
    /// Revision and number of events of the last revision received.
    last: (i64, u64),
    /// Keys changed since the last comparison.
    changed: HashSet<Bytes>,
    /// The watch has been given time to bring what was there when it began.
    settled: bool,
    verified: bool,
    rounds: u32,
    moved_on: Instant,
}

impl Tail {
    async fn begin(source: &dyn Shard, record: &MoveRecord, begin: (i64, u64)) -> Result<Self, Interrupt> {
        let everything = Bytes::from_static(b"\0");
        let request = pb::WatchCreateRequest {
            key: everything.clone(),
            range_end: everything,
            start_revision: begin.0,
            ..Default::default()
        };
        let events = source.watch(request).await.map_err(|e| history_gone(e, begin.0))?;
        Ok(Self {
            events: Mutex::new(events),
            range: record.range.clamped(),
            begin,
            pending: VecDeque::new(),
            last: (begin.0 - 1, 0),
            changed: HashSet::new(),
            settled: false,
            verified: false,
            rounds: 0,
            moved_on: Instant::now(),
        })
    }

    /// Takes what has come; waits for something, `most` long, if nothing has.
    async fn receive(&mut self, most: Duration) -> Result<(), Interrupt> {
        let mut response = match self.events.get_mut().next().now_or_never() {
            Some(response) => Some(response),
            None if most.is_zero() => None,
            None => tokio::time::timeout(most, self.events.get_mut().next()).await.ok(),
        };
        while let Some(received) = response {
            let Some(received) = received else {
                return Err(Interrupt::Failed(ManagerError::Slow {
                    what: "the watch on the source, which ended,",
                    ms: 0,
                }));
            };
            self.take(received?)?;
            if self.pending.len() >= PENDING_MAX {
                break;
            }
            response = self.events.get_mut().next().now_or_never();
        }
        Ok(())
    }

    /// Waits for the first events, once, if there should be some up to revision `end`.
    ///
    /// etcd looks after watches that begin in the past ten times a second (server/storage/mvcc/watchable_store.go,
    /// `watchResyncPeriod`), and after that brings each event at once: writers should not have to wait for that look.
    async fn settle(&mut self, end: i64) -> Result<(), Interrupt> {
        let (begin, most) = (self.last.0, Instant::now() + EVENT_WAIT);
        while !self.settled && self.last.0 == begin && begin < end {
            let left = most.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.receive(left).await?;
        }
        self.settled = true;
        Ok(())
    }

    fn take(&mut self, response: pb::WatchResponse) -> Result<(), Interrupt> {
        if response.canceled {
            return Err(Interrupt::GiveUp(if response.compact_revision > 0 {
                format!("the source's history was compacted to {} under it", response.compact_revision)
            } else {
                format!("the watch on the source was cancelled: {}", response.cancel_reason)
            }));
        }
        for event in response.events {
            let Some(kv) = &event.kv else { continue };
            let revision = kv.mod_revision;
            if revision == self.last.0 {
                self.last.1 += 1;
            } else if revision == self.last.0 + 1 {
                self.last = (revision, 1);
            } else {
                // Each revision of a shard has at least one event, and the watch is over all of its keys.
                return Err(Interrupt::GiveUp(format!(
                    "the watch on the source brought revision {revision} after {}: events are missing",
                    self.last.0
                )));
            }
            let place = self.last.1 - 1;
            let applied = (revision, place) < self.begin;
            if !applied && self.range.contains(&kv.key) {
                self.pending.push_back(Received { revision, place, event });
            }
        }
        Ok(())
    }

    /// The next events to import, up to revision `covered`, and where the cursor is then.
    fn next_batch(&mut self, covered: i64) -> (Vec<pb::Event>, CursorStage) {
        let mut latest: HashMap<Bytes, usize> = HashMap::new();
        let mut events: Vec<pb::Event> = Vec::new();
        let mut size = 0;
        while let Some(next) = self.pending.front() {
            if next.revision > covered || latest.len() == BATCH_KEYS_MAX || size > BATCH_BYTES_MAX {
                break;
            }
            let Some(Received { event, .. }) = self.pending.pop_front() else { break };
            let Some(kv) = &event.kv else { continue };
            size += 64 + 2 * kv.key.len() + kv.value.len();
            latest.insert(kv.key.clone(), events.len());
            events.push(event);
        }
        let stage = match self.pending.front() {
            // The rest of this revision, and all that follows, is to be applied.
            Some(next) if next.revision <= covered => {
                CursorStage::Tail { revision: next.revision, sub: next.place }
            }
            _ => CursorStage::Tail { revision: covered.min(self.last.0) + 1, sub: 0 },
        };
        // The last event of each key is enough: what lies between is never visible on the destination.
        let mut place = 0;
        events.retain(|event| {
            place += 1;
            event.kv.as_ref().is_some_and(|kv| latest.get(&kv.key) == Some(&(place - 1)))
        });
        (events, stage)
    }
}

impl Mover<'_> {
    /// [`Work::Tail`](sharded_etcd_core::moves::Work::Tail).
    pub(crate) async fn tail(
        &mut self,
        seen: &mut Observation,
        session: &mut Session,
    ) -> Result<(), Interrupt> {
        let Some((record, mut cursor)) = record_and_cursor(seen) else { return Err(Interrupt::Lost) };
        let source = self.shard(record.from).await?;
        let mut tail = match self.tail.take() {
            Some(tail) => tail,
            None => Tail::begin(source.as_ref(), &record, tail_position(&cursor)?).await?,
        };
        loop {
            self.context.failpoints.before("tail").await?;
            let end = self.context.line.cut().v(record.from);
            tail.settle(end).await?;
            let behind = tail.last.0 + LAG_MAX < end && tail.pending.is_empty();
            tail.receive(if behind { EVENT_WAIT } else { Duration::ZERO }).await?;
            self.apply(&record, source.as_ref(), &mut tail, &mut cursor).await?;
            note_cursor(seen, &cursor);
            self.context.failpoints.after("tail").await?;
            let end = self.context.line.cut().v(record.from);
            if !tail.pending.is_empty() || tail.last.0 + LAG_MAX < end {
                continue;
            }
            if tail.verified && tail.changed.len() > CHANGED_MAX {
                tail.verified = false;
            }
            let few =
                tail.changed.len() <= self.context.options.changed_keys_max || tail.rounds >= ROUNDS_MAX;
            if tail.verified && few {
                self.tail = Some(tail);
                session.ready_to_close = true;
                return Ok(());
            }
            self.compare(&record, &cursor, &mut tail).await?;
        }
    }

    /// One round of comparing: everything if that was not done yet, else what changed since.
    async fn compare(
        &mut self,
        record: &MoveRecord,
        cursor: &Stored<Cursor>,
        tail: &mut Tail,
    ) -> Result<(), Interrupt> {
        self.context.failpoints.before("verify").await?;
        let at = tail.applied(self.context.line.cut().v(record.from));
        let difference = if tail.verified {
            self.compare_keys(record, at, cursor.modified, &tail.changed).await?
        } else {
            self.compare_all(record, at, cursor.modified).await?
        };
        tail.rounds += 1;
        tail.changed.clear();
        tail.verified = difference.is_none();
        self.context.failpoints.after("verify").await?;
        let Some(difference) = difference else { return Ok(()) };
        self.verify_failures += 1;
        tracing::warn!(rid = %self.rid, %difference, tries = self.verify_failures, "copy differs from its source");
        if self.verify_failures >= self.context.options.verify_tries_max {
            return Err(Interrupt::GiveUp(format!("verification failed: {difference}")));
        }
        // A lease that has just ended leaves its keys' deletes to the tail: give them time to come.
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok(())
    }

    /// [`Work::Drain`](sharded_etcd_core::moves::Work::Drain).
    pub(crate) async fn drain(
        &mut self,
        upto: i64,
        seen: &mut Observation,
        session: &mut Session,
    ) -> Result<(), Interrupt> {
        let Some((record, mut cursor)) = record_and_cursor(seen) else { return Err(Interrupt::Lost) };
        let source = self.shard(record.from).await?;
        let Some(mut tail) = self.tail.take() else {
            return Err(Interrupt::GiveUp(
                "its watch on the source was lost while writers waited".to_owned(),
            ));
        };
        self.context.failpoints.before("drain").await?;
        while tail.last.0 < upto {
            tail.receive(EVENT_WAIT).await?;
        }
        // Without events of the range there is nothing to number, and no import to wait for: the seal moves the cursor.
        if let Some(last) = tail.pending.back() {
            self.context.line.cover(record.from, last.revision).await.map_err(ManagerError::Line)?;
            self.apply(&record, source.as_ref(), &mut tail, &mut cursor).await?;
        }
        note_cursor(seen, &cursor);
        if let Some(difference) = self.compare_keys(&record, upto, cursor.modified, &tail.changed).await? {
            return Err(Interrupt::GiveUp(format!("the copy differs after the close: {difference}")));
        }
        session.drained = true;
        self.context.failpoints.after("drain").await?;
        Ok(())
    }

    /// Imports what was received; waits until the line covers it.
    async fn apply(
        &mut self,
        record: &MoveRecord,
        source: &dyn Shard,
        tail: &mut Tail,
        cursor: &mut Stored<Cursor>,
    ) -> Result<(), Interrupt> {
        loop {
            let received = tail.last.0;
            let wanted = tail.pending.front().map_or(0, |next| next.revision);
            let covered = self.covered(record.from, wanted, received).await.map_err(Interrupt::Failed)?;
            let (events, stage) = tail.next_batch(covered.min(received));
            if events.is_empty() {
                let CursorStage::Tail { revision, .. } = cursor.value.stage else {
                    return Err(Interrupt::Lost);
                };
                let CursorStage::Tail { revision: next, .. } = stage else { return Err(Interrupt::Lost) };
                let due = next - revision >= IDLE_REVISIONS || tail.moved_on.elapsed() >= IDLE_TIME;
                if next <= revision || !due {
                    return Ok(());
                }
            }
            let changes = self.translate(record, source, events).await?;
            tail.changed.extend(changes.iter().map(|c| c.key().clone()));
            let next = Cursor { copy_at: cursor.value.copy_at, stage };
            self.import(record, cursor, changes, next).await?;
            tail.moved_on = Instant::now();
            if tail.pending.is_empty() {
                return Ok(());
            }
        }
    }

    /// The highest revision of the source that is part of the line, once that is `wanted` or more.
    async fn covered(&self, ix: ShardIx, wanted: i64, received: i64) -> ManagerResult<i64> {
        let line = &self.context.line;
        line.observe(ix, received);
        let most = Duration::from_secs(5);
        let mut cuts = line.subscribe();
        let covered = cuts.wait_for(|cut| cut.covers(ix, wanted));
        match tokio::time::timeout(most, covered).await {
            Ok(Ok(cut)) => Ok(cut.v(ix)),
            Ok(Err(_)) => Err(LineError::Closed.into()),
            Err(_) => Err(ManagerError::Slow {
                what: "a cut that covers the source's events",
                ms: most.as_millis(),
            }),
        }
    }

    /// Events of the source, all of them covered, as changes that clients know.
    async fn translate(
        &self,
        record: &MoveRecord,
        source: &dyn Shard,
        events: Vec<pb::Event>,
    ) -> Result<Vec<Change>, Interrupt> {
        let line = &self.context.line;
        let ix = record.from;
        let imported_at = line.cut().map.by_rid(&record.rid).map_or(i64::MAX, |e| e.imported_at);
        let translated = futures::stream::iter(events).map(|event| async move {
            let deleted = event.r#type() == pb::EventType::Delete;
            let Some(kv) = event.kv else { return Ok(None) };
            if deleted {
                return Ok(Some(Change::Delete(kv.key)));
            }
            // A key that was created here after the import carries no override.
            let old = imported_at > 0
                && line
                    .with_fold(|fold| fold.global(ix, kv.create_revision).is_none_or(|g| g <= imported_at));
            let o = if old { read_override(source, &kv.key, kv.mod_revision).await? } else { None };
            Ok::<_, sharded_etcd_shard::ShardError>(Some(Change::Put(
                line.with_fold(|fold| client_kv(fold, ix, kv, o.as_ref())),
            )))
        });
        let changes: Vec<Option<Change>> =
            translated.buffered(OVERRIDE_READS).try_collect().await.map_err(|e| history_gone(e, 0))?;
        Ok(changes.into_iter().flatten().collect())
    }
}

impl Tail {
    /// The revision of the source that the destination is at: everything received and covered is applied.
    fn applied(&self, covered: i64) -> i64 {
        self.last.0.min(covered)
    }
}

fn tail_position(cursor: &Stored<Cursor>) -> Result<(i64, u64), Interrupt> {
    match cursor.value.stage {
        CursorStage::Tail { revision, sub } => Ok((revision, sub)),
        _ => Err(Interrupt::Lost),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a watch brings at these milliseconds: its beginning, then one event at each revision from 5 on.
    fn tail(at: &'static [u64]) -> Tail {
        let begun = Instant::now();
        let events = futures::stream::iter(at).enumerate().then(move |(i, ms)| async move {
            tokio::time::sleep_until(begun + Duration::from_millis(*ms)).await;
            let kv = pb::KeyValue { mod_revision: 4 + i as i64, ..Default::default() };
            let events = if i == 0 { vec![] } else { vec![pb::Event { kv: Some(kv), ..Default::default() }] };
            Ok(pb::WatchResponse { created: i == 0, events, ..Default::default() })
        });
        let events = events.chain(futures::stream::pending()).boxed();
        Tail {
            events: Mutex::new(events),
            range: KeyRange::whole(),
            begin: (5, 0),
            pending: VecDeque::new(),
            last: (4, 0),
            changed: HashSet::new(),
            settled: false,
            verified: false,
            rounds: 0,
            moved_on: begun,
        }
    }

    async fn settled(mut tail: Tail, end: i64) -> (u128, i64) {
        let begun = Instant::now();
        assert!(tail.settle(end).await.is_ok());
        let first = (begun.elapsed().as_millis(), tail.last.0);
        assert!(tail.settle(end + 1).await.is_ok());
        assert_eq!(begun.elapsed().as_millis(), first.0, "once only");
        first
    }

    #[tokio::test(start_paused = true)]
    async fn waits_for_what_was_there_when_the_watch_began() {
        assert_eq!(settled(tail(&[0, 90, 95]), 7).await, (90, 5), "the look of etcd after its watches");
        assert_eq!(settled(tail(&[0]), 4).await, (0, 4), "there is nothing to come");
        assert_eq!(settled(tail(&[0]), 7).await.0, EVENT_WAIT.as_millis(), "and not for ever");
    }
}
