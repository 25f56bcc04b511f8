//! The first minutes: the chart is installed, the sample applied, and clients that know only etcd use it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::time::Instant;

use crate::harness::{Sharing, Test, kubectl, root, test, toolbox, workload_pod};

/// How long the sample may take until it is Ready, when the images are there.
const READY_MAX: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
async fn the_sample_serves_unmodified_clients() {
    test("first-use", Sharing::Alone, async |t| {
        let began = Instant::now();
        let sample = root().join("config/samples/demo.yaml").display().to_string();
        t.kubectl(&["apply", "-f", &sample]).await?;
        // Conditions as kstatus has them, so that kubectl wait and GitOps tools understand them.
        t.kubectl(&["wait", "--for=condition=Ready", "se/demo", "--timeout=170s"]).await?;
        let took = began.elapsed();
        t.ok(format!("kubectl apply of the sample to Ready took {:.1} s", took.as_secs_f64()));
        ensure!(took <= READY_MAX, "Ready took {took:?}, more than {READY_MAX:?}");
        members_are_there(t).await?;
        t.settled("demo", 3).await?;

        let toolbox = toolbox(t).await?;
        toolbox.etcdctl("demo", &["put", "/app/greeting", "hello"]).await?;
        let got = toolbox.etcdctl("demo", &["get", "/app/greeting", "--print-value-only"]).await?;
        ensure!(got.trim() == "hello", "got {got:?}");
        toolbox.etcdctl("demo", &["endpoint", "health"]).await?;
        let status = toolbox.etcdctl("demo", &["endpoint", "status", "--cluster"]).await?;
        ensure!(status.lines().count() == 2, "one line for each proxy: {status}");
        t.ok("etcdctl in a pod puts, gets and asks all proxies for their status through the Service");
        let got = t.etcdctl_by_port_forward("demo", &["get", "/app/greeting", "--print-value-only"]).await?;
        ensure!(got.trim() == "hello", "got {got:?}");
        t.ok("etcdctl on this machine gets it through kubectl port-forward");

        keeps_a_watch(t).await?;
        t.story("demo", &["Ready", "Balanced", "Events", "shard-2"]).await?;
        t.delete(&t.namespace, "demo", false).await
    })
    .await;
}

/// Three members of each of three shards and of meta, each with its volume.
async fn members_are_there(t: &Test) -> Result<()> {
    for (component, count) in [("shard", 9), ("meta", 3), ("proxy", 2), ("shard-manager", 2)] {
        let pods = t.pods_of("demo", component).await?;
        ensure!(pods.len() == count, "{component}: {pods:?}");
    }
    let claims = t.of(&t.namespace, "demo", "persistentvolumeclaims").await?;
    ensure!(claims.len() == 12, "{} claims", claims.len());
    t.ok("there are 3 shards of 3 members, meta of 3, 12 volumes, 2 proxies, 2 shard managers");
    Ok(())
}

/// The Go client in a pod watches; all that is put while it does, by another client, arrives.
async fn keeps_a_watch(t: &Test) -> Result<()> {
    let watch = ["etcdctl", "--endpoints=http://demo:2379", "watch", "--prefix", "/watched/"];
    let mut pod = workload_pod(t, "watcher", &watch).await?;
    pod["metadata"]["labels"] = json!({"who": "watcher"});
    t.apply(&pod).await?;
    t.kubectl(&["wait", "--for=condition=Ready", "pod/watcher", "--timeout=60s"]).await?;
    // etcdctl does not say when the watch stands: the first event tells.
    let script = "for n in $(seq 100); do etcdctl --endpoints=http://demo:2379 put /watched/$((n % 7))/$n value-$n; done";
    t.until("the watch stands", Duration::from_secs(30), async || {
        let put = [
            "exec",
            "toolbox",
            "--",
            "etcdctl",
            "--endpoints=http://demo:2379",
            "put",
            "/watched/first",
            "0",
        ];
        t.kubectl(&put).await?;
        let log =
            kubectl(&["-n", &t.namespace, "logs", "watcher"], "", crate::harness::SOON).await?.success()?;
        Ok(log.contains("/watched/first").then_some(()))
    })
    .await?;
    t.kubectl(&["exec", "toolbox", "--", "sh", "-c", script]).await?;
    t.until("all events have arrived", Duration::from_secs(30), async || {
        let log = t.kubectl(&["logs", "watcher"]).await?;
        let values: Vec<_> = log.lines().filter_map(|line| line.strip_prefix("value-")).collect();
        let expected: Vec<_> = (1..=100).map(|n| n.to_string()).collect();
        Ok((values == expected).then_some(()))
    })
    .await
    .context("the watch has a gap")?;
    t.ok("the Go client in a pod keeps its watch: 100 events, each once, in order");
    Ok(())
}
