//! Every field of the spec, there and back again: the objects are what they were.

use serde_json::{Value, json};

use crate::support::{defaults, normal::differences, server::Watching, world::World};

/// What becomes of an edit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Some object changes.
    Changes,
    /// The operator refuses it with a condition, and goes on with what it has.
    Refused,
}

/// Edits: the field, its other value, and what comes of it.
fn edits() -> Vec<(&'static str, Value, Effect)> {
    use Effect::{Changes, Refused};
    let resources =
        || json!({"requests": {"cpu": "250m", "memory": "128Mi"}, "limits": {"memory": "1024Mi"}});
    vec![
        ("version", json!("3.7.4"), Changes),
        ("image", json!("mirror.example/etcd"), Changes),
        ("shards", json!(3), Changes),
        ("keyspace.delimiter", json!(":"), Changes),
        ("keyspace.splittable", json!(["/registry/pods/"]), Changes),
        ("keyspace.presplit", json!(["/registry/services/"]), Changes),
        ("keyspace.pins", json!([{"prefix": "/registry/events/", "shard": 1}]), Changes),
        ("etcd.members", json!(3), Refused),
        ("etcd.storage.size", json!("1Gi"), Refused),
        ("etcd.storage.className", json!("fast"), Refused),
        ("etcd.storage.retain", json!("Retain"), Changes),
        ("etcd.quota", json!("256Mi"), Changes),
        ("etcd.resources", resources(), Changes),
        (
            "etcd.affinity",
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}
            ]}}}),
            Changes,
        ),
        ("etcd.tolerations", json!([{"key": "etcd", "operator": "Exists", "effect": "NoSchedule"}]), Changes),
        (
            "etcd.topologySpread",
            json!([{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]),
            Changes,
        ),
        ("etcd.priorityClassName", json!("high"), Changes),
        ("etcd.labels", json!({"team": "storage"}), Changes),
        ("etcd.extraArgs", json!({"heartbeat-interval": "200"}), Changes),
        ("meta.members", json!(3), Refused),
        ("meta.storage.size", json!("1Gi"), Refused),
        ("meta.storage.className", json!("fast"), Refused),
        ("meta.storage.retain", json!("Retain"), Changes),
        ("meta.resources", resources(), Changes),
        ("proxy.replicas", json!(3), Changes),
        ("proxy.resources", resources(), Changes),
        ("proxy.service.type", json!("LoadBalancer"), Changes),
        ("proxy.service.annotations", json!({"example.com/a": "b"}), Changes),
        ("proxy.disruption", json!({"maxUnavailable": "25%"}), Changes),
        ("proxy.disruption", json!({"minAvailable": 1}), Changes),
        ("shardManager.replicas", json!(1), Changes),
        ("shardManager.resources", resources(), Changes),
        ("rebalance.mode", json!("Paused"), Changes),
        ("rebalance.maxConcurrentMoves", json!(4), Changes),
        ("rebalance.bytesPerSecond", json!("64Mi"), Changes),
        ("rebalance.loadTolerance", json!(5000), Changes),
        ("rebalance.weights", json!([{"shard": 1, "weight": 50}]), Changes),
        ("rebalance.approvedPlan", json!("1a2b3c4d"), Changes),
        ("compaction.retention", json!("10m"), Changes),
    ]
}

fn sample() -> Value {
    json!({
        "shards": 2, "etcd": {"members": 1, "storage": {"size": "2Gi"}},
        "meta": {"members": 1, "storage": {"size": "2Gi"}}, "proxy": {"replicas": 2}, "shardManager": {"replicas": 2},
    })
}

/// Paths of the fields in the schema; what Kubernetes defines and lists count as one.
fn fields(schema: &Value, path: &str, out: &mut Vec<String>) {
    let whole = ["resources", "affinity", "tolerations", "topologySpread"];
    let last = path.rsplit('.').next().unwrap_or_default();
    match schema["properties"].as_object().filter(|_| !whole.contains(&last)) {
        Some(properties) => {
            for (name, schema) in properties {
                fields(schema, &format!("{path}.{name}"), out);
            }
        }
        None => out.push(path.trim_start_matches('.').to_owned()),
    }
}

#[test]
fn every_field_has_an_edit() {
    let mut all = Vec::new();
    fields(&defaults::schema()["properties"]["spec"], "", &mut all);
    assert!(all.len() > 30, "{all:?}");
    let edits = edits();
    let missing: Vec<&String> = all
        .iter()
        .filter(|field| {
            !edits.iter().any(|(path, ..)| field == path || field.starts_with(&format!("{path}.")))
        })
        .collect();
    assert!(missing.is_empty(), "add edits of {missing:?}");
    let unknown: Vec<&str> = edits
        .iter()
        .map(|(path, ..)| *path)
        .filter(|path| !all.iter().any(|field| field == path || field.starts_with(&format!("{path}."))))
        .collect();
    assert!(unknown.is_empty(), "the schema has no {unknown:?}");
}

fn with(path: &str, value: &Value) -> Value {
    let mut spec = sample();
    let mut at = &mut spec;
    for name in path.split('.') {
        at = &mut at[name];
    }
    *at = value.clone();
    spec
}

/// What the operator made: without the resource, whose status tells of the edit, and without the topology, which has
/// moved on.
fn made(world: &World) -> Value {
    let mut state = world.normalised();
    let map = state.as_object_mut().expect("objects by name");
    map.retain(|name, _| !name.starts_with("ShardedEtcd ") && !name.starts_with("topology of"));
    state
}

async fn there_and_back(part: usize) {
    let mut world = World::default();
    world.apply("demo", sample());
    let operator = world.start(Watching::Fresh);
    world.until("demo is ready", |w| w.is_ready("demo")).await;
    world.settle(&operator).await;
    let base = world.snapshot();
    operator.end().await;
    let a = made(&world);
    for (path, value, effect) in edits().into_iter().skip(part).step_by(2) {
        let mut world = World::from(base.clone());
        let operator = world.start(Watching::Fresh);
        world.apply("demo", with(path, &value));
        world.settle(&operator).await;
        let b = made(&world);
        match effect {
            Effect::Changes => {
                assert_ne!(a, b, "{path}: {value} changes nothing");
                assert!(world.is_ready("demo"), "{path}: {value}: {}", world.story());
            }
            Effect::Refused => {
                let stalled = world.condition("demo", "Stalled");
                assert!(stalled.is_some_and(|(s, _)| s == "True"), "{path}: {value}: {}", world.story());
            }
        }
        world.apply("demo", sample());
        world.settle(&operator).await;
        world.assert_sound(path);
        let again = made(&world);
        assert_eq!(a, again, "{path}: {value} and back: {:#?}", differences(&a, &again));
        assert!(world.is_ready("demo"), "{path}: {value} and back: {}", world.story());
        operator.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn each_field_there_and_back_1() {
    there_and_back(0).await;
}

#[tokio::test(start_paused = true)]
async fn each_field_there_and_back_2() {
    there_and_back(1).await;
}
