//! From the text of a file to a resource that asks for a valid topology.

use std::fmt;

use serde_json::{Value, json};
use sharded_etcd_core::topology::FieldError;

use crate::{
    API_VERSION, KIND, ShardedEtcd,
    check::check,
    crd::full_schema,
    document::{Document, documents},
};

/// Largest file that is read, in bytes: what the API server accepts for one object.
pub const FILE_BYTES_MAX: usize = 3 << 20;

/// Fields of an object's metadata; those that the server sets are accepted, so that what `kubectl get -o yaml` prints
/// is a file.
const METADATA: &[&str] = &[
    "name",
    "namespace",
    "labels",
    "annotations",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "managedFields",
    "finalizers",
    "ownerReferences",
    "generateName",
    "selfLink",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
];

/// A problem, and the line of the file it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The line, from 1, if known.
    pub line: Option<u64>,
    /// The problem.
    pub error: FieldError,
}

impl fmt::Display for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.error),
            None => self.error.fmt(f),
        }
    }
}

/// Why a file holds no resource that could be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The text is no YAML or no JSON.
    #[error("{}no {format}: {message}", at_line(*line))]
    Syntax {
        /// What the text should have been.
        format: &'static str,
        /// What the parser says.
        message: String,
        /// The line, from 1, if known.
        line: Option<u64>,
    },
    /// The file is not one document with one `ShardedEtcd`.
    #[error("{0}")]
    Document(String),
    /// Fields are wrong; never empty.
    #[error("{}", lines(.0))]
    Fields(Vec<Located>),
}

fn at_line(line: Option<u64>) -> String {
    line.map(|line| format!("line {line}: ")).unwrap_or_default()
}

fn lines(problems: &[Located]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Reads the one `ShardedEtcd` of a YAML file and checks everything about it, so that
/// [`ShardedEtcd::topology`] succeeds on what this gives.
///
/// # Errors
/// Every problem of the first kind met: no YAML; not exactly one `ShardedEtcd`; unknown, missing or mistyped fields;
/// values that make no sense. Each says what to write instead.
pub fn parse_file(text: &str) -> Result<ShardedEtcd, SpecError> {
    if text.len() > FILE_BYTES_MAX {
        let message = format!("the file is {} bytes long; use at most {FILE_BYTES_MAX}", text.len());
        return Err(SpecError::Document(message));
    }
    let documents =
        documents(text).map_err(|(message, line)| SpecError::Syntax { format: "YAML", message, line })?;
    let mut of_kind = Vec::new();
    for (i, document) in documents.into_iter().enumerate() {
        require_kind(&document, i)?;
        of_kind.push(document);
    }
    let mut of_kind = of_kind.into_iter();
    match (of_kind.next(), of_kind.next()) {
        (Some(document), None) => resource(document),
        (None, _) => {
            let message =
                format!("the file is empty; write a resource of apiVersion {API_VERSION} and kind {KIND}");
            Err(SpecError::Document(message))
        }
        (Some(first), Some(second)) => {
            let message = format!(
                "the file holds {} resources of kind {KIND}, the second in line {}; keep one",
                2 + of_kind.count(),
                second.line("").or(first.line("")).unwrap_or_default()
            );
            Err(SpecError::Document(message))
        }
    }
}

/// Reads a `ShardedEtcd` from JSON and checks everything about it, as [`parse_file`] does.
///
/// # Errors
/// As [`parse_file`].
pub fn parse_json(text: &str) -> Result<ShardedEtcd, SpecError> {
    let value = serde_json::from_str(text).map_err(|e| SpecError::Syntax {
        format: "JSON",
        message: e.to_string(),
        line: u64::try_from(e.line()).ok(),
    })?;
    let document = Document::without_lines(value);
    require_kind(&document, 0)?;
    resource(document)
}

/// Refuses a document that is no `ShardedEtcd`: nothing in a file is ignored.
fn require_kind(document: &Document, i: usize) -> Result<(), SpecError> {
    let text = |name: &str| document.value.get(name).and_then(Value::as_str);
    let line = at_line(document.line(""));
    let n = i + 1;
    let message = match (text("apiVersion"), text("kind")) {
        _ if !document.value.is_object() => {
            format!("document {n} is no object; write a resource of kind {KIND}")
        }
        (Some(API_VERSION), Some(KIND)) => return Ok(()),
        (Some(version), Some(KIND)) => {
            let known = format!("this program knows {API_VERSION} only");
            format!("document {n} has apiVersion {version}, but {known}; write apiVersion: {API_VERSION}")
        }
        (_, Some(kind)) if kind != KIND => {
            format!("document {n} is a {kind}; keep nothing but one {KIND} in this file")
        }
        (_, Some(_)) => format!("document {n} has no apiVersion; write apiVersion: {API_VERSION}"),
        (_, None) => format!("document {n} has no kind; write kind: {KIND}"),
    };
    Err(SpecError::Document(format!("{line}{message}")))
}

fn resource(mut document: Document) -> Result<ShardedEtcd, SpecError> {
    // What there is says nothing about what is wanted.
    if let Some(object) = document.value.as_object_mut() {
        object.remove("status");
    }
    let mut errors = Vec::new();
    check(&file_schema(), "", &document.value, &mut errors);
    let located = |errors: Vec<FieldError>| {
        let locate = |error: FieldError| Located { line: document.line(&error.field), error };
        let mut errors = errors.into_iter().map(locate).collect::<Vec<_>>();
        errors.sort_by_key(|located| located.line);
        SpecError::Fields(errors)
    };
    if !errors.is_empty() {
        return Err(located(errors));
    }
    let mut value = document.value.clone();
    remove_nulls(&mut value);
    let resource: ShardedEtcd = serde_json::from_value(value)
        .map_err(|e| SpecError::Document(format!("not a {KIND}: {e}; compare it with config/samples")))?;
    match resource.topology() {
        Ok(_) => Ok(resource),
        Err(errors) => Err(located(errors)),
    }
}

/// The schema of a file: the CRD's, and metadata's own fields, which a CRD leaves to the API server.
fn file_schema() -> Value {
    let mut schema = full_schema();
    let any = |name: &&str| {
        let of = match *name {
            "name" | "namespace" => json!({"type": "string"}),
            "labels" | "annotations" => json!({"type": "object", "additionalProperties": {"type": "string"}}),
            _ => json!({}),
        };
        ((*name).to_owned(), of)
    };
    let properties = METADATA.iter().map(any).collect::<serde_json::Map<_, _>>();
    schema["properties"]["metadata"] =
        json!({"type": "object", "properties": properties, "required": ["name"]});
    schema["properties"]["apiVersion"] = json!({"type": "string"});
    schema["properties"]["kind"] = json!({"type": "string"});
    schema["required"] = json!(["metadata", "spec"]);
    schema
}

/// As the API server does: null is the same as not there, so that defaults apply.
fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|_, value| !value.is_null());
            object.values_mut().for_each(remove_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs, path::Path, time::Duration};

    use sharded_etcd_core::topology::RebalanceMode;

    use super::*;
    use crate::{cluster_only_fields, version_mismatch};

    const EVERYTHING: &str = r#"
apiVersion: shardedetcd.io/v1alpha1
kind: ShardedEtcd
metadata: {name: demo, namespace: default, labels: {a: b}, creationTimestamp: null, uid: x}
spec:
  version: 3.7.3
  image: registry.example/etcd
  shards: 3
  keyspace:
    delimiter: "/"
    splittable: [/registry/pods/]
    presplit: [/registry/pods/kube-, /registry/services/]
    pins: [{prefix: /registry/events/, shard: 2}, {prefix: no, shard: 0}]
  etcd:
    members: 3
    storage: {size: 8Gi, className: fast, retain: Delete}
    quota: 6Gi
    resources: {requests: {cpu: 1, memory: 2Gi}}
    affinity: {nodeAffinity: {}}
    tolerations: [{key: dedicated, operator: Exists}]
    topologySpread: [{maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: DoNotSchedule}]
    priorityClassName: high
    labels: {team: storage}
    extraArgs: {heartbeat-interval: "100"}
  meta: {members: 3, storage: {size: 2Gi}}
  proxy: {replicas: 2, resources: {}, service: {type: ClusterIP, annotations: {a: b}}, disruption: {maxUnavailable: 1}}
  shardManager: {replicas: 2, resources: {}}
  rebalance: {mode: Manual, maxConcurrentMoves: 2, bytesPerSecond: 64Mi, weights: [{shard: 2, weight: 50}]}
  compaction: {retention: 5m}
status: {anything: [1, 2]}
"#;

    #[test]
    fn everything_there_is() {
        let resource = parse_file(EVERYTHING).unwrap();
        let topology = resource.topology().unwrap();
        assert_eq!((topology.shards, topology.quota_bytes), (3, Some(6 << 30)));
        assert_eq!(topology.compaction_retention, Some(Duration::from_secs(300)));
        assert_eq!((topology.rebalance.mode, topology.rebalance.moves_max), (RebalanceMode::Manual, 2));
        assert_eq!(topology.rebalance.bytes_per_second_max, Some(64 << 20));
        assert_eq!([1, 2].map(|shard| topology.rebalance.weight(shard)), [100, 50]);
        assert_eq!(topology.pin_for(b"/registry/events/default/x"), Some(2));
        assert_eq!(topology.pin_for(b"no"), Some(0));
        assert_eq!(
            cluster_only_fields(&resource.spec).join(" "),
            "spec.image spec.etcd.members spec.etcd.storage spec.etcd.resources spec.etcd.affinity \
             spec.etcd.tolerations spec.etcd.topologySpread spec.etcd.priorityClassName spec.etcd.labels \
             spec.etcd.extraArgs spec.meta spec.proxy spec.shardManager"
        );
        assert_eq!(version_mismatch(&resource.spec, "3.7.3"), None);
        assert!(version_mismatch(&resource.spec, "3.6.5").unwrap().to_string().contains("write 3.6.5"));
    }

    #[test]
    fn defaults() {
        let text = format!(
            "apiVersion: {API_VERSION}\nkind: {KIND}\nmetadata: {{name: demo}}\nspec: {{shards: 3}}\n"
        );
        let resource = parse_file(&text).unwrap();
        assert_eq!(resource, {
            let mut expected = ShardedEtcd::with_shards("demo", 3);
            expected.metadata = resource.metadata.clone();
            expected
        });
        assert!(cluster_only_fields(&resource.spec).is_empty());
        let topology = resource.topology().unwrap();
        assert_eq!(topology.keyspace.rules.delimiter, "/");
        assert_eq!((topology.rebalance.mode, topology.rebalance.moves_max), (RebalanceMode::Automatic, 1));
    }

    #[test]
    fn what_is_written_is_read() {
        let resource = parse_file(EVERYTHING).unwrap();
        let json = serde_json::to_string(&resource).unwrap();
        assert_eq!(parse_json(&json).unwrap(), resource);
        assert_eq!(parse_file(&json).unwrap(), resource);
    }

    #[test]
    fn samples_are_good() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/samples");
        let mut read = 0;
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().is_some_and(|name| name == "kustomization.yaml") {
                continue;
            }
            let resource =
                parse_file(&fs::read_to_string(&path).unwrap()).unwrap_or_else(|e| panic!("{path:?}: {e}"));
            assert!(cluster_only_fields(&resource.spec).is_empty(), "{path:?} has fields without effect");
            read += 1;
        }
        assert!(read >= 2);
    }
}
