//! Records in the hidden space of a shard, above [`RESERVED`].

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Record;
use crate::keyspace::{KeyRange, RESERVED, Rid};

/// Value of the fence of an ownership that takes writes.
pub const FENCE_OPEN: &[u8] = b"open";

fn hidden(kind: &[u8], id: &[u8]) -> Bytes {
    let mut key = Vec::with_capacity(RESERVED.len() + kind.len() + id.len());
    key.extend_from_slice(RESERVED);
    key.extend_from_slice(kind);
    key.extend_from_slice(id);
    key.into()
}

/// Value of a fence that a move or a split closed.
pub fn fence_closed_by(id: &str) -> Bytes {
    format!("closed by {id}").into()
}

/// The fence of an ownership: every proxied write compares it.
pub fn fence_key(rid: &Rid) -> Bytes {
    hidden(b"F/", rid.as_str().as_bytes())
}

/// The shard's claims: what it owns, imports and purges.
pub fn claims_key() -> Bytes {
    hidden(b"C", b"")
}

/// The marker of a lease on this shard, see [`lease_live`] and [`lease_revoking`].
pub fn lease_marker_key(id: i64) -> Bytes {
    hidden(b"L/", format!("{id:016x}").as_bytes())
}

/// All lease markers of a shard.
pub fn lease_marker_range() -> KeyRange {
    KeyRange::prefix(&hidden(b"L/", b""))
}

/// The lease id that a marker's key belongs to.
pub fn lease_id_of_marker(key: &[u8]) -> Option<i64> {
    let id = key.strip_prefix(hidden(b"L/", b"").as_ref())?;
    let id = std::str::from_utf8(id).ok().filter(|id| id.len() == 16)?;
    u64::from_str_radix(id, 16).ok().map(|id| id as i64)
}

/// The floor of a shard's lease markers: rewritten whenever markers of ended leases are removed. A first attach compares
/// its mod revision, so that one which was held up on its way cannot bring a removed marker back.
pub fn lease_floor_key() -> Bytes {
    hidden(b"L", b"")
}

/// Value of the marker of a lease that keys may be attached to.
pub fn lease_live(epoch: i64) -> Bytes {
    format!("live@{epoch}").into()
}

/// Value of the marker of a lease that is being revoked.
pub fn lease_revoking(epoch: i64) -> Bytes {
    format!("revoking@{epoch}").into()
}

/// The cursor of a move on its destination.
pub fn cursor_key(move_id: &str) -> Bytes {
    hidden(b"M/", move_id.as_bytes())
}

/// The guard of a purge.
pub fn purge_key(rid: &Rid) -> Bytes {
    hidden(b"P/", rid.as_str().as_bytes())
}

/// Written while the shard is over the quota of clients, so that it commits: etcd counts what a commit freed only from the
/// next one on.
pub fn touch_key() -> Bytes {
    hidden(b"T", b"")
}

/// The override of an imported key.
pub fn override_key(key: &[u8]) -> Bytes {
    hidden(b"O/", key)
}

/// The overrides of all keys of a range.
pub fn override_range(range: &KeyRange) -> KeyRange {
    let end = if range.end.is_empty() { hidden(b"O0", b"") } else { override_key(&range.end) };
    KeyRange { start: override_key(&range.start), end }
}

/// The client's key that an override's key belongs to.
pub fn overridden_key(key: &Bytes) -> Option<Bytes> {
    let prefix = RESERVED.len() + 2;
    (key.len() >= prefix && key.starts_with(RESERVED) && &key[RESERVED.len()..prefix] == b"O/")
        .then(|| key.slice(prefix..))
}

/// What clients know of an imported key, as its own etcd metadata is that of the import.
///
/// Valid for a pair (kv, O) of one revision if `kv.create == O.create` (etcd's metadata of both): the client's create
/// revision is `create`; its mod revision is `mod` if also `kv.mod == O.mod`; its version is
/// `version + kv.version - O.version` (protocol: overrides).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Override {
    /// Create revision, on the line.
    pub create: i64,
    /// Mod revision at the import, on the line.
    pub modified: i64,
    /// Version at the import.
    pub version: i64,
}

impl Override {
    /// The stored form: three little-endian 64-bit numbers behind a format byte; there is one for each moved key.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(25);
        out.push(1);
        for number in [self.create, self.modified, self.version] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.into()
    }

    /// The override from its stored form; `None` if it is none, or one of a newer format.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let numbers: &[u8; 24] = bytes.strip_prefix(&[1])?.try_into().ok()?;
        let at = |i: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&numbers[i * 8..i * 8 + 8]);
            i64::from_le_bytes(eight)
        };
        Some(Self { create: at(0), modified: at(1), version: at(2) })
    }
}

/// What a shard says that it owns; guarded by its mod revision in every Txn that opens, closes, seals, voids or purges.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// In no order.
    pub claims: Vec<Claim>,
}

impl Record for Claims {
    const WHAT: &'static str = "the claims of a shard";
}

/// One claim of a shard on a range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The keys.
    pub range: KeyRange,
    /// The ownership; of an import, the one that it is going to be.
    pub rid: Rid,
    /// What is going on with it.
    pub state: ClaimState,
}

/// State of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClaimState {
    /// Owned, takes writes.
    Open,
    /// Made by this split or merge: its fence is open, and it is owned once the log has the change.
    Opening(String),
    /// Owned, closed by this move.
    Closed(String),
    /// Being filled by this move.
    Importing(String),
    /// No longer owned; data under deletion.
    Purging,
}

/// How far a move has filled its destination; written in the Txn of the data that it speaks of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Local revision of the source at which the copy reads.
    pub copy_at: i64,
    /// Where the move is.
    pub stage: CursorStage,
}

impl Record for Cursor {
    const WHAT: &'static str = "the cursor of a move";
}

/// Stage of a cursor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CursorStage {
    /// Keys below `next` are copied.
    Copy {
        /// The first key not copied yet.
        #[serde(with = "crate::keyspace::hex")]
        next: Bytes,
    },
    /// All events of the source before (`revision`, `sub`) are applied: all of the revisions below, and the first
    /// `sub` events of `revision` itself.
    Tail {
        /// Local revision of the source.
        revision: i64,
        /// Events of that revision that are applied.
        sub: u64,
    },
    /// The destination is complete up to local revision `revision` of the source; the new fence is open.
    Sealed {
        /// Local revision of the source at which its fence was closed.
        revision: i64,
    },
    /// The move was aborted; late imports no longer match.
    Void,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn override_keys_keep_order_and_map_back() {
        let range = KeyRange::new("a", "c");
        let overrides = override_range(&range);
        assert!(overrides.contains(&override_key(b"b")));
        assert!(!overrides.contains(&override_key(b"c")));
        assert!(override_range(&KeyRange::whole()).contains(&override_key(b"\xff\xff")));
        assert!(!override_range(&KeyRange::whole()).contains(&purge_key(&Rid::new("x"))));
        assert_eq!(overridden_key(&override_key(b"b")).as_deref(), Some(b"b".as_ref()));
        assert_eq!(overridden_key(&claims_key()), None);
    }

    #[test]
    fn lease_markers_map_back() {
        for id in [1, i64::MAX, -5] {
            assert!(lease_marker_range().contains(&lease_marker_key(id)));
            assert_eq!(lease_id_of_marker(&lease_marker_key(id)), Some(id));
        }
        assert!(!lease_marker_range().contains(&lease_floor_key()));
        assert_eq!(lease_id_of_marker(&lease_floor_key()), None);
    }

    #[test]
    fn overrides_round_trip() {
        let o = Override { create: 7, modified: i64::MAX, version: 3 };
        assert_eq!(Override::decode(&o.encode()), Some(o));
        assert_eq!(Override::decode(b"\x02"), None);
    }

    #[test]
    fn cursors_round_trip() {
        for stage in [
            CursorStage::Copy { next: Bytes::from_static(b"\xffx") },
            CursorStage::Tail { revision: 4, sub: 2 },
            CursorStage::Sealed { revision: 9 },
            CursorStage::Void,
        ] {
            let cursor = Cursor { copy_at: 5, stage };
            assert_eq!(Cursor::decode(&cursor.encode()).unwrap(), cursor);
        }
    }
}
