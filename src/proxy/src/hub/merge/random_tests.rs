//! The merge against a model, over random orders of everything that can happen to it.
//!
//! The model is the line itself: all events with their numbers. Whatever a watcher is told is checked at once: with a
//! delivery up to revision r it must have exactly the model's events up to r; with progress at r too. At the end all that
//! was held back is let go, and every watcher must have everything.
#![allow(clippy::unwrap_used)]

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use sharded_etcd_core::{
    keyspace::{RangeEntry, Rid},
    line::{Entry, Flip, Init, Join},
};
use sharded_etcd_etcd_api::messages as pb;

use super::*;
use crate::hub::event::Prev;

const SHARDS: usize = 3;
const STREAMS: u64 = 3;
const KEYS: [&str; 6] = ["a", "b", "g", "h", "p", "q"];

#[derive(Clone)]
struct Write {
    global: i64,
    local: i64,
    /// Key and whether it is a deletion; only what clients may see.
    events: Vec<(&'static str, bool)>,
}

struct Expecting {
    stream: StreamId,
    spec: Arc<WatchSpec>,
    from: i64,
    got: Vec<(i64, String, bool)>,
    told: i64,
    /// It began below the compaction.
    refused: bool,
}

struct World {
    rng: StdRng,
    seed: u64,
    fold: Fold,
    merge: Merge,
    position: i64,
    flips: u64,
    /// By shard, what it wrote, covered by the fold; read by the base stream up to `read`.
    writes: Vec<Vec<Write>>,
    read: Vec<usize>,
    rooms: HashMap<StreamId, Arc<Room>>,
    under_way: HashMap<StreamId, VecDeque<Delivery>>,
    watchers: HashMap<WatcherId, Expecting>,
    next_id: WatcherId,
    graces: Vec<(ShardIx, i64)>,
    fetches: Vec<(WatcherId, Vec<Arc<HubEvent>>)>,
    replays: Vec<(ReplayId, Vec<ReplayShard>, i64, i64)>,
    seen: Seen,
}

/// That the run was worth it.
#[derive(Default)]
struct Seen {
    events: usize,
    replays: usize,
    fetches: usize,
    late: usize,
    compacted: usize,
    progress: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let joins = (0..SHARDS)
            .map(|i| Join { shard: format!("shard-{i}"), incarnation: 0, l0: 2, etcd_cluster_id: 1 })
            .collect();
        let bounds = ["", "d", "m", ""];
        let ranges = (0..SHARDS)
            .map(|i| RangeEntry {
                range: KeyRange::new(bounds[i], bounds[i + 1]),
                rid: Rid::new(format!("b-{i}")),
                shard: ShardIx(i as u32),
                imported_at: 0,
            })
            .collect();
        let fold = Fold::start(1, &Entry::Init(Init { cluster_id: 7, joins, ranges })).unwrap();
        let limits = WindowLimits { bytes_max: usize::MAX, revisions_max: rng.random_range(0..40) };
        let mut merge = Merge::new(&fold, limits);
        let rooms: HashMap<_, _> = (0..STREAMS).map(|s| (s, Arc::new(Room::default()))).collect();
        for (&stream, room) in &rooms {
            merge.open(stream, Arc::clone(room));
        }
        Self {
            rng,
            seed,
            fold,
            merge,
            position: 1,
            flips: 0,
            writes: vec![Vec::new(); SHARDS],
            read: vec![0; SHARDS],
            under_way: rooms.keys().map(|&s| (s, VecDeque::new())).collect(),
            rooms,
            watchers: HashMap::new(),
            next_id: 100,
            graces: Vec::new(),
            fetches: Vec::new(),
            replays: Vec::new(),
            seen: Seen::default(),
        }
    }

    fn log(&mut self, entry: &Entry) {
        let before = self.fold.revision;
        self.position += 1;
        self.fold.apply(self.position, entry).unwrap();
        for piece in self.fold.pieces(before, self.fold.revision) {
            for i in 0..piece.segment.count {
                let (global, local) = (piece.segment.global + i, piece.segment.local + i);
                let count = if self.rng.random_bool(0.2) { 0 } else { self.rng.random_range(1..4) };
                let events = (0..count)
                    .map(|_| (*KEYS.choose(&mut self.rng).unwrap(), self.rng.random_bool(0.3)))
                    .filter(|(key, _)| self.fold.map_at(global).owner(key.as_bytes()).shard == piece.shard)
                    .collect();
                self.writes[piece.shard.index()].push(Write { global, local, events });
            }
        }
    }

    fn revision(&self, shard: ShardIx, write: &Write, with_prev: bool) -> Option<Arc<Revision>> {
        let event = |&(key, delete): &(&'static str, bool)| {
            let kind = if delete { pb::EventType::Delete } else { pb::EventType::Put };
            let kv = pb::KeyValue { key: key.into(), mod_revision: write.global, ..Default::default() };
            let prev = if with_prev { Prev::new_with(Some(None)) } else { Prev::new() };
            Arc::new(HubEvent {
                event: pb::Event { r#type: kind.into(), kv: Some(kv), prev_kv: None },
                shard,
                local: write.local,
                imported_at: 0,
                prev,
            })
        };
        let events: Vec<_> = write.events.iter().map(event).collect();
        (!events.is_empty()).then(|| Arc::new(Revision::new(write.global, write.local, events)))
    }

    /// What a watcher must have got, up to a revision.
    fn due(&self, of: &Expecting, upto: i64) -> Vec<(i64, String, bool)> {
        let mut all: Vec<_> =
            self.writes.iter().flatten().filter(|w| w.global >= of.from && w.global <= upto).collect();
        all.sort_by_key(|w| w.global);
        all.into_iter()
            .flat_map(|w| w.events.iter().map(|&(key, delete)| (w.global, key.to_owned(), delete)))
            .filter(|(_, key, delete)| {
                of.spec.range.contains(key.as_bytes())
                    && !(if *delete { of.spec.no_delete } else { of.spec.no_put })
            })
            .collect()
    }

    fn random_step(&mut self) {
        match self.rng.random_range(0..100) {
            0..20 => {
                let vector = (0..SHARDS as u32)
                    .filter(|_| self.rng.random_bool(0.6))
                    .collect::<Vec<_>>()
                    .into_iter()
                    .map(|s| {
                        let rise = self.rng.random_range(0..4);
                        (ShardIx(s), self.fold.shard(ShardIx(s)).unwrap().v + rise)
                    })
                    .collect();
                self.log(&Entry::Adv(vector));
            }
            20..45 => self.read_some(false),
            45..48 => self.flip(),
            48..54 => self.watch(),
            54..56 => {
                if let Some(&id) = self.watchers.keys().min() {
                    // It may have ended already, and its client has not heard of it.
                    self.merge.cancel(id);
                    self.watchers.remove(&id);
                }
            }
            56..76 => self.take_some(false),
            76..80 => {
                if let Some((shard, ready)) = self.graces.pop() {
                    self.seen.late += 1;
                    self.merge.grace_over(shard, ready);
                }
            }
            80..85 => self.fetch_one(),
            85..91 => self.replay_some(),
            91..92 if self.rng.random_bool(0.3) => {
                let at = self.rng.random_range(0..=self.fold.revision);
                self.log(&Entry::Compact(at));
            }
            92..96 => {
                let (stream, at) = (self.rng.random_range(0..STREAMS), self.fold.revision);
                self.merge.progress(stream, at);
            }
            _ => self.merge.retry(),
        }
    }

    fn read_some(&mut self, all: bool) {
        let s = self.rng.random_range(0..SHARDS);
        let left = self.writes[s].len() - self.read[s];
        let count = if all { left } else { self.rng.random_range(0..=left.min(4)) };
        let shard = ShardIx(s as u32);
        let now = &self.writes[s][self.read[s]..self.read[s] + count];
        let Some(upto) = now.last().map(|w| w.local) else { return };
        let with_prev = self.rng.random_bool(0.7);
        let revisions = now.iter().filter_map(|w| self.revision(shard, w, with_prev)).collect();
        self.read[s] += count;
        self.merge.ready(&self.fold, shard, revisions, upto);
    }

    fn flip(&mut self) {
        let entry = self.fold.map().entries().choose(&mut self.rng).unwrap().clone();
        let to = ShardIx(self.rng.random_range(0..SHARDS as u32));
        if to == entry.shard {
            return;
        }
        self.flips += 1;
        let next = |fold: &Fold, s: ShardIx| fold.shard(s).unwrap().v + 1;
        let flip = Flip {
            id: format!("m{}", self.flips),
            range: entry.range,
            rid: entry.rid,
            new_rid: Rid::new(format!("m{}", self.flips)),
            from: entry.shard,
            to,
            from_local: next(&self.fold, entry.shard),
            to_local: next(&self.fold, to),
        };
        self.log(&Entry::Flip(flip));
    }

    fn watch(&mut self) {
        let ranges = [
            KeyRange::whole(),
            KeyRange::key(b"a"),
            KeyRange::new("b", "h"),
            KeyRange::new("h", ""),
            KeyRange::key(b"q"),
        ];
        let newest = self.fold.revision;
        let start = match self.rng.random_range(0..4) {
            0 => 0,
            1 => self.rng.random_range(1..=newest + 3),
            _ => self.rng.random_range(self.fold.compacted.max(1)..=newest + 1),
        };
        let spec = Arc::new(WatchSpec {
            range: ranges.choose(&mut self.rng).unwrap().clone().clamped(),
            start,
            prev_kv: self.rng.random_bool(0.5),
            no_put: self.rng.random_bool(0.1),
            no_delete: self.rng.random_bool(0.1),
        });
        self.next_id += 1;
        let stream = self.rng.random_range(0..STREAMS);
        let revision = self.merge.watch(&self.fold, self.next_id, stream, Arc::clone(&spec)).unwrap();
        assert_eq!(revision, newest);
        let from = if start == 0 { newest + 1 } else { start };
        let refused = start > 0 && start < self.fold.compacted;
        self.watchers
            .insert(self.next_id, Expecting { stream, spec, from, got: Vec::new(), told: 0, refused });
    }

    /// Clients take what is under way, and check it.
    fn take_some(&mut self, all: bool) {
        let stream = self.rng.random_range(0..STREAMS);
        let left = self.under_way[&stream].len();
        let count = if all { left } else { self.rng.random_range(0..=left) };
        for _ in 0..count {
            let delivery = self.under_way.get_mut(&stream).unwrap().pop_front().unwrap();
            let mut room = 0;
            match delivery {
                Delivery::Events { watcher, revision, events, no_prev_upto, bytes, .. } => {
                    room = bytes;
                    assert!(!events.is_empty());
                    let Some(mut of) = self.watchers.remove(&watcher) else {
                        self.give_back(stream, room);
                        continue;
                    };
                    assert!(revision > of.told && revision <= self.fold.revision && !of.refused);
                    of.told = revision;
                    for e in &events {
                        assert!(!of.spec.prev_kv || e.has_prev() || e.revision() <= no_prev_upto);
                        assert!(no_prev_upto <= self.fold.compacted);
                        of.got.push((
                            e.revision(),
                            String::from_utf8(e.key().to_vec()).unwrap(),
                            e.is_delete(),
                        ));
                    }
                    self.seen.events += events.len();
                    assert_eq!(of.got, self.due(&of, revision), "seed {}, watcher {watcher}", self.seed);
                    self.watchers.insert(watcher, of);
                }
                Delivery::Progress { .. } => unreachable!("nobody asked for it"),
                Delivery::ProgressOfAll { youngest, revision } => {
                    self.seen.progress += 1;
                    for (id, of) in
                        self.watchers.iter().filter(|(id, of)| of.stream == stream && **id <= youngest)
                    {
                        assert!(of.told <= revision, "seed {}, watcher {id}: progress goes back", self.seed);
                        assert_eq!(of.got, self.due(of, revision), "seed {}, watcher {id}", self.seed);
                    }
                }
                Delivery::Ended { watcher, compact_revision, .. } => {
                    if let Some(of) = self.watchers.remove(&watcher) {
                        self.seen.compacted += 1;
                        assert!(
                            of.from.max(of.told + 1) < compact_revision
                                && compact_revision <= self.fold.compacted
                        );
                    }
                }
            }
            self.give_back(stream, room);
        }
    }

    fn give_back(&mut self, stream: StreamId, room: usize) {
        if self.rooms[&stream].give_back(room) {
            self.merge.room(stream);
        }
    }

    fn fetch_one(&mut self) {
        let Some((id, events)) = self.fetches.pop() else { return };
        self.seen.fetches += 1;
        let outcome = if self.rng.random_bool(0.2) {
            FetchOutcome::Failed
        } else {
            for event in events {
                // Another watcher may have had it fetched.
                let _ = event.prev.set(None);
            }
            FetchOutcome::Done
        };
        self.merge.fetched(&self.fold, id, outcome);
    }

    /// One part of a replay, or its end.
    fn replay_some(&mut self) {
        if self.replays.is_empty() {
            return;
        }
        let i = self.rng.random_range(0..self.replays.len());
        let (id, shards, after, upto) = self.replays[i].clone();
        let outcome = if self.rng.random_bool(0.1) {
            Some(ReplayOutcome::Failed)
        } else {
            let part = self.rng.random_range(after.min(upto)..=upto);
            let mut revisions: Vec<_> = shards
                .iter()
                .flat_map(|of| {
                    self.writes[of.shard.index()]
                        .iter()
                        .filter(|w| {
                            w.local >= of.from && w.local <= of.upto && w.global > after && w.global <= part
                        })
                        .filter_map(|w| self.revision(of.shard, w, true))
                })
                .collect();
            revisions.sort_by_key(|r| r.global);
            self.replays[i].2 = part;
            let wanted = self.merge.replayed(&self.fold, id, &revisions, part);
            (!wanted || part == upto).then_some(ReplayOutcome::Done)
        };
        if let Some(outcome) = outcome {
            self.replays.swap_remove(i);
            self.seen.replays += 1;
            self.merge.replay_ended(&self.fold, id, outcome);
        }
    }

    fn go_on(&mut self) {
        let mut bound = 0;
        while self.merge.advance(&self.fold) {
            bound += 1;
            assert!(bound < 10_000, "seed {}: the merge goes in circles", self.seed);
        }
        for effect in self.merge.take_effects() {
            match effect {
                Effect::Deliver(stream, delivery) => {
                    self.under_way.get_mut(&stream).unwrap().push_back(delivery)
                }
                Effect::Grace(shard, ready) => self.graces.push((shard, ready)),
                Effect::FetchPrev(id, events) => self.fetches.push((id, events)),
                Effect::Replay { replay, shards, upto } => self.replays.push((replay, shards, 0, upto)),
            }
        }
    }

    /// Lets go of everything, until nothing happens any more; then everybody must have everything.
    fn finish(&mut self) {
        for _ in 0..400 {
            for _ in 0..SHARDS * 2 {
                self.read_some(true);
                self.take_some(true);
            }
            self.fetch_one();
            self.replay_some();
            self.merge.retry();
            self.go_on();
        }
        assert_eq!(self.merge.head(), self.fold.revision, "seed {}", self.seed);
        assert_eq!(self.merge.counts(), (self.watchers.len(), 0), "seed {}", self.seed);
        for (id, of) in &self.watchers {
            assert_eq!(of.got, self.due(of, self.fold.revision), "seed {}, watcher {id}", self.seed);
        }
        assert_eq!(self.merge.passed(), self.fold.revision);
    }
}

#[test]
fn every_watcher_gets_the_line_whatever_happens() {
    let mut total = Seen::default();
    for seed in 0..150 {
        let mut world = World::new(seed);
        for _ in 0..600 {
            world.random_step();
            world.go_on();
        }
        world.finish();
        let s = world.seen;
        total.events += s.events;
        total.replays += s.replays;
        total.fetches += s.fetches;
        total.late += s.late;
        total.compacted += s.compacted;
        total.progress += s.progress;
    }
    let Seen { events, replays, fetches, late, compacted, progress } = total;
    let counts = [events, replays, fetches, late, compacted, progress];
    assert!(counts.iter().all(|&n| n > 500), "the runs did not see enough of everything: {counts:?}");
}
