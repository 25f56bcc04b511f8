//! From a shard's events to what clients see of them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryFutureExt, TryStreamExt, future::BoxFuture, stream};
use parking_lot::RwLock;
use sharded_etcd_core::{
    keyspace::{RESERVED, ShardIx},
    line::Fold,
    records,
    translate::{StoredOverride, client_kv},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Result, Shard};

use super::{
    event::{HubEvent, Prev, Revision},
    index::RangeIndex,
    overrides::{Overrides, Recent},
};
use crate::context::Context;

/// Reads of overrides and previous values under way at once, for one shard or one watcher.
pub(crate) const READS_MAX: usize = 32;

/// The ranges of all watchers that want previous key-value pairs.
pub(crate) type WantedPrev = Arc<RwLock<RangeIndex>>;

/// All events of one local revision, as the shard sent them.
#[derive(Debug)]
pub(crate) struct RawRevision {
    pub(crate) local: i64,
    pub(crate) events: Vec<pb::Event>,
}

impl RawRevision {
    /// Memory that it keeps, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let of = |e: &pb::Event| e.kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len());
        self.events.iter().map(|e| 64 + of(e)).sum()
    }
}

/// What is needed to translate events of one shard.
pub(crate) struct Translator {
    ctx: Arc<Context>,
    shard: ShardIx,
    overrides: Arc<Overrides>,
    wanted: WantedPrev,
    recent: Recent,
}

/// Visible events of one revision; what has to be read for them is not yet.
pub(crate) struct Draft {
    global: i64,
    local: i64,
    events: Vec<DraftEvent>,
}

struct DraftEvent {
    event: pb::Event,
    imported_at: i64,
    /// Imported: clients know other revisions of it than the shard.
    overridden: bool,
    prev: DraftPrev,
    /// The same of the previous key-value pair, if it is known.
    prev_overridden: bool,
}

enum DraftPrev {
    /// The event creates the key.
    None,
    /// The stored key-value pair before the revision.
    Known(pb::KeyValue),
    /// To be read now, as somebody wants it.
    Read,
    /// To be read if somebody wants it one day.
    Later,
}

/// Overrides of the lives of keys that a batch speaks of: key and local create revision.
type Found<'a> = HashMap<(&'a [u8], i64), Option<StoredOverride>>;

impl Translator {
    pub(crate) fn new(
        ctx: Arc<Context>,
        shard: ShardIx,
        overrides: Arc<Overrides>,
        wanted: WantedPrev,
    ) -> Self {
        Self { ctx, shard, overrides, wanted, recent: Recent::default() }
    }

    /// Drafts of the events that clients may see: at their number of the line, the shard owned their key.
    ///
    /// The revisions must be part of the line, and follow on those of the call before.
    pub(crate) fn draft(&mut self, raw: &[RawRevision]) -> Vec<Draft> {
        // Before the fold is looked at, which should not be held for long.
        let mut prevs = self.prevs(raw).into_iter();
        let shard = self.shard;
        self.ctx.line.with_fold(|fold| raw.iter().filter_map(|r| draft(fold, shard, r, &mut prevs)).collect())
    }

    /// The previous key-value pair of each event, and notes the values of all.
    fn prevs(&mut self, raw: &[RawRevision]) -> Vec<DraftPrev> {
        let wanted = self.wanted.read();
        let mut prevs = Vec::with_capacity(raw.iter().map(|r| r.events.len()).sum());
        for revision in raw {
            // As of before the revision: what its other events did to a key does not count (as in etcd).
            prevs.extend(revision.events.iter().map(|event| {
                let Some(kv) = event.kv.as_ref().filter(|kv| is_of_clients(kv)) else {
                    return DraftPrev::Later;
                };
                if creates(event, kv) {
                    return DraftPrev::None;
                }
                if !wanted.wants(&kv.key) {
                    return DraftPrev::Later;
                }
                match self.recent.get(&kv.key) {
                    Some(Some(before)) => DraftPrev::Known(before.clone()),
                    Some(None) => DraftPrev::None,
                    None => DraftPrev::Read,
                }
            }));
            for event in revision.events.iter().filter(|e| e.kv.as_ref().is_some_and(is_of_clients)) {
                self.recent.see(event);
            }
        }
        prevs
    }

    /// Forgets what it knows of values, as revisions were skipped.
    pub(crate) fn skip(&mut self) {
        self.recent = Recent::default();
    }

    /// Reads what drafts need, and translates them.
    ///
    /// Previous key-value pairs that somebody wants are read too; if that fails, `all` decides: the call fails, or they
    /// are left to be read when they are needed.
    ///
    /// # Errors
    /// What the shard answered. The call may be repeated with the same drafts.
    pub(crate) async fn resolve(
        &self,
        shard: &dyn Shard,
        drafts: &[Draft],
        all: bool,
    ) -> Result<Vec<Arc<Revision>>> {
        let found = self.read_overrides(shard, drafts).await?;
        let mut read = self.read_prevs(shard, drafts, &found, all).await?;
        Ok(self.ctx.line.with_fold(|fold| {
            drafts
                .iter()
                .enumerate()
                .map(|(i, draft)| {
                    let event = |(j, e)| {
                        let prev = read
                            .remove(&(i, j))
                            .unwrap_or_else(|| self.prev_of(fold, draft.global, e, &found));
                        Arc::new(self.event(fold, draft, e, prev, &found))
                    };
                    let events = draft.events.iter().enumerate().map(event).collect();
                    Arc::new(Revision::new(draft.global, draft.local, events))
                })
                .collect()
        }))
    }

    /// The overrides of all keys in drafts that may have one.
    ///
    /// They are kept for the batch, as the cache may forget them at any time. Those of previous pairs are only looked up.
    async fn read_overrides<'a>(&self, shard: &dyn Shard, drafts: &'a [Draft]) -> Result<Found<'a>> {
        let mut found = Found::new();
        let mut reads: BTreeMap<(&'a Bytes, i64), (i64, bool)> = BTreeMap::new();
        for draft in drafts {
            for e in &draft.events {
                if let DraftPrev::Known(kv) = &e.prev
                    && e.prev_overridden
                    && let Some(o) = self.overrides.get(self.shard, &kv.key, kv.create_revision)
                {
                    found.insert((&kv.key, kv.create_revision), o);
                }
                let Some(kv) = e.event.kv.as_ref().filter(|_| e.overridden) else { continue };
                match self.overrides.get(self.shard, &kv.key, kv.create_revision) {
                    Some(o) => {
                        found.insert((&kv.key, kv.create_revision), o);
                    }
                    None => {
                        let is_final = draft.global > e.imported_at;
                        reads.insert((&kv.key, kv.create_revision), (draft.local, is_final));
                    }
                }
            }
        }
        let reads: Vec<BoxFuture<'_, Result<_>>> = reads
            .into_iter()
            .map(|((key, create), (at, is_final))| {
                let cache = is_final.then_some(&*self.overrides);
                let read = read_override(shard, self.shard, cache, key, create, at);
                read.map_ok(move |o| ((key.as_ref(), create), o)).boxed()
            })
            .collect();
        let read: Vec<_> = stream::iter(reads).buffer_unordered(READS_MAX).try_collect().await?;
        found.extend(read);
        Ok(found)
    }

    /// Previous key-value pairs that are not known yet, by the places of their draft and event.
    async fn read_prevs(
        &self,
        shard: &dyn Shard,
        drafts: &[Draft],
        found: &Found<'_>,
        must: bool,
    ) -> Result<HashMap<(usize, usize), Prev>> {
        let mut reads: Vec<BoxFuture<'_, Result<_>>> = Vec::new();
        for (i, draft) in drafts.iter().enumerate() {
            for (j, event) in draft.events.iter().enumerate() {
                let stored = match &event.prev {
                    DraftPrev::Read => None,
                    DraftPrev::Known(kv) if event.prev_overridden && !found.contains_key(&life(kv)) => {
                        Some(kv.clone())
                    }
                    _ => continue,
                };
                let of = PrevOf {
                    shard: self.shard,
                    key: event.event.kv.as_ref().map(|kv| kv.key.clone()).unwrap_or_default(),
                    local: draft.local,
                    global: draft.global,
                    imported_at: event.imported_at,
                };
                let read = async move {
                    match read_prev(&self.ctx, shard, &self.overrides, of, stored).await {
                        Ok(prev) => Ok(((i, j), Prev::new_with(Some(prev)))),
                        Err(error) if must => Err(error),
                        Err(_) => Ok(((i, j), Prev::new())),
                    }
                };
                reads.push(read.boxed());
            }
        }
        stream::iter(reads).buffer_unordered(READS_MAX).try_collect().await
    }

    /// The previous key-value pair, where nothing had to be read for it.
    fn prev_of(&self, fold: &Fold, global: i64, e: &DraftEvent, found: &Found<'_>) -> Prev {
        match &e.prev {
            DraftPrev::None => Prev::new_with(Some(None)),
            DraftPrev::Known(kv) => {
                let o = found.get(&life(kv)).filter(|_| e.prev_overridden).copied().flatten();
                Prev::new_with(Some(prev_kv(fold, self.shard, global, kv.clone(), o.as_ref())))
            }
            DraftPrev::Later | DraftPrev::Read => Prev::new(),
        }
    }

    fn event(&self, fold: &Fold, draft: &Draft, e: &DraftEvent, prev: Prev, found: &Found<'_>) -> HubEvent {
        let stored = e.event.kv.clone().unwrap_or_default();
        let kv = if is_delete(&e.event) {
            // etcd: a deletion has the key and its own revision, nothing else.
            pb::KeyValue { key: stored.key, mod_revision: draft.global, ..Default::default() }
        } else {
            let o = found.get(&life(&stored)).filter(|_| e.overridden).copied().flatten();
            client_kv(fold, self.shard, stored, o.as_ref())
        };
        HubEvent {
            event: pb::Event { r#type: e.event.r#type, kv: Some(kv), prev_kv: None },
            shard: self.shard,
            local: draft.local,
            imported_at: e.imported_at,
            prev,
        }
    }
}

/// The visible events of a revision; `None` if there are none. Takes one of `prevs` for each of its events.
fn draft(
    fold: &Fold,
    shard: ShardIx,
    raw: &RawRevision,
    prevs: &mut impl Iterator<Item = DraftPrev>,
) -> Option<Draft> {
    // What is no longer mapped lies below the compaction; the merge lets nobody pass over it.
    let global = fold.global(shard, raw.local);
    let map = global.map(|global| fold.map_at(global));
    let mut events = Vec::new();
    for (event, prev) in raw.events.iter().zip(prevs) {
        let (Some(kv), Some(map)) = (&event.kv, map) else { continue };
        if !is_of_clients(kv) {
            continue;
        }
        let owner = map.owner(&kv.key);
        if owner.shard != shard {
            continue;
        }
        let overridden =
            |kv: &pb::KeyValue| is_overridden(fold, shard, kv.create_revision, owner.imported_at);
        events.push(DraftEvent {
            event: event.clone(),
            imported_at: owner.imported_at,
            overridden: !is_delete(event) && overridden(kv),
            prev_overridden: matches!(&prev, DraftPrev::Known(kv) if overridden(kv)),
            prev,
        });
    }
    global.filter(|_| !events.is_empty()).map(|global| Draft { global, local: raw.local, events })
}

fn is_of_clients(kv: &pb::KeyValue) -> bool {
    kv.key.as_ref() < RESERVED
}

fn creates(event: &pb::Event, kv: &pb::KeyValue) -> bool {
    !is_delete(event) && kv.create_revision == kv.mod_revision
}

fn life(kv: &pb::KeyValue) -> (&[u8], i64) {
    (&kv.key, kv.create_revision)
}

/// True if a key of a range imported by the flip at `imported_at` may have an override.
fn is_overridden(fold: &Fold, shard: ShardIx, create: i64, imported_at: i64) -> bool {
    imported_at > 0 && fold.global(shard, create).is_none_or(|global| global <= imported_at)
}

fn is_delete(event: &pb::Event) -> bool {
    event.r#type == i32::from(pb::EventType::Delete)
}

/// Which previous key-value pair is wanted: the key's, one local revision before.
pub(crate) struct PrevOf {
    pub(crate) shard: ShardIx,
    pub(crate) key: Bytes,
    pub(crate) local: i64,
    pub(crate) global: i64,
    pub(crate) imported_at: i64,
}

/// A previous key-value pair as clients know it; `stored` if it is known what the shard stored.
///
/// # Errors
/// What the shard answered. ErrCompacted only above the line's own compaction: at its very revision an event has no
/// previous pair, as in etcd.
pub(crate) async fn read_prev(
    ctx: &Context,
    connection: &dyn Shard,
    overrides: &Overrides,
    of: PrevOf,
    stored: Option<pb::KeyValue>,
) -> Result<Option<pb::KeyValue>> {
    let none_if_compacted = |error: sharded_etcd_shard::ShardError| {
        if error.is_compacted() && of.global <= ctx.line.cut().compacted { Ok(None) } else { Err(error) }
    };
    let before = of.local - 1;
    let cache = (of.global > of.imported_at).then_some(overrides);
    let stored = match stored {
        Some(stored) => Some(stored),
        None => match read_at(connection, of.key.clone(), before).await {
            Ok(stored) => stored,
            Err(error) => none_if_compacted(error)?,
        },
    };
    let Some(stored) = stored else { return Ok(None) };
    let create = stored.create_revision;
    let o = if ctx.line.with_fold(|fold| is_overridden(fold, of.shard, create, of.imported_at)) {
        match overrides.get(of.shard, &of.key, create) {
            Some(known) => known,
            None => match read_override(connection, of.shard, cache, &of.key, create, before).await {
                Ok(o) => o,
                Err(error) => return none_if_compacted(error),
            },
        }
    } else {
        None
    };
    Ok(ctx.line.with_fold(|fold| prev_kv(fold, of.shard, of.global, stored, o.as_ref())))
}

/// What was stored before the event of revision `global`, as clients know it. None at the line's compaction if its numbers
/// were condensed away with what it was alive at: at that very revision an event has no previous pair, as in etcd.
fn prev_kv(
    fold: &Fold,
    shard: ShardIx,
    global: i64,
    stored: pb::KeyValue,
    o: Option<&StoredOverride>,
) -> Option<pb::KeyValue> {
    let is_mapped = |local| fold.global(shard, local).is_some();
    let is_known = is_mapped(stored.create_revision) && is_mapped(stored.mod_revision);
    (global > fold.compacted || is_known).then(|| client_kv(fold, shard, stored, o))
}

/// Reads the override of one life of a key, at a local revision at which it is alive, and puts it into `cache`.
///
/// No cache for a revision not above the flip: it is compacted, with the map that held then, and the key may just be being
/// imported. One that was deleted and made again meanwhile is imported twice, in one local life, with another override.
async fn read_override(
    connection: &dyn Shard,
    shard: ShardIx,
    cache: Option<&Overrides>,
    key: &Bytes,
    create: i64,
    at: i64,
) -> Result<Option<StoredOverride>> {
    let found = read_at(connection, records::override_key(key), at).await?;
    let o = found.as_ref().and_then(StoredOverride::from_kv).filter(|o| o.create == create);
    if let Some(cache) = cache {
        cache.put(shard, key.clone(), create, o);
    }
    Ok(o)
}

/// A key at a local revision: from any member that has it, at last through the leader.
async fn read_at(connection: &dyn Shard, key: Bytes, revision: i64) -> Result<Option<pb::KeyValue>> {
    if revision < 1 {
        return Ok(None); // 0 would mean: now
    }
    let get =
        |serializable| pb::RangeRequest { key: key.clone(), revision, serializable, ..Default::default() };
    for _ in 0..2 {
        match connection.range(get(true)).await {
            // This member has not applied it yet; the next request goes to another one.
            Err(error) if error.is_future_rev() => {}
            answer => return Ok(answer?.kvs.into_iter().next()),
        }
    }
    Ok(connection.range(get(false)).await?.kvs.into_iter().next())
}
