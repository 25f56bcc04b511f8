//! The store against a model that keeps the whole state of every revision.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use sharded_etcd_etcd_api::messages as pb;

use super::{Changes, EventLog, Store};
use crate::{entry, entry::Entry, txn};

/// One key as the API shows it, without its name.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    value: Vec<u8>,
    create: i64,
    modified: i64,
    version: i64,
    lease: i64,
}

type Rows = BTreeMap<Vec<u8>, Row>;

/// Every revision's whole state, by revision.
#[derive(Debug, Clone)]
struct Model {
    states: Vec<Rows>,
    leases: BTreeMap<i64, i64>,
    compacted: i64,
}

impl Model {
    fn new() -> Self {
        // Revisions 0 and 1 are both empty.
        Self { states: vec![Rows::new(), Rows::new()], leases: BTreeMap::new(), compacted: -1 }
    }

    fn revision(&self) -> i64 {
        self.states.len() as i64 - 1
    }

    fn now(&self) -> &Rows {
        self.states.last().unwrap()
    }

    fn put(rows: &mut Rows, revision: i64, key: &[u8], value: &[u8], lease: i64) {
        let (create, version) = rows.get(key).map_or((revision, 1), |row| (row.create, row.version + 1));
        rows.insert(key.to_vec(), Row { value: value.to_vec(), create, modified: revision, version, lease });
    }

    fn in_range(key: &[u8], start: &[u8], end: &[u8]) -> bool {
        match end {
            [] => key == start,
            [0] => key >= start,
            _ => start <= key && key < end,
        }
    }
}

#[derive(Debug, Clone)]
enum Op {
    Put {
        key: u8,
        value: u8,
        lease: Option<u8>,
    },
    Delete {
        key: u8,
        end: Option<u8>,
    },
    /// Puts one key and deletes others in one revision.
    Both {
        put: u8,
        delete: u8,
    },
    Grant {
        id: u8,
    },
    Revoke {
        id: u8,
    },
    Compact {
        back: u8,
    },
    /// Gives compacted history back, in slices of this many revisions.
    Collect {
        slice: u8,
    },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        8 => (0..12u8, any::<u8>(), proptest::option::of(0..3u8))
            .prop_map(|(key, value, lease)| Op::Put { key, value, lease }),
        3 => (0..12u8, proptest::option::of(0..14u8)).prop_map(|(key, end)| Op::Delete { key, end }),
        2 => (0..12u8, 0..12u8).prop_map(|(put, delete)| Op::Both { put, delete }),
        1 => (0..3u8).prop_map(|id| Op::Grant { id }),
        1 => (0..3u8).prop_map(|id| Op::Revoke { id }),
        1 => (0..20u8).prop_map(|back| Op::Compact { back }),
        1 => (1..8u8).prop_map(|slice| Op::Collect { slice }),
    ];
    proptest::collection::vec(op, 1..80)
}

fn key(n: u8) -> Vec<u8> {
    format!("k{n:02}").into_bytes()
}

/// `None` is one key, 13 everything from the key on, others an end.
fn end(n: Option<u8>) -> Vec<u8> {
    match n {
        None => Vec::new(),
        Some(13) => vec![0],
        Some(n) => key(n),
    }
}

struct Subject {
    store: Store,
    log: EventLog,
    records: Vec<u8>,
}

impl Subject {
    fn wrote(&mut self, changes: Option<Changes>) {
        if let Some(changes) = changes {
            Entry::Write(&changes).encode(&mut self.records);
            self.log.push(changes);
        }
    }

    /// As the committer does it.
    fn collect(&mut self, slice: usize) {
        let target = self.store.compact_revision();
        for changes in self.log.trim(target, slice) {
            self.store.collect(changes.as_slice());
        }
        if self.log.first_revision() >= target
            && let Some(changes) = self.log.get(target).map(<[_]>::to_vec)
        {
            self.store.collect(&changes);
        }
    }
}

fn run(ops: &[Op]) -> (Subject, Model) {
    let mut model = Model::new();
    let mut subject = Subject { store: Store::default(), log: EventLog::new(2), records: Vec::new() };
    for op in ops {
        let next = model.revision() + 1;
        match *op {
            Op::Put { key: k, value, lease } => {
                let lease = lease.map_or(0, |id| i64::from(id) + 1);
                let request = pb::PutRequest {
                    key: key(k).into(),
                    value: vec![value].into(),
                    lease,
                    ..Default::default()
                };
                let result = txn::put(&mut subject.store, &request);
                if lease != 0 && !model.leases.contains_key(&lease) {
                    assert!(result.unwrap_err().is_lease_not_found());
                    continue;
                }
                let (response, changes) = result.unwrap();
                assert_eq!(response.header.unwrap().revision, next);
                subject.wrote(changes);
                let mut rows = model.now().clone();
                Model::put(&mut rows, next, &key(k), &[value], lease);
                model.states.push(rows);
            }
            Op::Delete { key: k, end: e } => {
                let (k, e) = (key(k), end(e));
                let request = pb::DeleteRangeRequest {
                    key: k.clone().into(),
                    range_end: e.clone().into(),
                    prev_kv: true,
                };
                let (response, changes) = txn::delete_range(&mut subject.store, &request).unwrap();
                let mut rows = model.now().clone();
                rows.retain(|key, _| !Model::in_range(key, &k, &e));
                let deleted = model.now().len() - rows.len();
                assert_eq!(response.deleted, deleted as i64);
                assert_eq!(response.prev_kvs.len(), deleted);
                assert_eq!(changes.is_some(), deleted > 0);
                assert_eq!(response.header.unwrap().revision, if deleted > 0 { next } else { next - 1 });
                subject.wrote(changes);
                if deleted > 0 {
                    model.states.push(rows);
                }
            }
            Op::Both { put, delete } => {
                // The delete runs after the put and may be of the same key: two events, one revision.
                let mut write = subject.store.write();
                write.put(&key(put), b"both", 0);
                write.delete_range(&key(delete), &[]);
                let changes = write.end();
                subject.wrote(changes);
                let mut rows = model.now().clone();
                Model::put(&mut rows, next, &key(put), b"both", 0);
                rows.remove(&key(delete));
                model.states.push(rows);
            }
            Op::Grant { id } => {
                let id = i64::from(id) + 1;
                if let std::collections::btree_map::Entry::Vacant(vacant) = model.leases.entry(id) {
                    subject.store.grant(id, 10);
                    Entry::Grant { id, ttl: 10 }.encode(&mut subject.records);
                    vacant.insert(10);
                }
            }
            Op::Revoke { id } => {
                let id = i64::from(id) + 1;
                let (found, changes) = subject.store.revoke(id);
                assert_eq!(found, model.leases.remove(&id).is_some());
                if found {
                    Entry::Revoke { id, changes: changes.as_ref() }.encode(&mut subject.records);
                }
                let mut rows = model.now().clone();
                rows.retain(|_, row| row.lease != id);
                assert_eq!(changes.is_some(), rows.len() < model.now().len());
                if let Some(changes) = changes {
                    subject.log.push(changes);
                    model.states.push(rows);
                }
            }
            Op::Compact { back } => {
                let revision = model.revision() - i64::from(back);
                let result = subject.store.compact(revision);
                assert_eq!(result.is_ok(), revision > model.compacted);
                if result.is_ok() {
                    Entry::Compact(revision).encode(&mut subject.records);
                    model.compacted = revision;
                }
            }
            Op::Collect { slice } => subject.collect(usize::from(slice)),
        }
        assert_eq!(subject.store.revision(), model.revision());
    }
    (subject, model)
}

/// All that can be read of the store is what the model says.
fn compare(store: &Store, log: &EventLog, model: &Model) {
    assert_eq!(store.revision(), model.revision());
    assert_eq!(store.compact_revision(), model.compacted);
    for revision in 1..=model.revision() + 1 {
        let request = pb::RangeRequest {
            key: vec![0].into(),
            range_end: vec![0].into(),
            revision,
            ..Default::default()
        };
        let answer = store.range(&request);
        if revision > model.revision() {
            assert!(answer.unwrap_err().is_future_rev());
            continue;
        }
        if revision < model.compacted {
            assert!(answer.unwrap_err().is_compacted());
            continue;
        }
        let answer = answer.unwrap();
        let rows: Rows = answer
            .kvs
            .iter()
            .map(|kv| {
                let row = Row {
                    value: kv.value.to_vec(),
                    create: kv.create_revision,
                    modified: kv.mod_revision,
                    version: kv.version,
                    lease: kv.lease,
                };
                (kv.key.to_vec(), row)
            })
            .collect();
        assert_eq!(&rows, &model.states[revision as usize], "at revision {revision}");
        assert_eq!(answer.count, rows.len() as i64);
        assert_eq!(store.count(&[0], &[0], revision), answer.count);
    }
    // The history of every readable revision turns one state into the next.
    for revision in model.compacted.max(1) + 1..=model.revision() {
        let mut rows = model.states[revision as usize - 1].clone();
        for version in log.get(revision).unwrap() {
            assert_eq!(version.mod_revision, revision);
            if version.is_live() {
                Model::put(&mut rows, revision, &version.key, &version.value().unwrap(), version.lease);
                assert_eq!(rows[version.key.as_ref()].version, version.version);
            } else {
                assert!(rows.remove(version.key.as_ref()).is_some());
            }
        }
        assert_eq!(rows, model.states[revision as usize], "history of revision {revision}");
    }
    let leases: BTreeMap<i64, i64> = store.leases().map(|(id, lease)| (id, lease.ttl)).collect();
    assert_eq!(leases, model.leases);
    for (id, lease) in store.leases() {
        let attached: Vec<&[u8]> = lease.keys.iter().map(|key| &**key).collect();
        let expected: Vec<&[u8]> =
            model.now().iter().filter(|(_, row)| row.lease == id).map(|(key, _)| key.as_slice()).collect();
        assert_eq!(attached, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_store_reads_as_the_model(ops in ops()) {
        let (subject, model) = run(&ops);
        compare(&subject.store, &subject.log, &model);
    }

    #[test]
    fn replaying_the_log_gives_the_same_store(ops in ops()) {
        let (subject, model) = run(&ops);
        let mut store = Store::default();
        let mut log = EventLog::new(2);
        entry::replay(&Bytes::from(subject.records), &mut store, |changes| log.push(changes)).unwrap();
        compare(&store, &log, &model);
        prop_assert_eq!(store.applied(), subject.store.applied());
    }

    #[test]
    fn compaction_gives_all_space_of_superseded_versions_back(ops in ops()) {
        let (mut subject, model) = run(&ops);
        let revision = subject.store.revision();
        if subject.store.compact(revision).is_ok() || revision == model.compacted {
            subject.collect(usize::MAX);
            let expected: u64 = subject.store.chains().map(|(_, head)| head.size()).sum();
            prop_assert_eq!(subject.store.size_in_use(), expected);
            let (live, deleted): (Vec<_>, Vec<_>) =
                subject.store.chains().map(|(_, head)| head).partition(|head| head.is_live());
            prop_assert_eq!(live.len(), model.now().len());
            // Until the next compaction: a watch from this one sees them.
            prop_assert!(deleted.iter().all(|tombstone| tombstone.mod_revision == revision));
        }
    }
}

proptest! {
    // Each case waits for the disk.
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_checkpoint_gives_the_same_store(ops in ops()) {
        let (subject, model) = run(&ops);
        let dir = tempfile::tempdir().unwrap();
        crate::checkpoint::write(&crate::disk::Disk::Real, dir.path(), 7, 42, &subject.store).unwrap();
        let loaded = crate::checkpoint::load(&crate::disk::Disk::Real, dir.path(), 7).unwrap();
        prop_assert_eq!(loaded.last.sequence, 42);
        compare(&loaded.store, &loaded.log, &model);
        prop_assert_eq!(loaded.store.applied(), subject.store.applied());
        prop_assert_eq!(loaded.store.size_in_use(), subject.store.size_in_use());
    }
}

#[test]
fn a_snapshot_does_not_change() {
    let mut store = Store::default();
    let mut write = store.write();
    write.put(b"a", b"1", 0);
    write.end();
    let snapshot = store.clone();
    let mut write = store.write();
    write.put(b"a", b"2", 0);
    write.put(b"b", b"2", 0);
    write.end();
    assert_eq!(snapshot.get(b"a").unwrap().value().unwrap(), "1");
    assert!(snapshot.get(b"b").is_none());
    assert_eq!(snapshot.revision(), 2);
}

#[test]
fn a_long_history_of_one_key_is_dropped_without_recursion() {
    let mut store = Store::default();
    for _ in 0..300_000 {
        let mut write = store.write();
        write.put(b"hot", b"", 0);
        write.end();
    }
    // In a thread with a small stack, so that recursion would be seen.
    std::thread::Builder::new().stack_size(64 * 1024).spawn(move || drop(store)).unwrap().join().unwrap();
}
