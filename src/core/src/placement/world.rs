//! A model of shards with keys, on which plans are carried out.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Action, CutScan, Limits, Observation, RangeView, ShardState, ShardView, Step, plan};
use crate::{
    hash::fnv1a,
    keyspace::{KeyRange, Rid},
    load::{Counter, Folded, KEYS_MAX, Sketch, cuts_with_work},
    records::{KeyLoad, LoadRecord},
    topology::{Draft, DraftPin, DraftWeight, Topology, shard_name, validate},
};

/// Shards, ranges and keys.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) keys: BTreeMap<Bytes, u64>,
    /// What clients do to keys, in operations a second.
    pub(super) work: BTreeMap<Bytes, u64>,
    pub(super) ranges: Vec<RangeView>,
    pub(super) shards: Vec<ShardView>,
    pub(super) generation: u64,
    pub(super) cuts_max: usize,
    rids: u64,
}

impl World {
    /// As many active shards as the topology has, with the ranges that an empty topology has.
    pub(super) fn new(topology: &Topology) -> Self {
        let mut world = Self {
            keys: BTreeMap::new(),
            work: BTreeMap::new(),
            ranges: Vec::new(),
            shards: Vec::new(),
            generation: 1,
            cuts_max: 64,
            rids: 0,
        };
        for (range, shard) in topology.initial_ranges() {
            let view = world.range(range, shard);
            world.ranges.push(view);
        }
        (0..topology.shards).for_each(|i| world.shard(i, ShardState::Active));
        world
    }

    /// Adds a shard.
    pub(super) fn shard(&mut self, index: u32, state: ShardState) {
        self.shards.push(ShardView { name: shard_name(index), state, used_bytes: 0 });
    }

    /// Gives all ranges anew: each starts where the one before ends.
    pub(super) fn lay_out(&mut self, ranges: &[(&str, u32)]) {
        self.ranges.clear();
        for (i, (start, shard)) in ranges.iter().enumerate() {
            let end = ranges.get(i + 1).map_or("", |(start, _)| start);
            let range = KeyRange::new(start.as_bytes().to_vec(), end.as_bytes().to_vec());
            let view = self.range(range, *shard);
            self.ranges.push(view);
        }
    }

    /// Adds `n` keys `<prefix>00000`… of this many bytes each, key included.
    pub(super) fn fill(&mut self, prefix: &str, n: usize, bytes: u64) {
        for i in 0..n {
            self.keys.insert(format!("{prefix}{i:05}").into(), bytes);
        }
    }

    /// Gives each of the first `n` keys of `fill` so much work.
    pub(super) fn heat(&mut self, prefix: &str, n: usize, work: u64) {
        for i in 0..n {
            self.work.insert(format!("{prefix}{i:05}").into(), work);
        }
    }

    /// Work of the keys of a range.
    pub(super) fn work_in(&self, range: &KeyRange) -> u64 {
        self.work
            .range(range.start.clone()..)
            .take_while(|(key, _)| range.contains(key))
            .map(|(_, work)| work)
            .sum()
    }

    /// Work of each shard.
    pub(super) fn work_of_shards(&self) -> BTreeMap<String, u64> {
        let mut sums: BTreeMap<String, u64> = self.shards.iter().map(|s| (s.name.clone(), 0)).collect();
        for range in &self.ranges {
            *sums.entry(range.shard.clone()).or_default() += self.work_in(&range.range);
        }
        sums
    }

    /// What proxies would tell of the keys: as many as they have room for.
    pub(super) fn folded(&self) -> Folded {
        let mut sketch = Sketch::new(KEYS_MAX);
        // Requests come in no order.
        let mut keys: Vec<_> = self.work.iter().filter(|(_, work)| **work > 0).collect();
        keys.sort_by_key(|(key, _)| fnv1a(key));
        keys.into_iter().for_each(|(key, work)| sketch.offer(key, *work as f64));
        let told = |c: &Counter| KeyLoad { key: c.key.clone(), work: c.work as u64, sure: c.sure() as u64 };
        let keys = sketch.counters().iter().map(told).collect();
        Folded::of([&LoadRecord { ranges: Vec::new(), keys }])
    }

    fn range(&mut self, range: KeyRange, shard: u32) -> RangeView {
        RangeView {
            range,
            rid: self.rid(),
            shard: shard_name(shard),
            keys: 0,
            bytes: 0,
            work: 0,
            hot: None,
            rests: false,
            cuts: None,
            moving_to: None,
            moved_recently: false,
        }
    }

    fn rid(&mut self) -> Rid {
        self.rids += 1;
        Rid::new(format!("r{}", self.rids))
    }

    /// Scans all ranges.
    pub(super) fn observe(&self, topology: &Topology) -> Observation {
        let wanted = topology.wanted_boundaries();
        let folded = self.folded();
        let mut ranges = self.ranges.clone();
        for view in &mut ranges {
            let mut scan = CutScan::new(&topology.keyspace.rules, &view.range.start, &wanted, self.cuts_max);
            for (key, bytes) in self.keys.range(view.range.start.clone()..) {
                if !view.range.contains(key) {
                    break;
                }
                scan.key(key, bytes - key.len() as u64);
            }
            let scanned = scan.finish(&view.range.end);
            view.keys = scanned.keys;
            view.bytes = scanned.bytes;
            view.work = self.work_in(&view.range);
            view.hot = folded.hottest(&view.range, view.work as f64);
            view.cuts = Some(match view.work {
                0 => scanned.cuts,
                work => {
                    let size = (view.keys, view.bytes);
                    let rules = &topology.keyspace.rules;
                    cuts_with_work(&view.range, &scanned.cuts, size, work, folded.sampled(), rules)
                }
            });
        }
        Observation { generation: self.generation, shards: self.shards.clone(), ranges }
    }

    /// Carries out a step; panics if it cannot be carried out.
    pub(super) fn apply(&mut self, step: &Step) {
        self.generation += 1;
        let at = |ranges: &[RangeView], rid: &Rid| {
            ranges.iter().position(|r| r.rid == *rid).expect("rid of a range")
        };
        match &step.action {
            Action::Split { rid, range, at: boundary } => {
                let i = at(&self.ranges, rid);
                assert_eq!(&self.ranges[i].range, range);
                assert!(range.contains(boundary) && range.start != *boundary, "{step}");
                let mut right = RangeView { rid: self.rid(), ..self.ranges[i].clone() };
                right.range.start = boundary.clone();
                self.ranges[i].range.end = boundary.clone();
                self.ranges[i].rid = self.rid();
                self.ranges.insert(i + 1, right);
            }
            Action::Move { rid, range, to } => {
                let i = at(&self.ranges, rid);
                assert_eq!(&self.ranges[i].range, range);
                assert_eq!(self.ranges[i].shard, step.from);
                assert_ne!(self.ranges[i].shard, *to, "{step}");
                self.ranges[i].shard = to.clone();
                self.ranges[i].moved_recently = true;
                self.ranges[i].rid = self.rid();
            }
            Action::Merge { left, right, range } => {
                let i = at(&self.ranges, left);
                assert_eq!(at(&self.ranges, right), i + 1);
                assert_eq!(self.ranges[i].shard, self.ranges[i + 1].shard);
                let gone = self.ranges.remove(i + 1);
                self.ranges[i].moved_recently |= gone.moved_recently;
                self.ranges[i].range.end = gone.range.end;
                assert_eq!(&self.ranges[i].range, range);
                self.ranges[i].rid = self.rid();
            }
        }
    }

    /// Lets so much time pass that no move is recent any more.
    pub(super) fn wait(&mut self) {
        self.ranges.iter_mut().for_each(|range| range.moved_recently = false);
    }

    /// Plans and carries out the first ready step, again and again; gives the steps. Panics if that does not end.
    pub(super) fn settle(&mut self, topology: &Topology, limits: &Limits, steps_max: usize) -> Vec<Step> {
        let mut done = Vec::new();
        loop {
            let plan = plan(&self.observe(topology), topology, limits);
            let Some(step) = plan.ready().next().cloned() else {
                assert!(plan.steps.is_empty(), "steps, but none is ready: {plan}");
                return done;
            };
            self.apply(&step);
            done.push(step);
            assert!(done.len() <= steps_max, "does not end:\n{}", show(&done));
        }
    }
}

/// Steps as text, one a line.
pub(super) fn show(steps: &[Step]) -> String {
    steps.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// A topology with this many shards.
pub(super) fn topology(shards: u32) -> Topology {
    topology_with(shards, |_| {})
}

/// A topology with this many shards and more.
pub(super) fn topology_with(shards: u32, change: impl FnOnce(&mut Draft)) -> Topology {
    let mut draft = Draft::new("demo", shards);
    change(&mut draft);
    validate(draft).unwrap()
}

/// A pin.
pub(super) fn pin(prefix: &str, shard: i64) -> DraftPin {
    DraftPin { prefix: prefix.to_owned().into(), shard }
}

/// A shard's weight.
pub(super) fn weight(shard: i64, weight: i64) -> DraftWeight {
    DraftWeight { shard, weight }
}
