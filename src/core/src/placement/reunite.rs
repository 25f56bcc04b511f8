//! Brings directories together that are parted although the rules do not allow it: after a prefix is no longer
//! splittable, or with another delimiter.

use std::collections::BTreeMap;

use super::{
    drain, merge,
    model::{Load, Model, PartAt, ShardAt},
    planner::{Waits, blocked},
    room,
};
use crate::keyspace::Printable;

/// Plans the moves that bring the ranges of each parted directory to one shard, and their merges once they are there.
/// Nothing else is planned for such ranges before they are one.
pub(super) fn reunite(model: &mut Model<'_>, waits: &mut Waits) {
    let mut next = (!model.parts.is_empty()).then_some(0);
    while let Some(first) = next {
        let mut run = vec![first];
        next = model.parts[first].next;
        while let Some(part) = next.filter(|part| is_parted_from_previous(model, *part)) {
            run.push(part);
            next = model.parts[part].next;
        }
        if run.len() > 1 {
            run.iter().for_each(|part| model.parts[*part].bound = true);
            reunite_run(model, &run, waits);
        }
    }
}

fn is_parted_from_previous(model: &Model<'_>, part: PartAt) -> bool {
    !model.topology.keyspace.rules.is_legal_boundary(&model.parts[part].range.start)
}

fn reunite_run(model: &mut Model<'_>, run: &[PartAt], waits: &mut Waits) {
    let boundary = model.parts[run[1]].range.start.clone();
    let directory = model.topology.keyspace.rules.directory(&boundary).unwrap_or_default();
    let what = format!("directory {}", Printable(directory));
    let why = format!("{what} is not splittable, but parted at {}", Printable(&boundary));
    let stuck =
        run.iter().find(|at| model.parts[**at].moving || !model.shards[model.parts[**at].shard].gives());
    if let Some(at) = stuck {
        waits.add(
            what,
            format!(
                "not splittable, but parted at {}; waits until {}",
                Printable(&boundary),
                blocked(model, *at)
            ),
        );
        return;
    }
    let mut shards = run.iter().map(|at| model.parts[*at].shard);
    let on_one = shards.next().is_some_and(|first| shards.all(|shard| shard == first));
    if on_one {
        for pair in run.chunks_exact(2) {
            if !model.full() {
                merge::merge_pair(model, pair[0], pair[1], why.clone());
            }
        }
        return;
    }
    // Pinned ranges are moved to where their pin says; they wait if that is not possible now.
    if run.iter().any(|at| model.parts[*at].pinned.is_some()) {
        return;
    }
    let Some(to) = meeting_place(model, run) else { return };
    let comes = run.iter().map(|at| &model.parts[*at]).filter(|part| part.shard != to);
    let comes = comes.fold(0u64, |sum, part| sum.saturating_add(part.load.bytes));
    if let Some(no_room) = room::no_room(model, to, comes) {
        waits.add(what, format!("not splittable, but parted at {}; {no_room}", Printable(&boundary)));
        return;
    }
    for at in run {
        if model.parts[*at].shard != to && !model.full() {
            model.move_part(*at, to, why.clone());
        }
    }
}

/// Where the ranges meet: the least data moves if it is where most of it is.
fn meeting_place(model: &Model<'_>, run: &[PartAt]) -> Option<ShardAt> {
    let mut held = BTreeMap::<ShardAt, Load>::new();
    for at in run {
        let part = &model.parts[*at];
        let load = held.entry(part.shard).or_default();
        *load = load.plus(part.load);
    }
    let takers = held.into_iter().filter(|(shard, _)| model.shards[*shard].takes());
    let most = takers.max_by_key(|(shard, load)| (load.bytes, load.keys, std::cmp::Reverse(*shard)));
    most.map(|(shard, _)| shard).or_else(|| drain::takers(model).first().copied())
}
