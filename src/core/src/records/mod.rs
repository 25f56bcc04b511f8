//! Every record that the topology stores, in meta and in the hidden space of shards, and the names of their keys.
//!
//! Records are JSON with a format version `v`. A newer version is refused by name, never guessed at. The layout is
//! the table "what is stored where" in docs/consistency.md.

mod hidden;
mod load;
mod meta;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use hidden::{
    Claim, ClaimState, Claims, Cursor, CursorStage, FENCE_OPEN, Override, claims_key, cursor_key,
    fence_closed_by, fence_key, lease_floor_key, lease_id_of_marker, lease_live, lease_marker_key,
    lease_marker_range, lease_revoking, overridden_key, override_key, override_range, purge_key, touch_key,
};
pub use load::{
    KeyLoad, LOAD_PREFIX, LoadRecord, MEMORY, MemoryRecord, RangeAborted, RangeLoad, RangePeak, RangeRest,
    load_key,
};
pub use meta::{
    CHECKPOINT_HEAD, CHECKPOINTS_PREFIX, CUT_LATEST, CheckpointHead, FIRST, FirstRecord, LEASE_PREFIX,
    LeaseRecord, LeaseState, MANAGER_LEADER, MAP, MOVES_PREFIX, MapRecord, MovePhase, MoveRecord,
    PROXIES_PREFIX, ProxyRecord, TOPOLOGY_ID, TopologyId, checkpoint_chunk, checkpoint_prefix,
    lease_alive_key, lease_id_of_key, lease_key, lease_shadow_key, lease_shadow_prefix, move_key, proxy_key,
};

/// The format version of all records that this program writes.
pub const FORMAT: u32 = 1;

/// Why a stored record cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Written by a newer release.
    #[error(
        "{what} has format version {found}, this release reads up to {FORMAT}: use the release that wrote it, or a newer one"
    )]
    Newer {
        /// Which record.
        what: &'static str,
        /// Its version.
        found: u32,
    },
    /// Not a record of ours.
    #[error("{what} is not readable: {reason}")]
    Unreadable {
        /// Which record.
        what: &'static str,
        /// What the decoder said.
        reason: String,
    },
}

#[derive(Serialize)]
struct Out<'a, T> {
    v: u32,
    #[serde(flatten)]
    body: &'a T,
}

#[derive(Deserialize)]
struct Version {
    v: u32,
}

/// A record that is stored with a format version.
pub trait Record: Serialize + DeserializeOwned {
    /// What it is called in errors.
    const WHAT: &'static str;

    /// The bytes to store.
    fn encode(&self) -> bytes::Bytes {
        // Our records are plain structs with string keys: serialising them to memory has no way to fail.
        serde_json::to_vec(&Out { v: FORMAT, body: self }).expect("records serialise").into()
    }

    /// The record from stored bytes.
    ///
    /// # Errors
    /// If the bytes are no such record, or one of a newer format.
    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let unreadable =
            |e: serde_json::Error| RecordError::Unreadable { what: Self::WHAT, reason: e.to_string() };
        let Version { v } = serde_json::from_slice(bytes).map_err(unreadable)?;
        if v > FORMAT {
            return Err(RecordError::Newer { what: Self::WHAT, found: v });
        }
        serde_json::from_slice(bytes).map_err(unreadable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_round_trip_and_refuse_newer_formats() {
        let record = TopologyId { uid: "u".into(), cluster_id: u64::MAX };
        let bytes = record.encode();
        assert_eq!(TopologyId::decode(&bytes).unwrap(), record);
        let newer = String::from_utf8(bytes.to_vec()).unwrap().replace("\"v\":1", "\"v\":2");
        assert_eq!(
            TopologyId::decode(newer.as_bytes()),
            Err(RecordError::Newer { what: TopologyId::WHAT, found: 2 })
        );
        assert!(matches!(TopologyId::decode(b"open"), Err(RecordError::Unreadable { .. })));
    }
}
