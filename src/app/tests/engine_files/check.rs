//! Damaged files: the check names them, and so does the start, which is refused.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sharded_etcd_engine::{Engine, EngineConfig};
use sharded_etcd_shard::Shard;

use crate::server::{check, put, run};

/// A data folder with a checkpoint and several segments.
async fn written(dir: &Path) {
    let mut config = EngineConfig::new(dir, "check");
    config.segment_bytes = 64 * 1024;
    let engine = Engine::open(config).await.unwrap();
    for n in 0..200 {
        engine.put(put(&format!("k{}", n % 40), &"v".repeat(1000))).await.unwrap();
        if n == 100 {
            engine.defragment().await.unwrap();
        }
    }
    engine.close().await;
}

fn files(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().ends_with(suffix))
        .collect();
    found.sort();
    found
}

fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
    }
    to
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Both the check and a start fail, and say all of this.
fn refused(dir: &Path, parts: &[&str]) {
    let start = run(&["engine", "--listen", "127.0.0.1:0", "--data-dir", dir.to_str().unwrap()]);
    for (code, text) in [check(dir), start] {
        assert_eq!(code, Some(1), "{text}");
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
    }
}

#[tokio::test]
async fn what_is_damaged_is_named_and_refused() {
    let source = tempfile::tempdir().unwrap();
    written(source.path()).await;
    let (code, text) = check(source.path());
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("revision    201\n") && text.contains("keys        40\n"), "{text}");
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let logs: Vec<String> = files(source.path(), ".log").iter().map(|path| name(path)).collect();
    let checkpoint = name(&files(source.path(), ".db")[0]);
    assert!(logs.len() > 2, "{logs:?}");
    let last = &logs[logs.len() - 1];

    type Damage<'a> = (&'a str, Box<dyn Fn(&mut Vec<u8>)>, &'a str);
    let damages: Vec<Damage<'_>> = vec![
        (last, Box::new(|bytes| bytes[4096 + 30] ^= 4), "is damaged at byte 4096"),
        (last, Box::new(|bytes| bytes[20] ^= 4), "is damaged at byte 0"),
        (last, Box::new(|bytes| bytes.truncate(5000)), "is damaged at byte 5000"),
        (last, Box::new(|bytes| bytes[8] = 9), "has format 9"),
        (&checkpoint, Box::new(|bytes| bytes[8] = 9), "has format 9"),
        (&checkpoint, Box::new(|bytes| bytes[5000] ^= 1), "a block's checksum is wrong"),
        (&checkpoint, Box::new(|bytes| bytes.truncate(6000)), "the file ends too early"),
        ("identity.json", Box::new(|bytes| bytes.truncate(10)), "is damaged"),
        ("identity.json", Box::new(|bytes| *bytes.last_mut().unwrap() = b'x'), "is damaged"),
    ];
    for (file, damage, reason) in &damages {
        let dir = copy(source.path());
        let path = dir.path().join(file);
        change(&path, damage);
        refused(dir.path(), &[path.to_str().unwrap(), reason]);
    }

    // Missing files.
    let dir = copy(source.path());
    fs::remove_file(dir.path().join(last)).unwrap();
    refused(dir.path(), &[&logs[logs.len() - 2], "the segment after this one is missing"]);
    let dir = copy(source.path());
    fs::remove_file(dir.path().join(&checkpoint)).unwrap();
    refused(dir.path(), &[&logs[0], "records between the checkpoint and this segment are missing"]);
    let dir = copy(source.path());
    fs::remove_file(dir.path().join("identity.json")).unwrap();
    refused(dir.path(), &["identity.json"]);

    // A file of another engine.
    let other = tempfile::tempdir().unwrap();
    written(other.path()).await;
    let dir = copy(source.path());
    fs::copy(other.path().join(last), dir.path().join(last)).unwrap();
    refused(dir.path(), &[last, "belongs to cluster"]);

    // And what is no damage: a checkpoint that was never finished.
    let dir = copy(source.path());
    fs::write(dir.path().join("checkpoint.tmp"), b"half").unwrap();
    let (code, text) = check(dir.path());
    assert_eq!(code, Some(0), "{text}");

    let (code, text) = check(&dir.path().join("nothing"));
    assert!(code == Some(1) && text.contains("is no directory"), "{text}");
}
