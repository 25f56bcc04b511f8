//! The next thing to do for an order.

use bytes::Bytes;

use super::{Order, OrderRecord, OrderState, Scene};
use crate::{
    keyspace::{KeyRange, Printable, RangeEntry, Rid, ShardIx, prefix_end},
    placement::{Action, Step, no_room_of},
    records::{MovePhase, MoveRecord},
    topology::{RebalanceMode, shard_name},
};

/// What to do for an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Begin this, then look again.
    Do(Step),
    /// Decide these moves' end in meta, if that can still be done, then look again.
    Abort(Vec<Rid>),
    /// Nothing can be done now, for this reason; look again later.
    Wait(String),
    /// It is as was asked for.
    Done(String),
    /// It cannot be done, for this reason.
    Refused(String),
}

/// The next thing to do for an order; approvals are the planner's, see [`plan_approved`](crate::placement::plan_approved).
pub fn next(record: &OrderRecord, scene: &Scene<'_>) -> Next {
    let began = record.state == OrderState::Running;
    let changes = !matches!(record.order, Order::Abort { .. });
    if changes && scene.topology.rebalance.mode == RebalanceMode::Paused {
        return Next::Refused(
            "spec.rebalance.mode is Paused, which begins nothing: set Automatic or Manual first".to_owned(),
        );
    }
    match &record.order {
        Order::Move { range, to } => move_range(scene, range, to),
        Order::Split { at } => split(scene, at),
        Order::Merge { at } => merge(scene, at, began),
        Order::Abort { range } => abort(scene, range, began),
        Order::Approve { .. } => Next::Wait("the planner looks at it".to_owned()),
    }
}

fn move_range(scene: &Scene<'_>, range: &KeyRange, to: &str) -> Next {
    if range.is_empty() {
        return Next::Refused(format!("{range} holds no key: the end must be behind the start"));
    }
    let known = scene.shards.iter().position(|s| s.name == to && s.takes);
    let Some(destination) = known.and_then(|i| u32::try_from(i).ok()).map(ShardIx) else {
        let names: Vec<&str> = scene.shards.iter().filter(|s| s.takes).map(|s| s.name.as_str()).collect();
        return Next::Refused(format!("no shard {to} to move to: write one of {}", names.join(", ")));
    };
    for key in [&range.start, &range.end] {
        if let Some(why) = no_boundary(scene, key) {
            return Next::Refused(why);
        }
    }
    let pinned = scene.topology.pinned_ranges();
    let other = pinned.iter().find(|p| p.range.overlaps(range) && shard_name(p.shard) != to);
    if let Some(pin) = other {
        return Next::Refused(format!(
            "{} is pinned to {}: change spec.keyspace.pins instead",
            pin.range,
            shard_name(pin.shard)
        ));
    }
    let entries: Vec<&RangeEntry> = scene.map.overlapping(range).collect();
    let Some(entry) = entries.iter().find(|entry| entry.shard != destination) else {
        return Next::Done(match entries.len() {
            1 => format!("1 range is on {to}"),
            n => format!("{n} ranges are on {to}"),
        });
    };
    if let Some(moving) = move_of(scene, &entry.rid) {
        return Next::Wait(match moving.to == destination {
            true => format!("the move of {} is under way", moving.range),
            false => format!(
                "{} moves to {}; it goes on from there, unless that move is aborted",
                moving.range,
                scene.name(moving.to)
            ),
        });
    }
    if let Some(trouble) = scene.trouble(entry.shard).or_else(|| scene.trouble(destination)) {
        return Next::Wait(trouble.to_owned());
    }
    let inside = |key: &Bytes| !key.is_empty() && entry.range.start < *key && entry.range.contains(key);
    for key in [&range.start, &range.end] {
        if inside(key) {
            return Next::Do(split_step(scene, entry, key));
        }
    }
    let under_way = scene.moves.iter().filter(|m| m.phase != MovePhase::Flipped).count();
    let most = scene.topology.rebalance.moves_max;
    if under_way >= most as usize {
        return Next::Wait(format!("at most {most} moves may be under way at the same time"));
    }
    if let Some(not_now) = no_room(scene, entry, destination) {
        return not_now;
    }
    let action = Action::Move {
        rid: entry.rid.clone(),
        range: entry.range.clone(),
        to: scene.name(destination).to_owned(),
    };
    Next::Do(by_hand(scene, entry.shard, action))
}

/// Over its quota a shard refuses what clients put, so nothing is brought there, whoever asks for it.
fn no_room(scene: &Scene<'_>, entry: &RangeEntry, to: ShardIx) -> Option<Next> {
    let quota = scene.topology.quota_bytes?;
    let Some(bytes) = scene.bytes.get(&entry.rid) else {
        return Some(Next::Wait(format!("the size of {} is being read", entry.range)));
    };
    let to = scene.shards.get(to.index())?;
    let left = quota.saturating_sub(to.used_bytes);
    no_room_of(&to.name, quota, left, *bytes).map(Next::Refused)
}

fn split(scene: &Scene<'_>, at: &Bytes) -> Next {
    let entry = scene.map.owner(at);
    if entry.range.start == *at {
        return Next::Done(format!("a range begins at {}", Printable(at)));
    }
    if let Some(why) = no_boundary(scene, at) {
        return Next::Refused(why);
    }
    match busy(scene, entry) {
        Some(why) => Next::Wait(why),
        None => Next::Do(split_step(scene, entry, at)),
    }
}

fn merge(scene: &Scene<'_>, at: &Bytes, began: bool) -> Next {
    let right = scene.map.owner(at);
    if at.is_empty() {
        return Next::Refused("the first range has none before it to be merged with".to_owned());
    }
    if right.range.start != *at {
        // It is gone because of this order, if a part of it may have been done.
        return match began {
            true => Next::Done(format!("no range begins at {} any more", Printable(at))),
            false => Next::Refused(format!(
                "no range begins at {}: it lies in {}; `status` shows where ranges begin",
                Printable(at),
                right.range
            )),
        };
    }
    if scene.topology.wanted_boundaries().contains(at) {
        return Next::Refused(format!(
            "{} is a boundary by the spec: take it out of spec.keyspace.presplit or spec.keyspace.pins instead",
            Printable(at)
        ));
    }
    let Some(left) = scene.map.entries().iter().find(|e| e.range.end == *at) else {
        return Next::Refused(format!("no range ends at {}", Printable(at)));
    };
    if let Some(why) = busy(scene, left).or_else(|| busy(scene, right)) {
        return Next::Wait(why);
    }
    if left.shard != right.shard {
        return Next::Refused(format!(
            "{} is on {} and {} on {}: move one of them first",
            left.range,
            scene.name(left.shard),
            right.range,
            scene.name(right.shard)
        ));
    }
    let range = KeyRange::new(left.range.start.clone(), right.range.end.clone());
    let action = Action::Merge { left: left.rid.clone(), right: right.rid.clone(), range };
    Next::Do(by_hand(scene, left.shard, action))
}

fn abort(scene: &Scene<'_>, range: &KeyRange, began: bool) -> Next {
    let moves: Vec<&MoveRecord> = scene.moves.iter().filter(|m| m.range.overlaps(range)).collect();
    let of = |phase| moves.iter().filter(move |m| m.phase == phase).map(|m| m.rid.clone());
    let copying: Vec<Rid> = of(MovePhase::Copying).collect();
    if !copying.is_empty() {
        return Next::Abort(copying);
    }
    if of(MovePhase::Aborting).next().is_some() {
        return Next::Wait("the destination's copy is deleted".to_owned());
    }
    match (began, of(MovePhase::Flipped).count()) {
        (true, 0) => Next::Done(format!("nothing of {range} moves any more")),
        (false, 0) => Next::Refused(format!("nothing of {range} moves")),
        (true, n) => Next::Done(format!("{n} of its moves were past the point of return, the others are aborted")),
        (false, _) => Next::Refused(
            "the move is past the point of return, only the source's copy is left to delete: move the range back instead"
                .to_owned(),
        ),
    }
}

/// Why no boundary may lie at `key`, if so.
fn no_boundary(scene: &Scene<'_>, key: &Bytes) -> Option<String> {
    let rules = &scene.topology.keyspace.rules;
    if rules.is_legal_boundary(key) || scene.map.owner(key).range.start == *key {
        return None;
    }
    let directory = rules.directory(key).unwrap_or_default();
    Some(format!(
        "a boundary at {} would part the keys of the directory {}: write {} or {}, or make the directory splittable \
         (spec.keyspace.splittable)",
        Printable(key),
        Printable(directory),
        Printable(directory),
        Printable(&prefix_end(directory))
    ))
}

fn move_of<'a>(scene: &Scene<'a>, rid: &Rid) -> Option<&'a MoveRecord> {
    scene.moves.iter().find(|m| m.rid == *rid && m.phase != MovePhase::Flipped)
}

/// Why a range cannot be split or merged now, if so.
fn busy(scene: &Scene<'_>, entry: &RangeEntry) -> Option<String> {
    let moving = move_of(scene, &entry.rid).map(|m| format!("the move of {} is under way", m.range));
    moving.or_else(|| scene.trouble(entry.shard).map(str::to_owned))
}

fn split_step(scene: &Scene<'_>, entry: &RangeEntry, at: &Bytes) -> Step {
    let action = Action::Split { rid: entry.rid.clone(), range: entry.range.clone(), at: at.clone() };
    by_hand(scene, entry.shard, action)
}

fn by_hand(scene: &Scene<'_>, from: ShardIx, action: Action) -> Step {
    let from = scene.name(from).to_owned();
    Step { action, from, keys: 0, bytes: 0, work: 0, reason: "asked for by hand".to_owned(), ready: true }
}
