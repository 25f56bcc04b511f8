//! YAML as a tree that knows in which line each field stands.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, de};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;

/// A YAML node.
#[derive(Debug)]
enum Node {
    Scalar(Value),
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Node;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a YAML value")
            }
            fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
                Ok(Node::Scalar(Value::Null))
            }
            fn visit_none<E: de::Error>(self) -> Result<Node, E> {
                Ok(Node::Scalar(Value::Null))
            }
            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
                Node::deserialize(deserializer)
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Node, E> {
                Ok(Node::Scalar(value.into()))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Node, E> {
                Ok(Node::Scalar(value.into()))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Node, E> {
                Ok(Node::Scalar(value.into()))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Node, E> {
                Ok(Node::Scalar(value.into()))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<Node, E> {
                Ok(Node::Scalar(value.into()))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
                let mut list = Vec::new();
                while let Some(node) = seq.next_element()? {
                    list.push(node);
                }
                Ok(Node::List(list))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Node::Map(entries))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// One YAML document: its value, and the line of each field.
#[derive(Debug, Default)]
pub(crate) struct Document {
    /// The value.
    pub(crate) value: Value,
    /// Line, from 1, by path as in `spec.keyspace.pins[1].shard`.
    lines: BTreeMap<String, u64>,
}

impl Document {
    /// A document that came without lines.
    pub(crate) fn without_lines(value: Value) -> Self {
        Self { value, lines: BTreeMap::new() }
    }

    /// The line that `path` stands in, or the next outer field that is there.
    pub(crate) fn line(&self, path: &str) -> Option<u64> {
        let mut path = path;
        loop {
            if let Some(line) = self.lines.get(path) {
                return Some(*line);
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }

    fn of(node: Spanned<Node>) -> Self {
        let mut document = Self::default();
        let root = node.referenced.line();
        document.value = document.walk(String::new(), node.value);
        // An empty path stands for the document itself.
        document.lines.insert(String::new(), root);
        document
    }

    fn walk(&mut self, path: String, node: Node) -> Value {
        match node {
            Node::Scalar(value) => value,
            Node::List(list) => list
                .into_iter()
                .enumerate()
                .map(|(i, entry)| {
                    let path = format!("{path}[{i}]");
                    self.lines.insert(path.clone(), entry.referenced.line());
                    self.walk(path, entry.value)
                })
                .collect(),
            Node::Map(entries) => {
                let mut map = Map::new();
                for (key, entry) in entries {
                    let path = join(&path, &key.value);
                    self.lines.insert(path.clone(), key.referenced.line());
                    let value = self.walk(path, entry.value);
                    map.insert(key.value, value);
                }
                Value::Object(map)
            }
        }
    }
}

/// The path of a field of the object at `path`.
pub(crate) fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

/// The documents of a file, without empty ones.
///
/// # Errors
/// If the file is no YAML: what is wrong, and its line.
pub(crate) fn documents(text: &str) -> Result<Vec<Document>, (String, Option<u64>)> {
    // "no" and "on" are text here, as everywhere in Kubernetes since YAML 1.2.
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
    let nodes: Vec<Spanned<Node>> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| syntax(&error))?;
    let documents = nodes.into_iter().map(Document::of);
    Ok(documents.filter(|document| !document.value.is_null()).collect())
}

/// What the parser found wrong, and the line.
fn syntax(error: &serde_saphyr::Error) -> (String, Option<u64>) {
    let line = error.location().map(|location| location.line()).filter(|line| *line > 0);
    let text = match error.without_snippet() {
        serde_saphyr::Error::DuplicateMappingKey { key, .. } => {
            let key = key.as_deref().unwrap_or("a field");
            format!("{key} is there twice; remove one of both")
        }
        other => other.to_string(),
    };
    // The line is said in front.
    let message = text.rfind(" at line ").map_or(text.as_str(), |at| &text[..at]);
    (message.to_owned(), line)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines_of_fields() {
        let text = "# comment\na: 1\nb:\n  - x\n  - y: no\n    z: [1.5, null]\n---\n---\nc: {d: true}\n";
        let documents = documents(text).unwrap();
        assert_eq!(documents.len(), 2);
        let first = &documents[0];
        assert_eq!(first.value, serde_json::json!({"a": 1, "b": ["x", {"y": "no", "z": [1.5, null]}]}));
        let lines = ["a", "b", "b[0]", "b[1].y", "b[1].z", "b[1].z[1]", "b[1].missing"]
            .map(|p| first.line(p).unwrap());
        assert_eq!(lines, [2, 3, 4, 5, 6, 6, 5]);
        assert_eq!(documents[1].line("c.d"), Some(9));
    }

    #[test]
    fn broken_yaml_names_the_line() {
        for (text, line) in [("a: [1\nb: 2\n", 2), ("a: 1\na: 2\n", 2), ("a:\n\t- b\n", 2), ("a: 'x\n", 2)] {
            let (message, at) = documents(text).unwrap_err();
            assert!(at.is_some_and(|at| at <= line), "{text:?}: {message} {at:?}");
        }
    }
}
