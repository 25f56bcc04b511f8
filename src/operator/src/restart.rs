//! Which member to restart, so that it runs with the StatefulSet's newest template. Pure.
//!
//! The StatefulSets' update strategy is `OnDelete`, so a member gets a new template only when its pod is deleted. One
//! pod of a topology at a time, meta last:
//!
//! 1. **To mend**: an outdated member that is not ready. Its going takes nothing away, and an older template may be
//!    what keeps it from being ready, so this does not wait for the cluster to be well: if all members have a bad
//!    template, they are replaced one after another. It waits for a member that has the newest template and is not ready
//!    (yet), as long as the cluster has a majority: a template that makes no member ready does not spread.
//! 2. **To renew**: an outdated member that is ready, and only while all members of its cluster and of all clusters that
//!    hold data are ready.

use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Pod};

use crate::{
    build::prune::deletion,
    model::{Deletion, Observed},
    names::{self, Cluster},
    validate::{ClusterPlan, Step, Validated},
};

/// Whether a pod's condition `Ready` is true.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Whether a pod is ready, and to stay.
pub fn is_serving(pod: &Pod) -> bool {
    is_ready(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Whether a pod was made from another template than the newest of its StatefulSet. `None`: the StatefulSet's controller
/// has not looked at the newest yet.
pub fn is_outdated(pod: &Pod, set: &StatefulSet) -> Option<bool> {
    let status = set.status.as_ref()?;
    if status.observed_generation < set.metadata.generation {
        return None;
    }
    let newest = status.update_revision.as_deref()?;
    Some(names::label(&pod.metadata, names::LABEL_REVISION) != Some(newest))
}

/// The one pod to delete now, if any.
pub fn restart(validated: &Validated, observed: &Observed) -> Option<Deletion> {
    // A pod that goes was restarted by us, or by somebody else: one at a time.
    let members = validated.clusters.iter().flat_map(|(cluster, plan)| {
        (0..plan.members).filter_map(|m| observed.children.pods.get(&cluster.pod(&validated.name, m)))
    });
    if members.into_iter().any(|pod| pod.metadata.deletion_timestamp.is_some()) {
        return None;
    }
    // Meta is last in this order.
    let clusters: Vec<State<'_>> = validated
        .clusters
        .iter()
        .filter_map(|(cluster, plan)| State::of(validated, observed, *cluster, plan))
        .collect();
    if let Some((cluster, pod)) = clusters.iter().find_map(|state| Some((state.cluster, state.to_mend()?))) {
        let reason = format!(
            "a member of {cluster} is not ready and has an old template; it is restarted with the newest"
        );
        return Some(deletion(pod, reason));
    }
    let well = validated.clusters.iter().filter(|(_, plan)| plan.existing).all(|(cluster, plan)| {
        clusters.iter().any(|state| state.cluster == *cluster && state.is_well(plan.members))
    });
    if !well {
        return None;
    }
    clusters.iter().find_map(|state| {
        let pod = state.is_well(state.members).then(|| state.outdated().next()).flatten()?;
        let reason =
            format!("a member of {} has an old template; it is restarted with the newest", state.cluster);
        Some(deletion(pod, reason))
    })
}

/// The pods of one cluster.
struct State<'a> {
    cluster: Cluster,
    members: u32,
    /// With whether each is outdated.
    pods: Vec<(&'a Pod, bool)>,
}

impl<'a> State<'a> {
    /// `None` if it has no StatefulSet that stays, or one that its controller has not looked at yet.
    fn of(
        validated: &Validated,
        observed: &'a Observed,
        cluster: Cluster,
        plan: &ClusterPlan,
    ) -> Option<Self> {
        let set = observed.children.stateful_sets.get(&cluster.object(&validated.name))?;
        let stays = names::is_owned(&set.metadata, &validated.uid)
            && set.metadata.deletion_timestamp.is_none()
            && !matches!(plan.step, Step::Delete(_));
        if !stays {
            return None;
        }
        let pods = (0..plan.members)
            .filter_map(|member| observed.children.pods.get(&cluster.pod(&validated.name, member)))
            .filter(|pod| {
                names::controller(&pod.metadata)
                    .is_some_and(|owner| Some(&owner.uid) == set.metadata.uid.as_ref())
            })
            .map(|pod| Some((&**pod, is_outdated(pod, set)?)))
            .collect::<Option<Vec<_>>>()?;
        Some(Self { cluster, members: plan.members, pods })
    }

    fn outdated(&self) -> impl Iterator<Item = &'a Pod> + '_ {
        self.pods.iter().filter(|(_, outdated)| *outdated).map(|(pod, _)| *pod)
    }

    fn ready(&self) -> usize {
        self.pods.iter().filter(|(pod, _)| is_ready(pod)).count()
    }

    fn is_whole(&self, members: u32) -> bool {
        u32::try_from(self.pods.len()) == Ok(members)
    }

    fn is_well(&self, members: u32) -> bool {
        self.is_whole(members) && self.ready() == self.pods.len()
    }

    fn to_mend(&self) -> Option<&'a Pod> {
        if !self.is_whole(self.members) {
            return None;
        }
        let has_majority = self.ready() * 2 > self.pods.len();
        let trying = self.pods.iter().any(|(pod, outdated)| !outdated && !is_ready(pod));
        if has_majority && trying {
            return None;
        }
        self.outdated().find(|pod| !is_ready(pod))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    use super::*;
    use crate::validate::fixture::World;

    fn next(world: &World) -> Option<String> {
        restart(&world.validated(), &world.observed).map(|deletion| deletion.name)
    }

    /// A topology that serves, and then gets another image for its members.
    fn outdated() -> World {
        let mut world = World::serving(2);
        world.edit(|resource| resource.spec.image = Some("mirror/etcd".to_owned()));
        world.step();
        world
    }

    fn replace(world: &mut World, pod: &str) {
        world.observed.children.pods.remove(pod);
        let set = pod.rsplit_once('-').expect("a member").0;
        world.run_set(set);
    }

    #[test]
    fn nothing_is_restarted_that_has_the_newest_template() {
        assert_eq!(next(&World::serving(2)), None);
    }

    #[test]
    fn one_after_another_and_meta_last() {
        let mut world = outdated();
        let mut order = Vec::new();
        while let Some(pod) = next(&world) {
            assert!(order.len() < 9, "{order:?}");
            replace(&mut world, &pod);
            order.push(pod);
        }
        let expected = ["shard-0", "shard-1", "meta"].map(|c| [0, 1, 2].map(|m| format!("demo-{c}-{m}")));
        assert_eq!(order, expected.concat());
    }

    #[test]
    fn not_while_a_pod_goes_or_is_missing_or_is_not_ready() {
        let mut world = outdated();
        world.pod("demo-meta-1", |pod| {
            pod.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        });
        assert_eq!(next(&world), None);
        let mut world = outdated();
        world.observed.children.pods.remove("demo-shard-1-0");
        assert_eq!(next(&world), None, "not in another cluster either");
        let mut world = outdated();
        replace(&mut world, "demo-shard-0-0");
        world.not_ready("demo-shard-0-0");
        assert_eq!(next(&world), None, "it has the newest template, and is starting, or cannot");
    }

    #[test]
    fn an_outdated_member_that_is_not_ready_goes_first() {
        let mut world = outdated();
        world.not_ready("demo-meta-2");
        assert_eq!(next(&world).as_deref(), Some("demo-meta-2"));
    }

    #[test]
    fn a_bad_template_does_not_spread_but_is_mended() {
        let mut world = outdated();
        replace(&mut world, "demo-shard-0-0");
        world.not_ready("demo-shard-0-0");
        assert_eq!(next(&world), None);
        world.edit(|resource| resource.spec.image = Some("better/etcd".to_owned()));
        world.step();
        assert_eq!(next(&world).as_deref(), Some("demo-shard-0-0"));
    }

    #[test]
    fn members_that_all_have_a_bad_template_are_replaced_one_after_another() {
        let mut world = World::new(json!({"shards": 1}));
        world.step();
        for m in 0..3 {
            world.not_ready(&format!("demo-shard-0-{m}"));
        }
        world.edit(|resource| resource.spec.image = Some("better/etcd".to_owned()));
        world.step();
        for m in 0..3 {
            let pod = format!("demo-shard-0-{m}");
            assert_eq!(next(&world), Some(pod.clone()));
            replace(&mut world, &pod);
            if m == 0 {
                // Alone it has no majority, so it is not ready before the next one is back.
                world.not_ready(&pod);
            }
        }
    }

    #[test]
    fn not_before_the_controller_has_seen_the_template() {
        let mut world = outdated();
        for set in world.observed.children.stateful_sets.values_mut() {
            let set = Arc::make_mut(set);
            set.metadata.generation = Some(2);
            set.status.as_mut().expect("status").observed_generation = Some(1);
        }
        assert_eq!(next(&world), None);
    }

    #[test]
    fn a_shard_that_holds_nothing_yet_holds_up_nobody() {
        let mut world = World::serving(1);
        world.scale(2);
        world.step();
        world.not_ready("demo-shard-1-0");
        world.edit(|resource| resource.spec.image = Some("mirror/etcd".to_owned()));
        world.step();
        assert_eq!(next(&world).as_deref(), Some("demo-shard-1-0"), "mended first");
        replace(&mut world, "demo-shard-1-0");
        world.not_ready("demo-shard-1-0");
        assert_eq!(next(&world).as_deref(), Some("demo-shard-0-0"));
    }

    #[test]
    fn pods_of_another_statefulset_are_not_touched() {
        let mut world = outdated();
        for pod in world.observed.children.pods.values_mut() {
            Arc::make_mut(pod).metadata.owner_references = None;
        }
        assert_eq!(next(&world), None);
    }
}
