//! Keys as clients know them.

use sharded_etcd_etcd_api::messages as pb;

use crate::{keyspace::ShardIx, line::Fold, records::Override};

/// An override with the etcd metadata of its own key, which says whether it (still) applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredOverride {
    /// What clients know.
    pub value: Override,
    /// Local create revision of the override's key.
    pub create: i64,
    /// Local mod revision of the override's key.
    pub modified: i64,
    /// Version of the override's key.
    pub version: i64,
}

impl StoredOverride {
    /// From the override's key as the shard returns it; `None` if its value is none.
    pub fn from_kv(kv: &pb::KeyValue) -> Option<Self> {
        Some(Self {
            value: Override::decode(&kv.value)?,
            create: kv.create_revision,
            modified: kv.mod_revision,
            version: kv.version,
        })
    }

    /// True if it belongs to this life of the key: both were created by one import.
    pub fn applies_to(&self, kv: &pb::KeyValue) -> bool {
        self.create == kv.create_revision
    }
}

/// A stored key as clients know it: create revision, mod revision and version of the line.
///
/// `o` is the key's override at the same revision, if it has one. A local revision that the line no longer maps (it is
/// compacted and condensed away) becomes the compaction revision, which no request can tell from the truth.
pub fn client_kv(
    fold: &Fold,
    shard: ShardIx,
    mut kv: pb::KeyValue,
    o: Option<&StoredOverride>,
) -> pb::KeyValue {
    let global = |local| fold.global(shard, local).unwrap_or(fold.compacted);
    match o.filter(|o| o.applies_to(&kv)) {
        None => {
            kv.create_revision = global(kv.create_revision);
            kv.mod_revision = global(kv.mod_revision);
        }
        Some(o) => {
            kv.create_revision = o.value.create;
            // Key and override run in lockstep until the client writes the key.
            kv.mod_revision =
                if kv.mod_revision == o.modified { o.value.modified } else { global(kv.mod_revision) };
            kv.version = o.value.version + (kv.version - o.version);
        }
    }
    kv
}
