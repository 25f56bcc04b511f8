//! What people and their tools do with the resource all day.

use crate::{Cluster, resource};

pub(crate) async fn scaled(cluster: &Cluster) {
    let spec = "shards: 3, keyspace: {pins: [{prefix: /a/, shard: 2}]}";
    cluster.good(&["create", "-f", "-"], &resource("scaled", spec)).await;
    cluster.good(&["scale", "se", "scaled", "--replicas=5"], "").await;
    assert_eq!(cluster.field("scaled", ".spec.shards").await, "5");
    for (replicas, expected) in [("0", "greater than or equal to 1"), ("2", "or raise spec.shards")] {
        let scale = ["scale", "se", "scaled", &format!("--replicas={replicas}")];
        let output = cluster.kubectl(&scale, "").await;
        assert_ne!(output.code, Some(0), "{replicas} replicas are accepted");
        assert!(output.stderr.contains(expected), "{}", output.stderr);
    }
    assert_eq!(cluster.field("scaled", ".spec.shards").await, "5");
}

/// Two tools apply one manifest: neither sees a difference afterwards, and nothing is written any more.
pub(crate) async fn applied_by_two(cluster: &Cluster) {
    let spec = "shards: 3, keyspace: {presplit: [/b/, /a/], splittable: [/x/], pins: [{prefix: /e/, shard: 1}, \
                {prefix: /d/, shard: 0}]}, etcd: {storage: {size: 9Gi}, quota: 3Gi, labels: {team: a}, tolerations: \
                [{operator: Exists}], resources: {requests: {cpu: 1}}}, proxy: {disruption: {maxUnavailable: 1}}";
    let manifest = resource("shared", spec);
    let manager = |name: &str| format!("--field-manager={name}");
    let managers = ["argocd-controller", "kustomize-controller"].map(manager);
    for manager in &managers {
        cluster.good(&["apply", "--server-side", manager, "-f", "-"], &manifest).await;
    }
    let version = cluster.field("shared", ".metadata.resourceVersion").await;
    for manager in &managers {
        let output = cluster.kubectl(&["diff", "--server-side", manager, "-f", "-"], &manifest).await;
        assert_eq!(output.code, Some(0), "{}{}", output.stdout, output.stderr);
        cluster.good(&["apply", "--server-side", manager, "-f", "-"], &manifest).await;
    }
    assert_eq!(cluster.field("shared", ".metadata.resourceVersion").await, version);
    // From one field of `disruption` to the other: no default may stand in the way.
    let changed = manifest.replace("maxUnavailable: 1", "minAvailable: 1");
    cluster.good(&["apply", "--server-side", "--force-conflicts", &managers[0], "-f", "-"], &changed).await;
    let one_owner = "shards: 3, proxy: {disruption: {minAvailable: 1}}";
    cluster.good(&["apply", "--server-side", "-f", "-"], &resource("owned", "shards: 3")).await;
    cluster.good(&["apply", "--server-side", "-f", "-"], &resource("owned", one_owner)).await;
    // One tool pins one prefix, another one another: both pins are there.
    for (name, pin) in [("a", "{prefix: /a/, shard: 1}"), ("b", "{prefix: /b/, shard: 2}")] {
        let spec = format!("shards: 3, keyspace: {{pins: [{pin}]}}");
        cluster
            .good(&["apply", "--server-side", &manager(name), "-f", "-"], &resource("merged", &spec))
            .await;
    }
    assert_eq!(cluster.field("merged", ".spec.keyspace.pins[*].prefix").await, "/a/ /b/");
}

pub(crate) async fn listed(cluster: &Cluster) {
    cluster.good(&["create", "-f", "-"], &resource("listed", "shards: 3")).await;
    let status = r#"{"status": {"shards": 3, "keys": 1234, "endpoint": "http://listed.default.svc:2379", "conditions": [
        {"type": "Ready", "status": "True", "reason": "Serving", "message": "all shards serve"},
        {"type": "Balanced", "status": "False", "reason": "Moving", "message": "one move is under way"}]}}"#;
    cluster.good(&["patch", "se", "listed", "--subresource=status", "--type=merge", "-p", status], "").await;
    assert_eq!(cluster.field("listed", ".metadata.generation").await, "1");
    for name in ["se", "sharded", "shardedetcd", "shardedetcds"] {
        let printed = cluster.good(&["get", name, "listed"], "").await;
        let words = printed.split_whitespace().collect::<Vec<_>>();
        assert_eq!(words[..7], ["NAME", "READY", "SHARDS", "BALANCED", "KEYS", "ENDPOINT", "AGE"], "{name}");
        assert_eq!(
            words[7..13],
            ["listed", "True", "3", "False", "1234", "http://listed.default.svc:2379"],
            "{name}"
        );
    }
    cluster.good(&["wait", "se/listed", "--for=condition=Ready", "--timeout=10s"], "").await;
}
