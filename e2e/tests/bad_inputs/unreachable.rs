//! A shard that does not answer: what needs it fails and names it, everything else goes on.

use std::{fs, path::Path, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use sharded_etcd_e2e::Up;
use sharded_etcd_testkit::{
    tools::{self, Tools},
    wait_until,
};

use crate::{
    api::{Api, Ask, get, put},
    folder, resource, text,
};

/// How long the shard may take to be used again.
const BACK_LIMIT: Duration = Duration::from_secs(30);

/// The etcd of a shard, found by its command line; goes on when dropped.
struct Stopped(Pid);

impl Stopped {
    fn shard(data: &Path, name: &str) -> Self {
        let wanted = format!("--data-dir={}", data.canonicalize().unwrap().join(name).display());
        let mut found = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let is_it = line.split(|byte| *byte == 0).any(|argument| argument == wanted.as_bytes());
            let id = entry.file_name().to_str()?.parse().ok()?;
            if is_it { Pid::from_raw(id) } else { None }
        });
        let id = found.next().unwrap_or_else(|| panic!("no process with {wanted}"));
        kill_process(id, Signal::STOP).unwrap();
        Self(id)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn is_named_and_the_others_go_on() {
    let folder = folder();
    let (file, data) = (folder.path().join("demo.yaml"), folder.path().join("data"));
    fs::write(&file, resource("shards: 3\nkeyspace: {presplit: [/b/, /c/]}")).unwrap();
    let etcd = tools::program(Tools::Etcd, "etcd").await.unwrap();
    let arguments = ["-f", text(&file), "--engine", "etcd", "--etcd", text(&etcd)];
    let mut up = Up::start(&data, &arguments).await.unwrap();
    let mut api = Api::connect(&up.endpoint).await;
    for key in ["/a/k", "/b/k", "/c/k"] {
        api.kv.put(put(key, "before")).await.unwrap();
    }

    let stopped = Stopped::shard(&data, "shard-1");
    let mut other = api.clone();
    let (read, write) =
        tokio::join!(api.ask(Ask::Range(get("/b/k"))), other.ask(Ask::Put(put("/b/k", "during"))));
    for (what, answer) in [("read", &read), ("write", &write)] {
        assert!(!answer.starts_with("ok"), "{what}: {answer}");
        assert!(answer.contains("shard-1"), "the {what} does not say which shard: {answer}");
    }
    for key in ["/a/k", "/c/k"] {
        assert_eq!(api.ask(Ask::Range(get(key))).await, "ok 1 keys", "{key} is on another shard");
        assert_eq!(api.ask(Ask::Put(put(key, "during"))).await, "ok", "{key} is on another shard");
    }

    drop(stopped);
    let back = wait_until("the shard is used again", BACK_LIMIT, || {
        let mut api = api.clone();
        async move { (api.ask(Ask::Put(put("/b/k", "after"))).await == "ok").then_some(()) }
    });
    back.await.unwrap();
    let value = api.kv.range(get("/b/k")).await.unwrap().into_inner().kvs.remove(0).value;
    assert_eq!(value, "after", "what was not acknowledged never replaces what was");
    up.process.check_running().unwrap();
    let log = up.process.log();
    assert!(!log.contains("panicked"), "{log}");
    // The etcds are ended with it.
    up.process.stop().await.unwrap();
}
