//! Watchers that are behind: served from the windows, each from its own cursor.

use std::{collections::BTreeSet, sync::Arc};

use sharded_etcd_core::{
    keyspace::{KeyRange, ShardIx},
    line::{Fold, Piece},
};

use super::{Effect, Merge, State, Wait, Watcher, is_known, touches};
use crate::hub::event::{Delivery, HubEvent, WatcherId};

/// Revisions of the line that one step looks at for watchers that are behind, all together, so that live ones and the
/// line itself do not wait long.
const STEP_REVISIONS_MAX: i64 = 10_000;

/// What a turn costs apart from revisions, in revisions.
const TURN_COST: i64 = 100;

/// Revisions of the line that one turn looks at.
const TURN_REVISIONS_MAX: i64 = 5_000;

/// Events that one turn sends, except that a revision is never parted. (etcd: 1,000 revisions, `watchBatchMaxRevs`.)
const TURN_EVENTS_MAX: usize = 1_000;

/// Bytes that one turn sends, except that a revision is never parted.
const TURN_BYTES_MAX: usize = 1 << 20;

/// Events whose previous key-value pairs are fetched at once for one watcher, except that a revision is never parted.
const FETCH_MAX: usize = 64;

/// How the fetch of previous key-value pairs ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FetchOutcome {
    /// The events have them.
    Done,
    /// A shard cannot be reached; to be tried again.
    Failed,
    /// They are compacted.
    Compacted,
}

/// What one turn found.
struct Scan {
    /// Whole revisions, ascending.
    events: Vec<Arc<HubEvent>>,
    /// Everything up to here is in `events`.
    upto: i64,
    then: Then,
}

enum Then {
    CaughtUp,
    Again,
    WaitFor(ShardIx),
    Fetch(Vec<Arc<HubEvent>>),
    Replay,
}

impl Merge {
    /// Serves some watchers that wait for their turn. True if others still do.
    pub(super) fn advance_behind(&mut self, fold: &Fold) -> bool {
        let mut left = STEP_REVISIONS_MAX;
        while left > 0 {
            let Some(id) = self.turns.pop_front() else { return false };
            left -= TURN_COST + self.turn(fold, id);
        }
        !self.turns.is_empty()
    }

    /// Serves one watcher; how many revisions of the line that went over.
    fn turn(&mut self, fold: &Fold, id: WatcherId) -> i64 {
        let Some(watcher) = self.watchers.get(&id) else { return 0 };
        let State::Behind { cursor, wait: Wait::Turn } = watcher.state else { return 0 };
        let stream = watcher.stream;
        if let Some((compact_revision, reason)) = watcher.ended.clone() {
            if self.send(stream, Delivery::Ended { watcher: id, compact_revision, reason }, 0) {
                self.cancel(id);
            } else {
                self.wait(id, cursor, Wait::Room);
            }
            return 0;
        }
        if !is_known(fold, cursor) {
            self.end(id, fold.compacted, String::new());
            return 0;
        }
        let Scan { events, upto, then } = self.scan(fold, watcher, cursor);
        let header = self.head.max(upto);
        if !events.is_empty() && !self.send_events(stream, id, upto, events, header, fold.compacted) {
            self.wait(id, cursor, Wait::Room);
            return upto - cursor;
        }
        match then {
            Then::CaughtUp => self.go_live(id, upto),
            Then::Again => {
                self.wait(id, upto, Wait::Turn);
                self.turns.push_back(id);
            }
            Then::WaitFor(shard) => {
                self.wait(id, upto, Wait::Shard(shard));
                self.lanes[shard.index()].parked.push(id);
            }
            Then::Fetch(events) => {
                self.wait(id, upto, Wait::Prev);
                self.effects.push(Effect::FetchPrev(id, events));
            }
            Then::Replay if upto + 1 < fold.compacted => self.end(id, fold.compacted, String::new()),
            Then::Replay => {
                self.wait(id, upto, Wait::ReplayTurn);
                self.replays.want(id);
            }
        }
        upto - cursor
    }

    pub(super) fn wait(&mut self, id: WatcherId, cursor: i64, wait: Wait) {
        if let Some(watcher) = self.watchers.get_mut(&id) {
            watcher.state = State::Behind { cursor, wait };
        }
    }

    fn go_live(&mut self, id: WatcherId, upto: i64) {
        let Some(watcher) = self.watchers.get_mut(&id) else { return };
        watcher.state = State::Live { from: upto + 1 };
        self.live.insert(&watcher.spec.range, id);
        self.live_epoch += 1;
        if let Some(stream) = self.streams.get_mut(&watcher.stream) {
            stream.behind -= 1;
        }
    }

    /// What a watcher can be sent next, from the windows.
    fn scan(&self, fold: &Fold, watcher: &Watcher, cursor: i64) -> Scan {
        let spec = &watcher.spec;
        let end = self.head.min(cursor + TURN_REVISIONS_MAX);
        let mut scan = Scan { events: Vec::new(), upto: cursor, then: Then::Again };
        let mut bytes = 0;
        let mut fetch = Vec::new();
        let mut owners = Owners::of(&spec.range);
        for Piece { shard, segment } in fold.pieces(cursor, end) {
            let last = segment.global + segment.count - 1;
            if !owners.touch(fold, shard, segment.global, last) {
                scan.pass(last, &fetch);
                continue;
            }
            let Some(window) = self.lanes.get(shard.index()).map(|l| &l.window) else { return scan };
            if window.floor > segment.local {
                scan.then = Then::Replay;
                return scan.or_fetch(fetch);
            }
            let readable = (window.ready - segment.local + 1).clamp(0, segment.count);
            for revision in window.between(segment.global - 1, segment.global + readable - 1) {
                if scan.events.len() >= TURN_EVENTS_MAX || bytes >= TURN_BYTES_MAX || fetch.len() >= FETCH_MAX
                {
                    return scan.or_fetch(fetch);
                }
                for event in &revision.events {
                    if !spec.range.contains(event.key()) || !spec.wants(event) {
                        continue;
                    }
                    if spec.lacks_prev(event, fold.compacted) {
                        fetch.push(Arc::clone(event));
                    } else if fetch.is_empty() {
                        bytes += event.bytes();
                        scan.events.push(Arc::clone(event));
                    }
                }
                scan.pass(revision.global, &fetch);
            }
            scan.pass(segment.global + readable - 1, &fetch);
            if readable < segment.count {
                scan.then = Then::WaitFor(shard);
                return scan.or_fetch(fetch);
            }
        }
        scan.pass(end, &fetch);
        if end == self.head {
            scan.then = Then::CaughtUp;
        }
        scan.or_fetch(fetch)
    }

    /// The fetch that [`Effect::FetchPrev`] asked for has ended.
    pub(crate) fn fetched(&mut self, fold: &Fold, id: WatcherId, outcome: FetchOutcome) {
        let Some(watcher) = self.watchers.get(&id) else { return };
        let State::Behind { cursor, wait: Wait::Prev } = watcher.state else { return };
        match outcome {
            FetchOutcome::Done => self.give_turn(id, |wait| wait == Wait::Prev),
            FetchOutcome::Failed => {
                self.wait(id, cursor, Wait::Later);
                self.later.push(id);
            }
            // The line's own compaction reaches at least as far, also where this process does not know it yet.
            FetchOutcome::Compacted => self.end(id, fold.compacted.max(cursor + 2), String::new()),
        }
    }
}

/// Which shards own a part of a range; remembered for the last range map that was asked for, as that changes rarely.
struct Owners<'a> {
    range: &'a KeyRange,
    of: Option<(u64, BTreeSet<ShardIx>)>,
}

impl<'a> Owners<'a> {
    fn of(range: &'a KeyRange) -> Self {
        Self { range, of: None }
    }

    /// As [`touches`].
    fn touch(&mut self, fold: &Fold, shard: ShardIx, from: i64, upto: i64) -> bool {
        let mut maps = fold.maps_between(from, upto);
        let (Some((_, map)), None) = (maps.next(), maps.next()) else {
            return touches(fold, self.range, shard, from, upto);
        };
        let known = self.of.take().filter(|(generation, _)| *generation == map.generation);
        let shards = || map.overlapping(self.range).map(|e| e.shard).collect();
        let (_, shards) = self.of.insert(known.unwrap_or_else(|| (map.generation, shards())));
        shards.contains(&shard)
    }
}

impl Scan {
    /// Everything up to `upto` is in `events`, unless something has to be fetched first.
    fn pass(&mut self, upto: i64, fetch: &[Arc<HubEvent>]) {
        if fetch.is_empty() {
            self.upto = self.upto.max(upto);
        }
    }

    /// With something to fetch, that is what comes next, and the revision that needs it is left out.
    fn or_fetch(mut self, fetch: Vec<Arc<HubEvent>>) -> Self {
        if !fetch.is_empty() {
            let whole = self.events.partition_point(|e| e.revision() <= self.upto);
            self.events.truncate(whole);
            self.then = Then::Fetch(fetch);
        }
        self
    }
}
