//! The state computed from the log.

use std::{collections::VecDeque, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Entry, Flip, Join, Segment, Segments};
use crate::{
    keyspace::{MapError, RangeMap, ShardIx},
    records::Record,
    sabotage::Sabotage,
};

/// Why an entry cannot be folded. The log is damaged, or written by a program that does not keep the protocol: nothing
/// may be served from here on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    /// The first entry is not the init, or a second init came.
    #[error("entry at position {0} is out of place: an init must be the first entry and only that")]
    Init(i64),
    /// An entry names a shard that never joined.
    #[error("entry at position {position} names shard number {shard}, which never joined")]
    NoSuchShard {
        /// Log position.
        position: i64,
        /// Join number.
        shard: u32,
    },
    /// A map change that does not fit the map.
    #[error("entry at position {position} does not fit the range map")]
    Map {
        /// Log position.
        position: i64,
        /// Why not.
        source: MapError,
    },
    /// A shard that still owns ranges leaves.
    #[error("entry at position {position} removes shard {shard}, which still owns ranges")]
    LeaveWithRanges {
        /// Log position.
        position: i64,
        /// Its name.
        shard: String,
    },
}

/// A shard that is, or was, part of the line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// Name (`shard-0`).
    pub name: String,
    /// Incarnation.
    pub incarnation: u32,
    /// The etcd cluster id that its answers carry.
    pub etcd_cluster_id: u64,
    /// Local revision at the join.
    pub l0: i64,
    /// Revision of the line when it joined.
    pub joined_at: i64,
    /// Highest local revision that is part of the line.
    pub v: i64,
    /// It left: owns nothing, is asked nothing, is in no cut any more.
    pub left: bool,
    /// Revision of the last flip that took a range away from it; its history up to there is still read there.
    pub last_flip_away: i64,
    /// Local revisions ↔ numbers.
    pub segments: Segments,
}

/// Some consecutive revisions of the line that one shard wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The shard.
    pub shard: ShardIx,
    /// Its local revisions and their numbers.
    pub segment: Segment,
}

/// The state computed from the log up to a position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fold {
    /// Log position: the meta revision of the last entry folded.
    pub position: i64,
    /// How many entries were folded: `version` of `cut/latest` at the position, so the next entry is known as the next.
    pub entries: i64,
    /// The cluster id that clients see.
    pub cluster_id: u64,
    /// The last number of the line given out.
    pub revision: i64,
    /// Revisions below are compacted.
    pub compacted: i64,
    shards: Vec<Joined>,
    /// The range maps, each with the first revision that it holds for; ascending, the last one is current.
    #[serde(with = "shared_maps")]
    maps: VecDeque<(i64, Arc<RangeMap>)>,
}

/// Serde for maps that are shared in memory and owned in a checkpoint.
mod shared_maps {
    use std::{collections::VecDeque, sync::Arc};

    use serde::{Deserialize, Deserializer, Serializer};

    use crate::keyspace::RangeMap;

    pub(super) fn serialize<S: Serializer>(
        maps: &VecDeque<(i64, Arc<RangeMap>)>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(maps.iter().map(|(since, map)| (since, map.as_ref())))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<VecDeque<(i64, Arc<RangeMap>)>, D::Error> {
        let maps = Vec::<(i64, RangeMap)>::deserialize(deserializer)?;
        Ok(maps.into_iter().map(|(since, map)| (since, Arc::new(map))).collect())
    }
}

impl Record for Fold {
    const WHAT: &'static str = "a checkpoint of the fold";
}

impl Fold {
    /// The fold of the log's first entry.
    ///
    /// # Errors
    /// If it is no init, or its ranges do not tile the keyspace or name other shards.
    pub fn start(position: i64, entry: &Entry) -> Result<Self, FoldError> {
        let Entry::Init(init) = entry else { return Err(FoldError::Init(position)) };
        let map =
            RangeMap::new(1, init.ranges.clone()).map_err(|source| FoldError::Map { position, source })?;
        if let Some(e) = map.entries().iter().find(|e| e.shard.index() >= init.joins.len()) {
            return Err(FoldError::NoSuchShard { position, shard: e.shard.0 });
        }
        // As an empty etcd is at revision 1, so is the line.
        let revision = 1;
        Ok(Self {
            position,
            entries: 1,
            cluster_id: init.cluster_id,
            revision,
            compacted: 0,
            shards: init.joins.iter().map(|join| Joined::new(join, revision)).collect(),
            maps: VecDeque::from([(0, Arc::new(map))]),
        })
    }

    /// Folds the next entry. Nothing is changed if it fails.
    ///
    /// # Errors
    /// See [`FoldError`].
    pub fn apply(&mut self, position: i64, entry: &Entry) -> Result<(), FoldError> {
        match entry {
            Entry::Init(_) => return Err(FoldError::Init(position)),
            Entry::Adv(vector) => {
                for &(shard, _) in vector {
                    self.check(position, shard)?;
                }
                self.advance(vector);
            }
            Entry::Flip(flip) => self.flip(position, flip)?,
            Entry::Split(s) => {
                let map = self.map().split(&s.rid, &s.at, s.left.clone(), s.right.clone());
                self.replace_map(position, map)?;
            }
            Entry::Merge(m) => {
                let map = self.map().merged(&m.left, &m.right, m.rid.clone());
                self.replace_map(position, map)?;
            }
            Entry::Compact(revision) => self.compact(*revision),
            Entry::Join(join) => self.join(join),
            Entry::Leave(shard) => {
                self.check(position, *shard)?;
                let name = self.shards[shard.index()].name.clone();
                if self.map().owns_any(*shard) {
                    return Err(FoldError::LeaveWithRanges { position, shard: name });
                }
                self.shards[shard.index()].left = true;
            }
        }
        self.position = position;
        self.entries += 1;
        Ok(())
    }

    /// The current range map.
    pub fn map(&self) -> &Arc<RangeMap> {
        // There is always a last map: `start` puts one in and nothing removes the last.
        &self.maps[self.maps.len() - 1].1
    }

    /// The range map that held at a revision not compacted; also the owner of what was written there.
    pub fn map_at(&self, revision: i64) -> &Arc<RangeMap> {
        let i = self.maps.partition_point(|(from, _)| *from <= revision);
        &self.maps[i.saturating_sub(1)].1
    }

    /// All range maps that held somewhere in `[from, upto]`, with the first revision that each holds for.
    pub fn maps_between(&self, from: i64, upto: i64) -> impl Iterator<Item = &(i64, Arc<RangeMap>)> {
        let i = self.maps.partition_point(|(since, _)| *since <= from).saturating_sub(1);
        self.maps.iter().skip(i).take_while(move |(since, _)| *since <= upto)
    }

    /// All shards in join order.
    pub fn shards(&self) -> &[Joined] {
        &self.shards
    }

    /// One shard.
    pub fn shard(&self, shard: ShardIx) -> Option<&Joined> {
        self.shards.get(shard.index())
    }

    /// The join number of the shard of that name that has not left.
    pub fn shard_named(&self, name: &str) -> Option<ShardIx> {
        self.shards.iter().position(|s| s.name == name && !s.left).map(|i| ShardIx(i as u32))
    }

    /// The highest local revision of each shard that is part of the line, in join order.
    pub fn vector(&self) -> Vec<i64> {
        self.shards.iter().map(|s| s.v).collect()
    }

    /// The revision of a shard's local revision; `None` above its `v`, or if it is condensed away.
    ///
    /// Local revisions at or below the join have the revision of the join: no client's key is that old.
    pub fn global(&self, shard: ShardIx, local: i64) -> Option<i64> {
        let s = self.shard(shard)?;
        if local <= s.l0 { Some(s.joined_at) } else { s.segments.global(local) }
    }

    /// The highest local revision of a shard whose number is at most `revision`: where to read it for that revision.
    pub fn local_at_most(&self, shard: ShardIx, revision: i64) -> Option<i64> {
        let s = self.shard(shard)?;
        Some(s.segments.local_at_most(revision).unwrap_or(s.l0))
    }

    /// The lowest local revision of a shard whose number is at least `revision`; `None` if there is none yet.
    pub fn local_at_least(&self, shard: ShardIx, revision: i64) -> Option<i64> {
        self.shard(shard)?.segments.local_at_least(revision)
    }

    /// The shard and local revision that have this very number; `None` for a flip's own number, and beyond the line.
    pub fn local_of(&self, revision: i64) -> Option<(ShardIx, i64)> {
        self.shards.iter().enumerate().find_map(|(i, s)| {
            let local = s.segments.local_at_most(revision)?;
            (s.segments.global(local) == Some(revision)).then_some((ShardIx(i as u32), local))
        })
    }

    /// The newest revision at which a shard was as it is after its local revision `local`, which is part of the line. `None`
    /// if that is compacted: then some of what was there may have no number any more.
    pub fn seen_until(&self, shard: ShardIx, local: i64) -> Option<i64> {
        let last = self.shard(shard).is_some_and(|s| local >= s.v);
        let until = if last { self.revision } else { self.global(shard, local + 1)? - 1 };
        (until >= self.compacted).then_some(until)
    }

    /// Who wrote the revisions in `(after, upto]`, in their order. Numbers of flips are in no piece.
    pub fn pieces(&self, after: i64, upto: i64) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = self
            .shards
            .iter()
            .enumerate()
            .flat_map(|(i, s)| {
                let shard = ShardIx(i as u32);
                s.segments.between(after, upto).map(move |segment| Piece { shard, segment })
            })
            .collect();
        pieces.sort_unstable_by_key(|p| p.segment.global);
        pieces
    }

    /// Number of segments over all shards: what the mapping costs.
    pub fn segment_count(&self) -> usize {
        self.shards.iter().map(|s| s.segments.len()).sum()
    }

    /// Drops the segments of compacted history that no live key needs.
    ///
    /// `needed` has for each shard the local create and mod revisions, ascending, of all keys that were alive at the
    /// compaction revision or later.
    pub fn condense(&mut self, needed: &[Vec<i64>]) {
        let compacted = self.compacted;
        for (i, s) in self.shards.iter_mut().enumerate() {
            let floor = s.segments.local_at_most(compacted - 1).unwrap_or(s.l0);
            let needed = if Sabotage::CondenseTooMuch.is_on() { &[] } else { needed };
            s.segments.condense(floor, needed.get(i).map_or(&[], Vec::as_slice));
        }
    }

    /// Takes the segments of an older checkpoint of the same line, which may be condensed, instead of its own up to there.
    /// Returns how many segments that saved; nothing is changed if it saves none, or if the checkpoint is newer.
    pub fn adopt(&mut self, checkpoint: &Self) -> usize {
        let same = self.cluster_id == checkpoint.cluster_id && self.shards.len() >= checkpoint.shards.len();
        if !same || checkpoint.position > self.position {
            return 0;
        }
        let before = self.segment_count();
        let mut shards = self.shards.clone();
        for (own, other) in shards.iter_mut().zip(&checkpoint.shards) {
            own.segments.adopt(&other.segments, other.v);
        }
        let after = shards.iter().map(|s| s.segments.len()).sum();
        if after < before {
            self.shards = shards;
        }
        before.saturating_sub(after)
    }

    fn check(&self, position: i64, shard: ShardIx) -> Result<(), FoldError> {
        if shard.index() < self.shards.len() {
            Ok(())
        } else {
            Err(FoldError::NoSuchShard { position, shard: shard.0 })
        }
    }

    fn advance(&mut self, vector: &[(ShardIx, i64)]) {
        let mut ordered = vector.to_vec();
        ordered.sort_unstable();
        for (shard, v) in ordered {
            let s = &mut self.shards[shard.index()];
            if v > s.v {
                let count = v - s.v;
                s.segments.push(Segment { local: s.v + 1, global: self.revision + 1, count });
                s.v = v;
                self.revision += count;
            }
        }
    }

    fn flip(&mut self, position: i64, flip: &Flip) -> Result<(), FoldError> {
        self.check(position, flip.from)?;
        self.check(position, flip.to)?;
        let vector = [(flip.from, flip.from_local), (flip.to, flip.to_local)];
        let rise: i64 = vector.iter().map(|&(s, l)| (l - self.shards[s.index()].v).max(0)).sum();
        let at = self.revision + rise + 1;
        let map = self
            .map()
            .flipped(&flip.rid, flip.new_rid.clone(), flip.to, at)
            .map_err(|source| FoldError::Map { position, source })?;
        self.advance(&vector);
        self.revision = at;
        self.shards[flip.from.index()].last_flip_away = at;
        self.maps.push_back((at, Arc::new(map)));
        Ok(())
    }

    /// A change that leaves every key with its owner: it holds for the past too, where only owners count.
    fn replace_map(&mut self, position: i64, map: Result<RangeMap, MapError>) -> Result<(), FoldError> {
        let map = map.map_err(|source| FoldError::Map { position, source })?;
        if let Some(last) = self.maps.back_mut() {
            last.1 = Arc::new(map);
        }
        Ok(())
    }

    fn compact(&mut self, revision: i64) {
        if revision <= self.compacted || revision > self.revision {
            return; // late or repeated, or of nobody who keeps the protocol
        }
        self.compacted = revision;
        while self.maps.len() > 1 && self.maps[1].0 <= revision {
            self.maps.pop_front();
        }
    }

    fn join(&mut self, join: &Join) {
        let known = |s: &Joined| s.name == join.shard && s.etcd_cluster_id == join.etcd_cluster_id;
        if !self.shards.iter().any(known) {
            self.shards.push(Joined::new(join, self.revision));
        }
    }
}

impl Joined {
    fn new(join: &Join, revision: i64) -> Self {
        Self {
            name: join.shard.clone(),
            incarnation: join.incarnation,
            etcd_cluster_id: join.etcd_cluster_id,
            l0: join.l0,
            joined_at: revision,
            v: join.l0,
            left: false,
            last_flip_away: 0,
            segments: Segments::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        keyspace::{KeyRange, RangeEntry, Rid},
        line::{Init, Split},
    };

    fn join(name: &str, l0: i64) -> Join {
        Join { shard: name.into(), incarnation: 0, l0, etcd_cluster_id: name.len() as u64 }
    }

    fn start() -> Fold {
        let range = |s: &'static str, e: &'static str, rid: &str, ix| RangeEntry {
            range: KeyRange::new(s, e),
            rid: Rid::new(rid),
            shard: ShardIx(ix),
            imported_at: 0,
        };
        let init = Init {
            cluster_id: 7,
            joins: vec![join("shard-0", 2), join("shard-1", 2)],
            ranges: vec![range("", "m", "b-0", 0), range("m", "", "b-1", 1)],
        };
        Fold::start(10, &Entry::Init(init)).unwrap()
    }

    fn adv(v: &[(u32, i64)]) -> Entry {
        Entry::Adv(v.iter().map(|&(s, l)| (ShardIx(s), l)).collect())
    }

    #[test]
    fn cuts_give_consecutive_numbers_in_join_order() {
        let mut f = start();
        assert_eq!(f.revision, 1);
        f.apply(11, &adv(&[(1, 3), (0, 4)])).unwrap();
        assert_eq!(f.revision, 4);
        assert_eq!(
            [(0, 3), (0, 4), (1, 3)].map(|(s, l)| f.global(ShardIx(s), l)),
            [Some(2), Some(3), Some(4)]
        );
        // Late, repeated and stale components change nothing.
        f.apply(12, &adv(&[(1, 3), (0, 3)])).unwrap();
        assert_eq!((f.revision, f.position, f.entries), (4, 12, 3));
        assert_eq!(f.local_of(4), Some((ShardIx(1), 3)));
        assert_eq!(f.local_at_most(ShardIx(0), 4), Some(4));
        assert_eq!(
            f.local_at_most(ShardIx(0), 1),
            Some(2),
            "before its first number a shard is read at its join"
        );
    }

    #[test]
    fn a_flip_takes_a_number_and_changes_the_owner_from_there_on() {
        let mut f = start();
        f.apply(11, &adv(&[(0, 5)])).unwrap();
        let flip = Flip {
            id: "m1".into(),
            range: KeyRange::new("", "m"),
            rid: Rid::new("b-0"),
            new_rid: Rid::new("m1"),
            from: ShardIx(0),
            to: ShardIx(1),
            from_local: 6,
            to_local: 9,
        };
        f.apply(12, &Entry::Flip(flip.clone())).unwrap();
        // 2..=4 shard 0, then 5 is its close, 6..=12 the import, 13 the flip itself.
        assert_eq!(f.revision, 13);
        assert_eq!(f.map_at(12).owner(b"a").shard, ShardIx(0));
        assert_eq!(f.map_at(13).owner(b"a").shard, ShardIx(1));
        assert_eq!(f.map().owner(b"a").imported_at, 13);
        assert_eq!(f.local_of(13), None);
        assert_eq!(f.pieces(4, 13).len(), 2);
        assert_eq!(f.shard(ShardIx(0)).unwrap().last_flip_away, 13);
        assert!(matches!(f.apply(13, &Entry::Flip(flip)), Err(FoldError::Map { .. })));
        assert_eq!(f.revision, 13, "a failed entry changes nothing");
        f.apply(14, &Entry::Compact(13)).unwrap();
        assert_eq!(f.map_at(13).owner(b"a").shard, ShardIx(1));
        f.apply(15, &Entry::Leave(ShardIx(0))).unwrap();
        assert_eq!(f.shard_named("shard-0"), None);
    }

    #[test]
    fn splits_take_no_number_and_hold_for_the_past() {
        let mut f = start();
        let split = Split {
            rid: Rid::new("b-0"),
            at: Bytes::from_static(b"c"),
            left: Rid::new("l"),
            right: Rid::new("r"),
        };
        f.apply(11, &Entry::Split(split)).unwrap();
        assert_eq!((f.revision, f.map().entries().len()), (1, 3));
        assert!(matches!(f.apply(12, &Entry::Leave(ShardIx(1))), Err(FoldError::LeaveWithRanges { .. })));
    }

    #[test]
    fn joins_are_idempotent_and_compaction_is_bounded_by_the_line() {
        let mut f = start();
        f.apply(11, &Entry::Join(join("shard-22", 3))).unwrap();
        f.apply(12, &Entry::Join(join("shard-22", 8))).unwrap();
        assert_eq!(f.shards().len(), 3);
        assert_eq!(f.shard(ShardIx(2)).unwrap().v, 3);
        f.apply(13, &Entry::Compact(99)).unwrap();
        assert_eq!(f.compacted, 0);
        assert!(f.apply(14, &adv(&[(3, 1)])).is_err());
    }

    /// An answer may come so late that what it saw is compacted, and the numbers of what came next are gone: then it is not
    /// of now.
    #[test]
    fn what_a_shard_showed_is_true_until_its_next_change_or_compacted() {
        let mut f = start();
        for local in 3..8 {
            f.apply(8 + 2 * local, &adv(&[(0, local)])).unwrap();
            f.apply(9 + 2 * local, &adv(&[(1, local)])).unwrap();
        }
        // Shard 0 has the even numbers from 2 on, shard 1 the odd ones.
        let until = |f: &Fold| (2..8).map(|local| f.seen_until(ShardIx(0), local)).collect::<Vec<_>>();
        assert_eq!(f.revision, 11);
        assert_eq!(until(&f), [1, 3, 5, 7, 9, 11].map(Some));
        f.apply(40, &Entry::Compact(7)).unwrap();
        assert_eq!(until(&f), [None, None, None, Some(7), Some(9), Some(11)]);
        f.condense(&[]);
        assert_eq!(f.global(ShardIx(0), 3), None);
        assert_eq!(until(&f), [None, None, None, Some(7), Some(9), Some(11)]);
    }

    #[test]
    fn checkpoints_round_trip() {
        let mut f = start();
        f.apply(11, &adv(&[(1, 3), (0, 4)])).unwrap();
        assert_eq!(Fold::decode(&f.encode()).unwrap(), f);
    }
}
