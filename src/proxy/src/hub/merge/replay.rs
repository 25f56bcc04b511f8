//! Replays: history from before the windows, read from the shards once for several watchers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use sharded_etcd_core::{
    keyspace::{KeyRange, ShardIx},
    line::Fold,
};

use super::{Effect, Merge, State, Wait, Watcher, touches};
use crate::hub::{
    event::{HubEvent, Revision, WatcherId},
    index::RangeIndex,
};

/// Replays at once; each reads whole shards.
const REPLAYS_MAX: usize = 4;

/// Watchers of one replay. (etcd: `maxWatchersPerSync`.)
const WATCHERS_MAX: usize = 512;

/// Watchers whose cursors are at most so far apart share a replay.
const APART_MAX: i64 = 50_000;

/// Identifies a replay.
pub(crate) type ReplayId = u64;

/// What a replay reads of one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReplayShard {
    /// The shard.
    pub(crate) shard: ShardIx,
    /// First local revision.
    pub(crate) from: i64,
    /// Last local revision.
    pub(crate) upto: i64,
}

/// How a replay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplayOutcome {
    /// All of it was read, or nobody wanted more of it.
    Done,
    /// A shard cannot be reached; to be tried again.
    Failed,
    /// A shard's history there is compacted.
    Compacted(ShardIx),
}

#[derive(Default)]
pub(super) struct Replays {
    next: ReplayId,
    waiting: VecDeque<WatcherId>,
    running: BTreeMap<ReplayId, Running>,
}

#[derive(Default)]
struct Running {
    watchers: BTreeSet<WatcherId>,
    ranges: RangeIndex,
    /// The lowest cursor, when it began, of those that need something of a shard: what the shard is read behind.
    lowest: BTreeMap<ShardIx, i64>,
}

impl Replays {
    pub(super) fn want(&mut self, id: WatcherId) {
        self.waiting.push_back(id);
    }

    pub(super) fn leave(&mut self, replay: ReplayId, id: WatcherId, range: &KeyRange) {
        if let Some(running) = self.running.get_mut(&replay)
            && running.watchers.remove(&id)
        {
            running.ranges.remove(range, id);
        }
    }
}

impl Merge {
    pub(super) fn start_replays(&mut self, fold: &Fold) {
        while self.replays.running.len() < REPLAYS_MAX {
            let Some(watchers) = self.next_replay() else { return };
            let upto = self.head;
            let id = self.replays.next;
            self.replays.next += 1;
            let mut running = Running::default();
            for &watcher in &watchers {
                if let Some(w) = self.watchers.get_mut(&watcher)
                    && let State::Behind { wait, .. } = &mut w.state
                {
                    *wait = Wait::Replay(id);
                    running.ranges.insert(&w.spec.range, watcher);
                    running.watchers.insert(watcher);
                }
            }
            let of = watchers.iter().filter_map(|w| self.watchers.get(w)).map(|w| (w, self.cursor(w)));
            let of: Vec<_> = of.collect();
            let lowest_on = |shard| {
                let needs =
                    |(w, cursor): &&(&Watcher, i64)| touches(fold, &w.spec.range, shard, cursor + 1, upto);
                of.iter().filter(needs).map(|(_, cursor)| *cursor).min()
            };
            let shards = (0..fold.shards().len() as u32)
                .map(ShardIx)
                .filter_map(|shard| {
                    let lowest = lowest_on(shard)?;
                    running.lowest.insert(shard, lowest);
                    let from = fold.local_at_least(shard, lowest + 1)?;
                    let upto = fold.local_at_most(shard, upto)?;
                    (from <= upto).then_some(ReplayShard { shard, from, upto })
                })
                .collect();
            self.replays.running.insert(id, running);
            self.effects.push(Effect::Replay { replay: id, shards, upto });
        }
    }

    /// The watcher that has waited longest, with others that need about the same history.
    fn next_replay(&mut self) -> Option<Vec<WatcherId>> {
        let watchers = &self.watchers;
        let cursor = |id: &WatcherId| match watchers.get(id)?.state {
            State::Behind { cursor, wait: Wait::ReplayTurn } => Some(cursor),
            _ => None,
        };
        let mut first: Option<i64> = None;
        let mut taken = Vec::new();
        self.replays.waiting.retain(|id| {
            let Some(at) = cursor(id) else { return false };
            let first = *first.get_or_insert(at);
            let fits = (at - first).abs() <= APART_MAX && taken.len() < WATCHERS_MAX;
            if fits {
                taken.push(*id);
            }
            !fits
        });
        (!taken.is_empty()).then_some(taken)
    }

    /// A part of a replay: all revisions above the part before it, up to `upto`. False if nobody wants more of it.
    pub(crate) fn replayed(
        &mut self,
        fold: &Fold,
        replay: ReplayId,
        revisions: &[Arc<Revision>],
        upto: i64,
    ) -> bool {
        let Some(running) = self.replays.running.get(&replay) else { return false };
        let mut found: HashMap<WatcherId, Vec<Arc<HubEvent>>> = HashMap::new();
        let mut stuck: BTreeMap<WatcherId, i64> = BTreeMap::new();
        for revision in revisions {
            for event in &revision.events {
                for id in running.ranges.holding(event.key()) {
                    let Some(watcher) = self.watchers.get(&id) else { continue };
                    let State::Behind { cursor, .. } = watcher.state else { continue };
                    if revision.global <= cursor || !watcher.spec.wants(event) || stuck.contains_key(&id) {
                        continue;
                    }
                    if watcher.spec.lacks_prev(event, fold.compacted) {
                        stuck.insert(id, revision.global - 1);
                    } else {
                        found.entry(id).or_default().push(Arc::clone(event));
                    }
                }
            }
        }
        let ids: Vec<_> = running.watchers.iter().copied().collect();
        for id in ids {
            let Some(watcher) = self.watchers.get(&id) else { continue };
            let State::Behind { cursor, .. } = watcher.state else { continue };
            if cursor + 1 < fold.compacted {
                // What was read may have been judged by a map that did not hold there.
                self.end(id, fold.compacted, String::new());
                continue;
            }
            let (stream, spec) = (watcher.stream, Arc::clone(&watcher.spec));
            let stop = stuck.get(&id).copied();
            let upto = stop.unwrap_or(upto).max(cursor);
            let mut events = found.remove(&id).unwrap_or_default();
            events.truncate(events.partition_point(|e| e.revision() <= upto));
            let header = self.head.max(upto);
            if !events.is_empty() && !self.send_events(stream, id, upto, events, header, fold.compacted) {
                // It will be in another replay, which begins at its cursor.
                self.replays.leave(replay, id, &spec.range);
                self.wait(id, cursor, Wait::Room);
            } else if stop.is_some() {
                self.replays.leave(replay, id, &spec.range);
                self.wait(id, upto, Wait::Later);
                self.later.push(id);
            } else {
                self.wait(id, upto, Wait::Replay(replay));
            }
        }
        self.replays.running.get(&replay).is_some_and(|r| !r.watchers.is_empty())
    }

    /// A replay is over.
    pub(crate) fn replay_ended(&mut self, fold: &Fold, replay: ReplayId, outcome: ReplayOutcome) {
        let Some(running) = self.replays.running.remove(&replay) else { return };
        // It was read from the lowest of those on, who may be gone: what is compacted there may be there for the others.
        let lowest = match outcome {
            ReplayOutcome::Compacted(shard) => running.lowest.get(&shard).copied(),
            ReplayOutcome::Done | ReplayOutcome::Failed => None,
        };
        for id in running.watchers {
            let Some(watcher) = self.watchers.get(&id) else { continue };
            let cursor = self.cursor(watcher);
            match outcome {
                ReplayOutcome::Failed => {
                    self.wait(id, cursor, Wait::Later);
                    self.later.push(id);
                }
                ReplayOutcome::Compacted(shard)
                    if touches(fold, &watcher.spec.range, shard, cursor + 1, self.head) =>
                {
                    if lowest == Some(cursor) || cursor + 1 < fold.compacted {
                        self.end(id, fold.compacted.max(cursor + 2), String::new());
                    } else {
                        self.wait(id, cursor, Wait::Later);
                        self.later.push(id);
                    }
                }
                ReplayOutcome::Done | ReplayOutcome::Compacted(_) => {
                    self.give_turn(id, |wait| wait == Wait::Replay(replay));
                }
            }
        }
    }
}
