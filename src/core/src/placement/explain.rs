//! Why shards stay above or below their share.

use super::{
    balance::{Crowded, above, hottest, keys_of, needs, pays, what_text},
    model::{Measure, Model, Part, Shard, ShardAt},
    planner::Waits,
    room,
    text::{bytes_text, count_text, ratio_text, work_text},
};
use crate::keyspace::Printable;

fn amount_text(measure: Measure, n: u64) -> String {
    match measure {
        Measure::Keys => count_text(n, "key"),
        Measure::Bytes => bytes_text(n),
        Measure::Work => work_text(n),
    }
}

/// Says why shards stay above or below their share.
pub(super) fn explain(model: &Model<'_>, crowded: &Crowded, waits: &mut Waits) {
    for (at, shard) in model.shards.iter().enumerate().filter(|(_, s)| s.holds()) {
        // Whether the difference of the size that was told of is small.
        let mut of_size: Option<bool> = None;
        for measure in Measure::ALL {
            let (load, share) = (shard.load.of(measure), model.share(shard, measure));
            let tolerance = model.tolerance(measure);
            let is_small = load.saturating_sub(share) < tolerance;
            // Bytes have the same reason as keys, mostly. A small load is nothing to speak of.
            let is_told = match measure {
                Measure::Work => is_small,
                _ => of_size.is_some_and(|told_small| is_small || !told_small),
            };
            if !above(load, share) || is_told {
                continue;
            }
            of_size = Some(is_small);
            let amount = |n: u64| amount_text(measure, n);
            let mut head = format!("it has {}, {} × its share", amount(load), ratio_text(load, share));
            if measure == Measure::Work {
                head.push_str(" of load");
            }
            let reason = if is_small {
                format!("{head}, but a difference of {} is under {}", amount(load - share), amount(tolerance))
            } else {
                format!("{head}; {}", why_stuck(model, crowded, at, measure, &amount))
            };
            waits.add(&shard.name, reason);
        }
    }
    for need in needs(model).into_iter().filter(|need| !need.gives) {
        let shard = &model.shards[need.shard];
        let ratio = ratio_text(shard.load.of(need.measure), shard.target.of(need.measure));
        let what = what_text(need.measure);
        waits.add(
            &shard.name,
            format!("it has {ratio} × its share of {what}, and no range that others can spare fits"),
        );
    }
}

/// Why a shard above its share keeps what it has.
fn why_stuck(
    model: &Model<'_>,
    crowded: &Crowded,
    at: ShardAt,
    measure: Measure,
    amount: &dyn Fn(u64) -> String,
) -> String {
    let shard = &model.shards[at];
    if !shard.takes() {
        return "it is unreachable".to_owned();
    }
    if !model.shards.iter().enumerate().any(|(other, s)| other != at && s.takes()) {
        return "no other shard can take any of it".to_owned();
    }
    let sum = |of: &dyn Fn(&Part) -> bool| -> u64 {
        shard.parts.iter().map(|p| &model.parts[*p]).filter(|p| of(p)).map(|p| p.load.of(measure)).sum()
    };
    let pinned = sum(&|p| p.pinned == Some(at));
    if above(pinned, model.share(shard, measure)) {
        return format!("{} of it are pinned there", amount(pinned));
    }
    if let Some(full) = full_taker(model, crowded, at, measure) {
        let (name, bound) = (&model.shards[full].name, room::bound_text(model, full));
        return format!("{name} has no room for more of it: {bound}");
    }
    if !above(shard.load.of(measure), shard.target.of(measure)) {
        return "it is no more than what the others have that can take some now".to_owned();
    }
    let settled = sum(&|p| p.settled && !p.moving);
    if u128::from(settled) * 2 > u128::from(shard.load.of(measure)) {
        return format!("{} of it moved there recently and stay for now", amount(settled));
    }
    if measure == Measure::Work {
        let resting = sum(&|p| p.rests && !p.moving);
        if u128::from(resting) * 2 > u128::from(shard.load.work) {
            return format!("{} of it moved there lately and rest for now", amount(resting));
        }
    }
    let free = shard.parts.iter().map(|p| &model.parts[*p]).filter(|p| p.pinned.is_none() && !p.moving);
    // The first of equals in key order.
    let largest = free.max_by(|a, b| {
        a.load.of(measure).cmp(&b.load.of(measure)).then_with(|| b.range.start.cmp(&a.range.start))
    });
    match largest {
        None => "all of it is moving or pinned".to_owned(),
        Some(part) if part.bound => format!("{} has to become one with a neighbour first", part.range),
        Some(part) if !part.scanned() => {
            format!(
                "{} has {} and was not scanned yet for where to split it",
                part.range,
                amount(part.load.of(measure))
            )
        }
        Some(part) if measure == Measure::Work => why_hot(model, at, part),
        Some(part) => {
            let held = amount(part.load.of(measure));
            let why = if part.cuts() == 0 { "is one directory" } else { "has no boundary in a useful place" };
            format!("{} has {held} and {why}, so no move would help", part.range)
        }
    }
}

/// The shard that would take what `at` has too much of, if only its quota forbids it.
fn full_taker(model: &Model<'_>, crowded: &Crowded, at: ShardAt, measure: Measure) -> Option<ShardAt> {
    if let Some(full) = crowded.get(&(at, measure)) {
        return Some(*full);
    }
    // Targets are made with the quota in mind, so what it forbids is not even tried.
    let is_short = |s: &Shard| s.load.of(measure) < model.share(s, measure);
    let others = model.shards.iter().enumerate().filter(|(other, s)| *other != at && s.takes());
    let mut capped = others.filter(|(_, s)| s.capped.is_some() && is_short(s)).map(|(other, _)| other);
    capped.next()
}

/// Why nothing is done about a shard's part with the most load.
fn why_hot(model: &Model<'_>, at: ShardAt, part: &Part) -> String {
    let shard = &model.shards[at];
    let excess = shard.load.work.saturating_sub(shard.target.work);
    let (keys, load) = match hottest(part, 0) {
        Some((piece, load)) => (keys_of(part, &piece), load),
        None => (part.range.clone(), part.load),
    };
    if let Some(hot) = part.hot.as_ref().filter(|hot| hot.work.saturating_mul(2) >= load.work.min(excess)) {
        let (key, work) = (Printable(&hot.key), work_text(hot.work));
        return format!(
            "the key {key} alone has {work} of it, and no move or split parts the load of one key"
        );
    }
    if load.work.saturating_mul(2) < excess {
        let held = work_text(part.load.work);
        return format!("{} has {held}, in pieces that others have no room for", part.range);
    }
    let held = work_text(load.work);
    if !pays(load, load.work.min(excess)) {
        let bytes = bytes_text(load.bytes);
        return format!("{keys} has {held}, but to move its {bytes} costs more than it evens out");
    }
    format!("{keys} has {held} and cannot be parted, so no move would help")
}
