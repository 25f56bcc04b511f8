//! The ConfigMaps: what proxies, shard managers and the guards of members read.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use sha2::{Digest, Sha256};
use sharded_etcd_core::records::Record;
use sharded_etcd_crd::{
    ShardedEtcd,
    routing::{Engine, RoutedShard, Routing},
};

use super::common::metadata;
use crate::{
    names::{self, Cluster},
    validate::{STATE_EXISTING, STATE_NEW, Step, Validated},
};

/// Bytes of the hash in the pods' annotation.
const HASH_BYTES: usize = 8;

/// The state of each etcd cluster that is not to go.
pub(super) fn cluster_state(validated: &Validated) -> ConfigMap {
    let stay = validated.clusters.iter().filter(|(_, plan)| !matches!(plan.step, Step::Delete(_)));
    let data = stay.map(|(cluster, plan)| {
        let state = if plan.existing { STATE_EXISTING } else { STATE_NEW };
        (cluster.state_key(plan.incarnation), state.to_owned())
    });
    config_map(validated, names::cluster_state(&validated.name), data.collect())
}

/// The routing, as text that is the same for the same content.
pub(super) fn routing_text(validated: &Validated) -> String {
    let resource = &validated.resource;
    let (name, namespace) = (&validated.name, &validated.namespace);
    let endpoints = |cluster: Cluster, members| cluster.endpoints(name, namespace, members);
    let meta = validated.clusters.get(&Cluster::Meta);
    let routed =
        validated.clusters.iter().filter(|(cluster, plan)| **cluster != Cluster::Meta && plan.routed);
    let shards = routed.map(|(cluster, plan)| {
        let endpoints = endpoints(*cluster, plan.members);
        (cluster.to_string(), RoutedShard { incarnation: plan.incarnation, endpoints })
    });
    let mut effective = ShardedEtcd::new(name, resource.spec.effective(validated.shards));
    effective.metadata = ObjectMeta {
        name: Some(name.clone()),
        namespace: Some(namespace.clone()),
        uid: Some(validated.uid.clone()),
        generation: Some(validated.generation),
        ..ObjectMeta::default()
    };
    let routing = Routing {
        uid: validated.uid.clone(),
        bootstrap: true,
        engine: Engine::Etcd,
        meta: endpoints(Cluster::Meta, meta.map_or(0, |plan| plan.members)),
        shards: shards.collect(),
        resource: effective,
    };
    String::from_utf8_lossy(&routing.encode()).into_owned()
}

pub(super) fn routing(validated: &Validated, text: &str) -> ConfigMap {
    let data = [(names::ROUTING_KEY.to_owned(), text.to_owned())];
    config_map(validated, names::routing(&validated.name), data.into())
}

/// Tells one routing from another, for the pods' annotation.
pub(super) fn hash(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().take(HASH_BYTES).map(|byte| format!("{byte:02x}")).collect()
}

fn config_map(validated: &Validated, name: String, data: BTreeMap<String, String>) -> ConfigMap {
    ConfigMap {
        metadata: metadata(validated, name, names::labels(&validated.name, None)),
        data: Some(data),
        ..ConfigMap::default()
    }
}
