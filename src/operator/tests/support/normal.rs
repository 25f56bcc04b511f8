//! The objects of a namespace without what differs from run to run, so that two runs can be compared.

use serde_json::{Map, Value, json};

use super::{kinds, managers::Managers, store::Store};

/// Fields that a run may end with different values of.
const DROPPED: &[&str] = &[
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "managedFields",
    "lastTransitionTime",
    "startedAt",
    "startTime",
    "clusterIP",
    "clusterIPs",
    "nodePort",
    "volumeName",
    "collisionCount",
    "currentRevision",
    "currentReplicas",
];

pub fn normalise(store: &Store, managers: &Managers, namespace: &str) -> Value {
    let objects = store.in_namespace(namespace);
    let mut names: Vec<(String, String)> = Vec::new();
    for (key, object) in &objects {
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        names.push((uid.to_owned(), format!("<uid of {} {}>", key.kind().kind, key.name)));
    }
    // Hashes of templates depend on uids.
    for (_, object) in &objects {
        for label in ["controller-revision-hash", "pod-template-hash"] {
            if let Some(hash) = object["metadata"]["labels"][label].as_str() {
                let hash = hash.rsplit('-').next().unwrap_or_default();
                names.push((hash.to_owned(), "<revision>".to_owned()));
            }
        }
        if let Some(revision) = object["status"]["updateRevision"].as_str() {
            names.push((revision.rsplit('-').next().unwrap_or_default().to_owned(), "<revision>".to_owned()));
        }
    }
    names.sort();
    names.dedup();
    let mut all = Map::new();
    for (key, object) in &objects {
        let kind = key.kind();
        if *kind == kinds::LEASES || kind.kind == "Event" {
            continue;
        }
        let mut object = (**object).clone();
        let generation = object["metadata"]["generation"].clone();
        object["metadata"].as_object_mut().expect("metadata").remove("generation");
        clean(&mut object, &generation);
        let mut name = format!("{} {}", kind.kind, key.name);
        let mut text = object.to_string();
        for (from, to) in &names {
            if text.contains(from) {
                text = text.replace(from, to);
                name = name.replace(from, to);
            }
        }
        all.insert(name, serde_json::from_str(&text).expect("still JSON"));
    }
    for (uid, topology) in &managers.topologies {
        let Some((_, name)) = names.iter().find(|(u, _)| u == uid) else { continue };
        let shards: Vec<String> =
            topology.shards.iter().map(|(n, s)| format!("{n} #{} {:?}", s.incarnation, s.phase)).collect();
        all.insert(format!("topology of {name}"), json!({"shards": shards, "left": topology.left}));
    }
    Value::Object(all)
}

fn clean(value: &mut Value, generation: &Value) {
    match value {
        Value::Object(map) => {
            map.retain(|name, _| !DROPPED.contains(&name.as_str()));
            for annotation in ["shardedetcd.io/routing", "shardedetcd.io/applied"] {
                if let Some(hash) = map.get_mut(annotation) {
                    *hash = json!("<hash>");
                }
            }
            if let Some(observed) = map.get_mut("observedGeneration") {
                *observed = json!(if observed == generation { "current" } else { "old" });
            }
            if let Some(routing) = map.get_mut("routing.json") {
                let parsed: Value = serde_json::from_str(routing.as_str().expect("text")).expect("JSON");
                *routing = parsed;
                routing["resource"]["metadata"]["generation"] = Value::Null;
            }
            map.values_mut().for_each(|value| clean(value, generation));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| clean(value, generation)),
        _ => {}
    }
}

/// The first differences between two normalised states.
pub fn differences(left: &Value, right: &Value) -> Vec<String> {
    let mut out = Vec::new();
    compare(left, right, String::new(), &mut out);
    out.truncate(12);
    out
}

fn compare(left: &Value, right: &Value, path: String, out: &mut Vec<String>) {
    match (left, right) {
        (Value::Object(l), Value::Object(r)) => {
            let mut names: Vec<&String> = l.keys().chain(r.keys()).collect();
            names.sort();
            names.dedup();
            for name in names {
                let path = format!("{path}/{name}");
                match (l.get(name), r.get(name)) {
                    (Some(l), Some(r)) => compare(l, r, path, out),
                    (Some(l), None) => out.push(format!("{path}: {l:.200} is missing")),
                    (None, Some(r)) => out.push(format!("{path}: {r:.200} is too much")),
                    (None, None) => {}
                }
            }
        }
        (Value::Array(l), Value::Array(r)) if l.len() == r.len() => {
            for (i, (l, r)) in l.iter().zip(r).enumerate() {
                compare(l, r, format!("{path}/{i}"), out);
            }
        }
        (l, r) if l != r => out.push(format!("{path}: {l:.300} became {r:.300}")),
        _ => {}
    }
}
