//! What holds where the spec says nothing: each default once, for the operator and for the schema of the CRD.
//!
//! `up` runs without a cluster and asks none of these: there a field that is left out is not there.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Affinity, ResourceRequirements, Toleration, TopologySpreadConstraint},
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::{EtcdSpec, RetainPolicy, ServiceType, ShardedEtcdSpec, StorageSpec, units::Quantity};

/// Release of etcd.
pub const VERSION: &str = "3.7.3";
/// Members of a shard, and of meta.
pub const MEMBERS: i32 = 3;
/// Volume of a shard's member.
pub const STORAGE_SIZE: &str = "8Gi";
/// Volume of a member of meta.
pub const META_STORAGE_SIZE: &str = "2Gi";
/// Number of proxies.
pub const PROXY_REPLICAS: i32 = 2;
/// Number of shard managers.
pub const SHARD_MANAGER_REPLICAS: i32 = 2;
/// Proxies that may be away at a time when nodes are drained.
pub const MAX_UNAVAILABLE: i32 = 1;
/// What a volume holds besides the database, in bytes: etcd keeps up to five finished files of its log of 64 MiB and one
/// that it writes (`--max-wals`), and snapshots of the raft state.
pub const BESIDE_DATABASE_BYTES: u64 = 512 << 20;
/// Largest default quota: etcd's own advice for one database.
pub const QUOTA_BYTES_MAX: u64 = 8 << 30;

/// The volumes of a cluster's members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage<'a> {
    /// Size, as a Kubernetes quantity.
    pub size: &'a str,
    /// Storage class; `None`: the cluster's default one.
    pub class_name: Option<&'a str>,
    /// What becomes of the volumes when the shard or the resource goes.
    pub retain: RetainPolicy,
}

impl Storage<'_> {
    /// Size in bytes.
    ///
    /// # Errors
    /// What to write instead, if it is no number of bytes; never for a resource whose `topology()` is valid.
    pub fn bytes(&self) -> Result<u64, String> {
        Quantity(self.size.to_owned()).bytes()
    }

    fn of<'a>(spec: Option<&'a StorageSpec>, size: &'a str) -> Storage<'a> {
        Storage {
            size: spec.and_then(|s| s.size.as_ref()).map_or(size, |size| size.0.as_str()),
            class_name: spec.and_then(|s| s.class_name.as_deref()),
            retain: spec.and_then(|s| s.retain).unwrap_or(RetainPolicy::Delete),
        }
    }
}

/// How many proxies may be away at a time when nodes are drained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disruption<'a> {
    /// So many may be away.
    MaxUnavailable(&'a IntOrString),
    /// So many have to stay.
    MinAvailable(&'a IntOrString),
}

/// Quota of a database, in bytes, on a volume of this size: room for a second copy of it, which a member gets
/// that falls behind, and which defragmenting makes.
pub const fn default_quota_bytes(storage_bytes: u64) -> u64 {
    let quota = storage_bytes / 8 * 3;
    if quota > QUOTA_BYTES_MAX { QUOTA_BYTES_MAX } else { quota }
}

/// What etcd itself gets as its quota, in bytes, when clients may use `quota_bytes`: a shard that is full for clients
/// must still take the writes that drain it.
pub const fn backend_quota_bytes(quota_bytes: u64) -> u64 {
    let margin = quota_bytes / 8;
    quota_bytes.saturating_add(if margin < 64 << 20 { 64 << 20 } else { margin })
}

/// Numbers below are in the bounds of the schema, so they fit.
fn replicas(n: Option<i64>, default: i32) -> i32 {
    n.and_then(|n| i32::try_from(n).ok()).unwrap_or(default)
}

impl ShardedEtcdSpec {
    /// Release of etcd, as in 3.7.3.
    pub fn etcd_version(&self) -> &str {
        self.version.as_deref().unwrap_or(VERSION)
    }

    /// Members of each shard.
    pub fn etcd_members(&self) -> i32 {
        replicas(self.etcd.as_ref().and_then(|e| e.members), MEMBERS)
    }

    /// Members of meta.
    pub fn meta_members(&self) -> i32 {
        replicas(self.meta.as_ref().and_then(|m| m.members), MEMBERS)
    }

    /// The volume of each member of a shard.
    pub fn etcd_storage(&self) -> Storage<'_> {
        Storage::of(self.etcd.as_ref().and_then(|e| e.storage.as_ref()), STORAGE_SIZE)
    }

    /// The volume of each member of meta.
    pub fn meta_storage(&self) -> Storage<'_> {
        Storage::of(self.meta.as_ref().and_then(|m| m.storage.as_ref()), META_STORAGE_SIZE)
    }

    /// Largest database of a shard for clients, in bytes; [`backend_quota_bytes`] says what etcd gets.
    pub fn etcd_quota_bytes(&self) -> u64 {
        let asked = self.etcd.as_ref().and_then(|e| e.quota.as_ref()).and_then(|quota| quota.bytes().ok());
        asked.unwrap_or_else(|| default_quota_bytes(self.etcd_storage().bytes().unwrap_or_default()))
    }

    /// Largest database of meta, in bytes.
    pub fn meta_quota_bytes(&self) -> u64 {
        default_quota_bytes(self.meta_storage().bytes().unwrap_or_default())
    }

    /// This spec with `shards` shards and with the quota that holds in the cluster, for the routing file: proxies know
    /// nothing of volumes.
    #[must_use]
    pub fn effective(&self, shards: u32) -> Self {
        let quota = Quantity(self.etcd_quota_bytes().to_string());
        let mut spec = self.clone();
        spec.shards = i64::from(shards);
        spec.etcd.get_or_insert_with(EtcdSpec::default).quota = Some(quota);
        spec
    }

    /// CPU and memory of each member of a shard.
    pub fn etcd_resources(&self) -> Option<&ResourceRequirements> {
        self.etcd.as_ref().and_then(|e| e.resources.as_ref())
    }

    /// CPU and memory of each member of meta.
    pub fn meta_resources(&self) -> Option<&ResourceRequirements> {
        self.meta.as_ref().and_then(|m| m.resources.as_ref())
    }

    /// CPU and memory of each proxy.
    pub fn proxy_resources(&self) -> Option<&ResourceRequirements> {
        self.proxy.as_ref().and_then(|p| p.resources.as_ref())
    }

    /// CPU and memory of each shard manager.
    pub fn shard_manager_resources(&self) -> Option<&ResourceRequirements> {
        self.shard_manager.as_ref().and_then(|m| m.resources.as_ref())
    }

    /// Affinity of the shards' pods.
    pub fn etcd_affinity(&self) -> Option<&Affinity> {
        self.etcd.as_ref().and_then(|e| e.affinity.as_ref())
    }

    /// Tolerations of the shards' pods.
    pub fn etcd_tolerations(&self) -> &[Toleration] {
        self.etcd.as_ref().and_then(|e| e.tolerations.as_deref()).unwrap_or_default()
    }

    /// Topology spread constraints of the shards' pods. Where one has no `labelSelector`, the members of the same shard
    /// are meant.
    pub fn etcd_topology_spread(&self) -> &[TopologySpreadConstraint] {
        self.etcd.as_ref().and_then(|e| e.topology_spread.as_deref()).unwrap_or_default()
    }

    /// Priority class of the shards' pods.
    pub fn etcd_priority_class_name(&self) -> Option<&str> {
        self.etcd.as_ref().and_then(|e| e.priority_class_name.as_deref())
    }

    /// More labels of the shards' pods; none of them is one of the operator's own.
    pub fn etcd_labels(&self) -> impl Iterator<Item = (&str, &str)> {
        texts(self.etcd.as_ref().and_then(|e| e.labels.as_ref()))
    }

    /// More flags of the shards' etcd, without the leading dashes; none of them is one of the topology's own.
    pub fn etcd_extra_args(&self) -> impl Iterator<Item = (&str, &str)> {
        texts(self.etcd.as_ref().and_then(|e| e.extra_args.as_ref()))
    }

    /// Number of proxies.
    pub fn proxy_replicas(&self) -> i32 {
        replicas(self.proxy.as_ref().and_then(|p| p.replicas), PROXY_REPLICAS)
    }

    /// How many proxies may be away at a time when nodes are drained.
    pub fn proxy_disruption(&self) -> Disruption<'_> {
        let spec = self.proxy.as_ref().and_then(|p| p.disruption.as_ref());
        match (spec.and_then(|d| d.max_unavailable.as_ref()), spec.and_then(|d| d.min_available.as_ref())) {
            (Some(n), _) => Disruption::MaxUnavailable(n),
            (None, Some(n)) => Disruption::MinAvailable(n),
            (None, None) => Disruption::MaxUnavailable(&IntOrString::Int(MAX_UNAVAILABLE)),
        }
    }

    /// Type of the Service that is the endpoint.
    pub fn service_type(&self) -> ServiceType {
        let service = self.proxy.as_ref().and_then(|p| p.service.as_ref());
        service.and_then(|s| s.type_).unwrap_or(ServiceType::ClusterIP)
    }

    /// Annotations of the Service that is the endpoint.
    pub fn service_annotations(&self) -> impl Iterator<Item = (&str, &str)> {
        let service = self.proxy.as_ref().and_then(|p| p.service.as_ref());
        texts(service.and_then(|s| s.annotations.as_ref()))
    }

    /// Number of shard managers.
    pub fn shard_manager_replicas(&self) -> i32 {
        replicas(self.shard_manager.as_ref().and_then(|m| m.replicas), SHARD_MANAGER_REPLICAS)
    }
}

fn texts(map: Option<&BTreeMap<String, String>>) -> impl Iterator<Item = (&str, &str)> {
    map.into_iter().flatten().map(|(name, value)| (name.as_str(), value.as_str()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ShardedEtcd;

    #[test]
    fn nothing_said() {
        let spec = ShardedEtcd::with_shards("demo", 3).spec;
        assert_eq!((spec.etcd_version(), spec.etcd_members(), spec.meta_members()), ("3.7.3", 3, 3));
        let storage = Storage { size: "8Gi", class_name: None, retain: RetainPolicy::Delete };
        assert_eq!((spec.etcd_storage(), spec.meta_storage()), (storage, Storage { size: "2Gi", ..storage }));
        assert_eq!((spec.etcd_quota_bytes(), spec.meta_quota_bytes()), (3 << 30, 768 << 20));
        assert_eq!((spec.proxy_replicas(), spec.shard_manager_replicas()), (2, 2));
        assert_eq!(spec.proxy_disruption(), Disruption::MaxUnavailable(&IntOrString::Int(1)));
        assert_eq!(spec.service_type(), ServiceType::ClusterIP);
        assert_eq!(spec.etcd_labels().count() + spec.etcd_extra_args().count(), 0);
    }

    #[test]
    fn quotas_leave_room() {
        let gib = 1u64 << 30;
        assert_eq!(default_quota_bytes(8 * gib), 3 * gib);
        assert_eq!(default_quota_bytes(100 * gib), 8 * gib);
        assert_eq!(backend_quota_bytes(8 * gib), 9 * gib);
        assert_eq!(backend_quota_bytes(16 << 20), 80 << 20);
        for size in [gib, 2 * gib, 8 * gib, 100 * gib] {
            assert!(backend_quota_bytes(default_quota_bytes(size)) + BESIDE_DATABASE_BYTES <= size, "{size}");
        }
    }

    #[test]
    fn the_routing_file_says_the_quota() {
        let spec = ShardedEtcd::with_shards("demo", 3).spec.effective(5);
        assert_eq!((spec.shards, spec.etcd.unwrap().quota.unwrap().bytes()), (5, Ok(3 << 30)));
    }
}
