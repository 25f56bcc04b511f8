//! The reports of all proxies, added up.

use bytes::Bytes;

use super::{Rates, Share, apportion};
use crate::{keyspace::KeyRange, records::LoadRecord};

/// A key is called hot if it has this part of its range's work, and [`HOT_MIN`].
const HOT_PART: f64 = 0.1;
/// Work of a hot key at least, in operations a second.
const HOT_MIN: f64 = 10.0;

/// The load of a topology.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Folded {
    /// As the proxies know the ranges, which may overlap.
    ranges: Vec<(KeyRange, Rates)>,
    /// Sorted.
    keys: Vec<KeyWork>,
    /// The same, for [`apportion`].
    sampled: Vec<(Bytes, f64)>,
}

/// Work on a key.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyWork {
    /// The key.
    pub key: Bytes,
    /// Work on it, and maybe on keys around it in the sketch.
    pub work: f64,
    /// Work on it for sure.
    pub sure: f64,
}

/// A key with a fair part of its range's work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HotKey {
    /// The key.
    pub key: Bytes,
    /// Work on it for sure, in operations a second.
    pub work: u64,
}

impl Folded {
    /// The sum of these reports.
    pub fn of<'a>(records: impl IntoIterator<Item = &'a LoadRecord>) -> Self {
        let mut folded = Self::default();
        for record in records {
            folded.ranges.extend(record.ranges.iter().map(|told| {
                let rates = Rates {
                    reads: told.reads as f64,
                    writes: told.writes as f64,
                    read_bytes: told.read_bytes as f64,
                    written_bytes: told.written_bytes as f64,
                    events: told.events as f64,
                };
                (told.range.clone(), rates)
            }));
            folded.keys.extend(record.keys.iter().map(|told| KeyWork {
                key: told.key.clone(),
                work: told.work as f64,
                sure: told.sure.min(told.work) as f64,
            }));
        }
        folded.keys.sort_by(|a, b| a.key.cmp(&b.key));
        folded.keys.dedup_by(|same, first| {
            let is_same = same.key == first.key;
            if is_same {
                first.work += same.work;
                first.sure += same.sure;
            }
            is_same
        });
        folded.sampled = folded.keys.iter().map(|k| (k.key.clone(), k.work)).collect();
        folded
    }

    /// True if there is no load at all.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Sampled keys and their work, sorted.
    pub fn sampled(&self) -> &[(Bytes, f64)] {
        &self.sampled
    }

    /// The load of each of these ranges (sorted, tiling the keyspace) that has any, with its index.
    pub fn on(&self, map: &[impl AsRef<KeyRange>]) -> Vec<(usize, Rates)> {
        apportion(self.ranges.iter().map(|(range, rates)| (range, *rates)), &self.sampled, map)
    }

    /// Over all ranges.
    pub fn total(&self) -> Rates {
        self.ranges.iter().fold(Rates::default(), |sum, (_, rates)| sum.plus(*rates))
    }

    /// The sampled keys of a range.
    pub fn keys_in(&self, range: &KeyRange) -> &[KeyWork] {
        let from = self.keys.partition_point(|k| k.key < range.start);
        let inside = self.keys[from..].partition_point(|k| range.contains(&k.key));
        &self.keys[from..from + inside]
    }

    /// The key with most work of a range with so much, if it is hot.
    pub fn hottest(&self, range: &KeyRange, work: f64) -> Option<HotKey> {
        let surest = self.keys_in(range).iter().reduce(|a, b| if b.sure > a.sure { b } else { a })?;
        let is_hot = surest.sure >= HOT_MIN && surest.sure >= work * HOT_PART;
        is_hot.then(|| HotKey { key: surest.key.clone(), work: surest.sure as u64 })
    }

    /// The keys with most work over all ranges, the busiest first.
    pub fn hot_keys(&self, max: usize) -> Vec<HotKey> {
        let mut keys: Vec<&KeyWork> = self.keys.iter().filter(|k| k.sure >= HOT_MIN).collect();
        keys.sort_by(|a, b| b.sure.total_cmp(&a.sure).then_with(|| a.key.cmp(&b.key)));
        keys.truncate(max);
        keys.into_iter().map(|k| HotKey { key: k.key.clone(), work: k.sure as u64 }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{KeyLoad, RangeLoad};

    fn told(start: &'static str, end: &'static str, reads: u64) -> RangeLoad {
        let range = KeyRange::new(start, end);
        RangeLoad { range, reads, writes: 0, read_bytes: 0, written_bytes: 0, events: 0 }
    }

    fn key(key: &'static str, work: u64, sure: u64) -> KeyLoad {
        KeyLoad { key: Bytes::from_static(key.as_bytes()), work, sure }
    }

    #[test]
    fn proxies_add_up_whatever_map_they_know() {
        let newer = LoadRecord {
            ranges: vec![told("", "m", 10), told("m", "", 100)],
            keys: vec![key("a", 5, 5), key("z", 90, 80)],
        };
        let older = LoadRecord { ranges: vec![told("", "", 95)], keys: vec![key("z", 95, 70)] };
        let folded = Folded::of([&newer, &older]);
        let map = [KeyRange::new("", "m"), KeyRange::new("m", "")];
        let on = folded.on(&map);
        assert_eq!((on[0].0, on[1].0), (0, 1));
        assert!((on[0].1.reads - 12.5).abs() < 1e-9 && (on[1].1.reads - 192.5).abs() < 1e-9, "{on:?}");
        assert_eq!(folded.total().reads, 205.0);
        assert_eq!(folded.hottest(&map[1], 192.5), Some(HotKey { key: Bytes::from_static(b"z"), work: 150 }));
        assert_eq!(folded.hottest(&map[0], 12.5), None);
        assert_eq!(folded.hottest(&map[1], 10_000.0), None);
        assert_eq!(folded.hot_keys(10).len(), 1);
        assert!(Folded::of([]).on(&map).is_empty() && Folded::of([]).is_empty());
    }
}
