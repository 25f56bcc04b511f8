//! What the decisions rest on, read once out of what was observed.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use k8s_openapi::api::apps::v1::StatefulSet;
use sharded_etcd_crd::{ShardedEtcd, routing::Routing, status::ShardPhase};

use crate::{
    model::{Observed, TopologyAnswer, TopologyReport},
    names::{self, Cluster},
};

/// Value of a key in the ConfigMap of cluster states: members may start with an empty volume.
pub const STATE_NEW: &str = "new";
/// The opposite.
pub const STATE_EXISTING: &str = "existing";

/// What the decisions rest on.
pub(super) struct Facts<'a> {
    pub(super) observed: &'a Observed,
    pub(super) resource: &'a ShardedEtcd,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) generation: i64,
    /// The shard manager's answer, if it can say.
    pub(super) report: Option<&'a TopologyReport>,
    /// Shards of the line: index → incarnation. Empty without a report.
    pub(super) line: BTreeMap<u32, u32>,
    /// Newest incarnation that has left: index → incarnation. Empty without a report.
    pub(super) left: BTreeMap<u32, u32>,
    /// The routing as it was applied last.
    pub(super) routing: Option<Routing>,
    /// State keys that are known to be `existing`.
    existing: BTreeSet<String>,
    /// Whether the topology was ever started, as far as the API server knows.
    pub(super) bootstrapped: bool,
}

impl<'a> Facts<'a> {
    pub(super) fn new(observed: &'a Observed) -> Self {
        let resource = &*observed.resource;
        let metadata = &resource.metadata;
        let name = metadata.name.clone().unwrap_or_default();
        let uid = metadata.uid.clone().unwrap_or_default();
        let report = match &observed.topology {
            TopologyAnswer::Known(report) => Some(&**report),
            TopologyAnswer::NotAsked | TopologyAnswer::Unknown(_) => None,
        };
        let in_line = report.into_iter().flat_map(|r| &r.status.topology);
        let line: BTreeMap<u32, u32> = in_line
            .filter(|shard| shard.phase != ShardPhase::Joining)
            .filter_map(|shard| Some((index(&shard.shard)?, number(shard.incarnation))))
            .collect();
        let mut left = BTreeMap::new();
        for shard in report.into_iter().flat_map(|r| &r.left) {
            if let Some(index) = index(&shard.shard) {
                let newest = left.entry(index).or_insert(shard.incarnation);
                *newest = shard.incarnation.max(*newest);
            }
        }
        let existing = existing(observed, &name, &uid);
        let status = resource.status.as_ref();
        let was_told = status
            .is_some_and(|status| status.topology.iter().any(|shard| shard.phase != ShardPhase::Joining));
        let bootstrapped = !existing.is_empty() || !line.is_empty() || was_told;
        let generation = metadata.generation.unwrap_or_default();
        let routing = routing(observed, &name, &uid);
        Self {
            observed,
            resource,
            name,
            uid,
            generation,
            report,
            line,
            left,
            routing,
            existing,
            bootstrapped,
        }
    }

    /// The StatefulSet of a cluster, if it is ours.
    pub(super) fn stateful_set(&self, cluster: Cluster) -> Option<&'a StatefulSet> {
        let set = self.observed.children.stateful_sets.get(&cluster.object(&self.name))?;
        names::is_owned(&set.metadata, &self.uid).then_some(&**set)
    }

    /// Whether the members of a cluster hold data that clients wrote, or may: once true, for ever.
    ///
    /// It becomes true when the cluster is part of the running topology **and** all its members are ready at once, so
    /// that each of them has data: a member that has not started yet must be let in with an empty volume. Until then
    /// etcd itself refuses a second start of a member that its peers have seen.
    pub(super) fn is_existing(&self, cluster: Cluster, incarnation: u32, members: u32) -> bool {
        let in_use = match cluster {
            Cluster::Meta => !self.line.is_empty(),
            Cluster::Shard(index) => self.line.get(&index) == Some(&incarnation),
        };
        let was = self.existing.contains(&cluster.state_key(incarnation));
        was || in_use && (0..members).all(|member| self.is_ready(cluster, incarnation, member))
    }

    fn is_ready(&self, cluster: Cluster, incarnation: u32, member: u32) -> bool {
        self.observed.children.pods.get(&cluster.pod(&self.name, member)).is_some_and(|pod| {
            names::cluster_of(&pod.metadata) == Some((cluster, incarnation)) && crate::restart::is_ready(pod)
        })
    }

    /// Whether pods of another incarnation of the cluster are still there: they answer under the same names.
    pub(super) fn other_pods(&self, cluster: Cluster, incarnation: u32) -> bool {
        let prefix = format!("{}-", cluster.object(&self.name));
        self.observed.children.pods.iter().any(|(name, pod)| {
            let member = name.strip_prefix(&prefix).is_some_and(|rest| rest.parse::<u32>().is_ok());
            let uid = names::label(&pod.metadata, names::LABEL_UID);
            let same = names::cluster_of(&pod.metadata) == Some((cluster, incarnation));
            member && !(same && uid == Some(self.uid.as_str()))
        })
    }
}

/// Index of a shard by its name.
pub(super) fn index(name: &str) -> Option<u32> {
    match Cluster::parse(name) {
        Some(Cluster::Shard(index)) => Some(index),
        Some(Cluster::Meta) | None => None,
    }
}

fn number(incarnation: Option<i64>) -> u32 {
    incarnation.and_then(|n| u32::try_from(n).ok()).unwrap_or_default()
}

/// Which incarnation a StatefulSet runs. Its selector says so, as that can never be changed.
pub fn incarnation(set: &StatefulSet) -> u32 {
    let selector = set.spec.selector.match_labels.as_ref();
    let label = selector.and_then(|labels| labels.get(names::LABEL_INCARNATION)).map(String::as_str);
    let label = label.or_else(|| names::label(&set.metadata, names::LABEL_INCARNATION));
    label.and_then(|label| label.parse().ok()).unwrap_or_default()
}

/// Two objects keep the states, so that the loss of one of them forgets nothing.
fn existing(observed: &Observed, name: &str, uid: &str) -> BTreeSet<String> {
    let map = observed.children.config_maps.get(&names::cluster_state(name));
    let map = map.filter(|map| names::is_owned(&map.metadata, uid));
    let data = map.and_then(|map| map.data.as_ref()).into_iter().flatten();
    let mut existing: BTreeSet<String> =
        data.filter(|(_, state)| *state == STATE_EXISTING).map(|(key, _)| key.clone()).collect();
    let sets = observed.children.stateful_sets.values().filter(|set| names::is_owned(&set.metadata, uid));
    for set in sets {
        let state = set.metadata.annotations.as_ref().and_then(|a| a.get(names::ANNOTATION_STATE));
        let cluster = names::label(&set.metadata, names::LABEL_CLUSTER).and_then(Cluster::parse);
        if let Some(cluster) = cluster.filter(|_| state.is_some_and(|state| state == STATE_EXISTING)) {
            existing.insert(cluster.state_key(incarnation(set)));
        }
    }
    existing
}

/// The routing as it was applied last; `None` if it is not there or not to be read: then it is made anew.
fn routing(observed: &Observed, name: &str, uid: &str) -> Option<Routing> {
    let map = observed.children.config_maps.get(&names::routing(name))?;
    let text = map.data.as_ref()?.get(names::ROUTING_KEY)?;
    let routing = Routing::parse(Path::new(names::ROUTING_KEY), text.as_bytes()).ok()?;
    (names::is_owned(&map.metadata, uid) && routing.uid == uid).then_some(routing)
}
