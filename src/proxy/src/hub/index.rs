//! Which watchers want a key: single keys by hash, ranges by their boundaries.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
};

use bytes::Bytes;
use sharded_etcd_core::keyspace::{KeyRange, successor};

/// A set of key ranges with an id each, asked for all ids whose range holds a key.
///
/// A lookup costs one hash and one tree descent, however many ranges there are. The ranges cut the keyspace at their
/// ends into intervals, each with the list of ids that cover it: a new range costs a descent and one entry in each
/// interval that it covers, so a watcher of everything costs as many entries as there are distinct range ends.
#[derive(Default)]
pub(crate) struct RangeIndex {
    keys: HashMap<Bytes, Vec<u64>>,
    /// From each key up to the next one in the tree. Below the first nothing is covered.
    intervals: BTreeMap<Bytes, Interval>,
}

#[derive(Default)]
struct Interval {
    /// How many ranges start or end here; without any, the interval is the same as the one before.
    ends: usize,
    ids: Vec<u64>,
}

impl RangeIndex {
    /// Adds a range. The same range may be there under other ids; an id must not be there yet.
    pub(crate) fn insert(&mut self, range: &KeyRange, id: u64) {
        if is_single_key(range) {
            self.keys.entry(range.start.clone()).or_default().push(id);
        } else if !range.is_empty() {
            self.cut_at(&range.start);
            if !range.end.is_empty() {
                self.cut_at(&range.end);
            }
            for (_, interval) in self.covered(range) {
                interval.ids.push(id);
            }
        }
    }

    /// Removes what [`RangeIndex::insert`] added, with the same arguments.
    pub(crate) fn remove(&mut self, range: &KeyRange, id: u64) {
        if is_single_key(range) {
            if let Some(ids) = self.keys.get_mut(&range.start) {
                ids.retain(|&i| i != id);
                if ids.is_empty() {
                    self.keys.remove(&range.start);
                }
            }
        } else if !range.is_empty() {
            for (_, interval) in self.covered(range) {
                if let Some(at) = interval.ids.iter().position(|&i| i == id) {
                    interval.ids.swap_remove(at);
                }
            }
            self.heal_at(&range.start);
            if !range.end.is_empty() {
                self.heal_at(&range.end);
            }
        }
    }

    /// The ids of all ranges that hold `key`, in no order.
    pub(crate) fn holding<'a>(&'a self, key: &[u8]) -> impl Iterator<Item = u64> + use<'a> {
        let single = self.keys.get(key).map_or(&[][..], Vec::as_slice);
        let ranges = self
            .intervals
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(key)))
            .next_back()
            .map_or(&[][..], |(_, interval)| interval.ids.as_slice());
        single.iter().chain(ranges).copied()
    }

    /// True if at least one range holds `key`.
    pub(crate) fn wants(&self, key: &[u8]) -> bool {
        self.holding(key).next().is_some()
    }

    /// True if there is no range.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.intervals.is_empty()
    }

    fn covered(&mut self, range: &KeyRange) -> impl Iterator<Item = (&Bytes, &mut Interval)> {
        let end = if range.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(range.end.as_ref()) };
        self.intervals.range_mut::<[u8], _>((Bound::Included(range.start.as_ref()), end))
    }

    /// Makes an interval start at `key`, for one more range end.
    fn cut_at(&mut self, key: &Bytes) {
        if let Some(interval) = self.intervals.get_mut(key) {
            interval.ends += 1;
            return;
        }
        let before = self.intervals.range::<[u8], _>((Bound::Unbounded, Bound::Excluded(key.as_ref())));
        let ids = before.last_ids();
        self.intervals.insert(key.clone(), Interval { ends: 1, ids });
    }

    /// Takes one range end away from `key`; the last one joins the interval to the one before.
    fn heal_at(&mut self, key: &Bytes) {
        if let Some(interval) = self.intervals.get_mut(key) {
            interval.ends -= 1;
            if interval.ends == 0 {
                self.intervals.remove(key);
            }
        }
    }
}

trait LastIds {
    fn last_ids(self) -> Vec<u64>;
}

impl<'a, I: DoubleEndedIterator<Item = (&'a Bytes, &'a Interval)>> LastIds for I {
    fn last_ids(mut self) -> Vec<u64> {
        self.next_back().map_or_else(Vec::new, |(_, interval)| interval.ids.clone())
    }
}

fn is_single_key(range: &KeyRange) -> bool {
    range.end.len() == range.start.len() + 1 && range.end == successor(&range.start)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    fn ids(index: &RangeIndex, key: &[u8]) -> Vec<u64> {
        let mut ids: Vec<_> = index.holding(key).collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn finds_single_keys_prefixes_and_everything() {
        let mut index = RangeIndex::default();
        index.insert(&KeyRange::key(b"/a/x"), 1);
        index.insert(&KeyRange::prefix(b"/a/"), 2);
        index.insert(&KeyRange::new("/a/m", ""), 3);
        index.insert(&KeyRange::prefix(b"/a/"), 4);
        assert_eq!(ids(&index, b"/a/x"), [1, 2, 3, 4]);
        assert_eq!(ids(&index, b"/a/b"), [2, 4]);
        assert_eq!(ids(&index, b"/b"), [3]);
        assert_eq!(ids(&index, b"/"), Vec::<u64>::new());
        index.remove(&KeyRange::prefix(b"/a/"), 2);
        index.remove(&KeyRange::key(b"/a/x"), 1);
        assert_eq!(ids(&index, b"/a/x"), [3, 4]);
        index.remove(&KeyRange::new("/a/m", ""), 3);
        index.remove(&KeyRange::prefix(b"/a/"), 4);
        assert!(index.is_empty());
    }

    #[test]
    fn an_empty_range_holds_nothing() {
        let mut index = RangeIndex::default();
        index.insert(&KeyRange::new("b", "a"), 1);
        assert!(!index.wants(b"a") && !index.wants(b"b"));
        index.remove(&KeyRange::new("b", "a"), 1);
        assert!(index.is_empty());
    }

    #[test]
    fn agrees_with_a_list_over_random_changes() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut index = RangeIndex::default();
        let mut list: Vec<(KeyRange, u64)> = Vec::new();
        for id in 0..2_000 {
            if list.len() > 30 || (!list.is_empty() && rng.random_bool(0.3)) {
                let (range, id) = list.swap_remove(rng.random_range(0..list.len()));
                index.remove(&range, id);
            } else {
                let mut key = || Bytes::from(vec![rng.random_range(b'a'..b'f'); 1]);
                let (start, end) = (key(), key());
                let range = match id % 4 {
                    0 => KeyRange::key(&start),
                    1 => KeyRange::new(start, ""),
                    _ => KeyRange::new(start, end),
                };
                index.insert(&range, id);
                list.push((range, id));
            }
            for key in [&b"a"[..], b"b", b"bb", b"c", b"d", b"e", b"f"] {
                let expected: BTreeSet<_> =
                    list.iter().filter(|(r, _)| r.contains(key)).map(|(_, i)| *i).collect();
                assert_eq!(ids(&index, key), expected.into_iter().collect::<Vec<_>>());
            }
        }
        for (range, id) in list {
            index.remove(&range, id);
        }
        assert!(index.is_empty());
    }
}
