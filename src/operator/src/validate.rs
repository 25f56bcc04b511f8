//! Step 2: from what was seen to what is to be done, with every problem named. Pure.

use std::{collections::BTreeMap, sync::Arc};

use sharded_etcd_crd::ShardedEtcd;

use crate::{model::Observed, names::Cluster, settings::Settings};

/// Something that keeps the operator from doing all that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// One word, in CamelCase.
    pub reason: &'static str,
    /// What is wrong with what, and what to do.
    pub message: String,
    /// Path of the field in the resource, if it is about one.
    pub field: Option<String>,
    /// True if it ends by itself; otherwise somebody has to act.
    pub temporary: bool,
}

/// What is to be done for a resource.
#[derive(Debug, Clone)]
pub struct Validated {
    /// The resource.
    pub resource: Arc<ShardedEtcd>,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid.
    pub uid: String,
    /// Its generation.
    pub generation: i64,
    /// Shards that the topology is told to have: more than the spec's while a scale-in is refused or cannot be judged.
    pub shards: u32,
    /// Every etcd cluster that is there, should be there, or is to go; meta is always among them.
    pub clusters: BTreeMap<Cluster, ClusterPlan>,
    /// What the operator was started with.
    pub settings: Settings,
    /// What stops a part: everything else goes on.
    pub problems: Vec<Problem>,
}

/// What is to be done for one etcd cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterPlan {
    /// Which cluster of that name it is, from 0.
    pub incarnation: u32,
    /// Members.
    pub members: u32,
    /// What is done to its StatefulSet.
    pub step: Step,
    /// Whether the routing names it.
    pub routed: bool,
    /// Whether it has held data that clients wrote, so that no member may start empty. Never becomes false again for
    /// the same incarnation.
    pub existing: bool,
}

/// What is done to a StatefulSet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It is made, or made as it should be.
    Apply,
    /// It is neither made nor touched; a [`Problem`] says why.
    Hold,
    /// It is deleted: why.
    Delete(String),
}

/// Decides what is to be done.
///
/// # Errors
/// What stops everything: nothing is to be applied.
pub fn validate(observed: &Observed, settings: &Settings) -> Result<Validated, Vec<Problem>> {
    let resource = &observed.resource;
    let metadata = &resource.metadata;
    let topology = resource.topology().map_err(|errors| {
        let problem = |error: sharded_etcd_core::topology::FieldError| Problem {
            reason: "InvalidSpec",
            message: error.to_string(),
            field: Some(error.field),
            temporary: false,
        };
        errors.into_iter().map(problem).collect::<Vec<_>>()
    })?;
    let plan = ClusterPlan { incarnation: 0, members: 3, step: Step::Apply, routed: true, existing: false };
    let clusters = (0..topology.shards).map(Cluster::Shard).chain([Cluster::Meta]);
    Ok(Validated {
        resource: Arc::clone(resource),
        name: metadata.name.clone().unwrap_or_default(),
        namespace: metadata.namespace.clone().unwrap_or_default(),
        uid: metadata.uid.clone().unwrap_or_default(),
        generation: metadata.generation.unwrap_or_default(),
        shards: topology.shards,
        clusters: clusters.map(|cluster| (cluster, plan.clone())).collect(),
        settings: settings.clone(),
        problems: Vec::new(),
    })
}
