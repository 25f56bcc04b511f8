//! The objects of the scripted API server, with their history.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    defaults,
    fields::{self, Path},
    kinds::{self, Kind},
};

pub type Object = Arc<Value>;

/// Why the server says no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
}

impl Refusal {
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into() }
    }

    pub fn not_found(kind: &Kind, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} {name:?} not found", kind.resource()))
    }

    pub fn conflict(kind: &Kind, name: &str, what: &str) -> Self {
        let resource = kind.resource();
        Self::new(409, "Conflict", format!("Operation cannot be fulfilled on {resource} {name:?}: {what}"))
    }

    /// As the API server answers it.
    pub fn body(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        })
    }
}

/// Where an object is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub namespace: String,
    kind: usize,
    pub name: String,
}

impl Key {
    pub fn new(kind: &'static Kind, namespace: &str, name: &str) -> Self {
        let namespace = if kind.namespaced { namespace } else { "" };
        Self { namespace: namespace.to_owned(), kind: kind.index(), name: name.to_owned() }
    }

    pub fn kind(&self) -> &'static Kind {
        kinds::ALL[self.kind]
    }
}

/// Who set a field, and how.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Manager {
    pub name: String,
    pub apply: bool,
    pub sub: Option<&'static str>,
}

#[derive(Debug, Clone)]
struct Entry {
    object: Object,
    owned: Arc<Owned>,
}

/// Fields by who set them.
type Owned = BTreeMap<Manager, BTreeSet<Path>>;

/// One change, as watches see it.
#[derive(Debug, Clone)]
pub struct Change {
    pub rv: u64,
    pub at: Instant,
    pub key: Key,
    pub old: Option<Object>,
    /// With the new resourceVersion, also for a deleted object.
    pub new: Object,
    pub deleted: bool,
}

/// How to delete.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub propagation: Option<String>,
    pub grace: Option<i64>,
    pub dry: bool,
}

/// How to write.
#[derive(Debug, Clone)]
pub struct Write {
    pub manager: Manager,
    pub force: bool,
    pub dry: bool,
}

impl Write {
    /// By something in the cluster.
    pub fn by(name: &str) -> Self {
        Self { manager: Manager { name: name.to_owned(), apply: false, sub: None }, force: false, dry: false }
    }

    /// Of the status.
    pub fn status(name: &str) -> Self {
        let mut write = Self::by(name);
        write.manager.sub = Some("status");
        write
    }
}

#[derive(Debug, Clone)]
pub struct Store {
    entries: BTreeMap<Key, Entry>,
    rv: u64,
    uids: u64,
    history: Vec<Change>,
    /// Revisions up to it are gone from the history.
    compacted: u64,
}

type Answer = Result<Object, Refusal>;

impl Default for Store {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), rv: 100, uids: 0, history: Vec::new(), compacted: 100 }
    }
}

impl Store {
    pub fn revision(&self) -> u64 {
        self.rv
    }

    pub fn compacted(&self) -> u64 {
        self.compacted
    }

    /// Forgets the history: a watch from before it is told that it is gone.
    pub fn compact(&mut self) {
        self.compacted = self.rv;
        self.history.clear();
    }

    /// Copies what is in a namespace to another one, as a resource that was made there; `uids` goes into the uids.
    pub fn copy_namespace(&mut self, from: &str, to: &str, uids: u32) {
        for (key, object) in self.in_namespace(from) {
            let text = object.to_string().replace(from, to);
            let text = text.replace("-4000-8000-", &format!("-4000-8{uids:03x}-"));
            self.load(key.kind(), to, serde_json::from_str(&text).expect("still JSON"));
        }
    }

    /// Puts in an object as it is, with its uid.
    pub fn load(&mut self, kind: &'static Kind, namespace: &str, mut object: Value) {
        self.rv += 1;
        self.compacted = self.rv;
        object["metadata"]["resourceVersion"] = json!(self.rv.to_string());
        let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
        let entry = Entry { object: Arc::new(object), owned: Arc::default() };
        self.entries.insert(Key::new(kind, namespace, &name), entry);
    }

    /// The first change after a revision.
    pub fn changes_after(&self, rv: u64) -> &[Change] {
        let from = self.history.partition_point(|change| change.rv <= rv);
        &self.history[from..]
    }

    pub fn get(&self, kind: &'static Kind, namespace: &str, name: &str) -> Option<Object> {
        self.entries.get(&Key::new(kind, namespace, name)).map(|e| e.object.clone())
    }

    /// All of a kind, in one namespace or in all.
    pub fn list(&self, kind: &'static Kind, namespace: Option<&str>) -> Vec<Object> {
        match namespace {
            Some(namespace) => {
                let from = Key::new(kind, namespace, "");
                let own = |key: &Key| key.namespace == from.namespace && key.kind == from.kind;
                let range = self.entries.range(from.clone()..);
                range.take_while(|(key, _)| own(key)).map(|(_, e)| e.object.clone()).collect()
            }
            None => {
                let index = kind.index();
                self.entries.iter().filter(|(k, _)| k.kind == index).map(|(_, e)| e.object.clone()).collect()
            }
        }
    }

    /// The objects of a kind as they were at a revision that the history still reaches.
    pub fn list_at(&self, kind: &'static Kind, namespace: Option<&str>, rv: u64) -> Vec<Object> {
        let index = kind.index();
        let own = |key: &Key| key.kind == index && namespace.is_none_or(|n| n == key.namespace);
        let mut objects: BTreeMap<Key, Object> = BTreeMap::new();
        for (key, entry) in self.entries.iter().filter(|(key, _)| own(key)) {
            objects.insert(key.clone(), entry.object.clone());
        }
        for change in self.changes_after(rv).iter().rev().filter(|c| own(&c.key)) {
            match &change.old {
                Some(old) => objects.insert(change.key.clone(), old.clone()),
                None => objects.remove(&change.key),
            };
        }
        objects.into_values().collect()
    }

    /// All objects of a namespace.
    pub fn in_namespace(&self, namespace: &str) -> Vec<(Key, Object)> {
        let all = self.entries.iter().filter(|(k, _)| k.namespace == namespace);
        all.map(|(k, e)| (k.clone(), e.object.clone())).collect()
    }

    /// All objects.
    pub fn all(&self) -> impl Iterator<Item = (&Key, &Object)> {
        self.entries.iter().map(|(k, e)| (k, &e.object))
    }

    pub fn create(&mut self, kind: &'static Kind, namespace: &str, object: Value, write: &Write) -> Answer {
        let mut object = object;
        if object["metadata"]["name"].as_str().unwrap_or_default().is_empty() {
            let prefix = object["metadata"]["generateName"].as_str().unwrap_or_default().to_owned();
            object["metadata"]["name"] = json!(format!("{prefix}{:05x}", self.uids));
        }
        let name = object["metadata"]["name"].as_str().expect("just set").to_owned();
        let key = Key::new(kind, namespace, &name);
        if self.entries.contains_key(&key) {
            let message = format!("{} {name:?} already exists", kind.resource());
            return Err(Refusal::new(409, "AlreadyExists", message));
        }
        if !object["metadata"]["resourceVersion"].as_str().unwrap_or_default().is_empty() {
            return Err(Refusal::new(
                400,
                "BadRequest",
                "resourceVersion should not be set on objects to be created",
            ));
        }
        if kind.status && *kind != kinds::PODS && *kind != kinds::CLAIMS {
            object.as_object_mut().expect("an object").remove("status");
        }
        let owned = BTreeMap::from([(write.manager.clone(), fields::leaves(&object))]);
        self.commit(key, object, owned, write)
    }

    /// Replaces the object, or its status.
    pub fn replace(
        &mut self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        object: Value,
        write: &Write,
    ) -> Answer {
        let key = Key::new(kind, namespace, name);
        let Some(entry) = self.entries.get(&key) else { return Err(Refusal::not_found(kind, name)) };
        let old = entry.object.clone();
        let of_old = |field: &str| old["metadata"][field].as_str().unwrap_or_default().to_owned();
        for field in ["uid", "resourceVersion"] {
            let sent = object["metadata"][field].as_str().unwrap_or_default();
            if !sent.is_empty() && sent != of_old(field) {
                let what = "the object has been modified; please apply your changes to the latest version and try again";
                return Err(Refusal::conflict(kind, name, what));
            }
        }
        let new = restrict(kind, &old, object, write.manager.sub);
        if new == *old {
            return Ok(old);
        }
        let mut owned = (*entry.owned).clone();
        if !write.manager.apply {
            let (before, after) = (fields::leaves(&old), fields::leaves(&new));
            let changed: BTreeSet<Path> =
                after.iter().filter(|p| fields::at(&old, p) != fields::at(&new, p)).cloned().collect();
            for set in owned.values_mut() {
                set.retain(|p| !changed.contains(p) && (after.contains(p) || !before.contains(p)));
            }
            owned.entry(write.manager.clone()).or_default().extend(changed);
        }
        self.commit(key, new, owned, write)
    }

    pub fn merge_patch(
        &mut self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        patch: &Value,
        write: &Write,
    ) -> Answer {
        let Some(old) = self.get(kind, namespace, name) else { return Err(Refusal::not_found(kind, name)) };
        let mut new = (*old).clone();
        fields::merge_patch(&mut new, patch);
        self.replace(kind, namespace, name, new, write)
    }

    /// Server-side apply.
    pub fn apply(
        &mut self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        applied: Value,
        write: &Write,
    ) -> Answer {
        let wrong = |what: String| Err(Refusal::new(400, "BadRequest", what));
        if applied["apiVersion"] != kind.api_version() || applied["kind"] != kind.kind {
            return wrong(format!("apiVersion and kind must be {} {}", kind.api_version(), kind.kind));
        }
        if applied["metadata"].get("managedFields").is_some_and(|m| !m.is_null()) {
            return wrong("metadata.managedFields must be nil".to_owned());
        }
        if applied["metadata"]["name"].as_str().is_some_and(|n| n != name) {
            return wrong(format!("the name of the object is not {name:?}"));
        }
        defaults::check_fields(kind, &applied)?;
        let key = Key::new(kind, namespace, name);
        let mut applied = applied;
        for system in ["uid", "resourceVersion"] {
            let live = self.entries.get(&key).map(|e| e.object["metadata"][system].clone());
            let sent = applied["metadata"].as_object_mut().and_then(|m| m.remove(system));
            if let Some(sent) = sent.filter(|s| !s.is_null())
                && live.as_ref() != Some(&sent)
            {
                return Err(Refusal::conflict(kind, name, "the object has been modified"));
            }
        }
        let map = applied.as_object_mut().expect("an object");
        match write.manager.sub {
            Some(sub) => map.retain(|k, _| k == sub || k == "apiVersion" || k == "kind"),
            None if kind.status => map.retain(|k, _| k != "status"),
            None => {}
        }
        let set = fields::leaves(&applied);
        let Some(entry) = self.entries.get(&key) else {
            if write.manager.sub.is_some() {
                return Err(Refusal::not_found(kind, name));
            }
            applied["metadata"]["name"] = json!(name);
            let applied = fields::merge(&json!({}), &applied, &mut Vec::new());
            let owned = BTreeMap::from([(write.manager.clone(), set)]);
            return self.commit(key, applied, owned, write);
        };
        let live = entry.object.clone();
        let mut owned = (*entry.owned).clone();
        for (manager, theirs) in owned.iter_mut().filter(|(m, _)| **m != write.manager) {
            let conflicts: Vec<Path> = theirs
                .intersection(&set)
                .filter(|p| !matches!(p.last(), Some(fields::Step::Item(_))))
                .filter(|p| fields::at(&live, p) != fields::at(&applied, p))
                .cloned()
                .collect();
            if !conflicts.is_empty() && !write.force {
                let what = format!("Apply failed with {} conflicts with {:?}", conflicts.len(), manager.name);
                return Err(Refusal::new(409, "Conflict", what));
            }
            theirs.retain(|p| !conflicts.contains(p));
        }
        let mut merged = fields::merge(&live, &applied, &mut Vec::new());
        let before = owned.insert(write.manager.clone(), set.clone()).unwrap_or_default();
        for path in before.difference(&set) {
            let above = |p: &Path| p.starts_with(path);
            if !owned.values().flatten().any(above) {
                fields::remove(&mut merged, path);
            }
        }
        self.commit(key, merged, owned, write)
    }

    pub fn delete(
        &mut self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Answer {
        let key = Key::new(kind, namespace, name);
        let Some(entry) = self.entries.get(&key) else { return Err(Refusal::not_found(kind, name)) };
        let old = entry.object.clone();
        for (field, wanted) in [("uid", &options.uid), ("resourceVersion", &options.resource_version)] {
            if let Some(wanted) = wanted
                && old["metadata"][field] != **wanted
            {
                return Err(Refusal::conflict(
                    kind,
                    name,
                    &format!("the {field} in the precondition does not match"),
                ));
            }
        }
        if options.dry {
            return Ok(old);
        }
        let mut new = (*old).clone();
        let metadata = new["metadata"].as_object_mut().expect("metadata");
        let finalizer = match options.propagation.as_deref() {
            Some("Orphan") => Some("orphan"),
            Some("Foreground") => Some("foregroundDeletion"),
            _ => None,
        };
        if let Some(finalizer) = finalizer {
            let list = metadata.entry("finalizers").or_insert_with(|| json!([]));
            let list = list.as_array_mut().expect("a list");
            if !list.iter().any(|f| f == finalizer) {
                list.push(json!(finalizer));
            }
        }
        let grace = *kind == kinds::PODS && options.grace != Some(0) && new["spec"]["nodeName"].is_string();
        let waits = grace || new["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        if !waits {
            return Ok(self.erase(&key));
        }
        if new["metadata"]["deletionTimestamp"].is_null() {
            new["metadata"]["deletionTimestamp"] = json!(now());
            new["metadata"]["deletionGracePeriodSeconds"] = json!(if grace { 30 } else { 0 });
        }
        let owned = (*entry.owned).clone();
        self.commit(key, new, owned, &Write::by("apiserver"))
    }

    fn erase(&mut self, key: &Key) -> Object {
        let entry = self.entries.remove(key).expect("the caller looked");
        self.rv += 1;
        let mut gone = (*entry.object).clone();
        gone["metadata"]["resourceVersion"] = json!(self.rv.to_string());
        let new = Arc::new(gone);
        self.record(key.clone(), Some(entry.object), new.clone(), true);
        new
    }

    fn record(&mut self, key: Key, old: Option<Object>, new: Object, deleted: bool) {
        self.history.push(Change { rv: self.rv, at: Instant::now(), key, old, new, deleted });
    }

    fn commit(&mut self, key: Key, mut new: Value, mut owned: Owned, write: &Write) -> Answer {
        let kind = key.kind();
        let old = self.entries.get(&key).map(|e| e.object.clone());
        new["apiVersion"] = json!(kind.api_version());
        new["kind"] = json!(kind.kind);
        let uid_number = old.is_none().then_some(self.uids + 1);
        let metadata = new["metadata"].as_object_mut().expect("metadata");
        if kind.namespaced {
            metadata.insert("namespace".into(), json!(key.namespace));
        }
        match &old {
            Some(old) => {
                let gone = ["deletionTimestamp", "deletionGracePeriodSeconds"];
                for field in ["uid", "creationTimestamp", "resourceVersion", "generation", "managedFields"] {
                    match old["metadata"].get(field) {
                        Some(value) => metadata.insert(field.to_owned(), value.clone()),
                        None => metadata.remove(field),
                    };
                }
                if !old["metadata"]["deletionTimestamp"].is_null() {
                    for field in gone {
                        metadata.insert(field.to_owned(), old["metadata"][field].clone());
                    }
                }
            }
            None => {
                metadata
                    .insert("uid".into(), json!(format!("00000000-0000-4000-8000-{:012x}", self.uids + 1)));
                metadata.insert("creationTimestamp".into(), json!(now()));
                metadata.remove("resourceVersion");
                metadata.remove("deletionTimestamp");
                if kind.generation {
                    metadata.insert("generation".into(), json!(1));
                }
            }
        }
        if write.manager.sub != Some("status") {
            defaults::complete(kind, &mut new, uid_number.unwrap_or(0));
            defaults::check(kind, old.as_deref(), &new)?;
        }
        if let Some(old) = &old
            && kind.generation
            && old["spec"] != new["spec"]
        {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(1);
            new["metadata"]["generation"] = json!(generation + 1);
        }
        owned.retain(|_, set| !set.is_empty());
        let same_owners = self.entries.get(&key).is_some_and(|e| *e.owned == owned);
        // Taking over a field that has this value already changes managedFields, and so the resourceVersion.
        if let Some(old) = &old
            && **old == new
            && same_owners
        {
            return Ok(old.clone());
        }
        new["metadata"]["managedFields"] = managed(&owned, kind);
        if let Some(old) = &old
            && **old == new
        {
            self.entries.get_mut(&key).expect("it is there").owned = Arc::new(owned);
            return Ok(old.clone());
        }
        if write.dry {
            return Ok(Arc::new(new));
        }
        let dying = !new["metadata"]["deletionTimestamp"].is_null();
        let held = new["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        let graceful = *kind == kinds::PODS;
        if let Some(old) = &old
            && dying
            && !held
            && !graceful
            && old["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty())
        {
            return Ok(self.erase(&key));
        }
        if old.is_none() {
            self.uids += 1;
        }
        self.rv += 1;
        new["metadata"]["resourceVersion"] = json!(self.rv.to_string());
        let new = Arc::new(new);
        self.entries.insert(key.clone(), Entry { object: new.clone(), owned: Arc::new(owned) });
        self.record(key, old, new.clone(), false);
        Ok(new)
    }
}

/// What a write to this (sub-)resource may change.
fn restrict(kind: &Kind, old: &Value, mut sent: Value, sub: Option<&str>) -> Value {
    match sub {
        Some("status") => {
            let mut new = old.clone();
            match sent.get_mut("status").map(Value::take) {
                Some(status) => new["status"] = status,
                None => drop(new.as_object_mut().expect("an object").remove("status")),
            }
            new
        }
        _ => {
            if kind.status {
                match old.get("status") {
                    Some(status) => sent["status"] = status.clone(),
                    None => drop(sent.as_object_mut().expect("an object").remove("status")),
                }
            }
            sent
        }
    }
}

/// The fields themselves are left out: nobody here reads them, and they are long.
fn managed(owned: &Owned, kind: &Kind) -> Value {
    let entries = owned.keys().map(|manager| {
        let mut entry = json!({
            "manager": manager.name,
            "operation": if manager.apply { "Apply" } else { "Update" },
            "apiVersion": kind.api_version(),
            "fieldsType": "FieldsV1",
            "fieldsV1": {},
        });
        if let Some(sub) = manager.sub {
            entry["subresource"] = json!(sub);
        }
        entry
    });
    Value::Array(entries.collect())
}

/// The time, which goes on while the tests' clock does.
pub fn now() -> String {
    use std::sync::LazyLock;
    static START: LazyLock<jiff::Timestamp> = LazyLock::new(jiff::Timestamp::now);
    thread_local! {
        static FIRST: std::cell::OnceCell<Instant> = const { std::cell::OnceCell::new() };
    }
    let elapsed =
        FIRST.with(|first| Instant::now().saturating_duration_since(*first.get_or_init(Instant::now)));
    let seconds = START.as_second() + i64::try_from(elapsed.as_secs()).expect("short");
    jiff::Timestamp::from_second(seconds).expect("in range").to_string()
}
