#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};
use sharded_etcd_crd::{ShardedEtcdSpec, routing::Routing, status::ShardPhase::Serving};

use super::{build, config};
use crate::{
    model::{Desired, Manifest},
    names::{self, Cluster},
    validate::{
        fixture::{UID, World},
        validate,
    },
};

/// Every field that there is.
fn full() -> Value {
    json!({
        "version": "3.7.3",
        "image": "mirror/etcd",
        "shards": 1,
        "keyspace": {
            "delimiter": "/",
            "splittable": ["/registry/pods/"],
            "presplit": ["/registry/services/"],
            "pins": [{"prefix": "/registry/events/", "shard": 0}],
        },
        "etcd": {
            "members": 5,
            "storage": {"size": "20Gi", "className": "fast", "retain": "Retain"},
            "quota": "4Gi",
            "resources": {"requests": {"cpu": "0.5", "memory": "1024Mi"}, "limits": {"memory": "1.5Gi"}},
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]},
            ]}}},
            "tolerations": [{"key": "etcd", "operator": "Exists", "effect": "NoSchedule"}],
            "topologySpread": [
                {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"},
            ],
            "priorityClassName": "high",
            "labels": {"team": "a"},
            "extraArgs": {"snapshot-count": "20000", "log-level": "info"},
        },
        "meta": {
            "members": 1,
            "storage": {"size": "4Gi", "className": "slow"},
            "resources": {"requests": {"cpu": "100m"}},
        },
        "proxy": {
            "replicas": 3,
            "resources": {"limits": {"cpu": "2"}},
            "service": {"type": "LoadBalancer", "annotations": {"example.com/internal": "true"}},
            "disruption": {"minAvailable": "50%"},
        },
        "shardManager": {"replicas": 1, "resources": {"limits": {"memory": "64Mi"}}},
        "rebalance": {"mode": "Automatic", "maxConcurrentMoves": 2, "bytesPerSecond": "64Mi", "loadTolerance": 5000,
            "weights": [{"shard": 0, "weight": 50}], "approvedPlan": "1a2b3c4d"},
        "compaction": {"retention": "5m"},
    })
}

fn text(manifests: &[Manifest]) -> String {
    let documents = manifests.iter().map(|manifest| {
        let mut object = manifest.object.clone();
        // JSON inside JSON would be one long line.
        if let Some(routing) = object.pointer_mut("/data/routing.json").filter(|data| data.is_string()) {
            let parsed: Value = serde_json::from_str(routing.as_str().unwrap()).unwrap();
            *routing = parsed;
        }
        serde_json::to_string_pretty(&object).unwrap()
    });
    documents.collect::<Vec<_>>().join("\n---\n")
}

fn desired(world: &World) -> Desired {
    build(&world.validated(), &world.observed)
}

#[test]
fn the_sample() {
    let world = World::new(json!({"shards": 3}));
    insta::assert_snapshot!(text(&desired(&world).manifests));
}

#[test]
fn every_field() {
    let world = World::new(full());
    insta::assert_snapshot!(text(&desired(&world).manifests));
}

fn has_null_or_empty(value: &Value, path: &str) -> Option<String> {
    match value {
        Value::Null => Some(path.to_owned()),
        Value::Array(list) if list.is_empty() => Some(path.to_owned()),
        // "All namespaces" and "all pods" are selectors without a field.
        Value::Object(map) if map.is_empty() && !path.ends_with("Selector") => Some(path.to_owned()),
        Value::Array(list) => list.iter().find_map(|item| has_null_or_empty(item, path)),
        Value::Object(map) => map.iter().find_map(|(k, v)| has_null_or_empty(v, &format!("{path}.{k}"))),
        _ => None,
    }
}

#[test]
fn manifests_have_nothing_empty_and_no_name_twice() {
    for spec in [json!({"shards": 3}), full()] {
        let manifests = desired(&World::new(spec)).manifests;
        let mut names: Vec<_> = manifests.iter().map(|m| (m.types.kind.clone(), m.name.clone())).collect();
        for manifest in &manifests {
            assert_eq!(has_null_or_empty(&manifest.object, &manifest.name), None);
            assert_eq!(manifest.object["kind"], manifest.types.kind.as_str());
            assert_eq!(manifest.object["metadata"]["name"], manifest.name.as_str());
            assert_eq!(manifest.object["metadata"]["ownerReferences"][0]["uid"], UID);
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), manifests.len());
    }
}

#[test]
fn a_steady_resource_needs_nothing() {
    let mut world = World::serving(2);
    world.step();
    let before = desired(&world);
    assert_eq!(
        (&before.deletions[..], before.pod_annotations.len(), before.claim_sizes.len()),
        (&[][..], 0, 0)
    );
    world.step();
    assert_eq!(desired(&world), before);
}

#[test]
fn what_nothing_needs_is_deleted_and_what_is_not_ours_is_not() {
    let mut world = World::serving(1);
    let old = world.observed.children.services["demo"].clone();
    let mut renamed = (*old).clone();
    renamed.metadata.name = Some("demo-old".into());
    world.observed.children.services.insert("demo-old".into(), renamed.clone().into());
    renamed.metadata.name = Some("theirs".into());
    renamed.metadata.owner_references = None;
    world.observed.children.services.insert("theirs".into(), renamed.into());
    let deletions = desired(&world).deletions;
    assert_eq!(deletions.len(), 1);
    assert_eq!((deletions[0].types.kind.as_str(), deletions[0].name.as_str()), ("Service", "demo-old"));
    assert_eq!(Some(&deletions[0].uid), old.metadata.uid.as_ref());
}

#[test]
fn the_routing_is_read_by_those_who_route() {
    let mut world = World::serving(2);
    world.scale(3);
    let validated = world.validated();
    let routing = Routing::parse(Path::new("r"), config::routing_text(&validated).as_bytes()).unwrap();
    assert_eq!((routing.uid.as_str(), routing.bootstrap, routing.shards.len()), (UID, true, 3));
    assert_eq!(routing.meta, Cluster::Meta.endpoints("demo", "ns", 3));
    assert_eq!(routing.resource.spec.shards, 3);
    assert_eq!(routing.resource.metadata.generation, Some(2));
    assert!(routing.resource.status.is_none());
}

#[test]
fn readers_are_told_of_a_new_routing_once() {
    let mut world = World::serving(2);
    world.step();
    assert_eq!(desired(&world).pod_annotations.len(), 0);
    world.scale(3);
    let told = world.step().pod_annotations;
    let names: Vec<_> = told.keys().map(String::as_str).collect();
    assert_eq!(names, ["demo-proxy-0", "demo-proxy-1", "demo-shard-manager-0", "demo-shard-manager-1"]);
    assert!(told.values().all(|annotations| annotations.contains_key(names::ANNOTATION_ROUTING)));
    assert_eq!(desired(&world).pod_annotations.len(), 0);
}

#[test]
fn an_existing_cluster_is_said_to_be_one() {
    let mut world = World::new(json!({"shards": 1}));
    world.step();
    let state = |world: &World| -> BTreeMap<String, String> {
        world.observed.children.config_maps["demo-cluster-state"].data.clone().unwrap()
    };
    assert_eq!(state(&world)["shard-0-0"], "new");
    world.known(&[(0, 0, Serving)], &[]);
    world.step();
    assert_eq!(state(&world)["shard-0-0"], "existing");
    assert_eq!(state(&world)["meta-0"], "existing");
    let set = &world.observed.children.stateful_sets["demo-shard-0"];
    assert_eq!(set.metadata.annotations.as_ref().unwrap()[names::ANNOTATION_STATE], "existing");
}

#[test]
fn the_claim_template_of_a_statefulset_stays() {
    let mut world = World::new(full());
    world.step();
    let template = |world: &World| {
        let manifests = desired(world).manifests;
        let set = manifests.iter().find(|m| m.types.kind == "StatefulSet" && m.name == "demo-shard-0");
        set.unwrap().object["spec"]["volumeClaimTemplates"].clone()
    };
    let before = template(&world);
    world.edit(|resource| {
        let mut spec = full();
        spec["etcd"]["storage"] = json!({"size": "40Gi", "className": "other", "retain": "Retain"});
        resource.spec = serde_json::from_value(spec).unwrap();
    });
    assert_eq!(template(&world), before);
}

/// Leaves of a JSON object, as pointers.
fn leaves(value: &Value, path: String, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            out.push(format!("{path}/{key}"));
            leaves(value, format!("{path}/{key}"), out);
        }),
        _ => out.push(path),
    }
}

/// Takes one field out of an object.
fn without(mut value: Value, pointer: &str) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    if let Some(map) = value.pointer_mut(parent).and_then(Value::as_object_mut) {
        map.remove(key);
    }
    value
}

/// What differs between two builds because of the generation alone.
fn without_generation(desired: &Desired) -> Vec<Manifest> {
    let mut manifests = desired.manifests.clone();
    for manifest in &mut manifests {
        if let Some(routing) = manifest.object.pointer_mut("/data/routing.json") {
            let mut parsed: Value = serde_json::from_str(routing.as_str().unwrap()).unwrap();
            parsed["resource"]["metadata"]["generation"] = Value::Null;
            *routing = parsed;
        }
    }
    manifests
}

#[test]
fn there_and_back_over_every_field_gives_the_same_objects() {
    let mut pointers = Vec::new();
    leaves(&full(), String::new(), &mut pointers);
    pointers.sort();
    pointers.dedup();
    let mut changed = 0;
    for pointer in pointers.iter().filter(|pointer| *pointer != "/shards") {
        // A spec that lacks a field that has to be there is refused by the schema.
        let Ok(other) = serde_json::from_value::<ShardedEtcdSpec>(without(full(), pointer)) else { continue };
        let mut world = World::new(full());
        world.step();
        world.known(&[(0, 0, Serving)], &[]);
        world.step();
        let before = without_generation(&desired(&world));
        world.edit(|resource| resource.spec = other);
        // What is refused stops everything, so all stays as it was.
        if validate(&world.observed, &world.settings).is_ok() {
            changed += usize::from(without_generation(&desired(&world)) != before);
            world.step();
        }
        world.edit(|resource| resource.spec = serde_json::from_value(full()).unwrap());
        let after = without_generation(&world.step());
        assert_eq!(text(&after), text(&before), "{pointer}");
        let last = desired(&world);
        assert_eq!((&last.deletions[..], last.claim_sizes.len()), (&[][..], 0), "{pointer}");
    }
    assert!(changed >= 30, "only {changed} fields change something");
}
