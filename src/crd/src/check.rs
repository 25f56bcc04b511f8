//! Checks a value against the schema of the CRD, as the API server would, with messages that say what to write.

use serde_json::{Map, Value};
use sharded_etcd_core::topology::FieldError;

use crate::document::join;

/// Fields of the resource that are planned but do nothing yet.
const NOT_YET: &[(&str, &str)] = &[
    ("tls", "there is no TLS yet; remove it, and let nothing but this machine reach the endpoint"),
    ("auth", "there are no users and roles yet; remove it"),
    ("backup", "there are no backups yet; remove it"),
    ("monitoring", "there is nothing to set yet, /metrics is always served; remove it"),
];

/// Compares `value` with `schema` and adds every problem to `errors`.
pub(crate) fn check(schema: &Value, path: &str, value: &Value, errors: &mut Vec<FieldError>) {
    if value.is_null() {
        // As the API server does: null is the same as not there.
        return;
    }
    if schema.get("x-kubernetes-int-or-string").is_some() {
        if !(value.is_i64() || value.is_u64() || value.is_string()) {
            errors.push(FieldError::new(
                path,
                format!("{} is no quantity; write one such as 8Gi", kind(value)),
            ));
        }
        return;
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("object") => match value.as_object() {
            Some(object) => check_object(schema, path, object, errors),
            None => errors
                .push(FieldError::new(path, format!("{} is no object; write fields below it", kind(value)))),
        },
        Some("array") => match value.as_array() {
            Some(list) => {
                let items = schema.get("items").unwrap_or(&Value::Null);
                for (i, entry) in list.iter().enumerate() {
                    let path = format!("{path}[{i}]");
                    if entry.is_null() {
                        errors.push(FieldError::new(path, "the entry is empty; write a value, or remove it"));
                    } else {
                        check(items, &path, entry, errors);
                    }
                }
            }
            None if value.is_object() => {
                errors.push(FieldError::new(path, "an object is no list; write its entries with - in front"));
            }
            None => errors.push(FieldError::new(path, format!("{value} is no list; write [{value}]"))),
        },
        Some("integer") if !value.is_i64() => {
            errors.push(FieldError::new(
                path,
                format!("{} is no whole number; write one without quotes", kind(value)),
            ));
        }
        Some("string") => check_string(schema, path, value, errors),
        Some("boolean") if !value.is_boolean() => {
            errors.push(FieldError::new(
                path,
                format!("{} is neither true nor false; write one of them", kind(value)),
            ));
        }
        _ => {}
    }
}

fn check_object(schema: &Value, path: &str, object: &Map<String, Value>, errors: &mut Vec<FieldError>) {
    if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object()) {
        for (name, value) in object {
            check(values, &join(path, name), value, errors);
        }
        return;
    }
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    for (name, value) in object {
        match properties.get(name) {
            Some(schema) => check(schema, &join(path, name), value, errors),
            None => errors.push(FieldError::new(join(path, name), unknown(path, name, properties))),
        }
    }
    let required = schema.get("required").and_then(Value::as_array);
    for name in required.into_iter().flatten().filter_map(Value::as_str) {
        if object.get(name).is_none_or(Value::is_null) {
            let what = properties.get(name).and_then(|p| p.get("type")).and_then(Value::as_str);
            let remedy = match what {
                Some("integer") => "write a whole number",
                Some("string") => "write a text",
                _ => "write it",
            };
            errors.push(FieldError::new(join(path, name), format!("missing; {remedy}")));
        }
    }
}

fn check_string(schema: &Value, path: &str, value: &Value, errors: &mut Vec<FieldError>) {
    let Some(text) = value.as_str() else {
        let remedy = match value {
            Value::Number(_) | Value::Bool(_) => format!("put it into quotes: \"{value}\""),
            _ => "write one".to_owned(),
        };
        errors.push(FieldError::new(path, format!("{} is no text; {remedy}", kind(value))));
        return;
    };
    let Some(allowed) = schema.get("enum").and_then(Value::as_array) else { return };
    let allowed = allowed.iter().filter_map(Value::as_str).collect::<Vec<_>>();
    if !allowed.contains(&text) {
        errors.push(FieldError::new(path, format!("{text:?} is not known; write {}", allowed.join(", "))));
    }
}

/// What to do about an unknown field.
fn unknown(path: &str, name: &str, properties: &Map<String, Value>) -> String {
    if let Some((_, message)) = NOT_YET.iter().find(|(field, _)| path == "spec" && *field == name) {
        return (*message).to_owned();
    }
    if let Some(close) = closest(name, properties.keys()) {
        return format!("unknown field; did you mean {close}?");
    }
    // A field of the right name in the wrong place: one level further in.
    let inner =
        properties.iter().find(|(_, schema)| schema.pointer(&format!("/properties/{name}")).is_some());
    if let Some((outer, _)) = inner {
        return format!("unknown field here; did you mean {}?", join(&join(path, outer), name));
    }
    let known = properties.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    format!("unknown field; there are {known}")
}

/// The known name that `name` was probably meant to be: at most a third of its letters differ.
fn closest<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> Option<&'a str> {
    let lower = name.to_lowercase();
    let allowed = (name.len() / 3).max(1);
    known
        .map(|candidate| (distance(&lower, &candidate.to_lowercase()), candidate.as_str()))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Letters to insert, remove or change to make `b` of `a` (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b = b.chars().collect::<Vec<_>>();
    let mut row = (0..=b.len()).collect::<Vec<_>>();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in b.iter().enumerate() {
            let change = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

fn kind(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!(distance("shard", "shards"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}
