//! Whether an object is as it should be.
//!
//! Two things are looked at. An annotation holds a hash of the manifest that was applied last, so that a field that is
//! no longer asked for is seen. And every field of the manifest is compared with the object as it is, so that somebody
//! else's change is seen. The object may have more than the manifest: defaults, and fields of others.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::quantity;

/// Annotation with the hash of the manifest that was applied last.
pub(crate) const ANNOTATION_APPLIED: &str = "shardedetcd.io/applied";

/// A hash of the manifest that does not depend on the order of its fields: 16 hexadecimal digits.
pub(crate) fn manifest_hash(manifest: &Value) -> String {
    let mut hasher = Sha256::new();
    feed(&mut hasher, manifest);
    hasher.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn feed(hasher: &mut Sha256, value: &Value) {
    match value {
        Value::Object(fields) => {
            let mut names = fields.keys().collect::<Vec<_>>();
            names.sort();
            hasher.update(b"{");
            for name in names {
                hasher.update(Value::String(name.clone()).to_string());
                feed(hasher, &fields[name]);
            }
            hasher.update(b"}");
        }
        Value::Array(entries) => {
            hasher.update(b"[");
            for entry in entries {
                feed(hasher, entry);
                hasher.update(b",");
            }
            hasher.update(b"]");
        }
        other => hasher.update(other.to_string()),
    }
}

/// Path of the first field of `wanted` that is otherwise in `seen`, such as `spec.replicas`.
pub(crate) fn difference(wanted: &Value, seen: &Value) -> Option<String> {
    let fields = wanted.as_object()?;
    fields
        .iter()
        .filter(|(name, _)| *name != "apiVersion" && *name != "kind")
        .find_map(|(name, value)| field(name, value, seen.get(name), false))
}

/// `quantity`: whether the values right below are quantities.
fn field(path: &str, wanted: &Value, seen: Option<&Value>, quantity: bool) -> Option<String> {
    let differs = || Some(path.to_owned());
    let Some(seen) = seen.filter(|value| !value.is_null()) else {
        // The API server leaves out what is empty.
        return if is_empty(wanted) { None } else { differs() };
    };
    match (wanted, seen) {
        (Value::Object(wanted), Value::Object(seen)) => wanted.iter().find_map(|(name, value)| {
            let path = format!("{path}.{name}");
            field(&path, value, seen.get(name), quantity || holds_quantities(name))
        }),
        (Value::Array(wanted), Value::Array(seen)) => list(path, wanted, seen),
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => None,
        (wanted, seen) if wanted == seen => None,
        (wanted, seen) if quantity && quantity_of(wanted).is_some() => {
            if quantity_of(wanted) == quantity_of(seen) { None } else { differs() }
        }
        (Value::Null, _) => None,
        _ => differs(),
    }
}

/// Entries are told apart as the API server's own merge does, where that is known; else by their place.
fn list(path: &str, wanted: &[Value], seen: &[Value]) -> Option<String> {
    let Some(key) = merge_key(path, wanted) else {
        if wanted.len() != seen.len() {
            return Some(path.to_owned());
        }
        let mut pairs = wanted.iter().zip(seen).enumerate();
        return pairs.find_map(|(i, (w, s))| field(&format!("{path}[{i}]"), w, Some(s), false));
    };
    // Where the order means something (containers, init containers), it is the manifest's.
    let mut last = None;
    for entry in wanted {
        let name = &entry[key];
        let path = format!("{path}[{}]", name.as_str().unwrap_or("?"));
        let place = seen.iter().position(|other| &other[key] == name);
        let Some(place) = place else { return Some(path) };
        if last.is_some_and(|last| place < last) {
            return Some(path);
        }
        last = Some(place);
        if let Some(path) = field(&path, entry, seen.get(place), false) {
            return Some(path);
        }
    }
    None
}

/// The field that tells the entries of a list apart, if all have it.
fn merge_key(path: &str, entries: &[Value]) -> Option<&'static str> {
    let last = path.rsplit('.').next().unwrap_or(path);
    let key = match last {
        "containers" | "initContainers" | "volumes" | "env" | "imagePullSecrets" => "name",
        "volumeMounts" => "mountPath",
        "ownerReferences" => "uid",
        _ => return None,
    };
    entries.iter().all(|entry| entry.get(key).is_some()).then_some(key)
}

/// Whether the values below a field of this name are quantities, or the field itself is one.
fn holds_quantities(name: &str) -> bool {
    matches!(name, "requests" | "limits" | "capacity" | "storage" | "sizeLimit" | "divisor")
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(entries) => entries.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn quantity_of(value: &Value) -> Option<i128> {
    match value {
        Value::String(text) => quantity::nanos(text),
        Value::Number(number) => quantity::nanos(&number.to_string()),
        _ => None,
    }
}

/// The manifest's object with `name: value` among its annotations.
pub(crate) fn annotated(object: &Value, name: &str, value: &str) -> Value {
    let mut object = object.clone();
    let annotations = object_at(&mut object, &["metadata", "annotations"]);
    annotations.insert(name.to_owned(), Value::String(value.to_owned()));
    object
}

/// The object at `path`, made if it is not there. What is there and no object is replaced.
pub(crate) fn object_at<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let fields = value.as_object_mut().expect("it is one");
    match path.split_first() {
        None => fields,
        Some((first, rest)) => object_at(fields.entry(*first).or_insert(Value::Null), rest),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn more_than_asked_for_is_no_difference() {
        let wanted = json!({"spec": {"replicas": 3, "template": {"spec": {"containers": [
            {"name": "a", "image": "x", "args": [], "env": [{"name": "E", "value": ""}]}]}}}});
        let seen = json!({"spec": {"replicas": 3, "revisionHistoryLimit": 10, "template": {"spec": {"containers": [
            {"name": "injected", "image": "y"},
            {"name": "a", "image": "x", "imagePullPolicy": "Always", "env": [{"name": "E"}]}]}}}, "status": {}});
        assert_eq!(difference(&wanted, &seen), None);
    }

    #[test]
    fn a_difference_is_named() {
        let path = |wanted: Value, seen: Value| difference(&wanted, &seen).unwrap_or_default();
        assert_eq!(path(json!({"spec": {"replicas": 3}}), json!({"spec": {"replicas": 2}})), "spec.replicas");
        assert_eq!(path(json!({"spec": {"replicas": 3}}), json!({})), "spec");
        assert_eq!(path(json!({"data": {"a": "b"}}), json!({"data": null})), "data");
        assert_eq!(
            path(
                json!({"s": {"containers": [{"name": "a", "image": "x"}]}}),
                json!({"s": {"containers": [{"name": "a", "image": "y"}]}})
            ),
            "s.containers[a].image"
        );
        let order = |a: &str, b: &str| json!({"s": {"containers": [{"name": a}, {"name": b}]}});
        assert_eq!(path(order("a", "b"), order("b", "a")), "s.containers[b]");
        assert_eq!(path(json!({"a": {"args": ["x"]}}), json!({"a": {"args": ["x", "y"]}})), "a.args");
        assert_eq!(path(json!({"a": {"args": ["x", "z"]}}), json!({"a": {"args": ["x", "y"]}})), "a.args[1]");
        assert_eq!(path(json!({"a": {"on": false}}), json!({"a": {}})), "a.on");
    }

    #[test]
    fn quantities_are_numbers() {
        let resources =
            |cpu: Value, memory: &str| json!({"resources": {"requests": {"cpu": cpu, "memory": memory}}});
        let same = |a: &Value, b: &Value| difference(a, b).is_none();
        assert!(same(&resources(json!("1000m"), "1024Mi"), &resources(json!("1"), "1Gi")));
        assert!(same(&resources(json!(1), "1e3"), &resources(json!("1"), "1k")));
        assert!(!same(&resources(json!("1001m"), "1Gi"), &resources(json!("1"), "1Gi")));
        // Elsewhere, text is text.
        assert!(!same(&json!({"data": {"cpu": "1000m"}}), &json!({"data": {"cpu": "1"}})));
    }

    #[test]
    fn the_hash_knows_no_order_of_fields() {
        assert_eq!(
            manifest_hash(&json!({"a": 1, "b": [1, {"c": 2, "d": 3}]})),
            manifest_hash(&json!({"b": [1, {"d": 3, "c": 2}], "a": 1}))
        );
        assert_ne!(manifest_hash(&json!({"a": [1, 2]})), manifest_hash(&json!({"a": [12]})));
        assert_eq!(manifest_hash(&json!({})).len(), 16);
    }

    #[test]
    fn an_annotation_is_added() {
        let object = annotated(&json!({"metadata": {"name": "n", "annotations": null}}), "k", "v");
        assert_eq!(object, json!({"metadata": {"name": "n", "annotations": {"k": "v"}}}));
    }
}
