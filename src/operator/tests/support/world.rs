//! A cluster with its controllers, the operator, and a clock that jumps.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde_json::{Value, json};
use sharded_etcd_operator::{
    Operator,
    settings::{Election, Settings},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{
    controllers::{self, Machines, is_ready},
    kinds::{self, Kind},
    managers::{Managers, SharedManagers},
    normal,
    server::{Call, Link, Server, Watching},
    store::{DeleteOptions, Object, Store, Write},
};

pub const NAMESPACE: &str = "team";
/// Simulated seconds without a change after which nothing more is to be expected: more than the operator's longest
/// wait before a retry.
const QUIET_S: u32 = 75;
/// Simulated seconds after which a run is stuck.
const STUCK_S: u32 = 1800;

/// A running operator.
pub struct Running {
    pub link: Link,
    task: JoinHandle<()>,
    shutdown: CancellationToken,
}

impl Running {
    /// Ends it as a power cut does.
    pub async fn kill(self) {
        self.link.cut();
        self.task.abort();
        let _ = self.task.await;
    }

    /// Ends it as a signal does.
    pub async fn end(self) {
        self.shutdown.cancel();
        self.task.await.expect("the operator ends without a panic");
    }

    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }
}

/// A cluster as it was.
#[derive(Clone)]
pub struct Snapshot {
    pub store: Store,
    pub machines: Machines,
    pub managers: Managers,
}

pub struct World {
    pub server: Arc<Server>,
    pub machines: Machines,
    pub managers: SharedManagers,
    examined: u64,
    stepped: u64,
    busy: BTreeSet<String>,
    pub violations: BTreeSet<String>,
    /// Of the operators that were started, the newest.
    newest: Mutex<Option<Link>>,
}

impl Default for World {
    fn default() -> Self {
        let mut store = Store::default();
        let by = Write::by("admin");
        for (name, grows) in [("standard", true), ("fast", true), ("fixed", false)] {
            let class = json!({
                "metadata": {"name": name}, "provisioner": "example.com/disk", "allowVolumeExpansion": grows,
            });
            store.create(&kinds::STORAGE_CLASSES, "", class, &by).expect("a class");
        }
        for name in ["high", "higher"] {
            let class = json!({"metadata": {"name": name}, "value": 1000});
            store.create(&kinds::PRIORITY_CLASSES, "", class, &by).expect("a class");
        }
        store
            .create(&kinds::NAMESPACES, "", json!({"metadata": {"name": NAMESPACE}}), &by)
            .expect("a namespace");
        Self::from(Snapshot { store, machines: Machines::default(), managers: Managers::default() })
    }
}

impl From<Snapshot> for World {
    fn from(snapshot: Snapshot) -> Self {
        let revision = snapshot.store.revision();
        Self {
            server: Server::new(snapshot.store),
            machines: snapshot.machines,
            managers: SharedManagers(Arc::new(Mutex::new(snapshot.managers))),
            examined: revision,
            stepped: 0,
            busy: BTreeSet::new(),
            violations: BTreeSet::new(),
            newest: Mutex::new(None),
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

impl World {
    pub fn snapshot(&self) -> Snapshot {
        let mut store = self.server.store.lock().clone();
        store.compact();
        Snapshot { store, machines: self.machines.clone(), managers: self.managers.0.lock().clone() }
    }

    /// Starts an operator.
    pub fn start(&self, watching: Watching) -> Running {
        self.start_with(watching, |operator| operator)
    }

    /// Starts one of several that elect.
    pub fn start_elected(&self, identity: &str) -> Running {
        let election = Election::new("operators", identity);
        self.start_with(Watching::Fresh, |operator| operator.with_election(election))
    }

    fn start_with(&self, watching: Watching, with: impl FnOnce(Operator) -> Operator) -> Running {
        let link = Link::new(self.server.clone(), watching);
        *self.newest.lock() = Some(link.clone());
        let settings = Settings::new("registry.example/sharded-etcd:1", None);
        let operator = with(Operator::new(link.client(), settings, Arc::new(self.managers.clone())));
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        // An operator that lost its lease ends with an error, and is started again by Kubernetes.
        let task = tokio::spawn(async move { drop(operator.run(token).await) });
        Running { link, task, shutdown }
    }

    /// Lets a simulated second pass, in which everything in the cluster takes a step.
    pub async fn tick(&mut self) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.examine();
        let mut dirty: BTreeSet<String> = std::mem::take(&mut self.busy);
        {
            let store = self.server.store.lock();
            dirty.extend(store.changes_after(self.stepped).iter().map(|c| c.key.namespace.clone()));
            if self.stepped == 0 {
                dirty.extend(store.all().map(|(key, _)| key.namespace.clone()));
            }
            self.stepped = store.revision();
        }
        for namespace in dirty.iter().filter(|n| !n.is_empty()) {
            let machines = &mut self.machines;
            let managers = &self.managers.0;
            let busy = self.server.with(|store| {
                controllers::step(store, machines, namespace);
                managers.lock().step(store, namespace)
            });
            if busy {
                self.busy.insert(namespace.clone());
            }
        }
        self.examine();
    }

    /// Looks at what changed for what must never happen.
    fn examine(&mut self) {
        let store = self.server.store.lock();
        let managers = self.managers.0.lock();
        self.violations.extend(managers.violations.iter().cloned());
        for change in store.changes_after(self.examined) {
            let kind = change.key.kind();
            let member = *kind == kinds::STATEFUL_SETS || *kind == kinds::CLAIMS;
            let Some(old) = change.old.as_ref() else { continue };
            let labels = &old["metadata"]["labels"];
            let cluster = text(&labels["shardedetcd.io/cluster"]);
            if cluster.is_empty() {
                continue;
            }
            let name = &change.key.name;
            let instance = text(&labels["app.kubernetes.io/instance"]);
            let resource = store.get(&kinds::SHARDED_ETCDS, &change.key.namespace, instance);
            let resource = resource.filter(|r| r["metadata"]["deletionTimestamp"].is_null());
            if member && change.deleted {
                let orphaned =
                    old["metadata"]["finalizers"].as_array().is_some_and(|f| f.contains(&json!("orphan")));
                let incarnation = text(&labels["shardedetcd.io/incarnation"]).parse().unwrap_or(u32::MAX);
                if let Some(resource) = &resource
                    && !orphaned
                    && managers.needs(text(&resource["metadata"]["uid"]), cluster, incarnation)
                {
                    self.violations.insert(format!(
                        "{} {name} was deleted while {cluster} (incarnation {incarnation}) holds data",
                        kind.kind
                    ));
                }
            }
            let dies = *kind == kinds::PODS
                && old["metadata"]["deletionTimestamp"].is_null()
                && !change.new["metadata"]["deletionTimestamp"].is_null();
            if dies && resource.is_some() && is_ready(old) {
                self.violations.extend(others_not_ready(&store, &change.key.namespace, old));
            }
        }
        self.examined = store.revision();
    }

    /// Ticks until `done`; panics, saying `what`, if that never comes.
    pub async fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        for _ in 0..STUCK_S {
            if done(self) {
                return;
            }
            self.tick().await;
        }
        panic!("{what}: not within {STUCK_S} simulated seconds; {}", self.story());
    }

    /// Ticks until nothing changes any more; false if the operator met [`Fault::Stop`](super::server::Fault::Stop).
    pub async fn settle(&mut self, running: &Running) -> bool {
        let mut quiet = 0;
        let mut revision = 0;
        for _ in 0..STUCK_S {
            if *running.link.stopped().borrow() {
                return false;
            }
            self.tick().await;
            let now = self.last_change();
            quiet = if now == revision && self.busy.is_empty() { quiet + 1 } else { 0 };
            revision = now;
            if quiet >= QUIET_S {
                return true;
            }
        }
        panic!("it does not come to rest: {}", self.story());
    }

    /// Revision of the newest change of anything but leases and events.
    fn last_change(&self) -> u64 {
        let store = self.server.store.lock();
        let counts = |kind: &Kind| *kind != kinds::LEASES && kind.kind != "Event";
        store.changes_after(0).iter().rev().find(|c| counts(c.key.kind())).map_or(0, |c| c.rv)
    }

    /// What there is to know when a test fails.
    pub fn story(&self) -> String {
        let store = self.server.store.lock();
        let resources: Vec<String> = store
            .list(&kinds::SHARDED_ETCDS, None)
            .iter()
            .map(|r| {
                let conditions = r["status"]["conditions"].as_array().into_iter().flatten();
                let conditions: Vec<String> = conditions
                    .map(|c| {
                        format!(
                            "{}={} {}: {}",
                            text(&c["type"]),
                            text(&c["status"]),
                            text(&c["reason"]),
                            text(&c["message"])
                        )
                    })
                    .collect();
                format!("{} {conditions:#?}", text(&r["metadata"]["name"]))
            })
            .collect();
        let pods: Vec<String> = store
            .list(&kinds::PODS, None)
            .iter()
            .map(|p| {
                format!(
                    "{} {} ready={}",
                    text(&p["metadata"]["name"]),
                    text(&p["status"]["phase"]),
                    is_ready(p)
                )
            })
            .collect();
        let calls = self.newest.lock().as_ref().map(Link::calls).unwrap_or_default();
        let last: Vec<String> = calls
            .iter()
            .filter(|c| c.mutates() || c.code >= 300)
            .rev()
            .take(20)
            .map(Call::to_string)
            .collect();
        format!(
            "{resources:#?} {pods:?} refused by the guard: {:?}; {:?}; last calls, newest first: {last:#?}",
            self.machines.refused,
            self.managers.0.lock().topologies
        )
    }

    /// Nothing happened that must never happen.
    pub fn assert_sound(&self, context: &str) {
        assert!(self.violations.is_empty(), "{context}: {:#?}", self.violations);
        assert!(self.machines.refused.is_empty(), "{context}: volumes refused: {:#?}", self.machines.refused);
    }

    // What a user does.

    pub fn apply(&self, name: &str, spec: Value) {
        self.apply_in(NAMESPACE, name, spec);
    }

    pub fn apply_in(&self, namespace: &str, name: &str, spec: Value) {
        self.server.with(|store| {
            let by = Write::by("kubectl");
            match store.get(&kinds::SHARDED_ETCDS, namespace, name) {
                None => {
                    let object = json!({"metadata": {"name": name}, "spec": spec});
                    store.create(&kinds::SHARDED_ETCDS, namespace, object, &by).expect("a resource");
                }
                Some(old) => {
                    let mut object = (*old).clone();
                    object["spec"] = spec;
                    store.replace(&kinds::SHARDED_ETCDS, namespace, name, object, &by).expect("a resource");
                }
            }
        });
    }

    /// Changes fields of the spec, as a merge patch.
    pub fn edit(&self, name: &str, spec: &Value) {
        let patch = json!({"spec": spec});
        self.server.with(|store| {
            store
                .merge_patch(&kinds::SHARDED_ETCDS, NAMESPACE, name, &patch, &Write::by("kubectl"))
                .expect("the resource is there");
        });
    }

    pub fn delete(&self, kind: &'static Kind, name: &str) {
        self.server.with(|store| {
            store.delete(kind, NAMESPACE, name, &DeleteOptions::default()).expect("it is there");
        });
    }

    pub fn create(&self, kind: &'static Kind, object: Value) -> Object {
        self.server.with(|store| {
            store.create(kind, NAMESPACE, object, &Write::by("somebody")).expect("it can be made")
        })
    }

    pub fn get(&self, kind: &'static Kind, name: &str) -> Option<Object> {
        self.server.store.lock().get(kind, NAMESPACE, name)
    }

    pub fn list(&self, kind: &'static Kind) -> Vec<Object> {
        self.server.store.lock().list(kind, Some(NAMESPACE))
    }

    /// A condition of a resource: status and reason.
    pub fn condition(&self, name: &str, kind: &str) -> Option<(String, String)> {
        self.condition_in(NAMESPACE, name, kind)
    }

    pub fn condition_in(&self, namespace: &str, name: &str, kind: &str) -> Option<(String, String)> {
        let resource = self.server.store.lock().get(&kinds::SHARDED_ETCDS, namespace, name)?;
        let conditions = resource["status"]["conditions"].as_array()?;
        let found = conditions.iter().find(|c| c["type"] == kind)?;
        Some((text(&found["status"]).to_owned(), text(&found["reason"]).to_owned()))
    }

    /// Ready, for the newest generation.
    pub fn is_ready(&self, name: &str) -> bool {
        self.is_ready_in(NAMESPACE, name)
    }

    pub fn is_ready_in(&self, namespace: &str, name: &str) -> bool {
        let resource = self.server.store.lock().get(&kinds::SHARDED_ETCDS, namespace, name);
        let current =
            resource.is_some_and(|r| r["status"]["observedGeneration"] == r["metadata"]["generation"]);
        let is = |kind: &str, wanted: &str| {
            self.condition_in(namespace, name, kind).is_some_and(|(status, _)| status == wanted)
        };
        current && is("Ready", "True") && !is("Reconciling", "True") && !is("Stalled", "True")
    }

    /// Everything in the namespace, without what differs from run to run.
    pub fn normalised(&self) -> Value {
        normal::normalise(&self.server.store.lock(), &self.managers.0.lock(), NAMESPACE)
    }
}

/// Members of the same cluster as `pod` that were not ready when it was deleted.
fn others_not_ready(store: &Store, namespace: &str, pod: &Value) -> Option<String> {
    let owners = pod["metadata"]["ownerReferences"].as_array()?;
    let set = owners.iter().find(|o| o["kind"] == "StatefulSet")?;
    let set = store.get(&kinds::STATEFUL_SETS, namespace, text(&set["name"]))?;
    if !set["metadata"]["deletionTimestamp"].is_null() {
        return None;
    }
    let replicas = set["spec"]["replicas"].as_u64()?;
    let (set, pod) = (text(&set["metadata"]["name"]), text(&pod["metadata"]["name"]));
    let sick = (0..replicas).map(|ordinal| format!("{set}-{ordinal}")).find(|other| {
        other != pod && !store.get(&kinds::PODS, namespace, other).is_some_and(|p| is_ready(&p))
    })?;
    Some(format!("pod {pod} was deleted while {sick} was not ready"))
}
