//! A process that is killed (-9) while it writes loses nothing that it acknowledged.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use sharded_etcd_engine::{Engine, EngineConfig};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::Shard;

use crate::support::{all, get, put, revision};

/// Tells this test binary to be the writer, and where.
const DIR: &str = "ENGINE_KILL_TEST_DIR";
const ROUNDS: usize = 6;
const WRITERS: usize = 8;

fn config(dir: &Path) -> EngineConfig {
    let mut config = EngineConfig::new(dir, "kill");
    // Small, so that segments, checkpoints and compactions all happen all the time.
    config.segment_bytes = 64 * 1024;
    config.checkpoint_wal_bytes = 128 * 1024;
    config
}

/// Not a test of its own: the program that is killed. Prints `writer number revision` after each answer.
#[tokio::test]
#[allow(clippy::print_stdout)]
async fn writer_process() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let engine = Engine::open(config(Path::new(&dir))).await.unwrap();
    let writers = (0..WRITERS).map(|writer| {
        let engine = Arc::clone(&engine);
        async move {
            let key = format!("w{writer}");
            let before = engine.range(get(&key)).await.unwrap().kvs.pop();
            let mut number: u64 =
                before.map_or(0, |kv| std::str::from_utf8(&kv.value).unwrap().trim().parse().unwrap());
            loop {
                number += 1;
                // Long enough that batches cross pages and segments.
                let response = engine.put(put(&key, &format!("{number:<700}"))).await.unwrap();
                let revision = revision(&response.header);
                println!("ack {writer} {number} {revision}");
                if number.is_multiple_of(100) {
                    // Somebody else may have compacted further meanwhile.
                    let _ = engine
                        .compact(pb::CompactionRequest { revision: revision - 20, physical: false })
                        .await;
                }
            }
        }
    });
    join_all(writers).await;
}

#[tokio::test]
async fn what_was_acknowledged_survives_being_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = [(0u64, 0i64); WRITERS];
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill::writer_process", "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        // Killed after so many answers, another number in each round; what it said until then is read to the end.
        let kill_after = 300 + 517 * round;
        let mut answers = 0;
        for line in output.lines() {
            let line = line.unwrap();
            // The test harness prints in between; a line that was cut off is no answer.
            let Some((_, fields)) = line.split_once("ack ") else { continue };
            let fields: Vec<&str> = fields.split(' ').collect();
            let [writer, number, revision] = fields[..] else { continue };
            let Ok(revision) = revision.parse::<i64>() else { continue };
            let slot = &mut acknowledged[writer.parse::<usize>().unwrap()];
            *slot = (*slot).max((number.parse().unwrap(), revision));
            answers += 1;
            if answers == kill_after {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(answers >= kill_after, "round {round}: the writer ended by itself after {answers} answers");

        let engine = tokio::time::timeout(Duration::from_secs(60), Engine::open(config(dir.path())))
            .await
            .unwrap()
            .unwrap();
        let stored = engine.range(all()).await.unwrap();
        assert_eq!(stored.count, WRITERS as i64);
        for (writer, (number, at)) in acknowledged.iter().enumerate() {
            let kv = stored.kvs.iter().find(|kv| kv.key == format!("w{writer}")).unwrap();
            let found: u64 = std::str::from_utf8(&kv.value).unwrap().trim().parse().unwrap();
            assert!(
                found >= *number,
                "round {round}: writer {writer} had {number} acknowledged, {found} is there"
            );
            // At most the one write that was under way is more than acknowledged, and a version is never skipped.
            assert!(found <= number + 1);
            assert_eq!(kv.version as u64, found);
            assert!(kv.mod_revision >= *at);
        }
        // Each write made one revision, compaction or not.
        let total: i64 = stored.kvs.iter().map(|kv| kv.version).sum();
        assert_eq!(revision(&stored.header), total + 1);
        engine.close().await;
    }
}
