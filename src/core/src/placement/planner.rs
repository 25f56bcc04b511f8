//! From an observation to a plan.

use std::collections::BTreeSet;

use super::{
    Action, Figures, Limits, Observation, Plan, ShardState, Step, Wait, balance, drain, merge,
    model::{Measure, Model, PartAt, ShardAt},
    reunite, room,
    text::{bytes_text, count_text},
};
use crate::{
    keyspace::Printable,
    orders::{StepKey, plan_id},
    topology::{RebalanceMode, Topology},
};

/// Most waits of one plan; what is beyond is counted only.
const WAITS_MAX: usize = 100;

/// Plans what brings `observation` to what `topology` wants. See the [module](super) for what it guarantees.
pub fn plan(observation: &Observation, topology: &Topology, limits: &Limits) -> Plan {
    plan_approved(observation, topology, limits, &[])
}

/// The same; in mode Manual the steps that were approved can begin.
pub fn plan_approved(
    observation: &Observation,
    topology: &Topology,
    limits: &Limits,
    approved: &[StepKey],
) -> Plan {
    let mut model = Model::new(observation, topology, limits);
    let [keys, bytes, load] = Measure::ALL.map(|measure| figures(&model, measure));
    let balanced = Measure::ALL.iter().all(|m| (0..model.shards.len()).all(|s| !above_share(&model, s, *m)));
    let mut waits = Waits::default();
    report_shards(&model, &mut waits);
    report_moves(observation, &mut waits);
    split_at_boundaries(&mut model, &mut waits);
    move_pinned(&mut model, &mut waits);
    model.set_targets();
    reunite::reunite(&mut model, &mut waits);
    drain::drain(&mut model, &mut waits);
    balance::balance(&mut model, &mut waits);
    room::report_capped(&model, &mut waits);
    if model.steps.is_empty() {
        merge::merge(&mut model);
    }
    let truncated = model.full();
    if truncated {
        waits.add("the plan", format!("more follows when its {} steps are done", model.steps.len()));
    }
    let under_way = observation.ranges.iter().filter(|r| r.moving_to.is_some()).count();
    let (mut steps, preparing) = (model.steps, model.preparing);
    hold_back(&mut steps, topology, approved, &mut waits);
    one_after_another(&mut steps, &preparing, topology, under_way, &mut waits);
    Plan {
        parent_generation: observation.generation,
        steps,
        waits: waits.finish(),
        balanced,
        keys,
        bytes,
        load,
        truncated,
    }
}

/// Gathers reasons, a bounded number of them.
#[derive(Debug, Default)]
pub(super) struct Waits {
    waits: Vec<Wait>,
    dropped: usize,
}

impl Waits {
    /// Adds a reason.
    pub(super) fn add(&mut self, what: impl Into<String>, reason: impl Into<String>) {
        if self.waits.len() < WAITS_MAX {
            self.waits.push(Wait { what: what.into(), reason: reason.into() });
        } else {
            self.dropped += 1;
        }
    }

    fn finish(mut self) -> Vec<Wait> {
        if self.dropped > 0 {
            let reason = format!("{} more reasons are not listed", self.dropped);
            self.waits.push(Wait { what: "the plan".to_owned(), reason });
        }
        self.waits
    }
}

/// True if the shard holds more than 1.2 times its share, by more than the tolerance.
fn above_share(model: &Model<'_>, shard: ShardAt, measure: Measure) -> bool {
    let shard = &model.shards[shard];
    if !shard.holds() {
        return shard.held.of(measure) > 0;
    }
    let share = model.share(shard, measure);
    let load = shard.held.of(measure);
    balance::above(load, share) && load - share >= model.tolerance(measure)
}

fn figures(model: &Model<'_>, measure: Measure) -> Figures {
    let percent = |shard: &super::model::Shard| {
        let (load, share) = (u128::from(shard.held.of(measure)), u128::from(model.share(shard, measure)));
        if load == 0 { 0 } else { u64::try_from(load * 100 / share.max(1)).unwrap_or(u64::MAX) }
    };
    let holders = model.shards.iter().filter(|s| s.holds());
    // The first of equals, so that the figure does not depend on the order of iteration.
    let highest = holders.reduce(|a, b| if percent(b) > percent(a) { b } else { a });
    Figures {
        total: model.total.of(measure),
        mean: model.mean(measure),
        highest_shard: highest.map(|s| s.name.clone()).unwrap_or_default(),
        highest: highest.map_or(0, |s| s.held.of(measure)),
        highest_percent: if model.total.of(measure) == 0 { 100 } else { highest.map_or(0, percent) },
    }
}

fn report_shards(model: &Model<'_>, waits: &mut Waits) {
    for shard in &model.shards {
        match shard.state {
            ShardState::Unreachable if shard.leaves => waits.add(
                &shard.name,
                format!(
                    "it is to leave but is unreachable; what it holds, {}, waits until it answers",
                    count_text(shard.parts.len() as u64, "range")
                ),
            ),
            ShardState::Unreachable => {
                waits.add(&shard.name, "it is unreachable; nothing moves from or to it")
            }
            ShardState::Joining => waits.add(&shard.name, "it is joining; it gets its share once it serves"),
            ShardState::Active | ShardState::Draining => {}
        }
    }
}

fn report_moves(observation: &Observation, waits: &mut Waits) {
    for range in &observation.ranges {
        if let Some(to) = &range.moving_to {
            waits.add(range.range.to_string(), format!("its move from {} to {to} is under way", range.shard));
        }
    }
}

/// Splits at boundaries of pins and presplit that are not there yet: at the cost of metadata only.
fn split_at_boundaries(model: &mut Model<'_>, waits: &mut Waits) {
    let wanted = std::mem::take(&mut model.wanted);
    // Parts are in key order as long as nothing was split; children are appended, and reached through `next`.
    let mut part = (!model.parts.is_empty()).then_some(0);
    let mut boundaries = wanted.iter().peekable();
    while let (Some(at), Some(boundary)) = (part, boundaries.peek()) {
        let range = &model.parts[at].range;
        if !range.end.is_empty() && range.end <= **boundary {
            part = model.parts[at].next;
            continue;
        }
        let boundary = boundaries.next().cloned().unwrap_or_default();
        if range.start >= boundary {
            continue;
        }
        let of_pin = model.pins.iter().any(|(pinned, _)| pinned.start == boundary || pinned.end == boundary);
        let why = if of_pin { "a pin's boundary" } else { "a presplit boundary" };
        let owner = &model.shards[model.parts[at].shard];
        if model.parts[at].moving || !owner.gives() {
            let reason =
                format!("the split at {}, {why}, waits until {}", Printable(&boundary), blocked(model, at));
            waits.add(model.parts[at].range.to_string(), reason);
        } else if !model.full() {
            let right = model.split(at, boundary.clone(), format!("{} is {why}", Printable(&boundary)));
            part = Some(right);
        }
    }
    model.wanted = wanted;
    // Each part lies in one pin or in none now.
    for at in 0..model.parts.len() {
        if model.parts[at].planned {
            model.renew_pin(at);
        }
    }
}

/// Why nothing can be done with a part now.
pub(super) fn blocked(model: &Model<'_>, at: PartAt) -> String {
    let part = &model.parts[at];
    if part.moving {
        "its move is done".to_owned()
    } else {
        format!("{} answers", model.shards[part.shard].name)
    }
}

/// Moves pinned ranges to where they belong.
fn move_pinned(model: &mut Model<'_>, waits: &mut Waits) {
    // By walking the list, so that parts are taken in key order and the pieces of large ones are met, too.
    let mut next = (!model.parts.is_empty()).then_some(0);
    while let Some(at) = next {
        next = model.parts[at].next;
        let part = &model.parts[at];
        let Some(to) = part.pinned.filter(|to| *to != part.shard) else { continue };
        let what = part.range.to_string();
        let name = model.shards[to].name.clone();
        if part.moving || !model.shards[part.shard].gives() {
            waits.add(what, format!("pinned to {name}, but waits until {}", blocked(model, at)));
        } else if !model.shards[to].takes() {
            waits.add(what, format!("pinned to {name}, which cannot take it: it {}", state_text(model, to)));
        } else if let Some(why) = room::no_room(model, to, part.load.bytes.min(model.limits.move_bytes_max)) {
            waits.add(what, format!("pinned to {name}, but {why}"));
        } else if !model.full() {
            if let Some(right) = split_large(model, at) {
                next = Some(right);
            }
            model.move_part(at, to, format!("pinned to {name}"));
        }
    }
}

/// What a shard's state means, after "it".
pub(super) fn state_text(model: &Model<'_>, shard: ShardAt) -> &'static str {
    match model.shards[shard].state {
        ShardState::Active => "serves",
        ShardState::Draining => "leaves",
        ShardState::Joining => "is joining",
        ShardState::Unreachable => "is unreachable",
    }
}

/// Splits a part that is too large for one move, so that it is not any more; gives the rest. A part that is not
/// scanned, or that is one directory, stays whole.
pub(super) fn split_large(model: &mut Model<'_>, at: PartAt) -> Option<PartAt> {
    let (part, max) = (&model.parts[at], model.limits.move_bytes_max);
    if part.load.bytes <= max {
        return None;
    }
    let fitting = part.cuts_while(|cut| cut.left.bytes <= max);
    // Rather the smallest too large piece than the whole.
    let below = fitting.checked_sub(1).and_then(|i| part.known_upto(i));
    let candidates = below.into_iter().chain(part.known_from(fitting));
    let cut = candidates
        .filter_map(|i| part.cut(i))
        .find(|cut| cut.left.bytes > 0 && model.topology.keyspace.rules.is_legal_boundary(&cut.at))?;
    let reason = format!("a move carries at most {}", bytes_text(max));
    Some(model.split_for_move(at, cut.at, reason))
}

/// Marks as not ready what the mode forbids.
fn hold_back(steps: &mut [Step], topology: &Topology, approved: &[StepKey], waits: &mut Waits) {
    let mode = topology.rebalance.mode;
    let id = plan_id(steps);
    let mut forbidden = 0u64;
    for step in steps.iter_mut() {
        let allowed = match mode {
            RebalanceMode::Automatic => true,
            RebalanceMode::Manual => approved.contains(&StepKey::of(step)),
            RebalanceMode::Paused => false,
        };
        step.ready &= allowed;
        forbidden += u64::from(!allowed);
    }
    if forbidden > 0 {
        let reason = match mode {
            RebalanceMode::Paused => "rebalance.mode is Paused".to_owned(),
            _ => format!(
                "rebalance.mode is Manual, which waits for: sharded-etcd approve {id}, or rebalance.approvedPlan: {id}"
            ),
        };
        waits.add(count_text(forbidden, "step"), reason);
    }
}

/// Marks as not ready what the number of concurrent moves forbids. A split that a move needs is made when the move can
/// follow: by the time that moves before it are done the load is another, or known better, and another split is needed.
fn one_after_another(
    steps: &mut [Step],
    preparing: &BTreeSet<usize>,
    topology: &Topology,
    under_way: usize,
    waits: &mut Waits,
) {
    let max = topology.rebalance.moves_max as usize;
    let mut room = max.saturating_sub(under_way);
    let mut held = 0u64;
    for (at, step) in steps.iter_mut().enumerate() {
        let is_move = matches!(step.action, Action::Move { .. });
        if step.ready && (is_move || preparing.contains(&at)) {
            step.ready = room > 0;
            held += u64::from(room == 0 && is_move);
            room = room.saturating_sub(1);
        }
    }
    if held > 0 {
        waits.add(count_text(held, "move"), format!("at most {max} may be under way at the same time"));
    }
}
