//! The lease, cluster and maintenance services as etcdctl and clientv3 use them, over gRPC.
#![allow(clippy::unwrap_used)]

mod support;

use std::{process::Stdio, sync::Arc, time::Duration};

use sharded_etcd_line::{Line, LineOptions, Shards};
use sharded_etcd_proxy::{Drain, Proxy, ProxyOptions, context::Limits};
use sharded_etcd_testkit::{Output, etcdctl, etcdctl::command, wait_until};
use support::Topology;
use tokio::{io::AsyncBufReadExt, net::TcpListener};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

const LIMIT: Duration = Duration::from_secs(60);

/// Serves one more proxy until the token is cancelled; its address.
async fn serve(topology: &Topology, name: &str, stop: &CancellationToken) -> String {
    let line = Line::start(Arc::clone(&topology.meta), LineOptions::default()).await.unwrap();
    let shards = Shards::new(Arc::clone(&line), topology.directory.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let client_urls = vec![format!("http://{address}")];
    let options = ProxyOptions {
        line,
        shards,
        name: name.to_owned(),
        client_urls,
        limits: Limits::default(),
        generation: None,
        drain: Drain::default(),
    };
    let proxy = Proxy::start(options).await.unwrap();
    let stop = stop.clone();
    tokio::spawn(async move { proxy.serve(listener, Routes::default(), stop).await.unwrap() });
    address
}

async fn ctl(endpoint: &str, arguments: &[&str]) -> Output {
    let output = etcdctl(endpoint, arguments).await.unwrap();
    assert_eq!(output.code, Some(0), "etcdctl {arguments:?}: {output:?}");
    output
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_is_content() {
    let topology = Topology::start(2, &["m"]).await;
    let stop = CancellationToken::new();
    let (a, b) = (serve(&topology, "a", &stop).await, serve(&topology, "b", &stop).await);
    let both = format!("{a},{b}");

    let granted = ctl(&a, &["lease", "grant", "3"]).await.stdout;
    let id = granted.split_whitespace().nth(1).unwrap().to_owned();
    ctl(&a, &["put", "a", "1", "--lease", &id]).await;
    ctl(&b, &["put", "z", "1", "--lease", &id]).await;
    let told = ctl(&b, &["lease", "timetolive", &id, "--keys"]).await.stdout;
    assert!(told.contains("granted with TTL(3s)") && told.contains("attached keys([a z])"), "{told}");
    assert!(ctl(&b, &["lease", "list"]).await.stdout.contains(&id));

    // Kept alive over a stream, it outlives its TTL.
    let mut keeping = command(&b).await.unwrap();
    let mut keeping = keeping.args(["lease", "keep-alive", &id]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = tokio::io::BufReader::new(keeping.stdout.take().unwrap()).lines();
    for _ in 0..5 {
        let line = tokio::time::timeout(LIMIT, lines.next_line()).await.unwrap().unwrap().unwrap();
        assert!(line.contains("keepalived with TTL(3)"), "{line}");
    }
    assert_eq!(ctl(&a, &["get", "a", "--print-value-only"]).await.stdout.trim(), "1");
    ctl(&a, &["lease", "revoke", &id]).await;
    // It hears of the end by itself.
    tokio::time::timeout(LIMIT, keeping.wait()).await.expect("the keeper ends").unwrap();
    assert_eq!(ctl(&b, &["get", "", "--from-key", "--keys-only"]).await.stdout.trim(), "");
    assert!(ctl(&b, &["lease", "timetolive", &id]).await.stdout.contains("already expired"));

    // Locks: a session of each client, on different proxies, one after the other.
    let locks = (0..4).map(|i| {
        let endpoint = if i % 2 == 0 { a.clone() } else { b.clone() };
        async move { ctl(&endpoint, &["lock", "mutex", "--ttl", "5", "echo", "held"]).await }
    });
    for output in futures::future::join_all(locks).await {
        assert!(output.stdout.contains("held"), "{output:?}");
    }

    let members = wait_until("both are members", LIMIT, async || {
        let list = ctl(&a, &["member", "list"]).await.stdout;
        (list.lines().count() == 2 && list.contains(&a) && list.contains(&b)).then_some(())
    });
    members.await.unwrap();
    let status = ctl(&both, &["endpoint", "status"]).await.stdout;
    assert_eq!(status.lines().count(), 2, "{status}");
    assert_eq!(status.matches(", true, false,").count(), 1, "exactly one is the leader: {status}");
    let health = ctl(&both, &["endpoint", "health"]).await;
    let health = format!("{}{}", health.stdout, health.stderr);
    assert_eq!(health.matches("is healthy").count(), 2, "{health}");
    assert_eq!(ctl(&a, &["alarm", "list"]).await.stdout.trim(), "");
    ctl(&a, &["alarm", "disarm"]).await;
    ctl(&a, &["defrag"]).await;
    ctl(&a, &["auth", "status"]).await;
    let refused = etcdctl(&a, &["member", "remove", "8e9e05c52164694d"]).await.unwrap();
    assert!(refused.stderr.contains("spec.proxy.replicas"), "{refused:?}");
    stop.cancel();
}
