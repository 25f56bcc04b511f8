//! The entries of the log.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    keyspace::{KeyRange, RangeEntry, Rid, ShardIx, hex},
    records::Record,
};

/// One entry of the log. Entries only claim durable facts: any order is safe, a late or repeated one changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Entry {
    /// The first entry: identity, first shards and ranges.
    Init(Init),
    /// Shards' local revisions up to these are part of the line (componentwise maximum), in join order.
    Adv(Vec<(ShardIx, i64)>),
    /// A range changes its owner; takes one number of the line.
    Flip(Flip),
    /// One range becomes two.
    Split(Split),
    /// Two neighbours become one.
    Merge(Merge),
    /// History below this revision is compacted.
    Compact(i64),
    /// A shard becomes part of the line.
    Join(Join),
    /// A shard without ranges leaves.
    Leave(ShardIx),
}

impl Record for LogRecord {
    const WHAT: &'static str = "an entry of the log (cut/latest)";
}

/// The stored form of an [`Entry`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LogRecord {
    pub(super) e: Entry,
}

impl Entry {
    /// The bytes to store under `cut/latest`.
    pub fn encode(&self) -> Bytes {
        LogRecord { e: self.clone() }.encode()
    }

    /// The entry from stored bytes.
    ///
    /// # Errors
    /// If the bytes are no entry, or one of a newer format.
    pub fn decode(bytes: &[u8]) -> Result<Self, crate::records::RecordError> {
        LogRecord::decode(bytes).map(|record| record.e)
    }
}

/// See [`Entry::Init`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    /// The cluster id that clients see.
    pub cluster_id: u64,
    /// The first shards; their join numbers are their places here.
    pub joins: Vec<Join>,
    /// The first ranges.
    pub ranges: Vec<RangeEntry>,
}

/// See [`Entry::Join`]. Joining a (shard, etcd cluster id) that is in already changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// The shard's name (`shard-3`).
    pub shard: String,
    /// Its incarnation, from 0.
    pub incarnation: u32,
    /// Its local revision at the join; nothing at or below it is of the line. At least 1: component 0 would read
    /// "current" on etcd.
    pub l0: i64,
    /// The etcd cluster id that every answer of it must carry.
    pub etcd_cluster_id: u64,
}

/// See [`Entry::Flip`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flip {
    /// Id of the move.
    pub id: String,
    /// The keys.
    pub range: KeyRange,
    /// The ownership that ends.
    pub rid: Rid,
    /// The ownership that begins.
    pub new_rid: Rid,
    /// Source.
    pub from: ShardIx,
    /// Destination.
    pub to: ShardIx,
    /// Local revision of the source at which its fence was closed; part of the line by this entry.
    pub from_local: i64,
    /// Local revision of the destination at which it was sealed; part of the line by this entry.
    pub to_local: i64,
}

/// See [`Entry::Split`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// The ownership that ends.
    pub rid: Rid,
    /// First key of the right child.
    #[serde(with = "hex")]
    pub at: Bytes,
    /// Ownership of the left child.
    pub left: Rid,
    /// Ownership of the right child.
    pub right: Rid,
}

/// See [`Entry::Merge`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merge {
    /// The left ownership that ends.
    pub left: Rid,
    /// The right ownership that ends.
    pub right: Rid,
    /// The ownership that begins.
    pub rid: Rid,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_round_trip() {
        let entries = [
            Entry::Adv(vec![(ShardIx(0), 5), (ShardIx(2), 9)]),
            Entry::Compact(4),
            Entry::Leave(ShardIx(1)),
            Entry::Split(Split {
                rid: Rid::new("a"),
                at: Bytes::from_static(b"\xfe"),
                left: Rid::new("b"),
                right: Rid::new("c"),
            }),
        ];
        for entry in entries {
            assert_eq!(Entry::decode(&entry.encode()).unwrap(), entry);
        }
        assert_eq!(Entry::Adv(vec![(ShardIx(0), 5)]).encode().as_ref(), br#"{"v":1,"e":{"adv":[[0,5]]}}"#);
    }
}
