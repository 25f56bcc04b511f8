//! The operator is stopped before and after every call that changes something, and its watches go wrong: each run ends
//! as the undisturbed one does, and at no time is anything lost.
//!
//! All calls take minutes a story, so that `make test` disturbs a few of each; `make test-stops` disturbs every one.

use serde_json::Value;

use crate::{
    scenario::{self, Disturbance, End, NONE, Scenario, assert_same, run},
    support::{
        kinds,
        server::{Fault, Watching, When},
    },
};

/// Watches that go wrong, a few seeds of each.
const SEEDS: u64 = 1;
/// Calls of a story that are disturbed in the short form.
const CALLS: usize = 5;

async fn calm(scenario: &Scenario) -> (crate::support::world::Snapshot, End) {
    let base = scenario::base(scenario).await;
    let calm = run(scenario, &base, NONE).await;
    assert!(calm.calls > 0, "{}: nothing was written", scenario.name);
    (base, calm)
}

/// Calls of a story that are disturbed, spread over it; all of them in the long form (`OPERATOR_STOPS=all`).
fn disturbed_calls(calls: usize) -> impl Iterator<Item = usize> {
    let all = std::env::var("OPERATOR_STOPS").is_ok_and(|form| form == "all");
    let stride = if all { 1 } else { calls.div_ceil(CALLS).max(1) };
    (0..calls).step_by(stride)
}

/// Stops before and after calls, faults, and every kind of bad watch.
async fn disturbed(scenario: &Scenario) -> End {
    let (base, calm) = calm(scenario).await;
    for n in disturbed_calls(calm.calls) {
        for when in [When::Before, When::After] {
            let disturbance = Disturbance { watching: Watching::Fresh, fault: Some((n, when, Fault::Stop)) };
            assert_same(scenario, disturbance, &calm, &run(scenario, &base, disturbance).await);
        }
        if n % 3 != 0 {
            continue;
        }
        // Which failure goes with the number of the call, so that each has its turn.
        let fault = [Fault::Conflict, Fault::Internal, Fault::Timeout][n / 3 % 3];
        let when = [When::Before, When::After][n / 9 % 2];
        let disturbance = Disturbance { watching: Watching::Fresh, fault: Some((n, when, fault)) };
        assert_same(scenario, disturbance, &calm, &run(scenario, &base, disturbance).await);
    }
    for seed in 1..=SEEDS {
        for watching in [Watching::Late(seed), Watching::Gappy(seed), Watching::Twice(seed)] {
            let disturbance = Disturbance { watching, fault: None };
            assert_same(scenario, disturbance, &calm, &run(scenario, &base, disturbance).await);
        }
    }
    // And a stop somewhere on top of that.
    for (watching, n) in [(Watching::Late(11), calm.calls / 2), (Watching::Gappy(11), calm.calls / 3)] {
        let disturbance = Disturbance { watching, fault: Some((n, When::After, Fault::Stop)) };
        assert_same(scenario, disturbance, &calm, &run(scenario, &base, disturbance).await);
    }
    calm
}

#[tokio::test(start_paused = true)]
async fn create() {
    disturbed(&scenario::CREATE).await;
}

#[tokio::test(start_paused = true)]
async fn scale_out() {
    let end = disturbed(&scenario::SCALE_OUT).await;
    assert_eq!(end.world.list(&kinds::STATEFUL_SETS).len(), 6);
}

#[tokio::test(start_paused = true)]
async fn scale_in() {
    let end = disturbed(&scenario::SCALE_IN).await;
    assert_eq!(end.world.list(&kinds::STATEFUL_SETS).len(), 3);
    assert_eq!(end.world.list(&kinds::CLAIMS).len(), 3, "nothing is left of a shard that went");
}

#[tokio::test(start_paused = true)]
async fn pins() {
    disturbed(&scenario::PINS).await;
}

#[tokio::test(start_paused = true)]
async fn rolling_restart() {
    let end = disturbed(&scenario::RESTART).await;
    for set in end.world.list(&kinds::STATEFUL_SETS) {
        assert_eq!(set["status"]["updatedReplicas"], set["spec"]["replicas"], "all members are new");
    }
}

#[tokio::test(start_paused = true)]
async fn delete_and_create_again() {
    disturbed(&scenario::RECREATE).await;
}

#[tokio::test(start_paused = true)]
async fn scale_in_taken_back() {
    let end = disturbed(&scenario::CANCEL).await;
    assert_eq!(end.world.list(&kinds::STATEFUL_SETS).len(), 5);
}

#[tokio::test(start_paused = true)]
async fn retained_volume() {
    let end = disturbed(&scenario::RETAINED).await;
    let volume = |claim: &Value| claim["metadata"]["labels"]["shardedetcd.io/cluster"] == "shard-2";
    assert!(end.world.list(&kinds::CLAIMS).iter().any(|claim| volume(claim)), "it is still there");
    let resource = end.world.get(&kinds::SHARDED_ETCDS, "demo").expect("it is there");
    assert!(resource["status"].to_string().contains("RetainedVolume"), "{:#}", resource["status"]);
}

#[tokio::test(start_paused = true)]
async fn larger_volumes() {
    let end = disturbed(&scenario::GROWTH).await;
    for claim in end.world.list(&kinds::CLAIMS) {
        if claim["metadata"]["labels"]["app.kubernetes.io/component"] == "shard" {
            assert_eq!(claim["status"]["capacity"]["storage"], "2Gi");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_shard_leaves_and_comes_again() {
    let end = disturbed(&scenario::AGAIN).await;
    let set = end.world.get(&kinds::STATEFUL_SETS, "demo-shard-2").expect("it is there");
    assert_eq!(set["metadata"]["labels"]["shardedetcd.io/incarnation"], "1");
}
