//! Specs that the API server refuses, with the field and the remedy that its message names. `up` refuses them too.

use sharded_etcd_crd::parse_file;

use crate::{Cluster, resource};

/// Specs, and what the refusal says: the field, then what to write.
const CREATED: &[(&str, [&str; 2])] = &[
    ("", ["spec.shards", "Required"]),
    ("shards: 0", ["spec.shards", "greater than or equal to 1"]),
    ("shards: -1", ["spec.shards", "greater than or equal to 1"]),
    ("shards: 1025", ["spec.shards", "less than or equal to 1024"]),
    ("shards: three", ["spec.shards", "must be of type integer"]),
    ("shards: 3, shard: 3", ["spec.shard", "unknown field"]),
    ("shards: 3, tls: {}", ["spec.tls", "unknown field"]),
    ("shards: 3, version: latest", ["spec.version", "write three numbers, such as 3.7.3"]),
    ("shards: 3, version: v3.7.3", ["spec.version", "write three numbers, such as 3.7.3"]),
    ("shards: 3, version: 3.5.9", ["spec.version", "etcd 3.6 or newer"]),
    ("shards: 3, version: 4.0.0", ["spec.version", "etcd 3.6 or newer"]),
    ("shards: 3, image: 'registry.example/etcd:v3.7.3'", ["spec.image", "without tag and digest"]),
    ("shards: 3, image: 'registry.example/etcd@sha256:00'", ["spec.image", "without tag and digest"]),
    (
        "shards: 3, image: 'registry.example/my etcd'",
        ["spec.image", "write one such as registry.example/etcd"],
    ),
    ("shards: 3, image: ''", ["spec.image", "at least 1 chars long"]),
    // The keyspace.
    (
        "shards: 3, keyspace: {delimiter: aaaaaaaaaaaaaaaaa}",
        ["spec.keyspace.delimiter", "may not be more than 16"],
    ),
    ("shards: 3, keyspace: {delimiter: ü}", ["spec.keyspace.delimiter", "printable ASCII"]),
    ("shards: 3, keyspace: {splittable: [/a]}", ["spec.keyspace.splittable", "write /a/"]),
    (
        "shards: 3, keyspace: {splittable: [/a/, /a/b/]}",
        ["spec.keyspace.splittable", "/a/b/ lies inside another"],
    ),
    (
        "shards: 3, keyspace: {splittable: [/a/, /a/]}",
        ["spec.keyspace.splittable[1]", "Duplicate value: \"/a/\""],
    ),
    ("shards: 3, keyspace: {splittable: ['']}", ["spec.keyspace.splittable[0]", "at least 1 chars long"]),
    (
        "shards: 3, keyspace: {delimiter: '', splittable: [/a/]}",
        ["spec.keyspace.splittable", "remove one of both"],
    ),
    (
        "shards: 3, keyspace: {presplit: [/a/b]}",
        ["spec.keyspace.presplit", "write it with the delimiter behind"],
    ),
    ("shards: 3, keyspace: {presplit: [/a1]}", ["spec.keyspace.presplit", "spec.keyspace.splittable"]),
    (
        "shards: 3, keyspace: {delimiter: ':', presplit: ['a:b']}",
        ["spec.keyspace.presplit", "delimiter behind"],
    ),
    (
        "shards: 3, keyspace: {presplit: [/a/, /a/]}",
        ["spec.keyspace.presplit[1]", "Duplicate value: \"/a/\""],
    ),
    ("shards: 3, keyspace: {presplit: [null]}", ["spec.keyspace.presplit[0]", "must be of type string"]),
    ("shards: 3, keyspace: {presplit: ['']}", ["spec.keyspace.presplit[0]", "at least 1 chars long"]),
    (
        "shards: 3, keyspace: {pins: [{prefix: /a/, shard: 3}]}",
        ["spec.keyspace.pins", "or raise spec.shards"],
    ),
    (
        "shards: 1, keyspace: {pins: [{prefix: /a/, shard: 1}]}",
        ["spec.keyspace.pins", "write a shard below spec.shards"],
    ),
    (
        "shards: 3, keyspace: {pins: [{prefix: /a/, shard: -1}]}",
        ["spec.keyspace.pins[0].shard", "or equal to 0"],
    ),
    (
        "shards: 3, keyspace: {pins: [{prefix: /a, shard: 0}]}",
        ["spec.keyspace.pins", "write it with the delimiter behind"],
    ),
    (
        "shards: 3, keyspace: {pins: [{prefix: '', shard: 0}]}",
        ["spec.keyspace.pins[0].prefix", "at least 1 chars long"],
    ),
    ("shards: 3, keyspace: {pins: [{shard: 0}]}", ["spec.keyspace.pins[0].prefix", "Required"]),
    (
        "shards: 3, keyspace: {pins: [{prefix: /a/, shard: 0}, {prefix: /a/, shard: 1}]}",
        ["spec.keyspace.pins[1]", "Duplicate value: {\"prefix\":\"/a/\"}"],
    ),
    // The members.
    ("shards: 3, etcd: {members: 2}", ["spec.etcd.members", "write 1, 3 or 5"]),
    ("shards: 3, etcd: {members: 7}", ["spec.etcd.members", "write 1, 3 or 5"]),
    ("shards: 3, meta: {members: 4}", ["spec.meta.members", "write 1, 3 or 5"]),
    ("shards: 3, meta: {members: 0}", ["spec.meta.members", "write 1, 3 or 5"]),
    ("shards: 3, etcd: {storage: {size: big}}", ["spec.etcd.storage.size", "such as 8Gi"]),
    ("shards: 3, etcd: {storage: {size: -8Gi}}", ["spec.etcd.storage.size", "such as 8Gi"]),
    ("shards: 3, etcd: {storage: {size: 100Mi}}", ["spec.etcd.storage.size", "write 1Gi to 64Ti"]),
    ("shards: 3, meta: {storage: {size: 2GB}}", ["spec.meta.storage.size", "such as 8Gi"]),
    (
        "shards: 3, etcd: {storage: {className: Fast}}",
        ["spec.etcd.storage.className", "kubectl get storageclass"],
    ),
    (
        "shards: 3, meta: {storage: {className: ''}}",
        ["spec.meta.storage.className", "remove the field for the default"],
    ),
    ("shards: 3, etcd: {storage: {retain: Keep}}", ["spec.etcd.storage.retain", "\"Delete\", \"Retain\""]),
    ("shards: 3, etcd: {quota: 8GB}", ["spec.etcd.quota", "such as 8Gi"]),
    ("shards: 3, etcd: {quota: 1Mi}", ["spec.etcd.quota", "write 16Mi to 64Gi"]),
    ("shards: 3, etcd: {quota: 100Gi, storage: {size: 200Gi}}", ["spec.etcd.quota", "write 16Mi to 64Gi"]),
    (
        "shards: 3, etcd: {quota: 8Gi, storage: {size: 8Gi}}",
        ["spec.etcd.quota", "or raise spec.etcd.storage.size"],
    ),
    (
        "shards: 3, etcd: {quota: 500Mi, storage: {size: 1Gi}}",
        ["spec.etcd.quota", "or raise spec.etcd.storage.size"],
    ),
    ("shards: 3, etcd: {resources: {requests: {memory: much}}}", ["spec.etcd.resources", "2Gi for memory"]),
    ("shards: 3, etcd: {resources: {requests: {cpu: -1}}}", ["spec.etcd.resources", "500m for cpu"]),
    ("shards: 3, meta: {resources: {requests: {cpus: 1}}}", ["spec.meta.resources", "write cpu, memory"]),
    (
        "shards: 3, proxy: {resources: {requests: {cpu: 2}, limits: {cpu: 1500m}}}",
        ["spec.proxy.resources", "raise limits or lower requests"],
    ),
    ("shards: 3, etcd: {resources: {limit: {cpu: 1}}}", ["spec.etcd.resources.limit", "unknown field"]),
    ("shards: 3, etcd: {affinity: {nodeAfinity: {}}}", ["spec.etcd.affinity.nodeAfinity", "unknown field"]),
    (
        "shards: 3, etcd: {tolerations: [{operator: Exist}]}",
        ["spec.etcd.tolerations[0].operator", "\"Exists\", \"Equal\""],
    ),
    (
        "shards: 3, etcd: {tolerations: [{value: a}]}",
        ["spec.etcd.tolerations[0]", "write key, or operator: Exists"],
    ),
    (
        "shards: 3, etcd: {tolerations: [{key: a, operator: Exists, value: b}]}",
        ["spec.etcd.tolerations[0]", "remove value"],
    ),
    (
        "shards: 3, etcd: {topologySpread: [{maxSkew: 0, topologyKey: z, whenUnsatisfiable: DoNotSchedule}]}",
        ["spec.etcd.topologySpread[0].maxSkew", "or equal to 1"],
    ),
    (
        "shards: 3, etcd: {topologySpread: [{maxSkew: 1}]}",
        ["spec.etcd.topologySpread[0].topologyKey", "Required"],
    ),
    (
        "shards: 3, etcd: {priorityClassName: 'My Class'}",
        ["spec.etcd.priorityClassName", "kubectl get priorityclass"],
    ),
    (
        "shards: 3, etcd: {labels: {shardedetcd.io/cluster: x}}",
        ["spec.etcd.labels", "shardedetcd.io/cluster is a label that"],
    ),
    ("shards: 3, etcd: {labels: {app.kubernetes.io/name: x}}", ["spec.etcd.labels", "remove it"]),
    ("shards: 3, etcd: {labels: {controller-revision-hash: x}}", ["spec.etcd.labels", "remove it"]),
    ("shards: 3, etcd: {labels: {'a b': x}}", ["spec.etcd.labels", "write one such as team"]),
    (
        "shards: 3, etcd: {labels: {team: 'a b'}}",
        ["spec.etcd.labels[team]", "a letter or digit first and last"],
    ),
    (
        "shards: 3, etcd: {extraArgs: {data-dir: /x}}",
        ["spec.etcd.extraArgs", "data-dir itself, or cannot work with it; remove it"],
    ),
    ("shards: 3, etcd: {extraArgs: {unsafe-no-fsync: 'true'}}", ["spec.etcd.extraArgs", "remove it"]),
    (
        "shards: 3, etcd: {extraArgs: {--heartbeat-interval: '100'}}",
        ["spec.etcd.extraArgs", "without leading dashes"],
    ),
    (
        "shards: 3, etcd: {extraArgs: {Heartbeat: '100'}}",
        ["spec.etcd.extraArgs", "such as heartbeat-interval"],
    ),
    (
        "shards: 3, etcd: {extraArgs: {heartbeat-interval: 100}}",
        ["spec.etcd.extraArgs.heartbeat-interval", "must be of type string"],
    ),
    (
        "shards: 3, etcd: {extraArgs: {log-level: \"a\\nb\"}}",
        ["spec.etcd.extraArgs[log-level]", "line break"],
    ),
    // The proxies and shard managers.
    ("shards: 3, proxy: {replicas: 0}", ["spec.proxy.replicas", "greater than or equal to 1"]),
    ("shards: 3, proxy: {replicas: 101}", ["spec.proxy.replicas", "less than or equal to 100"]),
    (
        "shards: 3, proxy: {service: {type: Ingress}}",
        ["spec.proxy.service.type", "\"ClusterIP\", \"NodePort\", \"LoadBalancer\""],
    ),
    (
        "shards: 3, proxy: {service: {annotations: {'a b': c}}}",
        ["spec.proxy.service.annotations", "example.com/key"],
    ),
    (
        "shards: 3, proxy: {service: {annotations: {shardedetcd.io/a: c}}}",
        ["spec.proxy.service.annotations", "remove them"],
    ),
    (
        "shards: 3, proxy: {disruption: {}}",
        ["spec.proxy.disruption", "exactly one of maxUnavailable and minAvailable"],
    ),
    (
        "shards: 3, proxy: {disruption: {maxUnavailable: 1, minAvailable: 1}}",
        ["spec.proxy.disruption", "exactly one of"],
    ),
    (
        "shards: 3, proxy: {disruption: {maxUnavailable: 0}}",
        ["spec.proxy.disruption.maxUnavailable", "1 to 100"],
    ),
    (
        "shards: 3, proxy: {disruption: {maxUnavailable: half}}",
        ["spec.proxy.disruption.maxUnavailable", "1% to 100%"],
    ),
    (
        "shards: 3, proxy: {disruption: {minAvailable: '100%'}}",
        ["spec.proxy.disruption.minAvailable", "0% to 99%"],
    ),
    (
        "shards: 3, proxy: {disruption: {minAvailable: 2}}",
        ["spec.proxy.disruption.minAvailable", "less than spec.proxy.replicas"],
    ),
    ("shards: 3, shardManager: {replicas: 0}", ["spec.shardManager.replicas", "greater than or equal to 1"]),
    ("shards: 3, shardManager: {replicas: 6}", ["spec.shardManager.replicas", "less than or equal to 5"]),
    // How data moves and how long it stays.
    ("shards: 3, rebalance: {mode: Off}", ["spec.rebalance.mode", "\"Automatic\", \"Manual\", \"Paused\""]),
    ("shards: 3, rebalance: {maxConcurrentMoves: 0}", ["spec.rebalance.maxConcurrentMoves", "or equal to 1"]),
    ("shards: 3, rebalance: {approvedPlan: all}", ["spec.rebalance.approvedPlan", "such as 1a2b3c4d"]),
    ("shards: 3, rebalance: {loadTolerance: 9}", ["spec.rebalance.loadTolerance", "or equal to 10"]),
    (
        "shards: 3, rebalance: {weights: [{shard: 3, weight: 50}]}",
        ["spec.rebalance.weights", "or raise spec.shards"],
    ),
    (
        "shards: 3, rebalance: {weights: [{shard: -1, weight: 50}]}",
        ["spec.rebalance.weights[0].shard", "or equal to 0"],
    ),
    (
        "shards: 3, rebalance: {weights: [{shard: 0, weight: 0}]}",
        ["spec.rebalance.weights[0].weight", "or equal to 1"],
    ),
    (
        "shards: 3, rebalance: {weights: [{shard: 0, weight: 1001}]}",
        ["spec.rebalance.weights[0].weight", "or equal to 1000"],
    ),
    ("shards: 3, rebalance: {weights: [{shard: 0}]}", ["spec.rebalance.weights[0].weight", "Required"]),
    (
        "shards: 3, rebalance: {weights: [{shard: 0, weight: 50}, {shard: 0, weight: 60}]}",
        ["spec.rebalance.weights[1]", "Duplicate value: {\"shard\":0}"],
    ),
    (
        "shards: 3, rebalance: {maxConcurrentMoves: 65}",
        ["spec.rebalance.maxConcurrentMoves", "or equal to 64"],
    ),
    ("shards: 3, rebalance: {bytesPerSecond: fast}", ["spec.rebalance.bytesPerSecond", "such as 8Gi"]),
    ("shards: 3, rebalance: {bytesPerSecond: 1}", ["spec.rebalance.bytesPerSecond", "write 64Ki to 64Gi"]),
    ("shards: 3, compaction: {}", ["spec.compaction.retention", "Required"]),
    ("shards: 3, compaction: {retention: '5'}", ["spec.compaction.retention", "such as 5m or 1h30m"]),
    ("shards: 3, compaction: {retention: 5 minutes}", ["spec.compaction.retention", "such as 5m or 1h30m"]),
    ("shards: 3, compaction: {retention: 10ms}", ["spec.compaction.retention", "write 1s to 720h"]),
    ("shards: 3, compaction: {retention: 721h}", ["spec.compaction.retention", "write 1s to 720h"]),
];

/// Names that are refused.
const NAMES: &[(&str, [&str; 2])] = &[
    ("a.b", ["metadata.name", "use lower-case letters, digits and '-'"]),
    ("1a", ["metadata.name", "a letter first"]),
    ("a2345678901234567890123456789012345678901", ["metadata.name", "use at most 40 characters"]),
];

/// What [`CHANGES`] change.
const BASE: &str = "shards: 4, keyspace: {pins: [{prefix: /a/, shard: 2}]}, rebalance: {weights: [{shard: 3, weight: 50}]}, \
    etcd: {storage: {size: 10Gi, className: fast}, quota: 4Gi}, version: 3.7.3";

/// Merge patches of a spec, and what the refusal says.
const CHANGES: &[(&str, [&str; 2])] = &[
    (r#"{"shards": 2}"#, ["spec.keyspace.pins", "or raise spec.shards"]),
    (r#"{"shards": 3}"#, ["spec.rebalance.weights", "or raise spec.shards"]),
    (r#"{"shards": 0}"#, ["spec.shards", "greater than or equal to 1"]),
    (r#"{"keyspace": {"delimiter": ":"}}"#, ["spec.keyspace.delimiter", "or make a new resource"]),
    (r#"{"keyspace": {"delimiter": ""}}"#, ["spec.keyspace.delimiter", "write \"/\""]),
    (r#"{"etcd": {"members": 5}}"#, ["spec.etcd.members", "cannot be changed yet"]),
    (r#"{"meta": {"members": 1}}"#, ["spec.meta.members", "cannot be changed yet"]),
    (r#"{"etcd": {"storage": {"size": "9Gi"}}}"#, ["spec.etcd.storage.size", "write 10Gi or more"]),
    (r#"{"etcd": {"storage": {"size": null}}}"#, ["spec.etcd.storage.size", "write 10Gi or more"]),
    (r#"{"etcd": {"storage": null}}"#, ["spec.etcd.storage.size", "write 10Gi or more"]),
    (r#"{"meta": {"storage": {"size": "1Gi"}}}"#, ["spec.meta.storage.size", "write 2Gi or more"]),
    (r#"{"etcd": {"storage": {"className": "slow"}}}"#, ["spec.etcd.storage.className", "write fast"]),
    (r#"{"etcd": {"storage": {"className": null}}}"#, ["spec.etcd.storage.className", "write fast"]),
    (r#"{"meta": {"storage": {"className": "fast"}}}"#, ["spec.meta.storage.className", "remove the field"]),
    (r#"{"version": "3.7.2"}"#, ["spec.version", "write 3.7.3 or newer"]),
    (r#"{"version": "3.6.20"}"#, ["spec.version", "another minor release"]),
    (r#"{"version": "3.8.0"}"#, ["spec.version", "another minor release"]),
    (r#"{"etcd": {"quota": "9Gi"}}"#, ["spec.etcd.quota", "does not fit a volume of 10Gi"]),
    (
        r#"{"proxy": {"replicas": 1, "disruption": {"minAvailable": 1}}}"#,
        ["spec.proxy.disruption", "less than"],
    ),
];

/// Merge patches of [`BASE`] that are accepted.
const GOOD_CHANGES: &[&str] = &[
    r#"{"shards": 5}"#,
    r#"{"shards": 2, "keyspace": {"pins": []}, "rebalance": {"weights": []}}"#,
    r#"{"shards": 3, "rebalance": {"weights": null}}"#,
    r#"{"rebalance": {"weights": [{"shard": 3, "weight": 60}, {"shard": 0, "weight": 100}]}}"#,
    r#"{"version": "3.7.10"}"#,
    r#"{"etcd": {"storage": {"size": "10.5Gi"}, "quota": null}}"#,
    r#"{"etcd": {"storage": {"size": "10240Mi", "retain": "Retain"}}}"#,
    r#"{"meta": {"storage": {"size": "3Gi"}}, "image": "registry.example/etcd"}"#,
    r#"{"proxy": null, "shardManager": null, "rebalance": null, "meta": null}"#,
    r#"{"compaction": {"retention": "5m"}}"#,
];

/// Every problem that there is, so that one run shows them all.
fn compare(problems: &mut Vec<String>, what: &str, accepted: bool, said: &str, expected: &[&str]) {
    if accepted {
        problems.push(format!("{what}\n    is accepted"));
    } else if let Some(missing) = expected.iter().find(|part| !said.contains(**part)) {
        problems.push(format!("{what}\n    does not say {missing:?}: {said}"));
    }
}

pub(crate) async fn created(cluster: &Cluster) {
    let mut problems = Vec::new();
    let names = NAMES.iter().map(|(name, expected)| (resource(name, "shards: 3"), expected));
    let specs = CREATED.iter().map(|(spec, expected)| (resource("bad", spec), expected));
    for (text, expected) in names.chain(specs) {
        let output = cluster.kubectl(&["create", "--dry-run=server", "-f", "-"], &text).await;
        compare(&mut problems, &text, output.code == Some(0), &output.stderr, expected);
        // Without a cluster there is no volume of a default size that a quota has to fit.
        if parse_file(&text).is_ok() {
            problems.push(format!("{text}\n    is accepted by `up`"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

pub(crate) async fn changed(cluster: &Cluster) {
    cluster.good(&["create", "-f", "-"], &resource("base", BASE)).await;
    let mut problems = Vec::new();
    let patch = async |spec: &str| {
        let patch = format!(r#"{{"spec": {spec}}}"#);
        cluster.kubectl(&["patch", "se", "base", "--type=merge", "--dry-run=server", "-p", &patch], "").await
    };
    for (spec, expected) in CHANGES {
        let output = patch(spec).await;
        compare(&mut problems, spec, output.code == Some(0), &output.stderr, expected);
    }
    for spec in GOOD_CHANGES {
        let output = patch(spec).await;
        if output.code != Some(0) {
            problems.push(format!("{spec}\n    is refused: {}", output.stderr));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
