//! Requests decoded from arbitrary bytes, checked as the engine checks them, and applied to a store.
//!
//! After each the store obeys etcd's rules, and another store that replays what the log would say is the same.

use bytes::Bytes;
use prost::Message;
use sharded_etcd_engine::{
    check,
    entry::{self, Entry},
    mvcc::{Changes, Store},
    txn,
};
use sharded_etcd_etcd_api::messages as pb;

/// Requests in one run.
const REQUESTS_MAX: usize = 64;
const TXN_OPS_MAX: usize = 128;
const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// Applies what the input says: a kind, a length of two bytes, and an encoded request of so many bytes; again and again.
pub fn run(mut input: &[u8]) {
    let (mut store, mut replayed) = (Store::default(), Store::default());
    // Some leases, so that puts with one are possible.
    for id in 1..4 {
        grant(&mut store, &mut replayed, id);
    }
    for _ in 0..REQUESTS_MAX {
        let Some((head, rest)) = input.split_first_chunk::<3>() else { break };
        let len = usize::from(u16::from_le_bytes([head[1], head[2]])).min(rest.len());
        let (body, rest) = rest.split_at(len);
        input = rest;
        let before = (store.revision(), store.compact_revision());
        let changed = apply(head[0], body, &mut store, &mut replayed);
        assert_eq!(
            store.revision(),
            before.0 + i64::from(changed),
            "a write makes one revision, nothing else any"
        );
        assert!(store.compact_revision() >= before.1);
        compare(&store, &replayed);
    }
}

/// Whether anything was written.
fn apply(kind: u8, body: &[u8], store: &mut Store, replayed: &mut Store) -> bool {
    match kind % 6 {
        0 => {
            let Some(request) = decode::<pb::RangeRequest>(body) else { return false };
            if check::range(&request).is_ok()
                && let Ok(response) = store.range(&request)
            {
                check_range(&request, &response, store);
            }
            false
        }
        1 => {
            let Some(request) = decode::<pb::PutRequest>(body) else { return false };
            check::put(&request).is_ok()
                && txn::put(store, &request).is_ok_and(|(_, changes)| log(changes, replayed))
        }
        2 => {
            let Some(request) = decode::<pb::DeleteRangeRequest>(body) else { return false };
            check::delete_range(&request).is_ok() && {
                let (response, changes) = txn::delete_range(store, &request).expect("values are in memory");
                assert_eq!(response.deleted > 0, changes.is_some());
                log(changes, replayed)
            }
        }
        3 => {
            let Some(request) = decode::<pb::TxnRequest>(body) else { return false };
            if check::txn(&request, TXN_OPS_MAX).is_err() {
                return false;
            }
            // The engine throws the copy away on which a transaction failed.
            let mut copy = store.clone();
            match txn::txn(&mut copy, &request) {
                Ok((_, changes)) => {
                    assert!(changes.is_none() || !txn::is_read_only(&request));
                    *store = copy;
                    log(changes, replayed)
                }
                Err(_) => false,
            }
        }
        4 => {
            let Some(request) = decode::<pb::CompactionRequest>(body) else { return false };
            if store.compact(request.revision).is_ok() {
                replay(&Entry::Compact(request.revision), replayed);
            }
            false
        }
        _ => {
            let id = i64::from(body.first().copied().unwrap_or_default() % 4);
            if id != 0 && store.lease(id).is_none() {
                grant(store, replayed, id);
                return false;
            }
            let (found, changes) = store.revoke(id);
            if found {
                replay(&Entry::Revoke { id, changes: changes.as_ref() }, replayed);
            }
            changes.is_some()
        }
    }
}

fn decode<M: Message + Default>(body: &[u8]) -> Option<M> {
    M::decode(body).ok().filter(|request| check::size(request, REQUEST_BYTES_MAX).is_ok())
}

fn grant(store: &mut Store, replayed: &mut Store, id: i64) {
    store.grant(id, 60);
    replay(&Entry::Grant { id, ttl: 60 }, replayed);
}

/// Writes a record and reads it back into the other store; whether there is any.
fn log(changes: Option<Changes>, replayed: &mut Store) -> bool {
    let Some(changes) = changes else { return false };
    replay(&Entry::Write(&changes), replayed);
    true
}

fn replay(entry: &Entry<'_>, replayed: &mut Store) {
    let mut record = Vec::new();
    entry.encode(&mut record);
    entry::replay(&Bytes::from(record), replayed, |_| {}).expect("what was logged can be replayed");
}

fn check_range(request: &pb::RangeRequest, response: &pb::RangeResponse, store: &Store) {
    let shown = response.kvs.len() as i64;
    assert!(shown <= response.count || request.count_only);
    assert!(request.limit <= 0 || shown <= request.limit);
    for kv in &response.kvs {
        assert!(
            kv.version >= 1 && kv.create_revision <= kv.mod_revision && kv.mod_revision <= store.revision()
        );
        assert!(request.revision <= 0 || kv.mod_revision <= request.revision);
        assert!(!request.keys_only || kv.value.is_empty());
    }
    if request.sort_order == 0 && request.sort_target == 0 {
        assert!(response.kvs.is_sorted_by(|one, other| one.key < other.key), "not in the order of the keys");
    }
}

fn compare(store: &Store, replayed: &Store) {
    assert_eq!(
        (store.revision(), store.compact_revision(), store.applied()),
        (replayed.revision(), replayed.compact_revision(), replayed.applied())
    );
    let contents = |store: &Store| -> Vec<pb::KeyValue> {
        store.chains().map(|(_, newest)| newest.to_key_value().expect("it is in memory")).collect()
    };
    assert_eq!(contents(store), contents(replayed), "the log says something else than the store");
    assert!(store.leases().eq(replayed.leases()));
}
