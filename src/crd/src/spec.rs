//! The types of the resource. Their doc comments become the descriptions in the CRD.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Affinity, ResourceRequirements, Toleration, TopologySpreadConstraint},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sharded_etcd_core::topology::Rebalance;

use crate::{
    status::ShardedEtcdStatus,
    units::{Quantity, TimeSpan},
};

/// One etcd endpoint over several etcd clusters.
#[allow(clippy::duplicated_attributes, reason = "each print column has a type")]
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[kube(
    group = "shardedetcd.io",
    version = "v1alpha1",
    kind = "ShardedEtcd",
    plural = "shardedetcds",
    shortname = "se",
    shortname = "sharded",
    namespaced,
    doc = "One etcd endpoint over several etcd clusters (shards), with its keys spread over them.",
    status = "ShardedEtcdStatus",
    derive = "PartialEq",
    scale(
        spec_replicas_path = ".spec.shards",
        status_replicas_path = ".status.shards",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Shards", type_ = "integer", json_path = ".status.shards"),
    printcolumn(
        name = "Balanced",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Balanced\")].status"
    ),
    printcolumn(name = "Keys", type_ = "integer", json_path = ".status.keys"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShardedEtcdSpec {
    /// Release of etcd that the shards and meta run, as in 3.7.3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Repository of the etcd image, without tag and digest, for a mirror or an air-gapped registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Number of shards. Changing it re-balances the data while clients go on.
    #[schemars(range(min = 1, max = 1024))]
    pub shards: i64,
    /// How the keys may be spread over the shards.
    #[serde(default)]
    pub keyspace: KeyspaceSpec,
    /// The members of one shard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<EtcdSpec>,
    /// The topology's own small etcd cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<MetaSpec>,
    /// The proxies that clients speak to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxySpec>,
    /// The shard managers that move data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard_manager: Option<ShardManagerSpec>,
    /// Whether and how fast data is moved to keep the shards balanced.
    #[serde(default)]
    pub rebalance: RebalanceSpec,
    /// How long old revisions stay readable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compaction: Option<CompactionSpec>,
}

/// How the keys may be spread over the shards.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KeyspaceSpec {
    /// Ends the name of a directory. The keys of one directory (same prefix up to the last delimiter) stay on one
    /// shard, so that locks, elections and other transactions within a directory work. "" allows a boundary anywhere.
    pub delimiter: String,
    /// Directories whose keys may be parted all the same, such as /registry/pods/.
    pub splittable: Vec<String>,
    /// Boundaries between ranges that exist from the start; the ranges are dealt out to the shards.
    pub presplit: Vec<String>,
    /// Prefixes whose keys always live on one shard. Of nested pins the longest wins.
    pub pins: Vec<PinSpec>,
}

impl Default for KeyspaceSpec {
    fn default() -> Self {
        Self { delimiter: "/".to_owned(), splittable: Vec::new(), presplit: Vec::new(), pins: Vec::new() }
    }
}

/// A prefix whose keys always live on one shard.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PinSpec {
    /// All keys that start with it are meant.
    pub prefix: String,
    /// Index of the shard, from 0.
    #[schemars(range(min = 0, max = 1023))]
    pub shard: i64,
}

/// The members of one shard.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EtcdSpec {
    /// Members of each shard: 1, 3 or 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members: Option<i64>,
    /// The volume of each member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageSpec>,
    /// Largest database of one shard, such as 8Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<Quantity>,
    /// CPU and memory of each member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Affinity of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Tolerations of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerations: Option<Vec<Toleration>>,
    /// Topology spread constraints of the pods. Without a `labelSelector` the members of the same shard are spread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology_spread: Option<Vec<TopologySpreadConstraint>>,
    /// Priority class of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// More labels for the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// More flags for etcd, without the leading dashes; refused where the topology owns the flag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra_args: Option<BTreeMap<String, String>>,
}

/// A member's volume.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StorageSpec {
    /// Size of the volume, such as 8Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Quantity>,
    /// Storage class of the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_name: Option<String>,
    /// What becomes of the volume when the shard goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain: Option<RetainPolicy>,
}

/// What becomes of a volume when its shard goes.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetainPolicy {
    /// It is deleted.
    Delete,
    /// It is kept.
    Retain,
}

/// The topology's own small etcd cluster.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MetaSpec {
    /// Members: 1, 3 or 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members: Option<i64>,
    /// The volume of each member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageSpec>,
    /// CPU and memory of each member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
}

/// The proxies that clients speak to.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxySpec {
    /// Number of proxies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub replicas: Option<i64>,
    /// CPU and memory of each proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// The Service that is the endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceSpec>,
    /// How many proxies may be away at a time when nodes are drained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disruption: Option<DisruptionSpec>,
}

/// The Service that is the endpoint.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSpec {
    /// Type of the Service.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<ServiceType>,
    /// Annotations of the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// How many proxies may be away at a time when nodes are drained: one of both fields.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DisruptionSpec {
    /// So many proxies, or such a share of them, may be away, such as 1 or 25%.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<IntOrString>,
    /// So many proxies, or such a share of them, have to stay, such as 2 or 75%.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_available: Option<IntOrString>,
}

/// Type of a Service.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::enum_variant_names, reason = "Kubernetes names them so")]
pub enum ServiceType {
    /// Inside the cluster only.
    ClusterIP,
    /// A port of every node.
    NodePort,
    /// A load balancer.
    LoadBalancer,
}

/// The shard managers that move data.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShardManagerSpec {
    /// Number of shard managers: one leads, the others stand by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 5))]
    pub replicas: Option<i64>,
    /// CPU and memory of each shard manager.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
}

/// Whether and how fast data is moved to keep the shards balanced.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RebalanceSpec {
    /// Automatic: plans are carried out. Manual: plans are shown and wait. Paused: nothing new is begun.
    pub mode: RebalanceModeSpec,
    /// Moves under way at the same time.
    #[schemars(range(min = 1, max = 64))]
    pub max_concurrent_moves: i64,
    /// Bound on the copying of all moves together, such as 64Mi; as fast as it goes if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<Quantity>,
    /// Differences of load between shards below this, in operations a second, are left alone; a write counts as four reads.
    #[schemars(range(min = 10, max = 1_000_000_000))]
    pub load_tolerance: i64,
    /// Shards that are to hold more or less than others of keys, bytes and load; all others weigh 100.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<WeightSpec>,
    /// The plan that may be carried out in mode Manual, as the condition AwaitingApproval names it. Another plan waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approved_plan: Option<String>,
}

impl Default for RebalanceSpec {
    fn default() -> Self {
        let Rebalance { moves_max, load_tolerance, .. } = Rebalance::default();
        Self {
            mode: RebalanceModeSpec::Automatic,
            max_concurrent_moves: i64::from(moves_max),
            bytes_per_second: None,
            load_tolerance: i64::try_from(load_tolerance).unwrap_or(i64::MAX),
            weights: Vec::new(),
            approved_plan: None,
        }
    }
}

/// What one shard is to hold, relative to the others.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WeightSpec {
    /// Index of the shard, from 0.
    #[schemars(range(min = 0, max = 1023))]
    pub shard: i64,
    /// Its weight; 200 is twice the usual share, 50 half of it.
    #[schemars(range(min = 1, max = 1000))]
    pub weight: i64,
}

/// Whether plans are carried out.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RebalanceModeSpec {
    /// Plans are carried out.
    #[default]
    Automatic,
    /// Plans are shown and wait for approval.
    Manual,
    /// Nothing new is begun.
    Paused,
}

/// How long old revisions stay readable.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CompactionSpec {
    /// Revisions older than this are compacted, such as 5m.
    pub retention: TimeSpan,
}

impl ShardedEtcd {
    /// A resource with this name and number of shards and the defaults of everything else, as `up --shards N` runs.
    pub fn with_shards(name: &str, shards: u32) -> Self {
        Self::new(
            name,
            ShardedEtcdSpec {
                version: None,
                image: None,
                shards: i64::from(shards),
                keyspace: KeyspaceSpec::default(),
                etcd: None,
                meta: None,
                proxy: None,
                shard_manager: None,
                rebalance: RebalanceSpec::default(),
                compaction: None,
            },
        )
    }
}
