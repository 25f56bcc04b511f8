//! A disk that fills up under the embedded engine: writes fail with a clear error, reads go on, nothing acknowledged is
//! lost.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use sharded_etcd_e2e::{Up, program};
use sharded_etcd_testkit::{Process, free_port, wait_until};

use crate::{
    api::{Api, Ask, get, put},
    folder, text,
};

const START_LIMIT: Duration = Duration::from_secs(60);
/// Small enough to fill a small disk to its brim, large enough to do so soon.
const VALUE_BYTES: usize = 64 << 10;
/// Writes after which a disk that small must be full.
const WRITES_MAX: usize = 4_000;
/// Writes tried after the first that failed.
const WRITES_AFTER: usize = 10;

/// Writes until the disk is full; gives what was acknowledged last, by key.
async fn fill(api: &mut Api) -> BTreeMap<String, String> {
    let mut acknowledged = BTreeMap::new();
    let mut failed = Vec::new();
    for n in 0..WRITES_MAX {
        // New values of few keys: what counts is what is written, not what is kept.
        let (key, value) = (format!("/{}/k", n % 20), format!("{n}{}", "x".repeat(VALUE_BYTES)));
        let answer = api.ask(Ask::Put(put(&key, &value))).await;
        if answer == "ok" {
            acknowledged.insert(key, value);
        } else {
            failed.push((key, value, answer));
        }
        if failed.len() > WRITES_AFTER {
            break;
        }
    }
    assert!(!failed.is_empty(), "the disk did not fill up");
    for (key, _, answer) in &failed {
        let is_clear =
            ["space", "disk", "file too large", "File too large"].iter().any(|w| answer.contains(w));
        assert!(is_clear, "put of {key}: {answer}");
    }
    // Those may or may not be there later: what was acknowledged before them is not known any more.
    for (key, ..) in &failed {
        acknowledged.remove(key);
    }
    assert!(!acknowledged.is_empty());
    acknowledged
}

async fn check(api: &mut Api, acknowledged: &BTreeMap<String, String>) {
    for (key, value) in acknowledged {
        let answer = api.kv.range(get(key)).await.unwrap().into_inner();
        let found = answer.kvs.first().map(|kv| kv.value.clone());
        assert!(found.is_some_and(|found| found == value.as_bytes()), "{key} is not what was acknowledged");
    }
}

/// `up` whose files cannot grow above a size: what a full disk looks like, without being root.
struct Limited {
    process: Process,
    endpoint: String,
}

impl Limited {
    /// Starts it with a limit in units of 512 bytes (POSIX `ulimit -f`), or without one.
    async fn start(data: &Path, log: &Path, limit: Option<u32>) -> Self {
        let endpoint = format!("127.0.0.1:{}", free_port().unwrap());
        // A process that does not ignore the signal is ended by the first write above the limit.
        let limit = limit.map_or(String::new(), |blocks| format!("trap '' XFSZ; ulimit -f {blocks}; "));
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{limit}exec \"$0\" \"$@\"")]).arg(program().unwrap());
        command.args(["up", "--shards", "2", "--listen", &endpoint, "--data-dir", text(data)]);
        let mut process = Process::start("sharded-etcd up", &mut command, log).unwrap();
        let ready = wait_until("it serves", START_LIMIT, || {
            let ended = process.check_running().err().map(Err);
            let serves = process.log().contains(&format!("at http://{endpoint}")).then_some(Ok(()));
            std::future::ready(ended.or(serves))
        });
        ready.await.unwrap().unwrap();
        Self { process, endpoint }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_grow() {
    let folder = folder();
    let (data, log) = (folder.path().join("data"), folder.path().join("log"));
    // 3 MiB: the first two files of a log fit, the third does not.
    let mut up = Limited::start(&data, &log, Some(6 << 10)).await;
    let mut api = Api::connect(&up.endpoint).await;
    let acknowledged = fill(&mut api).await;
    check(&mut api, &acknowledged).await;
    up.process.check_running().unwrap();
    up.process.kill();
    assert!(!up.process.log().contains("panicked"), "{}", up.process.log());

    let mut again = Limited::start(&data, &log, None).await;
    let mut api = Api::connect(&again.endpoint).await;
    check(&mut api, &acknowledged).await;
    api.kv.put(put("/after", "v")).await.unwrap();
    again.process.stop().await.unwrap();
}

/// A mounted file system of a size; gone when dropped.
struct Disk(PathBuf);

impl Disk {
    /// Needs to be allowed to mount.
    fn mount(at: &Path, mebibytes: u32) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(at).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(at.to_owned()))
    }

    fn resize(&self, mebibytes: u32) {
        let size = format!("remount,size={mebibytes}m");
        let resized = Command::new("mount").args(["-o", &size]).arg(&self.0).status().unwrap();
        assert!(resized.success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_disk() {
    let folder = folder();
    let data = folder.path().join("data");
    let Some(disk) = Disk::mount(&data, 16) else {
        println!("not allowed to mount a small disk: files_that_cannot_grow stands for it");
        return;
    };
    let mut up = Up::start(&data, &["--shards", "2"]).await.unwrap();
    let mut api = Api::connect(&up.endpoint).await;
    let acknowledged = fill(&mut api).await;
    check(&mut api, &acknowledged).await;
    up.process.check_running().unwrap();
    up.process.kill();
    assert!(!up.process.log().contains("panicked"), "{}", up.process.log());

    disk.resize(256);
    up.restart().await.unwrap();
    let mut api = Api::connect(&up.endpoint).await;
    check(&mut api, &acknowledged).await;
    api.kv.put(put("/after", "v")).await.unwrap();
    up.process.stop().await.unwrap();
}
