//! Server-side apply: who owns which fields, and how an applied object is merged into what is there.
//!
//! After sigs.k8s.io/structured-merge-diff, with the lists' keys of the built-in kinds written down here.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

/// A field: names, and for items of a list the keys that identify them.
pub type Path = Vec<Step>;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// A field of an object.
    Field(String),
    /// The item of a list whose keys have these values, as JSON.
    Item(String),
}

/// How a list is merged.
enum Lists {
    /// Replaced as a whole.
    Atomic,
    /// Items with the same values of these fields are the same item.
    Keyed(&'static [&'static str]),
    /// Items are themselves their keys.
    Set,
}

fn list_at(path: &[Step]) -> Lists {
    let names: Vec<&str> = path
        .iter()
        .filter_map(|step| if let Step::Field(name) = step { Some(name.as_str()) } else { None })
        .collect();
    let parent = names.len().checked_sub(2).map_or("", |at| names[at]);
    match names.last().copied().unwrap_or_default() {
        "containers" | "initContainers" | "volumes" | "env" | "imagePullSecrets" => Lists::Keyed(&["name"]),
        "ports" if parent.ends_with("ontainers") => Lists::Keyed(&["containerPort", "protocol"]),
        "ports" if names == ["spec", "ports"] => Lists::Keyed(&["port", "protocol"]),
        "volumeMounts" => Lists::Keyed(&["mountPath"]),
        "hostAliases" => Lists::Keyed(&["ip"]),
        "topologySpreadConstraints" => Lists::Keyed(&["topologyKey", "whenUnsatisfiable"]),
        "conditions" => Lists::Keyed(&["type"]),
        "ownerReferences" => Lists::Keyed(&["uid"]),
        "finalizers" => Lists::Set,
        _ => Lists::Atomic,
    }
}

/// Whether an object is replaced as a whole.
fn is_atomic(path: &[Step]) -> bool {
    let Some(Step::Field(last)) = path.last() else { return false };
    matches!(
        last.as_str(),
        "selector"
            | "labelSelector"
            | "podSelector"
            | "namespaceSelector"
            | "nodeSelector"
            | "fieldRef"
            | "configMapKeyRef"
            | "secretKeyRef"
            | "resourceFieldRef"
    )
}

fn key_of(item: &Value, keys: &[&str]) -> String {
    let mut map = Map::new();
    for key in keys {
        let value = match (item.get(key), *key) {
            (Some(value), _) => value.clone(),
            (None, "protocol") => json!("TCP"),
            (None, _) => continue,
        };
        map.insert((*key).to_owned(), value);
    }
    Value::Object(map).to_string()
}

fn with(path: &[Step], step: Step) -> Path {
    let mut path = path.to_vec();
    path.push(step);
    path
}

fn field(path: &[Step], name: &str) -> Path {
    with(path, Step::Field(name.to_owned()))
}

fn identity(path: &[Step], item: &Value) -> Option<String> {
    match list_at(path) {
        Lists::Atomic => None,
        Lists::Keyed(keys) => Some(key_of(item, keys)),
        Lists::Set => Some(item.to_string()),
    }
}

/// The fields that `value` sets.
pub fn leaves(value: &Value) -> BTreeSet<Path> {
    let mut out = BTreeSet::new();
    collect(&mut Vec::new(), value, &mut out);
    for system in ["apiVersion", "kind"] {
        out.remove(&field(&[], system));
    }
    for system in
        ["name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields"]
    {
        let path = field(&field(&[], "metadata"), system);
        out.retain(|p| !p.starts_with(&path));
    }
    out
}

fn collect(path: &mut Path, value: &Value, out: &mut BTreeSet<Path>) {
    match value {
        Value::Object(map) if !map.is_empty() && !is_atomic(path) => {
            for (name, value) in map {
                path.push(Step::Field(name.clone()));
                collect(path, value, out);
                path.pop();
            }
        }
        Value::Array(items) if !matches!(list_at(path), Lists::Atomic) => {
            for item in items {
                let identity = identity(path, item).expect("not atomic");
                path.push(Step::Item(identity));
                out.insert(path.clone());
                collect(path, item, out);
                path.pop();
            }
        }
        _ => {
            out.insert(path.clone());
        }
    }
}

/// The value at a path.
pub fn at<'v>(root: &'v Value, path: &[Step]) -> Option<&'v Value> {
    let mut value = root;
    for (depth, step) in path.iter().enumerate() {
        value = match step {
            Step::Field(name) => value.get(name)?,
            Step::Item(key) => {
                let parent = &path[..depth];
                value.as_array()?.iter().find(|item| identity(parent, item).as_ref() == Some(key))?
            }
        };
    }
    Some(value)
}

/// `live` with the fields of `applied` as they are there.
pub fn merge(live: &Value, applied: &Value, path: &mut Path) -> Value {
    match (live, applied) {
        (Value::Object(live), Value::Object(applied)) if !is_atomic(path) => {
            let mut merged = live.clone();
            for (name, value) in applied {
                path.push(Step::Field(name.clone()));
                let value = merge(live.get(name).unwrap_or(&Value::Null), value, path);
                path.pop();
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (Value::Array(live), Value::Array(applied)) if !matches!(list_at(path), Lists::Atomic) => {
            let id = |item: &Value| identity(path, item).expect("not atomic");
            let live_ids: Vec<String> = live.iter().map(id).collect();
            let applied_ids: Vec<String> = applied.iter().map(id).collect();
            let kept: Vec<&String> = live_ids.iter().filter(|i| applied_ids.contains(i)).collect();
            let known: Vec<&String> = applied_ids.iter().filter(|i| live_ids.contains(i)).collect();
            let mut order = Vec::new();
            if kept == known {
                order.extend(live_ids.iter().cloned());
                order.extend(applied_ids.iter().filter(|i| !live_ids.contains(i)).cloned());
            } else {
                order.extend(applied_ids.iter().cloned());
                order.extend(live_ids.iter().filter(|i| !applied_ids.contains(i)).cloned());
            }
            let find = |ids: &[String], items: &[Value], id: &String| {
                ids.iter().position(|i| i == id).map(|at| items[at].clone())
            };
            let items = order.iter().map(|id| {
                let old = find(&live_ids, live, id).unwrap_or(Value::Null);
                match find(&applied_ids, applied, id) {
                    None => old,
                    Some(new) => {
                        let mut path = with(path, Step::Item(id.clone()));
                        merge(&old, &new, &mut path)
                    }
                }
            });
            Value::Array(items.collect())
        }
        (_, applied) => without_nulls(applied),
    }
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), without_nulls(v))).collect(),
        ),
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

/// Takes out what is at a path, and the objects and lists around it that are empty then.
pub fn remove(root: &mut Value, path: &[Step]) {
    remove_below(root, path, 0);
}

/// True if `value` is empty now.
fn remove_below(value: &mut Value, path: &[Step], depth: usize) -> bool {
    let Some(step) = path.get(depth) else { return false };
    let last = depth + 1 == path.len();
    match (value, step) {
        (Value::Object(map), Step::Field(name)) => {
            let Some(child) = map.get_mut(name) else { return false };
            if last || remove_below(child, path, depth + 1) {
                map.remove(name);
            }
            map.is_empty()
        }
        (Value::Array(items), Step::Item(key)) => {
            let found = items.iter().position(|i| identity(&path[..depth], i).as_ref() == Some(key));
            let Some(at) = found else { return false };
            if last || remove_below(&mut items[at], path, depth + 1) {
                items.remove(at);
            }
            items.is_empty()
        }
        _ => false,
    }
}

/// RFC 7386.
pub fn merge_patch(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let map = target.as_object_mut().expect("just made one");
    for (name, value) in patch {
        if value.is_null() {
            map.remove(name);
        } else {
            merge_patch(map.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}
