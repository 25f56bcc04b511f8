//! What the API server's watches have shown, in memory: one watch a kind, by resource.
//!
//! It may be old at any time, and may have gaps. Nothing is destroyed or made on its word alone; `apply` asks first.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Debug,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, pin_mut};
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{ConfigMap, Event, PersistentVolumeClaim, Pod, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
    storage::v1::StorageClass,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::{DeserializeGuard, NamespaceResourceScope},
    runtime::{
        WatchStreamExt,
        reflector::{self, Store},
        watcher,
    },
};
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use sharded_etcd_crd::{KIND, ShardedEtcd};
use tokio::{sync::watch, task::JoinSet, time::sleep};

use crate::{
    model::Children,
    names::{LABEL_INSTANCE, LABEL_MANAGED_BY, MANAGED_BY, controller, label},
    queue::{Key, Queue},
};

/// What may not be watched is tried again after this time.
const DENIED: Duration = Duration::from_secs(600);

/// Whether a watch has shown everything once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Synced {
    Not,
    /// It is not permitted; nothing is known of this kind.
    Denied,
    Yes,
}

/// The objects of one kind, by the resource that they belong to and by name.
pub(crate) struct Shelf<K> {
    objects: RwLock<HashMap<Key, BTreeMap<String, Arc<K>>>>,
    synced: watch::Sender<Synced>,
}

impl<K> Shelf<K> {
    fn new() -> Arc<Self> {
        Arc::new(Self { objects: RwLock::default(), synced: watch::Sender::new(Synced::Not) })
    }

    /// Those of one resource.
    pub(crate) fn of(&self, key: &Key) -> BTreeMap<String, Arc<K>> {
        self.objects.read().get(key).cloned().unwrap_or_default()
    }

    async fn wait(&self) {
        // The sender lives as long as this.
        let _ = self.synced.subscribe().wait_for(|synced| *synced != Synced::Not).await;
    }

    fn is_denied(&self) -> bool {
        *self.synced.borrow() == Synced::Denied
    }
}

/// The watch of one kind.
struct Watch<K> {
    what: &'static str,
    shelf: Arc<Shelf<K>>,
    /// Where an object belongs; `None`: nowhere.
    place: fn(&K) -> Option<Key>,
    /// Called for each object that was changed, came or went.
    touched: Box<dyn Fn(&K) + Send + Sync>,
    /// Goes on without it if it is not permitted.
    optional: bool,
}

impl<K> Watch<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    async fn run(self, api: Api<K>, config: watcher::Config) {
        let events = watcher::watcher(api, config).modify(trim).default_backoff();
        pin_mut!(events);
        let mut buffer = HashMap::new();
        let mut failing = false;
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    if std::mem::take(&mut failing) {
                        tracing::info!(kind = self.what, "the watch is back");
                    }
                    self.take(event, &mut buffer);
                }
                Err(error) => {
                    self.failed(&error, &mut failing);
                    if self.shelf.is_denied() {
                        sleep(DENIED).await;
                    }
                }
            }
        }
    }

    fn take(&self, event: watcher::Event<K>, buffer: &mut HashMap<Key, BTreeMap<String, Arc<K>>>) {
        match event {
            watcher::Event::Apply(object) => {
                let object = Arc::new(object);
                if let Some(key) = (self.place)(&object) {
                    let mut objects = self.shelf.objects.write();
                    objects.entry(key).or_default().insert(object.name_any(), Arc::clone(&object));
                }
                (self.touched)(&object);
            }
            watcher::Event::Delete(object) => {
                let mut objects = self.shelf.objects.write();
                if let Some(key) = (self.place)(&object)
                    && let Some(of_key) = objects.get_mut(&key)
                {
                    of_key.remove(&object.name_any());
                    if of_key.is_empty() {
                        objects.remove(&key);
                    }
                }
                drop(objects);
                (self.touched)(&object);
            }
            watcher::Event::Init => buffer.clear(),
            watcher::Event::InitApply(object) => {
                if let Some(key) = (self.place)(&object) {
                    buffer.entry(key).or_default().insert(object.name_any(), Arc::new(object));
                }
            }
            watcher::Event::InitDone => {
                let old = std::mem::replace(&mut *self.shelf.objects.write(), std::mem::take(buffer));
                self.shelf.synced.send_replace(Synced::Yes);
                let new = self.shelf.objects.read().clone();
                old.values().chain(new.values()).flat_map(BTreeMap::values).for_each(|o| (self.touched)(o));
            }
        }
    }

    /// Says it once, until it is over.
    fn failed(&self, error: &watcher::Error, failing: &mut bool) {
        if self.optional && is_forbidden(error) {
            if !std::mem::replace(failing, true) {
                tracing::info!(kind = self.what, "may not be watched, so nothing is said about them");
            }
            self.shelf.synced.send_replace(Synced::Denied);
        } else if std::mem::replace(failing, true) {
            tracing::debug!(kind = self.what, %error, "the watch still fails");
        } else {
            tracing::warn!(kind = self.what, %error, "the watch fails; it is tried again");
        }
    }
}

/// Takes away what nobody here reads: it is half of a small object.
fn trim<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

fn is_forbidden(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => status.code == 403,
        watcher::Error::WatchError(status) => status.code == 403,
        _ => false,
    }
}

/// The resource that an object belongs to: the one that controls it, else the one that its label names, as for pods and
/// volume claims.
fn owner<K: Resource>(object: &K) -> Option<Key> {
    let metadata = object.meta();
    let namespace = metadata.namespace.clone()?;
    let owner = controller(metadata).filter(|owner| owner.kind == KIND).map(|owner| owner.name.as_str());
    let name = label(metadata, LABEL_INSTANCE).or(owner)?;
    Some((namespace, name.to_owned()))
}

/// Kinds of no resource are all in one place.
fn nowhere() -> Key {
    (String::new(), String::new())
}

/// All that is watched.
pub(crate) struct Stores {
    pub(crate) resources: Store<ShardedEtcd>,
    config_maps: Arc<Shelf<ConfigMap>>,
    deployments: Arc<Shelf<Deployment>>,
    network_policies: Arc<Shelf<NetworkPolicy>>,
    disruption_budgets: Arc<Shelf<PodDisruptionBudget>>,
    pods: Arc<Shelf<Pod>>,
    service_accounts: Arc<Shelf<ServiceAccount>>,
    services: Arc<Shelf<Service>>,
    stateful_sets: Arc<Shelf<StatefulSet>>,
    volume_claims: Arc<Shelf<PersistentVolumeClaim>>,
    storage_classes: Arc<Shelf<StorageClass>>,
    /// By namespace: those that say that a pod or a claim cannot be made.
    events: Arc<Shelf<Event>>,
}

impl Stores {
    /// Starts the watches, as tasks of `tasks` that never end.
    pub(crate) fn start(
        client: &Client,
        namespace: Option<&str>,
        queue: &Arc<Queue>,
        tasks: &mut JoinSet<&'static str>,
    ) -> Arc<Self> {
        let start = Start { client, namespace, queue };
        let (resources, writer) = reflector::store();
        tasks.spawn(watch_resources(start.api(), writer, Arc::clone(queue)));
        let stores = Self {
            config_maps: start.children("ConfigMaps", tasks),
            deployments: start.children("Deployments", tasks),
            network_policies: start.children("NetworkPolicies", tasks),
            disruption_budgets: start.children("PodDisruptionBudgets", tasks),
            pods: start.children("Pods", tasks),
            service_accounts: start.children("ServiceAccounts", tasks),
            services: start.children("Services", tasks),
            stateful_sets: start.children("StatefulSets", tasks),
            volume_claims: start.children("PersistentVolumeClaims", tasks),
            storage_classes: start.storage_classes(resources.clone(), tasks),
            events: start.events(resources.clone(), tasks),
            resources,
        };
        Arc::new(stores)
    }

    /// Returns once all watches have shown everything, or may not.
    pub(crate) async fn wait(&self) {
        // An error says that the watch has ended, which its task reports.
        let _ = self.resources.wait_until_ready().await;
        self.config_maps.wait().await;
        self.deployments.wait().await;
        self.network_policies.wait().await;
        self.disruption_budgets.wait().await;
        self.pods.wait().await;
        self.service_accounts.wait().await;
        self.services.wait().await;
        self.stateful_sets.wait().await;
        self.volume_claims.wait().await;
        self.storage_classes.wait().await;
        self.events.wait().await;
    }

    /// The objects of a resource.
    pub(crate) fn children(&self, key: &Key) -> Children {
        Children {
            config_maps: self.config_maps.of(key),
            deployments: self.deployments.of(key),
            network_policies: self.network_policies.of(key),
            disruption_budgets: self.disruption_budgets.of(key),
            pods: self.pods.of(key),
            service_accounts: self.service_accounts.of(key),
            services: self.services.of(key),
            stateful_sets: self.stateful_sets.of(key),
            volume_claims: self.volume_claims.of(key),
        }
    }

    /// Whether there is a storage class of this name; true if that may not be known.
    pub(crate) fn has_storage_class(&self, name: &str) -> bool {
        self.storage_classes.is_denied() || self.storage_classes.of(&nowhere()).contains_key(name)
    }

    /// What went wrong in a namespace when pods or claims were to be made.
    pub(crate) fn warnings(&self, namespace: &str) -> BTreeMap<String, Arc<Event>> {
        self.events.of(&(namespace.to_owned(), String::new()))
    }
}

/// What every watch is started with.
struct Start<'a> {
    client: &'a Client,
    namespace: Option<&'a str>,
    queue: &'a Arc<Queue>,
}

impl Start<'_> {
    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    fn children<K>(&self, what: &'static str, tasks: &mut JoinSet<&'static str>) -> Arc<Shelf<K>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
    {
        let queue = Arc::clone(self.queue);
        let touched = move |object: &K| {
            if let Some(key) = owner(object) {
                queue.push(key);
            }
        };
        let config = watcher::Config::default().labels(&format!("{LABEL_MANAGED_BY}={MANAGED_BY}"));
        self.spawn(what, owner, Box::new(touched), config, self.api(), false, tasks)
    }

    fn storage_classes(
        &self,
        resources: Store<ShardedEtcd>,
        tasks: &mut JoinSet<&'static str>,
    ) -> Arc<Shelf<StorageClass>> {
        let queue = Arc::clone(self.queue);
        let touched = move |_: &StorageClass| {
            resources.state().iter().for_each(|resource| queue.push(key_of(resource)));
        };
        let api = Api::all(self.client.clone());
        let place = |_: &StorageClass| Some(nowhere());
        self.spawn("StorageClasses", place, Box::new(touched), watcher::Config::default(), api, true, tasks)
    }

    fn events(&self, resources: Store<ShardedEtcd>, tasks: &mut JoinSet<&'static str>) -> Arc<Shelf<Event>> {
        let queue = Arc::clone(self.queue);
        let touched = move |event: &Event| {
            let about = event.involved_object.name.as_deref().unwrap_or_default();
            for resource in resources.state() {
                let (namespace, name) = key_of(&resource);
                let is_child = about.strip_prefix(&name).is_some_and(|rest| rest.starts_with('-'));
                if is_child && event.metadata.namespace.as_deref() == Some(&namespace) {
                    queue.push((namespace, name));
                }
            }
        };
        let place = |event: &Event| Some((event.metadata.namespace.clone()?, String::new()));
        let config = watcher::Config::default().fields("type=Warning,reason=FailedCreate");
        self.spawn("Events", place, Box::new(touched), config, self.api(), true, tasks)
    }

    #[expect(clippy::too_many_arguments, reason = "each is another part of one watch")]
    fn spawn<K>(
        &self,
        what: &'static str,
        place: fn(&K) -> Option<Key>,
        touched: Box<dyn Fn(&K) + Send + Sync>,
        config: watcher::Config,
        api: Api<K>,
        optional: bool,
        tasks: &mut JoinSet<&'static str>,
    ) -> Arc<Shelf<K>>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let shelf = Shelf::new();
        let watch = Watch { what, shelf: Arc::clone(&shelf), place, touched, optional };
        tasks.spawn(async move {
            watch.run(api, config).await;
            what
        });
        shelf
    }
}

/// Namespace and name of a resource.
pub(crate) fn key_of(resource: &ShardedEtcd) -> Key {
    (resource.namespace().unwrap_or_default(), resource.name_any())
}

/// One resource that cannot be read (an older or newer CRD let it in) holds up no other.
async fn watch_resources(
    api: Api<ShardedEtcd>,
    mut writer: reflector::store::Writer<ShardedEtcd>,
    queue: Arc<Queue>,
) -> &'static str {
    let what = "ShardedEtcds";
    let api: Api<DeserializeGuard<ShardedEtcd>> = match api.namespace() {
        Some(namespace) => Api::namespaced(api.clone().into_client(), namespace),
        None => Api::all(api.into_client()),
    };
    let events = watcher::watcher(api, watcher::Config::default()).modify(trim).default_backoff();
    pin_mut!(events);
    let mut failing = false;
    let mut unreadable = HashSet::<String>::new();
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) if std::mem::replace(&mut failing, true) => {
                tracing::debug!(kind = what, %error, "the watch still fails");
                continue;
            }
            Err(error) => {
                tracing::warn!(kind = what, %error, "the watch fails; it is tried again");
                continue;
            }
        };
        if std::mem::take(&mut failing) {
            tracing::info!(kind = what, "the watch is back");
        }
        let before =
            if matches!(event, watcher::Event::InitDone) { writer.as_reader().state() } else { Vec::new() };
        let Some(event) = readable(event, &mut unreadable) else { continue };
        writer.apply_watcher_event(&event);
        match &event {
            watcher::Event::Apply(object) | watcher::Event::Delete(object) => queue.push(key_of(object)),
            watcher::Event::InitDone => {
                let after = writer.as_reader().state();
                before.iter().chain(&after).for_each(|object| queue.push(key_of(object)));
            }
            watcher::Event::Init | watcher::Event::InitApply(_) => {}
        }
    }
    what
}

/// The event, unless its object cannot be read; then the object stays as it was.
fn readable(
    event: watcher::Event<DeserializeGuard<ShardedEtcd>>,
    unreadable: &mut HashSet<String>,
) -> Option<watcher::Event<ShardedEtcd>> {
    let mut read = |guard: DeserializeGuard<ShardedEtcd>| match guard.0 {
        Ok(object) => {
            unreadable.remove(&object.uid().unwrap_or_default());
            Some(object)
        }
        Err(invalid) => {
            let (namespace, name) = (invalid.metadata.namespace, invalid.metadata.name);
            if unreadable.insert(invalid.metadata.uid.unwrap_or_default()) {
                tracing::error!(
                    ?namespace,
                    ?name,
                    error = invalid.error,
                    "a resource cannot be read; it stays as it is"
                );
            }
            None
        }
    };
    Some(match event {
        watcher::Event::Apply(guard) => watcher::Event::Apply(read(guard)?),
        watcher::Event::InitApply(guard) => watcher::Event::InitApply(read(guard)?),
        watcher::Event::Delete(guard) => watcher::Event::Delete(match guard.0 {
            Ok(object) => {
                unreadable.remove(&object.uid().unwrap_or_default());
                object
            }
            Err(invalid) => {
                unreadable.remove(invalid.metadata.uid.as_deref().unwrap_or_default());
                let mut object = ShardedEtcd::with_shards("", 1);
                object.metadata = invalid.metadata;
                object
            }
        }),
        watcher::Event::Init => watcher::Event::Init,
        watcher::Event::InitDone => watcher::Event::InitDone,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use parking_lot::Mutex;
    use serde_json::json;

    use super::*;

    fn config_map(name: &str, instance: &str, version: &str) -> ConfigMap {
        let metadata = json!({"name": name, "namespace": "ns", "labels": {LABEL_INSTANCE: instance}, "resourceVersion": version});
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    #[test]
    fn a_relist_shows_what_went() {
        let touched = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&touched);
        let watch = Watch::<ConfigMap> {
            what: "ConfigMaps",
            shelf: Shelf::new(),
            place: owner,
            touched: Box::new(move |object| seen.lock().push(object.name_any())),
            optional: false,
        };
        let mut buffer = HashMap::new();
        let key = |name: &str| ("ns".to_owned(), name.to_owned());
        watch.take(watcher::Event::Init, &mut buffer);
        watch.take(watcher::Event::InitApply(config_map("a", "demo", "1")), &mut buffer);
        assert!(watch.shelf.of(&key("demo")).is_empty());
        watch.take(watcher::Event::InitDone, &mut buffer);
        watch.take(watcher::Event::Apply(config_map("b", "demo", "2")), &mut buffer);
        watch.take(watcher::Event::Apply(config_map("c", "other", "3")), &mut buffer);
        assert_eq!(watch.shelf.of(&key("demo")).keys().collect::<Vec<_>>(), ["a", "b"]);
        touched.lock().clear();

        watch.take(watcher::Event::Init, &mut buffer);
        watch.take(watcher::Event::InitApply(config_map("b", "demo", "2")), &mut buffer);
        watch.take(watcher::Event::InitDone, &mut buffer);
        assert_eq!(watch.shelf.of(&key("demo")).keys().collect::<Vec<_>>(), ["b"]);
        assert!(watch.shelf.of(&key("other")).is_empty());
        let mut names = std::mem::take(&mut *touched.lock());
        names.sort();
        assert_eq!(names, ["a", "b", "b", "c"]);

        watch.take(watcher::Event::Delete(config_map("b", "demo", "4")), &mut buffer);
        assert!(watch.shelf.of(&key("demo")).is_empty());
    }

    #[test]
    fn an_unreadable_resource_leaves_the_others_alone() {
        let guard = |spec: serde_json::Value| -> DeserializeGuard<ShardedEtcd> {
            let metadata = json!({"name": "demo", "namespace": "ns", "uid": "u"});
            serde_json::from_value(json!({"apiVersion": "shardedetcd.io/v1alpha1", "kind": KIND, "metadata": metadata, "spec": spec})).unwrap()
        };
        let mut unreadable = HashSet::new();
        assert!(readable(watcher::Event::Apply(guard(json!({"shards": "x"}))), &mut unreadable).is_none());
        assert_eq!(unreadable.len(), 1);
        assert!(readable(watcher::Event::Apply(guard(json!({"shards": 1}))), &mut unreadable).is_some());
        assert!(unreadable.is_empty());
        let gone = readable(watcher::Event::Delete(guard(json!({"shards": "x"}))), &mut unreadable);
        let Some(watcher::Event::Delete(gone)) = gone else { panic!("it is gone") };
        assert_eq!(key_of(&gone), ("ns".to_owned(), "demo".to_owned()));
    }
}
