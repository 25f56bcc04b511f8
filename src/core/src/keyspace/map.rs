//! The range map: which shard owns which keys.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::KeyRange;

/// A shard's join number: its index in the fold's list of shards, in the order in which they joined the line.
///
/// One (shard, incarnation) has one number for ever; a shard that comes back as another incarnation gets a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShardIx(pub u32);

impl ShardIx {
    /// As an index into per-shard vectors.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The id of one *ownership* of a range by a shard; new at each ownership, so a stale fence never matches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rid(pub Arc<str>);

impl Rid {
    /// From text.
    pub fn new(text: impl AsRef<str>) -> Self {
        Self(Arc::from(text.as_ref()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Rid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Rid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Rid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Rid::new)
    }
}

/// One range and its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeEntry {
    /// The keys.
    pub range: KeyRange,
    /// The id of this ownership.
    pub rid: Rid,
    /// The owner.
    pub shard: ShardIx,
    /// Revision of the flip that brought the range here; 0 if its keys were always here. Keys created at or before
    /// it carry an override.
    #[serde(default)]
    pub imported_at: i64,
}

/// The ranges, sorted; they tile the keyspace, and each has one owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeMap {
    /// Raised by one with each change.
    pub generation: u64,
    entries: Vec<RangeEntry>,
}

/// Why a range map cannot be made or changed so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The entries leave a gap or overlap.
    #[error("ranges do not tile the keyspace at {0}")]
    NotTiling(String),
    /// No such ownership in the map.
    #[error("no range {0} in the map")]
    NoSuchRange(Rid),
    /// The split key is not strictly inside the range.
    #[error("split key {at} is not inside range {rid}")]
    NotInside {
        /// The range.
        rid: Rid,
        /// The key, printable.
        at: String,
    },
    /// The two ranges are no neighbours on one shard.
    #[error("ranges {0} and {1} are not neighbours on one shard")]
    NotNeighbours(Rid, Rid),
}

impl RangeMap {
    /// A map from entries, sorted by start.
    ///
    /// # Errors
    /// If they do not tile the keyspace from the empty key to its end.
    pub fn new(generation: u64, entries: Vec<RangeEntry>) -> Result<Self, MapError> {
        let mut expected = Bytes::new();
        let last = entries.len().wrapping_sub(1);
        for (i, entry) in entries.iter().enumerate() {
            let open_end = entry.range.end.is_empty();
            if entry.range.start != expected || open_end != (i == last) || entry.range.is_empty() {
                return Err(MapError::NotTiling(entry.range.to_string()));
            }
            expected = entry.range.end.clone();
        }
        if entries.is_empty() {
            return Err(MapError::NotTiling("an empty list".to_owned()));
        }
        Ok(Self { generation, entries })
    }

    /// All entries in key order.
    pub fn entries(&self) -> &[RangeEntry] {
        &self.entries
    }

    /// The entry that `key` lies in.
    pub fn owner(&self, key: &[u8]) -> &RangeEntry {
        &self.entries[self.index_of(key)]
    }

    /// The index in [`RangeMap::entries`] of the entry that `key` lies in.
    pub fn index_of(&self, key: &[u8]) -> usize {
        let after = self.entries.partition_point(|e| e.range.start.as_ref() <= key);
        // The first entry starts at the empty key, so `after` is at least 1.
        after.saturating_sub(1)
    }

    /// The entries that share keys with `range`, in key order.
    pub fn overlapping<'a>(&'a self, range: &'a KeyRange) -> impl DoubleEndedIterator<Item = &'a RangeEntry> {
        self.entries[self.span(range)].iter()
    }

    /// The indices in [`RangeMap::entries`] of those that share keys with `range`.
    pub fn span(&self, range: &KeyRange) -> std::ops::Range<usize> {
        let from = self
            .entries
            .partition_point(|e| !e.range.end.is_empty() && e.range.end.as_ref() <= range.start.as_ref());
        let to = if range.is_empty() {
            from
        } else if range.end.is_empty() {
            self.entries.len()
        } else {
            self.entries.partition_point(|e| e.range.start.as_ref() < range.end.as_ref())
        };
        from..to.max(from)
    }

    /// The entry of one ownership.
    pub fn by_rid(&self, rid: &Rid) -> Option<&RangeEntry> {
        self.entries.iter().find(|e| &e.rid == rid)
    }

    /// True if `shard` owns at least one range.
    pub fn owns_any(&self, shard: ShardIx) -> bool {
        self.entries.iter().any(|e| e.shard == shard)
    }

    /// The map after the range `rid` went to `to` as ownership `new`, by a flip at `revision`.
    ///
    /// # Errors
    /// If there is no such ownership.
    pub fn flipped(&self, rid: &Rid, new: Rid, to: ShardIx, revision: i64) -> Result<Self, MapError> {
        let at = self.position(rid)?;
        let mut entries = self.entries.clone();
        entries[at].rid = new;
        entries[at].shard = to;
        entries[at].imported_at = revision;
        Ok(Self { generation: self.generation + 1, entries })
    }

    /// The map after the range `rid` was split at `at` into `left` and `right`.
    ///
    /// # Errors
    /// If there is no such ownership, or `at` is not strictly inside it.
    pub fn split(&self, rid: &Rid, at: &Bytes, left: Rid, right: Rid) -> Result<Self, MapError> {
        let position = self.position(rid)?;
        let parent = &self.entries[position];
        if !parent.range.contains(at) || parent.range.start == *at {
            return Err(MapError::NotInside { rid: rid.clone(), at: super::Printable(at).to_string() });
        }
        let child = |range, rid| RangeEntry { range, rid, ..parent.clone() };
        let children = [
            child(KeyRange::new(parent.range.start.clone(), at.clone()), left),
            child(KeyRange::new(at.clone(), parent.range.end.clone()), right),
        ];
        let mut entries = self.entries.clone();
        entries.splice(position..=position, children);
        Ok(Self { generation: self.generation + 1, entries })
    }

    /// The map after the neighbours `left` and `right` became `new`.
    ///
    /// # Errors
    /// If they are not neighbours on one shard.
    pub fn merged(&self, left: &Rid, right: &Rid, new: Rid) -> Result<Self, MapError> {
        let position = self.position(left)?;
        let apart = || MapError::NotNeighbours(left.clone(), right.clone());
        let (l, r) = (&self.entries[position], self.entries.get(position + 1).ok_or_else(apart)?);
        if r.rid != *right || l.shard != r.shard {
            return Err(apart());
        }
        let merged = RangeEntry {
            range: KeyRange::new(l.range.start.clone(), r.range.end.clone()),
            rid: new,
            shard: l.shard,
            imported_at: l.imported_at.max(r.imported_at),
        };
        let mut entries = self.entries.clone();
        entries.splice(position..=position + 1, [merged]);
        Ok(Self { generation: self.generation + 1, entries })
    }

    fn position(&self, rid: &Rid) -> Result<usize, MapError> {
        self.entries.iter().position(|e| &e.rid == rid).ok_or_else(|| MapError::NoSuchRange(rid.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> RangeMap {
        let entry = |s: &'static str, e: &'static str, rid: &str, ix| RangeEntry {
            range: KeyRange::new(s, e),
            rid: Rid::new(rid),
            shard: ShardIx(ix),
            imported_at: 0,
        };
        RangeMap::new(1, vec![entry("", "g", "a", 0), entry("g", "p", "b", 1), entry("p", "", "c", 0)])
            .unwrap()
    }

    #[test]
    fn finds_owners() {
        assert_eq!(map().owner(b"").rid.as_str(), "a");
        assert_eq!(map().owner(b"g").rid.as_str(), "b");
        assert_eq!(map().owner(b"zz").rid.as_str(), "c");
        let rids =
            |r: KeyRange| map().overlapping(&r).map(|e| e.rid.to_string()).collect::<Vec<_>>().join("");
        assert_eq!(rids(KeyRange::new("a", "g")), "a");
        assert_eq!(rids(KeyRange::new("a", "g\0")), "ab");
        assert_eq!(rids(KeyRange::whole()), "abc");
        assert_eq!(rids(KeyRange::new("p", "")), "c");
        assert_eq!(rids(KeyRange::new("h", "a")), "");
    }

    #[test]
    fn changes_keep_tiling() {
        let split =
            map().split(&Rid::new("b"), &Bytes::from_static(b"k"), Rid::new("d"), Rid::new("e")).unwrap();
        RangeMap::new(split.generation, split.entries().to_vec()).unwrap();
        assert_eq!(split.owner(b"k").rid.as_str(), "e");
        let flipped = split.flipped(&Rid::new("e"), Rid::new("f"), ShardIx(2), 9).unwrap();
        assert_eq!(
            flipped.owner(b"l"),
            &RangeEntry {
                range: KeyRange::new("k", "p"),
                rid: Rid::new("f"),
                shard: ShardIx(2),
                imported_at: 9
            }
        );
        assert!(flipped.merged(&Rid::new("d"), &Rid::new("f"), Rid::new("x")).is_err());
        let merged = split.merged(&Rid::new("d"), &Rid::new("e"), Rid::new("x")).unwrap();
        assert_eq!(merged.entries().len(), 3);
        assert!(
            map().split(&Rid::new("b"), &Bytes::from_static(b"g"), Rid::new("d"), Rid::new("e")).is_err()
        );
    }

    #[test]
    fn refuses_gaps() {
        assert!(RangeMap::new(1, vec![]).is_err());
        assert!(RangeMap::new(1, map().entries()[..2].to_vec()).is_err());
        assert!(RangeMap::new(1, map().entries()[1..].to_vec()).is_err());
    }
}
