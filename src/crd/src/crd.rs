//! The CRD as YAML.

use kube::CustomResourceExt;
use serde_json::Value;

use crate::{ShardedEtcd, effect::prune_cluster_only};

/// The schema of the whole resource, with the fields that only a cluster can honour.
pub(crate) fn full_schema() -> Value {
    let mut crd = serde_json::to_value(ShardedEtcd::crd()).expect("a CRD is plain data");
    let schema = crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema");
    schema.expect("the derive makes a schema").take()
}

/// The CRD as it is installed into a cluster, in YAML. Fields without effect yet are not in it.
pub fn crd_yaml() -> String {
    let mut crd = serde_json::to_value(ShardedEtcd::crd()).expect("a CRD is plain data");
    let spec = crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/spec");
    prune_cluster_only(spec.expect("the derive makes a schema with a spec"));
    serde_saphyr::to_string(&crd).expect("JSON can be written as YAML")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs, path::Path};

    use super::*;

    /// `crds/shardedetcds.yaml` is what the types say; `UPDATE=1` writes it anew.
    #[test]
    fn file_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crds/shardedetcds.yaml");
        let current = crd_yaml();
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&path, &current).unwrap();
        }
        let written = fs::read_to_string(&path).unwrap_or_default();
        assert!(written == current, "{} is out of date: run the tests with UPDATE=1", path.display());
    }

    #[test]
    fn crd_has_only_fields_with_effect() {
        let crd: Value = serde_saphyr::from_str(&crd_yaml()).unwrap();
        let spec = crd.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties").unwrap();
        let names = spec.as_object().unwrap().keys().map(String::as_str).collect::<Vec<_>>().join(" ");
        assert_eq!(names, "compaction etcd keyspace rebalance shards version");
        let etcd = spec.pointer("/etcd/properties").unwrap().as_object().unwrap();
        assert_eq!(etcd.keys().collect::<Vec<_>>(), ["quota"]);
    }
}
