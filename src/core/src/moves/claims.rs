//! What a shard's claims say about a range, and how a step changes them.

use crate::{
    keyspace::{KeyRange, Rid},
    records::{Claim, ClaimState, Claims},
};

impl Claims {
    /// The claim of one ownership.
    pub fn of(&self, rid: &Rid) -> Option<&Claim> {
        self.claims.iter().find(|c| c.rid == *rid)
    }

    /// The first claim that shares keys with `range` and is not of the ownership `rid`.
    pub fn other_on(&self, range: &KeyRange, rid: &Rid) -> Option<&Claim> {
        self.claims.iter().find(|c| c.rid != *rid && c.range.overlaps(range))
    }

    /// The claims with that of `rid` replaced, or added.
    #[must_use]
    pub fn with(&self, range: &KeyRange, rid: &Rid, state: ClaimState) -> Self {
        let mut next = self.without(rid);
        next.claims.push(Claim { range: range.clone(), rid: rid.clone(), state });
        next
    }

    /// The claims without that of `rid`.
    #[must_use]
    pub fn without(&self, rid: &Rid) -> Self {
        Self { claims: self.claims.iter().filter(|c| c.rid != *rid).cloned().collect() }
    }
}
