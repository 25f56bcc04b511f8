//! From the keys of a range to the points where it could be split.

use bytes::Bytes;

use super::CutPoint;
use crate::keyspace::Rules;

/// Walks over the keys of one range in order, counts them, and keeps a bounded number of cut points, spread evenly
/// over keys and bytes.
///
/// Two scans of the same keys give the same cut points. A boundary that the topology wants (of a pin or of presplit)
/// is always kept, and does not count.
#[derive(Debug)]
pub struct CutScan<'a> {
    rules: &'a Rules,
    /// Wanted boundaries not passed yet, in key order.
    wanted: &'a [Bytes],
    cuts_max: usize,
    last_key: Vec<u8>,
    keys: u64,
    bytes: u64,
    /// Cut points, and whether each is a wanted boundary.
    cuts: Vec<(CutPoint, bool)>,
    ordinary: usize,
    /// Least distance between two cut points: either suffices.
    stride_keys: u64,
    stride_bytes: u64,
    last_cut: (u64, u64),
}

/// What a scan found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    /// Number of keys.
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Where the range could be split.
    pub cuts: Vec<CutPoint>,
}

impl<'a> CutScan<'a> {
    /// A scan of the range from `start`, to keep at most `cuts_max` (at least 2) cut points besides `wanted`, the
    /// sorted boundaries that the topology wants.
    pub fn new(rules: &'a Rules, start: &[u8], wanted: &'a [Bytes], cuts_max: usize) -> Self {
        let passed = wanted.partition_point(|at| at.as_ref() <= start);
        Self {
            rules,
            wanted: &wanted[passed..],
            cuts_max: cuts_max.max(2),
            last_key: Vec::new(),
            keys: 0,
            bytes: 0,
            cuts: Vec::new(),
            ordinary: 0,
            stride_keys: 1,
            stride_bytes: 1,
            last_cut: (0, 0),
        }
    }

    /// Takes the next key, which sorts behind all before, with the length of its value.
    pub fn key(&mut self, key: &[u8], value_bytes: u64) {
        while let Some((at, rest)) = self.wanted.split_first() {
            if at.as_ref() > key {
                break;
            }
            self.push(at.clone(), true);
            self.wanted = rest;
        }
        // Before the first key there is nothing to part it from.
        let far = self.keys - self.last_cut.0 >= self.stride_keys
            || self.bytes - self.last_cut.1 >= self.stride_bytes;
        // A wanted boundary between the same two keys takes the place of another.
        let is_parted = self.cuts.last().is_some_and(|(cut, _)| cut.keys_before == self.keys);
        if self.keys > 0
            && far
            && !is_parted
            && let Some(at) = self.rules.boundary_between(&self.last_key, key)
        {
            self.push(at, false);
            self.last_cut = (self.keys, self.bytes);
        }
        self.keys += 1;
        self.bytes += key.len() as u64 + value_bytes;
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        if self.ordinary > self.cuts_max {
            self.thin();
        }
    }

    /// What was found. Wanted boundaries behind the last key are cut points, too, if they lie before `end` (empty: no
    /// end).
    pub fn finish(mut self, end: &[u8]) -> Scanned {
        for at in self.wanted {
            if !end.is_empty() && at.as_ref() >= end {
                break;
            }
            self.push(at.clone(), true);
        }
        Scanned {
            keys: self.keys,
            bytes: self.bytes,
            cuts: self.cuts.into_iter().map(|(cut, _)| cut).collect(),
        }
    }

    fn push(&mut self, at: Bytes, wanted: bool) {
        self.ordinary += usize::from(!wanted);
        self.cuts.push((
            CutPoint { at, keys_before: self.keys, bytes_before: self.bytes, work_before: 0, guessed: false },
            wanted,
        ));
    }

    /// Widens the distance until at most half of the bound is left.
    fn thin(&mut self) {
        let half = (self.cuts_max as u64 / 2).max(1);
        self.stride_keys = self.stride_keys.max(self.keys / half);
        self.stride_bytes = self.stride_bytes.max(self.bytes / half);
        // Each pass doubles the distance, so passes are few.
        loop {
            let (mut last, mut kept) = ((0, 0), 0);
            let (stride_keys, stride_bytes) = (self.stride_keys, self.stride_bytes);
            self.cuts.retain(|(cut, wanted)| {
                let far =
                    cut.keys_before - last.0 >= stride_keys || cut.bytes_before - last.1 >= stride_bytes;
                if far && !wanted {
                    last = (cut.keys_before, cut.bytes_before);
                    kept += 1;
                }
                far || *wanted
            });
            self.ordinary = kept;
            self.last_cut = last;
            if kept as u64 <= half {
                return;
            }
            self.stride_keys = self.stride_keys.saturating_mul(2);
            self.stride_bytes = self.stride_bytes.saturating_mul(2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(keys: &[String], wanted: &[Bytes], cuts_max: usize) -> Scanned {
        let rules = Rules::default();
        let mut scan = CutScan::new(&rules, b"", wanted, cuts_max);
        for key in keys {
            scan.key(key.as_bytes(), 10);
        }
        scan.finish(b"")
    }

    #[test]
    fn cuts_are_between_directories_and_count_what_is_before() {
        let keys = ["/a/x", "/a/y", "/b/x", "/c/d/x", "/c/e"].map(str::to_owned);
        let found = scan(&keys, &[], 16);
        assert_eq!((found.keys, found.bytes), (5, 72));
        let cuts =
            found.cuts.iter().map(|c| (c.at.as_ref(), c.keys_before, c.bytes_before)).collect::<Vec<_>>();
        assert_eq!(cuts, [(b"/b/".as_ref(), 2, 28), (b"/c/", 3, 42), (b"/c/d0", 4, 58)]);
    }

    #[test]
    fn one_directory_cannot_be_cut() {
        let keys = (0..50).map(|i| format!("/a/{i:03}")).collect::<Vec<_>>();
        assert!(scan(&keys, &[], 16).cuts.is_empty());
    }

    #[test]
    fn many_keys_give_few_cuts_evenly_spread() {
        let keys = (0..10_000).map(|i| format!("k{i:05}")).collect::<Vec<_>>();
        let found = scan(&keys, &[], 32);
        assert!((8..=32).contains(&found.cuts.len()), "{}", found.cuts.len());
        let mut last = 0;
        for cut in &found.cuts {
            assert!(cut.keys_before - last <= 10_000 / 4, "{cut:?}");
            last = cut.keys_before;
        }
        assert!(10_000 - last <= 10_000 / 4);
        assert_eq!(found, scan(&keys, &[], 32));
    }

    #[test]
    fn wanted_boundaries_are_kept() {
        let keys = (0..10_000).map(|i| format!("k{i:05}")).collect::<Vec<_>>();
        let wanted = ["j", "k00001", "k00001x", "k05000", "x", "y"].map(|b| Bytes::from_static(b.as_bytes()));
        let found = scan(&keys, &wanted, 8);
        let before = |at: &Bytes| found.cuts.iter().find(|c| c.at == at).map(|c| c.keys_before);
        assert_eq!(wanted.each_ref().map(before), [0, 1, 2, 5000, 10_000, 10_000].map(Some));
        assert!(found.cuts.windows(2).all(|w| w[0].at < w[1].at), "{:?}", found.cuts);
    }
}
