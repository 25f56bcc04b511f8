//! Fewer ranges, where there are very many.

use super::{
    Action, Step,
    model::{Load, Model, PartAt},
};
use crate::keyspace::KeyRange;

/// Merged ranges hold at most this part of what one move may carry: merging must not make what is split again.
const MOVE_PARTS_MIN: u64 = 4;

/// And this part of the load that is left alone: what was split off for its load must not be merged again.
const LOAD_PARTS_MIN: u64 = 5;

/// Plans merges of small neighbours on shards with more ranges than the limit, smallest first, until the limit is
/// reached. Boundaries of pins and of presplit stay; so do ranges that move or moved recently.
pub(super) fn merge(model: &mut Model<'_>) {
    let bytes_max = model.limits.move_bytes_max / MOVE_PARTS_MIN;
    let work_max = (model.topology.rebalance.load_tolerance / LOAD_PARTS_MIN).max(1);
    for shard in 0..model.shards.len() {
        let parts = &model.shards[shard].parts;
        let Some(mut surplus) = parts.len().checked_sub(model.limits.ranges_per_shard_max).filter(|n| *n > 0)
        else {
            continue;
        };
        if !model.shards[shard].gives() {
            continue;
        }
        let mut pairs = parts
            .iter()
            .filter_map(|left| pair(model, *left, (bytes_max, work_max)))
            .collect::<Vec<(Load, PartAt, PartAt)>>();
        pairs.sort_by(|a, b| {
            let size = |load: &Load| (load.bytes, load.keys);
            let start = |at: PartAt| &model.parts[at].range.start;
            size(&a.0).cmp(&size(&b.0)).then_with(|| start(a.1).cmp(start(b.1)))
        });
        // Each range at most once in a plan: what comes of a merge has a new id.
        let mut merged = std::collections::HashSet::new();
        for (_, left, right) in pairs {
            if surplus == 0 || model.full() {
                break;
            }
            if merged.contains(&left) || merged.contains(&right) {
                continue;
            }
            merged.extend([left, right]);
            surplus -= 1;
            let shard = &model.shards[shard];
            let (ranges, max) = (shard.parts.len(), model.limits.ranges_per_shard_max);
            let reason = format!("{} has {ranges} ranges, more than {max}", shard.name);
            merge_pair(model, left, right, reason);
        }
    }
}

/// Plans the merge of two neighbours on one shard. It is not carried out in the model: what comes of it has a new id,
/// so nothing else can be planned for either before it is done.
pub(super) fn merge_pair(model: &mut Model<'_>, left: PartAt, right: PartAt, reason: String) {
    let (l, r) = (&model.parts[left], &model.parts[right]);
    let load = l.load.plus(r.load);
    let range = KeyRange::new(l.range.start.clone(), r.range.end.clone());
    let ready = !l.planned && !r.planned;
    let action = Action::Merge { left: l.rid.clone(), right: r.rid.clone(), range };
    let from = model.shards[l.shard].name.clone();
    model.steps.push(Step {
        action,
        from,
        keys: load.keys,
        bytes: load.bytes,
        work: load.work,
        reason,
        ready,
    });
}

/// The part and its right neighbour, if they may be merged.
fn pair(
    model: &Model<'_>,
    left: PartAt,
    (bytes_max, work_max): (u64, u64),
) -> Option<(Load, PartAt, PartAt)> {
    let l = &model.parts[left];
    let right = l.next?;
    let r = &model.parts[right];
    let load = l.load.plus(r.load);
    let free = |part: &super::model::Part| !part.moving && !part.settled;
    let may = l.shard == r.shard
        && l.pinned == r.pinned
        && free(l)
        && free(r)
        && load.bytes <= bytes_max
        && load.work < work_max
        && !model.is_wanted(&r.range.start);
    may.then_some((load, left, right))
}
