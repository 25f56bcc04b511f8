//! What pins and presplit boundaries mean for the ranges.

use bytes::Bytes;

use super::{Topology, draft::pinned_range, shard_name};
use crate::keyspace::{KeyRange, RangeEntry, Rid, ShardIx};

/// A part of the keyspace in which one pin decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinnedRange {
    /// The keys.
    pub range: KeyRange,
    /// Index of the shard that they belong to.
    pub shard: u32,
}

impl Topology {
    /// The shard that `key` is pinned to: the longest pin that fits decides.
    pub fn pin_for(&self, key: &[u8]) -> Option<u32> {
        // A longer prefix of the same key sorts behind a shorter one.
        let pins = &self.keyspace.pins;
        let before = pins.partition_point(|pin| pin.prefix.as_ref() <= key);
        pins[..before].iter().rev().find(|pin| key.starts_with(&pin.prefix)).map(|pin| pin.shard)
    }

    /// The pinned parts of the keyspace in key order, without overlaps: nested pins are cut out of the outer ones, and
    /// neighbours on one shard are one part.
    pub fn pinned_ranges(&self) -> Vec<PinnedRange> {
        let mut parts = Vec::<PinnedRange>::new();
        // Pins that the walk is inside of, outermost first: (end, shard).
        let mut open = Vec::<(Bytes, u32)>::new();
        let mut at = Bytes::new();
        for pin in &self.keyspace.pins {
            while let Some((end, shard)) = open.last().cloned() {
                if end.is_empty() || end > pin.prefix {
                    break;
                }
                push(&mut parts, KeyRange::new(at, end.clone()), shard);
                at = end;
                open.pop();
            }
            if let Some((_, shard)) = open.last() {
                push(&mut parts, KeyRange::new(at, pin.prefix.clone()), *shard);
            }
            at = pin.prefix.clone();
            open.push((pinned_range(pin).end, pin.shard));
        }
        while let Some((end, shard)) = open.pop() {
            push(&mut parts, KeyRange::new(at, end.clone()), shard);
            if end.is_empty() {
                break;
            }
            at = end;
        }
        parts
    }

    /// The boundaries that must exist, in key order: those of `presplit` and those of the pins.
    pub fn wanted_boundaries(&self) -> Vec<Bytes> {
        let mut boundaries = self.keyspace.presplit.clone();
        for part in self.pinned_ranges() {
            boundaries.push(part.range.start);
            boundaries.push(part.range.end);
        }
        boundaries.retain(|b| !b.is_empty());
        boundaries.sort();
        boundaries.dedup();
        boundaries
    }

    /// The ranges of an empty topology with the shard of each, in key order; they tile the keyspace.
    ///
    /// Pinned parts go where their pin says; the rest is dealt out in key order, in contiguous runs as long as the
    /// shards' weights say.
    /// Neighbours on one shard stay two ranges if `presplit` parts them. Without presplit and pins it is one range.
    pub fn initial_ranges(&self) -> Vec<(KeyRange, u32)> {
        let mut bounds = self.wanted_boundaries();
        bounds.push(Bytes::new());
        let mut start = Bytes::new();
        let mut ranges = Vec::with_capacity(bounds.len());
        for end in bounds {
            let pinned = self.pin_for(&start);
            ranges.push((KeyRange::new(start, end.clone()), pinned));
            start = end;
        }
        let free = ranges.iter().filter(|(_, pinned)| pinned.is_none()).count().max(1) as u64;
        let weights = (0..self.shards).map(|shard| u64::from(self.rebalance.weight(shard)));
        // Where the run of each shard ends, on a line as long as all weights together.
        let ends = weights.scan(0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        });
        let ends = ends.collect::<Vec<u64>>();
        let all = ends.last().copied().unwrap_or_default();
        let mut nth = 0u64;
        ranges
            .into_iter()
            .map(|(range, pinned)| {
                let shard = pinned.unwrap_or_else(|| {
                    let at = nth * all / free;
                    let dealt = ends.partition_point(|end| *end <= at);
                    nth += 1;
                    u32::try_from(dealt).unwrap_or(u32::MAX).min(self.shards - 1)
                });
                (range, shard)
            })
            .collect()
    }

    /// The same as ownerships: what a new topology begins with. Whoever starts it, and however often, they are the same.
    pub fn first_ranges(&self) -> Vec<RangeEntry> {
        let ranges = self.initial_ranges().into_iter().enumerate();
        ranges
            .map(|(n, (range, shard))| RangeEntry {
                range,
                rid: Rid::new(format!("b-{n}-{}", shard_name(shard))),
                shard: ShardIx(shard),
                imported_at: 0,
            })
            .collect()
    }
}

/// Adds a part unless it is empty; makes it one with the last part if they are neighbours on one shard.
fn push(parts: &mut Vec<PinnedRange>, range: KeyRange, shard: u32) {
    if range.is_empty() {
        return;
    }
    match parts.last_mut() {
        Some(last) if last.shard == shard && last.range.end == range.start => last.range.end = range.end,
        _ => parts.push(PinnedRange { range, shard }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::topology::{Draft, DraftPin, DraftWeight, validate};

    fn topology(shards: u32, presplit: &[&'static str], pins: &[(&'static str, i64)]) -> Topology {
        let mut draft = Draft::new("demo", shards);
        draft.presplit = presplit.iter().map(|p| Bytes::from_static(p.as_bytes())).collect();
        let pin = |(prefix, shard): &(&'static str, i64)| DraftPin {
            prefix: Bytes::from_static(prefix.as_bytes()),
            shard: *shard,
        };
        draft.pins = pins.iter().map(pin).collect();
        validate(draft).unwrap()
    }

    fn show(ranges: impl IntoIterator<Item = (KeyRange, u32)>) -> String {
        ranges.into_iter().map(|(r, s)| format!("{r}={s}")).collect::<Vec<_>>().join(" ")
    }

    fn parts(topology: &Topology) -> String {
        show(topology.pinned_ranges().into_iter().map(|p| (p.range, p.shard)))
    }

    #[test]
    fn longest_pin_wins() {
        let t = topology(4, &[], &[("/a/", 1), ("/a/b/", 2), ("/a/b/c/", 1), ("/a/d/", 3)]);
        for (key, shard) in [
            ("/", None),
            ("/a/", Some(1)),
            ("/a/x", Some(1)),
            ("/a/b/x", Some(2)),
            ("/a/b/c/x", Some(1)),
            ("/a/b/d/x", Some(2)),
            ("/a/c/x", Some(1)),
            ("/a/d/x", Some(3)),
            ("/b", None),
        ] {
            assert_eq!(t.pin_for(key.as_bytes()), shard, "{key}");
            let part = t.pinned_ranges().into_iter().find(|p| p.range.contains(key.as_bytes()));
            assert_eq!(part.map(|p| p.shard), shard, "{key}");
        }
        assert_eq!(
            parts(&t),
            r#"["/a/", "/a/b/")=1 ["/a/b/", "/a/b/c/")=2 ["/a/b/c/", "/a/b/c0")=1 ["/a/b/c0", "/a/b0")=2 ["/a/b0", "/a/d/")=1 ["/a/d/", "/a/d0")=3 ["/a/d0", "/a0")=1"#
        );
    }

    #[test]
    fn nested_pins_on_one_shard_are_one_part() {
        assert_eq!(parts(&topology(2, &[], &[("/a/", 1), ("/a/b/", 1)])), r#"["/a/", "/a0")=1"#);
    }

    #[test]
    fn pins_up_to_the_end_of_the_keyspace() {
        let mut draft = Draft::new("demo", 2);
        draft.delimiter = Bytes::new();
        let pin = |prefix: &'static [u8], shard| DraftPin { prefix: Bytes::from_static(prefix), shard };
        draft.pins = vec![pin(b"\xff", 1), pin(b"\xff\xff", 0)];
        let t = validate(draft).unwrap();
        assert_eq!(parts(&t), r#"["\xff", "\xff\xff")=1 ["\xff\xff", end)=0"#);
        assert_eq!(show(t.initial_ranges()), r#"["", "\xff")=0 ["\xff", "\xff\xff")=1 ["\xff\xff", end)=0"#);
    }

    #[test]
    fn one_range_to_start_with() {
        assert_eq!(show(topology(3, &[], &[]).initial_ranges()), r#"["", end)=0"#);
    }

    #[test]
    fn presplit_is_dealt_out_in_runs() {
        let t = topology(2, &["b", "d", "f"], &[]);
        assert_eq!(show(t.initial_ranges()), r#"["", "b")=0 ["b", "d")=0 ["d", "f")=1 ["f", end)=1"#);
        let t = topology(5, &["b", "d"], &[]);
        assert_eq!(show(t.initial_ranges()), r#"["", "b")=0 ["b", "d")=1 ["d", end)=3"#);
    }

    #[test]
    fn presplit_is_dealt_out_by_weight() {
        let mut draft = Draft::new("demo", 3);
        draft.presplit = ["b", "c", "d", "e", "f", "g", "h"].map(Bytes::from).to_vec();
        draft.weights = vec![DraftWeight { shard: 0, weight: 200 }, DraftWeight { shard: 2, weight: 500 }];
        let ranges = validate(draft).unwrap().initial_ranges();
        assert_eq!(ranges.iter().map(|(_, shard)| *shard).collect::<Vec<_>>(), [0, 0, 1, 2, 2, 2, 2, 2]);
    }

    #[test]
    fn the_first_ownerships_are_told_apart() {
        let first = topology(2, &["b", "d"], &[]).first_ranges();
        let rids: Vec<_> = first.iter().map(|entry| (entry.rid.as_str(), entry.shard.0)).collect();
        assert_eq!(rids, [("b-0-shard-0", 0), ("b-1-shard-0", 0), ("b-2-shard-1", 1)]);
    }

    #[test]
    fn pins_are_obeyed_from_the_start() {
        let t = topology(3, &["/m/"], &[("/e/", 2)]);
        assert_eq!(
            show(t.initial_ranges()),
            r#"["", "/e/")=0 ["/e/", "/e0")=2 ["/e0", "/m/")=1 ["/m/", end)=2"#
        );
    }
}
