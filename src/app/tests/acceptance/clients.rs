//! Acceptance 1: what etcdctl can do, over embedded shards and over real etcd, also after `kill -9`.

use std::{process::Stdio, time::Duration};

use serde_json::Value;
use sharded_etcd_testkit::etcdctl::command;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout},
    time::timeout,
};

use crate::harness::{Engine, Up};

const LIMIT: Duration = Duration::from_secs(30);

/// Keys go to three shards from the start.
const SPEC: &str = "shards: 3\nkeyspace: {presplit: [/b/, /c/]}";

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_on_embedded_shards() {
    everything(Engine::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_on_real_etcd() {
    everything(Engine::Etcd).await;
}

async fn everything(engine: Engine) {
    let mut up = Up::file(engine, SPEC).await;
    keys(&up).await;
    transactions(&up).await;
    watches(&up).await;
    leases(&up).await;
    endpoint(&up).await;
    locks_and_elections(&up).await;

    let before = up.ctl(&["get", "--prefix", "", "-w", "json"]).await;
    let lease = grant(&up, 600).await;
    up.ctl(&["put", "/a/leased", "x", &format!("--lease={lease}")]).await;
    up.kill();
    up.again().await;
    assert_eq!(up.ctl(&["get", "/a/leased", "--print-value-only"]).await, "x\n");
    let left = up.ctl(&["lease", "timetolive", &lease, "--keys"]).await;
    assert!(left.contains("/a/leased") && left.contains("granted with TTL(600s)"), "{left}");
    up.ctl(&["lease", "revoke", &lease]).await;
    let after = up.ctl(&["get", "--prefix", "", "-w", "json"]).await;
    assert_eq!(kvs(&before), kvs(&after), "all keys with their revisions, versions and leases");
    assert!(revision(&after) > revision(&before));
}

async fn keys(up: &Up) {
    for key in ["/a/1", "/a/2", "/b/1", "/c/1", "plain"] {
        assert_eq!(up.ctl(&["put", key, &format!("value of {key}")]).await, "OK\n");
    }
    let all = up.ctl(&["get", "--prefix", ""]).await;
    assert_eq!(
        all,
        "/a/1\nvalue of /a/1\n/a/2\nvalue of /a/2\n/b/1\nvalue of /b/1\n/c/1\nvalue of /c/1\nplain\nvalue of plain\n"
    );
    let page = up.ctl(&["get", "--prefix", "", "--limit", "3", "--keys-only", "-w", "json"]).await;
    let page: Value = serde_json::from_str(&page).unwrap();
    assert_eq!((page["count"].as_i64(), page["more"].as_bool()), (Some(5), Some(true)));
    let down = up
        .ctl(&["get", "--prefix", "/", "--order=DESCEND", "--sort-by=KEY", "--limit=2", "--keys-only"])
        .await;
    assert_eq!(down.split_whitespace().collect::<Vec<_>>(), ["/c/1", "/b/1"]);

    let then = revision(&up.ctl(&["get", "x", "-w", "json"]).await).to_string();
    assert_eq!(up.ctl(&["del", "--prefix", "/", "--prev-kv"]).await.lines().next(), Some("4"));
    assert_eq!(up.ctl(&["get", "--prefix", "/"]).await, "");
    let old = up.ctl(&["get", "--prefix", "/", "--rev", &then, "--keys-only"]).await;
    assert_eq!(old.split_whitespace().count(), 4, "{old}");
}

async fn transactions(up: &Up) {
    up.ctl(&["put", "/t/a", "1"]).await;
    let txn = "value(\"/t/a\") = \"1\"\n\nput /t/a 2\nput /t/b 2\n\nput /t/a wrong\n\n";
    assert!(up.ctl_with_input(&["txn"], txn).await.starts_with("SUCCESS"));
    let otherwise =
        up.ctl_with_input(&["txn"], "value(\"/t/a\") = \"1\"\n\nput /t/a wrong\n\nget /t/b\n\n").await;
    assert_eq!(otherwise.split_whitespace().collect::<Vec<_>>(), ["FAILURE", "/t/b", "2"]);
    let reads = up.ctl_with_input(&["txn"], "version(\"/t/a\") > \"0\"\n\nget /t/a\nget plain\n\n\n").await;
    assert_eq!(
        reads.split_whitespace().collect::<Vec<_>>(),
        ["SUCCESS", "/t/a", "2", "plain", "value", "of", "plain"]
    );
}

async fn watches(up: &Up) {
    let from = (revision(&up.ctl(&["put", "/w/0", "past", "-w", "json"]).await)).to_string();
    let mut watch = Running::start(up, &["watch", "--prefix", "", "--rev", &from]).await;
    assert_eq!(watch.lines(3).await, ["PUT", "/w/0", "past"]);
    for (key, value) in [("/a/w", "1"), ("/c/w", "2"), ("/b/w", "3")] {
        up.ctl(&["put", key, value]).await;
        assert_eq!(watch.lines(3).await, ["PUT", key, value]);
    }
    up.ctl(&["del", "/c/w"]).await;
    assert_eq!(watch.lines(2).await, ["DELETE", "/c/w"]);
}

async fn leases(up: &Up) {
    let lease = grant(up, 100).await;
    for key in ["/a/l", "/c/l"] {
        up.ctl(&["put", key, "x", &format!("--lease={lease}")]).await;
    }
    assert!(up.ctl(&["lease", "list"]).await.contains(&lease));
    assert!(up.ctl(&["lease", "keep-alive", "--once", &lease]).await.contains("keepalived with TTL(100)"));
    let left = up.ctl(&["lease", "timetolive", &lease, "--keys"]).await;
    assert!(left.contains("/a/l") && left.contains("/c/l"), "{left}");
    up.ctl(&["lease", "revoke", &lease]).await;
    assert_eq!(up.ctl(&["get", "/a/l"]).await + &up.ctl(&["get", "/c/l"]).await, "");

    let short = grant(up, 1).await;
    up.ctl(&["put", "/b/l", "x", &format!("--lease={short}")]).await;
    let mut watch = Running::start(up, &["watch", "/b/l"]).await;
    assert_eq!(watch.lines(2).await, ["DELETE", "/b/l"], "it expires");
}

async fn endpoint(up: &Up) {
    let url = format!("http://{}", up.endpoint());
    assert!(up.ctl(&["endpoint", "health"]).await.contains("is healthy"));
    let members = up.ctl(&["member", "list"]).await;
    assert!(members.contains(&url), "{members}");
    let status: Value = serde_json::from_str(&up.ctl(&["endpoint", "status", "-w", "json"]).await).unwrap();
    let status = &status[0]["Status"];
    assert!(status["version"].as_str().is_some_and(|v| v.starts_with("3.")), "{status}");
    assert!(status["leader"].as_u64().is_some_and(|leader| leader != 0), "{status}");
    assert!(status["dbSize"].as_i64().is_some_and(|size| size > 0), "{status}");
    assert_eq!(up.ctl(&["alarm", "list"]).await, "");
    // Clients dial what MemberList says.
    assert!(up.ctl(&["endpoint", "health", "--cluster"]).await.contains(&url));
}

async fn locks_and_elections(up: &Up) {
    assert_eq!(up.ctl(&["lock", "/b/lock", "--", "echo", "held"]).await, "held\n");
    let mut holder = Running::start(up, &["lock", "/b/lock"]).await;
    let key = holder.lines(1).await.remove(0);
    assert!(key.starts_with("/b/lock/"), "{key}");
    let mut waiting = Running::start(up, &["lock", "/b/lock"]).await;
    assert!(
        timeout(Duration::from_millis(500), waiting.output.next_line()).await.is_err(),
        "two hold the lock"
    );
    holder.interrupt().await;
    assert!(waiting.lines(1).await[0].starts_with("/b/lock/"));

    let mut leader = Running::start(up, &["elect", "elected", "first"]).await;
    assert_eq!(leader.lines(2).await[1], "first");
    let mut observer = Running::start(up, &["elect", "-l", "elected"]).await;
    assert_eq!(observer.lines(2).await[1], "first");
    let mut next = Running::start(up, &["elect", "elected", "second"]).await;
    leader.interrupt().await;
    assert_eq!(next.lines(2).await[1], "second");
    assert_eq!(observer.lines(2).await[1], "second");
}

async fn grant(up: &Up, ttl: u32) -> String {
    let granted = up.ctl(&["lease", "grant", &ttl.to_string()]).await;
    granted.split_whitespace().nth(1).unwrap().to_owned()
}

fn revision(json: &str) -> i64 {
    serde_json::from_str::<Value>(json).unwrap()["header"]["revision"].as_i64().unwrap()
}

fn kvs(json: &str) -> Value {
    serde_json::from_str::<Value>(json).unwrap()["kvs"].take()
}

/// An etcdctl that goes on until it is told to end.
struct Running {
    child: Child,
    output: Lines<BufReader<ChildStdout>>,
}

impl Running {
    async fn start(up: &Up, arguments: &[&str]) -> Self {
        let mut command = command(&up.endpoint()).await.unwrap();
        let mut child = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, output }
    }

    async fn lines(&mut self, count: usize) -> Vec<String> {
        let mut lines = Vec::new();
        while lines.len() < count {
            match timeout(LIMIT, self.output.next_line()).await {
                Ok(line) => lines.push(line.unwrap().expect("etcdctl ended")),
                Err(_) => panic!("etcdctl printed nothing more after {lines:?}"),
            }
        }
        lines
    }

    async fn interrupt(mut self) {
        let id = rustix::process::Pid::from_raw(self.child.id().unwrap() as i32).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
        timeout(LIMIT, self.child.wait()).await.unwrap().unwrap();
    }
}
