//! Step 1: gathers what is known of a resource, without asking anybody.

use std::sync::Arc;

use k8s_openapi::{
    api::core::v1::Event,
    jiff::{SignedDuration, Timestamp},
};
use kube::ResourceExt;
use sharded_etcd_crd::ShardedEtcd;
use tokio::time::Instant;

use crate::{
    answers::Answers,
    model::{Children, Observed, TopologyAnswer},
    names,
    queue::Key,
    settings::Pace,
    stores::Stores,
};

/// A StatefulSet that cannot make its pods tries again after up to 1000 s (the controllers' rate limiter).
const WARNING_AGE_MAX: SignedDuration = SignedDuration::from_secs(1200);
/// Warnings of one resource at most.
const WARNINGS_MAX: usize = 10;

/// What one reconcile goes by.
pub(crate) struct Dereferenced {
    pub(crate) observed: Observed,
    /// When the shard manager was asked for the answer; `None` if nobody is asked.
    pub(crate) asked: Option<Instant>,
}

/// What is known of a resource. `None` while the shard manager is being asked for the first time.
pub(crate) fn dereference(
    stores: &Stores,
    answers: &Answers,
    pace: &Pace,
    key: &Key,
    resource: Arc<ShardedEtcd>,
    foreign: Vec<String>,
) -> Option<Dereferenced> {
    let children = stores.children(key);
    let uid = resource.uid().unwrap_or_default();
    let manager = children.deployments.get(&names::shard_manager(&key.1));
    let (topology, asked) = if manager.is_some_and(|deployment| names::is_owned(&deployment.metadata, &uid)) {
        let answer = answers.get(key)?;
        let old = answer.asked.elapsed() > pace.answer_age_max;
        let unknown = || TopologyAnswer::Unknown("the shard manager has not answered for a while".to_owned());
        (if old { unknown() } else { answer.answer }, Some(answer.asked))
    } else {
        answers.forget(key);
        (TopologyAnswer::NotAsked, None)
    };
    let mut storage_classes_missing = storage_classes(&resource);
    storage_classes_missing.retain(|name| !stores.has_storage_class(name));
    let events = stores.warnings(&key.0);
    let warnings = warnings(&children, events.values().map(AsRef::as_ref), Timestamp::now());
    let observed = Observed { resource, children, topology, storage_classes_missing, foreign, warnings };
    Some(Dereferenced { observed, asked })
}

/// The storage classes that a resource names.
fn storage_classes(resource: &ShardedEtcd) -> Vec<String> {
    let of_shards = resource.spec.etcd.as_ref().and_then(|etcd| etcd.storage.as_ref());
    let of_meta = resource.spec.meta.as_ref().and_then(|meta| meta.storage.as_ref());
    let mut classes = of_shards
        .into_iter()
        .chain(of_meta)
        .filter_map(|storage| storage.class_name.clone())
        .filter(|name| !name.is_empty())
        .collect::<Vec<_>>();
    classes.sort();
    classes.dedup();
    classes
}

/// The newest warning about each object that lacks pods.
fn warnings<'a>(children: &Children, events: impl Iterator<Item = &'a Event>, now: Timestamp) -> Vec<String> {
    let mut found = events
        .filter_map(|event| {
            let seen = last_seen(event)?;
            (seen + WARNING_AGE_MAX > now && lacks_pods(children, event)).then_some((seen, event))
        })
        .collect::<Vec<_>>();
    found.sort_by_key(|(seen, _)| std::cmp::Reverse(*seen));
    let mut texts = Vec::new();
    for (_, event) in found {
        let about = &event.involved_object;
        let (kind, name) = (about.kind.as_deref().unwrap_or("?"), about.name.as_deref().unwrap_or("?"));
        let text = format!("{kind} {name}: {}", event.message.as_deref().unwrap_or_default().trim());
        if texts.len() < WARNINGS_MAX && !texts.contains(&text) {
            texts.push(text);
        }
    }
    texts
}

fn last_seen(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref());
    let times = [
        series.map(|time| time.0),
        event.last_timestamp.as_ref().map(|time| time.0),
        event.event_time.as_ref().map(|time| time.0),
        event.metadata.creation_timestamp.as_ref().map(|time| time.0),
    ];
    times.into_iter().flatten().max()
}

/// Whether the event is about one of these objects, and what it warns of still holds.
fn lacks_pods(children: &Children, event: &Event) -> bool {
    let Some(name) = event.involved_object.name.as_deref() else { return false };
    match event.involved_object.kind.as_deref() {
        Some("StatefulSet") => children.stateful_sets.get(name).is_some_and(|set| {
            let wanted = set.spec.replicas.unwrap_or(1);
            set.status.as_ref().is_none_or(|status| status.replicas < wanted)
        }),
        // `<deployment>-<hash of the template>`.
        Some("ReplicaSet") => name
            .rsplit_once('-')
            .and_then(|(deployment, _)| children.deployments.get(deployment))
            .is_some_and(|deployment| {
                let wanted = deployment.spec.replicas.unwrap_or(1);
                let status = deployment.status.as_ref();
                status.and_then(|status| status.updated_replicas).unwrap_or_default() < wanted
            }),
        _ => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(kind: &str, name: &str, seen: &str, message: &str) -> Event {
        serde_json::from_value(json!({
            "metadata": {"name": "e"}, "lastTimestamp": seen, "message": message,
            "involvedObject": {"kind": kind, "name": name},
        }))
        .unwrap()
    }

    #[test]
    fn warnings_are_new_and_about_what_lacks_pods() {
        let set = |status: i32| -> Arc<_> {
            Arc::new(
                serde_json::from_value(
                    json!({"metadata": {}, "spec": {"replicas": 3, "selector": {}, "serviceName": "s",
                    "template": {}}, "status": {"replicas": status}}),
                )
                .unwrap(),
            )
        };
        let deployment = serde_json::from_value(
            json!({"metadata": {}, "spec": {"replicas": 2, "selector": {}, "template": {}}}),
        );
        let mut children = Children::default();
        children.stateful_sets.insert("demo-meta".into(), set(2));
        children.stateful_sets.insert("demo-shard-0".into(), set(3));
        children.deployments.insert("demo-proxy".into(), Arc::new(deployment.unwrap()));
        let events = [
            event("StatefulSet", "demo-meta", "2026-11-21T12:00:00Z", "old"),
            event("StatefulSet", "demo-meta", "2026-11-21T13:00:00Z", "no quota"),
            event("StatefulSet", "demo-meta", "2026-11-21T13:00:01Z", "no quota"),
            event("StatefulSet", "demo-shard-0", "2026-11-21T13:00:00Z", "is over"),
            event("ReplicaSet", "demo-proxy-7d9", "2026-11-21T13:00:02Z", "too large"),
            event("ReplicaSet", "other-proxy-7d9", "2026-11-21T13:00:02Z", "not ours"),
            event("Job", "demo-meta", "2026-11-21T13:00:02Z", "not ours"),
        ];
        let now = "2026-11-21T13:05:00Z".parse().unwrap();
        assert_eq!(
            warnings(&children, events.iter(), now),
            ["ReplicaSet demo-proxy-7d9: too large", "StatefulSet demo-meta: no quota"]
        );
    }
}
