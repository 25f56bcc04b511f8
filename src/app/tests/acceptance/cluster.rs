//! The programs as a cluster runs them: started together over empty etcds, told by a ConfigMap, stopped by signals.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::StreamExt;
use rustix::process::Signal;
use serde_json::Value;
use sharded_etcd_core::records::{PROXIES_PREFIX, ProxyRecord, Record};
use sharded_etcd_crd::{
    ShardedEtcd,
    routing::{Engine, RoutedShard, Routing},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Shard, etcd::EtcdShard};
use sharded_etcd_testkit::{EtcdProcess, EtcdProcessOptions, Process, free_port, wait_until};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::{client, folder, run, spawn};

const LIMIT: Duration = Duration::from_secs(60);

/// A ConfigMap as the kubelet mounts it: a link to a link, of which the inner one is swapped.
struct ConfigMap {
    folder: PathBuf,
    version: u32,
}

impl ConfigMap {
    fn new(folder: &Path, routing: &Routing) -> Self {
        let mut this = Self { folder: folder.to_owned(), version: 0 };
        this.update(routing);
        symlink("..data/routing.json", this.path()).unwrap();
        this
    }

    fn path(&self) -> PathBuf {
        self.folder.join("routing.json")
    }

    fn update(&mut self, routing: &Routing) {
        let before = self.folder.join(format!("..{}", self.version));
        self.version += 1;
        let name = format!("..{}", self.version);
        fs::create_dir(self.folder.join(&name)).unwrap();
        fs::write(self.folder.join(&name).join("routing.json"), routing.encode()).unwrap();
        symlink(&name, self.folder.join("..data_tmp")).unwrap();
        fs::rename(self.folder.join("..data_tmp"), self.folder.join("..data")).unwrap();
        let _ = fs::remove_dir_all(before);
    }
}

fn routing(meta: &str, shards: &[Vec<String>], generation: i64) -> Routing {
    let shard = |endpoints: &Vec<String>| RoutedShard { incarnation: 0, endpoints: endpoints.clone() };
    let mut resource = ShardedEtcd::with_shards("demo", u32::try_from(shards.len()).unwrap());
    resource.metadata.generation = Some(generation);
    resource.metadata.uid = Some("8f2c".to_owned());
    Routing {
        uid: "8f2c".to_owned(),
        bootstrap: true,
        engine: Engine::Etcd,
        meta: vec![meta.to_owned()],
        shards: shards.iter().enumerate().map(|(i, s)| (format!("shard-{i}"), shard(s))).collect(),
        resource,
    }
}

/// One of the programs.
struct Program {
    process: Process,
    endpoint: String,
}

impl Program {
    fn start(folder: &TempDir, routing: &Path, command: &str, name: &str, more: &[&str]) -> Self {
        let endpoint = format!("127.0.0.1:{}", free_port().unwrap());
        let routing = routing.display().to_string();
        let common = [command, "--routing", &routing, "--listen", &endpoint, "--name", name];
        let arguments: Vec<String> = common.iter().chain(more).map(|a| (*a).to_owned()).collect();
        let process = spawn(&arguments, &folder.path().join(format!("{name}.log")));
        Self { process, endpoint }
    }

    /// HTTP/1: the status code and the body; `None` while nothing answers.
    async fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(&self.endpoint).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let code = answer.split(' ').nth(1)?.parse().ok()?;
        Some((code, answer))
    }

    /// Waits until a path answers with this code, and a text in its body.
    async fn answers(&self, path: &str, code: u16, text: &str) {
        let what = format!("{path} answers {code} with {text:?}");
        let seen = wait_until(&what, LIMIT, || async {
            self.get(path).await.filter(|(found, body)| *found == code && body.contains(text))
        });
        if let Err(error) = seen.await {
            panic!("{error}; it is {:?}; the log:\n{}", self.get(path).await, self.process.log());
        }
    }

    fn status(&self) -> Value {
        let ended = run(&["status", "--endpoint", &self.endpoint, "-o", "json"]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        serde_json::from_str(&ended.stdout).unwrap()
    }
}

fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() }
}

/// The generations that registered proxies act on.
async fn generations(meta: &EtcdShard) -> Vec<Option<i64>> {
    let range = sharded_etcd_core::keyspace::KeyRange::prefix(PROXIES_PREFIX);
    let request =
        pb::RangeRequest { key: range.request_key(), range_end: range.request_end(), ..Default::default() };
    let records = meta.range(request).await.unwrap().kvs;
    records.iter().map(|kv| ProxyRecord::decode(&kv.value).unwrap().generation).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topology_starts_grows_and_goes_on_while_its_parts_are_replaced() {
    let etcd = || EtcdProcess::start(EtcdProcessOptions::default());
    let (meta, mut hanging, late) = (etcd().await.unwrap(), etcd().await.unwrap(), etcd().await.unwrap());
    let three = EtcdProcess::start_cluster(3, EtcdProcessOptions::default()).await.unwrap();
    let mut shards = vec![vec![hanging.endpoint()], three.iter().map(EtcdProcess::endpoint).collect()];
    let folder = folder();
    let mount = folder.path().join("mount");
    fs::create_dir(&mount).unwrap();
    let mut config = ConfigMap::new(&mount, &routing(&meta.endpoint(), &shards, 1));
    hanging.pause().await.unwrap();

    // Everything starts at once, and one shard is not there yet.
    let start = |command, name, more: &[&str]| Program::start(&folder, &config.path(), command, name, more);
    let managers = [start("shard-manager", "manager-a", &[]), start("shard-manager", "manager-b", &[])];
    let mut proxy = start("proxy", "proxy-a", &["--drain-delay", "3s"]);
    for manager in &managers {
        manager.answers("/readyz", 503, "waits for shard-0 (no answer").await;
        manager.answers("/livez", 200, "ok").await;
        manager.answers("/metrics", 200, "# EOF").await;
        let asked = run(&["status", "--endpoint", &manager.endpoint]);
        assert!(asked.code == Some(1) && asked.stderr.contains("waits for shard-0"), "{}", asked.stderr);
    }
    assert_eq!(proxy.get("/readyz").await, None, "it cannot serve anything yet");
    hanging.resume();
    for manager in &managers {
        manager.answers("/readyz", 200, "ok").await;
    }
    proxy.answers("/readyz", 200, "ok").await;
    let writer = client(&proxy.endpoint);
    writer.put(put("/a/1", "one")).await.unwrap();

    // What the operator is told, by the leader and by the standby.
    let leads = |manager: usize| {
        let manager = &managers[manager];
        async move { manager.get("/metrics").await.is_some_and(|m| m.1.contains("manager_leading 1")) }
    };
    wait_until("a manager leads", LIMIT, || async { (leads(0).await || leads(1).await).then_some(()) })
        .await
        .unwrap();
    for manager in &managers {
        let told = wait_until("the generation is told", LIMIT, || async {
            Some(manager.status()).filter(|status| status["observedGeneration"] == 1)
        });
        let told = told.await.unwrap();
        let shard = &told["topology"][1];
        assert_eq!((&shard["members"], &shard["ready"]), (&3.into(), &3.into()), "{told:#}");
        assert!(shard["leader"].as_str().unwrap().starts_with("127.0.0.1:"), "{told:#}");
        assert_eq!(shard["incarnation"], 0);
    }

    // One more shard, and meta by another name.
    shards.push(vec![late.endpoint()]);
    let other_name = meta.endpoint().replace("127.0.0.1", "localhost");
    config.update(&routing(&other_name, &shards, 2));
    wait_until("the third shard serves", LIMIT, || async {
        let status = managers[0].status();
        let shards = status["topology"].as_array().cloned().unwrap_or_default();
        shards.iter().any(|s| s["shard"] == "shard-2" && s["phase"] == "Serving").then_some(())
    })
    .await
    .unwrap();
    assert_eq!(generations(&meta.shard()).await, [Some(2)]);
    wait_until("the proxy goes over", LIMIT, || async {
        proxy.process.log().contains("meta has other endpoints").then_some(())
    })
    .await
    .unwrap();
    writer.put(put("/a/2", "two")).await.unwrap();

    // A shard leaves, and its etcd is gone before the routing says so.
    let mut fewer = routing(&other_name, &shards[..2], 3);
    fewer.shards = routing(&other_name, &shards, 3).shards;
    config.update(&fewer);
    wait_until("the third shard has left", LIMIT, || async {
        let status = managers[0].status();
        (status["topology"].as_array().unwrap().len() == 2 && status["observedGeneration"] == 3).then_some(())
    })
    .await
    .unwrap();
    drop(late);
    writer.put(put("/a/3", "three")).await.unwrap();
    wait_until("nothing is missed", LIMIT, || async {
        let status = managers[1].status();
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True").then_some(())
    })
    .await
    .unwrap();
    config.update(&routing(&other_name, &shards[..2], 3));
    wait_until("the proxy forgets it", LIMIT, || async {
        proxy.process.log().contains("shard is gone").then_some(())
    })
    .await
    .unwrap();
    writer.put(put("/a/4", "four")).await.unwrap();

    // The leader is told to go: the other leads long before its lease would have run out.
    let first = if leads(0).await { 0 } else { 1 };
    let [mut one, mut two] = managers;
    let (going, staying) = if first == 0 { (&mut one, &mut two) } else { (&mut two, &mut one) };
    let begun = std::time::Instant::now();
    going.process.signal(Signal::TERM);
    staying.answers("/metrics", 200, "manager_leading 1").await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(going.process.wait(LIMIT).await.unwrap().success());

    // The proxy is told to go: it says so first, serves on, and ends its streams with an error to go on after elsewhere.
    let all = pb::WatchCreateRequest { key: "/a/".into(), range_end: "/a0".into(), ..Default::default() };
    let mut watch = writer.watch(all).await.unwrap();
    assert!(watch.next().await.unwrap().unwrap().created);
    let begun = std::time::Instant::now();
    proxy.process.signal(Signal::TERM);
    proxy.answers("/readyz", 503, "shutting down").await;
    proxy.answers("/livez", 200, "ok").await;
    let mut written = 0;
    while begun.elapsed() < Duration::from_millis(2000) {
        let key = format!("/a/drain-{written}");
        client(&proxy.endpoint).put(put(&key, "v")).await.expect("it serves while it drains");
        written += 1;
    }
    let mut seen = 0;
    let end = loop {
        match tokio::time::timeout(LIMIT, watch.next()).await.unwrap() {
            Some(Ok(response)) => seen += response.events.len(),
            other => break other,
        }
    };
    assert_eq!(seen, written, "every event came before the end");
    assert_eq!(end.unwrap().unwrap_err().code, tonic::Code::Unavailable);
    assert!(proxy.process.wait(Duration::from_secs(15)).await.unwrap().success());
    assert!(begun.elapsed() >= Duration::from_secs(3));
    assert_eq!(generations(&meta.shard()).await, [], "it is no member any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once() {
    let etcds = [
        EtcdProcess::start(EtcdProcessOptions::default()).await.unwrap(),
        EtcdProcess::start(EtcdProcessOptions::default()).await.unwrap(),
    ];
    let folder = folder();
    let config =
        ConfigMap::new(folder.path(), &routing(&etcds[0].endpoint(), &[vec![etcds[1].endpoint()]], 1));
    let manager = Program::start(&folder, &config.path(), "shard-manager", "manager", &[]);
    let mut proxy = Program::start(&folder, &config.path(), "proxy", "proxy", &["--drain-delay", "10m"]);
    manager.answers("/readyz", 200, "ok").await;
    proxy.answers("/readyz", 200, "ok").await;
    proxy.process.signal(Signal::TERM);
    proxy.answers("/readyz", 503, "shutting down").await;
    proxy.process.signal(Signal::TERM);
    let ended = proxy.process.wait(Duration::from_secs(10)).await.unwrap();
    assert_eq!(ended.code(), Some(1));
}
