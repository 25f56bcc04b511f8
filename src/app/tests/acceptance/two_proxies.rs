//! Acceptance 4: two proxies in processes of their own over the shards and meta of one topology.

use std::time::Duration;

use futures::StreamExt;
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Shard, WatchStream, etcd::EtcdShard};
use sharded_etcd_testkit::{Process, free_port, wait_until};
use tokio::time::timeout;

use crate::{
    harness::{Engine, Up, client, spawn},
    rebalance::{Load, ONE_LOAD, phase, wait_settled},
};

/// A proxy in a process of its own.
struct Proxy {
    process: Process,
    endpoint: String,
    client: EtcdShard,
}

async fn proxy(up: &Up, name: &str) -> Proxy {
    let endpoint = format!("127.0.0.1:{}", free_port().unwrap());
    let routing = up.data().join("routing.json").display().to_string();
    let arguments =
        ["proxy", "--routing", &routing, "--listen", &endpoint, "--name", name].map(str::to_owned);
    let mut process = spawn(&arguments, &up.data().join(format!("../{name}.log")));
    wait_until("the proxy serves", Duration::from_secs(30), || {
        process.check_running().unwrap();
        std::future::ready(process.log().contains("proxy serves").then_some(()))
    })
    .await
    .unwrap();
    Proxy { process, client: client(&endpoint), endpoint }
}

fn put(key: String, value: String) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() }
}

fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

async fn watch_all(client: &EtcdShard) -> WatchStream {
    let all = pb::WatchCreateRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        start_revision: 1,
        prev_kv: true,
        ..Default::default()
    };
    client.watch(all).await.unwrap()
}

/// The first events of a watch, with all that clients see of them.
async fn events(watch: &mut WatchStream, count: usize) -> Vec<pb::Event> {
    let mut events = Vec::new();
    while events.len() < count {
        let next = timeout(Duration::from_secs(30), watch.next()).await;
        let response =
            next.unwrap_or_else(|_| panic!("{} of {count} events came", events.len())).unwrap().unwrap();
        assert!(!response.canceled, "{}", response.cancel_reason);
        events.extend(response.events);
    }
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn see_one_line() {
    let up = Up::file(Engine::Etcd, "shards: 3\nkeyspace: {presplit: [/b/, /c/]}").await;
    let proxies = [proxy(&up, "one").await, proxy(&up, "two").await];
    let mut newest = 0;
    let mut seen = |header: Option<pb::ResponseHeader>| {
        let revision = header.unwrap().revision;
        assert!(revision >= newest, "revisions went back from {newest} to {revision}");
        newest = revision;
    };
    let mut writes = 0;
    for round in 0..300 {
        let (writer, reader) = (&proxies[round % 2].client, &proxies[(round + 1) % 2].client);
        let key = format!("/{}/{}", ["a", "b", "c"][round % 3], round % 7);
        seen(writer.put(put(key.clone(), round.to_string())).await.unwrap().header);
        writes += 1;
        let read = reader.range(get(&key)).await.unwrap();
        assert_eq!(
            read.kvs[0].value,
            round.to_string(),
            "a read on one proxy misses what the other acknowledged"
        );
        seen(read.header);
        // An idle key elsewhere: its header must be as new.
        seen(reader.range(get("nothing")).await.unwrap().header);
    }
    let mut lines = Vec::new();
    for proxy in &proxies {
        lines.push(events(&mut watch_all(&proxy.client).await, writes).await);
    }
    assert_eq!(lines[0], lines[1], "both watch the same line");
    let revisions: Vec<_> = lines[0].iter().map(|event| event.kv.as_ref().unwrap().mod_revision).collect();
    assert!(revisions.is_sorted_by(|a, b| a < b), "one revision a write, in order");
    let all = pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
    let lists =
        [proxies[0].client.range(all.clone()).await.unwrap(), proxies[1].client.range(all).await.unwrap()];
    assert_eq!(lists[0].kvs, lists[1].kvs);
}

#[tokio::test(flavor = "multi_thread")]
async fn go_on_when_the_other_is_killed() {
    let up = Up::shards(Engine::Etcd, 2).await;
    let mut one = proxy(&up, "one").await;
    let two = proxy(&up, "two").await;
    let members = up.ctl(&["member", "list"]).await;
    for name in ["up", "one", "two"] {
        assert!(members.contains(name), "{members}");
    }
    let written = one.client.put(put("k".into(), "v".into())).await.unwrap().header.unwrap().revision;
    one.process.kill();
    let read = two.client.range(get("k")).await.unwrap();
    assert_eq!((read.kvs[0].value.as_ref(), read.header.unwrap().revision), (&b"v"[..], written));
    two.client.put(put("k".into(), "w".into())).await.unwrap();
    assert_eq!(up.ctl(&["get", "k", "--print-value-only"]).await, "w\n");
}

/// Clients are spread over two proxies in processes of their own, while the shard manager of a third process moves what
/// they write, and shards come and go in the routing file.
#[tokio::test(flavor = "multi_thread")]
async fn serve_clients_while_shards_come_and_go() {
    let _one = ONE_LOAD.lock().await;
    let up = Up::file(Engine::Etcd, "shards: 2").await;
    let mut proxies = [proxy(&up, "one").await, proxy(&up, "two").await];
    let endpoints = format!("{},{}", proxies[0].endpoint, proxies[1].endpoint);
    let load = Load::start(up.data().parent().unwrap(), &endpoints, &[]).await;
    for shards in [2, 3, 1] {
        up.save(&format!("shards: {shards}"));
        tokio::time::sleep(phase() / 2).await;
        wait_settled(&up, shards).await;
    }
    for proxy in &mut proxies {
        proxy.process.check_running().unwrap();
    }
    load.judge().await;
}
