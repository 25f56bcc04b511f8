//! The CRD as YAML.

use kube::CustomResourceExt;
use serde_json::Value;

use crate::{ShardedEtcd, schema::complete};

/// The schema of the resource.
pub(crate) fn full_schema() -> Value {
    let mut crd = crd();
    schema_of(&mut crd).take()
}

/// The CRD as it is installed into a cluster, in YAML.
pub fn crd_yaml() -> String {
    serde_saphyr::to_string(&crd()).expect("JSON can be written as YAML")
}

fn crd() -> Value {
    let mut crd = serde_json::to_value(ShardedEtcd::crd()).expect("a CRD is plain data");
    complete(schema_of(&mut crd));
    crd
}

fn schema_of(crd: &mut Value) -> &mut Value {
    crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema").expect("the derive makes a schema")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs, path::Path};

    use super::*;

    /// `crds/shardedetcds.yaml`, and the chart's copy of it, are what the types say; `UPDATE=1` writes them anew.
    #[test]
    fn files_are_current() {
        let current = crd_yaml();
        for file in ["crds/shardedetcds.yaml", "charts/sharded-etcd/files/shardedetcds.yaml"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file);
            if std::env::var_os("UPDATE").is_some() {
                fs::write(&path, &current).unwrap();
            }
            let written = fs::read_to_string(&path).unwrap_or_default();
            assert!(written == current, "{file} is out of date: run the tests with UPDATE=1");
        }
    }

    /// `kubectl apply` without `--server-side` keeps a copy of the manifest in an annotation, and all annotations together
    /// have 256 KiB.
    #[test]
    fn fits_an_annotation() {
        let crd: Value = serde_saphyr::from_str(&crd_yaml()).unwrap();
        let bytes = crd.to_string().len();
        assert!(bytes < 128 << 10, "{bytes}");
    }

    #[test]
    fn crd_has_the_fields_that_work() {
        let schema = full_schema();
        let names = |path: &str| {
            let properties = schema.pointer(path).and_then(Value::as_object).unwrap();
            properties.keys().map(String::as_str).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            names("/properties/spec/properties"),
            "compaction etcd image keyspace meta proxy rebalance shardManager shards version"
        );
        assert_eq!(
            names("/properties/spec/properties/etcd/properties/resources/properties"),
            "limits requests"
        );
    }

    /// The operator has the same rights from the chart and from kustomize.
    #[test]
    fn chart_and_kustomize_give_the_same_rights() {
        let read = |file: &str| {
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file)).unwrap()
        };
        let chart = read("charts/sharded-etcd/templates/_helpers.tpl");
        let part = |name: &str| {
            let rest = chart.split(&format!("define \"sharded-etcd.{name}\" -}}}}\n")).nth(1).unwrap();
            rest.split("{{- end -}}").next().unwrap()
        };
        let kustomize = read("config/rbac/operator.yaml");
        let rules = kustomize.split("rules:\n").nth(1).and_then(|rest| rest.split("---\n").next()).unwrap();
        assert_eq!(format!("{}{}", part("rules"), part("clusterRules")), rules);
    }
}
