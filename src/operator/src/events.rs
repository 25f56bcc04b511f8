//! Events about a resource, for `kubectl describe`.
//!
//! kube's own Recorder takes a second Event of the same reason for the first one again and keeps its text; here the text
//! tells them apart. One that is told again within a while raises a count, as client-go does.

use std::time::Duration;

use k8s_openapi::{
    api::{
        core::v1::ObjectReference,
        events::v1::{Event, EventSeries},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use sharded_etcd_crd::ShardedEtcd;
use tokio::time::Instant;

use crate::{
    calls::{CallError, Calls},
    memory::{Memory, SentEvent},
    names::MANAGED_BY,
    status::EventDraft,
};

/// The same Event within this time is counted, as client-go does.
const SERIES: Duration = Duration::from_secs(360);
/// Different Events about one resource within [`SERIES`]; more are left out.
const EVENTS_MAX: usize = 50;
/// Longest text that the API server takes, in bytes.
const NOTE_MAX: usize = 1024;

/// Publishes Events. What cannot be published is logged and left out: an Event is a message, not state.
pub(crate) async fn publish(
    calls: &Calls,
    resource: &ShardedEtcd,
    reporter: &str,
    memory: &mut Memory,
    drafts: &[EventDraft],
) {
    memory.events.retain(|_, sent| sent.at.elapsed() < SERIES);
    for draft in drafts {
        let key = (draft.reason.clone(), draft.note.clone());
        let sent = memory.events.get(&key).cloned();
        if sent.is_none() && memory.events.len() >= EVENTS_MAX {
            tracing::debug!(reason = draft.reason, "too many events; one is left out");
            continue;
        }
        match publish_one(calls, resource, reporter, sent, draft).await {
            Ok(sent) => {
                memory.events.insert(key, sent);
            }
            Err(CallError::NotLeading(_)) => return,
            Err(error) => {
                let error = crate::error::chain(&error);
                tracing::debug!(reason = draft.reason, error, "an event cannot be published");
            }
        }
    }
}

async fn publish_one(
    calls: &Calls,
    resource: &ShardedEtcd,
    reporter: &str,
    sent: Option<SentEvent>,
    draft: &EventDraft,
) -> Result<SentEvent, CallError> {
    let namespace = resource.namespace().unwrap_or_default();
    let api = Api::<Event>::namespaced(calls.client().clone(), &namespace);
    if let Some(sent) = sent {
        let count = sent.count.saturating_add(1);
        let series = EventSeries { count, last_observed_time: MicroTime(Timestamp::now()) };
        let patch = Patch::Merge(json!({"series": series}));
        let params = PatchParams::default();
        match calls.write("Event", "patch", api.patch(&sent.name, &params, &patch)).await {
            Ok(_) => return Ok(SentEvent { count, at: Instant::now(), ..sent }),
            // It has been cleared away: a new one tells it.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    let event = event(resource, &namespace, reporter, draft, Timestamp::now());
    let name = event.name_any();
    calls.write("Event", "create", api.create(&PostParams::default(), &event)).await?;
    Ok(SentEvent { name, count: 1, at: Instant::now() })
}

fn event(
    resource: &ShardedEtcd,
    namespace: &str,
    reporter: &str,
    draft: &EventDraft,
    now: Timestamp,
) -> Event {
    let regarding = ObjectReference { field_path: None, ..resource.object_ref(&()) };
    // Two that are made in the same moment differ in the random part.
    let name = format!("{}.{:x}{:04x}", resource.name_any(), now.as_nanosecond(), rand::random::<u16>());
    let mut note = draft.note.clone();
    if note.len() > NOTE_MAX {
        let end = (0..=NOTE_MAX - '…'.len_utf8()).rev().find(|end| note.is_char_boundary(*end));
        note.truncate(end.unwrap_or_default());
        note.push('…');
    }
    Event {
        action: Some("Reconcile".to_owned()),
        reason: Some(draft.reason.clone()),
        event_time: Some(MicroTime(now)),
        regarding: Some(regarding),
        note: Some(note),
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        reporting_controller: Some(MANAGED_BY.to_owned()),
        reporting_instance: Some(reporter.to_owned()),
        type_: Some(if draft.warning { "Warning" } else { "Normal" }.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_is_cut() {
        let mut resource = ShardedEtcd::with_shards("demo", 1);
        resource.metadata.uid = Some("u".into());
        let draft = EventDraft { warning: true, reason: "Why".into(), note: "ä".repeat(600) };
        let event = event(&resource, "ns", "me", &draft, Timestamp::UNIX_EPOCH);
        let note = event.note.unwrap_or_default();
        assert!(note.len() <= NOTE_MAX && note.ends_with("ä…"));
        let regarding = event.regarding.unwrap_or_default();
        assert_eq!((regarding.kind.as_deref(), regarding.uid.as_deref()), (Some("ShardedEtcd"), Some("u")));
        assert_eq!(event.type_.as_deref(), Some("Warning"));
    }
}
