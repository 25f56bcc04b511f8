//! Step 5: the resource's status, and the Events that its changes are worth. Pure.
//!
//! The conditions follow kstatus (sigs.k8s.io/cli-utils): a tool that knows nothing of us waits for `Ready`, and takes
//! `Reconciling` for "in progress" and `Stalled` for "failed".
//!
//! | condition | true |
//! | --- | --- |
//! | `Ready` | all that the spec asks for is there and serves |
//! | `Reconciling` | something is being changed or waited for |
//! | `Stalled` | something is in the way that somebody has to act on; everything that it does not concern goes on |
//! | `Balanced` | no shard has more than its share, as the shard manager says |
//! | `AwaitingApproval` | a plan waits for a person's approval, as the shard manager says |
//!
//! kstatus looks at `Reconciling` and `Stalled` alone, and takes a resource with neither for done. What waits for a person is
//! neither: nothing gets on, and nothing is wrong.

mod events;
mod settle;
#[cfg(test)]
mod tests;
mod trouble;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use sharded_etcd_crd::status::{Condition, ConditionStatus, ShardPhase, ShardStatus, ShardedEtcdStatus};

pub use self::events::{EventDraft, events};
use self::trouble::{Trouble, clip, trouble};
use crate::{
    model::{Applied, Observed, TopologyAnswer, TopologyReport},
    names::{self, Cluster, Component},
    restart::{is_outdated, is_serving},
    validate::{ClusterPlan, Problem, Step, Validated},
};

/// All that the spec asks for is there and serves.
pub const READY: &str = "Ready";
/// Something is being changed or waited for.
pub const RECONCILING: &str = "Reconciling";
/// Somebody has to act.
pub const STALLED: &str = "Stalled";
/// No shard has more than its share.
pub const BALANCED: &str = "Balanced";
/// A plan waits for an approval.
pub const AWAITING_APPROVAL: &str = "AwaitingApproval";

/// Reasons with which the shard manager says that it does nothing before a person acts.
const HELD: &[&str] = &["AwaitingApproval", "Paused"];

/// Things that one condition's message lists at most.
const LISTED_MAX: usize = 5;

/// The resource's status after a reconcile. Equal to the resource's present one if nothing is to be written.
///
/// - `validated`: what [`validate`](crate::validate::validate) said.
/// - `applied`: what became of the objects; empty if validate failed.
/// - `counts_due`: whether small changes of counts (keys, bytes, revisions) may be written; the shell says so at most
///   once in [`Pace::counts`](crate::settings::Pace::counts).
pub fn status(
    observed: &Observed,
    validated: Result<&Validated, &[Problem]>,
    applied: &Applied,
    counts_due: bool,
    now: Timestamp,
) -> ShardedEtcdStatus {
    let previous = observed.resource.status.clone().unwrap_or_default();
    let look = Look {
        observed,
        previous: &previous,
        validated: validated.ok(),
        problems: validated.map_or_else(|problems| problems, |validated| &validated.problems),
        applied,
    };
    let next = look.status(now);
    settle::settle(&previous, next, counts_due)
}

/// A condition without its time and generation.
struct Finding {
    status: ConditionStatus,
    reason: String,
    message: String,
}

impl Finding {
    fn new(status: ConditionStatus, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { status, reason: reason.into(), message: message.into() }
    }
}

struct Look<'a> {
    observed: &'a Observed,
    previous: &'a ShardedEtcdStatus,
    validated: Option<&'a Validated>,
    problems: &'a [Problem],
    applied: &'a Applied,
}

impl Look<'_> {
    fn status(&self, now: Timestamp) -> ShardedEtcdStatus {
        let metadata = &self.observed.resource.metadata;
        let name = metadata.name.as_deref().unwrap_or_default();
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let mut status = match self.report() {
            Some(report) => report.status.clone(),
            None => self.previous.clone(),
        };
        status.observed_generation = metadata.generation;
        status.endpoint = Some(names::endpoint(name, namespace));
        status.selector = Some(names::selector_text(&names::component_selector(name, Component::Shard)));
        status.topology = self.topology();
        status.shards = i64::try_from(status.topology.len()).unwrap_or(i64::MAX);
        let findings = [
            (READY, self.ready(&status.topology)),
            (RECONCILING, self.reconciling(&status.topology)),
            (STALLED, self.stalled()),
            (BALANCED, self.said(BALANCED)),
            (AWAITING_APPROVAL, self.said(AWAITING_APPROVAL)),
        ];
        let condition = |(type_, finding): (&str, Finding)| {
            let before = self.previous.conditions.iter().find(|before| before.type_ == type_);
            let before = before.filter(|before| before.status == finding.status);
            let time = before.and_then(|before| before.last_transition_time.clone());
            Condition {
                type_: type_.to_owned(),
                status: finding.status,
                reason: finding.reason,
                message: finding.message,
                last_transition_time: time.or_else(|| Some(now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())),
                observed_generation: metadata.generation,
            }
        };
        status.conditions = findings.into_iter().map(condition).collect();
        status
    }

    fn report(&self) -> Option<&TopologyReport> {
        match &self.observed.topology {
            TopologyAnswer::Known(report) => Some(report),
            TopologyAnswer::NotAsked | TopologyAnswer::Unknown(_) => None,
        }
    }

    /// The clusters that should be there, with their plans.
    fn plans(&self) -> impl Iterator<Item = (Cluster, &ClusterPlan)> {
        let plans = self.validated.into_iter().flat_map(|validated| &validated.clusters);
        plans
            .filter(|(_, plan)| !matches!(plan.step, Step::Delete(_)))
            .map(|(cluster, plan)| (*cluster, plan))
    }

    /// The shards: what the shard manager says of them, and what their pods do.
    fn topology(&self) -> Vec<ShardStatus> {
        let Some(validated) = self.validated else { return self.previous.topology.clone() };
        let said = self.report().map_or(&self.previous.topology, |report| &report.status.topology);
        let said: BTreeMap<Cluster, &ShardStatus> =
            said.iter().filter_map(|shard| Some((Cluster::parse(&shard.shard)?, shard))).collect();
        let shards = self.plans().filter(|(cluster, _)| *cluster != Cluster::Meta);
        let shards = shards.map(|(cluster, plan)| {
            let incarnation = i64::from(plan.incarnation);
            let known = said.get(&cluster).filter(|shard| shard.incarnation.unwrap_or(0) == incarnation);
            let mut shard = known.map_or_else(|| joining(cluster), |shard| (*shard).clone());
            shard.incarnation = Some(incarnation);
            shard.members = i64::from(plan.members);
            shard.ready = i64::try_from(self.ready_members(validated, cluster, plan)).unwrap_or_default();
            let trouble = self.troubles(validated, cluster, plan).next();
            if let Some(trouble) = trouble {
                shard.message = Some(trouble.message);
            } else if self.report().is_none() {
                shard.message = None;
            }
            shard
        });
        shards.collect()
    }

    fn pods(
        &self,
        validated: &Validated,
        cluster: Cluster,
        plan: &ClusterPlan,
    ) -> impl Iterator<Item = &Pod> {
        let name = validated.name.clone();
        let incarnation = plan.incarnation;
        (0..plan.members).filter_map(move |member| {
            let pod = self.observed.children.pods.get(&cluster.pod(&name, member))?;
            (names::cluster_of(&pod.metadata) == Some((cluster, incarnation))).then_some(&**pod)
        })
    }

    fn ready_members(&self, validated: &Validated, cluster: Cluster, plan: &ClusterPlan) -> usize {
        let pods = self.pods(validated, cluster, plan);
        pods.filter(|pod| is_serving(pod)).count()
    }

    fn troubles(
        &self,
        validated: &Validated,
        cluster: Cluster,
        plan: &ClusterPlan,
    ) -> impl Iterator<Item = Trouble> {
        self.pods(validated, cluster, plan).filter_map(trouble)
    }

    fn ready(&self, topology: &[ShardStatus]) -> Finding {
        let not = |reason: &str, message: String| Finding::new(ConditionStatus::False, reason, message);
        let Some(validated) = self.validated else {
            let reason = self.problems.first().map_or("InvalidSpec", |problem| problem.reason);
            let message =
                format!("{}; what was there before is left as it is", self.list(self.problems.iter()));
            return not(reason, message);
        };
        if let Some(finding) = self.members_missing(validated) {
            return finding;
        }
        if let Some(failure) = self.applied.failures.first() {
            return not("ApplyFailed", format!("{}: {}", failure.object, clip(&failure.message)));
        }
        let wanted = validated.resource.spec.shards;
        let of_phase = |phases: &[ShardPhase]| -> Vec<&ShardStatus> {
            let shards = topology.iter().filter(|shard| phases.contains(&shard.phase));
            shards.collect()
        };
        match &self.observed.topology {
            TopologyAnswer::Unknown(why) if self.was_ready() => {
                let message = format!("the shard manager does not say how the shards are: {}", clip(why));
                return Finding::new(ConditionStatus::Unknown, "ShardManagerSilent", message);
            }
            TopologyAnswer::Unknown(why) => {
                let waits =
                    || not("WaitingForTopology", format!("the shard manager cannot say yet: {}", clip(why)));
                return self.managers_in_trouble(validated).unwrap_or_else(waits);
            }
            TopologyAnswer::NotAsked => {
                let waits = || not("WaitingForTopology", "there is no shard manager yet".to_owned());
                return self.managers_in_trouble(validated).unwrap_or_else(waits);
            }
            TopologyAnswer::Known(_) => {}
        }
        let away = of_phase(&[ShardPhase::Unreachable, ShardPhase::Quarantined]);
        if !away.is_empty() {
            return not("ShardsUnavailable", shards_text(&away));
        }
        let joined = topology
            .iter()
            .filter(|shard| shard.phase != ShardPhase::Joining)
            .filter_map(|shard| Cluster::parse(&shard.shard))
            .filter(|cluster| matches!(cluster, Cluster::Shard(index) if i64::from(*index) < wanted))
            .count();
        if i64::try_from(joined).unwrap_or_default() < wanted {
            let joining = of_phase(&[ShardPhase::Joining]);
            let message =
                format!("{joined} of {wanted} shards are part of the topology; {}", shards_text(&joining));
            return not("ShardsJoining", message);
        }
        if let Some(finding) = self.programs_missing(validated) {
            return finding;
        }
        let message =
            format!("{wanted} shards serve at {}", names::endpoint(&validated.name, &validated.namespace));
        Finding::new(ConditionStatus::True, "Serving", message)
    }

    /// Members that should be ready and are not.
    fn members_missing(&self, validated: &Validated) -> Option<Finding> {
        let mut missing = Vec::new();
        let mut troubles = Vec::new();
        let mut unmade = false;
        for (cluster, plan) in self.plans() {
            let ready = self.ready_members(validated, cluster, plan);
            if u32::try_from(ready) != Ok(plan.members) {
                missing.push(format!("{ready} of {} members of {cluster} are ready", plan.members));
                troubles.extend(self.troubles(validated, cluster, plan));
                unmade |= self.pods(validated, cluster, plan).count() < plan.members as usize;
            }
        }
        (!missing.is_empty()).then(|| {
            let held = self.problems.iter().find(|problem| !problem.temporary);
            let (reason, why) = match (troubles.first(), self.observed.warnings.first(), held) {
                (Some(trouble), _, _) => (trouble.reason, trouble.message.clone()),
                (None, Some(warning), _) if unmade => ("PodsNotCreated", clip(warning).to_owned()),
                (None, _, Some(problem)) => (problem.reason, problem.message.clone()),
                (None, _, None) => ("MembersNotReady", String::new()),
            };
            let listed = limited(missing.iter().cloned());
            let message = if why.is_empty() { listed } else { format!("{listed}: {why}") };
            Finding::new(ConditionStatus::False, reason, message)
        })
    }

    /// Proxies and shard managers that should be ready and are not.
    fn programs_missing(&self, validated: &Validated) -> Option<Finding> {
        let programs = [Component::Proxy, Component::ShardManager];
        programs.into_iter().find_map(|program| Some(self.program_missing(validated, program)?.0))
    }

    /// Why there is no shard manager to ask, if its pods show a cause.
    fn managers_in_trouble(&self, validated: &Validated) -> Option<Finding> {
        let (finding, has_cause) = self.program_missing(validated, Component::ShardManager)?;
        has_cause.then_some(finding)
    }

    /// Pods of one program that should be ready and are not, and whether a cause is known.
    fn program_missing(&self, validated: &Validated, program: Component) -> Option<(Finding, bool)> {
        let spec = &validated.resource.spec;
        let (name, wanted, reason, what) = if program == Component::Proxy {
            (names::proxy(&validated.name), spec.proxy_replicas(), "ProxiesNotReady", "proxies")
        } else {
            let name = names::shard_manager(&validated.name);
            (name, spec.shard_manager_replicas(), "ShardManagersNotReady", "shard managers")
        };
        let deployment = self.observed.children.deployments.get(&name);
        let ready = deployment.and_then(|d| d.status.as_ref()?.ready_replicas).unwrap_or(0);
        if ready >= wanted {
            return None;
        }
        let pods = self.observed.children.pods.values().filter(|pod| {
            names::label(&pod.metadata, names::LABEL_COMPONENT) == Some(program.label())
                && names::label(&pod.metadata, names::LABEL_INSTANCE) == Some(validated.name.as_str())
        });
        let text = format!("{ready} of {wanted} {what} are ready");
        let trouble = pods.filter_map(|pod| trouble(pod)).next();
        let not = |reason: &str, message| Finding::new(ConditionStatus::False, reason, message);
        Some(match (trouble, self.observed.warnings.first()) {
            (Some(trouble), _) => (not(trouble.reason, format!("{text}: {}", trouble.message)), true),
            (None, Some(warning)) => (not(reason, format!("{text}: {}", clip(warning))), true),
            (None, None) => (not(reason, text), false),
        })
    }

    fn reconciling(&self, topology: &[ShardStatus]) -> Finding {
        let doing = |reason: &str, message: String| Finding::new(ConditionStatus::True, reason, message);
        let waits = || self.problems.iter().filter(|problem| problem.temporary);
        if let Some(first) = waits().next() {
            return doing(first.reason, self.list(waits()));
        }
        if let Some(failure) = self.applied.failures.iter().find(|failure| failure.temporary) {
            let message = format!("{} is tried again: {}", failure.object, clip(&failure.message));
            return doing("ApplyFailed", message);
        }
        let Some(validated) = self.validated else {
            return Finding::new(
                ConditionStatus::False,
                "Stalled",
                "nothing is changed before the spec is valid",
            );
        };
        if let Some(going) = validated.clusters.iter().find(|(_, plan)| matches!(plan.step, Step::Delete(_)))
        {
            return doing("ShardsRemoved", format!("what is left of {} is deleted", going.0));
        }
        if let Some(cluster) =
            self.plans().map(|(cluster, _)| cluster).find(|cluster| self.is_rolling(validated, *cluster))
        {
            return doing(
                "MembersRestarting",
                format!("members of {cluster} get a new template, one at a time"),
            );
        }
        let of_phase =
            |phase| -> Vec<&ShardStatus> { topology.iter().filter(|shard| shard.phase == phase).collect() };
        let (draining, joining) = (of_phase(ShardPhase::Draining), of_phase(ShardPhase::Joining));
        if !draining.is_empty() && self.held().is_none() {
            return doing("ShardsDraining", shards_text(&draining));
        }
        if !joining.is_empty() {
            return doing("ShardsJoining", shards_text(&joining));
        }
        for name in [names::proxy(&validated.name), names::shard_manager(&validated.name)] {
            if !self.observed.children.deployments.get(&name).is_some_and(|deployment| has_rolled(deployment))
            {
                return doing("RollingOut", format!("Deployment {name} is being rolled out"));
            }
        }
        let missing = self.members_missing(validated).or_else(|| self.programs_missing(validated));
        if let Some(missing) = missing {
            return doing(&missing.reason, missing.message);
        }
        match self.report() {
            Some(report) if report.status.observed_generation.is_some_and(|g| g < validated.generation) => {
                doing("WaitingForTopology", "the shard manager has not read the newest spec yet".to_owned())
            }
            Some(_) => match self.held() {
                Some(held) => Finding::new(ConditionStatus::False, &*held.reason, &*held.message),
                None => Finding::new(ConditionStatus::False, "Done", "everything is as the spec asks for"),
            },
            None => {
                doing("WaitingForTopology", "the shard manager does not say how the shards are".to_owned())
            }
        }
    }

    fn is_rolling(&self, validated: &Validated, cluster: Cluster) -> bool {
        let Some(set) = self.observed.children.stateful_sets.get(&cluster.object(&validated.name)) else {
            return false;
        };
        let plan = validated.clusters.get(&cluster);
        let mut pods = plan.into_iter().flat_map(|plan| self.pods(validated, cluster, plan));
        pods.any(|pod| is_outdated(pod, set).unwrap_or(true))
    }

    fn stalled(&self) -> Finding {
        let problems = || self.problems.iter().filter(|problem| !problem.temporary);
        let mut failures = self.applied.failures.iter().filter(|failure| !failure.temporary);
        if let Some(first) = problems().next() {
            return Finding::new(ConditionStatus::True, first.reason, self.list(problems()));
        }
        if let Some(failure) = failures.next() {
            let message = format!("{} is refused: {}", failure.object, clip(&failure.message));
            return Finding::new(ConditionStatus::True, "ApplyRefused", message);
        }
        Finding::new(ConditionStatus::False, "Unhindered", "nothing needs anybody to act")
    }

    /// What the shard manager says when it does nothing before a person acts.
    fn held(&self) -> Option<&Condition> {
        let said = self.report()?.status.conditions.iter().find(|said| said.type_ == RECONCILING)?;
        (said.status == ConditionStatus::False && HELD.contains(&said.reason.as_str())).then_some(said)
    }

    /// A condition that is the shard manager's.
    fn said(&self, type_: &str) -> Finding {
        let unknown = |reason: &str, message: &str| Finding::new(ConditionStatus::Unknown, reason, message);
        let Some(report) = self.report() else {
            return unknown("NotKnown", "the shard manager does not say");
        };
        let said = report.status.conditions.iter().find(|condition| condition.type_ == type_);
        said.map_or_else(
            || unknown("NotKnown", "the shard manager does not say"),
            |said| Finding::new(said.status, &*said.reason, &*said.message),
        )
    }

    fn was_ready(&self) -> bool {
        // Unknown too: it was ready when the shard manager fell silent.
        let ready = self.previous.conditions.iter().find(|condition| condition.type_ == READY);
        ready.is_some_and(|ready| ready.status != ConditionStatus::False)
    }

    fn list<'p>(&self, problems: impl Iterator<Item = &'p Problem>) -> String {
        limited(problems.map(|problem| match &problem.field {
            Some(field) => format!("{field}: {}", problem.message),
            None => problem.message.clone(),
        }))
    }
}

/// A shard that the shard manager says nothing of.
fn joining(cluster: Cluster) -> ShardStatus {
    ShardStatus {
        shard: cluster.to_string(),
        incarnation: None,
        phase: ShardPhase::Joining,
        members: 0,
        ready: 0,
        leader: None,
        db_size: 0,
        keys: 0,
        bytes: 0,
        ranges: 0,
        message: None,
    }
}

fn shards_text(shards: &[&ShardStatus]) -> String {
    limited(shards.iter().map(|shard| {
        let phase = match shard.phase {
            ShardPhase::Joining => "is to join",
            ShardPhase::Serving => "serves",
            ShardPhase::Draining => "is being emptied",
            ShardPhase::Unreachable => "does not answer",
            ShardPhase::Quarantined => "is not used, as its history is not the one known",
        };
        match &shard.message {
            Some(message) => format!("{} {phase}: {}", shard.shard, clip(message)),
            None => format!("{} {phase}", shard.shard),
        }
    }))
}

/// The first few, and how many more there are.
fn limited(texts: impl Iterator<Item = String>) -> String {
    let mut texts: Vec<String> = texts.collect();
    let more = texts.len().saturating_sub(LISTED_MAX);
    texts.truncate(LISTED_MAX);
    if more > 0 {
        texts.push(format!("and {more} more"));
    }
    texts.join("; ")
}

/// Whether all pods of a Deployment have its newest template, and no other is left.
fn has_rolled(deployment: &Deployment) -> bool {
    let wanted = deployment.spec.replicas.unwrap_or(1);
    let generation = deployment.metadata.generation;
    deployment.status.as_ref().is_some_and(|status| {
        status.observed_generation >= generation
            && status.updated_replicas.unwrap_or(0) >= wanted
            && status.replicas.unwrap_or(0) <= wanted
    })
}
