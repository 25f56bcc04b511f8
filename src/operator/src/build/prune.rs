//! What is there and should not be.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::{Metadata, Resource, apimachinery::pkg::apis::meta::v1::ObjectMeta};

use super::common::types;
use crate::{
    model::{Deletion, Manifest, Observed},
    names::{self, Cluster},
    validate::{Step, Validated},
};

/// Deletes exactly the object that was looked at.
pub(crate) fn deletion<T: Resource + Metadata<Ty = ObjectMeta>>(
    object: &T,
    reason: impl Into<String>,
) -> Deletion {
    let metadata = object.metadata();
    Deletion {
        types: types::<T>(),
        name: metadata.name.clone().unwrap_or_default(),
        uid: metadata.uid.clone().unwrap_or_default(),
        resource_version: metadata.resource_version.clone().unwrap_or_default(),
        reason: reason.into(),
    }
}

/// StatefulSets that are to go, then all other objects of the resource that nothing needs. Never a volume claim: those
/// go with their StatefulSet, or stay, as its retention policy says.
pub(super) fn deletions(validated: &Validated, observed: &Observed, manifests: &[Manifest]) -> Vec<Deletion> {
    let children = &observed.children;
    let mut deletions = Vec::new();
    for (cluster, plan) in &validated.clusters {
        let Step::Delete(reason) = &plan.step else { continue };
        if let Some(set) = children.stateful_sets.get(&cluster.object(&validated.name)) {
            let going = set.metadata.deletion_timestamp.is_some();
            if !going && names::is_owned(&set.metadata, &validated.uid) {
                deletions.push(deletion(&**set, reason.clone()));
            }
        }
    }
    let wanted: BTreeSet<(&str, &str)> =
        manifests.iter().map(|m| (m.types.kind.as_str(), m.name.as_str())).collect();
    let pruner = Pruner { validated, wanted };
    pruner.prune(children.deployments.values(), &mut deletions);
    pruner.prune(children.disruption_budgets.values(), &mut deletions);
    pruner.prune(children.services.values(), &mut deletions);
    pruner.prune(children.network_policies.values(), &mut deletions);
    pruner.prune(children.config_maps.values(), &mut deletions);
    pruner.prune(children.service_accounts.values(), &mut deletions);
    deletions
}

struct Pruner<'a> {
    validated: &'a Validated,
    wanted: BTreeSet<(&'a str, &'a str)>,
}

impl Pruner<'_> {
    fn prune<'o, T>(&self, objects: impl Iterator<Item = &'o Arc<T>>, deletions: &mut Vec<Deletion>)
    where
        T: Resource + Metadata<Ty = ObjectMeta> + 'o,
    {
        let old = objects.filter(|object| {
            let metadata = object.metadata();
            let name = metadata.name.as_deref().unwrap_or_default();
            names::is_owned(metadata, &self.validated.uid)
                && metadata.deletion_timestamp.is_none()
                && !self.wanted.contains(&(T::KIND, name))
                && !self.is_held(metadata)
        });
        deletions.extend(old.map(|object| deletion(&**object, "nothing needs it any more")));
    }

    /// What belongs to a cluster that is held stays with it.
    fn is_held(&self, metadata: &ObjectMeta) -> bool {
        let cluster = names::label(metadata, names::LABEL_CLUSTER).and_then(Cluster::parse);
        let plan = cluster.and_then(|cluster| self.validated.clusters.get(&cluster));
        plan.is_some_and(|plan| plan.step == Step::Hold)
    }
}
