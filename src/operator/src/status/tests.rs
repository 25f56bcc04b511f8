#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Value, json};
use sharded_etcd_crd::status::{
    Condition, ConditionStatus, MoveStatus,
    ShardPhase::{Draining, Joining, Serving, Unreachable},
    ShardedEtcdStatus,
};

use super::{AWAITING_APPROVAL, BALANCED, EventDraft, READY, RECONCILING, STALLED, events, status};
use crate::{
    model::{Applied, ApplyFailure},
    validate::{fixture::World, validate},
};

fn look_at(world: &World, applied: &Applied, counts_due: bool, seconds: i64) -> ShardedEtcdStatus {
    let validated = validate(&world.observed, &world.settings);
    let validated = validated.as_ref().map_err(|problems| &problems[..]);
    status(&world.observed, validated, applied, counts_due, Timestamp::from_second(seconds).unwrap())
}

fn look(world: &World) -> ShardedEtcdStatus {
    look_at(world, &Applied::default(), false, 1_000)
}

fn condition<'a>(status: &'a ShardedEtcdStatus, type_: &str) -> &'a Condition {
    status.conditions.iter().find(|condition| condition.type_ == type_).unwrap()
}

fn is(status: &ShardedEtcdStatus, type_: &str, holds: ConditionStatus, reason: &str) {
    let condition = condition(status, type_);
    assert_eq!(
        (condition.status, condition.reason.as_str()),
        (holds, reason),
        "{type_}: {}",
        condition.message
    );
}

/// Stores the status, as the API server does.
fn store(world: &mut World, status: ShardedEtcdStatus) {
    Arc::make_mut(&mut world.observed.resource).status = Some(status);
}

fn reasons(events: &[EventDraft]) -> Vec<&str> {
    events.iter().map(|event| event.reason.as_str()).collect()
}

fn pod_status(world: &mut World, pod: &str, status: Value) {
    let status: PodStatus = serde_json::from_value(status).unwrap();
    world.pod(pod, |pod: &mut Pod| pod.status = Some(status));
}

#[test]
fn a_topology_that_serves_is_ready() {
    let world = World::serving(2);
    let status = look(&world);
    is(&status, READY, ConditionStatus::True, "Serving");
    is(&status, RECONCILING, ConditionStatus::False, "Done");
    is(&status, STALLED, ConditionStatus::False, "Unhindered");
    is(&status, BALANCED, ConditionStatus::Unknown, "NotKnown");
    assert_eq!(status.endpoint.as_deref(), Some("http://demo.ns.svc:2379"));
    assert_eq!((status.observed_generation, status.shards, status.keys), (Some(1), 2, 600));
    let shard = &status.topology[0];
    assert_eq!((shard.members, shard.ready, shard.phase, shard.incarnation), (3, 3, Serving, Some(0)));
    assert_eq!(condition(&status, READY).last_transition_time.as_deref(), Some("1970-01-01T00:16:40Z"));
}

#[test]
fn a_steady_resource_writes_nothing() {
    let mut world = World::serving(2);
    let status = look(&world);
    store(&mut world, status.clone());
    assert_eq!(look_at(&world, &Applied::default(), true, 9_999), status);
    assert_eq!(events(&status, &status), []);
}

#[test]
fn a_time_of_transition_stays_until_the_status_changes() {
    let mut world = World::serving(2);
    let status = look(&world);
    store(&mut world, status);
    world.not_ready("demo-shard-0-1");
    let next = look_at(&world, &Applied::default(), false, 2_000);
    is(&next, READY, ConditionStatus::False, "MembersNotReady");
    is(&next, RECONCILING, ConditionStatus::True, "MembersNotReady");
    assert_eq!(condition(&next, READY).last_transition_time.as_deref(), Some("1970-01-01T00:33:20Z"));
    assert_eq!(condition(&next, STALLED).last_transition_time.as_deref(), Some("1970-01-01T00:16:40Z"));
    assert_eq!(next.topology[0].ready, 2);
}

#[test]
fn the_start_is_told_step_by_step() {
    let mut world = World::new(json!({"shards": 1}));
    let none = ShardedEtcdStatus::default();
    let made = look(&world);
    is(&made, READY, ConditionStatus::False, "MembersNotReady");
    assert_eq!(made.topology[0].phase, Joining);
    assert_eq!(reasons(&events(&none, &made)), ["ShardAdded"]);
    store(&mut world, made.clone());
    world.step();
    world.silent();
    is(&look(&world), READY, ConditionStatus::False, "WaitingForTopology");
    world.known(&[], &[]);
    is(&look(&world), READY, ConditionStatus::False, "ShardsJoining");
    world.known(&[(0, 0, Serving)], &[]);
    let serving = look(&world);
    is(&serving, READY, ConditionStatus::True, "Serving");
    assert_eq!(reasons(&events(&made, &serving)), ["Ready", "ShardJoined"]);
}

/// Adds what the shard manager says.
fn says(world: &mut World, type_: &str, status: ConditionStatus, reason: &str, message: &str) {
    world.report().status.conditions.push(Condition {
        type_: type_.to_owned(),
        status,
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: None,
        observed_generation: None,
    });
}

#[test]
fn what_waits_for_a_person_is_no_progress() {
    let mut world = World::serving(2);
    let before = look(&world);
    world.scale(1);
    let drains = |world: &mut World| world.known(&[(0, 0, Serving), (1, 0, Draining)], &[]);
    drains(&mut world);
    world.step();
    is(&look(&world), RECONCILING, ConditionStatus::True, "ShardsDraining");
    let how = "plan 1a2b3c4d of 3 steps waits for an approval: sharded-etcd approve 1a2b3c4d";
    says(&mut world, RECONCILING, ConditionStatus::False, "AwaitingApproval", how);
    says(&mut world, AWAITING_APPROVAL, ConditionStatus::True, "PlanWaits", how);
    let waits = look(&world);
    is(&waits, READY, ConditionStatus::True, "Serving");
    is(&waits, RECONCILING, ConditionStatus::False, "AwaitingApproval");
    is(&waits, STALLED, ConditionStatus::False, "Unhindered");
    is(&waits, AWAITING_APPROVAL, ConditionStatus::True, "PlanWaits");
    assert_eq!(condition(&waits, AWAITING_APPROVAL).message, how);
    assert_eq!(reasons(&events(&before, &waits)), ["PlanWaits", "ShardDraining"]);
    assert_eq!(events(&waits, &waits), []);
    // It is approved, and gets on.
    drains(&mut world);
    says(&mut world, RECONCILING, ConditionStatus::True, "Rebalancing", "1 moves under way");
    says(&mut world, AWAITING_APPROVAL, ConditionStatus::False, "NothingWaits", "no plan waits");
    let goes_on = look(&world);
    is(&goes_on, RECONCILING, ConditionStatus::True, "ShardsDraining");
    assert!(!reasons(&events(&waits, &goes_on)).contains(&"PlanWaits"));
    drains(&mut world);
    says(
        &mut world,
        RECONCILING,
        ConditionStatus::False,
        "Paused",
        "3 steps planned, but rebalance.mode is Paused",
    );
    is(&look(&world), RECONCILING, ConditionStatus::False, "Paused");
    // A member that is away comes back by itself, whatever waits.
    world.not_ready("demo-shard-0-1");
    is(&look(&world), RECONCILING, ConditionStatus::True, "MembersNotReady");
}

#[test]
fn scaling_is_told() {
    let mut world = World::serving(2);
    let before = look(&world);
    world.scale(3);
    world.step();
    let more = look(&world);
    is(&more, READY, ConditionStatus::False, "ShardsJoining");
    is(&more, RECONCILING, ConditionStatus::True, "ShardsJoining");
    assert_eq!(reasons(&events(&before, &more)), ["NotReady", "ShardAdded"]);
    world.scale(1);
    world.known(&[(0, 0, Serving), (1, 0, Draining), (2, 0, Draining)], &[]);
    world.step();
    let fewer = look(&world);
    is(&fewer, READY, ConditionStatus::True, "Serving");
    is(&fewer, RECONCILING, ConditionStatus::True, "ShardsDraining");
    assert_eq!(reasons(&events(&before, &fewer)), ["ShardDraining", "ShardDraining"]);
    world.known(&[(0, 0, Serving), (1, 0, Draining)], &[(2, 0)]);
    let left = look(&world);
    is(&left, RECONCILING, ConditionStatus::True, "ShardsRemoved");
    assert_eq!((left.shards, reasons(&events(&fewer, &left))), (2, vec!["ShardLeft"]));
    world.known(&[(0, 0, Serving), (1, 0, Serving)], &[(2, 0)]);
    assert_eq!(reasons(&events(&left, &look(&world))), ["DrainCancelled"]);
}

#[test]
fn a_silent_manager_does_not_undo_what_is_known() {
    let mut world = World::serving(2);
    let status = look(&world);
    store(&mut world, status);
    world.silent();
    let next = look(&world);
    is(&next, READY, ConditionStatus::Unknown, "ShardManagerSilent");
    assert_eq!((next.topology[1].phase, next.keys), (Serving, 600));
}

#[test]
fn shards_that_do_not_answer_are_named() {
    let mut world = World::serving(2);
    let before = look(&world);
    world.known(&[(0, 0, Serving), (1, 0, Unreachable)], &[]);
    let status = look(&world);
    is(&status, READY, ConditionStatus::False, "ShardsUnavailable");
    assert!(condition(&status, READY).message.contains("shard-1"));
    assert_eq!(reasons(&events(&before, &status)), ["NotReady", "ShardUnreachable"]);
    assert_eq!(reasons(&events(&status, &before)), ["Ready", "ShardRecovered"]);
}

#[test]
fn problems_stall_and_are_told_once() {
    let mut world = World::serving(3);
    let before = look(&world);
    world.scale(1);
    world.known(&[(0, 0, Serving), (1, 0, Serving), (2, 0, Serving)], &[]);
    world.report().status.bytes = i64::MAX;
    let refused = look(&world);
    is(&refused, STALLED, ConditionStatus::True, "ScaleInRefused");
    is(&refused, READY, ConditionStatus::True, "Serving");
    let told = events(&before, &refused);
    assert_eq!((reasons(&told), told[0].warning), (vec!["ScaleInRefused"], true));
    assert_eq!(reasons(&events(&refused, &before)), ["Resolved"]);
    // What stops everything.
    world.edit(|resource| resource.spec.shards = 0);
    let bad = look(&world);
    is(&bad, STALLED, ConditionStatus::True, "InvalidSpec");
    is(&bad, READY, ConditionStatus::False, "InvalidSpec");
    assert!(condition(&bad, STALLED).message.starts_with("spec.shards: "));
    assert_eq!(bad.observed_generation, Some(3));
}

#[test]
fn what_the_api_server_refuses_is_said() {
    let world = World::serving(1);
    let failure = |temporary| ApplyFailure {
        object: "StatefulSet demo-meta".into(),
        reason: "Forbidden".into(),
        message: "exceeded quota".into(),
        temporary,
    };
    let applied = Applied { failures: vec![failure(false)] };
    is(&look_at(&world, &applied, false, 1), STALLED, ConditionStatus::True, "ApplyRefused");
    let applied = Applied { failures: vec![failure(true)] };
    let status = look_at(&world, &applied, false, 1);
    is(&status, STALLED, ConditionStatus::False, "Unhindered");
    is(&status, RECONCILING, ConditionStatus::True, "ApplyFailed");
}

#[test]
fn the_trouble_of_pods_is_put_into_words() {
    let cases = [
        (
            json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": "0/2 nodes are available: insufficient memory"}]}),
            "Unschedulable",
            "insufficient memory",
        ),
        (
            json!({"containerStatuses": [{"name": "etcd", "image": "nowhere/etcd:v1", "imageID": "", "ready": false,
                "restartCount": 0, "state": {"waiting": {"reason": "ImagePullBackOff", "message": "m"}}}]}),
            "ImagePullFailed",
            "nowhere/etcd:v1",
        ),
        (
            json!({"containerStatuses": [{"name": "etcd", "image": "i", "imageID": "", "ready": false,
                "restartCount": 3, "state": {"running": {}},
                "lastState": {"terminated": {"exitCode": 1, "message": "first\nunknown flag: --x\n"}}}]}),
            "CrashLooping",
            "unknown flag: --x",
        ),
        (
            json!({"containerStatuses": [{"name": "etcd", "image": "i", "imageID": "", "ready": false,
                "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]}),
            "OutOfMemory",
            "more memory",
        ),
        (
            json!({"initContainerStatuses": [{"name": "member-guard", "image": "i", "imageID": "", "ready": false,
                "restartCount": 1, "state": {"terminated": {"exitCode": 1, "message": "the folder is empty"}}}]}),
            "VolumeRefused",
            "the folder is empty",
        ),
        (
            json!({"containerStatuses": [{"name": "etcd", "image": "i", "imageID": "", "ready": false,
                "restartCount": 0, "state": {"waiting": {"reason": "CreateContainerConfigError", "message": "no key"}}}]}),
            "ContainerNotCreated",
            "no key",
        ),
        (json!({"phase": "Failed", "reason": "Evicted"}), "PodFailed", "Evicted"),
    ];
    for (pod, reason, words) in cases {
        let mut world = World::serving(1);
        let before = look(&world);
        pod_status(&mut world, "demo-shard-0-1", pod);
        let status = look(&world);
        is(&status, READY, ConditionStatus::False, reason);
        let message = &condition(&status, READY).message;
        assert!(message.contains(words) && message.contains("demo-shard-0-1"), "{message}");
        assert!(status.topology[0].message.as_ref().unwrap().contains(words));
        assert_eq!(reasons(&events(&before, &status)), ["NotReady"]);
    }
}

#[test]
fn pods_that_cannot_be_made_are_told_by_warnings() {
    let mut world = World::serving(1);
    world.observed.children.pods.remove("demo-shard-0-1");
    world.observed.warnings = vec!["StatefulSet demo-shard-0: exceeded quota: pods=3".into()];
    let status = look(&world);
    is(&status, READY, ConditionStatus::False, "PodsNotCreated");
    assert!(condition(&status, READY).message.contains("exceeded quota"));
}

#[test]
fn members_that_get_a_new_template_are_reconciling() {
    let mut world = World::serving(1);
    world.edit(|resource| resource.spec.image = Some("mirror/etcd".into()));
    world.known(&[(0, 0, Serving)], &[]);
    world.step();
    let status = look(&world);
    is(&status, READY, ConditionStatus::True, "Serving");
    is(&status, RECONCILING, ConditionStatus::True, "MembersRestarting");
}

#[test]
fn a_manager_that_has_not_read_the_spec_is_waited_for() {
    let mut world = World::serving(1);
    world.edit(|_| {});
    is(&look(&world), RECONCILING, ConditionStatus::True, "WaitingForTopology");
}

#[test]
fn counts_are_written_when_they_are_worth_it() {
    let mut world = World::serving(2);
    let status = look(&world);
    store(&mut world, status.clone());
    let report = world.report();
    report.status.keys += 20;
    report.status.revision += 1_000_000;
    report.status.topology[0].db_size += 1 << 20;
    assert_eq!(look(&world), status, "too little");
    assert_eq!(look_at(&world, &Applied::default(), true, 1).keys, 620);
    world.report().status.keys += 100;
    assert_eq!(look(&world).keys, 720, "more than 5 %");
    world.report().status.keys = 601;
    world.not_ready("demo-shard-0-0");
    assert_eq!(look(&world).keys, 601, "together with something else");
}

#[test]
fn digits_in_the_managers_words_are_counts() {
    let mut world = World::serving(1);
    world.report().status.topology[0].message = Some("3.5 MiB are left".into());
    let status = look(&world);
    store(&mut world, status.clone());
    world.report().status.topology[0].message = Some("12 MiB are left".into());
    assert_eq!(look(&world), status);
    world.report().status.topology[0].message = Some("waits for compaction".into());
    assert_ne!(look(&world), status);
}

#[test]
fn moves_are_told_and_bounded() {
    let mut world = World::serving(2);
    let before = look(&world);
    let moving = |n: usize| MoveStatus {
        range: format!("[a{n}, b)"),
        from: "shard-0".into(),
        to: "shard-1".into(),
        reason: "balance".into(),
        ..MoveStatus::default()
    };
    world.report().status.moves = vec![moving(0)];
    let one = look(&world);
    assert_eq!(reasons(&events(&before, &one)), ["MoveBegun"]);
    assert_eq!(reasons(&events(&one, &before)), ["MoveEnded"]);
    world.report().status.moves = (0..50).map(moving).collect();
    let many = events(&before, &look(&world));
    assert_eq!(many.len(), 21);
    assert!(many.last().unwrap().note.contains("30 more"));
    store(&mut world, one.clone());
    world.report().status.moves = vec![MoveStatus { progress: 9, ..moving(0) }];
    assert_eq!(look(&world), one);
    world.report().status.moves = vec![MoveStatus { progress: 10, ..moving(0) }];
    assert_ne!(look(&world), one);
}
