//! The scripted API server itself: it does what the real one is known to do.

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, WatchEvent, WatchParams},
    runtime::watcher,
};
use serde_json::{Value, json};

use crate::support::{
    kinds,
    server::{Fault, Link, Watching, When},
    world::{NAMESPACE, World},
};

fn api<K>(world: &World, watching: Watching) -> (Api<K>, Link)
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    let link = Link::new(world.server.clone(), watching);
    (Api::namespaced(link.client(), NAMESPACE), link)
}

fn map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "labels": {"a": "b"}}, "data": data})
}

fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        other => panic!("not an answer of the server: {other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn applying_the_same_again_changes_nothing_and_what_is_left_out_goes() {
    let world = World::default();
    let (maps, _) = api::<ConfigMap>(&world, Watching::Fresh);
    let params = PatchParams::apply("op").force();
    let first = maps.patch("m", &params, &Patch::Apply(map(json!({"x": "1", "y": "2"})))).await.unwrap();
    let again = maps.patch("m", &params, &Patch::Apply(map(json!({"x": "1", "y": "2"})))).await.unwrap();
    assert_eq!(first.resource_version(), again.resource_version());
    let other = PatchParams::apply("other");
    let conflict = maps.patch("m", &other, &Patch::Apply(map(json!({"x": "3"})))).await.unwrap_err();
    assert_eq!(code(&conflict), 409);
    let more = map(json!({"z": "3"}));
    maps.patch("m", &other, &Patch::Apply(more)).await.unwrap();
    let less = maps.patch("m", &params, &Patch::Apply(map(json!({"x": "1"})))).await.unwrap();
    let keys: Vec<String> = less.data.unwrap().into_keys().collect();
    assert_eq!(keys, ["x", "z"], "y is gone, and z belongs to the other");
}

#[tokio::test(start_paused = true)]
async fn defaults_do_not_make_an_apply_a_change() {
    let world = World::default();
    let (sets, _) = api::<StatefulSet>(&world, Watching::Fresh);
    let set = |members: i32, size: &str| {
        json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "s"},
            "spec": {
                "replicas": members, "serviceName": "s", "selector": {"matchLabels": {"a": "b"}},
                "template": {
                    "metadata": {"labels": {"a": "b"}},
                    "spec": {"containers": [{
                        "name": "c", "image": "i:1", "ports": [{"containerPort": 1, "name": "p"}],
                        "resources": {"limits": {"cpu": "1000m"}},
                    }]},
                },
                "volumeClaimTemplates": [{
                    "metadata": {"name": "data"},
                    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
                }],
            },
        })
    };
    let params = PatchParams::apply("op").force();
    let first = sets.patch("s", &params, &Patch::Apply(set(1, "1024Mi"))).await.unwrap();
    let container = &first.spec.template.spec.as_ref().unwrap().containers[0];
    assert_eq!(container.termination_message_path.as_deref(), Some("/dev/termination-log"));
    assert_eq!(container.resources.as_ref().unwrap().limits.as_ref().unwrap()["cpu"].0, "1");
    let again = sets.patch("s", &params, &Patch::Apply(set(1, "1024Mi"))).await.unwrap();
    assert_eq!(first.resource_version(), again.resource_version());
    let scaled = sets.patch("s", &params, &Patch::Apply(set(3, "1024Mi"))).await.unwrap();
    assert_eq!(scaled.metadata.generation, Some(2));
    let refused = sets.patch("s", &params, &Patch::Apply(set(3, "2Gi"))).await.unwrap_err();
    assert_eq!(code(&refused), 422, "claim templates cannot be changed");
    let mut unknown = set(3, "1Gi");
    unknown["spec"]["replicaz"] = json!(1);
    assert_eq!(code(&sets.patch("s", &params, &Patch::Apply(unknown)).await.unwrap_err()), 400);
}

#[tokio::test(start_paused = true)]
async fn writes_are_compared_and_deletes_have_preconditions() {
    let world = World::default();
    let (maps, link) = api::<ConfigMap>(&world, Watching::Fresh);
    let object: ConfigMap = serde_json::from_value(map(json!({"x": "1"}))).unwrap();
    let made = maps.create(&PostParams::default(), &object).await.unwrap();
    assert_eq!(code(&maps.create(&PostParams::default(), &object).await.unwrap_err()), 409);
    let mut newer = made.clone();
    newer.data.as_mut().unwrap().insert("y".into(), "2".into());
    maps.replace("m", &PostParams::default(), &newer).await.unwrap();
    assert_eq!(code(&maps.replace("m", &PostParams::default(), &newer).await.unwrap_err()), 409);
    let old = Preconditions { resource_version: made.resource_version(), uid: made.uid() };
    let params = DeleteParams { preconditions: Some(old), ..DeleteParams::default() };
    assert_eq!(code(&maps.delete("m", &params).await.unwrap_err()), 409);
    link.fault_at(link.counted(), When::After, Fault::Internal);
    assert_eq!(code(&maps.delete("m", &DeleteParams::default()).await.unwrap_err()), 500);
    assert_eq!(maps.get_opt("m").await.unwrap(), None, "it had its effect all the same");
}

#[tokio::test(start_paused = true)]
async fn a_set_makes_members_with_volumes_that_follow_its_policy() {
    let mut world = World::default();
    let (sets, _) = api::<StatefulSet>(&world, Watching::Fresh);
    let mut set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "s"},
        "spec": {
            "replicas": 3, "serviceName": "s", "selector": {"matchLabels": {"a": "b"}},
            "podManagementPolicy": "Parallel", "updateStrategy": {"type": "OnDelete"},
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete"},
            "template": {
                "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]},
            },
            "volumeClaimTemplates": [{
                "metadata": {"name": "data"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
            }],
        },
    });
    let params = PatchParams::apply("op").force();
    sets.patch("s", &params, &Patch::Apply(&set)).await.unwrap();
    let ready =
        |w: &World| w.get(&kinds::STATEFUL_SETS, "s").is_some_and(|s| s["status"]["readyReplicas"] == 3);
    world.until("three members", ready).await;
    let uids = |w: &World| -> Vec<Value> {
        w.list(&kinds::PODS).iter().map(|p| p["metadata"]["uid"].clone()).collect()
    };
    let before = uids(&world);
    set["spec"]["template"]["spec"]["containers"][0]["image"] = json!("i:2");
    sets.patch("s", &params, &Patch::Apply(&set)).await.unwrap();
    for _ in 0..10 {
        world.tick().await;
    }
    assert_eq!(uids(&world), before, "nothing is restarted by itself");
    world.delete(&kinds::PODS, "s-1");
    world
        .until("a newer member", |w| {
            ready(w) && w.get(&kinds::STATEFUL_SETS, "s").unwrap()["status"]["updatedReplicas"] == 1
        })
        .await;
    let orphan = DeleteParams {
        propagation_policy: Some(kube::api::PropagationPolicy::Orphan),
        ..DeleteParams::default()
    };
    sets.delete("s", &orphan).await.unwrap();
    world.until("the set is gone", |w| w.get(&kinds::STATEFUL_SETS, "s").is_none()).await;
    for _ in 0..5 {
        world.tick().await;
    }
    assert_eq!((world.list(&kinds::PODS).len(), world.list(&kinds::CLAIMS).len()), (3, 3), "orphans stay");
    sets.patch("s", &params, &Patch::Apply(&set)).await.unwrap();
    world.until("it takes them over", ready).await;
    assert_eq!(world.list(&kinds::PODS).len(), 3);
    sets.delete("s", &DeleteParams::default()).await.unwrap();
    world
        .until("nothing is left", |w| w.list(&kinds::PODS).is_empty() && w.list(&kinds::CLAIMS).is_empty())
        .await;
}

#[tokio::test(start_paused = true)]
async fn services_and_claims_are_held_to_their_rules() {
    let world = World::default();
    let (services, _) = api::<Service>(&world, Watching::Fresh);
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"selector": {"a": "b"}, "ports": [{"port": 2379}]},
    });
    let params = PatchParams::apply("op").force();
    let made = services.patch("s", &params, &Patch::Apply(&service)).await.unwrap();
    let port = made.spec.unwrap().ports.unwrap().remove(0);
    assert_eq!(port.protocol.as_deref(), Some("TCP"));
    let again = services.patch("s", &params, &Patch::Apply(&service)).await.unwrap();
    assert_eq!(made.metadata.resource_version, again.metadata.resource_version);
    let claim = json!({
        "metadata": {"name": "c"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}},
    });
    world.create(&kinds::CLAIMS, claim);
    let (claims, _) = api::<PersistentVolumeClaim>(&world, Watching::Fresh);
    let smaller = json!({"spec": {"resources": {"requests": {"storage": "1Gi"}}}});
    let refused = claims.patch("c", &PatchParams::default(), &Patch::Merge(smaller)).await.unwrap_err();
    assert_eq!(code(&refused), 422);
}

#[tokio::test(start_paused = true)]
async fn lists_have_pages_and_watches_go_on_from_them() {
    let world = World::default();
    for n in 0..5 {
        let labels = json!({"odd": (n % 2 == 1).to_string()});
        world.create(&kinds::CONFIG_MAPS, json!({"metadata": {"name": format!("m{n}"), "labels": labels}}));
    }
    let (maps, _) = api::<ConfigMap>(&world, Watching::Fresh);
    let page = maps.list(&ListParams::default().limit(2)).await.unwrap();
    let rest = ListParams::default().continue_token(&page.metadata.continue_.clone().unwrap());
    assert_eq!((page.items.len(), maps.list(&rest).await.unwrap().items.len()), (2, 3));
    let even = ListParams::default().labels("odd notin (true),odd");
    let listed = maps.list(&even).await.unwrap();
    assert_eq!(listed.items.len(), 3);
    let params = WatchParams::default().labels("odd=true");
    let from = listed.metadata.resource_version.unwrap();
    let mut watch = maps.watch(&params, &from).await.unwrap().boxed();
    let relabel = json!({"metadata": {"labels": {"odd": "true"}}});
    maps.patch("m0", &PatchParams::default(), &Patch::Merge(&relabel)).await.unwrap();
    maps.delete("m1", &DeleteParams::default()).await.unwrap();
    assert!(matches!(watch.try_next().await.unwrap(), Some(WatchEvent::Added(m)) if m.name_any() == "m0"));
    assert!(matches!(watch.try_next().await.unwrap(), Some(WatchEvent::Deleted(m)) if m.name_any() == "m1"));
    world.server.with(crate::support::store::Store::compact);
    let mut old = maps.watch(&params, "101").await.unwrap().boxed();
    assert!(matches!(old.try_next().await.unwrap(), Some(WatchEvent::Error(e)) if e.code == 410));
}

/// However a watch goes wrong, kube's watcher ends up knowing what is there.
#[tokio::test(start_paused = true)]
async fn caches_end_up_right_however_watches_go_wrong() {
    for watching in [Watching::Fresh, Watching::Late(7), Watching::Gappy(7), Watching::Twice(7)] {
        let mut world = World::default();
        let (pods, _) = api::<Pod>(&world, watching);
        let (reader, writer) = kube::runtime::reflector::store();
        let stream = kube::runtime::reflector(writer, watcher(pods, watcher::Config::default()));
        let task = tokio::spawn(stream.for_each(|_| std::future::ready(())));
        for round in 0..40 {
            let spec = json!({"containers": [{"name": "c", "image": "i:1"}]});
            world.create(&kinds::PODS, json!({"metadata": {"name": format!("p{round}")}, "spec": spec}));
            world.tick().await;
            if round % 3 == 0 {
                world.delete(&kinds::PODS, &format!("p{round}"));
            }
        }
        let versions = |objects: Vec<(String, String)>| {
            let mut objects = objects;
            objects.sort();
            objects
        };
        let there = |w: &World| {
            let text = |v: &Value| v.as_str().unwrap().to_owned();
            let pods = w.list(&kinds::PODS);
            versions(
                pods.iter()
                    .map(|p| (text(&p["metadata"]["name"]), text(&p["metadata"]["resourceVersion"])))
                    .collect(),
            )
        };
        let known = || {
            let pods = reader.state();
            versions(pods.iter().map(|p| (p.name_any(), p.resource_version().unwrap())).collect())
        };
        world.until(&format!("{watching:?}"), |w| there(w) == known() && !known().is_empty()).await;
        task.abort();
    }
}
