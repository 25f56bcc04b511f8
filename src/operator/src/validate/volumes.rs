//! Whether a cluster may be made: nothing of an earlier one may be in the way.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use super::{Problem, facts::Facts};
use crate::names::{self, Cluster};

/// Why a cluster without a StatefulSet must not get one now, if so.
pub(super) fn obstacle(
    facts: &Facts<'_>,
    cluster: Cluster,
    incarnation: u32,
    members: u32,
) -> Option<Problem> {
    if facts.other_pods(cluster, incarnation) {
        let message = format!("{cluster} waits until the pods of an earlier {cluster} are gone");
        return Some(Problem::wait("EarlierShardGoing", message));
    }
    let claims = &facts.observed.children.volume_claims;
    let foreign: Vec<(&String, &PersistentVolumeClaim)> = (0..members)
        .filter_map(|member| claims.get_key_value(&cluster.claim(&facts.name, member)))
        .map(|(name, claim)| (name, &**claim))
        .filter(|(_, claim)| !is_of(claim, &facts.uid, cluster, incarnation))
        .collect();
    // Kubernetes deletes what belongs to a StatefulSet that is gone; nobody has to do anything.
    let (going, stay): (Vec<_>, Vec<_>) = foreign.into_iter().partition(|(_, claim)| {
        let owners = claim.metadata.owner_references.as_ref();
        claim.metadata.deletion_timestamp.is_some() || owners.is_some_and(|owners| !owners.is_empty())
    });
    let list = |claims: &[(&String, &PersistentVolumeClaim)]| {
        claims.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" ")
    };
    if !stay.is_empty() {
        let claims = list(&stay);
        return Some(Problem::act(
            "RetainedVolume",
            format!(
                "{cluster} is not made, as volume claims of an earlier {cluster} are there, with data that is not part \
                 of this topology: {claims}. If nobody needs the data: kubectl delete pvc -n {} {claims}",
                facts.resource.metadata.namespace.as_deref().unwrap_or_default()
            ),
        ));
    }
    (!going.is_empty()).then(|| {
        let message = format!(
            "{cluster} waits until volume claims of an earlier {cluster} are deleted: {}",
            list(&going)
        );
        Problem::wait("EarlierShardGoing", message)
    })
}

/// Whether a claim was made for this incarnation of this resource.
fn is_of(claim: &PersistentVolumeClaim, uid: &str, cluster: Cluster, incarnation: u32) -> bool {
    names::cluster_of(&claim.metadata) == Some((cluster, incarnation))
        && names::label(&claim.metadata, names::LABEL_UID) == Some(uid)
        && claim.metadata.deletion_timestamp.is_none()
}

/// Problems with the volumes of a cluster that is there: a StatefulSet's claim template can never be changed.
pub(super) fn changes(facts: &Facts<'_>, cluster: Cluster, problems: &mut Vec<Problem>) {
    let Some(set) = facts.stateful_set(cluster) else { return };
    let spec = &facts.resource.spec;
    let (storage, field) = match cluster {
        Cluster::Meta => (spec.meta_storage(), "spec.meta.storage"),
        Cluster::Shard(_) => (spec.etcd_storage(), "spec.etcd.storage"),
    };
    let Some(template) = crate::build::claim_template(set) else { return };
    let class = template.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    // Left out, the API server writes nothing into the template, so both are as they were written.
    if class != storage.class_name {
        let now = class.map_or_else(|| "no class".to_owned(), |class| format!("class {class}"));
        let remedy = class.map_or_else(|| "remove the field".to_owned(), |class| format!("write {class}"));
        problems.push(Problem {
            reason: "StorageClassChanged",
            message: format!("{cluster} was made with {now}, which cannot be changed; {remedy}"),
            field: Some(format!("{field}.className")),
            temporary: false,
        });
    }
    let Ok(wanted) = storage.bytes() else { return };
    let claims = facts.observed.children.volume_claims.values().filter(|claim| {
        names::cluster_of(&claim.metadata).is_some_and(|(of, _)| of == cluster)
            && names::label(&claim.metadata, names::LABEL_UID) == Some(facts.uid.as_str())
    });
    let largest = claims.filter_map(|claim| crate::build::claim_size(claim)).max_by_key(|(bytes, _)| *bytes);
    if let Some((bytes, size)) = largest.filter(|(bytes, _)| wanted < *bytes) {
        problems.push(Problem {
            reason: "StorageShrunk",
            message: format!(
                "the volumes of {cluster} have {size} ({bytes} bytes), and volumes cannot shrink; write {size} or more"
            ),
            field: Some(format!("{field}.size")),
            temporary: false,
        });
    }
}
