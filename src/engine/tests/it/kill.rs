//! A process that is killed (-9) at any moment, while it starts or while it writes, loses nothing that it acknowledged.
//!
//! `ENGINE_KILL_ROUNDS` is how often it is killed (50 if it is not set); `ENGINE_KILL_SEED` chooses the moments, as far as
//! a process can be killed at a chosen one.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{
    collections::{BTreeMap, HashSet},
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use rand::{Rng, SeedableRng, rngs::StdRng};
use sharded_etcd_engine::{Engine, EngineConfig, verify};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::Shard;

use crate::support::{all, delete, get, op, put, revision, txn};

/// Tells this test binary to be the writer, and where.
const DIR: &str = "ENGINE_KILL_TEST_DIR";
const ROUNDS: u32 = 50;
const WRITERS: u64 = 8;
/// Longer than any run of this test: what is missing was lost, and did not expire.
const LEASE_SECONDS: i64 = 1_000_000;
/// Leases that a writer keeps.
const LEASES_MAX: usize = 3;
/// A writer's leases have the ids from its number times this.
const LEASE_IDS: i64 = 1_000_000_000;

fn config(dir: &Path) -> EngineConfig {
    let mut config = EngineConfig::new(dir, "kill");
    // Small, so that segments, checkpoints and compactions all happen all the time.
    config.segment_bytes = 64 * 1024;
    config.checkpoint_wal_bytes = 128 * 1024;
    config
}

fn key(writer: u64) -> String {
    format!("w{writer}")
}

fn number(kv: &pb::KeyValue) -> u64 {
    std::str::from_utf8(&kv.value).unwrap().trim().parse().unwrap()
}

/// One line, whole: the reader takes a line that ends to be an answer.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n{line} .\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Not a test of its own: the program that is killed. Says what it found, and every answer that it gets.
#[tokio::test]
async fn writer_process() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let engine = Engine::open(config(Path::new(&dir))).await.unwrap();
    join_all((0..WRITERS).map(|writer| write(Arc::clone(&engine), writer))).await;
}

/// Writes and never ends. Each write makes one revision and one version of the writer's key, whose value is that number.
async fn write(engine: Arc<Engine>, writer: u64) {
    let key = key(writer);
    let before = engine.range(get(&key)).await.unwrap().kvs.pop();
    let mut last: u64 = before.as_ref().map_or(0, number);
    say(&format!("found {writer} {last}"));
    let is_mine = |id: i64| id / LEASE_IDS == writer as i64 + 1;
    let mut leases: Vec<i64> = engine
        .lease_leases()
        .await
        .unwrap()
        .leases
        .iter()
        .map(|lease| lease.id)
        .filter(|id| is_mine(*id))
        .collect();
    leases.sort_unstable();
    loop {
        last += 1;
        // Long enough that batches cross pages and segments.
        let own = put(&key, &format!("{last:<700}"));
        let header = if last % 5 == 2 {
            // Together, or not at all.
            let pair = put(&format!("pair{writer}"), &last.to_string());
            engine.txn(txn(vec![], vec![op(own), op(pair)], vec![])).await.unwrap().header
        } else if last % 5 == 4 {
            let gone = delete(&format!("pair{writer}"), "");
            engine.txn(txn(vec![], vec![op(own), op(gone)], vec![])).await.unwrap().header
        } else {
            engine.put(own).await.unwrap().header
        };
        let revision = revision(&header);
        say(&format!("ack {writer} {last} {revision}"));
        if last.is_multiple_of(50) {
            let target = revision - 20;
            // Somebody else may have compacted further meanwhile.
            if engine.compact(pb::CompactionRequest { revision: target, physical: false }).await.is_ok() {
                say(&format!("compacted {target}"));
            }
        }
        if last.is_multiple_of(30) {
            let id = (writer as i64 + 1) * LEASE_IDS + last as i64;
            engine.lease_grant(pb::LeaseGrantRequest { id, ttl: LEASE_SECONDS }).await.unwrap();
            say(&format!("granted {id}"));
            leases.push(id);
            if leases.len() > LEASES_MAX {
                let id = leases.remove(0);
                say(&format!("revoking {id}"));
                engine.lease_revoke(pb::LeaseRevokeRequest { id }).await.unwrap();
                say(&format!("revoked {id}"));
            }
        }
        if last.is_multiple_of(400) {
            // A checkpoint, whatever the log's length.
            engine.defragment().await.unwrap();
        }
    }
}

/// What the writers were told, over all their lives.
#[derive(Default)]
struct Told {
    /// Number and revision of each writer's last answer.
    last: BTreeMap<u64, (u64, i64)>,
    revisions: HashSet<i64>,
    newest: i64,
    compacted: i64,
    /// Leases that are there for certain, and those whose end nobody knows.
    leases: HashSet<i64>,
    unsure: HashSet<i64>,
    answers: u64,
    /// When the earliest lease can have been granted.
    began: Option<Instant>,
}

impl Told {
    /// Takes a line; false if it is none of the writer's.
    fn hear(&mut self, line: &str) -> bool {
        let fields: Vec<&str> = line.split(' ').collect();
        match fields[..] {
            ["found", writer, found, "."] => {
                let found: u64 = found.parse().unwrap();
                let (last, _) = self.last.entry(writer.parse().unwrap()).or_default();
                // One write may have been under way: it counts now.
                assert!(
                    found == *last || found == *last + 1,
                    "{writer}: {last} was acknowledged, {found} is there"
                );
                *last = found;
            }
            ["ack", writer, number, revision, "."] => {
                let (number, revision): (u64, i64) = (number.parse().unwrap(), revision.parse().unwrap());
                let last = self.last.entry(writer.parse().unwrap()).or_default();
                assert!(number == last.0 + 1 && revision > last.1, "{line} after {last:?}");
                *last = (number, revision);
                assert!(self.revisions.insert(revision), "revision {revision} was given twice");
                self.newest = self.newest.max(revision);
                self.answers += 1;
            }
            ["compacted", at, "."] => self.compacted = self.compacted.max(at.parse().unwrap()),
            ["granted", id, "."] => drop(self.leases.insert(id.parse().unwrap())),
            ["revoking", id, "."] => {
                let id = id.parse().unwrap();
                self.leases.remove(&id);
                self.unsure.insert(id);
            }
            ["revoked", id, "."] => drop(self.unsure.remove(&id.parse().unwrap())),
            // The test harness prints too, and the last line may be cut off.
            _ => return false,
        }
        true
    }

    /// Holds a data directory that no process has open to what was told.
    async fn check(&mut self, dir: &Path) {
        if !dir.join("identity.json").exists() {
            assert_eq!(self.answers, 0, "the directory is empty");
            return;
        }
        let contents = verify(dir).unwrap();
        assert!(
            contents.compact_revision >= self.compacted,
            "compacted at {} was acknowledged, and this is there: {contents:?}",
            self.compacted
        );
        self.compacted = self.compacted.max(contents.compact_revision);

        let engine =
            tokio::time::timeout(Duration::from_secs(60), Engine::open(config(dir))).await.unwrap().unwrap();
        let stored = engine.range(all()).await.unwrap();
        let at = revision(&stored.header);
        assert_eq!(contents.revision, at);
        assert!(at >= self.newest, "{} was acknowledged, the store is at {at}", self.newest);
        let find = |key: &str| stored.kvs.iter().find(|kv| kv.key == key);
        let mut versions = 0;
        for (writer, (last, acknowledged)) in &mut self.last {
            let Some(kv) = find(&key(*writer)) else {
                assert_eq!(*last, 0, "writer {writer}");
                continue;
            };
            let found = number(kv);
            // At most the one write that was under way is more than acknowledged, and a version is never skipped.
            assert!(
                found == *last || found == *last + 1,
                "{writer}: {last} was acknowledged, {found} is there"
            );
            *last = found;
            assert_eq!(kv.version as u64, found);
            assert!(kv.mod_revision >= *acknowledged);
            versions += kv.version;
            match (find(&format!("pair{writer}")), found % 5) {
                (Some(pair), 2 | 3) => {
                    assert_eq!(number(pair), found - (found - 2) % 5, "a transaction was torn");
                    assert_eq!(found % 5 == 2, pair.mod_revision == kv.mod_revision);
                }
                (None, 4 | 0 | 1) => {}
                (pair, _) => panic!("a transaction was torn: {found} and {pair:?}"),
            }
        }
        // Each write made one revision, compaction or not.
        assert_eq!(at, versions + 1);
        if self.compacted > 1 {
            let old = pb::RangeRequest { revision: self.compacted - 1, ..all() };
            assert!(engine.range(old).await.unwrap_err().is_compacted());
        }

        let found: HashSet<i64> =
            engine.lease_leases().await.unwrap().leases.iter().map(|lease| lease.id).collect();
        let lost: Vec<_> = self.leases.difference(&found).collect();
        assert!(lost.is_empty(), "leases {lost:?} are gone");
        for id in &found {
            let request = pb::LeaseTimeToLiveRequest { id: *id, keys: false };
            let lease = engine.lease_time_to_live(request).await.unwrap();
            let elapsed = self.began.unwrap().elapsed().as_secs() as i64;
            assert_eq!(lease.granted_ttl, LEASE_SECONDS);
            // Never more than granted, never early.
            assert!(lease.ttl <= LEASE_SECONDS && lease.ttl >= LEASE_SECONDS - elapsed - 2, "{lease:?}");
        }
        // What was under way is settled now.
        self.leases.clone_from(&found);
        self.unsure.clear();
        engine.close().await;
    }
}

fn start(dir: &Path) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::writer_process", "--nocapture"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

#[tokio::test]
async fn what_was_acknowledged_survives_being_killed() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let rounds = number("ENGINE_KILL_ROUNDS").unwrap_or(u64::from(ROUNDS));
    let seed = number("ENGINE_KILL_SEED").unwrap_or_else(rand::random);
    eprintln!("{rounds} rounds, ENGINE_KILL_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let mut told = Told { began: Some(Instant::now()), compacted: -1, ..Told::default() };
    let (mut in_start, mut checked) = (0, 0);
    for round in 0..rounds {
        let (mut child, output) = start(dir.path());
        // Some rounds end after a time, mostly before anything is written; the others after so many answers.
        let kill_after = if random.random_ratio(1, 6) {
            // The moment is what is tested; nothing waits for it.
            tokio::time::sleep(Duration::from_micros(random.random_range(0..80_000))).await;
            child.kill().unwrap();
            in_start += 1;
            u64::MAX
        } else {
            told.answers + random.random_range(1..500)
        };
        for line in output.lines() {
            if told.hear(&line.unwrap()) && told.answers == kill_after {
                child.kill().unwrap();
            }
        }
        let status = child.wait().unwrap();
        assert!(status.code().is_none(), "round {round}: the writer ended by itself: {status}");
        // Sometimes the next process goes on with what a killed one left, and nothing was mended in between.
        if random.random_ratio(2, 3) || round + 1 == rounds {
            told.check(dir.path()).await;
            checked += 1;
        }
    }
    eprintln!(
        "{rounds} kills, {in_start} of them at a start; {} answers, {checked} checks in between",
        told.answers
    );
    assert!(told.answers > 0);
}
