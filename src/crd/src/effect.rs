//! Which fields have an effect where.

use sharded_etcd_core::topology::FieldError;

use crate::ShardedEtcdSpec;

/// Fields that only a cluster can honour, below `spec`.
pub(crate) const CLUSTER_ONLY: &[&str] = &[
    "image",
    "etcd.members",
    "etcd.storage",
    "etcd.resources",
    "etcd.affinity",
    "etcd.tolerations",
    "etcd.topologySpread",
    "etcd.priorityClassName",
    "etcd.labels",
    "etcd.extraArgs",
    "meta",
    "proxy",
    "shardManager",
];

/// The fields set in `spec` that have no effect outside a cluster, as paths such as `spec.etcd.members`.
///
/// `spec.version` is not among them: whether it has an effect depends on what the shards run, see
/// [`version_mismatch`].
pub fn cluster_only_fields(spec: &ShardedEtcdSpec) -> Vec<String> {
    let Ok(spec) = serde_json::to_value(spec) else { return Vec::new() };
    let is_set = |path: &str| {
        let value = path.split('.').try_fold(&spec, |value, name| value.get(name));
        value.is_some_and(|value| !value.is_null())
    };
    CLUSTER_ONLY.iter().filter(|path| is_set(path)).map(|path| format!("spec.{path}")).collect()
}

/// The problem, if `spec.version` asks for another release than the installed one.
pub fn version_mismatch(spec: &ShardedEtcdSpec, installed: &str) -> Option<FieldError> {
    let wanted = spec.version.as_deref().filter(|wanted| *wanted != installed)?;
    let message = format!(
        "etcd {wanted} is asked for, but {installed} is installed; write {installed}, or give the path of an etcd \
         {wanted} with --etcd"
    );
    Some(FieldError::new("spec.version", message))
}
