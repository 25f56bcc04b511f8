//! Objects in the way: with a name that the resource needs, and not its own.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sharded_etcd_crd::KIND;

use super::{Problem, facts::Facts};
use crate::names::{self, Cluster};

/// What is in the way: the cluster that cannot be made because of it, or `None` if nothing can go on.
pub(super) type Conflict = (Option<Cluster>, Problem);

/// All objects in the way.
pub(super) fn conflicts(facts: &Facts<'_>) -> Vec<Conflict> {
    let children = &facts.observed.children;
    // Kind and name → whether it goes by itself.
    let mut found: BTreeMap<(String, String), bool> = BTreeMap::new();
    for text in &facts.observed.foreign {
        if let Some((kind, name)) = text.split_once(' ') {
            found.insert((kind.to_owned(), name.to_owned()), false);
        }
    }
    let mut look = |kind: &str, name: &String, metadata: &ObjectMeta| {
        if !names::is_owned(metadata, &facts.uid) {
            let earlier = names::controller(metadata).is_some_and(|owner| owner.kind == KIND);
            let going = metadata.deletion_timestamp.is_some() || earlier;
            found.insert((kind.to_owned(), name.clone()), going);
        }
    };
    children.config_maps.iter().for_each(|(name, o)| look("ConfigMap", name, &o.metadata));
    children.deployments.iter().for_each(|(name, o)| look("Deployment", name, &o.metadata));
    children.network_policies.iter().for_each(|(name, o)| look("NetworkPolicy", name, &o.metadata));
    children.disruption_budgets.iter().for_each(|(name, o)| look("PodDisruptionBudget", name, &o.metadata));
    children.service_accounts.iter().for_each(|(name, o)| look("ServiceAccount", name, &o.metadata));
    children.services.iter().for_each(|(name, o)| look("Service", name, &o.metadata));
    children.stateful_sets.iter().for_each(|(name, o)| look("StatefulSet", name, &o.metadata));
    let needed = found.into_iter().filter_map(|((kind, name), going)| {
        let of = needed_by(&facts.name, &name)?;
        let needs = of.map_or_else(|| "the topology".to_owned(), |cluster| cluster.to_string());
        let problem = if going {
            let message = format!("{needs} waits until {kind} {name} of an earlier resource is gone");
            Problem::wait("EarlierObjectGoing", message)
        } else {
            let message = format!(
                "{kind} {name} is not this resource's, but {needs} needs the name: delete or rename it, or give the \
                 resource another name"
            );
            Problem::act("NameTaken", message)
        };
        Some((of, problem))
    });
    needed.collect()
}

/// Whether the resource needs an object of this name; for which cluster, or `Some(None)` for all.
fn needed_by(resource: &str, name: &str) -> Option<Option<Cluster>> {
    let fixed = [
        names::endpoint_service(resource),
        names::cluster_state(resource),
        names::routing(resource),
        names::proxy(resource),
        names::shard_manager(resource),
        names::member(resource),
    ];
    if fixed.iter().any(|fixed| fixed == name) {
        return Some(None);
    }
    name.strip_prefix(resource)?.strip_prefix('-').and_then(Cluster::parse).map(Some)
}
