//! Local revisions of one shard ↔ numbers of the line.

use serde::{Deserialize, Serialize};

/// `count` consecutive local revisions that have `count` consecutive numbers of the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(i64, i64, i64)", into = "(i64, i64, i64)")]
pub struct Segment {
    /// First local revision.
    pub local: i64,
    /// Its number of the line.
    pub global: i64,
    /// How many, at least 1.
    pub count: i64,
}

impl From<(i64, i64, i64)> for Segment {
    fn from((local, global, count): (i64, i64, i64)) -> Self {
        Self { local, global, count }
    }
}

impl From<Segment> for (i64, i64, i64) {
    fn from(s: Segment) -> Self {
        (s.local, s.global, s.count)
    }
}

/// All segments of one shard, ascending in local revisions and in numbers at once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Segments {
    list: Vec<Segment>,
}

impl Segments {
    /// Appends; joins the last segment if both numbers go on from it.
    pub(super) fn push(&mut self, segment: Segment) {
        if let Some(last) = self.list.last_mut() {
            debug_assert!(last.local + last.count <= segment.local);
            if last.local + last.count == segment.local && last.global + last.count == segment.global {
                last.count += segment.count;
                return;
            }
        }
        self.list.push(segment);
    }

    /// The number of local revision `local`; `None` if no segment holds it (at or below the join, or condensed away).
    pub fn global(&self, local: i64) -> Option<i64> {
        let s = self.list[..self.list.partition_point(|s| s.local <= local)].last()?;
        (local < s.local + s.count).then(|| s.global + (local - s.local))
    }

    /// The highest local revision whose number is at most `global`.
    pub fn local_at_most(&self, global: i64) -> Option<i64> {
        let s = self.list[..self.list.partition_point(|s| s.global <= global)].last()?;
        Some(s.local + (global - s.global).min(s.count - 1))
    }

    /// The lowest local revision whose number is at least `global`.
    pub fn local_at_least(&self, global: i64) -> Option<i64> {
        let i = self.list.partition_point(|s| s.global + s.count <= global);
        self.list.get(i).map(|s| s.local + (global - s.global).max(0))
    }

    /// The parts that have numbers in `(after, upto]`, ascending.
    pub fn between(&self, after: i64, upto: i64) -> impl Iterator<Item = Segment> + '_ {
        let first = self.list.partition_point(|s| s.global + s.count <= after + 1);
        self.list[first..].iter().take_while(move |s| s.global <= upto).map(move |s| {
            let skip = (after + 1 - s.global).max(0);
            let count = (s.count - skip).min(upto - s.global - skip + 1);
            Segment { local: s.local + skip, global: s.global + skip, count }
        })
    }

    /// How many segments there are: what the mapping costs in memory.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// True if the shard has no number of the line yet.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Keeps the segments that reach `floor` (a local revision: where an idle shard is read for the compaction revision and
    /// later ones) or that `needed` (ascending local revisions) names.
    pub(super) fn condense(&mut self, floor: i64, needed: &[i64]) {
        self.list.retain(|s| {
            s.local + s.count > floor || {
                let i = needed.partition_point(|&l| l < s.local);
                needed.get(i).is_some_and(|&l| l < s.local + s.count)
            }
        });
    }

    /// Takes `condensed` for everything up to local revision `upto`, and keeps its own from there on.
    pub(super) fn adopt(&mut self, condensed: &Self, upto: i64) {
        let own = std::mem::replace(self, condensed.clone());
        for s in own.list {
            let skip = (upto + 1 - s.local).max(0);
            if skip < s.count {
                self.push(Segment { local: s.local + skip, global: s.global + skip, count: s.count - skip });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments() -> Segments {
        let mut s = Segments::default();
        s.push(Segment { local: 3, global: 10, count: 2 }); // 3→10 4→11
        s.push(Segment { local: 5, global: 12, count: 1 }); // joined: 5→12
        s.push(Segment { local: 6, global: 20, count: 3 }); // 6→20 7→21 8→22
        s
    }

    #[test]
    fn maps_both_ways() {
        let s = segments();
        assert_eq!(s.len(), 2);
        assert_eq!(
            [2, 3, 5, 6, 8, 9].map(|l| s.global(l)),
            [None, Some(10), Some(12), Some(20), Some(22), None]
        );
        assert_eq!(
            [9, 10, 12, 15, 20, 99].map(|g| s.local_at_most(g)),
            [None, Some(3), Some(5), Some(5), Some(6), Some(8)]
        );
        assert_eq!(
            [1, 10, 13, 22, 23].map(|g| s.local_at_least(g)),
            [Some(3), Some(3), Some(6), Some(8), None]
        );
    }

    #[test]
    fn parts_between_numbers() {
        let s = segments();
        let parts = |a, b| s.between(a, b).map(|s| (s.local, s.global, s.count)).collect::<Vec<_>>();
        assert_eq!(parts(0, 99), [(3, 10, 3), (6, 20, 3)]);
        assert_eq!(parts(10, 21), [(4, 11, 2), (6, 20, 2)]);
        assert_eq!(parts(12, 19), []);
        assert_eq!(parts(21, 22), [(8, 22, 1)]);
    }

    #[test]
    fn condensation_keeps_what_is_needed() {
        let mut s = segments();
        s.condense(6, &[]);
        assert_eq!((s.global(4), s.global(6)), (None, Some(20)));
        let mut s = segments();
        s.condense(5, &[]);
        assert_eq!(s.local_at_most(15), Some(5), "what was last before the compaction is where it is read");
        let mut s = segments();
        s.condense(9, &[4]);
        assert_eq!((s.global(4), s.global(7)), (Some(11), None));
    }

    #[test]
    fn what_is_condensed_is_taken_over() {
        let mut condensed = segments();
        condensed.condense(7, &[]);
        let mut s = segments();
        s.push(Segment { local: 9, global: 23, count: 2 });
        s.push(Segment { local: 12, global: 40, count: 1 });
        s.adopt(&condensed, 8);
        assert_eq!(
            [4, 6, 8, 9, 10, 12].map(|l| s.global(l)),
            [None, Some(20), Some(22), Some(23), Some(24), Some(40)]
        );
        assert_eq!(s.len(), 2, "consecutive ones are joined");
    }
}
