//! Pods, managers, operators and nodes go away under clients that put up with it: everything heals, nothing is lost.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::harness::{Load, Operator, SOON, Sharing, Test, kubectl, run, test, toolbox, topology::resource};

/// How long the cluster may take to see that a node is away.
const NODE_LOST_MAX: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_away_comes_back_and_nothing_is_lost() {
    test("faults", Sharing::Alone, async |t| {
        t.apply(&resource("demo", json!({"shards": 2}))).await?;
        t.settled("demo", 2).await?;
        let toolbox = toolbox(t).await?;
        toolbox.seed("demo").await?;
        let load = Load::start(t, "clients", "demo", true).await?;

        for component in ["shard", "meta", "proxy", "shard-manager"] {
            a_pod_is_deleted(t, component).await?;
        }
        load.check_running().await?;
        the_manager_is_killed_in_mid_move(t).await?;
        Operator::kill(t).await?;
        t.settled("demo", 3).await?;
        load.check_running().await?;
        a_node_loses_its_power(t).await?;

        toolbox.verify_seed("demo").await?;
        load.judge().await?;
        t.story("demo", &["Events"]).await?;
        t.delete(&t.namespace, "demo", false).await
    })
    .await;
}

async fn a_pod_is_deleted(t: &Test, component: &str) -> Result<()> {
    let before = t.pods_of("demo", component).await?;
    let pod = before.first().with_context(|| format!("there is no {component}"))?;
    let old = uid(t, pod).await?;
    t.kubectl(&["delete", "pod", pod, "--wait=false"]).await?;
    t.until(&format!("{pod} is gone or another"), SOON, async || {
        Ok((uid(t, pod).await? != old).then_some(()))
    })
    .await?;
    let count = before.len();
    t.until_so(&format!("{count} pods of {component} are ready"), crate::harness::SETTLED_MAX, || async {
        let labels = format!("app.kubernetes.io/instance=demo,app.kubernetes.io/component={component}");
        let pods = t.api.list(&t.namespace, "pods", &labels).await?;
        let ready = pods.iter().filter(|pod| ready(pod)).count();
        Ok((ready == count && pods.len() == count, format!("{ready} of {}", pods.len())))
    })
    .await?;
    t.settled("demo", 2).await?;
    t.ok(format!("{pod} was deleted, and healed"));
    Ok(())
}

/// The uid of a pod, if it is there and not on its way out.
async fn uid(t: &Test, pod: &str) -> Result<Option<String>> {
    let pod = t.api.object(&t.namespace, "pods", pod).await?;
    let pod = pod.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    Ok(pod.and_then(|pod| pod["metadata"]["uid"].as_str().map(str::to_owned)))
}

fn ready(object: &serde_json::Value) -> bool {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    let going = !object["metadata"]["deletionTimestamp"].is_null();
    !going && conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// A third shard is filled; all shard managers die while a range is on its way.
async fn the_manager_is_killed_in_mid_move(t: &Test) -> Result<()> {
    // Slow enough to be met.
    t.patch("demo", json!({"shards": 3, "rebalance": {"bytesPerSecond": "64Ki"}})).await?;
    let movement = t
        .until("a range moves", crate::harness::SETTLED_MAX, async || {
            let resource = t.topology("demo").await?;
            let first = resource["status"]["moves"].as_array().and_then(|moves| moves.first().cloned());
            Ok(first)
        })
        .await?;
    t.ok(format!("a range moves: {movement}"));
    let labels = "app.kubernetes.io/instance=demo,app.kubernetes.io/component=shard-manager";
    t.kubectl(&["delete", "pods", "-l", labels, "--grace-period=0", "--force"]).await?;
    t.ok("the shard managers are killed in the middle of it");
    t.patch("demo", json!({"rebalance": {"bytesPerSecond": null}})).await
}

/// Half of everything is away for longer than the cluster needs to see it, and comes back with its disk.
async fn a_node_loses_its_power(t: &Test) -> Result<()> {
    let Ok(power) = std::env::var("E2E_POWER") else {
        t.ok(
            "NOT CHECKED: a node that loses its power; this cluster's nodes cannot be switched off from here",
        );
        return Ok(());
    };
    run(&power, &["off", "2"], "", SOON).await?.success()?;
    t.ok("node2 has lost its power");
    t.until("Kubernetes sees that node2 is away", NODE_LOST_MAX, async || {
        let node = t.api.get("/api/v1/nodes/node2").await?.context("node2 is not there")?;
        Ok((!ready(&node)).then_some(()))
    })
    .await?;
    // Members of some shard are on that node, so the topology is not whole.
    t.until_so("demo says that it is not all there", SOON, || async {
        let resource = t.topology("demo").await?;
        let conditions = resource["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let whole = conditions.iter().filter(|c| c["type"] == "Ready" || c["type"] == "Reconciling");
        let text = crate::harness::topology::conditions(&resource);
        Ok((whole.into_iter().any(|c| (c["type"] == "Ready") != (c["status"] == "True")), text))
    })
    .await?;
    t.ok("demo says that it is not all there");
    let restored = run(&power, &["on", "2"], "", NODE_LOST_MAX).await?;
    ensure!(restored.code == Some(0), "{}", restored.stderr);
    t.ok("node2 is back");
    // Its pods may have been given up; kubectl wait reads nothing of that.
    kubectl(&["wait", "--for=condition=Ready", "node/node2", "--timeout=60s"], "", NODE_LOST_MAX)
        .await?
        .success()?;
    t.settled("demo", 3).await
}
