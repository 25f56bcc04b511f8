//! What the schema of the CRD has beyond the types: defaults, bounds, how lists are merged, and rules.
//!
//! It is written down here by path and not as attributes of the types, so that each kind can be read at one glance.

use serde_json::{Map, Value, json};

use crate::{
    defaults,
    rules::rules,
    validate::{PINS_MAX, PREFIX_CHARS_MAX, PRESPLIT_MAX, SPLITTABLE_MAX, WEIGHTS_MAX},
};

/// Defaults, outer fields first. That of an object is made of those inside it. `kubectl get -o yaml`
/// shows them. `disruption` has none: it would stand beside the other field when a user writes that one later.
fn schema_defaults() -> Vec<(&'static str, Value)> {
    let none = json!({});
    let storage = |size: &str| [json!(size), json!("Delete")];
    let [size, retain] = storage(defaults::STORAGE_SIZE);
    let [meta_size, meta_retain] = storage(defaults::META_STORAGE_SIZE);
    vec![
        ("spec.version", json!(defaults::VERSION)),
        ("spec.keyspace", none.clone()),
        ("spec.etcd", none.clone()),
        ("spec.etcd.members", json!(defaults::MEMBERS)),
        ("spec.etcd.storage", none.clone()),
        ("spec.etcd.storage.size", size),
        ("spec.etcd.storage.retain", retain),
        ("spec.meta", none.clone()),
        ("spec.meta.members", json!(defaults::MEMBERS)),
        ("spec.meta.storage", none.clone()),
        ("spec.meta.storage.size", meta_size),
        ("spec.meta.storage.retain", meta_retain),
        ("spec.proxy", none.clone()),
        ("spec.proxy.replicas", json!(defaults::PROXY_REPLICAS)),
        ("spec.proxy.service", none.clone()),
        ("spec.proxy.service.type", json!("ClusterIP")),
        ("spec.shardManager", none.clone()),
        ("spec.shardManager.replicas", json!(defaults::SHARD_MANAGER_REPLICAS)),
        ("spec.rebalance", none),
    ]
}

/// More keywords by path: bounds, so that the cost of every rule is bounded too, the values that Kubernetes knows, and
/// what tells the entries of a list apart when two managers apply it.
fn keywords() -> Vec<(&'static str, Value)> {
    let name = json!({"maxLength": 253});
    let size = json!({"maxLength": 32});
    let set = |max: usize| json!({"maxItems": max, "x-kubernetes-list-type": "set"});
    let prefix = json!({"minLength": 1, "maxLength": PREFIX_CHARS_MAX});
    let mut keywords = vec![
        ("spec.version", json!({"maxLength": 20})),
        ("spec.image", json!({"minLength": 1, "maxLength": 255})),
        ("spec.keyspace.delimiter", json!({"maxLength": 16})),
        ("spec.keyspace.splittable", set(SPLITTABLE_MAX)),
        ("spec.keyspace.splittable.[]", prefix.clone()),
        ("spec.keyspace.presplit", set(PRESPLIT_MAX)),
        ("spec.keyspace.presplit.[]", prefix.clone()),
        (
            "spec.keyspace.pins",
            json!({"maxItems": PINS_MAX, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["prefix"]}),
        ),
        ("spec.keyspace.pins.[].prefix", prefix),
        ("spec.etcd.storage.size", size.clone()),
        ("spec.etcd.storage.className", name.clone()),
        ("spec.etcd.quota", size.clone()),
        ("spec.etcd.tolerations", json!({"maxItems": 32})),
        ("spec.etcd.tolerations.[].operator", json!({"enum": ["Exists", "Equal"]})),
        ("spec.etcd.tolerations.[].effect", json!({"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]})),
        ("spec.etcd.tolerations.[].key", json!({"maxLength": 317})),
        ("spec.etcd.tolerations.[].value", json!({"maxLength": 63})),
        ("spec.etcd.topologySpread", json!({"maxItems": 16})),
        ("spec.etcd.topologySpread.[].maxSkew", json!({"minimum": 1})),
        ("spec.etcd.topologySpread.[].minDomains", json!({"minimum": 1})),
        (
            "spec.etcd.topologySpread.[].whenUnsatisfiable",
            json!({"enum": ["DoNotSchedule", "ScheduleAnyway"]}),
        ),
        ("spec.etcd.topologySpread.[].nodeAffinityPolicy", json!({"enum": ["Honor", "Ignore"]})),
        ("spec.etcd.topologySpread.[].nodeTaintsPolicy", json!({"enum": ["Honor", "Ignore"]})),
        ("spec.etcd.priorityClassName", name.clone()),
        ("spec.etcd.labels", json!({"maxProperties": 32})),
        ("spec.etcd.labels.*", json!({"maxLength": 63})),
        ("spec.etcd.extraArgs", json!({"maxProperties": 32})),
        ("spec.etcd.extraArgs.*", json!({"maxLength": 1024})),
        ("spec.meta.storage.size", size.clone()),
        ("spec.meta.storage.className", name),
        ("spec.proxy.service.annotations", json!({"maxProperties": 32})),
        ("spec.proxy.service.annotations.*", json!({"maxLength": 4096})),
        // As a whole: when one manager writes one field, the other one, perhaps another manager's, goes.
        ("spec.proxy.disruption", json!({"x-kubernetes-map-type": "atomic"})),
        ("spec.proxy.disruption.maxUnavailable", size.clone()),
        ("spec.proxy.disruption.minAvailable", size.clone()),
        ("spec.rebalance.bytesPerSecond", size.clone()),
        ("spec.rebalance.approvedPlan", size.clone()),
        (
            "spec.rebalance.weights",
            json!({"maxItems": WEIGHTS_MAX, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["shard"]}),
        ),
        ("spec.compaction.retention", size.clone()),
    ];
    for resources in [
        ["spec.etcd.resources.requests", "spec.etcd.resources.requests.*"],
        ["spec.etcd.resources.limits", "spec.etcd.resources.limits.*"],
        ["spec.meta.resources.requests", "spec.meta.resources.requests.*"],
        ["spec.meta.resources.limits", "spec.meta.resources.limits.*"],
        ["spec.proxy.resources.requests", "spec.proxy.resources.requests.*"],
        ["spec.proxy.resources.limits", "spec.proxy.resources.limits.*"],
        ["spec.shardManager.resources.requests", "spec.shardManager.resources.requests.*"],
        ["spec.shardManager.resources.limits", "spec.shardManager.resources.limits.*"],
    ] {
        keywords.push((resources[0], json!({"maxProperties": 16})));
        keywords.push((resources[1], size.clone()));
    }
    keywords
}

/// Fields of types that Kubernetes defines. Their own descriptions would be most of the CRD.
const OF_KUBERNETES: &[&str] = &[
    "spec.etcd.resources",
    "spec.etcd.affinity",
    "spec.etcd.tolerations",
    "spec.etcd.topologySpread",
    "spec.meta.resources",
    "spec.proxy.resources",
    "spec.proxy.disruption.maxUnavailable",
    "spec.proxy.disruption.minAvailable",
    "spec.shardManager.resources",
];

/// Completes the schema of the resource that the derive made of the types.
pub(crate) fn complete(schema: &mut Value) {
    for path in OF_KUBERNETES {
        let schema = at(schema, path);
        let description = schema.get("description").cloned();
        strip(schema);
        if let (Some(schema), Some(description)) = (schema.as_object_mut(), description) {
            schema.insert("description".to_owned(), description);
        }
        if path.ends_with(".resources") {
            // Devices need claims of the pod, which there are not.
            properties(schema).remove("claims");
        }
    }
    for (path, keywords) in keywords() {
        if let (Value::Object(schema), Value::Object(keywords)) = (at(schema, path), keywords) {
            schema.extend(keywords);
        }
    }
    // From the inside outwards: the default of an object has to obey the object's rules, so it is written out.
    for (path, mut default) in schema_defaults().into_iter().rev() {
        let schema = object(at(schema, path));
        // Null then means the default, too.
        schema.remove("nullable");
        if let (Value::Object(default), Some(Value::Object(fields))) =
            (&mut default, schema.get("properties"))
        {
            let inner =
                fields.iter().filter_map(|(name, field)| Some((name.clone(), field.get("default")?.clone())));
            default.extend(inner);
        }
        schema.insert("default".to_owned(), default);
    }
    for (path, rule) in rules() {
        let schema = object(at(schema, path));
        // What a rule says better.
        schema.remove("pattern");
        let rules = schema.entry("x-kubernetes-validations").or_insert_with(|| json!([]));
        rules.as_array_mut().expect("it is only made here").push(rule);
    }
}

/// The schema at a path; `*` stands for the values of a map, `[]` for the entries of a list.
fn at<'a>(schema: &'a mut Value, path: &str) -> &'a mut Value {
    path.split('.').filter(|name| !name.is_empty()).fold(schema, |schema, name| {
        let inner = match name {
            "[]" => schema.get_mut("items"),
            "*" => schema.get_mut("additionalProperties"),
            _ => schema.get_mut("properties").and_then(|properties| properties.get_mut(name)),
        };
        inner.unwrap_or_else(|| panic!("there is no {name} of {path} in the types"))
    })
}

fn object(schema: &mut Value) -> &mut Map<String, Value> {
    schema.as_object_mut().expect("a schema is an object")
}

fn properties(schema: &mut Value) -> &mut Map<String, Value> {
    object(at_properties(schema))
}

fn at_properties(schema: &mut Value) -> &mut Value {
    schema.get_mut("properties").expect("an object has properties")
}

/// Takes the descriptions out, where they are no fields of this name.
fn strip(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if object.get("description").is_some_and(Value::is_string) {
                object.remove("description");
            }
            object.values_mut().for_each(strip);
        }
        Value::Array(list) => list.iter_mut().for_each(strip),
        _ => {}
    }
}
