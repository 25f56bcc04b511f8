//! Two kube-apiservers at once, each on a proxy of its own, over three real etcds: to clients they are one cluster.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use anyhow::{Result, bail, ensure};
use futures::{
    AsyncBufReadExt, StreamExt, TryStreamExt,
    future::{try_join, try_join_all},
    stream,
};
use http::Request;
use kube::core::Status;
use sharded_etcd_crd::KeyspaceSpec;
use sharded_etcd_e2e::cluster::Cluster;
use sharded_etcd_linearizability::line::{Stamp, contradiction};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use super::{served::complaints, *};

/// Requests under way at a time.
const AT_ONCE: usize = 16;
/// Workers that change one object at the same time, and how often each does.
const WORKERS: usize = 8;
const CHANGES: u64 = 8;

/// A range for each shard; the border of the last two is among the pods of a namespace.
fn keyspace() -> KeyspaceSpec {
    let boundaries = ["/registry/pods/", PODS_PARTED];
    KeyspaceSpec {
        splittable: vec!["/registry/pods/".to_owned()],
        presplit: boundaries.map(str::to_owned).into(),
        ..KeyspaceSpec::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_kube_apiservers_on_two_proxies_are_one_cluster() -> Result<()> {
    let mut cluster = Cluster::start(keyspace()).await?;
    pods_are_on_two_shards(&status_at(&cluster.proxies[0].endpoint).await?)?;
    let told = Arc::new(Told { begun: Instant::now(), stamps: Mutex::default() });
    // The first one reads pages and exact lists from the store, the second one from its cache where it can. On one
    // machine both have the name that its lease is made from, so only one has that lease.
    let from_store = ["--feature-gates=ListFromCacheSnapshot=false"];
    let nameless = ["--feature-gates=APIServerIdentity=false"];
    let (a, b) = try_join(
        Server::start(&cluster.proxies[0].endpoint, &from_store, &told),
        Server::start(&cluster.proxies[1].endpoint, &nameless, &told),
    )
    .await?;
    let mut both = [a, b];
    create_foundation(&both[0].api).await?;

    // Everything is created through both, and watched at both from before.
    let empty = both[0].list("/api/v1/pods").await?;
    let (last, until) = watch::channel(i64::MAX);
    let mut watches = Vec::new();
    for server in &both {
        watches.push(server.watch(empty.version, &until).await?);
    }
    let objects = objects::everything();
    each(&objects, &both, async |server, object| {
        server.write("POST", &collection(object)?, object).await.map(drop)
    })
    .await?;
    let created = both[1].list("/api/v1/pods").await?.version;

    contend(&both).await?;
    // From here on pods of one namespace are on their way from one shard to another.
    let to = (owner(&status_at(&cluster.proxies[0].endpoint).await?, PODS_PARTED)? + 1) % 3;
    cluster.pin(&[("/registry/pods/team-1/", to)])?;
    let some: Vec<_> = objects.iter().filter(|object| is_pod_of(object, &["team-1", "team-2"])).collect();
    each(&some, &both, async |server, pod| {
        let path = format!("{}/{}", collection(pod)?, pod["metadata"]["name"].as_str().unwrap());
        let patch = json!({"metadata": {"labels": {"patched": "yes"}}});
        server.write("PATCH", &path, &patch).await.map(drop)
    })
    .await?;
    wait_until("the pods are where they are pinned", SOON, || async {
        let status = status_at(&cluster.proxies[1].endpoint).await.ok()?;
        let there = |name: &str| owner(&status, &format!("/registry/pods/team-1/{name}")).ok() == Some(to);
        (there("pod-001") && there("pod-597")).then_some(())
    })
    .await?;
    pages_are_of_one_revision(&both).await?;
    compacted_pages_expire_and_go_on(&both, &cluster).await?;
    writes_through_one_are_listed_by_the_other(&both).await?;
    let gone: Vec<_> = objects.iter().filter(|object| is_pod_of(object, &["team-2"])).collect();
    each(&gone, &both, async |server, pod| {
        let path = format!("{}/{}", collection(pod)?, pod["metadata"]["name"].as_str().unwrap());
        server.call("DELETE", &path, None).await?.map(drop).map_err(|status| anyhow::anyhow!("{status:?}"))
    })
    .await?;
    let note = json!({"metadata": {"annotations": {"note": "the last write"}}});
    let end = version_of(&both[1].write("PATCH", "/api/v1/namespaces/team-0/pods/pod-000", &note).await?)?;

    // Both tell the same, live, from the past, and as it is now.
    for server in &both {
        watches.push(server.watch(created, &until).await?);
    }
    last.send_replace(end);
    let mut events = Vec::new();
    for watch in watches {
        events.push(timeout(SOON, watch).await.context("a watch does not come to the end")???);
    }
    same_events(&events, created)?;
    same_objects(&both, &events[0], end).await?;
    for server in &both {
        server.streamed_list(end).await?;
    }
    headers_are_in_order(&told)?;
    for server in &mut both {
        server.api.process().check_running()?;
        let log = server.api.process().log();
        let bad = complaints(&log);
        ensure!(bad.is_empty(), "kube-apiserver complains:\n{}", bad.join("\n"));
    }
    Ok(())
}

/// Does something with each item, through both servers in turn.
async fn each<T>(
    items: &[T],
    both: &[Server; 2],
    work: impl AsyncFn(&Server, &T) -> Result<()>,
) -> Result<()> {
    let work = &work;
    stream::iter(items.iter().enumerate().map(|(at, item)| async move { work(&both[at % 2], item).await }))
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(())
}

/// What all servers told of revisions, and when.
struct Told {
    begun: Instant,
    stamps: Mutex<Vec<(Stamp, String)>>,
}

impl Told {
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A kube-apiserver and a client of it.
struct Server {
    api: KubeApiserver,
    client: kube::Client,
    told: Arc<Told>,
}

/// A list, or a page of one.
struct List {
    version: i64,
    items: BTreeMap<String, Value>,
    next: Option<String>,
}

impl Server {
    async fn start(endpoint: &str, arguments: &[&str], told: &Arc<Told>) -> Result<Self> {
        let api = KubeApiserver::start(endpoint, arguments).await?;
        let mut config = kube::Config::new(api.url().parse()?);
        config.accept_invalid_certs = true;
        config.auth_info.token = Some(api.token().to_owned().into());
        // An answer of the API server is what the test is about.
        config.default_retry = false;
        Ok(Self { client: kube::Client::try_from(config)?, api, told: Arc::clone(told) })
    }

    /// One request; the inner error is a refusal by the API server.
    async fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Result<Value, Box<Status>>> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let body = body.map(Value::to_string).unwrap_or_default().into_bytes();
        let request = Request::builder().method(method).uri(path).header("content-type", kind).body(body)?;
        let answer = timeout(SOON, self.client.request(request)).await;
        match answer.with_context(|| format!("{method} {path} is not answered"))? {
            Ok(answer) => Ok(Ok(answer)),
            Err(kube::Error::Api(status)) => Ok(Err(status)),
            Err(error) => Err(error).with_context(|| format!("{method} {path}")),
        }
    }

    /// A write that has to succeed, and whose answer is the object with the version of that write.
    async fn write(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        self.try_write(method, path, body)
            .await?
            .map_err(|status| anyhow::anyhow!("{method} {path}: {status:?}"))
    }

    async fn try_write(&self, method: &str, path: &str, body: &Value) -> Result<Result<Value, Box<Status>>> {
        let begin = self.told.now();
        let answer = self.call(method, path, Some(body)).await?;
        if let Ok(object) = &answer {
            self.stamp(begin, version_of(object)?, true, format!("{method} {path}"));
        }
        Ok(answer)
    }

    /// A list of what is there now; `path` may say more.
    async fn list(&self, path: &str) -> Result<List> {
        let begin = self.told.now();
        let list = self.list_as_was(path).await?;
        self.stamp(begin, list.version, false, format!("GET {path}"));
        Ok(list)
    }

    /// A list of something older, or a further page.
    async fn list_as_was(&self, path: &str) -> Result<List> {
        let answer = self.call("GET", path, None).await?;
        let answer = answer.map_err(|status| anyhow::anyhow!("GET {path}: {status:?}"))?;
        let items = answer["items"].as_array().context("a list has no items")?;
        let by_name: BTreeMap<_, _> = items.iter().map(|item| (name_of(item), item.clone())).collect();
        ensure!(by_name.len() == items.len(), "GET {path} has an object twice");
        let next = answer["metadata"]["continue"].as_str().filter(|next| !next.is_empty());
        Ok(List { version: version_of(&answer)?, items: by_name, next: next.map(str::to_owned) })
    }

    fn stamp(&self, begin: u64, revision: i64, wrote: bool, what: String) {
        let stamp = Stamp { begin, end: self.told.now(), revision, wrote };
        self.told.stamps.lock().unwrap().push((stamp, what));
    }

    /// A list as a stream: all pods, then a bookmark that says which version that was.
    async fn streamed_list(&self, at_least: i64) -> Result<()> {
        let path = "/api/v1/pods?watch=1&sendInitialEvents=true&allowWatchBookmarks=true\
                    &resourceVersionMatch=NotOlderThan";
        let lines = self.client.request_stream(Request::get(path).body(Vec::new())?).await?.lines();
        let mut lines = std::pin::pin!(lines);
        let mut streamed = BTreeMap::new();
        let bookmark = loop {
            let line = timeout(SOON, lines.next()).await?.context("a streamed list ended")??;
            let event: Value = serde_json::from_str(&line)?;
            let Event { kind, pod, version } = Event::of(&event)?;
            if kind == "BOOKMARK" {
                let ends = &event["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"];
                ensure!(ends == "true", "another bookmark comes first: {event}");
                break version;
            }
            ensure!(kind == "ADDED" && streamed.insert(pod, version).is_none(), "{event} in a streamed list");
        };
        let list = self.list("/api/v1/pods").await?;
        let listed: BTreeMap<_, _> = list
            .items
            .iter()
            .map(|(name, pod)| Ok((name.clone(), version_of(pod)?)))
            .collect::<Result<_>>()?;
        ensure!(streamed == listed, "a streamed list is another than a list");
        ensure!(
            (at_least..=list.version).contains(&bookmark),
            "the bookmark is at {bookmark}, before {at_least}"
        );
        Ok(())
    }

    /// Watches all pods from a version on, with bookmarks, up to the version that `until` says in the end.
    async fn watch(&self, from: i64, until: &watch::Receiver<i64>) -> Result<JoinHandle<Result<Vec<Event>>>> {
        let path = format!("/api/v1/pods?watch=1&allowWatchBookmarks=true&resourceVersion={from}");
        let lines = self.client.request_stream(Request::get(&path).body(Vec::new())?).await?.lines();
        let mut until = until.clone();
        Ok(tokio::spawn(async move {
            let mut lines = std::pin::pin!(lines);
            let mut events: Vec<Event> = Vec::new();
            loop {
                if events.last().is_some_and(|event| event.version >= *until.borrow_and_update()) {
                    return Ok(events);
                }
                tokio::select! {
                    line = lines.next() => {
                        let line = line.context("a watch ended")??;
                        events.push(Event::of(&serde_json::from_str(&line)?)?);
                    }
                    changed = until.changed() => changed?,
                }
            }
        }))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Event {
    kind: String,
    pod: String,
    version: i64,
}

impl Event {
    fn of(event: &Value) -> Result<Self> {
        let kind = event["type"].as_str().unwrap_or_default().to_owned();
        if kind == "ERROR" {
            bail!("a watch failed: {event}");
        }
        Ok(Self { kind, pod: name_of(&event["object"]), version: version_of(&event["object"])? })
    }
}

fn version_of(object: &Value) -> Result<i64> {
    let version = object["metadata"]["resourceVersion"].as_str().context("no resource version")?;
    version.parse().with_context(|| format!("resource version {version:?}"))
}

fn name_of(object: &Value) -> String {
    let part = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
    format!("{}/{}", part("namespace"), part("name"))
}

fn is_pod_of(object: &Value, namespaces: &[&str]) -> bool {
    object["kind"] == "Pod" && namespaces.iter().any(|name| object["metadata"]["namespace"] == *name)
}

/// Where objects like this one are created.
fn collection(object: &Value) -> Result<String> {
    let (group, plural) = match object["kind"].as_str().unwrap_or_default() {
        "Pod" => ("/api/v1", "pods"),
        "ConfigMap" => ("/api/v1", "configmaps"),
        "Secret" => ("/api/v1", "secrets"),
        "Service" => ("/api/v1", "services"),
        "Event" => ("/api/v1", "events"),
        "Lease" => ("/apis/coordination.k8s.io/v1", "leases"),
        "Deployment" => ("/apis/apps/v1", "deployments"),
        "Widget" => ("/apis/example.com/v1", "widgets"),
        other => bail!("nobody creates {other:?} here"),
    };
    let namespace = object["metadata"]["namespace"].as_str().context("an object has no namespace")?;
    Ok(format!("{group}/namespaces/{namespace}/{plural}"))
}

/// Workers at both servers add to one number, by read and replace: a stale replace is a conflict, and nothing is lost.
async fn contend(both: &[Server; 2]) -> Result<()> {
    let counter = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"n": "0"},
        "metadata": {"name": "counter", "namespace": "team-0"}});
    both[0].write("POST", &collection(&counter)?, &counter).await?;
    let path = "/api/v1/namespaces/team-0/configmaps/counter";
    let conflicts = AtomicUsize::new(0);
    let workers = (0..WORKERS).map(|worker| {
        let (server, conflicts) = (&both[worker % 2], &conflicts);
        async move {
            let mut done = 0;
            // Each round somebody gets through, so that nobody loses more often than all others win.
            for _ in 0..(WORKERS as u64 * CHANGES) {
                let read = server.call("GET", path, None).await?;
                let mut object = read.map_err(|status| anyhow::anyhow!("{status:?}"))?;
                let n: u64 = object["data"]["n"].as_str().context("no number")?.parse()?;
                object["data"]["n"] = (n + 1).to_string().into();
                match server.try_write("PUT", path, &object).await? {
                    Ok(_) => done += 1,
                    Err(status) if status.code == 409 => drop(conflicts.fetch_add(1, Ordering::Relaxed)),
                    Err(status) => bail!("a replace: {status:?}"),
                }
                if done == CHANGES {
                    return Ok(());
                }
            }
            bail!("a worker got through {done} times only")
        }
    });
    try_join_all(workers).await?;
    let read = both[1].call("GET", path, None).await?;
    let object = read.map_err(|status| anyhow::anyhow!("{status:?}"))?;
    let all = (WORKERS as u64 * CHANGES).to_string();
    ensure!(object["data"]["n"] == all, "changes are lost: {object}");
    ensure!(conflicts.load(Ordering::Relaxed) > 0, "nobody came in the way of anybody");
    Ok(())
}

/// Pages that either server gives with the other's tokens are of the revision of the first one, whatever is written meanwhile.
async fn pages_are_of_one_revision(both: &[Server; 2]) -> Result<()> {
    let first = both[0].list("/api/v1/pods?limit=47").await?;
    let (version, mut items, mut next) = (first.version, first.items, first.next);
    let mut page = 0;
    while let Some(token) = next {
        let note = json!({"metadata": {"annotations": {"page": page.to_string()}}});
        both[0].write("PATCH", "/api/v1/namespaces/team-3/pods/pod-599", &note).await?;
        page += 1;
        let further = both[page % 2].list_as_was(&format!("/api/v1/pods?limit=47&continue={token}")).await?;
        ensure!(further.version == version, "page {page} is of {}, not {version}", further.version);
        let before = items.len();
        let more = further.items.len();
        items.extend(further.items);
        ensure!(items.len() == before + more, "page {page} repeats an object");
        next = further.next;
    }
    let exact = format!("/api/v1/pods?resourceVersion={version}&resourceVersionMatch=Exact");
    for server in both {
        let whole = server.list_as_was(&exact).await?;
        ensure!(whole.items == items, "the pages are not what was there at {version}");
    }
    ensure!(items.len() == 600 && page == 600 / 47, "{} pods on {page} further pages", items.len());
    Ok(())
}

/// After a compaction a token is refused, and what the refusal offers goes on with what is there now.
async fn compacted_pages_expire_and_go_on(both: &[Server; 2], cluster: &Cluster) -> Result<()> {
    let first = both[0].list("/api/v1/pods?limit=100").await?;
    let note = json!({"metadata": {"annotations": {"note": "after the first page"}}});
    let written = both[1].write("PATCH", "/api/v1/namespaces/team-3/pods/pod-599", &note).await?;
    let revision = version_of(&written)?;
    let compact = pb::CompactionRequest { revision, physical: true };
    client(&cluster.proxies[1].endpoint).compact(compact).await?;
    let token = first.next.context("the first page is the last")?;
    let path = |token: &str| format!("/api/v1/pods?limit=600&continue={token}");
    let Err(refused) = both[0].call("GET", &path(&token), None).await? else {
        bail!("a page of a compacted revision is served")
    };
    ensure!((refused.code, refused.reason.as_str()) == (410, "Expired"), "{refused:?}");
    let token = refused.metadata.as_ref().and_then(|metadata| metadata.continue_.clone());
    let rest = both[0].list_as_was(&path(&token.context("the refusal offers no other token")?)).await?;
    ensure!(rest.version >= revision, "the rest is of {}, before {revision}", rest.version);
    ensure!(first.items.len() + rest.items.len() == 600, "{} and {}", first.items.len(), rest.items.len());
    let last = &rest.items["team-3/pod-599"];
    ensure!(last["metadata"]["annotations"]["note"] == "after the first page", "{last}");
    Ok(())
}

/// A list that asks for the newest, which the other server answers from its cache, has what was written just before.
async fn writes_through_one_are_listed_by_the_other(both: &[Server; 2]) -> Result<()> {
    for round in 0..30 {
        let (writer, reader) = (&both[round % 2], &both[(round + 1) % 2]);
        let note = json!({"metadata": {"annotations": {"round": round.to_string()}}});
        let namespace = objects::namespace(round);
        let path = format!("/api/v1/namespaces/{namespace}/pods/pod-{round:03}");
        let written = writer.write("PATCH", &path, &note).await?;
        let list = reader.list(&format!("/api/v1/namespaces/{namespace}/pods")).await?;
        let seen = &list.items[&name_of(&written)];
        // Items of a list do not repeat kind and API version.
        let same = ["metadata", "spec", "status"].iter().all(|part| seen[part] == written[part]);
        ensure!(same, "round {round}: {seen} is listed after {written} was written");
    }
    Ok(())
}

/// All watches saw the same events, those that began at `created` from there on; and all of them go forward.
fn same_events(watches: &[Vec<Event>], created: i64) -> Result<()> {
    let changes = |events: &[Event]| -> Vec<Event> {
        events.iter().filter(|event| event.kind != "BOOKMARK" && event.version > created).cloned().collect()
    };
    let whole = changes(&watches[0]);
    for (events, at) in watches.iter().zip(0..) {
        let mut newest = 0;
        for event in events {
            let forward = event.version > newest || (event.kind == "BOOKMARK" && event.version == newest);
            ensure!(forward, "watch {at}: {event:?} after {newest}");
            newest = event.version;
        }
        let changes = changes(events);
        let differs = changes.iter().zip(&whole).find(|(a, b)| a != b);
        ensure!(
            changes.len() == whole.len() && differs.is_none(),
            "watch {at} has {} events, watch 0 {}, the first that differs: {differs:?}",
            changes.len(),
            whole.len()
        );
    }
    let early = |at: usize| watches[at].iter().filter(|e| e.kind == "ADDED").count();
    ensure!((early(0), early(1)) == (600, 600), "{} and {} pods were added", early(0), early(1));
    Ok(())
}

/// What the events lead to is what both servers have, in their caches and in the store.
async fn same_objects(both: &[Server; 2], events: &[Event], end: i64) -> Result<()> {
    let mut state = BTreeMap::new();
    for Event { kind, pod, version } in events {
        match kind.as_str() {
            "DELETED" => drop(state.remove(pod)),
            "BOOKMARK" => {}
            _ => drop(state.insert(pod.clone(), *version)),
        }
    }
    let exact = format!("resourceVersion={end}&resourceVersionMatch=Exact");
    for server in both {
        for query in ["", "resourceVersion=0", &exact] {
            let list = server.list_as_was(&format!("/api/v1/pods?{query}")).await?;
            let versions: BTreeMap<_, _> = list
                .items
                .iter()
                .map(|(name, pod)| Ok((name.clone(), version_of(pod)?)))
                .collect::<Result<_>>()?;
            ensure!(versions == state, "the list {query:?} is not what the events lead to");
        }
    }
    for plural in ["configmaps", "secrets", "services", "events"] {
        let path = format!("/api/v1/{plural}");
        let (one, other) = (both[0].list(&path).await?, both[1].list(&path).await?);
        ensure!(one.items == other.items, "{plural} differ");
        ensure!(one.items.len() >= 150, "only {} {plural}", one.items.len());
    }
    Ok(())
}

/// No resource version went back in real time, over both servers, and no two writes have the same.
fn headers_are_in_order(told: &Told) -> Result<()> {
    let (stamps, words): (Vec<_>, Vec<_>) = told.stamps.lock().unwrap().iter().cloned().unzip();
    ensure!(stamps.len() > objects::OBJECTS, "only {} answers", stamps.len());
    let found = contradiction(&stamps);
    ensure!(found.is_none(), "{found:?} among {:?}", stamps.iter().zip(&words).collect::<Vec<_>>());
    Ok(())
}
