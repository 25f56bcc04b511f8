//! Step 3: the objects, as they should be. Pure, and cannot fail.
//!
//! The same [`Validated`] gives the same bytes, so that what has not changed is not applied again. The only things
//! taken from what is there already are those that Kubernetes does not let change: a StatefulSet's claim template.

mod common;
mod config;
mod member;
mod policies;
mod programs;
pub(crate) mod prune;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{PersistentVolumeClaim, ServiceAccount},
};
use sharded_etcd_crd::units::Quantity;

use self::{
    common::{component_metadata, manifest, metadata},
    member::Member,
};
use crate::{
    model::{Desired, Manifest, Observed},
    names::{self, Cluster, Component},
    quantity,
    validate::{Step, Validated},
};

/// What the cluster should look like.
///
/// Manifests are in the order in which they are needed: accounts, ConfigMaps and policies before the pods that rest on
/// them, meta before the shards.
pub fn build(validated: &Validated, observed: &Observed) -> Desired {
    let name = &validated.name;
    let routing = config::routing_text(validated);
    let members = members(validated, observed);
    let mut out = Vec::new();
    let mut add = |manifest: Manifest| out.push(manifest);

    add(account(validated, names::member(name), None));
    add(account(validated, names::shard_manager(name), Some(Component::ShardManager)));
    add(account(validated, names::proxy(name), Some(Component::Proxy)));
    add(manifest(&names::cluster_state(name), &config::cluster_state(validated)));
    add(manifest(&names::routing(name), &config::routing(validated, &routing)));
    for member in &members {
        add(manifest(&names::member_policy(name, member.cluster), &policies::member(member)));
    }
    add(manifest(&names::shard_manager(name), &policies::manager(validated)));
    add(manifest(&names::proxy(name), &policies::proxy(validated)));
    for member in &members {
        add(manifest(&member.cluster.object(name), &member.service()));
    }
    add(manifest(&names::shard_manager(name), &programs::admin(validated)));
    add(manifest(&names::endpoint_service(name), &programs::endpoint(validated)));
    for member in &members {
        add(manifest(&member.cluster.object(name), &member.disruption_budget()));
    }
    add(manifest(&names::shard_manager(name), &programs::manager_disruption(validated)));
    add(manifest(&names::proxy(name), &programs::proxy_disruption(validated)));
    for member in &members {
        add(manifest(&member.cluster.object(name), &member.stateful_set()));
    }
    add(manifest(&names::shard_manager(name), &programs::manager_deployment(validated)));
    add(manifest(&names::proxy(name), &programs::proxy_deployment(validated)));

    Desired {
        deletions: prune::deletions(validated, observed, &out),
        manifests: out,
        pod_annotations: pod_annotations(validated, observed, &config::hash(&routing)),
        claim_sizes: claim_sizes(validated, observed),
    }
}

/// The clusters whose objects are applied, meta first.
fn members<'a>(validated: &'a Validated, observed: &'a Observed) -> Vec<Member<'a>> {
    let applied = validated.clusters.iter().rev().filter(|(_, plan)| plan.step == Step::Apply);
    let mut members: Vec<_> = applied
        .map(|(cluster, plan)| {
            let set = observed.children.stateful_sets.get(&cluster.object(&validated.name));
            Member { validated, cluster: *cluster, plan, set: set.map(|set| &**set) }
        })
        .collect();
    // Meta sorts last and so came first; the shards follow in their order.
    let shards = members.iter().position(|m| m.cluster != Cluster::Meta).unwrap_or(members.len());
    if let Some(shards) = members.get_mut(shards..) {
        shards.reverse();
    }
    members
}

fn account(validated: &Validated, name: String, component: Option<Component>) -> Manifest {
    let metadata = match component {
        Some(component) => component_metadata(validated, name.clone(), component),
        None => metadata(validated, name.clone(), names::labels(&validated.name, None)),
    };
    let account = ServiceAccount {
        metadata,
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    };
    manifest(&name, &account)
}

/// Pods that read the routing and were not told of the newest yet.
fn pod_annotations(
    validated: &Validated,
    observed: &Observed,
    hash: &str,
) -> BTreeMap<String, BTreeMap<String, String>> {
    let readers = [Component::Proxy.label(), Component::ShardManager.label()];
    let pods = observed.children.pods.iter().filter(|(_, pod)| {
        let metadata = &pod.metadata;
        let told = metadata.annotations.as_ref().and_then(|a| a.get(names::ANNOTATION_ROUTING));
        let component = names::label(metadata, names::LABEL_COMPONENT);
        component.is_some_and(|component| readers.contains(&component))
            && names::label(metadata, names::LABEL_INSTANCE) == Some(validated.name.as_str())
            && metadata.deletion_timestamp.is_none()
            && told.is_none_or(|told| told != hash)
    });
    let annotation = BTreeMap::from([(names::ANNOTATION_ROUTING.to_owned(), hash.to_owned())]);
    pods.map(|(name, _)| (name.clone(), annotation.clone())).collect()
}

/// Volume claims that are smaller than the spec asks for.
fn claim_sizes(validated: &Validated, observed: &Observed) -> BTreeMap<String, String> {
    let spec = &validated.resource.spec;
    let claims = observed.children.volume_claims.iter().filter_map(|(name, claim)| {
        let (cluster, incarnation) = names::cluster_of(&claim.metadata)?;
        let plan = validated.clusters.get(&cluster)?;
        let ours = names::label(&claim.metadata, names::LABEL_UID) == Some(validated.uid.as_str());
        if !ours || plan.incarnation != incarnation || matches!(plan.step, Step::Delete(_)) {
            return None;
        }
        let storage = if cluster == Cluster::Meta { spec.meta_storage() } else { spec.etcd_storage() };
        let (bytes, _) = claim_size(claim)?;
        let going = claim.metadata.deletion_timestamp.is_some();
        let grows = !going && storage.bytes().is_ok_and(|wanted| wanted > bytes);
        grows.then(|| (name.clone(), quantity::canonical(storage.size)))
    });
    claims.collect()
}

/// The template that a member's volume claim is made from.
pub(crate) fn claim_template(set: &StatefulSet) -> Option<&PersistentVolumeClaim> {
    let templates = set.spec.volume_claim_templates.as_ref()?;
    templates.iter().find(|template| template.metadata.name.as_deref() == Some(names::VOLUME))
}

/// The size that a claim asks for, in bytes and as it is written there.
pub(crate) fn claim_size(claim: &PersistentVolumeClaim) -> Option<(u64, &str)> {
    let size = claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage")?;
    Some((Quantity(size.0.clone()).bytes().ok()?, size.0.as_str()))
}
