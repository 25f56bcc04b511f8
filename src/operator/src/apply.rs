//! Step 4: makes the objects as they should be, and takes away what should go.
//!
//! What the watches show may be old, so nothing is done on their word alone:
//!
//! - Before the first write of a pass the resource itself is read: it must be the same one, of the same generation, and
//!   not on its way out.
//! - A write to an object that is there names its uid and resourceVersion, so an older picture of it changes nothing.
//! - An object that is not there is looked for before it is made, and made without force: what belongs to somebody else
//!   is never taken over, only reported.
//! - What destroys (StatefulSets, pods, volume claims) is decided twice, the second time with an answer of the shard
//!   manager that was asked for after the first; and the object must be the very one that was looked at (preconditions).
//!   Before a pod is deleted, its fellow members are looked at once more, live.
//!
//! StatefulSets are deleted in the foreground: the object stays until its pods are gone, so that a new incarnation of
//! the shard does not meet them. Everything else goes in the background.
//!
//! One object that is refused holds up no other, and is not sent again within a minute unless it or its manifest
//! changed.

use std::time::Duration;

use k8s_openapi::{api::core::v1::PersistentVolumeClaim, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, DynamicObject, Preconditions, PropagationPolicy},
};
use serde::Serialize;
use serde_json::{Value, json};
use sharded_etcd_crd::{KIND, ShardedEtcd};
use tokio::time::Instant;

use crate::{
    calls::{CallError, Calls},
    diff,
    memory::{Memory, ObjectMemory},
    model::{Applied, ApplyFailure, Children, Deletion, Desired, Manifest, Observed},
    names, quantity,
    restart::is_serving,
    settings::Pace,
};

/// What was refused is sent again after this time.
const REFUSED: Duration = Duration::from_secs(60);
/// Conflicts in a row with one object before they are reported.
const CONFLICTS_MAX: u32 = 5;

/// What became of it.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) applied: Applied,
    /// Something was written.
    pub(crate) wrote: bool,
    /// Something waits for a newer picture: look again soon.
    pub(crate) again: bool,
    /// Something waits for a newer answer of the shard manager.
    pub(crate) ask: bool,
    /// What was deleted.
    pub(crate) deleted: Vec<Deletion>,
}

/// An object in the stores, of whatever kind.
trait Child: Send + Sync {
    fn metadata(&self) -> &ObjectMeta;
    fn value(&self) -> Value;
}

impl<K: Resource + Serialize + Send + Sync> Child for K {
    fn metadata(&self) -> &ObjectMeta {
        self.meta()
    }

    fn value(&self) -> Value {
        // An object that came as JSON goes as JSON.
        serde_json::to_value(self).unwrap_or_default()
    }
}

fn child<'a>(children: &'a Children, kind: &str, name: &str) -> Option<&'a dyn Child> {
    macro_rules! look {
        ($shelf:ident) => {
            children.$shelf.get(name).map(|object| &**object as &dyn Child)
        };
    }
    match kind {
        "ConfigMap" => look!(config_maps),
        "Deployment" => look!(deployments),
        "NetworkPolicy" => look!(network_policies),
        "PersistentVolumeClaim" => look!(volume_claims),
        "Pod" => look!(pods),
        "PodDisruptionBudget" => look!(disruption_budgets),
        "Service" => look!(services),
        "ServiceAccount" => look!(service_accounts),
        "StatefulSet" => look!(stateful_sets),
        _ => None,
    }
}

/// One pass over what a resource should have.
pub(crate) struct Pass<'a> {
    pub(crate) calls: &'a Calls,
    pub(crate) pace: &'a Pace,
    pub(crate) observed: &'a Observed,
    /// When the shard manager was asked for the answer at hand; `None` if there is nobody to ask.
    pub(crate) asked: Option<Instant>,
    pub(crate) memory: &'a mut Memory,
    pub(crate) outcome: Outcome,
    /// What reading the resource said: whether it is as the watch shows it.
    confirmed: Option<bool>,
    namespace: String,
    uid: String,
}

impl<'a> Pass<'a> {
    pub(crate) fn new(
        calls: &'a Calls,
        pace: &'a Pace,
        observed: &'a Observed,
        asked: Option<Instant>,
        memory: &'a mut Memory,
    ) -> Self {
        let namespace = observed.resource.namespace().unwrap_or_default();
        let uid = observed.resource.uid().unwrap_or_default();
        Self {
            calls,
            pace,
            observed,
            asked,
            memory,
            outcome: Outcome::default(),
            confirmed: None,
            namespace,
            uid,
        }
    }

    /// Does all of it.
    ///
    /// # Errors
    /// Only if this replica may not act, or the resource cannot be read: then the rest is left undone.
    pub(crate) async fn run(mut self, desired: &Desired) -> Result<Outcome, CallError> {
        self.forget(desired);
        let mut routed = true;
        for manifest in &desired.manifests {
            let settled = self.manifest(manifest).await?;
            // Routing and states of clusters are in ConfigMaps: nothing is destroyed before they say so.
            routed &= settled || manifest.types.kind != "ConfigMap";
        }
        for (name, annotations) in &desired.pod_annotations {
            self.annotate(name, annotations).await?;
        }
        for (name, size) in &desired.claim_sizes {
            self.grow(name, size).await?;
        }
        for deletion in &desired.deletions {
            self.delete(deletion, routed).await?;
        }
        Ok(self.outcome)
    }

    /// Forgets what is no longer asked for.
    fn forget(&mut self, desired: &Desired) {
        let manifests = desired.manifests.iter().map(|m| (m.types.kind.clone(), m.name.clone()));
        let pods = desired.pod_annotations.keys().map(|name| ("Pod".to_owned(), name.clone()));
        let claims =
            desired.claim_sizes.keys().map(|name| ("PersistentVolumeClaim".to_owned(), name.clone()));
        let kept = manifests.chain(pods).chain(claims).collect::<std::collections::HashSet<_>>();
        self.memory.objects.retain(|key, _| kept.contains(key));
        let uids = desired.deletions.iter().map(|d| d.uid.as_str()).collect::<std::collections::HashSet<_>>();
        self.memory.decided.retain(|uid, _| uids.contains(uid.as_str()));
        let stale_max = self.pace.stale_max;
        self.memory.deleted.retain(|_, at| at.elapsed() < stale_max);
    }

    /// Whether the resource is as the watch shows it; asked once a pass, before the first write.
    async fn confirm(&mut self) -> Result<bool, CallError> {
        if let Some(confirmed) = self.confirmed {
            return Ok(confirmed);
        }
        let Some(api) = self.calls.api(KIND, &self.namespace) else { return Ok(false) };
        let seen = &self.observed.resource.metadata;
        let live = self.calls.get(&api, seen.name.as_deref().unwrap_or_default()).await?;
        let confirmed = live.is_some_and(|live| {
            live.metadata.uid == seen.uid
                && live.metadata.generation == seen.generation
                && live.metadata.deletion_timestamp.is_none()
        });
        if !confirmed {
            tracing::debug!("the resource has changed meanwhile; nothing is written");
            self.outcome.again = true;
        }
        self.confirmed = Some(confirmed);
        Ok(confirmed)
    }

    fn object(&mut self, kind: &str, name: &str) -> &mut ObjectMemory {
        self.memory.objects.entry((kind.to_owned(), name.to_owned())).or_default()
    }

    /// What an object's write came to. True if it is as it should be now.
    fn wrote(
        &mut self,
        (kind, name): (&str, &str),
        hash: &str,
        shown: Option<String>,
        result: Result<DynamicObject, CallError>,
    ) -> Result<Option<DynamicObject>, CallError> {
        match result {
            Ok(object) => {
                self.outcome.wrote = true;
                let version = object.metadata.resource_version.clone().unwrap_or_default();
                let memory = self.object(kind, name);
                memory.written = Some((version, Instant::now()));
                (memory.refused, memory.conflicts) = (None, 0);
                Ok(Some(object))
            }
            Err(error @ CallError::NotLeading(_)) => Err(error),
            Err(error) => {
                let failure = error.failure(format!("{kind} {name}"));
                let memory = self.object(kind, name);
                if error.is_conflict() && memory.conflicts < CONFLICTS_MAX {
                    memory.conflicts += 1;
                    self.outcome.again = true;
                } else {
                    if !failure.temporary {
                        memory.refused = Some((hash.to_owned(), shown, failure.clone(), Instant::now()));
                    }
                    self.outcome.applied.failures.push(failure);
                }
                Ok(None)
            }
        }
    }

    /// Reports a refusal again, if the same was refused a short time ago.
    fn was_refused(&mut self, kind: &str, name: &str, hash: &str, shown: Option<&str>) -> bool {
        let refused = self.object(kind, name).refused.as_ref();
        let same = refused.filter(|(manifest, version, _, at)| {
            manifest == hash && version.as_deref() == shown && at.elapsed() < REFUSED
        });
        let failure = same.map(|(_, _, failure, _)| failure.clone());
        let was_refused = failure.is_some();
        self.outcome.applied.failures.extend(failure);
        was_refused
    }

    fn foreign(&mut self, kind: &str, name: &str, metadata: &ObjectMeta) {
        let owner = names::controller(metadata);
        // What an earlier resource of the same name leaves behind is on its way out.
        let resource = self.observed.resource.metadata.name.as_deref();
        let earlier = owner.is_some_and(|owner| owner.kind == KIND && Some(owner.name.as_str()) == resource);
        let leaving = metadata.deletion_timestamp.is_some() || earlier;
        let whose = owner.map_or("nobody".to_owned(), |owner| format!("{} {}", owner.kind, owner.name));
        let object = format!("{kind} {name}");
        if !leaving && !self.memory.foreign.contains(&object) {
            self.memory.foreign.push(object.clone());
            self.outcome.again = true;
        }
        self.outcome.applied.failures.push(ApplyFailure {
            message: format!("it is there already and is controlled by {whose}; delete or rename it, or name the resource otherwise"),
            object,
            reason: "Foreign".to_owned(),
            temporary: leaving,
        });
        self.outcome.again |= leaving;
    }

    /// Makes one object as it should be. True if it is.
    async fn manifest(&mut self, manifest: &Manifest) -> Result<bool, CallError> {
        let (kind, name) = (manifest.types.kind.as_str(), manifest.name.as_str());
        let hash = diff::manifest_hash(&manifest.object);
        let Some(api) = self.calls.api(kind, &self.namespace) else {
            tracing::error!(kind, name, "an object of an unknown kind is left out");
            return Ok(false);
        };
        let seen = child(&self.observed.children, kind, name);
        let version = seen.and_then(|object| object.metadata().resource_version.clone());
        let stale_max = self.pace.stale_max;
        if self.object(kind, name).is_behind(version.as_deref(), stale_max) {
            self.outcome.again = true;
            return Ok(true);
        }
        let live;
        let seen = match seen {
            Some(seen) => seen,
            None => {
                if self.was_refused(kind, name, &hash, None) || !self.confirm().await? {
                    return Ok(false);
                }
                match self.calls.get(&api, name).await {
                    Ok(Some(object)) => {
                        live = object;
                        &live as &dyn Child
                    }
                    Ok(None) => return self.create(&api, manifest, &hash).await,
                    Err(error) => {
                        self.wrote((kind, name), &hash, None, Err(error))?;
                        return Ok(false);
                    }
                }
            }
        };
        self.update(&api, manifest, &hash, seen).await
    }

    async fn create(
        &mut self,
        api: &Api<DynamicObject>,
        manifest: &Manifest,
        hash: &str,
    ) -> Result<bool, CallError> {
        let (kind, name) = (manifest.types.kind.as_str(), manifest.name.as_str());
        let object = diff::annotated(&manifest.object, diff::ANNOTATION_APPLIED, hash);
        let result = self.calls.apply(api, &manifest.types, name, &object, false).await;
        let made = self.wrote((kind, name), hash, None, result)?;
        if let Some(object) = &made {
            tracing::info!(kind, name, "made");
            self.check_answer(manifest, hash, object);
        }
        Ok(made.is_some())
    }

    async fn update(
        &mut self,
        api: &Api<DynamicObject>,
        manifest: &Manifest,
        hash: &str,
        seen: &dyn Child,
    ) -> Result<bool, CallError> {
        let (kind, name) = (manifest.types.kind.as_str(), manifest.name.as_str());
        let metadata = seen.metadata();
        if !names::is_owned(metadata, &self.uid) {
            self.foreign(kind, name, metadata);
            return Ok(false);
        }
        if metadata.deletion_timestamp.is_some() {
            // It comes again once it has gone.
            return Ok(false);
        }
        let version = metadata.resource_version.clone().unwrap_or_default();
        let uid = metadata.uid.clone().unwrap_or_default();
        let memory = self.object(kind, name);
        if memory.clean.as_ref().is_some_and(|(clean, of)| *clean == version && of == hash) {
            return Ok(true);
        }
        let stubborn = memory.stubborn.as_deref() == Some(hash);
        let applied = metadata.annotations.as_ref().and_then(|all| all.get(diff::ANNOTATION_APPLIED));
        let differs = if applied.is_none_or(|applied| applied != hash) {
            Some("the manifest".to_owned())
        } else if stubborn {
            None
        } else {
            diff::difference(&manifest.object, &seen.value())
        };
        let Some(differs) = differs else {
            self.object(kind, name).clean = Some((version, hash.to_owned()));
            return Ok(true);
        };
        if self.was_refused(kind, name, hash, Some(&version)) || !self.confirm().await? {
            return Ok(false);
        }
        let mut object = diff::annotated(&manifest.object, diff::ANNOTATION_APPLIED, hash);
        let fields = diff::object_at(&mut object, &["metadata"]);
        fields.insert("uid".to_owned(), Value::String(uid));
        fields.insert("resourceVersion".to_owned(), Value::String(version.clone()));
        let result = self.calls.apply(api, &manifest.types, name, &object, true).await;
        let written = self.wrote((kind, name), hash, Some(version), result)?;
        if let Some(object) = &written {
            tracing::info!(kind, name, differs, "changed");
            self.check_answer(manifest, hash, object);
        }
        Ok(written.is_some())
    }

    /// If the API server makes something else of a manifest, comparing again and again would write again and again.
    fn check_answer(&mut self, manifest: &Manifest, hash: &str, object: &DynamicObject) {
        let (kind, name) = (manifest.types.kind.as_str(), manifest.name.as_str());
        if let Some(field) = diff::difference(&manifest.object, &object.value()) {
            tracing::warn!(
                kind,
                name,
                field,
                "the API server keeps another value than the one that was applied"
            );
            self.object(kind, name).stubborn = Some(hash.to_owned());
        }
    }

    /// Gives a pod annotations.
    async fn annotate(
        &mut self,
        name: &str,
        wanted: &std::collections::BTreeMap<String, String>,
    ) -> Result<(), CallError> {
        let Some(pod) = self.observed.children.pods.get(name).cloned() else { return Ok(()) };
        let metadata = &pod.metadata;
        let has = |(key, value): (&String, &String)| {
            metadata.annotations.as_ref().is_some_and(|all| all.get(key) == Some(value))
        };
        let stale_max = self.pace.stale_max;
        if wanted.iter().all(has)
            || metadata.deletion_timestamp.is_some()
            || self.object("Pod", name).is_behind(metadata.resource_version.as_deref(), stale_max)
            || !self.confirm().await?
        {
            return Ok(());
        }
        let Some(api) = self.calls.api("Pod", &self.namespace) else { return Ok(()) };
        let patch = json!({"metadata": {"uid": metadata.uid, "annotations": wanted}});
        match self.calls.merge(&api, "Pod", name, &patch).await {
            // It has gone: so has the need.
            Err(error) if error.is_not_found() => {}
            result => {
                self.wrote(("Pod", name), "annotations", metadata.resource_version.clone(), result)?;
            }
        }
        Ok(())
    }

    /// Grows a volume claim.
    async fn grow(&mut self, name: &str, size: &str) -> Result<(), CallError> {
        const KIND: &str = "PersistentVolumeClaim";
        let Some(claim) = self.observed.children.volume_claims.get(name).cloned() else { return Ok(()) };
        let metadata = &claim.metadata;
        let shown = metadata.resource_version.clone();
        let stale_max = self.pace.stale_max;
        if !is_smaller(&claim, size)
            || metadata.deletion_timestamp.is_some()
            || self.object(KIND, name).is_behind(shown.as_deref(), stale_max)
            || self.was_refused(KIND, name, size, shown.as_deref())
            || !self.confirm().await?
        {
            return Ok(());
        }
        let Some(api) = self.calls.api(KIND, &self.namespace) else { return Ok(()) };
        let patch = json!({
            "metadata": {"uid": metadata.uid, "resourceVersion": shown},
            "spec": {"resources": {"requests": {"storage": size}}},
        });
        let result = self.calls.merge(&api, KIND, name, &patch).await;
        if self.wrote((KIND, name), size, shown, result)?.is_some() {
            tracing::info!(kind = KIND, name, size, "grown");
        }
        Ok(())
    }

    /// Deletes one object; `routed`: the ConfigMaps are as they should be.
    async fn delete(&mut self, deletion: &Deletion, routed: bool) -> Result<(), CallError> {
        let (kind, name) = (deletion.types.kind.as_str(), deletion.name.as_str());
        let seen = child(&self.observed.children, kind, name);
        let leaves = seen.is_none_or(|seen| seen.metadata().deletion_timestamp.is_some());
        if leaves || self.memory.deleted.contains_key(&deletion.uid) {
            return Ok(());
        }
        if destroys(kind) && !(routed && self.is_decided(deletion)) {
            self.outcome.again = true;
            return Ok(());
        }
        if !self.confirm().await? || (kind == "Pod" && !self.fellows_are_well(name).await?) {
            return Ok(());
        }
        let Some(api) = self.calls.api(kind, &self.namespace) else { return Ok(()) };
        let policy =
            if kind == "StatefulSet" { PropagationPolicy::Foreground } else { PropagationPolicy::Background };
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions {
                uid: Some(deletion.uid.clone()),
                resource_version: Some(deletion.resource_version.clone()),
            }),
            ..DeleteParams::default()
        };
        match self.calls.write(kind, "delete", api.delete(name, &params)).await {
            Ok(_) => {
                tracing::info!(kind, name, reason = deletion.reason, "deleted");
                self.outcome.wrote = true;
                self.outcome.deleted.push(deletion.clone());
                self.memory.deleted.insert(deletion.uid.clone(), Instant::now());
            }
            Err(error) if error.is_not_found() => {
                self.memory.deleted.insert(deletion.uid.clone(), Instant::now());
            }
            // It is another one by now, or has changed: the next pass decides anew.
            Err(error) if error.is_conflict() => self.outcome.again = true,
            Err(error @ CallError::NotLeading(_)) => return Err(error),
            Err(error) => self.outcome.applied.failures.push(error.failure(format!("{kind} {name}"))),
        }
        Ok(())
    }

    /// Whether the decision to destroy stood before the shard manager was asked for the answer at hand.
    fn is_decided(&mut self, deletion: &Deletion) -> bool {
        let Some(since) = self.memory.decided.get(&deletion.uid).copied() else {
            self.memory.decided.insert(deletion.uid.clone(), Instant::now());
            self.outcome.ask = true;
            return false;
        };
        let decided = self.asked.is_none_or(|asked| asked > since);
        self.outcome.ask |= !decided;
        decided
    }

    /// Whether the other members of a pod's cluster are, live, as the watch shows them: one restart at a time must not
    /// become two because the watch is late.
    async fn fellows_are_well(&mut self, name: &str) -> Result<bool, CallError> {
        let Some(pod) = self.observed.children.pods.get(name).cloned() else { return Ok(false) };
        let instance = names::label(&pod.metadata, names::LABEL_INSTANCE).unwrap_or_default();
        // Of the whole resource, as one restart at a time is meant for all of it.
        let selector = names::selector_text(&names::selector_labels(instance));
        let live = match self.calls.pods(&self.namespace, &selector).await {
            Ok(live) => live,
            Err(error @ CallError::NotLeading(_)) => return Err(error),
            Err(error) => {
                self.outcome.applied.failures.push(error.failure(format!("Pod {name}")));
                return Ok(false);
            }
        };
        let same = self.observed.children.pods.values().all(|seen| {
            let fellow = live.iter().find(|fellow| fellow.metadata.uid == seen.metadata.uid);
            fellow.is_some_and(|fellow| is_serving(fellow) || !is_serving(seen))
        });
        if !same {
            tracing::debug!(pod = name, "other pods have changed meanwhile; it is not deleted now");
            self.outcome.again = true;
        }
        Ok(same)
    }
}

/// Looks again at the objects that were in the way: the watches may not show them, as they need not have our labels.
///
/// # Errors
/// Only if this replica may not act.
pub(crate) async fn look_again_at_foreign(
    calls: &Calls,
    resource: &ShardedEtcd,
    memory: &mut Memory,
) -> Result<(), CallError> {
    let namespace = resource.namespace().unwrap_or_default();
    let mut foreign = std::mem::take(&mut memory.foreign);
    let mut still = Vec::new();
    for object in foreign.drain(..) {
        let Some((kind, name)) = object.split_once(' ') else { continue };
        let Some(api) = calls.api(kind, &namespace) else { continue };
        match calls.get(&api, name).await {
            Ok(None) => {}
            Ok(Some(found)) if names::is_owned(&found.metadata, &memory.uid) => {}
            Err(error @ CallError::NotLeading(_)) => return Err(error),
            Ok(Some(_)) | Err(_) => still.push(object),
        }
    }
    memory.foreign = still;
    Ok(())
}

/// Whether deleting an object of this kind takes data away, or members.
fn destroys(kind: &str) -> bool {
    matches!(kind, "StatefulSet" | "Pod" | "PersistentVolumeClaim")
}

/// Whether a claim asks for less than `size`.
fn is_smaller(claim: &PersistentVolumeClaim, size: &str) -> bool {
    let requests = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    let asked =
        requests.and_then(|requests| requests.get("storage")).and_then(|size| quantity::nanos(&size.0));
    match (asked, quantity::nanos(size)) {
        (Some(asked), Some(size)) => asked < size,
        _ => false,
    }
}
