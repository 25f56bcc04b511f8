//! A kube-apiserver whose only store is the endpoint, while ranges move under it.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use futures::future::try_join_all;
use sharded_etcd_e2e::Up;
use sharded_etcd_testkit::{KubeApiserver, Process};

use super::*;

/// `NAMESPACE/NAME` and resource version of the live pods.
type Pods = BTreeMap<String, i64>;

const PODS: usize = 120;

/// The pods of namespace `team-1` lie on two shards from the start.
fn keyspace(pins: &str) -> String {
    let presplit = format!("[/registry/pods/, {PODS_PARTED}]");
    format!("{{splittable: [/registry/pods/], presplit: {presplit}, pins: [{pins}]}}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kube_apiserver_works_on_three_shards_while_ranges_move() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("kube.yaml");
    save_topology(&file, &keyspace(""))?;
    let up = Up::start(&folder.path().join("data"), &["-f", &file.display().to_string()]).await?;
    // Without snapshots in its cache, pages and exact lists come from the store.
    let options = ["--feature-gates=ListFromCacheSnapshot=false"];
    let mut server = KubeApiserver::start(&up.endpoint, &options).await?;
    create_foundation(&server).await?;
    pods_are_on_two_shards(&status(&up).await?)?;

    let watches = Watches::start(&server, &objects::pod(0)).await?;
    create(&server, &(1..PODS).map(objects::pod).collect::<Vec<_>>()).await?;
    create(&server, &[objects::config_map(0)]).await?;
    let created = resource_version(&kubectl(&server, &["get", "--raw", "/api/v1/pods"]).await?)?;

    writes_go_forward(&server).await?;
    stale_writes_are_refused(&server).await?;
    // Each of these writes loses against the others now and then, and is tried again by the API server; the ConfigMap
    // goes to another shard meanwhile.
    let moved = async {
        let to = (owner(&status(&up).await?, CONFIG_KEY)? + 1) % 3;
        save_topology(&file, &keyspace(&format!("{{prefix: /registry/configmaps/, shard: {to}}}")))?;
        wait_until("the ConfigMaps are where they are pinned", SOON, || async {
            (owner(&status(&up).await.ok()?, CONFIG_KEY).ok()? == to).then_some(())
        })
        .await
    };
    let label = async { kubectl(&server, &["label", "pods", "-n", "team-1", "--all", "seen=yes"]).await };
    let (moved, contended, labelled) = tokio::join!(moved, contend(&server), label);
    moved?;
    contended?;
    labelled?;
    contend(&server).await?;
    kubectl(&server, &["delete", "pods", "-n", "team-2", "--all", "--wait=false"]).await?;
    kubectl(&server, &["delete", "pod", "-n", "team-1", "pod-001", "--wait=false"]).await?;
    let last = write(&server, ["pod", "team-0", "pod-000"], "last write").await?;

    let pods = pods_of(&server, &["--chunk-size=17"]).await?;
    assert_eq!(pods.len(), PODS - PODS / objects::NAMESPACES - 1);
    assert_eq!(pods, pods_of(&server, &["--chunk-size=0"]).await?);
    assert_eq!(pods, stored_pods(&up).await?, "resource versions are the revisions of the keys");
    watches.judge(last, &pods).await?;

    // The past is still there: as the pods were created, none of them with the label.
    let exact = format!("/api/v1/pods?resourceVersion={created}&resourceVersionMatch=Exact");
    let past: Value = serde_json::from_str(&kubectl(&server, &["get", "--raw", &exact]).await?)?;
    assert_eq!(past["items"].as_array().map(Vec::len), Some(PODS));
    assert!(
        past["items"].as_array().into_iter().flatten().all(|pod| pod["metadata"]["labels"]["seen"].is_null())
    );

    server.process().check_running()?;
    let log = server.process().log();
    let bad = complaints(&log);
    assert!(bad.is_empty(), "kube-apiserver complains:\n{}", bad.join("\n"));
    Ok(())
}

/// Where the ConfigMap lies that the test writes to.
const CONFIG_KEY: &str = "/registry/configmaps/team-0/config-000";

/// Writes one after another, on all shards: every resource version is larger than the one before.
async fn writes_go_forward(server: &KubeApiserver) -> Result<()> {
    let mut before = 0;
    for round in 0..3 {
        for object in [
            ["configmap", "team-0", "config-000"],
            ["pod", "team-1", "pod-001"],
            ["pod", "team-3", "pod-099"],
        ] {
            let version = write(server, object, &format!("round {round}")).await?;
            ensure!(version > before, "{object:?} got resource version {version} after {before}");
            // A read after the write sees it.
            let [kind, namespace, name] = object;
            let path = ["get", kind, "-n", namespace, name, "-o", "jsonpath={.metadata.resourceVersion}"];
            let read = kubectl(server, &path).await?;
            ensure!(read == version.to_string(), "{object:?} is read at {read} after its write at {version}");
            before = version;
        }
    }
    Ok(())
}

/// What carries an old resource version is refused and changes nothing; so is creating what is there.
async fn stale_writes_are_refused(server: &KubeApiserver) -> Result<()> {
    let get = ["get", "configmap", "-n", "team-0", "config-000", "-o", "json"];
    let stale = kubectl(server, &get).await?;
    write(server, ["configmap", "team-0", "config-000"], "newer").await?;
    let newer = kubectl(server, &get).await?;
    let refused = server.kubectl(&["replace", "-f", "-"], &stale, SOON).await?;
    ensure!(
        refused.code == Some(1) && refused.stderr.contains("the object has been modified"),
        "a stale write ended with {refused:?}"
    );
    let again = objects::config_map(0).to_string();
    let refused = server.kubectl(&["create", "-f", "-"], &again, SOON).await?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("already exists"), "{refused:?}");
    ensure!(kubectl(server, &get).await? == newer, "a refused write changed the object");
    Ok(())
}

/// Eight writers change one object at the same time: no change is lost.
async fn contend(server: &KubeApiserver) -> Result<()> {
    let target = ["configmap", "-n", "team-0", "config-000"];
    let before = kubectl(server, &[&["get"][..], &target, &["-o", "json"]].concat()).await?;
    let generation = resource_version(&before)?;
    let writers = (0..8).map(|writer| async move {
        let patch = json!({"data": {format!("writer-{generation}-{writer}"): "was here"}}).to_string();
        kubectl(server, &[&["patch"][..], &target, &["--type=merge", "-p", &patch]].concat()).await
    });
    try_join_all(writers).await?;
    let after: Value =
        serde_json::from_str(&kubectl(server, &[&["get"][..], &target, &["-o", "json"]].concat()).await?)?;
    let lost: Vec<_> = (0..8)
        .map(|writer| format!("writer-{generation}-{writer}"))
        .filter(|name| after["data"][name] != "was here")
        .collect();
    ensure!(lost.is_empty(), "lost writes: {lost:?}");
    Ok(())
}

/// Annotates an object and returns the resource version that this gave it.
///
/// With `patch`: `annotate` and `label` print the object with the resource version from before the write.
async fn write(server: &KubeApiserver, object: [&str; 3], note: &str) -> Result<i64> {
    let [kind, namespace, name] = object;
    let patch = json!({"metadata": {"annotations": {"note": note}}}).to_string();
    let arguments = ["patch", kind, "-n", namespace, name, "--type=merge", "-p", &patch, "-o", "json"];
    resource_version(&kubectl(server, &arguments).await?)
}

fn resource_version(object: &str) -> Result<i64> {
    let object: Value = serde_json::from_str(object)?;
    version_of(&object)
}

fn version_of(object: &Value) -> Result<i64> {
    let version =
        object["metadata"]["resourceVersion"].as_str().context("an object has no resource version")?;
    version.parse().with_context(|| format!("resource version {version:?}"))
}

fn name_of(object: &Value) -> String {
    let part = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    format!("{}/{}", part("namespace"), part("name"))
}

/// The pods as kubectl lists them.
async fn pods_of(server: &KubeApiserver, options: &[&str]) -> Result<Pods> {
    let printed = kubectl(server, &[&["get", "pods", "-A", "-o", "json"], options].concat()).await?;
    let list: Value = serde_json::from_str(&printed)?;
    let items = list["items"].as_array().context("a list has no items")?;
    let pods: Pods = items.iter().map(|pod| Ok((name_of(pod), version_of(pod)?))).collect::<Result<_>>()?;
    ensure!(pods.len() == items.len(), "a pod is listed twice");
    Ok(pods)
}

/// The pods as the endpoint has them.
async fn stored_pods(up: &Up) -> Result<Pods> {
    let prefix = "/registry/pods/";
    let kvs = paged(&client(&up.endpoint), range(prefix, "/registry/pods0"), 50).await?;
    let name = |kv: &pb::KeyValue| String::from_utf8_lossy(&kv.key[prefix.len()..]).into_owned();
    Ok(kvs.iter().map(|kv| (name(kv), kv.mod_revision)).collect())
}

/// Two watches of all pods: one from before the first of them, as a controller may open it, one that lists first, as a
/// user does.
struct Watches {
    raw: Process,
    user: Process,
}

impl Watches {
    async fn start(server: &KubeApiserver, first: &Value) -> Result<Self> {
        let from = resource_version(&kubectl(server, &["get", "--raw", "/api/v1/pods?limit=1"]).await?)?;
        let path = format!("/api/v1/pods?watch=1&allowWatchBookmarks=true&resourceVersion={from}");
        let raw = server.kubectl_in_background("watch-raw", &["get", "--raw", &path]).await?;
        let line = "jsonpath={.type} {.object.metadata.namespace}/{.object.metadata.name} \
                    {.object.metadata.resourceVersion}{\"\\n\"}";
        let get = ["get", "pods", "-A", "-w", "--output-watch-events", "-o", line];
        create(server, std::slice::from_ref(first)).await?;
        let user = server.kubectl_in_background("watch-user", &get).await?;
        // What it lists comes in the order of names; everything that is written from here on comes by its watch.
        wait_until("kubectl has listed the first pod", SOON, || {
            std::future::ready((complete_lines(&user.log()).count() == 1).then_some(()))
        })
        .await?;
        Ok(Self { raw, user })
    }

    /// Waits until both have seen the revision `last` and checks what they saw against the pods that are there.
    async fn judge(mut self, last: i64, pods: &Pods) -> Result<()> {
        for (name, process, parse) in [
            ("raw", &mut self.raw, raw_event as fn(&str) -> Result<Event>),
            ("user", &mut self.user, user_event),
        ] {
            let what = format!("the watch {name} has come to revision {last}");
            let seen = wait_until(&what, SOON, || {
                let gone = process.check_running().err();
                let events: Result<Vec<Event>> = complete_lines(&process.log()).map(parse).collect();
                let caught_up = |events: &Vec<Event>| events.iter().any(|event| event.version >= last);
                std::future::ready(match (gone, events) {
                    (Some(error), _) | (None, Err(error)) => Some(Err(error)),
                    (None, Ok(events)) => caught_up(&events).then_some(Ok(events)),
                })
            });
            judge(&seen.await??, pods).with_context(|| format!("the watch {name}"))?;
        }
        Ok(())
    }
}

struct Event {
    kind: String,
    pod: String,
    version: i64,
}

fn complete_lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(str::trim)
        .filter(|line| !line.is_empty())
}

fn raw_event(line: &str) -> Result<Event> {
    let event: Value = serde_json::from_str(line).with_context(|| format!("a watch printed {line:?}"))?;
    let object = &event["object"];
    let kind = event["type"].as_str().unwrap_or_default().to_owned();
    Ok(Event { kind, pod: name_of(object), version: version_of(object)? })
}

fn user_event(line: &str) -> Result<Event> {
    let [kind, pod, version] = line.split(' ').collect::<Vec<_>>()[..] else {
        bail!("a watch printed {line:?}");
    };
    Ok(Event { kind: kind.to_owned(), pod: pod.to_owned(), version: version.parse()? })
}

/// The events go forward, fit to one another, and lead to the pods that are there.
fn judge(events: &[Event], pods: &Pods) -> Result<()> {
    let mut state = Pods::new();
    let mut newest = 0;
    let mut created = 0;
    for Event { kind, pod, version } in events {
        let bookmark = kind == "BOOKMARK";
        // A bookmark repeats how far the watch is; every event has a revision of its own, as each writes one key.
        ensure!(
            *version > newest || (bookmark && *version == newest),
            "{kind} {pod}: {version} after {newest}"
        );
        newest = *version;
        let fits = match kind.as_str() {
            "ADDED" => {
                created += 1;
                state.insert(pod.clone(), *version).is_none()
            }
            "MODIFIED" => state.insert(pod.clone(), *version).is_some(),
            "DELETED" => state.remove(pod).is_some(),
            _ => bookmark,
        };
        ensure!(fits, "{kind} {pod} at {version} does not follow from the events before it");
    }
    ensure!(created == PODS, "{created} pods were seen to be created, not {PODS}");
    ensure!(state == *pods, "the events lead to other pods than are there: {state:?}, not {pods:?}");
    Ok(())
}

/// Lines of kube-apiserver's log in which it finds fault with its store or its cache.
pub fn complaints(log: &str) -> Vec<&str> {
    let words =
        ["etcd", "cache", "watch", "reflector", "storage", "compact", "inconsisten", "resource version"];
    let bad = |line: &&str| {
        let severe =
            line.starts_with(['E', 'F']) && words.iter().any(|word| line.to_lowercase().contains(word));
        severe || line.contains("panic")
    };
    log.lines().filter(bad).collect()
}

#[test]
fn complaints_about_the_store_are_found_and_others_are_not() {
    let log = "I1121 11:46:48.849104 1 store.go:1] etcd is fine\n\
               E1121 11:46:48.849104 1 cacher.go:1] unexpected ListAndWatch error: failed to list, etcdserver: x\n\
               panic: Cache consistency check failed\n\
               E1121 11:46:49.027973 1 controller.go:201] \"Failed to ensure lease exists, will retry\"";
    let found = complaints(log);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("ListAndWatch") && found[1].starts_with("panic"));
}

#[test]
fn a_watch_that_misses_repeats_or_turns_back_is_caught() {
    let event = |kind: &str, n: usize, version: i64| Event { kind: kind.into(), pod: n.to_string(), version };
    let good =
        || (1..).take(PODS).zip(0..).map(|(version, n)| event("ADDED", n, version)).collect::<Vec<_>>();
    let pods: Pods = good().into_iter().map(|event| (event.pod, event.version)).collect();
    judge(&good(), &pods).unwrap();

    let spoil = |spoil: fn(&mut Vec<Event>)| {
        let mut events = good();
        spoil(&mut events);
        judge(&events, &pods)
    };
    spoil(|events| drop(events.remove(60))).unwrap_err();
    spoil(|events| events.swap(60, 61)).unwrap_err();
    spoil(|events| events[60].version = events[59].version).unwrap_err();
    spoil(|events| events.extend([Event { kind: "MODIFIED".into(), pod: "other".into(), version: 9_999 }]))
        .unwrap_err();
    spoil(|events| events.extend([Event { kind: "DELETED".into(), pod: "7".into(), version: 9_999 }]))
        .unwrap_err();
}
