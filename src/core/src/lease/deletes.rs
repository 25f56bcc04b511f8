//! Which of a shadow's keys are deleted, and in which transactions.

use bytes::Bytes;

use crate::{
    keyspace::{RESERVED, RangeMap, Rid, ShardIx},
    records::{ClaimState, Claims},
};

/// Most keys of one delete transaction: shards take 10,000 operations, and a revoke is to be one revision where it can.
pub const BATCH_KEYS_MAX: usize = 1000;

/// Most bytes of keys in one delete transaction. Each key is sent four times, and etcd's own limit is 1.5 MiB.
pub const BATCH_BYTES_MAX: usize = 256 << 10;

/// Keys that one transaction deletes, and the ownerships whose fences it compares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteBatch {
    /// In key order, each once.
    pub rids: Vec<Rid>,
    /// In key order.
    pub keys: Vec<Bytes>,
}

/// Those of a shadow's keys that clients see on this shard: owned by it, and not hidden. Sorted.
pub fn visible_keys(keys: &[Bytes], map: &RangeMap, shard: ShardIx) -> Vec<Bytes> {
    let mut visible: Vec<Bytes> =
        keys.iter().filter(|key| key.as_ref() < RESERVED && map.owner(key).shard == shard).cloned().collect();
    visible.sort_unstable();
    visible
}

/// The transactions that delete the visible ones of a shadow's keys, as few as possible.
///
/// Copies that a move brought or left behind are not the lease's business: clients do not see them.
pub fn plan_deletes(keys: &[Bytes], map: &RangeMap, shard: ShardIx) -> Vec<DeleteBatch> {
    let mut batches: Vec<DeleteBatch> = Vec::new();
    let mut bytes = 0;
    for key in visible_keys(keys, map, shard) {
        let full = |b: &DeleteBatch| b.keys.len() >= BATCH_KEYS_MAX || bytes + key.len() > BATCH_BYTES_MAX;
        if batches.last().is_none_or(full) {
            batches.push(DeleteBatch::default());
            bytes = 0;
        }
        bytes += key.len();
        let rid = &map.owner(&key).rid;
        if let Some(batch) = batches.last_mut() {
            if batch.rids.last() != Some(rid) {
                batch.rids.push(rid.clone());
            }
            batch.keys.push(key);
        }
    }
    batches
}

/// True if an open import holds one of a shadow's keys: its copies must not vanish under it.
pub fn held_by_imports(keys: &[Bytes], claims: &Claims) -> bool {
    let importing = |state: &ClaimState| matches!(state, ClaimState::Importing(_));
    claims
        .claims
        .iter()
        .filter(|claim| importing(&claim.state))
        .any(|claim| keys.iter().any(|key| claim.range.contains(key)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        keyspace::{KeyRange, RangeEntry},
        records::{Claim, override_key},
    };

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

    fn keys(list: &[&'static str]) -> Vec<Bytes> {
        list.iter().map(|k| Bytes::from_static(k.as_bytes())).collect()
    }

    #[test]
    fn only_what_clients_see_is_deleted() {
        let mut all = keys(&["z", "b", "h", "q", "a"]);
        all.push(override_key(b"b"));
        let batches = plan_deletes(&all, &map(), ShardIx(0));
        assert_eq!(batches.len(), 1);
        assert_eq!(batches[0].keys, keys(&["a", "b", "q", "z"]));
        assert_eq!(batches[0].rids, [Rid::new("a"), Rid::new("c")]);
        assert_eq!(plan_deletes(&all, &map(), ShardIx(2)), []);
    }

    #[test]
    fn batches_are_bounded() {
        let many: Vec<Bytes> = (0..2500).map(|i| format!("a{i:05}").into()).collect();
        let sizes: Vec<_> = plan_deletes(&many, &map(), ShardIx(0)).iter().map(|b| b.keys.len()).collect();
        assert_eq!(sizes, [1000, 1000, 500]);
        let big: Vec<Bytes> =
            (0..3).map(|i| format!("{i}{}", "x".repeat(BATCH_BYTES_MAX / 2)).into()).collect();
        assert_eq!(plan_deletes(&big, &map(), ShardIx(0)).len(), 3);
    }

    #[test]
    fn imports_hold_keys_only_while_they_are_open() {
        let claims = |state| Claims {
            claims: vec![Claim { range: KeyRange::new("g", "p"), rid: Rid::new("m"), state }],
        };
        let importing = claims(ClaimState::Importing("m".into()));
        assert!(held_by_imports(&keys(&["a", "h"]), &importing));
        assert!(!held_by_imports(&keys(&["a"]), &importing));
        assert!(!held_by_imports(&keys(&["h"]), &claims(ClaimState::Purging)));
    }
}
