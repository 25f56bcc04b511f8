//! The planner's working copy of the state: it carries out each step as it is planned.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Write,
    sync::Arc,
};

use bytes::Bytes;

use super::{
    Action, CutPoint, Limits, Observation, ShardState, Step,
    pour::{Vessel, pour},
    room,
    text::{load_text, work_text},
};
use crate::{
    keyspace::{KeyRange, Rid},
    load::HotKey,
    topology::{Topology, WEIGHT, shard_index, shard_name},
};

/// A measure of load. Balance is wanted in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Measure {
    /// Number of keys.
    Keys,
    /// Bytes of keys and values.
    Bytes,
    /// What clients do, in operations a second.
    Work,
}

impl Measure {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Keys, Self::Bytes, Self::Work];
}

/// Keys, bytes and work of a part or of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Load {
    /// Number of keys.
    pub(super) keys: u64,
    /// Bytes of keys and values.
    pub(super) bytes: u64,
    /// What clients do, in operations a second.
    pub(super) work: u64,
}

impl Load {
    /// One of them.
    pub(super) fn of(self, measure: Measure) -> u64 {
        match measure {
            Measure::Keys => self.keys,
            Measure::Bytes => self.bytes,
            Measure::Work => self.work,
        }
    }

    fn set(&mut self, measure: Measure, to: u64) {
        match measure {
            Measure::Keys => self.keys = to,
            Measure::Bytes => self.bytes = to,
            Measure::Work => self.work = to,
        }
    }

    /// The sum.
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            keys: self.keys.saturating_add(other.keys),
            bytes: self.bytes.saturating_add(other.bytes),
            work: self.work.saturating_add(other.work),
        }
    }

    /// The difference, not below nothing.
    pub(super) fn minus(self, other: Self) -> Self {
        Self {
            keys: self.keys.saturating_sub(other.keys),
            bytes: self.bytes.saturating_sub(other.bytes),
            work: self.work.saturating_sub(other.work),
        }
    }
}

/// Index of a shard in [`Model::shards`].
pub(super) type ShardAt = usize;
/// Index of a part in [`Model::parts`].
pub(super) type PartAt = usize;

/// A shard as the planner sees it.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) name: String,
    pub(super) state: ShardState,
    /// The topology does not want it any more.
    pub(super) leaves: bool,
    /// What it is to hold, relative to the others.
    pub(super) weight: u64,
    /// What it holds now.
    pub(super) held: Load,
    /// What it holds once the moves under way and the steps planned so far are done.
    pub(super) load: Load,
    /// The share of it that cannot go anywhere else.
    pub(super) fixed: Load,
    /// What it should hold.
    pub(super) target: Load,
    /// Bytes that it should hold by its weight, if the quota allows fewer.
    pub(super) capped: Option<u64>,
    /// Bytes of its database that are in use; 0 if that is not known.
    pub(super) used_bytes: u64,
    /// Its parts, in no particular order.
    pub(super) parts: Vec<PartAt>,
}

impl Shard {
    fn new(name: &str, state: ShardState, used_bytes: u64, topology: &Topology) -> Self {
        let index = shard_index(name);
        let leaves = state == ShardState::Draining || index.is_none_or(|index| index >= topology.shards);
        let state = match state {
            ShardState::Active | ShardState::Joining if leaves => ShardState::Draining,
            other => other,
        };
        Self {
            name: name.to_owned(),
            state,
            leaves,
            weight: u64::from(index.map_or(WEIGHT, |index| topology.rebalance.weight(index)).max(1)),
            held: Load::default(),
            load: Load::default(),
            fixed: Load::default(),
            target: Load::default(),
            capped: None,
            used_bytes,
            parts: Vec::new(),
        }
    }

    /// True if it is to hold data in the end.
    pub(super) fn holds(&self) -> bool {
        !self.leaves && self.state != ShardState::Joining
    }

    /// True if data can be taken from it.
    pub(super) fn gives(&self) -> bool {
        matches!(self.state, ShardState::Active | ShardState::Draining)
    }

    /// True if data can be brought to it.
    pub(super) fn takes(&self) -> bool {
        self.state == ShardState::Active
    }
}

/// A range, or a part of one that the plan splits.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) range: KeyRange,
    pub(super) rid: Rid,
    pub(super) load: Load,
    pub(super) shard: ShardAt,
    /// Shard that a pin wants it on.
    pub(super) pinned: Option<ShardAt>,
    /// A move is under way, so nothing can be done with it.
    pub(super) moving: bool,
    /// Moved recently, by what was observed or by the plan.
    pub(super) settled: bool,
    /// Not to be moved for its load now.
    pub(super) rests: bool,
    /// The key with a fair part of its work.
    pub(super) hot: Option<HotKey>,
    /// Part of a directory that has to be brought together first.
    pub(super) bound: bool,
    /// Made by a split that is planned, so its id is not known yet.
    pub(super) planned: bool,
    cuts: Cuts,
    /// The neighbour to the right.
    pub(super) next: Option<PartAt>,
    /// The neighbour to the left.
    pub(super) previous: Option<PartAt>,
}

/// The cut points of a range as far as they lie in a part of it.
#[derive(Debug, Clone)]
struct Cuts {
    all: Option<Arc<[CutPoint]>>,
    from: usize,
    to: usize,
    /// What lies before the part in the range.
    before: Load,
}

/// Where a part could be split.
#[derive(Debug, Clone)]
pub(super) struct Cut {
    pub(super) at: Bytes,
    /// What the left part would hold.
    pub(super) left: Load,
    /// Keys and bytes of that are guesses.
    pub(super) guessed: bool,
}

/// What is moved: a whole part, or a piece of one.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) part: PartAt,
    pub(super) piece: Piece,
    pub(super) to: ShardAt,
}

/// A part, or what is left or right of a cut in it, or between two.
#[derive(Debug, Clone)]
pub(super) enum Piece {
    Whole,
    Left(Cut),
    Right(Cut),
    /// For its load: what is moved then is split off on both sides.
    Between(Cut, Cut),
}

impl Part {
    /// True if its cut points are known (there may be none).
    pub(super) fn scanned(&self) -> bool {
        self.cuts.all.is_some()
    }

    /// Number of cut points.
    pub(super) fn cuts(&self) -> usize {
        self.cuts.to - self.cuts.from
    }

    /// The cut point with this index, if there are that many.
    pub(super) fn cut(&self, i: usize) -> Option<Cut> {
        let cut = self.cuts.all.as_ref()?.get(self.cuts.from..self.cuts.to)?.get(i)?;
        let left = Load { keys: cut.keys_before, bytes: cut.bytes_before, work: cut.work_before };
        let left = left.minus(self.cuts.before);
        // An observation that contradicts itself must not make load out of nothing.
        let left = Load {
            keys: left.keys.min(self.load.keys),
            bytes: left.bytes.min(self.load.bytes),
            work: left.work.min(self.load.work),
        };
        Some(Cut { at: cut.at.clone(), left, guessed: cut.guessed })
    }

    /// The last cut point up to this index whose keys and bytes are known.
    pub(super) fn known_upto(&self, i: usize) -> Option<usize> {
        (0..=i).rev().find(|i| self.cut(*i).is_some_and(|cut| !cut.guessed))
    }

    /// The first cut point from this index on whose keys and bytes are known.
    pub(super) fn known_from(&self, i: usize) -> Option<usize> {
        (i..self.cuts()).find(|i| self.cut(*i).is_some_and(|cut| !cut.guessed))
    }

    /// Number of leading cut points for which `holds`, which must be true up to some point and false from there.
    pub(super) fn cuts_while(&self, holds: impl Fn(&Cut) -> bool) -> usize {
        let (mut from, mut to) = (0, self.cuts());
        while from < to {
            let middle = from + (to - from) / 2;
            if self.cut(middle).is_some_and(|cut| holds(&cut)) { from = middle + 1 } else { to = middle }
        }
        from
    }

    /// What lies before `at`, from the cut points: exact if `at` is one, else half way between those around it.
    pub(super) fn load_before(&self, at: &[u8]) -> Load {
        let below = self.cuts_while(|cut| cut.at.as_ref() < at);
        let upper = match self.cut(below) {
            Some(cut) if cut.at.as_ref() == at => return cut.left,
            Some(cut) => cut.left,
            None => self.load,
        };
        let lower = below.checked_sub(1).and_then(|i| self.cut(i)).map_or(Load::default(), |cut| cut.left);
        Load {
            keys: lower.keys.midpoint(upper.keys),
            bytes: lower.bytes.midpoint(upper.bytes),
            work: lower.work.midpoint(upper.work),
        }
    }
}

/// The planner's working copy of the state.
#[derive(Debug)]
pub(super) struct Model<'a> {
    pub(super) topology: &'a Topology,
    pub(super) limits: &'a Limits,
    pub(super) shards: Vec<Shard>,
    pub(super) parts: Vec<Part>,
    /// Boundaries that must exist, sorted.
    pub(super) wanted: Vec<Bytes>,
    /// Pinned parts of the keyspace in key order.
    pub(super) pins: Vec<(KeyRange, ShardAt)>,
    /// The steps planned so far.
    pub(super) steps: Vec<Step>,
    /// Those of them, by index, that are splits made for a move.
    pub(super) preparing: BTreeSet<usize>,
    /// Over all shards, moves under way included.
    pub(super) total: Load,
    /// Shards that are to hold data.
    holders: u64,
    /// Sum of their weights.
    weights: u64,
}

impl<'a> Model<'a> {
    /// The model of what was observed.
    pub(super) fn new(observation: &Observation, topology: &'a Topology, limits: &'a Limits) -> Self {
        let mut shards = Vec::with_capacity(observation.shards.len());
        let mut index = HashMap::with_capacity(observation.shards.len());
        for view in &observation.shards {
            index.insert(view.name.clone(), shards.len());
            shards.push(Shard::new(&view.name, view.state, view.used_bytes, topology));
        }
        // A shard that is named but not observed is not there yet, or not any more.
        let mut at = |shards: &mut Vec<Shard>, name: &str| match index.get(name) {
            Some(at) => *at,
            None => {
                let shard = Shard::new(name, ShardState::Joining, 0, topology);
                let shard =
                    if shard.leaves { Shard { state: ShardState::Unreachable, ..shard } } else { shard };
                index.insert(name.to_owned(), shards.len());
                shards.push(shard);
                shards.len() - 1
            }
        };
        let pins = topology.pinned_ranges().into_iter();
        let pins = pins.map(|pin| (pin.range, at(&mut shards, &shard_name(pin.shard)))).collect::<Vec<_>>();
        let mut parts = Vec::with_capacity(observation.ranges.len());
        let mut total = Load::default();
        for view in &observation.ranges {
            let shard = at(&mut shards, view.moving_to.as_ref().unwrap_or(&view.shard));
            let load = Load { keys: view.keys, bytes: view.bytes, work: view.work };
            let nth = parts.len();
            let cuts = view.cuts.as_ref().map(|cuts| Arc::<[CutPoint]>::from(cuts.as_slice()));
            parts.push(Part {
                range: view.range.clone(),
                rid: view.rid.clone(),
                load,
                shard,
                pinned: covering_pin(&pins, &view.range),
                moving: view.moving_to.is_some(),
                settled: view.moved_recently,
                rests: view.rests,
                hot: view.hot.clone(),
                bound: false,
                planned: false,
                cuts: Cuts {
                    to: cuts.as_ref().map_or(0, |c| c.len()),
                    all: cuts,
                    from: 0,
                    before: Load::default(),
                },
                next: (nth + 1 < observation.ranges.len()).then_some(nth + 1),
                previous: nth.checked_sub(1),
            });
            let owner = at(&mut shards, &view.shard);
            shards[owner].held = shards[owner].held.plus(load);
            shards[shard].parts.push(nth);
            shards[shard].load = shards[shard].load.plus(load);
            total = total.plus(load);
        }
        let wanted = topology.wanted_boundaries();
        let holders = shards.iter().filter(|s| s.holds()).count() as u64;
        let weights = shards.iter().filter(|s| s.holds()).map(|s| s.weight).sum();
        Self {
            topology,
            limits,
            shards,
            parts,
            wanted,
            pins,
            steps: Vec::new(),
            preparing: BTreeSet::new(),
            total,
            holders,
            weights,
        }
    }

    /// True if the plan has no room for another two steps.
    pub(super) fn full(&self) -> bool {
        self.steps.len() + 2 > self.limits.steps_max
    }

    /// Differences below this are left alone.
    pub(super) fn tolerance(&self, measure: Measure) -> u64 {
        match measure {
            Measure::Keys => self.limits.tolerance_keys,
            Measure::Bytes => self.limits.tolerance_bytes,
            Measure::Work => self.topology.rebalance.load_tolerance,
        }
    }

    /// True if there is enough of it for any difference to matter.
    pub(super) fn counts(&self, measure: Measure) -> bool {
        self.total.of(measure) >= self.tolerance(measure).max(1)
    }

    /// What decides where something goes that has to go: all measures, but for a load that is next to nothing.
    pub(super) fn weighed(&self) -> impl Iterator<Item = Measure> + use<> {
        let has_load = self.counts(Measure::Work);
        Measure::ALL.into_iter().filter(move |m| *m != Measure::Work || has_load)
    }

    /// Mean of the shards that are to hold data.
    pub(super) fn mean(&self, measure: Measure) -> u64 {
        self.total.of(measure) / self.holders.max(1)
    }

    /// What `shard` would hold if every holder held what its weight says.
    pub(super) fn share(&self, shard: &Shard, measure: Measure) -> u64 {
        let share =
            u128::from(self.total.of(measure)) * u128::from(shard.weight) / u128::from(self.weights.max(1));
        u64::try_from(share).unwrap_or(u64::MAX)
    }

    /// Finds the pin of a part anew, after a split.
    pub(super) fn renew_pin(&mut self, at: PartAt) {
        self.parts[at].pinned = covering_pin(&self.pins, &self.parts[at].range);
    }

    /// True if a boundary of a pin or of presplit lies at `at`.
    pub(super) fn is_wanted(&self, at: &Bytes) -> bool {
        self.wanted.binary_search(at).is_ok()
    }

    /// Plans a split and carries it out; gives the right part. `at` lies strictly inside.
    pub(super) fn split(&mut self, left: PartAt, at: Bytes, reason: String) -> PartAt {
        let right = self.parts.len();
        let part = &mut self.parts[left];
        let before = part.load_before(&at);
        let below = part.cuts_while(|cut| cut.at < at);
        let on_cut = part.cut(below).is_some_and(|cut| cut.at == at);
        self.steps.push(Step {
            action: Action::Split { rid: part.rid.clone(), range: part.range.clone(), at: at.clone() },
            from: self.shards[part.shard].name.clone(),
            keys: part.load.keys,
            bytes: part.load.bytes,
            work: part.load.work,
            reason,
            ready: !part.planned,
        });
        let mut child = part.clone();
        child.range.start = at.clone();
        child.load = part.load.minus(before);
        child.cuts.from = part.cuts.from + below + usize::from(on_cut);
        child.cuts.before = part.cuts.before.plus(before);
        child.planned = true;
        child.previous = Some(left);
        part.range.end = at;
        part.load = before;
        part.cuts.to = part.cuts.from + below;
        part.planned = true;
        part.next = Some(right);
        let is_in =
            |range: &KeyRange, hot: &Option<HotKey>| hot.as_ref().is_some_and(|h| range.contains(&h.key));
        part.hot = part.hot.take().filter(|_| is_in(&part.range, &child.hot));
        child.hot = child.hot.take().filter(|h| child.range.contains(&h.key));
        let shard = part.shard;
        if let Some(next) = child.next {
            self.parts[next].previous = Some(right);
        }
        self.parts.push(child);
        self.shards[shard].parts.push(right);
        right
    }

    /// Plans a split that a move needs, and carries it out; gives the right part.
    pub(super) fn split_for_move(&mut self, left: PartAt, at: Bytes, reason: String) -> PartAt {
        self.preparing.insert(self.steps.len());
        self.split(left, at, reason)
    }

    /// Plans a move and carries it out.
    pub(super) fn move_part(&mut self, at: PartAt, to: ShardAt, reason: String) {
        let part = &mut self.parts[at];
        self.steps.push(Step {
            action: Action::Move {
                rid: part.rid.clone(),
                range: part.range.clone(),
                to: self.shards[to].name.clone(),
            },
            from: self.shards[part.shard].name.clone(),
            keys: part.load.keys,
            bytes: part.load.bytes,
            work: part.load.work,
            reason,
            ready: !part.planned,
        });
        let from = std::mem::replace(&mut part.shard, to);
        let load = part.load;
        part.settled = true;
        self.shards[from].parts.retain(|p| *p != at);
        self.shards[from].load = self.shards[from].load.minus(load);
        self.shards[to].parts.push(at);
        self.shards[to].load = self.shards[to].load.plus(load);
    }

    /// Plans the next step towards a choice, and carries it out: the move if it is a whole part, else the split. What
    /// follows the split is decided anew, as it will be when the split is done and observed.
    pub(super) fn approach(&mut self, choice: &Choice, reason: String) {
        let whole = self.parts[choice.part].load;
        let (cut, load) = match &choice.piece {
            Piece::Whole => return self.move_part(choice.part, choice.to, reason),
            Piece::Left(cut) => (cut, cut.left),
            Piece::Right(cut) => (cut, whole.minus(cut.left)),
            Piece::Between(first, second) => (first, second.left.minus(first.left)),
        };
        let to = &self.shards[choice.to].name;
        let mut why = format!("so that {}", load_text(load.keys, load.bytes));
        if load.work > 0 {
            let _ = write!(why, ", {}", work_text(load.work));
        }
        let _ = write!(why, " can move to {to}");
        self.split_for_move(choice.part, cut.at.clone(), why);
    }

    /// True if a neighbour of the piece of `part` is on `shard`.
    pub(super) fn touches(&self, part: &Part, piece: &Piece, shard: ShardAt) -> bool {
        let is_there = |neighbour: Option<PartAt>| neighbour.is_some_and(|n| self.parts[n].shard == shard);
        match piece {
            Piece::Whole => is_there(part.next) || is_there(part.previous),
            Piece::Left(_) => is_there(part.previous),
            Piece::Right(_) => is_there(part.next),
            Piece::Between(..) => false,
        }
    }

    /// Sets what each shard should hold: what cannot go elsewhere stays, the rest is poured in so that all that take
    /// are filled to the same level for their weight, or as far as their quota allows.
    pub(super) fn set_targets(&mut self) {
        for shard in &mut self.shards {
            shard.fixed = Load::default();
            shard.target = Load::default();
        }
        for part in &self.parts {
            let stuck = part.pinned == Some(part.shard) || part.moving || !self.shards[part.shard].gives();
            if stuck {
                let shard = &mut self.shards[part.shard];
                shard.fixed = shard.fixed.plus(part.load);
            }
        }
        let takers: Vec<ShardAt> = (0..self.shards.len()).filter(|s| self.shards[*s].takes()).collect();
        for measure in Measure::ALL {
            let fixed: u64 = self.shards.iter().map(|s| s.fixed.of(measure)).sum();
            let free = self.total.of(measure).saturating_sub(fixed);
            let vessels: Vec<Vessel> = takers
                .iter()
                .map(|taker| Vessel {
                    floor: self.shards[*taker].fixed.of(measure),
                    weight: self.shards[*taker].weight,
                    most: if measure == Measure::Bytes { room::most(self, *taker) } else { u64::MAX },
                })
                .collect();
            let poured = pour(free, &vessels);
            for shard in &mut self.shards {
                shard.target.set(measure, shard.fixed.of(measure));
            }
            for ((taker, vessel), level) in takers.iter().zip(&vessels).zip(poured) {
                let shard = &mut self.shards[*taker];
                shard.target.set(measure, level.held);
                if measure == Measure::Bytes && level.wanted > vessel.most.max(vessel.floor) {
                    shard.capped = Some(level.wanted);
                }
            }
        }
    }
}

/// The shard of the pin that covers the whole of `range`, among pinned parts of the keyspace in key order.
fn covering_pin(pins: &[(KeyRange, ShardAt)], range: &KeyRange) -> Option<ShardAt> {
    let before = pins.partition_point(|(pinned, _)| pinned.start <= range.start);
    let (pinned, shard) = pins[..before].last()?;
    pinned.covers(range).then_some(*shard)
}
