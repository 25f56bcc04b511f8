//! The types of the resource. Their doc comments become the descriptions in the CRD.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sharded_etcd_core::topology::{
    Draft, DraftPin, FieldError, Rebalance, RebalanceMode, Topology, validate,
};

use crate::{
    status::ShardedEtcdStatus,
    units::{Quantity, TimeSpan},
};

/// One etcd endpoint over several etcd clusters.
#[allow(clippy::duplicated_attributes, reason = "each print column has a type")]
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
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
    #[schemars(regex(pattern = r"^[0-9]+\.[0-9]+\.[0-9]+$"))]
    pub version: Option<String>,
    /// Repository of the etcd image, for a mirror or an air-gapped registry.
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
    #[schemars(length(max = 4096))]
    pub splittable: Vec<String>,
    /// Boundaries between ranges that exist from the start; the ranges are dealt out to the shards.
    #[schemars(length(max = 4096))]
    pub presplit: Vec<String>,
    /// Prefixes whose keys always live on one shard. Of nested pins the longest wins.
    #[schemars(length(max = 4096))]
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
    #[schemars(range(min = 1, max = 5))]
    pub members: Option<i64>,
    /// The volume of each member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageSpec>,
    /// Largest database of one shard, such as 8Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<Quantity>,
    /// CPU and memory of each member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_form")]
    pub resources: Option<Value>,
    /// Affinity of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_form")]
    pub affinity: Option<Value>,
    /// Tolerations of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_list")]
    pub tolerations: Option<Value>,
    /// Topology spread constraints of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_list")]
    pub topology_spread: Option<Value>,
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
    #[schemars(range(min = 1, max = 5))]
    pub members: Option<i64>,
    /// The volume of each member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageSpec>,
    /// CPU and memory of each member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_form")]
    pub resources: Option<Value>,
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
    #[schemars(schema_with = "free_form")]
    pub resources: Option<Value>,
    /// The Service that is the endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceSpec>,
    /// How many proxies may be away at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_form")]
    pub disruption: Option<Value>,
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
    #[schemars(schema_with = "free_form")]
    pub resources: Option<Value>,
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
}

impl Default for RebalanceSpec {
    fn default() -> Self {
        let moves_max = Rebalance::default().moves_max;
        Self {
            mode: RebalanceModeSpec::Automatic,
            max_concurrent_moves: i64::from(moves_max),
            bytes_per_second: None,
        }
    }
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

/// Schema of an object that Kubernetes defines: spelled out it would be most of the CRD.
fn free_form(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "nullable": true, "x-kubernetes-preserve-unknown-fields": true})
}

/// Schema of a list of objects that Kubernetes defines.
fn free_list(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "nullable": true,
        "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
    })
}

/// Flags of etcd that the topology sets itself.
const OWNED_FLAGS: &[&str] = &[
    "name",
    "data-dir",
    "wal-dir",
    "initial-cluster",
    "initial-cluster-state",
    "initial-cluster-token",
    "initial-advertise-peer-urls",
    "listen-client-urls",
    "listen-peer-urls",
    "advertise-client-urls",
    "auto-compaction-mode",
    "auto-compaction-retention",
    "quota-backend-bytes",
    "max-txn-ops",
    "max-request-bytes",
    "force-new-cluster",
    "discovery",
    "discovery-srv",
    "config-file",
];

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

    /// The topology that this resource asks for.
    ///
    /// # Errors
    /// Every problem there is, each with its field and what to write instead.
    pub fn topology(&self) -> Result<Topology, Vec<FieldError>> {
        let mut errors = Vec::new();
        self.spec.check(&mut errors);
        let spec = &self.spec;
        let mut quantity = |field: &str, quantity: Option<&Quantity>| match quantity.map(Quantity::bytes) {
            Some(Err(message)) => {
                errors.push(FieldError::new(field, message));
                None
            }
            other => other.and_then(Result::ok),
        };
        let bytes_per_second_max =
            quantity("spec.rebalance.bytesPerSecond", spec.rebalance.bytes_per_second.as_ref());
        let quota_bytes = quantity("spec.etcd.quota", spec.etcd.as_ref().and_then(|e| e.quota.as_ref()));
        let _ =
            quantity("spec.etcd.storage.size", size_of(spec.etcd.as_ref().and_then(|e| e.storage.as_ref())));
        let _ =
            quantity("spec.meta.storage.size", size_of(spec.meta.as_ref().and_then(|m| m.storage.as_ref())));
        let compaction_retention = match spec.compaction.as_ref().map(|c| c.retention.duration()) {
            Some(Err(message)) => {
                errors.push(FieldError::new("spec.compaction.retention", message));
                None
            }
            other => other.and_then(Result::ok),
        };
        let prefixes = |list: &[String]| list.iter().map(|p| p.clone().into()).collect();
        let draft = Draft {
            name: self.metadata.name.clone().unwrap_or_default(),
            shards: spec.shards,
            delimiter: spec.keyspace.delimiter.clone().into(),
            splittable: prefixes(&spec.keyspace.splittable),
            presplit: prefixes(&spec.keyspace.presplit),
            pins: spec
                .keyspace
                .pins
                .iter()
                .map(|pin| DraftPin { prefix: pin.prefix.clone().into(), shard: pin.shard })
                .collect(),
            mode: match spec.rebalance.mode {
                RebalanceModeSpec::Automatic => RebalanceMode::Automatic,
                RebalanceModeSpec::Manual => RebalanceMode::Manual,
                RebalanceModeSpec::Paused => RebalanceMode::Paused,
            },
            moves_max: spec.rebalance.max_concurrent_moves,
            bytes_per_second_max,
            compaction_retention,
            quota_bytes,
        };
        match validate(draft) {
            Ok(topology) if errors.is_empty() => Ok(topology),
            Ok(_) => Err(errors),
            Err(more) => {
                errors.extend(more);
                Err(errors)
            }
        }
    }
}

fn size_of(storage: Option<&StorageSpec>) -> Option<&Quantity> {
    storage.and_then(|s| s.size.as_ref())
}

impl ShardedEtcdSpec {
    /// Checks what has no place in core's topology.
    fn check(&self, errors: &mut Vec<FieldError>) {
        if let Some(version) = &self.version {
            let numbers = version.split('.').collect::<Vec<_>>();
            let number = |n: &&str| !n.is_empty() && n.len() < 6 && n.bytes().all(|b| b.is_ascii_digit());
            if numbers.len() != 3 || !numbers.iter().all(number) {
                let message =
                    format!("{version:?} is no release of etcd; write three numbers, such as 3.7.3");
                errors.push(FieldError::new("spec.version", message));
            }
        }
        if self.image.as_ref().is_some_and(|image| image.is_empty() || image.contains(char::is_whitespace)) {
            errors.push(FieldError::new("spec.image", "no image repository; write one, or remove the field"));
        }
        let members = [
            ("spec.etcd.members", self.etcd.as_ref().and_then(|e| e.members)),
            ("spec.meta.members", self.meta.as_ref().and_then(|m| m.members)),
        ];
        for (field, members) in members {
            if let Some(n) = members.filter(|n| ![1, 3, 5].contains(n)) {
                let message =
                    format!("{n} members survive no more failures than {} do; write 1, 3 or 5", n - 1);
                let message = if (2..=4).contains(&n) {
                    message
                } else {
                    format!("{n} is out of range; write 1, 3 or 5")
                };
                errors.push(FieldError::new(field, message));
            }
        }
        let replicas = [
            ("spec.proxy.replicas", self.proxy.as_ref().and_then(|p| p.replicas), 100),
            ("spec.shardManager.replicas", self.shard_manager.as_ref().and_then(|m| m.replicas), 5),
        ];
        for (field, replicas, max) in replicas {
            if let Some(n) = replicas.filter(|n| !(1..=max).contains(n)) {
                errors.push(FieldError::new(field, format!("{n} is out of range; write 1 to {max}")));
            }
        }
        let flags = self.etcd.as_ref().and_then(|e| e.extra_args.as_ref());
        for flag in flags.into_iter().flat_map(BTreeMap::keys) {
            let field = format!("spec.etcd.extraArgs.{flag}");
            if flag.starts_with('-') {
                let message = format!("starts with a dash; write {}", flag.trim_start_matches('-'));
                errors.push(FieldError::new(field, message));
            } else if OWNED_FLAGS.contains(&flag.as_str()) {
                errors.push(FieldError::new(field, "the topology sets this flag itself; remove it"));
            }
        }
    }
}
