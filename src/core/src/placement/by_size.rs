//! The parts of shards in the order of their size, for shards that have very many.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
};

use bytes::Bytes;

use super::model::{Measure, Model, Part, PartAt, ShardAt};

/// Sorted parts of the shards that were asked about.
#[derive(Debug, Default)]
pub(super) struct BySize {
    sorted: HashMap<(ShardAt, Measure), Sorted>,
}

/// Parts of one shard by one measure; equals in key order, so that nothing depends on how they were numbered.
#[derive(Debug, Default)]
struct Sorted {
    smallest_first: BTreeSet<(u64, Bytes, PartAt)>,
    largest_first: BTreeSet<(Reverse<u64>, Bytes, PartAt)>,
}

impl Sorted {
    fn insert(&mut self, load: u64, start: Bytes, at: PartAt) {
        self.smallest_first.insert((load, start.clone(), at));
        self.largest_first.insert((Reverse(load), start, at));
    }

    fn remove(&mut self, load: u64, start: Bytes, at: PartAt) {
        self.smallest_first.remove(&(load, start.clone(), at));
        self.largest_first.remove(&(Reverse(load), start, at));
    }
}

/// A part before a step changed it.
#[derive(Debug)]
pub(super) struct Before {
    shard: ShardAt,
    part: PartAt,
    start: Bytes,
    loads: [u64; Measure::ALL.len()],
}

impl Before {
    /// Of a part that a step is about to move or to split.
    pub(super) fn of(model: &Model<'_>, part: PartAt) -> Self {
        let now = &model.parts[part];
        Self {
            shard: now.shard,
            part,
            start: now.range.start.clone(),
            loads: Measure::ALL.map(|m| now.load.of(m)),
        }
    }
}

impl BySize {
    /// Of the parts of `from` that may be taken, the `max` largest, and as many of those whose size comes closest to
    /// `want`; all of them if they are not more than that. In no particular order.
    pub(super) fn shortlist(
        &mut self,
        model: &Model<'_>,
        (from, measure): (ShardAt, Measure),
        want: u64,
        max: usize,
        is_free: impl Fn(&Part) -> bool,
    ) -> Vec<PartAt> {
        let is_free = |at: PartAt| is_free(&model.parts[at]);
        let own = &model.shards[from].parts;
        let both = max.saturating_mul(2);
        if own.len() <= both {
            return own.iter().copied().filter(|at| is_free(*at)).collect();
        }
        let sorted = self.sorted.entry((from, measure)).or_insert_with(|| {
            let mut sorted = Sorted::default();
            for &at in own {
                let part = &model.parts[at];
                sorted.insert(part.load.of(measure), part.range.start.clone(), at);
            }
            sorted
        });
        let free = || sorted.largest_first.iter().map(|(_, _, at)| *at).filter(|at| is_free(*at));
        let all: Vec<PartAt> = free().take(both.saturating_add(1)).collect();
        if all.len() <= both {
            return all;
        }
        let mut parts: Vec<PartAt> = free().take(max).collect();
        let largest: BTreeSet<PartAt> = parts.iter().copied().collect();
        let is_new = |at: PartAt| is_free(at) && !largest.contains(&at);
        let mut above = sorted
            .smallest_first
            .range((want, Bytes::new(), 0)..)
            .filter(|(_, _, at)| is_new(*at))
            .map(|(load, start, at)| (load - want, start, *at))
            .peekable();
        let mut below = sorted
            .largest_first
            .range((Reverse(want.saturating_sub(1)), Bytes::new(), 0)..)
            .filter(|(load, _, at)| load.0 < want && is_new(*at))
            .map(|(load, start, at)| (want - load.0, start, *at))
            .peekable();
        while parts.len() < both {
            let nearer_above = match (above.peek(), below.peek()) {
                (Some(a), Some(b)) => (a.0, a.1) <= (b.0, b.1),
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => break,
            };
            let next = if nearer_above { above.next() } else { below.next() };
            parts.extend(next.map(|(_, _, at)| at));
        }
        parts
    }

    /// A step has moved or split a part: `before` is how it was.
    pub(super) fn changed(&mut self, model: &Model<'_>, before: &Before, parts_before: usize) {
        for (measure, load) in Measure::ALL.into_iter().zip(before.loads) {
            if let Some(sorted) = self.sorted.get_mut(&(before.shard, measure)) {
                sorted.remove(load, before.start.clone(), before.part);
            }
        }
        for at in [before.part].into_iter().chain(parts_before..model.parts.len()) {
            let part = &model.parts[at];
            for measure in Measure::ALL {
                if let Some(sorted) = self.sorted.get_mut(&(part.shard, measure)) {
                    sorted.insert(part.load.of(measure), part.range.start.clone(), at);
                }
            }
        }
    }
}
