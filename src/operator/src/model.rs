//! What the five steps hand to one another. Plain data: nothing here calls out.
//!
//! ```text
//! dereference (client) → Observed → validate (pure) → Validated → build (pure) → Desired → apply (client) → Applied → status
//! ```

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::core::TypeMeta;
use serde::Deserialize;
use serde_json::Value;
use sharded_etcd_crd::{ShardedEtcd, status::ShardedEtcdStatus};

/// Everything that one reconcile knows.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The resource.
    pub resource: Arc<ShardedEtcd>,
    /// What there is of its objects.
    pub children: Children,
    /// What the shard manager answers.
    pub topology: TopologyAnswer,
    /// Names of the storage classes that the resource asks for and that are not there.
    pub storage_classes_missing: Vec<String>,
    /// Names of objects that the resource needs and that belong to something else, as `Service demo`.
    pub foreign: Vec<String>,
    /// Newest warnings about the resource's objects that only Events tell (pods that cannot be made), newest first.
    pub warnings: Vec<String>,
}

/// What there is of a resource's objects, by name: those with its labels, whether it owns them or not.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs, reason = "each is what its type says")]
pub struct Children {
    pub config_maps: BTreeMap<String, Arc<ConfigMap>>,
    pub deployments: BTreeMap<String, Arc<Deployment>>,
    pub network_policies: BTreeMap<String, Arc<NetworkPolicy>>,
    pub disruption_budgets: BTreeMap<String, Arc<PodDisruptionBudget>>,
    pub pods: BTreeMap<String, Arc<Pod>>,
    pub service_accounts: BTreeMap<String, Arc<ServiceAccount>>,
    pub services: BTreeMap<String, Arc<Service>>,
    pub stateful_sets: BTreeMap<String, Arc<StatefulSet>>,
    /// Made by the StatefulSets; they stay when `retain` says so.
    pub volume_claims: BTreeMap<String, Arc<PersistentVolumeClaim>>,
}

/// What the shard manager answers about the running topology.
#[derive(Debug, Clone, PartialEq)]
pub enum TopologyAnswer {
    /// It was not asked: there is no shard manager yet.
    NotAsked,
    /// It does not answer, or answers that it cannot say: why.
    Unknown(String),
    /// It answers.
    Known(Box<TopologyReport>),
}

/// The answer of the admin service's `Status`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TopologyReport {
    /// In the shape of the resource's status. `observedGeneration` is the generation of the spec that the leading shard
    /// manager acts on; `topology` holds the shards that are part of the line, and those that are about to join.
    #[serde(flatten)]
    pub status: ShardedEtcdStatus,
    /// The newest incarnation of each shard that has left the line; the same name may be in `topology` again.
    pub left: Vec<LeftShard>,
}

/// A shard that has left: it owns no range, has no part in a move, no shadow of a lease, no readable history, and no
/// client's key.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeftShard {
    /// Its name, `shard-<index>`.
    pub shard: String,
    /// Its incarnation.
    pub incarnation: u32,
}

/// One object as it should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// `apiVersion` and `kind`.
    pub types: TypeMeta,
    /// Name.
    pub name: String,
    /// The whole object, `apiVersion` and `kind` included, without status.
    pub object: Value,
}

/// What the cluster should look like, and what is to be taken away.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Desired {
    /// Objects that should be there as they are here, in the order in which they are applied.
    pub manifests: Vec<Manifest>,
    /// Objects to delete, in order. Each is the very object that was looked at: same uid and resourceVersion.
    pub deletions: Vec<Deletion>,
    /// Pods to patch with these annotations, so that the kubelet looks at their mounts at once: name → annotations.
    pub pod_annotations: BTreeMap<String, BTreeMap<String, String>>,
    /// Volume claims to grow: name → size as a quantity.
    pub claim_sizes: BTreeMap<String, String>,
}

/// One object to delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    /// `apiVersion` and `kind`.
    pub types: TypeMeta,
    /// Name.
    pub name: String,
    /// The one that was looked at.
    pub uid: String,
    /// As it was looked at.
    pub resource_version: String,
    /// Why, for an Event and the log.
    pub reason: String,
}

/// What became of the objects that should be there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// What the API server refused, in the order of the tries.
    pub failures: Vec<ApplyFailure>,
}

/// An object that the API server refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplyFailure {
    /// As `StatefulSet demo-shard-0`.
    pub object: String,
    /// The API server's reason, such as `Forbidden`; `Unreachable` if it gave none.
    pub reason: String,
    /// What it said.
    pub message: String,
    /// True if a later try may succeed without anybody's doing: a conflict, a timeout, a server that is overloaded.
    pub temporary: bool,
}
