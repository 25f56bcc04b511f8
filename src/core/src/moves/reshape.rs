//! Splits and merges: ranges of one shard become other ranges of the same shard.
//!
//! The new fences are opened first, then the log tells everybody, then the old fences go. Between the two, writers by the
//! old and by the new map are both let through, and both write to the same shard, so no write waits. A split or merge that
//! was begun is found in the shard's claims and rolled forward by whoever finds it.

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;

use super::{MapView, Stored, ops};
use crate::{
    keyspace::{KeyRange, RangeMap, Rid, ShardIx},
    line::{Entry, Merge, Split},
    records::{
        self, Claim, ClaimState, Claims, FENCE_OPEN, MapRecord, Record, claims_key, fence_key, move_key,
    },
};

/// A split or a merge on one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reshape {
    /// Its id.
    pub id: String,
    /// What there was: one range, or two neighbours.
    pub old: Vec<(Rid, KeyRange)>,
    /// What there will be: two neighbours, or one range.
    pub new: Vec<(Rid, KeyRange)>,
}

/// The next step of a split or merge.
#[derive(Debug, Clone, PartialEq)]
pub enum ReshapeStep {
    /// On the shard: open the new fences.
    Open(pb::TxnRequest),
    /// In meta: the log's entry.
    Log(pb::TxnRequest),
    /// On the shard: the new ranges are owned, the old fences go.
    Close(pb::TxnRequest),
    /// On the shard: the old ranges are no longer there to be changed; the new fences go.
    Cancel(pb::TxnRequest),
}

impl ReshapeStep {
    /// Its name in logs and failpoints.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Open(_) => "reshape-open",
            Self::Log(_) => "reshape-log",
            Self::Close(_) => "reshape-close",
            Self::Cancel(_) => "reshape-cancel",
        }
    }
}

/// A split of the range `rid` at `at`; `None` if the map has no such range or `at` is not strictly inside.
pub fn propose_split(map: &RangeMap, rid: &Rid, at: &Bytes, id: &str) -> Option<Reshape> {
    let parent = map.by_rid(rid)?;
    let inside = parent.range.contains(at) && parent.range.start != *at;
    inside.then(|| Reshape {
        id: id.to_owned(),
        old: vec![(rid.clone(), parent.range.clone())],
        new: vec![
            (Rid::new(format!("s-{id}-l")), KeyRange::new(parent.range.start.clone(), at.clone())),
            (Rid::new(format!("s-{id}-r")), KeyRange::new(at.clone(), parent.range.end.clone())),
        ],
    })
}

/// A merge of two ranges; `None` if they are not neighbours on one shard.
pub fn propose_merge(map: &RangeMap, left: &Rid, right: &Rid, id: &str) -> Option<Reshape> {
    let (l, r) = (map.by_rid(left)?, map.by_rid(right)?);
    (l.shard == r.shard && l.range.end == r.range.start && !l.range.end.is_empty()).then(|| Reshape {
        id: id.to_owned(),
        old: vec![(left.clone(), l.range.clone()), (right.clone(), r.range.clone())],
        new: vec![(Rid::new(format!("g-{id}")), KeyRange::new(l.range.start.clone(), r.range.end.clone()))],
    })
}

/// The first split or merge that was begun on a shard and is not finished, from the shard's claims.
pub fn pending_reshape(claims: &Claims) -> Option<Reshape> {
    let id = claims.claims.iter().find_map(|c| match &c.state {
        ClaimState::Opening(id) => Some(id.clone()),
        _ => None,
    })?;
    let parts = |wanted: &dyn Fn(&Claim) -> bool| {
        let mut parts: Vec<_> =
            claims.claims.iter().filter(|c| wanted(c)).map(|c| (c.rid.clone(), c.range.clone())).collect();
        parts.sort_by(|a, b| a.1.start.cmp(&b.1.start));
        parts
    };
    let new = parts(&|c| c.state == ClaimState::Opening(id.clone()));
    let old =
        parts(&|c| c.state == ClaimState::Open && new.iter().any(|(_, range)| range.overlaps(&c.range)));
    Some(Reshape { id, old, new })
}

/// The next step; `None` if it is done, or cannot be begun now: another one is under way on the shard, or the old ranges
/// are not all open there.
///
/// `map` is the range map of `seen`, folded at least up to the newest change.
pub fn reshape_step(
    reshape: &Reshape,
    shard: ShardIx,
    map: &RangeMap,
    seen: &MapView,
    claims: &Stored<Claims>,
) -> Option<ReshapeStep> {
    let owned = |rid: &Rid| map.by_rid(rid).is_some_and(|e| e.shard == shard);
    let opening =
        |rid: &Rid| claims.value.of(rid).is_some_and(|c| c.state == ClaimState::Opening(reshape.id.clone()));
    let guard = ops::modified_at(claims_key(), claims.modified);
    let new_is_open = reshape.new.iter().all(|(rid, _)| opening(rid));
    // Once it is in the log there is no way back, and moves may have begun: one that was given up has opened its own.
    let is_logged = reshape.new.iter().any(|(rid, _)| map.by_rid(rid).is_some());
    if is_logged && reshape.new.iter().any(|(rid, _)| opening(rid)) {
        let mut next = claims.value.clone();
        for (rid, _) in &reshape.old {
            next = next.without(rid);
        }
        for (rid, range) in reshape.new.iter().filter(|(rid, _)| opening(rid)) {
            next = next.with(range, rid, ClaimState::Open);
        }
        let mut success = vec![ops::put(claims_key(), next.encode())];
        success.extend(reshape.old.iter().map(|(rid, _)| ops::delete(fence_key(rid))));
        return Some(ReshapeStep::Close(ops::txn(vec![guard], success)));
    }
    let old_is_owned = !reshape.old.is_empty() && reshape.old.iter().all(|(rid, _)| owned(rid));
    if new_is_open && old_is_owned {
        let mut compare = vec![ops::modified_at(Bytes::from_static(records::MAP), seen.modified)];
        compare.extend(reshape.old.iter().map(|(rid, _)| ops::created_at(move_key(rid), 0)));
        let success = vec![
            ops::put(
                Bytes::from_static(records::MAP),
                MapRecord { generation: seen.generation + 1 }.encode(),
            ),
            ops::put(Bytes::from_static(records::CUT_LATEST), reshape.entry()?.encode()),
        ];
        return Some(ReshapeStep::Log(ops::txn(compare, success)));
    }
    if reshape.new.iter().any(|(rid, _)| opening(rid)) {
        // The map has changed since it was begun, so its entry can no longer get into the log.
        let mut next = claims.value.clone();
        for (rid, _) in &reshape.new {
            next = next.without(rid);
        }
        let mut success = vec![ops::put(claims_key(), next.encode())];
        success.extend(reshape.new.iter().map(|(rid, _)| ops::delete(fence_key(rid))));
        return Some(ReshapeStep::Cancel(ops::txn(vec![guard], success)));
    }
    let old_is_open = reshape.old.iter().all(|(rid, range)| {
        claims.value.of(rid).is_some_and(|c| c.state == ClaimState::Open && c.range == *range)
            && claims.value.other_on(range, rid).is_none()
    });
    if !old_is_owned || !old_is_open || pending_reshape(&claims.value).is_some() {
        return None;
    }
    let mut next = claims.value.clone();
    for (rid, range) in &reshape.new {
        next = next.with(range, rid, ClaimState::Opening(reshape.id.clone()));
    }
    let mut compare = vec![guard];
    compare.extend(reshape.old.iter().map(|(rid, _)| ops::value_is(fence_key(rid), FENCE_OPEN)));
    let mut success = vec![ops::put(claims_key(), next.encode())];
    success.extend(reshape.new.iter().map(|(rid, _)| ops::put(fence_key(rid), FENCE_OPEN)));
    Some(ReshapeStep::Open(ops::txn(compare, success)))
}

impl Reshape {
    /// The log's entry; `None` if it is neither a split nor a merge.
    pub fn entry(&self) -> Option<Entry> {
        match (self.old.as_slice(), self.new.as_slice()) {
            ([(rid, _)], [(left, _), (right, range)]) => Some(Entry::Split(Split {
                rid: rid.clone(),
                at: range.start.clone(),
                left: left.clone(),
                right: right.clone(),
            })),
            ([(left, _), (right, _)], [(rid, _)]) => {
                Some(Entry::Merge(Merge { left: left.clone(), right: right.clone(), rid: rid.clone() }))
            }
            _ => None,
        }
    }
}
