//! What only the operator can see: it says so, touches nothing that is not its own, and goes on when it is over.

use serde_json::{Value, json};

use crate::{
    scenario::small,
    support::{
        controllers::Stuck,
        kinds,
        normal::differences,
        server::{Call, Fault, Watching},
        world::{NAMESPACE, World},
    },
};

/// What is wrong, said in any condition or event of a resource.
fn told(world: &World, name: &str) -> String {
    let resource = world.get(&kinds::SHARDED_ETCDS, name).expect("it is there");
    resource["status"]["conditions"].to_string()
}

async fn ready(spec: Value) -> (World, crate::support::world::Running) {
    let mut world = World::default();
    world.apply("demo", spec);
    let operator = world.start(Watching::Fresh);
    world.until("demo is ready", |w| w.is_ready("demo")).await;
    world.settle(&operator).await;
    (world, operator)
}

/// A spec that the API server lets through and that cannot work, and a word that the conditions say then.
fn bad_specs() -> Vec<(&'static str, Value, &'static str)> {
    vec![
        ("members", json!({"etcd": {"members": 3}}), "MembersChanged"),
        ("storage class", json!({"etcd": {"storage": {"className": "nowhere"}}}), "StorageClass"),
        ("smaller storage", json!({"etcd": {"storage": {"size": "512Mi"}}}), "stor"),
        ("no shards", json!({"shards": 0}), "shards"),
        ("pin", json!({"keyspace": {"pins": [{"prefix": "/a/", "shard": 7}]}}), "pins"),
        ("flag", json!({"etcd": {"extraArgs": {"data-dir": "/tmp"}}}), "data-dir"),
        ("quota", json!({"etcd": {"quota": "60Gi"}}), "quota"),
        ("retention", json!({"compaction": {"retention": "0s"}}), "retention"),
        ("release", json!({"version": "latest"}), "version"),
        ("resources", json!({"etcd": {"resources": {"requests": {"cpu": "many"}}}}), "resources"),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_bad_spec_is_told_of_and_taking_it_back_is_enough() {
    let (world, operator) = ready(small(2)).await;
    operator.end().await;
    let base = world.snapshot();
    let good = world.normalised();
    for (what, patch, word) in bad_specs() {
        let mut world = World::from(base.clone());
        let operator = world.start(Watching::Fresh);
        world.edit("demo", &patch);
        world.settle(&operator).await;
        let said = told(&world, "demo");
        assert!(said.contains(word), "{what}: no {word:?} in {said}");
        let stalled = world.condition("demo", "Stalled").map(|(status, _)| status);
        assert_eq!(stalled.as_deref(), Some("True"), "{what}: {said}");
        let sets = world.list(&kinds::STATEFUL_SETS);
        assert!(
            sets.iter().all(|s| s["status"]["readyReplicas"] == s["spec"]["replicas"]),
            "{what}: it goes on"
        );
        world.apply("demo", small(2));
        world.settle(&operator).await;
        world.assert_sound(what);
        assert!(world.is_ready("demo"), "{what}, taken back: {}", world.story());
        let again = world.normalised();
        assert_eq!(good, again, "{what}, taken back: {:#?}", differences(&good, &again));
        operator.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_resource_that_is_bad_from_the_start_is_made_once_it_is_mended() {
    for (what, patch, word) in bad_specs() {
        if ["members", "smaller storage"].contains(&what) {
            continue;
        }
        let mut world = World::default();
        world.apply("demo", small(1));
        world.edit("demo", &patch);
        let operator = world.start(Watching::Fresh);
        world.settle(&operator).await;
        let said = told(&world, "demo");
        assert!(said.contains(word), "{what}: no {word:?} in {said}");
        assert!(!world.is_ready("demo"), "{what}");
        world.apply("demo", small(1));
        world.until(what, |w| w.is_ready("demo")).await;
        world.assert_sound(what);
        operator.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn pods_that_do_not_come_up_are_told_of() {
    let cases = [
        (Stuck::Unschedulable, "Insufficient memory"),
        (Stuck::ImagePullBackOff, "has no image"),
        (Stuck::CrashLoop, "again and again"),
    ];
    for (stuck, word) in cases {
        for pod in ["demo-shard-1-", "demo-meta-", "demo-proxy-", "demo-shard-manager-"] {
            let mut world = World::default();
            world.apply("demo", small(2));
            world.machines.stuck.push((pod.to_owned(), stuck));
            let operator = world.start(Watching::Fresh);
            for _ in 0..120 {
                world.tick().await;
            }
            let said = told(&world, "demo");
            assert!(said.contains(word), "{pod} {stuck:?}: no {word:?} in {said}");
            assert!(!world.is_ready("demo"), "{pod} {stuck:?}");
            world.machines.stuck.clear();
            world.server.with(|store| {
                drop(store.merge_patch(
                    &kinds::SHARDED_ETCDS,
                    NAMESPACE,
                    "demo",
                    &json!({"metadata": {"labels": {"nudge": "1"}}}),
                    &crate::support::store::Write::by("kubectl"),
                ))
            });
            world.until(&format!("{pod} {stuck:?} is over"), |w| w.is_ready("demo")).await;
            operator.kill().await;
        }
    }
}

/// The objects that a resource needs belong to somebody else.
#[tokio::test(start_paused = true)]
async fn what_belongs_to_others_is_left_alone() {
    let ports = json!([{"port": 80}]);
    let map = json!({"metadata": {"name": "demo-routing"}, "data": {"mine": "yes"}});
    let endpoint =
        json!({"metadata": {"name": "demo"}, "spec": {"selector": {"app": "mine"}, "ports": ports}});
    let headless =
        json!({"metadata": {"name": "demo-shard-1"}, "spec": {"selector": {"app": "mine"}, "ports": ports}});
    let account = json!({"metadata": {"name": "demo-proxy"}});
    let set = json!({
        "metadata": {"name": "demo-shard-0"},
        "spec": {
            "serviceName": "x", "selector": {"matchLabels": {"app": "mine"}},
            "template": {
                "metadata": {"labels": {"app": "mine"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]},
            },
        },
    });
    let labelled = |object: &Value| {
        let mut object = object.clone();
        object["metadata"]["labels"] = json!({
            "app.kubernetes.io/name": "sharded-etcd", "app.kubernetes.io/instance": "demo",
            "app.kubernetes.io/managed-by": "sharded-etcd-operator",
        });
        object
    };
    let cases = [
        (&kinds::CONFIG_MAPS, map),
        (&kinds::SERVICES, endpoint),
        (&kinds::SERVICES, headless),
        (&kinds::SERVICE_ACCOUNTS, account),
        (&kinds::STATEFUL_SETS, set),
    ];
    for (kind, object) in cases {
        for object in [object.clone(), labelled(&object)] {
            let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
            let what = format!("{} {name} {:?}", kind.kind, object["metadata"]["labels"]);
            let mut world = World::default();
            world.create(kind, object);
            let (before, spec) = {
                let object = world.get(kind, &name).expect("just made");
                (object["metadata"].clone(), object["spec"].clone())
            };
            world.apply("demo", small(2));
            let operator = world.start(Watching::Fresh);
            world.settle(&operator).await;
            let after = world.get(kind, &name).unwrap_or_else(|| panic!("{what} is gone"));
            let untouched = |m: &Value| (m["labels"].clone(), m["ownerReferences"].clone(), m["uid"].clone());
            assert_eq!(untouched(&before), untouched(&after["metadata"]), "{what} was taken over");
            assert_eq!(spec, after["spec"], "{what} was changed");
            let said = told(&world, "demo");
            assert!(said.contains(&name) && said.contains("NameTaken"), "{what}: {said}");
            world.delete(kind, &name);
            world.until(&format!("{what} is gone, so demo"), |w| w.is_ready("demo")).await;
            world.assert_sound(&what);
            operator.kill().await;
        }
    }
}

/// `a-shard-0` needs the Service `a-shard-0`, which is a shard of `a`.
#[tokio::test(start_paused = true)]
async fn two_resources_whose_names_meet() {
    for (first, second) in [("a", "a-shard-0"), ("a-shard-0", "a")] {
        let mut world = World::default();
        let operator = world.start(Watching::Fresh);
        world.apply(first, small(2));
        world.until("the first is ready", |w| w.is_ready(first)).await;
        world.settle(&operator).await;
        let owners = |w: &World| -> Vec<(String, String)> {
            let sets = w.list(&kinds::STATEFUL_SETS);
            let services = w.list(&kinds::SERVICES);
            let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
            sets.iter()
                .chain(&services)
                .filter(|o| o["metadata"]["ownerReferences"][0]["name"] == first)
                .map(|o| (text(&o["metadata"]["name"]), o["spec"].to_string()))
                .collect()
        };
        let before = owners(&world);
        world.apply(second, small(2));
        world.settle(&operator).await;
        assert_eq!(before, owners(&world), "{second} changed what belongs to {first}");
        assert!(world.is_ready(first), "{first} is not ready any more: {}", world.story());
        assert!(!world.is_ready(second), "{second} cannot be ready");
        assert!(told(&world, second).contains("NameTaken"), "{}", told(&world, second));
        world.delete(&kinds::SHARDED_ETCDS, first);
        world.until("the second is ready", |w| w.is_ready(second)).await;
        world.settle(&operator).await;
        world.assert_sound("after the first was deleted");
        operator.kill().await;
    }
}

#[tokio::test(start_paused = true)]
async fn resources_do_not_touch_each_other() {
    let mut world = World::default();
    let operator = world.start(Watching::Fresh);
    world.apply("one", small(2));
    world.apply("two", small(2));
    world.apply_in("other", "one", small(2));
    world
        .until("all are ready", |w| w.is_ready("one") && w.is_ready("two") && w.is_ready_in("other", "one"))
        .await;
    world.settle(&operator).await;
    let others = |w: &World| {
        let store = w.server.store.lock();
        let mut all: Vec<(String, String)> = Vec::new();
        for (key, object) in store.all() {
            let instance = &object["metadata"]["labels"]["app.kubernetes.io/instance"];
            if key.namespace == "other" || instance == "two" {
                all.push((key.name.clone(), object["metadata"]["resourceVersion"].to_string()));
            }
        }
        all
    };
    let before = others(&world);
    world.edit("one", &json!({"shards": 1}));
    world.settle(&operator).await;
    world.delete(&kinds::SHARDED_ETCDS, "one");
    world.settle(&operator).await;
    assert_eq!(before, others(&world));
    let left = world.server.store.lock().in_namespace(NAMESPACE);
    let left: Vec<_> = left
        .into_iter()
        .filter(|(k, o)| {
            k.kind().kind != "Event" && o["metadata"]["labels"]["app.kubernetes.io/instance"] == "one"
        })
        .map(|(key, _)| key)
        .collect();
    assert!(left.is_empty(), "left of a deleted resource: {left:?}");
    world.assert_sound("one deleted");
    operator.end().await;
}

/// The API server does not answer, or refuses, whatever is about one of two resources.
#[tokio::test(start_paused = true)]
async fn a_resource_whose_calls_fail_holds_up_no_other() {
    for fault in [Fault::Internal, Fault::Timeout, Fault::Stop] {
        let mut world = World::default();
        world.apply("bad", small(1));
        world.apply("demo", small(1));
        let operator = world.start(Watching::Fresh);
        operator
            .link
            .block(move |call: &Call| (call.mutates() && call.name.starts_with("bad")).then_some(fault));
        let mut seconds = 0;
        while !world.is_ready("demo") {
            world.tick().await;
            seconds += 1;
            assert!(seconds < 90, "{fault:?}: demo is held up: {}", world.story());
        }
        let tries = operator.link.calls().iter().filter(|c| c.mutates() && c.name.starts_with("bad")).count();
        assert!(tries < 200, "{fault:?}: {tries} tries in {seconds} s");
        operator.kill().await;
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_leader_writes() {
    let mut world = World::default();
    world.apply("demo", small(2));
    let first = world.start_elected("first");
    for _ in 0..5 {
        world.tick().await;
    }
    let second = world.start_elected("second");
    world.until("demo is ready", |w| w.is_ready("demo")).await;
    world.settle(&first).await;
    assert_eq!(second.link.counted(), 0, "the second one wrote");
    // The leader cannot reach its lease any more: it stops by itself before the other begins.
    first.link.block(|call: &Call| (*call.kind == kinds::LEASES).then_some(Fault::Internal));
    world.edit("demo", &json!({"shards": 3}));
    world.until("the second one acts", |_| second.link.counted() > 0).await;
    let begun = second.link.calls().iter().find(|c| c.counts()).expect("just seen").at;
    let late: Vec<String> =
        first.link.calls().iter().filter(|c| c.counts() && c.at >= begun).map(ToString::to_string).collect();
    assert!(late.is_empty(), "written by the first after the second began: {late:#?}");
    assert!(first.has_ended(), "an operator without its lease ends");
    let count = first.link.counted();
    world.until("demo is ready", |w| w.is_ready("demo")).await;
    world.settle(&second).await;
    assert_eq!(first.link.counted(), count);
    world.assert_sound("two operators");
    second.end().await;
}

/// A leader that ends in order hands over at once.
#[tokio::test(start_paused = true)]
async fn a_leader_that_ends_hands_over() {
    let mut world = World::default();
    world.apply("demo", small(1));
    let first = world.start_elected("first");
    world.until("demo is ready", |w| w.is_ready("demo")).await;
    let second = world.start_elected("second");
    for _ in 0..5 {
        world.tick().await;
    }
    first.end().await;
    world.edit("demo", &json!({"shards": 2}));
    let mut seconds = 0;
    while second.link.counted() == 0 {
        world.tick().await;
        seconds += 1;
        assert!(seconds <= 8, "the lease was not given back");
    }
    world.until("demo is ready", |w| w.is_ready("demo")).await;
    second.end().await;
}
