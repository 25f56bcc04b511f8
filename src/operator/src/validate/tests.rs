#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use k8s_openapi::{
    api::core::v1::Service,
    apimachinery::pkg::apis::meta::v1::{OwnerReference, Time},
};
use serde_json::json;
use sharded_etcd_crd::{
    RetainPolicy, StorageSpec,
    status::{ShardPhase::*, ShardedEtcdStatus},
    units::Quantity,
};

use super::{Step, fixture::World};
use crate::{
    model::TopologyAnswer,
    names::{self, Cluster, Cluster::Shard},
};

fn is_delete(step: Option<Step>) -> bool {
    matches!(step, Some(Step::Delete(_)))
}

#[test]
fn a_new_topology_is_made_at_once() {
    let world = World::new(json!({"shards": 2}));
    let validated = world.validated();
    assert_eq!(validated.clusters.len(), 3);
    assert!(
        validated.clusters.values().all(|plan| plan.step == Step::Apply && plan.routed && !plan.existing)
    );
    assert_eq!(validated.problems, []);
}

#[test]
fn a_bad_spec_stops_everything_and_names_the_field() {
    let world = World::new(json!({"shards": 2, "keyspace": {"pins": [{"prefix": "/a/", "shard": 7}]}}));
    let problems = world.stopped_by();
    assert_eq!(problems[0].reason, "InvalidSpec");
    assert_eq!(problems[0].field.as_deref(), Some("spec.keyspace.pins[0].shard"));
    assert!(!problems[0].temporary);
}

#[test]
fn a_cluster_exists_once_it_serves_with_all_members_and_for_ever_after() {
    let mut world = World::new(json!({"shards": 1}));
    world.step();
    world.not_ready("demo-shard-0-2");
    world.known(&[(0, 0, Serving)], &[]);
    let existing = |world: &World, cluster| world.validated().clusters[&cluster].existing;
    assert!(!existing(&world, Shard(0)), "member 2 has not started yet, and has to be let in");
    assert!(existing(&world, Cluster::Meta));
    world.pod("demo-shard-0-2", |pod| pod.status = Some(Default::default()));
    let ready = world.observed.children.pods["demo-shard-0-1"].status.clone();
    world.pod("demo-shard-0-2", |pod| pod.status = ready);
    assert!(existing(&world, Shard(0)));
    world.step();
    world.not_ready("demo-shard-0-2");
    world.silent();
    assert!(existing(&world, Shard(0)));
    // Either of two objects is enough to know.
    let map = world.observed.children.config_maps.remove("demo-cluster-state").unwrap();
    assert!(existing(&world, Shard(0)) && existing(&world, Cluster::Meta));
    world.observed.children.config_maps.insert("demo-cluster-state".into(), map);
    world.observed.children.stateful_sets.clear();
    assert!(existing(&world, Cluster::Meta));
}

#[test]
fn scale_out_applies_the_new_shards() {
    let mut world = World::serving(2);
    world.scale(3);
    assert_eq!(world.step_of(Shard(2)), Some(Step::Apply));
    assert_eq!(world.routed(), [(0, 0), (1, 0), (2, 0)]);
}

#[test]
fn scale_in_drains_then_deletes_then_is_steady() {
    let mut world = World::serving(3);
    world.scale(1);
    assert_eq!(world.validated().shards, 1);
    assert_eq!(world.step_of(Shard(2)), Some(Step::Apply), "it is drained first");
    world.step();
    world.known(&[(0, 0, Serving), (1, 0, Draining)], &[(2, 0)]);
    assert!(is_delete(world.step_of(Shard(2))));
    assert_eq!(world.step_of(Shard(1)), Some(Step::Apply));
    let desired = world.step();
    let kinds: Vec<_> = desired.deletions.iter().map(|d| (&*d.types.kind, &*d.name)).collect();
    let name = "demo-shard-2";
    assert_eq!(
        kinds,
        [("StatefulSet", name), ("PodDisruptionBudget", name), ("Service", name), ("NetworkPolicy", name)]
    );
    assert_eq!(world.step_of(Shard(2)), None);
    assert_eq!(world.routed(), [(0, 0), (1, 0)]);
    world.known(&[(0, 0, Serving)], &[(1, 0), (2, 0)]);
    world.step();
    assert_eq!(world.step().deletions, []);
    assert!(!world.observed.children.volume_claims.contains_key("data-demo-shard-1-0"));
}

#[test]
fn shards_back_up_cancel_a_drain() {
    let mut world = World::serving(3);
    world.scale(1);
    world.step();
    world.known(&[(0, 0, Serving), (1, 0, Draining), (2, 0, Draining)], &[]);
    world.scale(3);
    let desired = world.step();
    assert_eq!(desired.deletions, []);
    assert_eq!(world.routed(), [(0, 0), (1, 0), (2, 0)]);
    assert_eq!(world.validated().shards, 3);
}

#[test]
fn a_shard_that_left_comes_back_as_the_next_incarnation_once_all_of_it_is_gone() {
    let mut world = World::serving(2);
    world.scale(1);
    world.step();
    world.known(&[(0, 0, Serving)], &[(1, 0)]);
    world.scale(2);
    world.known(&[(0, 0, Serving)], &[(1, 0)]);
    assert!(is_delete(world.step_of(Shard(1))));
    assert_eq!(world.reasons(), ["EarlierShardGoing"]);
    assert_eq!(world.routed(), [(0, 0)], "its old members would answer under its name");
    let pod = world.observed.children.pods["demo-shard-1-0"].clone();
    world.step();
    world.observed.children.pods.insert("demo-shard-1-0".into(), pod);
    assert_eq!(world.step_of(Shard(1)), Some(Step::Hold), "a pod of the old one is left");
    assert_eq!(world.routed(), [(0, 0)]);
    world.observed.children.pods.remove("demo-shard-1-0");
    assert_eq!(world.step_of(Shard(1)), Some(Step::Apply));
    assert_eq!(world.routed(), [(0, 0), (1, 1)]);
    world.step();
    assert!(!world.validated().clusters[&Shard(1)].existing);
    world.known(&[(0, 0, Serving), (1, 1, Serving)], &[(1, 0)]);
    assert_eq!(world.step_of(Shard(1)), Some(Step::Apply));
    assert!(world.validated().clusters[&Shard(1)].existing);
}

#[test]
fn a_retained_volume_stops_only_its_shard() {
    let mut world = World::serving(2);
    world.edit(|resource| {
        let etcd = resource.spec.etcd.get_or_insert_default();
        etcd.storage = Some(StorageSpec { retain: Some(RetainPolicy::Retain), ..StorageSpec::default() });
        resource.spec.shards = 1;
    });
    world.step();
    world.known(&[(0, 0, Serving)], &[(1, 0)]);
    world.step();
    assert!(world.observed.children.volume_claims.contains_key("data-demo-shard-1-0"));
    world.scale(3);
    world.known(&[(0, 0, Serving)], &[(1, 0)]);
    assert_eq!(world.step_of(Shard(1)), Some(Step::Hold));
    assert_eq!(world.step_of(Shard(2)), Some(Step::Apply));
    let problem = world.validated().problems.remove(0);
    assert_eq!((problem.reason, problem.temporary), ("RetainedVolume", false));
    assert!(
        problem
            .message
            .contains("kubectl delete pvc -n ns data-demo-shard-1-0 data-demo-shard-1-1 data-demo-shard-1-2"),
        "{}",
        problem.message
    );
    // One that goes by itself is only waited for.
    for m in 0..3 {
        world.claim(&format!("data-demo-shard-1-{m}"), |claim| {
            claim.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        });
    }
    assert_eq!(world.reasons(), ["EarlierShardGoing"]);
    world.observed.children.volume_claims.retain(|name, _| !name.contains("shard-1"));
    assert_eq!(world.step_of(Shard(1)), Some(Step::Apply));
}

#[test]
fn volumes_of_an_earlier_resource_of_the_same_name_are_not_taken() {
    let mut world = World::serving(1);
    let mut claim = (*world.observed.children.volume_claims["data-demo-meta-0"]).clone();
    claim.metadata.labels.as_mut().unwrap().insert(names::LABEL_UID.into(), "another".into());
    let mut fresh = World::new(json!({"shards": 1}));
    fresh.observed.children.volume_claims.insert("data-demo-meta-0".into(), Arc::new(claim));
    assert_eq!(fresh.step_of(Cluster::Meta), Some(Step::Hold));
    assert_eq!(fresh.reasons(), ["RetainedVolume"]);
    // Its own: a StatefulSet that somebody deleted is made again on its volumes.
    world.observed.children.stateful_sets.remove("demo-meta");
    world.observed.children.stateful_sets.remove("demo-shard-0");
    assert_eq!(world.reasons(), [] as [&str; 0]);
    assert_eq!(world.step_of(Cluster::Meta), Some(Step::Apply));
}

#[test]
fn without_an_answer_nothing_is_decided_that_needs_one() {
    let mut world = World::serving(3);
    world.scale(4);
    world.silent();
    assert_eq!(world.step_of(Shard(3)), Some(Step::Hold), "it may have left before");
    assert_eq!(world.step_of(Shard(2)), Some(Step::Apply));
    assert_eq!(world.reasons(), ["WaitingForTopology"]);
    world.scale(1);
    assert_eq!(world.validated().shards, 3);
    assert_eq!(world.routed(), [(0, 0), (1, 0), (2, 0)]);
    // A StatefulSet that is gone is not made anew under a number that may be wrong, but stays in the routing.
    world.scale(3);
    world.observed.children.stateful_sets.remove("demo-shard-1");
    assert_eq!(world.step_of(Shard(1)), Some(Step::Hold));
    assert_eq!(world.routed(), [(0, 0), (1, 0), (2, 0)]);
    // That there is no shard manager any more says no more than its silence.
    world.observed.topology = TopologyAnswer::NotAsked;
    assert_eq!(world.step_of(Shard(1)), Some(Step::Hold));
    assert_eq!(world.step().deletions, []);
}

#[test]
fn a_shard_that_never_joined_goes_once_the_manager_has_read_the_spec() {
    let mut world = World::serving(2);
    world.scale(4);
    world.step();
    world.scale(2);
    // It still acts on the older spec, and may be joining shard-3 right now.
    assert_eq!(world.step_of(Shard(3)), Some(Step::Hold));
    assert_eq!(world.reasons(), ["WaitingForTopology", "WaitingForTopology"]);
    world.known(&[(0, 0, Serving), (1, 0, Serving), (2, 0, Serving)], &[]);
    assert_eq!(world.step_of(Shard(2)), Some(Step::Apply), "this one did join");
    assert!(is_delete(world.step_of(Shard(3))));
    world.step();
    assert_eq!(world.step_of(Shard(3)), None);
}

#[test]
fn before_the_start_fewer_shards_are_fewer_statefulsets() {
    let mut world = World::new(json!({"shards": 4}));
    world.step();
    world.scale(2);
    assert!(is_delete(world.step_of(Shard(3))), "there is no shard manager that could have started it");
    world.silent();
    assert_eq!(world.step_of(Shard(3)), Some(Step::Hold));
    assert_eq!(world.validated().shards, 2);
    assert_eq!(world.routed(), [(0, 0), (1, 0)], "the topology starts with what is wanted");
    world.known(&[], &[]);
    assert!(is_delete(world.step_of(Shard(3))));
}

#[test]
fn a_draining_shard_whose_statefulset_is_gone_is_made_again() {
    let mut world = World::serving(2);
    world.scale(1);
    world.step();
    world.observed.children.stateful_sets.remove("demo-shard-1");
    world.known(&[(0, 0, Serving), (1, 0, Unreachable)], &[]);
    assert_eq!(world.step_of(Shard(1)), Some(Step::Apply));
    assert_eq!(world.routed(), [(0, 0), (1, 0)]);
}

#[test]
fn a_scale_in_that_does_not_fit_is_refused_with_numbers() {
    let mut world = World::serving(3);
    world.scale(1);
    world.known(&[(0, 0, Serving), (1, 0, Serving), (2, 0, Serving)], &[]);
    let quota = i64::try_from(world.observed.resource.spec.etcd_quota_bytes()).unwrap();
    world.report().status.bytes = quota * 4 / 5 + 1;
    let validated = world.validated();
    assert_eq!(validated.shards, 3);
    let problem = &validated.problems[0];
    assert_eq!((problem.reason, problem.field.as_deref()), ("ScaleInRefused", Some("spec.shards")));
    for part in [(quota * 4 / 5).to_string(), (quota * 4 / 5 + 1).to_string(), "spec.shards: 2".into()] {
        assert!(problem.message.contains(&part), "{part}: {}", problem.message);
    }
    assert!(validated.clusters.values().all(|plan| plan.step == Step::Apply && plan.routed));
    world.report().status.bytes = quota * 4 / 5;
    assert_eq!(world.validated().shards, 1);
    // Begun is begun: data that grows in the middle does not turn the drain around.
    world.step();
    world.report().status.bytes = quota * 2;
    assert_eq!(world.validated().shards, 1);
    assert_eq!(world.reasons(), [] as [&str; 0]);
}

#[test]
fn a_scale_in_waits_for_sizes_that_are_not_known() {
    let mut world = World::serving(2);
    world.scale(1);
    world.known(&[(0, 0, Serving), (1, 0, Serving)], &[]);
    world.report().status.range_map.ranges[0].bytes = None;
    assert_eq!(world.reasons(), ["WaitingForSizes"]);
    assert_eq!(world.validated().shards, 2);
}

#[test]
fn a_missing_storage_class_stops_what_is_not_made_yet() {
    let mut world = World::serving(1);
    world.edit(|resource| {
        resource.spec.shards = 2;
        let etcd = resource.spec.etcd.get_or_insert_default();
        etcd.storage = Some(StorageSpec { class_name: Some("fast".into()), ..StorageSpec::default() });
    });
    world.observed.storage_classes_missing = vec!["fast".into()];
    assert_eq!(world.step_of(Shard(0)), Some(Step::Apply));
    assert_eq!(world.step_of(Shard(1)), Some(Step::Hold));
    assert_eq!(world.reasons(), ["StorageClassChanged", "StorageClassMissing"]);
    let problems = world.validated().problems;
    assert!(problems.iter().all(|p| p.field.as_deref() == Some("spec.etcd.storage.className")));
}

#[test]
fn volumes_grow_and_do_not_shrink() {
    let mut world = World::serving(1);
    let size = |world: &mut World, size: &str| {
        let storage = StorageSpec { size: Some(Quantity(size.into())), ..StorageSpec::default() };
        world.edit(|resource| resource.spec.etcd.get_or_insert_default().storage = Some(storage));
    };
    size(&mut world, "16Gi");
    let desired = world.step();
    assert_eq!(desired.claim_sizes.len(), 3);
    assert_eq!(desired.claim_sizes["data-demo-shard-0-0"], "16Gi");
    assert_eq!(world.step().claim_sizes.len(), 0);
    size(&mut world, "8Gi");
    assert_eq!(world.reasons(), ["StorageShrunk"]);
    assert_eq!(world.step().claim_sizes.len(), 0);
}

#[test]
fn members_cannot_be_changed() {
    let mut world = World::serving(1);
    world.edit(|resource| resource.spec.etcd.get_or_insert_default().members = Some(5));
    assert_eq!(world.reasons(), ["MembersChanged"]);
    assert_eq!(world.validated().clusters[&Shard(0)].members, 3);
}

#[test]
fn a_taken_name_stops_what_needs_it() {
    let mut world = World::serving(1);
    world.scale(2);
    world.observed.foreign = vec!["Service demo-shard-1".into(), "Service unrelated".into()];
    assert_eq!(world.step_of(Shard(1)), Some(Step::Hold));
    assert_eq!(world.step_of(Shard(0)), Some(Step::Apply));
    assert_eq!(world.reasons(), ["NameTaken"]);
    world.observed.foreign = vec!["ConfigMap demo-routing".into()];
    let problems = world.stopped_by();
    assert_eq!((problems[0].reason, problems[0].temporary), ("NameTaken", false));
    assert!(problems[0].message.contains("ConfigMap demo-routing"), "{}", problems[0].message);
}

#[test]
fn objects_of_an_earlier_resource_are_waited_for() {
    let mut world = World::new(json!({"shards": 1}));
    let owner = OwnerReference {
        uid: "another".into(),
        kind: "ShardedEtcd".into(),
        controller: Some(true),
        ..OwnerReference::default()
    };
    let mut service = Service::default();
    service.metadata.owner_references = Some(vec![owner]);
    world.observed.children.services.insert("demo".into(), Arc::new(service.clone()));
    let problems = world.stopped_by();
    assert_eq!((problems[0].reason, problems[0].temporary), ("EarlierObjectGoing", true));
    // With our labels, but nobody's.
    service.metadata.owner_references = None;
    world.observed.children.services.insert("demo".into(), Arc::new(service));
    assert!(!world.stopped_by()[0].temporary);
}

#[test]
fn a_statefulset_that_is_being_deleted_is_left_alone_and_stays_routed() {
    let mut world = World::serving(2);
    let set = world.observed.children.stateful_sets.get_mut("demo-shard-1").unwrap();
    Arc::make_mut(set).metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
    assert_eq!(world.step_of(Shard(1)), Some(Step::Hold));
    assert_eq!(world.routed(), [(0, 0), (1, 0)]);
    assert_eq!(world.step().deletions, []);
}

#[test]
fn the_status_remembers_that_the_topology_was_started() {
    let mut world = World::new(json!({"shards": 1}));
    world.silent();
    assert_eq!(world.step_of(Shard(0)), Some(Step::Apply));
    let mut known = World::serving(1);
    let status = ShardedEtcdStatus {
        topology: known.report().status.topology.clone(),
        ..ShardedEtcdStatus::default()
    };
    world.edit(|resource| resource.status = Some(status));
    assert_eq!(world.step_of(Shard(0)), Some(Step::Hold));
}
