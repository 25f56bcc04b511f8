//! The kinds that the scripted API server knows.

/// One kind.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// API group, empty for the core.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub namespaced: bool,
    /// Whether `status` is written through a sub-resource only.
    pub status: bool,
    /// Whether `metadata.generation` counts the changes of the spec.
    pub generation: bool,
}

const fn kind(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    status: bool,
    generation: bool,
) -> Kind {
    Kind { group, version, kind, plural, namespaced: true, status, generation }
}

const fn cluster(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
) -> Kind {
    Kind { group, version, kind, plural, namespaced: false, status: false, generation: false }
}

pub static SHARDED_ETCDS: Kind =
    kind("shardedetcd.io", "v1alpha1", "ShardedEtcd", "shardedetcds", true, true);
pub static STATEFUL_SETS: Kind = kind("apps", "v1", "StatefulSet", "statefulsets", true, true);
pub static DEPLOYMENTS: Kind = kind("apps", "v1", "Deployment", "deployments", true, true);
pub static REPLICA_SETS: Kind = kind("apps", "v1", "ReplicaSet", "replicasets", true, true);
pub static SERVICES: Kind = kind("", "v1", "Service", "services", true, false);
pub static CONFIG_MAPS: Kind = kind("", "v1", "ConfigMap", "configmaps", false, false);
pub static SECRETS: Kind = kind("", "v1", "Secret", "secrets", false, false);
pub static SERVICE_ACCOUNTS: Kind = kind("", "v1", "ServiceAccount", "serviceaccounts", false, false);
pub static PODS: Kind = kind("", "v1", "Pod", "pods", true, false);
pub static CLAIMS: Kind = kind("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", true, false);
pub static CORE_EVENTS: Kind = kind("", "v1", "Event", "events", false, false);
pub static EVENTS: Kind = kind("events.k8s.io", "v1", "Event", "events", false, false);
pub static BUDGETS: Kind = kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", true, true);
pub static NETWORK_POLICIES: Kind =
    kind("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", false, true);
pub static LEASES: Kind = kind("coordination.k8s.io", "v1", "Lease", "leases", false, false);
pub static ROLES: Kind = kind("rbac.authorization.k8s.io", "v1", "Role", "roles", false, false);
pub static ROLE_BINDINGS: Kind =
    kind("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", false, false);
pub static STORAGE_CLASSES: Kind = cluster("storage.k8s.io", "v1", "StorageClass", "storageclasses");
pub static PRIORITY_CLASSES: Kind = cluster("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses");
pub static NAMESPACES: Kind = cluster("", "v1", "Namespace", "namespaces");
pub static NODES: Kind = cluster("", "v1", "Node", "nodes");

/// All of them. Events of both groups are one and the same; the newer name is the stored one.
pub static ALL: &[&Kind] = &[
    &SHARDED_ETCDS,
    &STATEFUL_SETS,
    &DEPLOYMENTS,
    &REPLICA_SETS,
    &SERVICES,
    &CONFIG_MAPS,
    &SECRETS,
    &SERVICE_ACCOUNTS,
    &PODS,
    &CLAIMS,
    &CORE_EVENTS,
    &EVENTS,
    &BUDGETS,
    &NETWORK_POLICIES,
    &LEASES,
    &ROLES,
    &ROLE_BINDINGS,
    &STORAGE_CLASSES,
    &PRIORITY_CLASSES,
    &NAMESPACES,
    &NODES,
];

impl Kind {
    /// `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// As in messages of the API server: `statefulsets.apps`.
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// The kind with this group and plural.
    pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Self> {
        ALL.iter().copied().find(|k| k.group == group && k.version == version && k.plural == plural)
    }

    /// Place in [`ALL`]: the order of keys in the store.
    pub fn index(&self) -> usize {
        ALL.iter().position(|k| std::ptr::eq(*k, self)).expect("kinds are statics in ALL")
    }
}
