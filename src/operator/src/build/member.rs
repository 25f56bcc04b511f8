//! The objects of one etcd cluster, meta or a shard.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{
            StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
            StatefulSetUpdateStrategy,
        },
        core::v1::{
            ConfigMapKeySelector, Container, EnvVar, EnvVarSource, PersistentVolumeClaim,
            PersistentVolumeClaimSpec, PodSpec, PodTemplateSpec, ResourceRequirements, Service, ServicePort,
            ServiceSpec, TopologySpreadConstraint, VolumeMount, VolumeResourceRequirements,
        },
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use sharded_etcd_crd::{RetainPolicy, defaults};

use super::common::{
    PULL_POLICY, REVISIONS_KEPT, container_port, container_security, env_field, metadata, pod_security, port,
    probe, selector, spread,
};
use crate::{
    names::{self, Cluster, PORT_CLIENT, PORT_METRICS, PORT_PEER},
    quantity::{canonical, canonical_resources},
    validate::{ClusterPlan, STATE_EXISTING, STATE_NEW, Validated},
};

/// A client's transaction may have 128 operations; guards and imports come on top.
const TXN_OPS_MAX: usize = 10_000;
/// A client's request may have 1.5 MiB; imports put many keys into one transaction.
const REQUEST_BYTES_MAX: usize = 16 << 20;
/// etcd hands its leadership over and closes its database in a second or two; a slow disk gets the rest.
const GRACE_SECONDS: i64 = 30;
/// How often the start is looked at, in seconds, and how often that may fail: replaying 8 GiB from a slow disk takes
/// minutes, and half an hour is more than any.
const STARTUP: (i32, i32) = (2, 900);

/// One etcd cluster to build.
pub(super) struct Member<'a> {
    pub(super) validated: &'a Validated,
    pub(super) cluster: Cluster,
    pub(super) plan: &'a ClusterPlan,
    /// Its StatefulSet, if it is there.
    pub(super) set: Option<&'a StatefulSet>,
}

impl Member<'_> {
    fn name(&self) -> String {
        self.cluster.object(&self.validated.name)
    }

    fn labels(&self) -> BTreeMap<String, String> {
        names::cluster_labels(&self.validated.name, &self.validated.uid, self.cluster, self.plan.incarnation)
    }

    fn selector(&self) -> BTreeMap<String, String> {
        names::cluster_selector(&self.validated.name, self.cluster)
    }

    fn metadata(&self) -> ObjectMeta {
        metadata(self.validated, self.name(), self.labels())
    }

    fn is_shard(&self) -> bool {
        matches!(self.cluster, Cluster::Shard(_))
    }

    /// What the members find each other by, and how shard managers and proxies reach each of them. Members that are not
    /// ready are listed too: they become ready only together.
    pub(super) fn service(&self) -> Service {
        let port = |name: &str, number| ServicePort {
            name: Some(name.to_owned()),
            port: i32::from(number),
            target_port: Some(port(number)),
            protocol: Some("TCP".to_owned()),
            ..ServicePort::default()
        };
        Service {
            metadata: self.metadata(),
            spec: Some(ServiceSpec {
                type_: Some("ClusterIP".to_owned()),
                cluster_ip: Some("None".to_owned()),
                publish_not_ready_addresses: Some(true),
                selector: Some(self.selector()),
                ports: Some(vec![port("client", PORT_CLIENT), port("peer", PORT_PEER)]),
                ..ServiceSpec::default()
            }),
            status: None,
        }
    }

    /// One member at a time: a cluster of 3 or 5 keeps its majority. A single member may be evicted too: its shard is
    /// away until it is back, but with 0 no node it runs on could ever be drained.
    pub(super) fn disruption_budget(&self) -> PodDisruptionBudget {
        PodDisruptionBudget {
            metadata: self.metadata(),
            spec: Some(PodDisruptionBudgetSpec {
                max_unavailable: Some(IntOrString::Int(1)),
                selector: Some(selector(self.selector())),
                ..PodDisruptionBudgetSpec::default()
            }),
            status: None,
        }
    }

    pub(super) fn stateful_set(&self) -> StatefulSet {
        let validated = self.validated;
        let mut metadata = self.metadata();
        let state = [(names::ANNOTATION_STATE.to_owned(), self.state().to_owned())];
        metadata.annotations = Some(state.into());
        let mut selected = self.selector();
        selected.insert(names::LABEL_INCARNATION.to_owned(), self.plan.incarnation.to_string());
        let when_deleted = match self.storage().retain {
            RetainPolicy::Delete => "Delete",
            RetainPolicy::Retain => "Retain",
        };
        let mut labels: BTreeMap<String, String> = BTreeMap::new();
        if self.is_shard() {
            let own = validated.resource.spec.etcd_labels();
            labels.extend(own.map(|(key, value)| (key.to_owned(), value.to_owned())));
        }
        labels.extend(self.labels());
        StatefulSet {
            metadata,
            spec: StatefulSetSpec {
                replicas: i32::try_from(self.plan.members).ok(),
                selector: selector(selected),
                service_name: Some(self.name()),
                // All at once: members become ready only when a majority runs.
                pod_management_policy: Some("Parallel".to_owned()),
                // Which member is restarted when is decided by `restart`, which looks at the cluster's health.
                update_strategy: Some(StatefulSetUpdateStrategy {
                    type_: Some("OnDelete".to_owned()),
                    rolling_update: None,
                }),
                revision_history_limit: Some(REVISIONS_KEPT),
                persistent_volume_claim_retention_policy: Some(
                    StatefulSetPersistentVolumeClaimRetentionPolicy {
                        when_deleted: Some(when_deleted.to_owned()),
                        when_scaled: Some("Retain".to_owned()),
                    },
                ),
                template: PodTemplateSpec {
                    metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
                    spec: Some(self.pod()),
                },
                volume_claim_templates: Some(vec![self.claim()]),
                ..StatefulSetSpec::default()
            },
            status: None,
        }
    }

    /// `new` or `existing`.
    pub(super) fn state(&self) -> &'static str {
        if self.plan.existing { STATE_EXISTING } else { STATE_NEW }
    }

    fn storage(&self) -> defaults::Storage<'_> {
        let spec = &self.validated.resource.spec;
        if self.is_shard() { spec.etcd_storage() } else { spec.meta_storage() }
    }

    fn resources(&self) -> Option<ResourceRequirements> {
        let spec = &self.validated.resource.spec;
        let resources = if self.is_shard() { spec.etcd_resources() } else { spec.meta_resources() };
        resources.map(canonical_resources)
    }

    /// The template of the volume claims. That of a StatefulSet that is there cannot be changed, so it stays; volumes
    /// grow claim by claim.
    fn claim(&self) -> PersistentVolumeClaim {
        let storage = self.storage();
        let (size, class, labels) = match self.set.and_then(super::claim_template) {
            Some(template) => {
                let spec = template.spec.as_ref();
                let size = spec.and_then(|s| s.resources.as_ref()?.requests.as_ref()?.get("storage"));
                (
                    size.map_or_else(|| canonical(storage.size), |size| size.0.clone()),
                    spec.and_then(|spec| spec.storage_class_name.clone()),
                    template.metadata.labels.clone(),
                )
            }
            None => (canonical(storage.size), storage.class_name.map(str::to_owned), Some(self.labels())),
        };
        PersistentVolumeClaim {
            metadata: ObjectMeta { name: Some(names::VOLUME.to_owned()), labels, ..ObjectMeta::default() },
            spec: Some(PersistentVolumeClaimSpec {
                access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
                resources: Some(VolumeResourceRequirements {
                    limits: None,
                    requests: Some([("storage".to_owned(), Quantity(size))].into()),
                }),
                storage_class_name: class,
                ..PersistentVolumeClaimSpec::default()
            }),
            status: None,
        }
    }

    fn pod(&self) -> PodSpec {
        let spec = &self.validated.resource.spec;
        let mut pod = PodSpec {
            service_account_name: Some(names::member(&self.validated.name)),
            automount_service_account_token: Some(false),
            // A Service called etcd would give etcd flags by ETCD_… variables.
            enable_service_links: Some(false),
            security_context: Some(pod_security(true)),
            termination_grace_period_seconds: Some(GRACE_SECONDS),
            init_containers: Some(vec![self.guard()]),
            containers: vec![self.etcd()],
            ..PodSpec::default()
        };
        let mut constraints = Vec::new();
        if self.is_shard() {
            pod.affinity = spec.etcd_affinity().cloned();
            let tolerations = spec.etcd_tolerations();
            pod.tolerations = (!tolerations.is_empty()).then(|| tolerations.to_vec());
            pod.priority_class_name = spec.etcd_priority_class_name().map(str::to_owned);
            constraints.extend(spec.etcd_topology_spread().iter().map(|asked| self.constraint(asked)));
        }
        if constraints.is_empty() && pod.affinity.is_none() {
            constraints = spread(&self.selector());
        }
        pod.topology_spread_constraints = (!constraints.is_empty()).then_some(constraints);
        pod
    }

    fn constraint(&self, asked: &TopologySpreadConstraint) -> TopologySpreadConstraint {
        let mut constraint = asked.clone();
        constraint.label_selector.get_or_insert_with(|| selector(self.selector()));
        constraint
    }

    /// Refuses a volume that is not this member's.
    fn guard(&self) -> Container {
        let validated = self.validated;
        Container {
            name: names::CONTAINER_GUARD.to_owned(),
            image: Some(validated.settings.image.clone()),
            image_pull_policy: Some(PULL_POLICY.to_owned()),
            command: Some(vec!["/sharded-etcd".to_owned()]),
            args: Some(vec![
                "member-guard".to_owned(),
                format!("--data-dir={}", names::MEMBER_DATA_PATH),
                format!("--token={}", self.token()),
                "--state=$(CLUSTER_STATE)".to_owned(),
            ]),
            env: Some(vec![EnvVar {
                name: "CLUSTER_STATE".to_owned(),
                value_from: Some(EnvVarSource {
                    config_map_key_ref: Some(ConfigMapKeySelector {
                        name: names::cluster_state(&validated.name),
                        key: self.cluster.state_key(self.plan.incarnation),
                        optional: None,
                    }),
                    ..EnvVarSource::default()
                }),
                ..EnvVar::default()
            }]),
            security_context: Some(container_security()),
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            volume_mounts: Some(vec![volume_mount()]),
            ..Container::default()
        }
    }

    fn token(&self) -> String {
        self.cluster.token(&self.validated.uid, self.plan.incarnation)
    }

    fn etcd(&self) -> Container {
        Container {
            name: names::CONTAINER_ETCD.to_owned(),
            image: Some(self.validated.etcd_image()),
            image_pull_policy: Some(PULL_POLICY.to_owned()),
            command: Some(vec!["etcd".to_owned()]),
            args: Some(self.arguments()),
            env: Some(vec![env_field("POD_NAME", "metadata.name")]),
            ports: Some(vec![
                container_port("client", PORT_CLIENT),
                container_port("peer", PORT_PEER),
                container_port("metrics", PORT_METRICS),
            ]),
            startup_probe: Some(probe("/livez", PORT_METRICS, STARTUP.0, STARTUP.1)),
            liveness_probe: Some(probe("/livez", PORT_METRICS, 10, 6)),
            readiness_probe: Some(probe("/readyz", PORT_METRICS, 3, 3)),
            resources: self.resources(),
            security_context: Some(container_security()),
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            volume_mounts: Some(vec![volume_mount()]),
            ..Container::default()
        }
    }

    fn arguments(&self) -> Vec<String> {
        let validated = self.validated;
        let spec = &validated.resource.spec;
        let (name, namespace) = (&validated.name, &validated.namespace);
        let url = |number: u16| format!("http://$(POD_NAME).{}.{namespace}.svc:{number}", self.name());
        let any = |number: u16| format!("http://0.0.0.0:{number}");
        let quota = if self.is_shard() { spec.etcd_quota_bytes() } else { spec.meta_quota_bytes() };
        let own: [(&str, String); 15] = [
            ("name", "$(POD_NAME)".to_owned()),
            ("data-dir", names::MEMBER_DATA_PATH.to_owned()),
            ("listen-client-urls", any(PORT_CLIENT)),
            ("advertise-client-urls", url(PORT_CLIENT)),
            ("listen-peer-urls", any(PORT_PEER)),
            ("initial-advertise-peer-urls", url(PORT_PEER)),
            ("listen-metrics-urls", any(PORT_METRICS)),
            ("initial-cluster", self.cluster.initial_cluster(name, namespace, self.plan.members)),
            ("initial-cluster-token", self.token()),
            // Always: a member that its peers know is refused by them when it comes back empty, and the guard stops
            // one before that.
            ("initial-cluster-state", "new".to_owned()),
            ("quota-backend-bytes", defaults::backend_quota_bytes(quota).to_string()),
            ("max-txn-ops", TXN_OPS_MAX.to_string()),
            ("max-request-bytes", REQUEST_BYTES_MAX.to_string()),
            // The topology owns history.
            ("auto-compaction-retention", "0".to_owned()),
            ("log-level", "warn".to_owned()),
        ];
        let asked: Vec<(&str, &str)> =
            if self.is_shard() { spec.etcd_extra_args().collect() } else { Vec::new() };
        let own = own.iter().filter(|(flag, _)| asked.iter().all(|(other, _)| other != flag));
        let own = own.map(|(flag, value)| format!("--{flag}={value}"));
        own.chain(asked.iter().map(|(flag, value)| format!("--{flag}={value}"))).collect()
    }
}

fn volume_mount() -> VolumeMount {
    VolumeMount {
        name: names::VOLUME.to_owned(),
        mount_path: names::MEMBER_VOLUME_PATH.to_owned(),
        ..VolumeMount::default()
    }
}
