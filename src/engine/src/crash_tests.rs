//! The writer on a disk that fails, fills up and loses power, against a model: one seed, one story.
//!
//! `ENGINE_CRASH_SEEDS` is how many seeds are tried (2,000 if it is not set), `ENGINE_CRASH_SEED` the first of them. A
//! failure names its seed; the same seed gives the same story again.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    num::NonZero,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Certainty, ShardError};
use sharded_etcd_testkit::Dice;
use tokio::sync::{mpsc, oneshot};

use crate::{
    EngineConfig, EngineError,
    committer::{Command, Committer, Limits},
    disk::{Disk, sim::SimDisk},
    engine::Opened,
    mvcc::{Store, Version},
    values::ValueError,
    wal::WalError,
};

const DIR: &str = "/sim";
const SEEDS: u64 = 2000;
/// How often the process of one story is started.
const LIVES: u64 = 6;

/// What a store is expected to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    pub revision: i64,
    compacted: i64,
    /// Value, revision of the last change, and lease.
    keys: BTreeMap<Bytes, (Bytes, i64, i64)>,
    leases: BTreeSet<i64>,
}

impl Model {
    pub fn of(store: &Store) -> Self {
        Self {
            revision: store.revision(),
            compacted: store.compact_revision(),
            keys: store
                .chains()
                .filter(|(_, newest)| newest.version > 0)
                .map(|(key, newest)| (key.to_bytes(), (read(newest), newest.mod_revision, newest.lease)))
                .collect(),
            leases: store.leases().map(|(id, _)| id).collect(),
        }
    }
}

/// The value of a version, on a disk where now and then a read fails.
fn read(version: &Version) -> Bytes {
    let mut tries = 0;
    loop {
        match version.value() {
            Ok(value) => return value,
            Err(ValueError::Io { .. }) if tries < 100 => tries += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[derive(Debug, Clone)]
enum Op {
    Put(Bytes, Bytes),
    PutLeased(Bytes, i64),
    PutTwo(Bytes, Bytes, Bytes),
    Delete(Bytes),
    Compact(i64),
    Grant(i64),
    Revoke(i64),
    Defragment,
}

impl Op {
    fn random(dice: &mut Dice, model: &Model) -> Self {
        let key = |dice: &mut Dice| Bytes::from(format!("k{}", dice.below(12)));
        let value = |dice: &mut Dice| {
            let len = if dice.one_in(10) { dice.below(6000) } else { dice.below(300) };
            Bytes::from(vec![dice.below(256) as u8; len as usize])
        };
        match dice.below(26) {
            0..=10 => Self::Put(key(dice), value(dice)),
            11..=13 => Self::PutTwo(Bytes::from_static(b"a"), Bytes::from_static(b"b"), value(dice)),
            14..=17 => Self::Delete(key(dice)),
            18 => Self::Compact(model.revision - dice.below(8) as i64),
            19 | 20 => Self::Grant(1 + dice.below(9) as i64),
            21 | 22 => Self::Revoke(1 + dice.below(9) as i64),
            23 | 24 => Self::PutLeased(key(dice), 1 + dice.below(9) as i64),
            _ => Self::Defragment,
        }
    }

    /// What it does to the model; false if it is an error there.
    fn apply(&self, model: &mut Model) -> bool {
        match self {
            Self::Put(key, value) => {
                model.revision += 1;
                model.keys.insert(key.clone(), (value.clone(), model.revision, 0));
            }
            Self::PutLeased(key, lease) => {
                if !model.leases.contains(lease) {
                    return false;
                }
                model.revision += 1;
                model.keys.insert(key.clone(), (Bytes::new(), model.revision, *lease));
            }
            Self::PutTwo(one, two, value) => {
                model.revision += 1;
                for key in [one, two] {
                    model.keys.insert(key.clone(), (value.clone(), model.revision, 0));
                }
            }
            Self::Delete(key) => {
                if model.keys.remove(key).is_some() {
                    model.revision += 1;
                }
            }
            Self::Compact(revision) => {
                if *revision <= model.compacted || *revision > model.revision {
                    return false;
                }
                model.compacted = *revision;
            }
            Self::Grant(id) => return model.leases.insert(*id),
            Self::Revoke(id) => {
                let keys = model.keys.len();
                model.keys.retain(|_, (_, _, lease)| lease != id);
                model.revision += i64::from(keys > model.keys.len());
                return model.leases.remove(id);
            }
            Self::Defragment => {}
        }
        true
    }

    fn command(self) -> (Command, Waiting) {
        fn put(key: Bytes, value: Bytes) -> pb::PutRequest {
            pb::PutRequest { key, value, ..Default::default() }
        }
        match self {
            Self::Put(key, value) => {
                let (reply, answer) = oneshot::channel();
                (Command::Put(put(key, value), reply), waiting(answer))
            }
            Self::PutLeased(key, lease) => {
                let (reply, answer) = oneshot::channel();
                let request = pb::PutRequest { lease, ..put(key, Bytes::new()) };
                (Command::Put(request, reply), waiting(answer))
            }
            Self::PutTwo(one, two, value) => {
                let (reply, answer) = oneshot::channel();
                let success = [one, two]
                    .map(|key| pb::RequestOp {
                        request: Some(pb::Request::RequestPut(put(key, value.clone()))),
                    })
                    .to_vec();
                (Command::Txn(pb::TxnRequest { success, ..Default::default() }, reply), waiting(answer))
            }
            Self::Delete(key) => {
                let (reply, answer) = oneshot::channel();
                let request = pb::DeleteRangeRequest { key, ..Default::default() };
                (Command::DeleteRange(request, reply), waiting(answer))
            }
            Self::Compact(revision) => {
                let (reply, answer) = oneshot::channel();
                (
                    Command::Compact(pb::CompactionRequest { revision, physical: false }, reply),
                    waiting(answer),
                )
            }
            Self::Grant(id) => {
                let (reply, answer) = oneshot::channel();
                (Command::Grant(pb::LeaseGrantRequest { id, ttl: 100 }, reply), waiting(answer))
            }
            Self::Revoke(id) => {
                let (reply, answer) = oneshot::channel();
                (Command::Revoke(id, reply), waiting(answer))
            }
            Self::Defragment => {
                let (reply, answer) = oneshot::channel();
                (Command::Defragment(reply), waiting(answer))
            }
        }
    }
}

/// Gives the answer, once it is there.
type Waiting = Box<dyn FnOnce() -> Result<(), ShardError>>;

fn waiting<T: 'static>(mut answer: oneshot::Receiver<Result<T, ShardError>>) -> Waiting {
    Box::new(move || answer.try_recv().unwrap().map(drop))
}

/// An engine without its thread.
pub(crate) fn open(disk: &Arc<SimDisk>) -> Result<Committer, EngineError> {
    let mut config = EngineConfig::new(DIR, "sim");
    config.disk = Disk::Sim(Arc::clone(disk));
    config.segment_bytes = 16 * 1024;
    let opened = Opened::open(&config)?;
    let limits = Limits {
        disk: config.disk.clone(),
        dir: PathBuf::from(DIR),
        quota_bytes: config.quota_limit(),
        lease_ttl_seconds_min: 1,
        checkpoint_wal_bytes: 24 * 1024,
        recent_bytes: 2048,
    };
    let (_, commands) = mpsc::channel(1);
    let Opened { shared, wal, wal_bytes, checkpoint_bytes, .. } = opened;
    Ok(Committer::new(limits, shared, commands, wal, wal_bytes, checkpoint_bytes))
}

/// What one batch may have left behind, most certain first.
struct Expected {
    acknowledged: Model,
    /// As it would be if the batch that failed had been durable all the same.
    maybe: Option<Model>,
}

/// One life of the process: batches until it dies, or for a while.
fn live(committer: &mut Committer, dice: &mut Dice, expected: &mut Expected) {
    for _ in 0..dice.below(60) {
        let mut after = expected.acknowledged.clone();
        let mut queue = VecDeque::new();
        let mut answers = Vec::new();
        for _ in 0..1 + dice.below(6) {
            let op = Op::random(dice, &after);
            let fine = op.apply(&mut after);
            let (command, answer) = op.clone().command();
            queue.push_back(command);
            answers.push((op, fine, answer));
        }
        committer.work(&mut queue);
        assert!(queue.is_empty());
        let answers: Vec<_> = answers.into_iter().map(|(op, fine, answer)| (op, fine, answer())).collect();
        let failed = answers.iter().find_map(|(_, _, answer)| {
            answer.as_ref().err().filter(|error| error.code == tonic::Code::Unavailable)
        });
        match failed {
            None => {
                assert!(
                    expected.maybe.is_none() || after == expected.acknowledged,
                    "something was acknowledged after a failed write"
                );
                for (op, fine, answer) in &answers {
                    // A checkpoint that fails leaves everything as it was.
                    let is_right = answer.is_ok() == *fine || matches!(op, Op::Defragment);
                    assert!(is_right, "{op:?}: {answer:?}");
                }
                expected.acknowledged = after;
            }
            Some(error) if error.certainty == Certainty::Ambiguous => {
                assert!(expected.maybe.is_none(), "something was written after a failed write");
                expected.maybe = Some(after);
            }
            // Refused: it is not there, now or later.
            Some(_) => {}
        }
        let shown = Model::of(&committer.published());
        assert_eq!(shown, expected.acknowledged, "readers see something else than was acknowledged");
    }
}

fn story(seed: u64) {
    let mut dice = Dice::new(seed);
    let disk = SimDisk::new(dice.next());
    let empty = Model::of(&Store::default());
    let mut expected = Expected { acknowledged: empty, maybe: None };
    let mut is_made = false;
    for _ in 0..LIVES {
        // A start may die or fail as well, and then the next one must do.
        for attempt in 0.. {
            let error_one_in = if dice.one_in(2) || attempt > 3 { 0 } else { 10 + dice.below(200) };
            let steps = if dice.one_in(2) || attempt > 3 { u64::MAX } else { 1 + dice.below(500) };
            disk.set(error_one_in, steps);
            // A full disk alone is no reason not to start, once there is a log.
            let room = if dice.one_in(3) { dice.below(80 * 1024) } else { u64::MAX };
            disk.set_room(if is_made || attempt <= 3 { room } else { u64::MAX });
            match open(&disk) {
                Ok(mut committer) => {
                    is_made = true;
                    let found = Model::of(&committer.published());
                    if expected.maybe.as_ref() == Some(&found) {
                        expected.acknowledged = found;
                    } else {
                        assert_eq!(found, expected.acknowledged, "acknowledged, and not there");
                    }
                    expected.maybe = None;
                    live(&mut committer, &mut dice, &mut expected);
                    break;
                }
                Err(EngineError::Files(WalError::Io { .. })) if attempt <= 3 => {}
                Err(error) => panic!("it does not start: {error:?}"),
            }
            if dice.one_in(2) {
                disk.lose_power();
            }
        }
        if dice.one_in(2) {
            disk.lose_power();
        }
    }
    disk.set(0, u64::MAX);
    disk.set_room(u64::MAX);
    let healthy = open(&disk).unwrap();
    let found = Model::of(&healthy.published());
    assert!(found == expected.acknowledged || expected.maybe.as_ref() == Some(&found));
    drop(healthy);
    rot(&disk, &mut dice, &found);
}

/// One flipped bit: everything is there all the same, or the start is refused and names that very file.
fn rot(disk: &Arc<SimDisk>, dice: &mut Dice, expected: &Model) {
    let mut files = disk.files();
    let nth = dice.below(files.len() as u64) as usize;
    let (flipped, at) = {
        let (path, bytes) = files.iter_mut().nth(nth).unwrap();
        let at = dice.below(bytes.len() as u64) as usize;
        let Some(byte) = bytes.get_mut(at) else { return };
        *byte ^= 1 << dice.below(8);
        (path.clone(), at)
    };
    let opened = open(&SimDisk::with_files(0, files)).map(|committer| Model::of(&committer.published()));
    crate::damage_tests::harmless_or_named(
        opened,
        expected,
        &[&flipped],
        &format!("byte {at} of {flipped:?}"),
    );
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().unwrap())
}

#[test]
fn nothing_acknowledged_is_lost_on_a_disk_that_fails() {
    let first = number("ENGINE_CRASH_SEED", 1);
    let end = first.saturating_add(number("ENGINE_CRASH_SEEDS", SEEDS));
    let next = AtomicU64::new(first);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return;
            }
            if let Err(panic) = std::panic::catch_unwind(|| story(seed)) {
                eprintln!(
                    "seed {seed} failed: run it alone with ENGINE_CRASH_SEED={seed} ENGINE_CRASH_SEEDS=1"
                );
                // The others need not go on.
                next.store(end, Ordering::Relaxed);
                std::panic::resume_unwind(panic);
            }
        }
    };
    // A story is one thread's; any number of them can be told at once.
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(16);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    eprintln!("seeds {first} to {}", end - 1);
}
