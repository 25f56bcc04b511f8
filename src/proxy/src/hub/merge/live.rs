//! Live watchers: each event is looked up once, and sent to all of them that want it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use sharded_etcd_core::{
    keyspace::ShardIx,
    line::{Fold, Piece},
};

use super::{Effect, Merge, State, Wait, Watcher, is_known, touches};
use crate::hub::{
    event::{HubEvent, Revision, WatcherId},
    index::RangeIndex,
};

/// Events matched in one step of the live watchers, so that no step takes long.
const STEP_EVENTS_MAX: usize = 4_096;

/// Bytes of events in one step of the live watchers; one revision may exceed it.
const STEP_BYTES_MAX: usize = 1 << 20;

impl Merge {
    /// Merges from `head` on. True if it stopped only as the step grew long.
    pub(super) fn advance_live(&mut self, fold: &Fold) -> bool {
        if self.watchers.is_empty() {
            // Nobody waits for anything; shards need not even be read.
            self.head = fold.revision;
            return false;
        }
        let begin = self.head;
        if !is_known(fold, begin) {
            self.end_live_ones_below(fold.compacted);
        }
        let mut step = Step::default();
        let mut stop = None;
        'pieces: for Piece { shard, segment } in fold.pieces(begin, fold.revision) {
            // Between pieces are the numbers of flips, which have no events.
            self.head = segment.global - 1;
            let last = segment.global + segment.count - 1;
            let Some(lane) = self.lanes.get(shard.index()) else {
                debug_assert!(false, "joined shards are taken in first");
                stop = Some(Stop::Long);
                break;
            };
            let readable = (lane.window.ready - segment.local + 1).clamp(0, segment.count);
            for revision in lane.window.between(self.head, segment.global + readable - 1) {
                if step.events >= STEP_EVENTS_MAX || step.bytes >= STEP_BYTES_MAX {
                    stop = Some(Stop::Long);
                    break 'pieces;
                }
                step.take(revision, &self.live, &self.watchers);
                self.head = revision.global;
            }
            self.head = segment.global + readable - 1;
            if readable < segment.count && owns_any(fold, shard, self.head + 1, last) {
                if !lane.late {
                    stop = Some(Stop::Waits(shard));
                    break;
                }
                self.leave_behind_those_that_need(fold, shard, last, &mut step);
            }
            self.head = last;
        }
        match stop {
            None => self.head = fold.revision,
            Some(Stop::Long) => {}
            Some(Stop::Waits(shard)) => self.begin_grace(shard),
        }
        self.flush(begin, step);
        matches!(stop, Some(Stop::Long))
    }

    /// The line was compacted before this process had merged it, and what happened there is no longer known.
    fn end_live_ones_below(&mut self, compacted: i64) {
        let below = |w: &Watcher| matches!(w.state, State::Live { from } if from < compacted);
        let ids: BTreeSet<_> = self.watchers.iter().filter(|(_, w)| below(w)).map(|(&id, _)| id).collect();
        for id in ids {
            self.end(id, compacted, String::new());
        }
    }

    fn begin_grace(&mut self, shard: ShardIx) {
        let Some(lane) = self.lanes.get_mut(shard.index()) else { return };
        if lane.grace.is_none() {
            lane.grace = Some(lane.window.ready);
            self.effects.push(Effect::Grace(shard, lane.window.ready));
        }
    }

    /// Live watchers whose range lies partly on a late shard stay at `head`, before the shard's next revisions.
    fn leave_behind_those_that_need(&mut self, fold: &Fold, shard: ShardIx, last: i64, step: &mut Step) {
        let Some(lane) = self.lanes.get_mut(shard.index()) else { return };
        let mut maps = fold.maps_between(self.head + 1, last).map(|(_, map)| map.generation);
        // With one map all along, a second look at the same watchers would find the same.
        let look =
            maps.next().filter(|_| maps.next().is_none()).map(|generation| (generation, self.live_epoch));
        if look.is_some() && lane.swept == look {
            return;
        }
        let mut all = true;
        for (&id, watcher) in &self.watchers {
            let State::Live { from } = watcher.state else { continue };
            if from > last {
                all = false;
            } else if touches(fold, &watcher.spec.range, shard, self.head + 1, last) {
                step.stopped.entry(id).or_insert(self.head);
            }
        }
        lane.swept = look.filter(|_| all);
    }

    /// Sends what a step of the live watchers gathered; `begin` is where they were before it.
    fn flush(&mut self, begin: i64, step: Step) {
        let Step { for_watcher, stopped, .. } = step;
        for (id, mut events) in for_watcher {
            let Some(watcher) = self.watchers.get(&id) else { continue };
            let stream = watcher.stream;
            let stop = stopped.get(&id).copied();
            if let Some(stop) = stop {
                let whole = events.partition_point(|e| e.revision() <= stop);
                events.truncate(whole);
            }
            if events.is_empty() {
                continue;
            }
            let upto = stop.unwrap_or(self.head);
            if !self.send_events(stream, id, upto, events, upto, 0) {
                self.fall_behind(id, begin, Wait::Room);
            }
        }
        for (id, cursor) in stopped {
            // Unless it fell behind already.
            self.fall_behind(id, cursor, Wait::Turn);
        }
    }

    fn fall_behind(&mut self, id: WatcherId, cursor: i64, wait: Wait) {
        let Some(watcher) = self.watchers.get_mut(&id) else { return };
        let State::Live { from } = watcher.state else { return };
        // What lies before `from` it does not want.
        let cursor = cursor.max(from - 1);
        if cursor > self.head {
            return;
        }
        self.live.remove(&watcher.spec.range, id);
        watcher.state = State::Behind { cursor, wait };
        if let Some(stream) = self.streams.get_mut(&watcher.stream) {
            stream.behind += 1;
        }
        if wait == Wait::Turn {
            self.turns.push_back(id);
        }
    }
}

/// Why a step of the live watchers stopped before the fold's revision.
enum Stop {
    /// It grew long.
    Long,
    /// It waits for this shard.
    Waits(ShardIx),
}

/// What one step of the live watchers gathers.
#[derive(Default)]
struct Step {
    /// By watcher, as the order must not depend on a hash.
    for_watcher: BTreeMap<WatcherId, Vec<Arc<HubEvent>>>,
    /// Watchers that cannot go on beyond this revision.
    stopped: BTreeMap<WatcherId, i64>,
    events: usize,
    bytes: usize,
}

impl Step {
    fn take(&mut self, revision: &Revision, live: &RangeIndex, watchers: &HashMap<WatcherId, Watcher>) {
        for event in &revision.events {
            for id in live.holding(event.key()) {
                let Some(Watcher { spec, state: State::Live { from }, .. }) = watchers.get(&id) else {
                    continue;
                };
                if revision.global < *from || !spec.wants(event) || self.stopped.contains_key(&id) {
                    continue;
                }
                if spec.lacks_prev(event, 0) {
                    self.stopped.insert(id, revision.global - 1);
                    continue;
                }
                self.for_watcher.entry(id).or_default().push(Arc::clone(event));
                self.events += 1;
            }
        }
        self.bytes += revision.bytes;
    }
}

/// True if a shard owns anything somewhere in the revisions `[from, upto]`; what one that does not writes, nobody sees.
fn owns_any(fold: &Fold, shard: ShardIx, from: i64, upto: i64) -> bool {
    fold.maps_between(from, upto).any(|(_, map)| map.owns_any(shard))
}
