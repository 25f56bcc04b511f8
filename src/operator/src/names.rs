//! Names, labels, ports and files of everything that belongs to a resource: one place for each string.

use std::{collections::BTreeMap, fmt};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use sharded_etcd_crd::{API_VERSION, KIND};

/// Field manager of server-side apply, and `app.kubernetes.io/managed-by`.
pub const MANAGED_BY: &str = "sharded-etcd-operator";
/// `app.kubernetes.io/name` of everything, the operator's own pods included.
pub const APP: &str = "sharded-etcd";

/// Label with [`APP`].
pub const LABEL_NAME: &str = "app.kubernetes.io/name";
/// Label with the resource's name.
pub const LABEL_INSTANCE: &str = "app.kubernetes.io/instance";
/// Label with [`MANAGED_BY`].
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Label with what the object is a part of, see [`Component`].
pub const LABEL_COMPONENT: &str = "app.kubernetes.io/component";
/// Label of members and their volume claims: `meta` or `shard-<index>`.
pub const LABEL_CLUSTER: &str = "shardedetcd.io/cluster";
/// Label of members and their volume claims: which cluster of that name it is, from 0.
pub const LABEL_INCARNATION: &str = "shardedetcd.io/incarnation";
/// Label of members and their volume claims: uid of the resource. It tells a volume that an earlier resource of the
/// same name left behind from one's own.
pub const LABEL_UID: &str = "shardedetcd.io/uid";
/// Labels that the operator sets itself, so that a user's labels cannot.
pub const LABELS_OWNED: &[&str] = &[
    LABEL_NAME,
    LABEL_INSTANCE,
    LABEL_MANAGED_BY,
    LABEL_COMPONENT,
    LABEL_CLUSTER,
    LABEL_INCARNATION,
    LABEL_UID,
];
/// Label that the StatefulSet controller gives to a pod: the template that it was made from.
pub const LABEL_REVISION: &str = "controller-revision-hash";
/// Annotation of pods that mount the routing: hash of the newest. Any change of a pod makes the kubelet look at its
/// mounts at once, instead of within a minute or two.
pub const ANNOTATION_ROUTING: &str = "shardedetcd.io/routing";
/// Annotation of a member's StatefulSet: `new` or `existing`, as in the ConfigMap of [`cluster_state`].
pub const ANNOTATION_STATE: &str = "shardedetcd.io/state";
/// Component of the operator's own pods.
pub const COMPONENT_OPERATOR: &str = "operator";

/// etcd's and the proxy's client port.
pub const PORT_CLIENT: u16 = 2379;
/// etcd's peer port.
pub const PORT_PEER: u16 = 2380;
/// etcd's port for metrics and health.
pub const PORT_METRICS: u16 = 2381;
/// The shard manager's port: admin service, metrics and health.
pub const PORT_MANAGER: u16 = 8080;

/// Where a member's volume is mounted.
pub const MEMBER_VOLUME_PATH: &str = "/var/lib/etcd";
/// etcd's data folder, inside the volume, so that the guard's marker can stand beside it.
pub const MEMBER_DATA_PATH: &str = "/var/lib/etcd/data";
/// Name of a member's volume, and first part of its claim's name.
pub const VOLUME: &str = "data";
/// Folder that the routing is mounted at.
pub const ROUTING_FOLDER: &str = "/etc/sharded-etcd";
/// Key of the routing in its ConfigMap, and name of the file.
pub const ROUTING_KEY: &str = "routing.json";
/// Container that runs etcd.
pub const CONTAINER_ETCD: &str = "etcd";
/// Init container that guards a member's volume.
pub const CONTAINER_GUARD: &str = "member-guard";
/// Container that runs the proxy.
pub const CONTAINER_PROXY: &str = "proxy";
/// Container that runs the shard manager.
pub const CONTAINER_MANAGER: &str = "shard-manager";

/// What an object is a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// A shard.
    Shard,
    /// Meta.
    Meta,
    /// The proxies.
    Proxy,
    /// The shard managers.
    ShardManager,
}

impl Component {
    /// All.
    pub const ALL: [Self; 4] = [Self::Shard, Self::Meta, Self::Proxy, Self::ShardManager];

    /// The label's value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Shard => "shard",
            Self::Meta => "meta",
            Self::Proxy => "proxy",
            Self::ShardManager => "shard-manager",
        }
    }
}

/// One etcd cluster of a topology.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cluster {
    /// The shard with this index.
    Shard(u32),
    /// Meta; after the shards, as it is the last to be touched.
    Meta,
}

impl Cluster {
    /// From the value of [`LABEL_CLUSTER`], or a shard's name in a report.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "meta" {
            return Some(Self::Meta);
        }
        let index = text.strip_prefix("shard-")?;
        let canonical = index == "0" || !index.starts_with('0');
        index.parse().ok().filter(|_| canonical && index.bytes().all(|b| b.is_ascii_digit())).map(Self::Shard)
    }

    /// The component that it is.
    pub const fn component(self) -> Component {
        match self {
            Self::Shard(_) => Component::Shard,
            Self::Meta => Component::Meta,
        }
    }

    /// Name of its StatefulSet, headless Service and PodDisruptionBudget.
    pub fn object(self, resource: &str) -> String {
        format!("{resource}-{self}")
    }

    /// Name of a member's pod.
    pub fn pod(self, resource: &str, member: u32) -> String {
        format!("{resource}-{self}-{member}")
    }

    /// Name of a member's volume claim.
    pub fn claim(self, resource: &str, member: u32) -> String {
        format!("{VOLUME}-{resource}-{self}-{member}")
    }

    /// Client URLs of its members.
    pub fn endpoints(self, resource: &str, namespace: &str, members: u32) -> Vec<String> {
        (0..members).map(|m| self.url(resource, namespace, m, PORT_CLIENT)).collect()
    }

    /// `--initial-cluster` of its members.
    pub fn initial_cluster(self, resource: &str, namespace: &str, members: u32) -> String {
        let peer = |m| format!("{}={}", self.pod(resource, m), self.url(resource, namespace, m, PORT_PEER));
        (0..members).map(peer).collect::<Vec<_>>().join(",")
    }

    fn url(self, resource: &str, namespace: &str, member: u32, port: u16) -> String {
        format!("http://{}.{}.{namespace}.svc:{port}", self.pod(resource, member), self.object(resource))
    }

    /// etcd's `--initial-cluster-token`: unlike that of every other cluster ever, as the cluster id comes from it.
    pub fn token(self, uid: &str, incarnation: u32) -> String {
        format!("{uid}-{}", self.state_key(incarnation))
    }

    /// Its key in the ConfigMap of [`cluster_state`]. The incarnation is a part of it, so that what is true of one
    /// incarnation is never read by the next.
    pub fn state_key(self, incarnation: u32) -> String {
        format!("{self}-{incarnation}")
    }
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shard(index) => write!(f, "shard-{index}"),
            Self::Meta => f.write_str("meta"),
        }
    }
}

/// ConfigMap that says of each etcd cluster whether it is `new` or `existing`.
pub fn cluster_state(resource: &str) -> String {
    format!("{resource}-cluster-state")
}

/// ConfigMap with the routing.
pub fn routing(resource: &str) -> String {
    format!("{resource}-routing")
}

/// Deployment, ServiceAccount, PodDisruptionBudget and NetworkPolicy of the proxies.
pub fn proxy(resource: &str) -> String {
    format!("{resource}-proxy")
}

/// Service that clients connect to.
pub fn endpoint_service(resource: &str) -> String {
    resource.to_owned()
}

/// What clients connect to.
pub fn endpoint(resource: &str, namespace: &str) -> String {
    format!("http://{}.{namespace}.svc:{PORT_CLIENT}", endpoint_service(resource))
}

/// Deployment, Service, ServiceAccount, PodDisruptionBudget and NetworkPolicy of the shard managers.
pub fn shard_manager(resource: &str) -> String {
    format!("{resource}-shard-manager")
}

/// The shard managers' admin service.
pub fn admin_url(resource: &str, namespace: &str) -> String {
    format!("http://{}.{namespace}.svc:{PORT_MANAGER}", shard_manager(resource))
}

/// ServiceAccount of the members.
pub fn member(resource: &str) -> String {
    format!("{resource}-member")
}

/// NetworkPolicy of the members of shards, or of meta.
pub fn member_policy(resource: &str, cluster: Cluster) -> String {
    cluster.object(resource)
}

/// Labels that tell a resource's objects from all others; what the operator lists and watches by.
pub fn selector_labels(resource: &str) -> BTreeMap<String, String> {
    [(LABEL_NAME, APP), (LABEL_INSTANCE, resource)].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
}

/// Labels of an object of a resource.
pub fn labels(resource: &str, component: Option<Component>) -> BTreeMap<String, String> {
    let mut labels = selector_labels(resource);
    labels.insert(LABEL_MANAGED_BY.to_owned(), MANAGED_BY.to_owned());
    labels.extend(component.map(|c| (LABEL_COMPONENT.to_owned(), c.label().to_owned())));
    labels
}

/// Labels that select the pods of a component.
pub fn component_selector(resource: &str, component: Component) -> BTreeMap<String, String> {
    let mut labels = selector_labels(resource);
    labels.insert(LABEL_COMPONENT.to_owned(), component.label().to_owned());
    labels
}

/// Labels that select the members of a cluster, of any incarnation.
pub fn cluster_selector(resource: &str, cluster: Cluster) -> BTreeMap<String, String> {
    let mut labels = component_selector(resource, cluster.component());
    labels.insert(LABEL_CLUSTER.to_owned(), cluster.to_string());
    labels
}

/// Labels of a cluster's objects and members.
pub fn cluster_labels(
    resource: &str,
    uid: &str,
    cluster: Cluster,
    incarnation: u32,
) -> BTreeMap<String, String> {
    let mut labels = labels(resource, Some(cluster.component()));
    labels.insert(LABEL_CLUSTER.to_owned(), cluster.to_string());
    labels.insert(LABEL_INCARNATION.to_owned(), incarnation.to_string());
    labels.insert(LABEL_UID.to_owned(), uid.to_owned());
    labels
}

/// A label selector as text, as `status.selector` and list requests have it.
pub fn selector_text(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// The controller reference of everything that belongs to a resource.
pub fn owner_reference(resource: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: API_VERSION.to_owned(),
        kind: KIND.to_owned(),
        name: resource.to_owned(),
        uid: uid.to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Whether the resource with this uid controls the object.
pub fn is_owned(metadata: &ObjectMeta, uid: &str) -> bool {
    controller(metadata).is_some_and(|owner| owner.uid == uid)
}

/// What controls the object.
pub fn controller(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// The value of a label.
pub fn label<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// The cluster and incarnation that an object's labels name.
pub fn cluster_of(metadata: &ObjectMeta) -> Option<(Cluster, u32)> {
    let cluster = Cluster::parse(label(metadata, LABEL_CLUSTER)?)?;
    let incarnation = label(metadata, LABEL_INCARNATION)?.parse().ok()?;
    Some((cluster, incarnation))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn clusters_are_read_back() {
        for cluster in [Cluster::Meta, Cluster::Shard(0), Cluster::Shard(1023)] {
            assert_eq!(Cluster::parse(&cluster.to_string()), Some(cluster));
        }
        for other in ["", "shard", "shard-", "shard-01", "shard-+1", "shard--1", "meta-0", "proxy"] {
            assert_eq!(Cluster::parse(other), None, "{other}");
        }
    }

    #[test]
    fn members_are_named_as_statefulsets_name_them() {
        let cluster = Cluster::Shard(1);
        assert_eq!(cluster.claim("demo", 2), "data-demo-shard-1-2");
        assert_eq!(
            cluster.endpoints("demo", "ns", 1),
            ["http://demo-shard-1-0.demo-shard-1.ns.svc:2379".to_owned()]
        );
        assert_eq!(
            Cluster::Meta.initial_cluster("demo", "ns", 2),
            "demo-meta-0=http://demo-meta-0.demo-meta.ns.svc:2380,demo-meta-1=http://demo-meta-1.demo-meta.ns.svc:2380"
        );
        assert_eq!(cluster.token("u", 3), "u-shard-1-3");
    }

    #[test]
    fn labels_fit_and_selectors_are_part_of_them() {
        let labels = cluster_labels("demo", "0f2c8f0e-3a54-4c86-a5a5-6d1f3a0f5b11", Cluster::Shard(1), 2);
        assert!(labels.values().all(|value| value.len() <= 63));
        assert!(LABELS_OWNED.iter().all(|key| labels.contains_key(*key)));
        for (key, value) in cluster_selector("demo", Cluster::Shard(1)) {
            assert_eq!(labels[&key], value);
        }
        let metadata = ObjectMeta { labels: Some(labels), ..ObjectMeta::default() };
        assert_eq!(cluster_of(&metadata), Some((Cluster::Shard(1), 2)));
        assert_eq!(
            selector_text(&component_selector("demo", Component::Shard)),
            "app.kubernetes.io/component=shard,app.kubernetes.io/instance=demo,app.kubernetes.io/name=sharded-etcd"
        );
    }

    #[test]
    fn only_the_controller_owns() {
        let mut owner = owner_reference("demo", "u");
        let metadata = ObjectMeta { owner_references: Some(vec![owner.clone()]), ..ObjectMeta::default() };
        assert!(is_owned(&metadata, "u") && !is_owned(&metadata, "v"));
        owner.controller = None;
        let metadata = ObjectMeta { owner_references: Some(vec![owner]), ..ObjectMeta::default() };
        assert!(!is_owned(&metadata, "u"));
    }
}
