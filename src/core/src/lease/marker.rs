//! The marker of a lease on a shard.

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;

use crate::records::{lease_live, lease_revoking};

/// Value of `L/<id>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    /// Keys may be attached to the lease of this epoch.
    Live(i64),
    /// The lease of this epoch is being revoked, or has ended.
    Revoking(i64),
}

impl Marker {
    /// The marker from its stored value; `None` if it is none of ours.
    pub fn decode(value: &[u8]) -> Option<Self> {
        let (kind, epoch) = std::str::from_utf8(value).ok()?.split_once('@')?;
        let epoch = epoch.parse().ok()?;
        match kind {
            "live" => Some(Self::Live(epoch)),
            "revoking" => Some(Self::Revoking(epoch)),
            _ => None,
        }
    }

    /// The stored value.
    pub fn encode(self) -> Bytes {
        match self {
            Self::Live(epoch) => lease_live(epoch),
            Self::Revoking(epoch) => lease_revoking(epoch),
        }
    }

    /// The lease's epoch.
    pub fn epoch(self) -> i64 {
        match self {
            Self::Live(epoch) | Self::Revoking(epoch) => epoch,
        }
    }
}

/// What a marker is put over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// No marker.
    Nothing,
    /// Exactly this marker.
    Marker(Marker),
    /// Whatever had this mod revision.
    Revision(i64),
}

/// Marker and floor of a shard as they were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkerView {
    /// The marker, if there is a readable one.
    pub marker: Option<Marker>,
    /// Mod revision of the marker, 0 for none.
    pub modified: i64,
    /// Mod revision of the floor, 0 for none.
    pub floor: i64,
}

impl MarkerView {
    /// From the answer to [`super::read_marker_txn`], or to a [`super::marker_txn`] that did not match.
    pub fn from_answer(answer: &pb::TxnResponse) -> Self {
        let kv = |i: usize| match answer.responses.get(i).and_then(|op| op.response.as_ref()) {
            Some(pb::Response::ResponseRange(range)) => range.kvs.first(),
            _ => None,
        };
        Self {
            marker: kv(0).and_then(|kv| Marker::decode(&kv.value)),
            modified: kv(0).map_or(0, |kv| kv.mod_revision),
            floor: kv(1).map_or(0, |kv| kv.mod_revision),
        }
    }
}

/// What to do about the marker that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MarkerStep {
    /// It is as wanted.
    Done,
    /// Put the wanted marker if this one is unchanged.
    Replace,
    /// The lease of this epoch has moved on: look at its record again.
    Outdated,
}

/// An attach of `epoch` found `found` on the shard, after it had registered in meta.
///
/// Epochs are revisions of meta and leases of one id follow each other, so an older epoch has ended.
pub fn after_live(found: Option<Marker>, epoch: i64) -> MarkerStep {
    match found {
        None => MarkerStep::Replace,
        Some(Marker::Live(e)) if e == epoch => MarkerStep::Done,
        Some(marker) if marker.epoch() < epoch => MarkerStep::Replace,
        Some(_) => MarkerStep::Outdated,
    }
}

/// A revocation of `epoch` found `found` on the shard.
pub fn after_revoking(found: Option<Marker>, epoch: i64) -> MarkerStep {
    match found {
        Some(Marker::Revoking(e)) if e == epoch => MarkerStep::Done,
        Some(marker) if marker.epoch() > epoch => MarkerStep::Outdated,
        _ => MarkerStep::Replace,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_round_trip() {
        for marker in [Marker::Live(7), Marker::Revoking(i64::MAX)] {
            assert_eq!(Marker::decode(&marker.encode()), Some(marker));
        }
        for bad in ["", "live", "live@", "live@x", "dead@7"] {
            assert_eq!(Marker::decode(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_marker_never_goes_back() {
        use MarkerStep::{Done, Outdated, Replace};
        let attach = |found| after_live(found, 7);
        assert_eq!(attach(None), Replace);
        assert_eq!(attach(Some(Marker::Live(7))), Done);
        assert_eq!(attach(Some(Marker::Revoking(7))), Outdated, "nothing attaches after a revoke");
        assert_eq!(attach(Some(Marker::Live(6))), Replace);
        assert_eq!(attach(Some(Marker::Revoking(6))), Replace);
        assert_eq!(attach(Some(Marker::Live(8))), Outdated);
        let revoke = |found| after_revoking(found, 7);
        assert_eq!(revoke(None), Replace, "also where there is no shadow yet");
        assert_eq!(revoke(Some(Marker::Live(7))), Replace);
        assert_eq!(revoke(Some(Marker::Revoking(7))), Done);
        assert_eq!(revoke(Some(Marker::Live(8))), Outdated, "a late revoke does not hit the next lease");
        assert_eq!(revoke(Some(Marker::Revoking(8))), Outdated);
    }
}
