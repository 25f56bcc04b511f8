//! The merge: events of all shards become one stream in the line's order, matched to watchers. Pure: no IO, no clock.
//!
//! # How it works
//!
//! Each shard has a [`Window`]: its recent events, translated, with their numbers of the line. `head` is the revision up
//! to which the shards' windows have been merged. Most watchers are *live*: they have been sent everything up to `head`,
//! so each event is looked up once in an index of live watchers. All others are *behind*, with a cursor of their own: they
//! are served from the windows, or, if their cursor lies before these, from a *replay* that reads the shards' history
//! once for all watchers that need about the same part of it.
//!
//! A watcher falls behind, and loses nothing, when its client does not take what it is sent, when a previous key-value
//! pair has to be fetched for it, and when a shard that owns a part of its range is late: then `head` passes over the
//! late shard's revisions after a short grace, for the sake of all others.
//!
//! # Guarantees
//!
//! A watcher gets each revision at most once, whole, in ascending order, and none of its range is left out; its cursor
//! is moved only together with what it is sent. Nothing here grows with the lifetime: windows and deliveries are
//! bounded, whatever does not fit is read from the shards again.

mod behind;
mod live;
#[cfg(test)]
mod random_tests;
mod replay;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use sharded_etcd_core::{
    keyspace::{KeyRange, ShardIx},
    line::{Fold, Piece},
    sabotage::Sabotage,
};

use super::{
    event::{Delivery, HubEvent, Revision, StreamId, WatcherId},
    index::RangeIndex,
    room::Room,
    window::Window,
};

pub(crate) use behind::FetchOutcome;
pub(crate) use replay::{ReplayId, ReplayOutcome, ReplayShard};

/// What a client wants to watch.
#[derive(Debug)]
pub(crate) struct WatchSpec {
    /// Which keys; clamped below the hidden space, possibly empty.
    pub(crate) range: KeyRange,
    /// From which revision; 0 from now.
    pub(crate) start: i64,
    /// With previous key-value pairs.
    pub(crate) prev_kv: bool,
    /// Without puts.
    pub(crate) no_put: bool,
    /// Without deletions.
    pub(crate) no_delete: bool,
}

impl WatchSpec {
    fn wants(&self, event: &HubEvent) -> bool {
        if event.is_delete() { !self.no_delete } else { !self.no_put }
    }

    /// True if an event cannot be sent before its previous key-value pair is read: not one of a revision up to
    /// `compacted`, which has none.
    fn lacks_prev(&self, event: &HubEvent, compacted: i64) -> bool {
        self.prev_kv && !event.has_prev() && event.revision() > compacted
    }
}

/// What the shell has to do.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Send this to a stream; room for it has been taken.
    Deliver(StreamId, Delivery),
    /// Call [`Merge::grace_over`] with these after the grace.
    Grace(ShardIx, i64),
    /// Look up the previous key-value pairs of these events, then call [`Merge::fetched`].
    FetchPrev(WatcherId, Vec<Arc<HubEvent>>),
    /// Read history in the line's order: call [`Merge::replayed`] for each part and [`Merge::replay_ended`] at its end.
    Replay {
        /// Which replay.
        replay: ReplayId,
        /// What to read.
        shards: Vec<ReplayShard>,
        /// Up to this revision.
        upto: i64,
    },
}

/// Bounds of the memory for recent events.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WindowLimits {
    /// Bytes over all shards.
    pub(crate) bytes_max: usize,
    /// Revisions over all shards.
    pub(crate) revisions_max: usize,
}

impl Default for WindowLimits {
    fn default() -> Self {
        Self { bytes_max: 64 << 20, revisions_max: 50_000 }
    }
}

struct Lane {
    window: Window,
    /// `head` does not wait for it until it has caught up.
    late: bool,
    /// A grace is running that began when the window was ready up to here.
    grace: Option<i64>,
    /// Watchers that wait for more of this shard.
    parked: Vec<WatcherId>,
    /// No live watcher depends on this shard: found for this range map and this set of live watchers.
    swept: Option<(u64, u64)>,
}

struct Watcher {
    stream: StreamId,
    spec: Arc<WatchSpec>,
    state: State,
    /// It is over; only the message to say so has to be sent.
    ended: Option<(i64, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Has been sent everything up to `head`; wants nothing below `from`.
    Live { from: i64 },
    /// Has been sent everything up to `cursor`.
    Behind { cursor: i64, wait: Wait },
}

/// What a watcher that is behind waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// Its turn to be served from the windows.
    Turn,
    /// Its client taking what is under way.
    Room,
    /// A shard that is late.
    Shard(ShardIx),
    /// Previous key-value pairs.
    Prev,
    /// A replay to begin.
    ReplayTurn,
    /// A replay under way.
    Replay(ReplayId),
    /// A moment, as something failed.
    Later,
}

struct Stream {
    room: Arc<Room>,
    watchers: BTreeSet<WatcherId>,
    /// The last that began.
    youngest: WatcherId,
    /// How many of them are behind.
    behind: usize,
    /// Progress requests under way: each wants at least this revision.
    progress: VecDeque<i64>,
    /// Explicit start revisions that were not merged yet.
    starts: Vec<i64>,
    /// The highest revision that any of its watchers has been told of.
    told: i64,
}

/// Progress requests of one stream that wait at once; a further one takes the place of the oldest.
const PROGRESS_MAX: usize = 16;

/// See the module's documentation.
pub(crate) struct Merge {
    head: i64,
    limits: WindowLimits,
    lanes: Vec<Lane>,
    watchers: HashMap<WatcherId, Watcher>,
    streams: HashMap<StreamId, Stream>,
    /// Live watchers by range.
    live: RangeIndex,
    /// Raised when a watcher becomes live.
    live_epoch: u64,
    /// Watchers that are behind and wait for their turn; may hold stale ids.
    turns: VecDeque<WatcherId>,
    later: Vec<WatcherId>,
    replays: replay::Replays,
    progress_wanted: BTreeSet<StreamId>,
    effects: Vec<Effect>,
    /// Counters for metrics.
    pub(crate) events_sent: u64,
}

impl Merge {
    /// A merge that begins at the fold's revision, with shards read from behind their local revisions there.
    pub(crate) fn new(fold: &Fold, limits: WindowLimits) -> Self {
        let mut merge = Self {
            head: fold.revision,
            limits,
            lanes: Vec::new(),
            watchers: HashMap::new(),
            streams: HashMap::new(),
            live: RangeIndex::default(),
            live_epoch: 0,
            turns: VecDeque::new(),
            later: Vec::new(),
            replays: replay::Replays::default(),
            progress_wanted: BTreeSet::new(),
            effects: Vec::new(),
            events_sent: 0,
        };
        for shard in fold.shards() {
            merge.add_lane(shard.v);
        }
        merge
    }

    /// Takes in shards that joined since; each is to be read from behind its local revision at the join.
    pub(crate) fn take_in_joined(&mut self, fold: &Fold) -> Vec<(ShardIx, i64)> {
        let first = self.lanes.len();
        let mut joined = Vec::new();
        for (i, shard) in fold.shards().iter().enumerate().skip(first) {
            self.add_lane(shard.l0);
            joined.push((ShardIx(i as u32), shard.l0));
        }
        joined
    }

    /// Begins again at the fold's revision, without watchers: what the windows hold is forgotten, and shards are read from
    /// behind their local revisions.
    pub(crate) fn begin_again(&mut self, fold: &Fold) {
        debug_assert!(self.watchers.is_empty());
        self.head = fold.revision;
        self.lanes.clear();
        for shard in fold.shards() {
            self.add_lane(shard.v);
        }
    }

    fn add_lane(&mut self, ready: i64) {
        let window = Window::starting_behind(ready);
        self.lanes.push(Lane { window, late: false, grace: None, parked: Vec::new(), swept: None });
    }

    /// Everything up to here has been merged.
    pub(crate) fn head(&self) -> i64 {
        self.head
    }

    /// The revision up to which every watcher has been sent everything.
    pub(crate) fn passed(&self) -> i64 {
        let cursors = self.watchers.values().filter_map(|w| match w.state {
            State::Behind { cursor, .. } => Some(cursor),
            State::Live { .. } => None,
        });
        cursors.min().unwrap_or(self.head).min(self.head)
    }

    /// Watchers, and those of them that are behind.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.watchers.len(), self.streams.values().map(|s| s.behind).sum())
    }

    /// What the shell has to do; in this order.
    pub(crate) fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// True if something failed and wants [`Merge::retry`] after a while.
    #[cfg(test)]
    fn wants_retry(&self) -> bool {
        !self.later.is_empty()
    }

    /// Tries again what had failed.
    pub(crate) fn retry(&mut self) {
        for id in std::mem::take(&mut self.later) {
            self.give_turn(id, |wait| wait == Wait::Later);
        }
    }

    /// A shard's base stream has been read and translated up to local revision `upto`.
    pub(crate) fn ready(&mut self, fold: &Fold, shard: ShardIx, revisions: Vec<Arc<Revision>>, upto: i64) {
        let Some(lane) = self.lanes.get_mut(shard.index()) else { return };
        lane.window.push(revisions, upto);
        if lane.window.ready >= fold.local_at_most(shard, self.head).unwrap_or(0) {
            lane.late = false;
        }
        for id in std::mem::take(&mut lane.parked) {
            self.give_turn(id, |wait| wait == Wait::Shard(shard));
        }
    }

    /// The grace that [`Effect::Grace`] asked for is over.
    pub(crate) fn grace_over(&mut self, shard: ShardIx, ready: i64) {
        if let Some(lane) = self.lanes.get_mut(shard.index()) {
            lane.grace = None;
            // If some of it came meanwhile, the next step begins another grace.
            lane.late = lane.window.ready == ready;
        }
    }

    /// A shard's history is compacted beyond what was read of it: what lies above that, up to local revision `upto`, is
    /// lost to this process. Watchers that need it end, so that their clients start over; the others do not notice.
    pub(crate) fn gap(&mut self, fold: &Fold, shard: ShardIx, upto: i64) {
        let Some(lane) = self.lanes.get_mut(shard.index()) else { return };
        if upto <= lane.window.ready {
            return;
        }
        // What is no longer mapped is compacted on the line too.
        let first = fold.global(shard, lane.window.ready + 1).unwrap_or(fold.compacted);
        let last = fold.global(shard, upto).unwrap_or(fold.compacted - 1);
        lane.window = Window::starting_behind(upto);
        lane.late = false;
        let parked = std::mem::take(&mut lane.parked);
        let hit: BTreeSet<_> = self
            .watchers
            .iter()
            .filter(|(_, w)| {
                // One that begins in the future needs nothing before that.
                let next = (self.cursor(w) + 1).max(w.spec.start);
                next <= last && touches(fold, &w.spec.range, shard, first.max(next), last)
            })
            .map(|(&id, _)| id)
            .collect();
        for id in hit {
            self.end(id, last + 1, String::new());
        }
        for id in parked {
            self.give_turn(id, |wait| wait == Wait::Shard(shard));
        }
    }

    /// A shard has left the line: what was not read of it never will be. Its history is compacted, so watchers that waited
    /// for it and need a part of that end, and the others go on.
    pub(crate) fn left(&mut self, fold: &Fold, shard: ShardIx) {
        let Some(lane) = self.lanes.get_mut(shard.index()) else { return };
        let v = fold.shard(shard).map_or(0, |s| s.v);
        if v > lane.window.ready {
            lane.window = Window::starting_behind(v);
        }
        lane.late = false;
        for id in std::mem::take(&mut lane.parked) {
            self.give_turn(id, |wait| wait == Wait::Shard(shard));
        }
    }

    /// A client stream begins.
    pub(crate) fn open(&mut self, stream: StreamId, room: Arc<Room>) {
        let new = Stream {
            room,
            watchers: BTreeSet::new(),
            youngest: 0,
            behind: 0,
            progress: VecDeque::new(),
            starts: Vec::new(),
            told: 0,
        };
        self.streams.insert(stream, new);
    }

    /// A client stream is over, with all of its watchers; returns what they wanted.
    pub(crate) fn close(&mut self, stream: StreamId) -> Vec<(WatcherId, Arc<WatchSpec>)> {
        let ids = self.streams.get(&stream).map(|s| s.watchers.clone()).unwrap_or_default();
        let closed = ids.into_iter().filter_map(|id| Some((id, self.cancel(id)?))).collect();
        self.streams.remove(&stream);
        self.progress_wanted.remove(&stream);
        closed
    }

    /// Begins a watcher; returns the revision of the line at which it begins, for the answer; `None` if the stream is over.
    pub(crate) fn watch(
        &mut self,
        fold: &Fold,
        id: WatcherId,
        stream: StreamId,
        spec: Arc<WatchSpec>,
    ) -> Option<i64> {
        let revision = fold.revision;
        let of = self.streams.get_mut(&stream)?;
        of.watchers.insert(id);
        of.youngest = id;
        if spec.start > self.head {
            of.starts.push(spec.start);
        }
        let from = if spec.start > 0 { spec.start } else { revision + 1 };
        let live = from > self.head;
        let state = if live {
            self.live.insert(&spec.range, id);
            self.live_epoch += 1;
            State::Live { from }
        } else {
            of.behind += 1;
            self.turns.push_back(id);
            State::Behind { cursor: from - 1, wait: Wait::Turn }
        };
        let compacted = spec.start > 0 && spec.start < fold.compacted;
        self.watchers.insert(id, Watcher { stream, spec, state, ended: None });
        if compacted {
            self.end(id, fold.compacted, String::new());
        }
        Some(revision)
    }

    /// Ends a watcher; returns what it wanted, if it was there.
    pub(crate) fn cancel(&mut self, id: WatcherId) -> Option<Arc<WatchSpec>> {
        let watcher = self.watchers.remove(&id)?;
        let behind = match watcher.state {
            State::Live { .. } => {
                self.live.remove(&watcher.spec.range, id);
                false
            }
            State::Behind { wait, .. } => {
                if let Wait::Replay(replay) = wait {
                    self.replays.leave(replay, id, &watcher.spec.range);
                }
                true
            }
        };
        if let Some(stream) = self.streams.get_mut(&watcher.stream) {
            stream.watchers.remove(&id);
            stream.behind -= usize::from(behind);
        }
        Some(watcher.spec)
    }

    /// A stream asks for progress, of at least this revision.
    pub(crate) fn progress(&mut self, stream: StreamId, at_least: i64) {
        if let Some(s) = self.streams.get_mut(&stream) {
            if s.progress.len() == PROGRESS_MAX {
                s.progress.pop_front();
            }
            s.progress.push_back(at_least);
            self.progress_wanted.insert(stream);
        }
    }

    /// A watcher that asked for it is told its progress, if it is live.
    pub(crate) fn notify(&mut self, id: WatcherId) {
        let Some(watcher) = self.watchers.get(&id) else { return };
        let live = matches!(watcher.state, State::Live { .. }) && self.head >= watcher.spec.start;
        let stream = watcher.stream;
        if live {
            let revision = self.head;
            // Without room it is not idle, and the next notification will do.
            self.send(stream, Delivery::Progress { watcher: id, revision }, 0);
        }
    }

    /// A stream's client has taken what was under way.
    pub(crate) fn room(&mut self, stream: StreamId) {
        let ids = self.streams.get(&stream).filter(|s| s.behind > 0).map(|s| s.watchers.clone());
        for id in ids.unwrap_or_default() {
            self.give_turn(id, |wait| wait == Wait::Room);
        }
    }

    /// Goes on as far as it gets: live watchers first, then some of those that are behind. True if there is more to do
    /// at once. Call [`Merge::take_in_joined`] with the same fold first.
    pub(crate) fn advance(&mut self, fold: &Fold) -> bool {
        let live_more = self.advance_live(fold);
        let behind_more = self.advance_behind(fold);
        self.start_replays(fold);
        self.answer_progress();
        self.evict();
        live_more || behind_more
    }

    fn answer_progress(&mut self) {
        for id in self.progress_wanted.clone() {
            let Some(stream) = self.streams.get(&id) else { continue };
            let at = if stream.behind == 0 {
                self.head
            } else {
                stream
                    .watchers
                    .iter()
                    .filter_map(|w| self.watchers.get(w))
                    .map(|w| self.cursor(w))
                    .min()
                    .unwrap_or(0)
            };
            let due = stream.progress.iter().any(|&p| p <= at);
            // It is for all watchers of the stream, and clientv3 resumes each behind it, also if it is lower than an event
            // that came before: then that event would come twice (client/v3/watch.go, serveSubstream). As etcd, which answers
            // only while all watchers are synced, it does not go back.
            if !due || at < stream.told {
                continue;
            }
            // As etcd: nothing before the start that a watcher asked for, and nothing without watchers.
            let answer = !Sabotage::LoseProgress.is_on()
                && !stream.watchers.is_empty()
                && stream.starts.iter().all(|&start| start <= at);
            let youngest = stream.youngest;
            if answer && !self.send(id, Delivery::ProgressOfAll { youngest, revision: at }, 0) {
                continue;
            }
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.progress.retain(|&p| p > at);
                stream.starts.retain(|&start| start > at);
                if stream.progress.is_empty() {
                    self.progress_wanted.remove(&id);
                }
            }
        }
    }

    /// Forgets the oldest revisions beyond the bounds, but none that is not merged yet.
    fn evict(&mut self) {
        let mut bytes: usize = self.lanes.iter().map(|l| l.window.bytes()).sum();
        let mut count: usize = self.lanes.iter().map(|l| l.window.len()).sum();
        while bytes > self.limits.bytes_max || count > self.limits.revisions_max {
            let oldest = self
                .lanes
                .iter_mut()
                .filter_map(|l| Some((l.window.oldest()?, l)))
                .min_by_key(|(number, _)| *number);
            let Some((number, lane)) = oldest else { return };
            if number > self.head {
                return;
            }
            bytes -= lane.window.bytes();
            lane.window.forget_oldest();
            bytes += lane.window.bytes();
            count -= 1;
        }
    }

    /// Ends a watcher, and says so to its client.
    fn end(&mut self, id: WatcherId, compact_revision: i64, reason: String) {
        let head = self.head;
        let Some(watcher) = self.watchers.get_mut(&id) else { return };
        watcher.ended = Some((compact_revision, reason));
        match watcher.state {
            State::Live { .. } => {
                self.live.remove(&watcher.spec.range, id);
                watcher.state = State::Behind { cursor: head, wait: Wait::Turn };
                if let Some(stream) = self.streams.get_mut(&watcher.stream) {
                    stream.behind += 1;
                }
            }
            State::Behind { ref mut wait, .. } => {
                if let Wait::Replay(replay) = *wait {
                    self.replays.leave(replay, id, &watcher.spec.range);
                }
                *wait = Wait::Turn;
            }
        }
        self.turns.push_back(id);
    }

    fn cursor(&self, watcher: &Watcher) -> i64 {
        match watcher.state {
            State::Live { .. } => self.head,
            State::Behind { cursor, .. } => cursor,
        }
    }

    /// Sends events up to `revision`, below a `header`; those up to `no_prev_upto` without their previous pairs. False
    /// if the stream has no room.
    fn send_events(
        &mut self,
        stream: StreamId,
        watcher: WatcherId,
        revision: i64,
        mut events: Vec<Arc<HubEvent>>,
        header: i64,
        no_prev_upto: i64,
    ) -> bool {
        if Sabotage::ReorderMerge.is_on() {
            events.reverse();
        }
        let bytes = events.iter().map(|e| e.bytes()).sum();
        let count = events.len() as u64;
        let delivery = Delivery::Events { watcher, revision, header, events, no_prev_upto, bytes };
        let sent = self.send(stream, delivery, bytes);
        self.events_sent += if sent { count } else { 0 };
        sent
    }

    /// False if the stream has no room.
    fn send(&mut self, stream: StreamId, delivery: Delivery, bytes: usize) -> bool {
        let Some(s) = self.streams.get_mut(&stream) else { return true };
        let room = s.room.take(bytes);
        if room {
            match &delivery {
                Delivery::Events { revision, .. }
                | Delivery::Progress { revision, .. }
                | Delivery::ProgressOfAll { revision, .. } => s.told = s.told.max(*revision),
                Delivery::Ended { .. } => {}
            }
            self.effects.push(Effect::Deliver(stream, delivery));
        }
        room
    }

    /// Lets a watcher that is behind have its turn, if it waits for what `over` says.
    fn give_turn(&mut self, id: WatcherId, over: impl Fn(Wait) -> bool) {
        if let Some(Watcher { state: State::Behind { wait, .. }, .. }) = self.watchers.get_mut(&id)
            && over(*wait)
        {
            *wait = Wait::Turn;
            self.turns.push_back(id);
        }
    }
}

/// True if a shard owns a part of a range somewhere in the revisions `[from, upto]`.
fn touches(fold: &Fold, range: &KeyRange, shard: ShardIx, from: i64, upto: i64) -> bool {
    fold.maps_between(from, upto).any(|(_, map)| map.overlapping(range).any(|e| e.shard == shard))
}

/// True if the fold still knows all that happened after a revision.
///
/// Below its compaction it may not: maps are forgotten then, and a fold that was loaded from a checkpoint has only the
/// segments that live keys need. A watcher that is there already is served on as long as nothing is missing, as in etcd;
/// it never passes over something unknown.
fn is_known(fold: &Fold, after: i64) -> bool {
    let (mut next, upto) = (after + 1, fold.compacted - 1);
    if next > upto {
        return true;
    }
    if fold.maps_between(next, next).next().is_none_or(|(since, _)| *since > next) {
        return false;
    }
    // Every number belongs to a piece or to a flip.
    let flips: BTreeSet<i64> = fold.maps_between(next, upto).map(|(since, _)| *since).collect();
    let skip_flips = |mut next: i64| {
        while flips.contains(&next) {
            next += 1;
        }
        next
    };
    for Piece { segment, .. } in fold.pieces(after, upto) {
        if skip_flips(next) < segment.global {
            return false;
        }
        next = segment.global + segment.count;
    }
    skip_flips(next) > upto
}
