//! Empties shards that leave.

use std::cmp::Reverse;

use bytes::Bytes;

use super::{
    model::{Choice, Load, Measure, Model, Part, PartAt, Piece, Shard, ShardAt},
    planner::Waits,
    room,
    text::{bytes_text, count_text},
};

/// Shards looked at as takers of a part: the emptiest suffice, and the work stays bounded.
const TAKERS_MAX: usize = 4;

/// Why a part goes where it goes; the first field that differs decides, less is better.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Preference {
    /// By how much the taker would be clearly above its share, in thousandths of a mean shard.
    overshoot: u64,
    /// A range has to be split.
    splits: bool,
    /// Large parts first, as long as there is room for them.
    size: Reverse<u64>,
    /// No neighbour is on the taker.
    apart: bool,
    /// No reason, but always the same.
    start: Bytes,
    to: ShardAt,
}

/// Plans the moves that take everything off shards that leave, to where there is room.
pub(super) fn drain(model: &mut Model<'_>, waits: &mut Waits) {
    for from in 0..model.shards.len() {
        if !model.shards[from].leaves || !model.shards[from].gives() {
            continue;
        }
        while !model.full() {
            let few = takers(model);
            // With a quota the emptiest may be too small for all that is left.
            let choice = best(model, from, &few).or_else(|| match model.topology.quota_bytes {
                Some(_) => best(model, from, &all_takers(model)),
                None => None,
            });
            let Some(choice) = choice else { break };
            let (giver, taker) = (&model.shards[from], &model.shards[choice.to]);
            let reason = format!("{} leaves; {} has room", giver.name, taker.name);
            model.approach(&choice, reason);
        }
        let free = model.shards[from].parts.iter().any(|part| is_free(&model.parts[*part]));
        if free && !model.shards.iter().any(Shard::takes) {
            waits.add(&model.shards[from].name, "it leaves, but no shard can take its ranges");
        } else if free && !model.full() {
            report_left(model, from, waits);
        }
    }
}

/// Says what stays for want of room.
fn report_left(model: &Model<'_>, from: ShardAt, waits: &mut Waits) {
    let left = model.shards[from].parts.iter().map(|part| &model.parts[*part]).filter(|part| is_free(part));
    let (count, bytes, least) = left.fold((0, 0, u64::MAX), |(count, bytes, least), part| {
        (count + 1, part.load.bytes.saturating_add(bytes), least.min(part.load.bytes))
    });
    let roomiest = all_takers(model).into_iter().max_by_key(|at| (room::at_all(model, *at), Reverse(*at)));
    let Some(why) = roomiest.and_then(|at| room::no_room(model, at, least)) else { return };
    let reason = format!(
        "it leaves, but {}, {}, have to stay as no shard has room: {why}",
        count_text(count, "range"),
        bytes_text(bytes)
    );
    waits.add(&model.shards[from].name, reason);
}

/// True if the part can be drained; a pinned one goes where its pin says, once it can.
fn is_free(part: &Part) -> bool {
    !part.moving && !part.bound && part.pinned.is_none()
}

fn best(model: &Model<'_>, from: ShardAt, takers: &[ShardAt]) -> Option<Choice> {
    let mut preferred: Option<(Preference, Choice)> = None;
    for at in &model.shards[from].parts {
        let part = &model.parts[*at];
        if !is_free(part) {
            continue;
        }
        for to in takers {
            let mut consider = |piece: Piece, load: Load| {
                if load.bytes > room::at_all(model, *to) {
                    return;
                }
                let preference = preference(model, part, &piece, load, *to);
                if preferred.as_ref().is_none_or(|(best, _)| preference < *best) {
                    preferred = Some((preference, Choice { part: *at, piece, to: *to }));
                }
            };
            pieces(model, *at, *to, &mut consider);
        }
    }
    preferred.map(|(_, choice)| choice)
}

/// All shards that take.
fn all_takers(model: &Model<'_>) -> Vec<ShardAt> {
    (0..model.shards.len()).filter(|at| model.shards[*at].takes()).collect()
}

/// The emptiest shards, reckoned by what they should hold.
pub(super) fn takers(model: &Model<'_>) -> Vec<ShardAt> {
    let fill = |shard: &Shard| {
        let permille = |measure: Measure| {
            let (load, target) = (u128::from(shard.load.of(measure)), u128::from(shard.target.of(measure)));
            load * 1000 / target.max(1)
        };
        model.weighed().map(permille).max()
    };
    let mut takers = model
        .shards
        .iter()
        .enumerate()
        .filter(|(_, shard)| shard.takes())
        .map(|(at, shard)| (fill(shard), at))
        .collect::<Vec<_>>();
    takers.sort_unstable();
    takers.truncate(TAKERS_MAX);
    takers.into_iter().map(|(_, at)| at).collect()
}

fn pieces(model: &Model<'_>, at: PartAt, to: ShardAt, take: &mut impl FnMut(Piece, Load)) {
    let part = &model.parts[at];
    let most = model.limits.move_bytes_max.min(room::at_all(model, to));
    let carries = |load: Load| load.bytes <= most;
    if carries(part.load) || part.known_from(0).is_none() {
        take(Piece::Whole, part.load);
    }
    let fits = |load: Load| carries(load) && overshoot(model, to, load) == 0;
    if fits(part.load) {
        return;
    }
    // The largest piece on either side that fits, and, if there is room nowhere, the largest that one move carries.
    let left_of = |i: usize| part.cut(part.known_upto(i)?).map(|cut| (cut.left, Piece::Left(cut)));
    let right_of =
        |i: usize| part.cut(part.known_from(i)?).map(|cut| (part.load.minus(cut.left), Piece::Right(cut)));
    let candidates = [
        part.cuts_while(|cut| fits(cut.left)).checked_sub(1).and_then(left_of),
        part.cuts_while(|cut| carries(cut.left)).checked_sub(1).and_then(left_of),
        right_of(part.cuts_while(|cut| !fits(part.load.minus(cut.left)))),
        right_of(part.cuts_while(|cut| !carries(part.load.minus(cut.left)))),
    ];
    let mut cut_somewhere = false;
    for (load, piece) in candidates.into_iter().flatten() {
        let (Piece::Left(cut) | Piece::Right(cut)) = &piece else { continue };
        // Nothing is split for crumbs; a part of a load that is next to nothing is one.
        let matters = Measure::ALL.iter().any(|m| {
            let piece = load.of(*m);
            let is_fair_part = u128::from(piece) * 20 >= u128::from(part.load.of(*m)).max(1);
            piece >= model.tolerance(*m).max(1) || (is_fair_part && *m != Measure::Work)
        });
        if matters && model.topology.keyspace.rules.is_legal_boundary(&cut.at) {
            cut_somewhere = true;
            take(piece, load);
        }
    }
    // All pieces too large for one move: the scan that follows the split finds more cuts, or there are none.
    if let Some((load, piece)) =
        part.known_from(0).and_then(left_of).filter(|_| !cut_somewhere && !carries(part.load))
    {
        take(piece, load);
    }
}

/// By how much `to` would be clearly above its share with `load` more, in thousandths of a mean shard.
fn overshoot(model: &Model<'_>, to: ShardAt, load: Load) -> u64 {
    let shard = &model.shards[to];
    let over = |measure: Measure| {
        let target = shard.target.of(measure);
        // Within what balance leaves alone: else it would have to move a part of it once more.
        let most = target.saturating_add((target / 10).max(model.tolerance(measure) / 2));
        let beyond = shard.load.of(measure).saturating_add(load.of(measure)).saturating_sub(most);
        let mean = u128::from(model.mean(measure)).max(1);
        u64::try_from((u128::from(beyond) * 1000).div_ceil(mean)).unwrap_or(u64::MAX)
    };
    model.weighed().map(over).fold(0, u64::saturating_add)
}

fn preference(model: &Model<'_>, part: &Part, piece: &Piece, load: Load, to: ShardAt) -> Preference {
    let size = model.weighed().map(|m| u128::from(load.of(m)) * 1000 / u128::from(model.mean(m)).max(1));
    Preference {
        overshoot: overshoot(model, to, load),
        splits: !matches!(piece, Piece::Whole),
        size: Reverse(u64::try_from(size.max().unwrap_or(0)).unwrap_or(u64::MAX)),
        apart: !model.touches(part, piece, to),
        start: match piece {
            Piece::Whole | Piece::Left(_) => part.range.start.clone(),
            Piece::Right(cut) | Piece::Between(cut, _) => cut.at.clone(),
        },
        to,
    }
}
