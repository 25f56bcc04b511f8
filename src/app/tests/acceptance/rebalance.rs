//! Acceptance 3: `shards` goes 3 → 5 → 2 and pins change while unmodified clients write, watch, lock and keep leases, over
//! embedded shards and over real etcd, also with the process killed on the way, and with one etcd stopped.
//!
//! The clients and their judge are `e2e/workload`: every acknowledged write is there, every watcher saw every event
//! exactly once and in order, locks held, leases neither early nor orphaned. Beside them a prefix that nobody writes is
//! compared with how it was: value, create and mod revision, version, lease.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sharded_etcd_testkit::{
    Process, etcdctl,
    tools::{self, Tools},
    wait_until,
};
use tokio::time::{Instant, sleep};

use crate::harness::{Engine, Up, run};

/// How long one spec is run at least, while it is re-balanced.
pub(crate) fn phase() -> Duration {
    let seconds = std::env::var("SHARDED_ETCD_ACCEPTANCE_SECONDS").ok();
    let total: u64 =
        seconds.map_or(48, |text| text.parse().expect("SHARDED_ETCD_ACCEPTANCE_SECONDS is a number"));
    Duration::from_secs(total / 4)
}

/// How long a re-balancing may take; a busy machine makes it slow.
const BALANCE_LIMIT: Duration = Duration::from_secs(90);

/// One load at a time: two of them on two cores would measure each other.
pub(crate) static ONE_LOAD: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// What the file says, one after the other.
const SPECS: [&str; 4] = [
    "shards: 3",
    "shards: 5\nkeyspace: {pins: [{prefix: /app/, shard: 4}]}",
    "shards: 5\nkeyspace: {pins: [{prefix: /app/, shard: 1}, {prefix: /locks/, shard: 3}]}",
    "shards: 2\nkeyspace: {pins: [{prefix: /app/, shard: 1}]}",
];

/// The load, in its own process.
pub(crate) struct Load {
    process: Process,
    until: PathBuf,
}

impl Load {
    pub(crate) async fn start(folder: &Path, endpoints: &str, more: &[&str]) -> Self {
        let until = folder.join("stop-the-load");
        let report = folder.join("report.json");
        let mut command = Command::new(tools::program(Tools::Workload, "workload").await.unwrap());
        command.args(["run", "--quiet", "--endpoints", endpoints, "--duration", "1h", "--final-wait", "60s"]);
        // Gentle enough for two cores that also build.
        command.args(["--rate", "15", "--writers", "6", "--watchers", "3", "--compact-every", "10s"]);
        command.arg("--until-file").arg(&until).arg("--report").arg(&report).args(more);
        let process = Process::start("workload", &mut command, &folder.join("load.log")).unwrap();
        Self { process, until }
    }

    /// Ends it; it has to have found nothing wrong.
    pub(crate) async fn judge(mut self) {
        std::fs::write(&self.until, "").unwrap();
        let status = self.process.wait(Duration::from_secs(240)).await.unwrap();
        let log = self.process.log();
        assert!(status.success() && log.contains("0 failed"), "the judge:\n{log}");
        println!("{log}");
    }
}

/// Runs one of the workload's commands on the topology.
async fn workload(up: &Up, command: &str, more: &[&str]) -> String {
    let program = tools::program(Tools::Workload, "workload").await.unwrap();
    let state = up.data().parent().unwrap().join("seed.json");
    let mut command = {
        let mut of = tokio::process::Command::new(program);
        of.args([command, "--endpoints", &up.endpoint(), "--state"]).arg(state).args(more);
        of
    };
    let output = command.kill_on_drop(true).output().await.unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    text
}

/// The topology's status, if it answers.
fn status(up: &Up) -> Option<Value> {
    let ended = run(&["status", "-o", "json", "--endpoint", &up.endpoint()]);
    (ended.code == Some(0)).then(|| serde_json::from_str(&ended.stdout).unwrap())
}

/// Waits until the shards are as many as asked for, all serve, and nothing moves any more.
pub(crate) async fn wait_settled(up: &Up, shards: usize) {
    let mut last = None;
    let what = format!("{shards} shards serve and nothing moves");
    let settled = wait_until(&what, BALANCE_LIMIT, || {
        last = status(up);
        let done = last.as_ref().is_some_and(|status| {
            let shards_now = status["topology"].as_array().unwrap();
            let serve = shards_now.iter().all(|shard| shard["phase"] == "Serving");
            let reconciling = |c: &Value| c["type"] == "Reconciling" && c["status"] == "True";
            shards_now.len() == shards
                && serve
                && status["moves"].as_array().unwrap().is_empty()
                && !status["conditions"].as_array().unwrap().iter().any(reconciling)
        });
        std::future::ready(done.then_some(()))
    });
    if let Err(error) = settled.await {
        panic!("{error}; status: {:#}", last.unwrap_or_default());
    }
}

/// Every range below `prefix` is on `shard`.
fn assert_pinned(up: &Up, prefix: &str, shard: &str) {
    let status = status(up).unwrap();
    let ranges = status["rangeMap"]["ranges"].as_array().unwrap();
    let end = format!("{}0", prefix.trim_end_matches('/'));
    let text = |range: &Value, field: &str| range[field].as_str().unwrap().to_owned();
    let mut found = 0;
    for range in ranges {
        let (from, to) = (text(range, "start"), text(range, "end"));
        if from < end && (to.is_empty() || to.as_str() > prefix) {
            assert_eq!(text(range, "shard"), shard, "{prefix} is pinned to {shard}: {range}");
            found += 1;
        }
    }
    assert!(found > 0);
}

async fn seed(up: &Up) {
    // Spread over the directories' order, so that ranges with and without writers move.
    workload(up, "seed", &["--keys", "4000", "--dirs", "40", "--prefix", "/seed/"]).await;
}

async fn verify_seed(up: &Up) {
    workload(up, "verify-seed", &["--prefix", "/seed/"]).await;
}

/// Shards come and go, pins change, and clients do not notice.
async fn live(engine: Engine) {
    let _one = ONE_LOAD.lock().await;
    let mut up = Up::file(engine, SPECS[0]).await;
    seed(&up).await;
    let load = Load::start(up.data().parent().unwrap(), &up.endpoint(), &[]).await;
    let shards = [3, 5, 5, 2];
    for (spec, shards) in SPECS.iter().zip(shards) {
        let began = Instant::now();
        up.save(spec);
        sleep(phase().saturating_sub(began.elapsed())).await;
        wait_settled(&up, shards).await;
        verify_seed(&up).await;
    }
    assert_pinned(&up, "/app/", "shard-1");
    up.process().check_running().unwrap();
    load.judge().await;
    verify_seed(&up).await;
    for gone in ["shard-2", "shard-3", "shard-4"] {
        assert!(!up.data().join(gone).exists(), "{gone} has left, and its data with it");
    }
}

/// The same while the process is killed again and again.
async fn killed(engine: Engine) {
    let _one = ONE_LOAD.lock().await;
    let mut up = Up::file(engine, SPECS[0]).await;
    seed(&up).await;
    let load = Load::start(up.data().parent().unwrap(), &up.endpoint(), &["--tolerate-unavailable"]).await;
    let mut kills = 0;
    for (n, spec) in SPECS.iter().enumerate() {
        up.save(spec);
        // Ten kills, at times that differ, most of them in the middle of moves.
        for kill in 0..[1, 3, 3, 3][n] {
            sleep(Duration::from_millis(700 + 900 * kill)).await;
            up.kill();
            kills += 1;
            up.again().await;
        }
        wait_settled(&up, [3, 5, 5, 2][n]).await;
        verify_seed(&up).await;
    }
    assert_eq!(kills, 10);
    load.judge().await;
    verify_seed(&up).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_shards() {
    live(Engine::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn real_etcd() {
    live(Engine::Etcd).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_shards_killed_ten_times() {
    killed(Engine::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn real_etcd_killed_ten_times() {
    killed(Engine::Etcd).await;
}

/// One etcd stands still for ten seconds: its ranges fail and name it, all others go on, and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn one_etcd_stopped_for_ten_seconds() {
    let _one = ONE_LOAD.lock().await;
    let up = Up::file(Engine::Etcd, "shards: 3\nkeyspace: {presplit: [/b/, /c/]}\nrebalance: {mode: Paused}")
        .await;
    let load = Load::start(
        up.data().parent().unwrap(),
        &up.endpoint(),
        &["--tolerate-unavailable", "--prefixes", "/a/,/b/,/c/", "--lock-prefix", "/a-locks/"],
    )
    .await;
    sleep(phase() / 2).await;
    let stopped = etcd_of(&up, "shard-1");
    kill_process(stopped, Signal::STOP).unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    let mut told = None;
    while Instant::now() < until {
        up.ctl(&["put", "/a/x", "goes on"]).await;
        assert_eq!(up.ctl(&["get", "/c/x"]).await, "");
        if told.is_none() {
            told = Some(etcdctl(&up.endpoint(), &["--command-timeout=9s", "get", "/b/x"]).await.unwrap());
        }
    }
    kill_process(stopped, Signal::CONT).unwrap();
    let told = told.unwrap();
    assert_ne!(told.code, Some(0), "{told:?}");
    assert!(told.stderr.contains("shard-1"), "the error names the shard: {told:?}");
    wait_until("the range is served again", Duration::from_secs(30), || async {
        let put = etcdctl(&up.endpoint(), &["put", "/b/x", "again"]).await.unwrap();
        (put.code == Some(0)).then_some(())
    })
    .await
    .unwrap();
    load.judge().await;
}

/// The process of the etcd that runs as this shard.
fn etcd_of(up: &Up, shard: &str) -> Pid {
    let argument = format!("--data-dir={}", up.data().canonicalize().unwrap().join(shard).display());
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut found = processes.filter(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|b| *b == 0).any(|a| a == argument.as_bytes())
    });
    let id = found.next().unwrap().file_name().to_str().unwrap().parse().unwrap();
    Pid::from_raw(id).unwrap()
}
