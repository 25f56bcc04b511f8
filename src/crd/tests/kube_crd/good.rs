//! Specs that the API server and `up` accept, up to the largest, and the defaults that it fills in.

use serde_json::{Value, json};
use sharded_etcd_crd::{parse_file, parse_json};

use crate::{Cluster, resource};

const GOOD: &[&str] = &[
    "shards: 1",
    "shards: 1024, keyspace: {pins: [{prefix: /a/, shard: 1023}]}",
    "shards: 3, version: 3.6.0, image: 'registry.example:5000/mirror/etcd'",
    "shards: 3, image: null, etcd: null, compaction: null",
    "shards: 3, keyspace: {delimiter: '', presplit: [/a/b, x], pins: [{prefix: /a, shard: 0}]}",
    "shards: 3, keyspace: {presplit: [abc, /a/, /a/b0, /a0], pins: [{prefix: abc, shard: 1}, {prefix: /, shard: 0}]}",
    "shards: 3, keyspace: {delimiter: '~', presplit: ['a~']}",
    "shards: 3, keyspace: {delimiter: '::', presplit: ['a::'], pins: [{prefix: 'b::', shard: 1}]}",
    "shards: 3, keyspace: {splittable: [/a/], presplit: [/a/b], pins: [{prefix: /a/x, shard: 1}, {prefix: /a/, shard: 2}]}",
    "shards: 3, etcd: {members: 1, storage: {size: 1Gi, className: fast.example, retain: Retain}, quota: 384Mi}",
    "shards: 3, etcd: {members: 5, storage: {size: 1.5Ti}, quota: 64Gi}, meta: {members: 5, storage: {size: 5G}}",
    "shards: 3, etcd: {resources: {requests: {cpu: 1, memory: 2Gi, example.com/disk: 1}, limits: {cpu: 1500m, memory: 2Gi}}}",
    "shards: 3, etcd: {affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: \
     [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {a: b}}}]}}}",
    "shards: 3, etcd: {tolerations: [{operator: Exists}, {key: a, value: b, effect: NoExecute, tolerationSeconds: 5}]}",
    "shards: 3, etcd: {topologySpread: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule}]}",
    "shards: 3, etcd: {priorityClassName: system-cluster-critical, labels: {team: storage, example.com/a: ''}}",
    "shards: 3, etcd: {extraArgs: {heartbeat-interval: '200', election-timeout: '2000'}}",
    "shards: 3, proxy: {replicas: 100, service: {type: LoadBalancer, annotations: {example.com/lb: internal}}}",
    "shards: 3, proxy: {disruption: {maxUnavailable: '25%'}}",
    "shards: 3, proxy: {replicas: 3, disruption: {minAvailable: 2}}, shardManager: {replicas: 5}",
    "shards: 3, rebalance: {mode: Paused, maxConcurrentMoves: 64, bytesPerSecond: 64Ki, loadTolerance: 10}",
    "shards: 3, rebalance: {weights: [{shard: 2, weight: 1000}, {shard: 0, weight: 1}]}",
    "shards: 3, rebalance: {weights: []}",
    "shards: 3, rebalance: {mode: Manual, approvedPlan: '00c0ffee'}",
    "shards: 3, rebalance: {bytesPerSecond: 1048576}, compaction: {retention: 1h30m}",
];

/// The longest lists: as many entries as there may be, and as long as they may be together. Each is legal only for
/// the last splittable prefix, which is the most that a rule can have to look at.
fn largest() -> Value {
    let splittable = (0..32).map(|i| format!("/registry/{i:02}/")).collect::<Vec<_>>();
    let inside = |n: usize, what: char| format!("/registry/31/{what}{n:0>17}");
    let presplit = (0..2048).map(|n| inside(n, 'b')).collect::<Vec<_>>();
    let pins = (0..2048).map(|n| json!({"prefix": inside(n, 'p'), "shard": n % 1024})).collect::<Vec<_>>();
    let weights = (0..1024).map(|n| json!({"shard": n, "weight": 1000})).collect::<Vec<_>>();
    json!({
        "apiVersion": "shardedetcd.io/v1alpha1",
        "kind": "ShardedEtcd",
        "metadata": {"name": "a".repeat(40)},
        "spec": {
            "shards": 1024,
            "keyspace": {"splittable": splittable, "presplit": presplit, "pins": pins},
            "rebalance": {"weights": weights},
        },
    })
}

/// The longest entries.
fn longest() -> Value {
    let long = |what: &str| format!("/{}{what}/", "a".repeat(254 - what.len()));
    let presplit = (100..350).map(|n| long(&n.to_string())).collect::<Vec<_>>();
    let pins = (350..600).map(|n| json!({"prefix": long(&n.to_string()), "shard": 1})).collect::<Vec<_>>();
    json!({
        "apiVersion": "shardedetcd.io/v1alpha1",
        "kind": "ShardedEtcd",
        "metadata": {"name": "longest"},
        "spec": {"shards": 2, "keyspace": {"presplit": presplit, "pins": pins}},
    })
}

pub(crate) async fn accepted(cluster: &Cluster) {
    let mut problems = Vec::new();
    for spec in GOOD {
        let text = resource("good", spec);
        let output = cluster.kubectl(&["create", "--dry-run=server", "-f", "-"], &text).await;
        if output.code != Some(0) {
            problems.push(format!("{spec}\n    is refused: {}", output.stderr));
        }
        if let Err(error) = parse_file(&text) {
            problems.push(format!("{spec}\n    is refused by `up`: {error}"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    for large in [largest(), longest()] {
        let text = large.to_string();
        parse_json(&text).unwrap();
        let apply = ["apply", "--server-side", "-f", "-"];
        cluster.good(&apply, &text).await;
        let mut more = large.clone();
        more["spec"]["rebalance"]["mode"] = json!("Paused");
        cluster.good(&apply, &more.to_string()).await;
        cluster.good(&["delete", "-f", "-"], &text).await;
        // One character more, and one entry more.
        let mut one_more = large["spec"]["keyspace"].clone();
        let presplit = one_more["presplit"].as_array_mut().unwrap();
        presplit.extend((0..2048 - presplit.len() + 1).map(|n| json!(format!("more{n:0>60}"))));
        let mut too_large = large;
        too_large["spec"]["keyspace"] = one_more;
        let output =
            cluster.kubectl(&["create", "--dry-run=server", "-f", "-"], &too_large.to_string()).await;
        assert!(output.stderr.contains("spec.keyspace"), "{}", output.stderr);
        parse_json(&too_large.to_string()).unwrap_err();
    }
}

pub(crate) async fn defaults_show(cluster: &Cluster) {
    cluster.good(&["create", "-f", "-"], &resource("least", "shards: 3")).await;
    let spec = cluster.field("least", ".spec").await;
    let spec: Value = serde_json::from_str(&spec).unwrap();
    assert_eq!(
        spec,
        json!({
            "version": "3.7.3",
            "shards": 3,
            "keyspace": {"delimiter": "/", "splittable": [], "presplit": [], "pins": []},
            "etcd": {"members": 3, "storage": {"size": "8Gi", "retain": "Delete"}},
            "meta": {"members": 3, "storage": {"size": "2Gi", "retain": "Delete"}},
            "proxy": {"replicas": 2, "service": {"type": "ClusterIP"}},
            "shardManager": {"replicas": 2},
            "rebalance": {"mode": "Automatic", "maxConcurrentMoves": 1, "loadTolerance": 1000},
        })
    );
    // What the API server hands out is a good file, and asks for the same topology as what was written.
    let stored = cluster.good(&["get", "se", "least", "-o", "yaml"], "").await;
    let written = parse_file(&resource("least", "shards: 3")).unwrap();
    let read = parse_file(&stored).unwrap();
    assert_eq!(read.topology(), written.topology());
    assert_eq!(read.spec.etcd_storage(), written.spec.etcd_storage());
    assert_eq!(read.spec.effective(3).etcd.unwrap().quota, written.spec.effective(3).etcd.unwrap().quota);
}
