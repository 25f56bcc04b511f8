//! Which changes of the status are worth an Event.

use std::collections::BTreeMap;

use sharded_etcd_crd::status::{
    Condition, ConditionStatus, MoveStatus, ShardPhase, ShardStatus, ShardedEtcdStatus,
};

use super::{
    AWAITING_APPROVAL, READY, STALLED,
    trouble::{VOLUMES_PENDING, clip},
};

/// Most Events of one change of status; one more says how many were left out.
const EVENTS_MAX: usize = 20;
/// Reasons of not being ready that are a part of getting there.
const ON_THE_WAY: &[&str] = &[
    "MembersNotReady",
    VOLUMES_PENDING,
    "ProxiesNotReady",
    "ShardManagersNotReady",
    "ShardsJoining",
    "WaitingForTopology",
    "ShardManagerSilent",
];

/// An Event to publish about the resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventDraft {
    /// Warning, or Normal.
    pub warning: bool,
    /// One word, in CamelCase.
    pub reason: String,
    /// What happened; at most 512 bytes.
    pub note: String,
}

impl EventDraft {
    fn new(warning: bool, reason: impl Into<String>, note: impl AsRef<str>) -> Self {
        Self { warning, reason: reason.into(), note: clip(note.as_ref()).to_owned() }
    }
}

/// What changed from one status to the next and is worth an Event; at most 21.
pub fn events(previous: &ShardedEtcdStatus, next: &ShardedEtcdStatus) -> Vec<EventDraft> {
    let mut events = Vec::new();
    ready(previous, next, &mut events);
    stalled(previous, next, &mut events);
    approval(previous, next, &mut events);
    shards(previous, next, &mut events);
    moves(previous, next, &mut events);
    let more = events.len().saturating_sub(EVENTS_MAX);
    events.truncate(EVENTS_MAX);
    if more > 0 {
        events.push(EventDraft::new(false, "MoreChanges", format!("{more} more changes at the same time")));
    }
    events
}

fn condition<'a>(status: &'a ShardedEtcdStatus, type_: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == type_)
}

fn holds(condition: Option<&Condition>) -> bool {
    condition.is_some_and(|condition| condition.status == ConditionStatus::True)
}

fn ready(previous: &ShardedEtcdStatus, next: &ShardedEtcdStatus, events: &mut Vec<EventDraft>) {
    let (before, Some(now)) = (condition(previous, READY), condition(next, READY)) else { return };
    let (was, is) = (holds(before), holds(Some(now)));
    if is && !was {
        events.push(EventDraft::new(false, "Ready", &now.message));
    } else if was && !is {
        events.push(EventDraft::new(true, "NotReady", format!("{}: {}", now.reason, now.message)));
    } else if !is
        && before.is_none_or(|before| before.reason != now.reason)
        && !ON_THE_WAY.contains(&now.reason.as_str())
        && !holds(condition(next, STALLED))
    {
        events.push(EventDraft::new(true, &*now.reason, &now.message));
    }
}

fn stalled(previous: &ShardedEtcdStatus, next: &ShardedEtcdStatus, events: &mut Vec<EventDraft>) {
    let (before, now) = (condition(previous, STALLED), condition(next, STALLED));
    match now {
        Some(now) if holds(Some(now)) => {
            let same = before
                .is_some_and(|b| holds(before) && (&b.reason, &b.message) == (&now.reason, &now.message));
            if !same {
                events.push(EventDraft::new(true, &*now.reason, &now.message));
            }
        }
        _ if holds(before) => {
            events.push(EventDraft::new(false, "Resolved", "nothing is in the way any more"));
        }
        _ => {}
    }
}

/// Once for each time that plans begin to wait: a plan that changes while it waits is in the condition.
fn approval(previous: &ShardedEtcdStatus, next: &ShardedEtcdStatus, events: &mut Vec<EventDraft>) {
    let (before, now) = (condition(previous, AWAITING_APPROVAL), condition(next, AWAITING_APPROVAL));
    if let Some(now) = now.filter(|now| holds(Some(now)) && !holds(before)) {
        events.push(EventDraft::new(false, &*now.reason, &now.message));
    }
}

fn shards(previous: &ShardedEtcdStatus, next: &ShardedEtcdStatus, events: &mut Vec<EventDraft>) {
    let by_name = |status: &ShardedEtcdStatus| -> BTreeMap<(String, i64), ShardStatus> {
        let shards = status.topology.iter();
        shards.map(|s| ((s.shard.clone(), s.incarnation.unwrap_or(0)), s.clone())).collect()
    };
    let (before, now) = (by_name(previous), by_name(next));
    for (key, shard) in &now {
        let was = before.get(key).map(|shard| shard.phase);
        if was == Some(shard.phase) {
            continue;
        }
        let name = &shard.shard;
        let note = |text: &str| match &shard.message {
            Some(message) => format!("{name} {text}: {message}"),
            None => format!("{name} {text}"),
        };
        events.push(match (was, shard.phase) {
            (_, ShardPhase::Joining) => {
                EventDraft::new(false, "ShardAdded", note("is made, to join the topology"))
            }
            (_, ShardPhase::Draining) => EventDraft::new(false, "ShardDraining", note("is being emptied")),
            (_, ShardPhase::Unreachable) => {
                EventDraft::new(true, "ShardUnreachable", note("does not answer"))
            }
            (_, ShardPhase::Quarantined) => EventDraft::new(
                true,
                "ShardQuarantined",
                note("is not used, as its history is not the one known"),
            ),
            (Some(ShardPhase::Draining), ShardPhase::Serving) => {
                EventDraft::new(false, "DrainCancelled", note("stays, its drain is cancelled"))
            }
            (None | Some(ShardPhase::Joining), ShardPhase::Serving) => {
                EventDraft::new(false, "ShardJoined", note("has joined the topology"))
            }
            (Some(_), ShardPhase::Serving) => EventDraft::new(false, "ShardRecovered", note("serves again")),
        });
    }
    for (key, shard) in before.iter().filter(|(key, _)| !now.contains_key(key)) {
        let name = &key.0;
        events.push(if shard.phase == ShardPhase::Joining {
            EventDraft::new(false, "ShardRemoved", format!("{name} is removed; it had not joined"))
        } else {
            EventDraft::new(
                false,
                "ShardLeft",
                format!("{name} is empty, has left the topology, and is removed"),
            )
        });
    }
}

fn moves(previous: &ShardedEtcdStatus, next: &ShardedEtcdStatus, events: &mut Vec<EventDraft>) {
    let key = |m: &MoveStatus| (m.range.clone(), m.from.clone(), m.to.clone());
    let (before, now): (Vec<_>, Vec<_>) =
        (previous.moves.iter().map(key).collect(), next.moves.iter().map(key).collect());
    for moving in next.moves.iter().filter(|m| !before.contains(&key(m))) {
        let MoveStatus { range, from, to, reason, .. } = moving;
        events.push(EventDraft::new(
            false,
            "MoveBegun",
            format!("{range} moves from {from} to {to}: {reason}"),
        ));
    }
    for moved in previous.moves.iter().filter(|m| !now.contains(&key(m))) {
        let MoveStatus { range, from, to, .. } = moved;
        events.push(EventDraft::new(
            false,
            "MoveEnded",
            format!("the move of {range} from {from} to {to} is over"),
        ));
    }
}
