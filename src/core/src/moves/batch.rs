//! Batches of imported changes.

use std::collections::HashMap;

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;

use super::ops;
use crate::records::{Cursor, Override, Record, cursor_key, override_key};

/// Most keys of one import. Each takes two operations; shards run with `max-txn-ops` of 10,000.
pub const BATCH_KEYS_MAX: usize = 500;
/// An import that has this many bytes takes no more.
///
/// Larger ones are faster, as each waits for the disk once; a shard does nothing else while it applies one.
pub const BATCH_BYTES_MAX: usize = 2 << 20;

/// One change to import, as clients know it.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// The key is this.
    Put(pb::KeyValue),
    /// The key is not there.
    Delete(Bytes),
}

impl Change {
    /// The key.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put(kv) => &kv.key,
            Self::Delete(key) => key,
        }
    }

    /// About how many bytes of a Txn it takes.
    pub fn bytes(&self) -> usize {
        // The key stands twice (it and its override); 64 covers the rest.
        64 + 2 * self.key().len()
            + match self {
                Self::Put(kv) => kv.value.len(),
                Self::Delete(_) => 0,
            }
    }
}

/// The last change of each key, in the order of those last changes.
///
/// A Txn must not name a key twice, and what lay between is never visible: events up to the flip come from the source.
pub fn latest_of_each_key(changes: Vec<Change>) -> Vec<Change> {
    let last: HashMap<Bytes, usize> = changes.iter().enumerate().map(|(i, c)| (c.key().clone(), i)).collect();
    let mut at = 0;
    let mut changes = changes;
    changes.retain(|c| {
        at += 1;
        last.get(c.key()) == Some(&(at - 1))
    });
    changes
}

/// Imports `changes` (each key once) and moves the cursor on, if the cursor is still the one that was seen.
///
/// Key and override are put and deleted together, so their etcd metadata run in lockstep (see [`Override`]).
pub fn import_txn(move_id: &str, seen: i64, changes: &[Change], cursor: &Cursor) -> pb::TxnRequest {
    let mut success = Vec::with_capacity(2 * changes.len() + 1);
    for change in changes {
        match change {
            Change::Put(kv) => {
                let known =
                    Override { create: kv.create_revision, modified: kv.mod_revision, version: kv.version };
                success.push(ops::put_leased(kv.key.clone(), kv.value.clone(), kv.lease));
                success.push(ops::put(override_key(&kv.key), known.encode()));
            }
            Change::Delete(key) => {
                success.push(ops::delete(key.clone()));
                success.push(ops::delete(override_key(key)));
            }
        }
    }
    success.push(ops::put(cursor_key(move_id), cursor.encode()));
    ops::txn(vec![ops::modified_at(cursor_key(move_id), seen)], success)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_once_with_its_last_change() {
        let put = |key: &'static str, version| {
            Change::Put(pb::KeyValue { key: key.into(), version, ..Default::default() })
        };
        let delete = |key: &'static str| Change::Delete(key.into());
        let all =
            vec![put("a", 1), put("b", 1), delete("a"), put("c", 1), put("a", 2), put("b", 2), delete("c")];
        assert_eq!(latest_of_each_key(all), [put("a", 2), put("b", 2), delete("c")]);
    }

    #[test]
    fn key_override_and_cursor_go_together() {
        let kv = pb::KeyValue { key: "k".into(), lease: 7, version: 2, ..Default::default() };
        let cursor = Cursor { copy_at: 5, stage: crate::records::CursorStage::Tail { revision: 9, sub: 0 } };
        let txn = import_txn("m", 3, &[Change::Put(kv), Change::Delete("d".into())], &cursor);
        assert_eq!(txn.compare, [ops::modified_at(cursor_key("m"), 3)]);
        assert_eq!(txn.success.len(), 5);
        assert!(matches!(&txn.success[0].request, Some(pb::Request::RequestPut(p)) if p.lease == 7));
        assert!(matches!(&txn.success[1].request, Some(pb::Request::RequestPut(p)) if p.lease == 0));
        assert!(
            matches!(&txn.success[4].request, Some(pb::Request::RequestPut(p)) if p.key == cursor_key("m"))
        );
    }
}
