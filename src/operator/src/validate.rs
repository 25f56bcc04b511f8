//! Step 2: from what was seen to what is to be done, with every problem named. Pure.
//!
//! The shards that are there, should be there, or are to go:
//!
//! | StatefulSet | shard manager says | wanted | step |
//! | --- | --- | --- | --- |
//! | yes | this incarnation has left | | it is deleted; if wanted, the next incarnation follows once it is gone entirely |
//! | yes | part of the line | | applied: it serves, or is being drained |
//! | yes | neither | yes | applied: it is to join |
//! | yes | neither, and acts on this spec | no | it is deleted: it never joined, and will not |
//! | yes | nothing | no | left as it is, unless no shard manager was ever there |
//! | no | part of the line | | made again: its volumes may still be there |
//! | no | incarnation n has left | yes | incarnation n + 1 is made |
//! | no | neither | yes | incarnation 0 is made |
//! | no | nothing | yes | incarnation 0 is made if the topology was never started; else it waits for an answer |

mod conflicts;
mod facts;
#[cfg(test)]
pub(crate) mod fixture;
mod scale;
#[cfg(test)]
mod tests;
mod volumes;

use std::{collections::BTreeMap, sync::Arc};

use sharded_etcd_core::topology::FieldError;
use sharded_etcd_crd::ShardedEtcd;

use self::facts::Facts;
pub use self::facts::{STATE_EXISTING, STATE_NEW, incarnation};
use crate::{
    model::{Observed, TopologyAnswer},
    names::{self, Cluster},
    settings::Settings,
};

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

impl Problem {
    /// One that somebody has to act on.
    fn act(reason: &'static str, message: String) -> Self {
        Self { reason, message, field: None, temporary: false }
    }

    /// One that ends by itself.
    fn wait(reason: &'static str, message: String) -> Self {
        Self { reason, message, field: None, temporary: true }
    }
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

impl Validated {
    /// The image that members run.
    pub fn etcd_image(&self) -> String {
        let spec = &self.resource.spec;
        let repository = spec.image.as_deref().unwrap_or(&self.settings.etcd_image);
        format!("{repository}:v{}", spec.etcd_version())
    }
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
    let topology =
        resource.topology().map_err(|errors| errors.into_iter().map(invalid).collect::<Vec<_>>())?;
    let facts = Facts::new(observed);
    let (total, partial): (Vec<_>, Vec<_>) =
        conflicts::conflicts(&facts).into_iter().partition(|(cluster, _)| cluster.is_none());
    if !total.is_empty() {
        return Err(total.into_iter().map(|(_, problem)| problem).collect());
    }
    let mut problems = Vec::new();
    let shards = scale::effective_shards(&facts, topology.shards, &mut problems);
    let mut planner = Planner { facts: &facts, shards, conflicts: partial, problems };
    let clusters = planner.clusters();
    let metadata = &resource.metadata;
    let mut problems = planner.problems;
    problems.sort();
    problems.dedup();
    Ok(Validated {
        resource: Arc::clone(resource),
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: facts.name.clone(),
        uid: facts.uid.clone(),
        generation: facts.generation,
        shards,
        clusters,
        settings: settings.clone(),
        problems,
    })
}

fn invalid(error: FieldError) -> Problem {
    Problem { reason: "InvalidSpec", message: error.message, field: Some(error.field), temporary: false }
}

/// Decides for each cluster.
struct Planner<'a> {
    facts: &'a Facts<'a>,
    shards: u32,
    conflicts: Vec<conflicts::Conflict>,
    problems: Vec<Problem>,
}

impl Planner<'_> {
    fn clusters(&mut self) -> BTreeMap<Cluster, ClusterPlan> {
        let sets = self.facts.observed.children.stateful_sets.values();
        let sets = sets.filter_map(|set| {
            let cluster = Cluster::parse(names::label(&set.metadata, names::LABEL_CLUSTER)?)?;
            self.facts.stateful_set(cluster).map(|_| cluster)
        });
        let line = self.facts.line.keys().copied().map(Cluster::Shard);
        let mut clusters: Vec<Cluster> =
            (0..self.shards).map(Cluster::Shard).chain(sets).chain(line).chain([Cluster::Meta]).collect();
        clusters.sort();
        clusters.dedup();
        clusters.into_iter().map(|cluster| (cluster, self.cluster(cluster))).collect()
    }

    fn cluster(&mut self, cluster: Cluster) -> ClusterPlan {
        let facts = self.facts;
        let spec = &facts.resource.spec;
        let (asked, field) = match cluster {
            Cluster::Meta => (spec.meta_members(), "spec.meta.members"),
            Cluster::Shard(_) => (spec.etcd_members(), "spec.etcd.members"),
        };
        let set = facts.stateful_set(cluster);
        let made = set.and_then(|set| set.spec.replicas);
        // An etcd cluster does not grow by more pods; members join one at a time, which is not offered yet.
        if let Some(made) = made.filter(|made| *made != asked) {
            self.problems.push(Problem {
                reason: "MembersChanged",
                message: format!(
                    "{cluster} was made with {made} members, which cannot be changed; write {made}"
                ),
                field: Some(field.to_owned()),
                temporary: false,
            });
        }
        let members = u32::try_from(made.unwrap_or(asked)).unwrap_or(1);
        let (incarnation, step, routed) = match (cluster, set) {
            (_, Some(set)) => {
                let (step, routed) = self.there(cluster, incarnation(set));
                (incarnation(set), step, routed)
            }
            (Cluster::Meta, None) => (0, Step::Apply, true),
            (Cluster::Shard(index), None) => self.absent(index),
        };
        let mut plan = ClusterPlan {
            incarnation,
            members,
            step,
            routed,
            existing: facts.is_existing(cluster, incarnation, members),
        };
        self.restrain(cluster, &mut plan);
        if plan.step == Step::Apply {
            volumes::changes(facts, cluster, &mut self.problems);
        }
        plan
    }

    /// A cluster that has a StatefulSet.
    fn there(&mut self, cluster: Cluster, incarnation: u32) -> (Step, bool) {
        let facts = self.facts;
        let Cluster::Shard(index) = cluster else { return (Step::Apply, true) };
        let wanted = index < self.shards;
        let in_line = facts.line.get(&index) == Some(&incarnation);
        let has_left = facts.left.get(&index).is_some_and(|left| *left >= incarnation);
        if in_line {
            return (Step::Apply, true);
        }
        if has_left {
            if wanted {
                let message = format!(
                    "{cluster} is made anew once what is left of the one that was drained before is deleted"
                );
                self.problems.push(Problem::wait("EarlierShardGoing", message));
            }
            return (Step::Delete("it is drained and has left the topology".to_owned()), false);
        }
        if wanted {
            return (Step::Apply, true);
        }
        let named = facts.routing.as_ref().is_some_and(|r| r.shards.contains_key(&cluster.to_string()));
        match (&facts.observed.topology, facts.report) {
            (_, Some(report)) if report.status.observed_generation.unwrap_or(0) >= facts.generation => {
                (Step::Delete("it is not wanted and never joined the topology".to_owned()), false)
            }
            (TopologyAnswer::NotAsked, _) if !facts.bootstrapped => {
                (Step::Delete("it is not wanted, and the topology was never started".to_owned()), false)
            }
            (_, report) => {
                let message = format!(
                    "{cluster} is not wanted; it goes once the shard manager says that it holds no data"
                );
                self.problems.push(Problem::wait("WaitingForTopology", message));
                (Step::Hold, report.is_none() && facts.bootstrapped && named)
            }
        }
    }

    /// A shard that has no StatefulSet: incarnation, step, and whether it is routed.
    fn absent(&mut self, index: u32) -> (u32, Step, bool) {
        let facts = self.facts;
        let cluster = Cluster::Shard(index);
        if facts.report.is_some() || !facts.bootstrapped {
            let next = facts.left.get(&index).map_or(0, |left| left + 1);
            return (facts.line.get(&index).copied().unwrap_or(next), Step::Apply, true);
        }
        let message = format!("{cluster} is made once the shard manager says which incarnation it is");
        self.problems.push(Problem::wait("WaitingForTopology", message));
        let routed = facts.routing.as_ref().and_then(|routing| routing.shards.get(&cluster.to_string()));
        (routed.map_or(0, |shard| shard.incarnation), Step::Hold, routed.is_some())
    }

    /// Holds a cluster back where something is in the way.
    fn restrain(&mut self, cluster: Cluster, plan: &mut ClusterPlan) {
        if plan.step != Step::Apply {
            return;
        }
        let facts = self.facts;
        let mut why = Vec::new();
        for (of, problem) in &self.conflicts {
            if *of == Some(cluster) {
                why.push(problem.clone());
            }
        }
        if let Some(set) = facts.stateful_set(cluster) {
            if set.metadata.deletion_timestamp.is_some() {
                let message = format!("{cluster} is made again once its StatefulSet, being deleted, is gone");
                why.push(Problem::wait("EarlierShardGoing", message));
            }
        } else {
            let spec = &facts.resource.spec;
            let (storage, field) = match cluster {
                Cluster::Meta => (spec.meta_storage(), "spec.meta.storage.className"),
                Cluster::Shard(_) => (spec.etcd_storage(), "spec.etcd.storage.className"),
            };
            let missing = &facts.observed.storage_classes_missing;
            if let Some(class) = storage.class_name.filter(|class| missing.iter().any(|m| m == class)) {
                why.push(Problem {
                    reason: "StorageClassMissing",
                    message: format!(
                        "there is no storage class {class}; create it, or write the name of one that is there"
                    ),
                    field: Some(field.to_owned()),
                    temporary: false,
                });
            }
            why.extend(volumes::obstacle(facts, cluster, plan.incarnation, plan.members));
            // Under the names of the new members the old ones would answer.
            plan.routed &= !facts.other_pods(cluster, plan.incarnation) || cluster == Cluster::Meta;
        }
        if !why.is_empty() {
            plan.step = Step::Hold;
            self.problems.extend(why);
        }
    }
}
