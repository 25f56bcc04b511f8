//! A cluster in memory for tests: it does at once what a reconcile asks for, and what Kubernetes' controllers make of it.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentStatus, StatefulSet, StatefulSetStatus},
        core::v1::{PersistentVolumeClaim, Pod, PodCondition, PodStatus},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sharded_etcd_crd::{
    ShardedEtcd,
    status::{RangeMapStatus, RangeStatus, ShardPhase, ShardStatus, ShardedEtcdStatus},
};

use super::{Problem, Step, Validated, validate};
use crate::{
    build::build,
    model::{Children, Desired, LeftShard, Observed, TopologyAnswer, TopologyReport},
    names::{self, Cluster},
    settings::Settings,
};

pub(crate) const UID: &str = "0f2c8f0e-3a54-4c86-a5a5-6d1f3a0f5b11";

/// A resource `demo` in `ns`.
pub(crate) fn resource(spec: Value) -> ShardedEtcd {
    let mut resource: ShardedEtcd = serde_json::from_value(json!({
        "apiVersion": "shardedetcd.io/v1alpha1", "kind": "ShardedEtcd",
        "metadata": {"name": "demo", "namespace": "ns"}, "spec": spec,
    }))
    .expect("a resource");
    resource.metadata.uid = Some(UID.to_owned());
    resource.metadata.generation = Some(1);
    resource
}

/// A cluster with one resource.
pub(crate) struct World {
    pub(crate) observed: Observed,
    pub(crate) settings: Settings,
    count: u32,
}

fn typed<T: DeserializeOwned>(object: &Value) -> T {
    serde_json::from_value(object.clone()).expect("a manifest is of its kind")
}

/// A controller reference to a StatefulSet.
fn owner(kind: &str, metadata: &ObjectMeta) -> Vec<OwnerReference> {
    vec![OwnerReference {
        api_version: "apps/v1".to_owned(),
        kind: kind.to_owned(),
        name: metadata.name.clone().expect("named"),
        uid: metadata.uid.clone().expect("stored"),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }]
}

impl World {
    pub(crate) fn new(spec: Value) -> Self {
        let observed = Observed {
            resource: Arc::new(resource(spec)),
            children: Children::default(),
            topology: TopologyAnswer::NotAsked,
            storage_classes_missing: Vec::new(),
            foreign: Vec::new(),
            warnings: Vec::new(),
        };
        Self { observed, settings: Settings::new("registry/sharded-etcd:1", None), count: 0 }
    }

    /// A topology of so many shards that serves.
    pub(crate) fn serving(shards: u32) -> Self {
        let mut world = Self::new(json!({"shards": shards}));
        world.step();
        let line: Vec<_> = (0..shards).map(|index| (index, 0, ShardPhase::Serving)).collect();
        world.known(&line, &[]);
        world.step();
        world
    }

    /// As somebody edits the spec.
    pub(crate) fn edit(&mut self, edit: impl FnOnce(&mut ShardedEtcd)) {
        let mut resource = (*self.observed.resource).clone();
        edit(&mut resource);
        resource.metadata.generation = resource.metadata.generation.map(|generation| generation + 1);
        self.observed.resource = Arc::new(resource);
    }

    pub(crate) fn scale(&mut self, shards: i64) {
        self.edit(|resource| resource.spec.shards = shards);
    }

    /// The shard manager answers, and has read the newest spec. 300 keys and 30 MiB on each shard of the line.
    pub(crate) fn known(&mut self, line: &[(u32, u32, ShardPhase)], left: &[(u32, u32)]) {
        let shards = line.iter().map(|(index, incarnation, phase)| ShardStatus {
            shard: format!("shard-{index}"),
            incarnation: Some(i64::from(*incarnation)),
            phase: *phase,
            members: 0,
            ready: 0,
            leader: None,
            db_size: 40 << 20,
            keys: 300,
            bytes: 30 << 20,
            ranges: 1,
            message: None,
        });
        let topology: Vec<_> = shards.collect();
        let count = i64::try_from(topology.len()).expect("few");
        let status = ShardedEtcdStatus {
            observed_generation: self.observed.resource.metadata.generation,
            shards: count,
            keys: 300 * count,
            bytes: count * (30 << 20),
            topology,
            range_map: RangeMapStatus {
                generation: 1,
                total: 1,
                ranges: vec![RangeStatus {
                    start: String::new(),
                    end: String::new(),
                    shard: "shard-0".to_owned(),
                    keys: Some(1),
                    bytes: Some(1),
                    rid: "r".to_owned(),
                }],
            },
            ..ShardedEtcdStatus::default()
        };
        let left = left.iter().map(|(index, incarnation)| LeftShard {
            shard: format!("shard-{index}"),
            incarnation: *incarnation,
        });
        let report = TopologyReport { status, left: left.collect() };
        self.observed.topology = TopologyAnswer::Known(Box::new(report));
    }

    pub(crate) fn report(&mut self) -> &mut TopologyReport {
        match &mut self.observed.topology {
            TopologyAnswer::Known(report) => report,
            TopologyAnswer::NotAsked | TopologyAnswer::Unknown(_) => panic!("no report"),
        }
    }

    pub(crate) fn silent(&mut self) {
        self.observed.topology = TopologyAnswer::Unknown("no connection".to_owned());
    }

    pub(crate) fn validated(&self) -> Validated {
        validate(&self.observed, &self.settings).expect("valid")
    }

    pub(crate) fn stopped_by(&self) -> Vec<Problem> {
        validate(&self.observed, &self.settings).expect_err("stopped")
    }

    pub(crate) fn step_of(&self, cluster: Cluster) -> Option<Step> {
        self.validated().clusters.get(&cluster).map(|plan| plan.step.clone())
    }

    /// Shards that the routing names, with their incarnations.
    pub(crate) fn routed(&self) -> Vec<(u32, u32)> {
        let clusters = self.validated().clusters;
        let routed = clusters.into_iter().filter(|(_, plan)| plan.routed);
        routed
            .filter_map(|(cluster, plan)| match cluster {
                Cluster::Shard(index) => Some((index, plan.incarnation)),
                Cluster::Meta => None,
            })
            .collect()
    }

    pub(crate) fn reasons(&self) -> Vec<&'static str> {
        self.validated().problems.iter().map(|problem| problem.reason).collect()
    }

    fn stored(&mut self, metadata: &mut ObjectMeta, uid: Option<String>) {
        self.count += 1;
        metadata.uid = Some(uid.unwrap_or_else(|| format!("u{}", self.count)));
        metadata.resource_version = Some(self.count.to_string());
    }

    /// One reconcile, and what comes of it: all pods run and are ready.
    pub(crate) fn step(&mut self) -> Desired {
        let desired = build(&self.validated(), &self.observed);
        for deletion in &desired.deletions {
            self.delete(&deletion.types.kind, &deletion.name);
        }
        macro_rules! put {
            ($map:ident, $manifest:expr) => {{
                let mut object = typed(&$manifest.object);
                let old = self.observed.children.$map.get(&$manifest.name);
                let uid = old.and_then(|old| old.metadata.uid.clone());
                self.fill(&mut object, uid);
                self.observed.children.$map.insert($manifest.name.clone(), Arc::new(object));
            }};
        }
        for manifest in &desired.manifests {
            match manifest.types.kind.as_str() {
                "ConfigMap" => put!(config_maps, manifest),
                "NetworkPolicy" => put!(network_policies, manifest),
                "PodDisruptionBudget" => put!(disruption_budgets, manifest),
                "ServiceAccount" => put!(service_accounts, manifest),
                "Service" => put!(services, manifest),
                "Deployment" => {
                    put!(deployments, manifest);
                    self.run_deployment(&manifest.name);
                }
                "StatefulSet" => {
                    put!(stateful_sets, manifest);
                    self.run_set(&manifest.name);
                }
                other => panic!("{other}"),
            }
        }
        for (name, annotations) in &desired.pod_annotations {
            if let Some(pod) = self.observed.children.pods.get_mut(name) {
                Arc::make_mut(pod).metadata.annotations = Some(annotations.clone());
            }
        }
        for (name, size) in &desired.claim_sizes {
            self.claim(name, |claim| {
                let requests = claim.spec.as_mut().and_then(|s| s.resources.as_mut()?.requests.as_mut());
                requests.expect("requests").get_mut("storage").expect("storage").0 = size.clone();
            });
        }
        desired
    }

    fn fill<T: k8s_openapi::Metadata<Ty = ObjectMeta>>(&mut self, object: &mut T, uid: Option<String>) {
        self.stored(object.metadata_mut(), uid);
    }

    fn run_deployment(&mut self, name: &str) {
        let deployment = Arc::make_mut(self.observed.children.deployments.get_mut(name).expect("stored"));
        let replicas = deployment.spec.replicas;
        deployment.status = Some(DeploymentStatus {
            replicas,
            ready_replicas: replicas,
            updated_replicas: replicas,
            available_replicas: replicas,
            ..DeploymentStatus::default()
        });
        let deployment: Deployment = deployment.clone();
        for n in 0..replicas.unwrap_or(0) {
            let labels = deployment.spec.template.metadata.clone().and_then(|m| m.labels);
            let name = format!("{name}-{n}");
            if !self.observed.children.pods.contains_key(&name) {
                let mut pod = ready_pod(&name, labels.unwrap_or_default());
                self.stored(&mut pod.metadata, None);
                self.observed.children.pods.insert(name, Arc::new(pod));
            }
        }
    }

    /// Makes the pods and claims that are missing.
    pub(crate) fn run_set(&mut self, name: &str) {
        let set = Arc::make_mut(self.observed.children.stateful_sets.get_mut(name).expect("stored"));
        let template = serde_json::to_vec(&set.spec.template).expect("plain data");
        let revision: String = Sha256::digest(template).iter().take(4).map(|b| format!("{b:02x}")).collect();
        set.status = Some(StatefulSetStatus {
            update_revision: Some(revision.clone()),
            ..StatefulSetStatus::default()
        });
        let set: StatefulSet = set.clone();
        let template = set.spec.template.metadata.clone().and_then(|m| m.labels).unwrap_or_default();
        for m in 0..set.spec.replicas.unwrap_or(0) {
            let pod = format!("{name}-{m}");
            if !self.observed.children.pods.contains_key(&pod) {
                let mut labels = template.clone();
                labels.insert(names::LABEL_REVISION.to_owned(), revision.clone());
                let mut made = ready_pod(&pod, labels);
                made.metadata.owner_references = Some(owner("StatefulSet", &set.metadata));
                self.stored(&mut made.metadata, None);
                self.observed.children.pods.insert(pod.clone(), Arc::new(made));
            }
            let claim = format!("data-{pod}");
            if !self.observed.children.volume_claims.contains_key(&claim) {
                let templates = set.spec.volume_claim_templates.as_ref().expect("a template");
                let mut made: PersistentVolumeClaim = templates.first().expect("a template").clone();
                made.metadata.name = Some(claim.clone());
                self.stored(&mut made.metadata, None);
                self.observed.children.volume_claims.insert(claim, Arc::new(made));
            }
        }
    }

    /// Deletes an object with what goes with it.
    pub(crate) fn delete(&mut self, kind: &str, name: &str) {
        let children = &mut self.observed.children;
        match kind {
            "ConfigMap" => drop(children.config_maps.remove(name)),
            "NetworkPolicy" => drop(children.network_policies.remove(name)),
            "PodDisruptionBudget" => drop(children.disruption_budgets.remove(name)),
            "Service" => drop(children.services.remove(name)),
            "StatefulSet" => {
                let set = children.stateful_sets.remove(name).expect("there");
                let policy = set.spec.persistent_volume_claim_retention_policy.as_ref();
                let delete = policy.and_then(|p| p.when_deleted.as_deref()) == Some("Delete");
                for m in 0..set.spec.replicas.unwrap_or(0) {
                    children.pods.remove(&format!("{name}-{m}"));
                    if delete {
                        children.volume_claims.remove(&format!("data-{name}-{m}"));
                    }
                }
            }
            other => panic!("{other}"),
        }
    }

    pub(crate) fn pod(&mut self, name: &str, edit: impl FnOnce(&mut Pod)) {
        edit(Arc::make_mut(self.observed.children.pods.get_mut(name).expect("there")));
    }

    pub(crate) fn not_ready(&mut self, name: &str) {
        self.pod(name, |pod| pod.status = None);
    }

    pub(crate) fn claim(&mut self, name: &str, edit: impl FnOnce(&mut PersistentVolumeClaim)) {
        edit(Arc::make_mut(self.observed.children.volume_claims.get_mut(name).expect("there")));
    }
}

fn ready_pod(name: &str, labels: BTreeMap<String, String>) -> Pod {
    Pod {
        metadata: ObjectMeta { name: Some(name.to_owned()), labels: Some(labels), ..ObjectMeta::default() },
        spec: None,
        status: Some(PodStatus {
            phase: Some("Running".to_owned()),
            conditions: Some(vec![PodCondition {
                type_: "Ready".to_owned(),
                status: "True".to_owned(),
                ..PodCondition::default()
            }]),
            ..PodStatus::default()
        }),
    }
}
