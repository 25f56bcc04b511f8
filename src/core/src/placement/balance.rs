//! Moves for balance: from shards above their share to shards below it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::{
    by_size::{Before, BySize},
    explain::explain,
    model::{Choice, Cut, Load, Measure, Model, Part, PartAt, Piece, Shard, ShardAt},
    planner::Waits,
    room,
    text::ratio_text,
};
use crate::keyspace::KeyRange;

/// Shards looked at on the other side of a need: the neediest suffice, and the work stays bounded.
const PARTNERS_MAX: usize = 4;
/// Ranges of a shard looked at first: so many of the largest, and so many of those that fit best as a whole.
const RANGES_MAX: usize = 32;
/// Deviations are reckoned in millionths of a mean shard.
const SCALE: i128 = 1_000_000;
/// A load is expected to last for so long: a move for its sake that costs the shards more than it takes off the one that
/// has too much in this time is not made.
const LOAD_SECONDS: u64 = 600;
/// So many bytes that are moved cost the shards a read and a write, which is [`MOVE_WORK`].
const MOVE_BYTES: u64 = 4096;
/// See [`MOVE_BYTES`].
const MOVE_WORK: u64 = 5;

/// True if `load` is above 1.2 times `share`: what a shard must not be to count as balanced.
pub(super) fn above(load: u64, share: u64) -> bool {
    u128::from(load) * 5 > u128::from(share) * 6
}

/// True if `load` is below 0.75 times `share`. Without a lower bound a sixth shard would stay empty, as five full ones
/// are at 1.2 times the mean only.
fn below(load: u64, share: u64) -> bool {
    u128::from(load) * 4 < u128::from(share) * 3
}

/// A shard with clearly more or less than its share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Need {
    pub(super) shard: ShardAt,
    pub(super) measure: Measure,
    pub(super) gives: bool,
    /// Distance from the share in millionths of a mean shard.
    distance: i128,
}

/// Plans moves until no shard that could be helped is above or below its share.
pub(super) fn balance(model: &mut Model<'_>, waits: &mut Waits) {
    // Needs for which every range was looked at in vain. On shards with very many ranges that is the long part, and
    // what is planned for other needs seldom changes it.
    let mut hopeless = BTreeSet::new();
    let mut sizes = BySize::default();
    let mut crowded = Crowded::new();
    while !model.full() {
        let found = needs(model).into_iter().find_map(|need| {
            let mut choice = best(model, &mut sizes, &mut crowded, need, RANGES_MAX);
            if choice.is_none() && hopeless.insert((need.shard, need.measure, need.gives)) {
                choice = best(model, &mut sizes, &mut crowded, need, usize::MAX);
            }
            choice.map(|choice| (need, choice))
        });
        let Some((need, choice)) = found else { break };
        let (before, parts) = (Before::of(model, choice.part), model.parts.len());
        carry_out(model, need, &choice);
        sizes.changed(model, &before, parts);
    }
    if !model.full() {
        explain(model, &crowded, waits);
    }
}

/// Shards that could have been helped, but for the quota of another one: the giver, the measure, and the taker.
pub(super) type Crowded = BTreeMap<(ShardAt, Measure), ShardAt>;

/// The parts of `from` to look at: all if they are few, else the largest and those that come closest to what is
/// wanted, in no particular order.
fn shortlist(
    model: &Model<'_>,
    sizes: &mut BySize,
    need: Need,
    from: ShardAt,
    to: ShardAt,
    max: usize,
) -> Vec<PartAt> {
    let (giver, taker) = (&model.shards[from], &model.shards[to]);
    let excess = giver.load.of(need.measure).saturating_sub(giver.target.of(need.measure));
    let room = taker.target.of(need.measure).saturating_sub(taker.load.of(need.measure));
    sizes.shortlist(model, (from, need.measure), excess.min(room), max, |part| is_free(part, need.measure))
}

/// True if the part may be moved for balance of `measure`.
fn is_free(part: &Part, measure: Measure) -> bool {
    let rests = measure == Measure::Work && part.rests;
    !part.moving && !part.settled && !part.bound && part.pinned.is_none() && !rests
}

/// True if moving `load` costs no more than taking `evened` operations a second off a shard is worth.
pub(super) fn pays(load: Load, evened: u64) -> bool {
    let cost = u128::from(load.bytes) * u128::from(MOVE_WORK) / u128::from(MOVE_BYTES);
    cost <= u128::from(evened) * u128::from(LOAD_SECONDS)
}

/// Why one choice is taken rather than another; the first field that differs decides, less is better.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Preference {
    /// The taker would end clearly above its share, or the giver clearly below (or they would not, where nothing else
    /// helps enough).
    overshoots: bool,
    /// How much of the imbalance goes, and whether a range has to be split for it, which leaves one more.
    rank: Rank,
    /// No neighbour of the piece is on the taker, so nothing can be merged there later.
    apart: bool,
    /// The least data.
    bytes: u64,
    keys: u64,
    /// No reason, but always the same.
    start: Bytes,
    to: ShardAt,
}

/// How good a choice is compared with what the best one takes away. Ranges that are there already may do clearly less:
/// fewer splits, and that a piece has just been split off does not make the next plan think again.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// A whole range, and as good as the best.
    WholeAndBest,
    /// A whole range, and at least three quarters as good as the best.
    WholeAndGood,
    /// Needs a split, and is as good as the best.
    PieceAndBest,
    /// Needs two, and is as good as the best.
    BetweenAndBest,
    /// All others.
    Other,
}

impl Rank {
    fn of(piece: &Piece, gain: i128, best: i128, go_beyond: bool) -> Self {
        let is_best = gain * 33 >= best * 32;
        // Beyond the goal nothing but the best will do.
        let is_good = gain * 4 >= best * 3 && !go_beyond;
        match piece {
            Piece::Whole if is_best => Self::WholeAndBest,
            Piece::Whole if is_good => Self::WholeAndGood,
            Piece::Left(_) | Piece::Right(_) if is_best => Self::PieceAndBest,
            Piece::Between(..) if is_best => Self::BetweenAndBest,
            _ => Self::Other,
        }
    }
}

fn scale(model: &Model<'_>, measure: Measure) -> i128 {
    i128::from(model.mean(measure).max(model.tolerance(measure)).max(1))
}

/// How far the shard is above what it should hold, negative if below, in millionths of a mean shard.
fn deviation(model: &Model<'_>, shard: &Shard, measure: Measure) -> i128 {
    let difference = i128::from(shard.load.of(measure)) - i128::from(shard.target.of(measure));
    difference * SCALE / scale(model, measure)
}

/// What there is to do, the most urgent first: shards above their share, then shards below it.
pub(super) fn needs(model: &Model<'_>) -> Vec<Need> {
    let mut needs = Vec::new();
    for (at, shard) in model.shards.iter().enumerate().filter(|(_, s)| s.takes()) {
        let counted = Measure::ALL.into_iter().filter(|m| model.counts(*m));
        let matters = |m: Measure| shard.load.of(m).abs_diff(shard.target.of(m)) >= model.tolerance(m).max(1);
        // Who has enough of one measure is not given more for the sake of the other.
        let is_low = counted.clone().all(|m| below(shard.load.of(m), shard.target.of(m)));
        for measure in counted.filter(|m| matters(*m)) {
            let gives = above(shard.load.of(measure), shard.target.of(measure));
            if gives || is_low {
                let distance = deviation(model, shard, measure).abs();
                needs.push(Need { shard: at, measure, gives, distance });
            }
        }
    }
    needs.sort_by_key(|need| (!need.gives, -need.distance, need.shard, need.measure));
    needs
}

/// The best move that helps with a need, among `ranges_max` ranges of each kind; `None` if there is none that is worth it.
fn best(
    model: &Model<'_>,
    sizes: &mut BySize,
    crowded: &mut Crowded,
    need: Need,
    ranges_max: usize,
) -> Option<Choice> {
    let partners = partners(model, need);
    let mut candidates = Vec::new();
    for partner in partners {
        let (from, to) = if need.gives { (need.shard, partner) } else { (partner, need.shard) };
        for part in shortlist(model, sizes, need, from, to, ranges_max) {
            pieces(model, part, to, need.measure, |piece, load| {
                let Some((gain, overshoots)) = gain(model, from, to, load, need) else { return };
                if load.bytes > room::for_balance(model, to) {
                    crowded.insert((from, need.measure), to);
                } else {
                    candidates.push((gain, overshoots, load, Choice { part, piece, to }));
                }
            });
        }
    }
    let best_gain = |overshooting: bool| {
        candidates.iter().filter(|(_, o, _, _)| *o == overshooting).map(|(gain, _, _, _)| *gain).max()
    };
    // Large pieces first, also beyond the goal if there is no other way: small ones moved before would have to go back.
    let (within, beyond) = (best_gain(false).unwrap_or(0), best_gain(true).unwrap_or(0));
    let go_beyond = within * 2 < beyond;
    let best_gain = if go_beyond { beyond } else { within };
    let preferred = candidates.into_iter().min_by_key(|(gain, overshoots, load, choice)| {
        let part = &model.parts[choice.part];
        Preference {
            overshoots: *overshoots != go_beyond,
            rank: Rank::of(&choice.piece, *gain, best_gain, go_beyond),
            apart: !model.touches(part, &choice.piece, choice.to),
            bytes: load.bytes,
            keys: load.keys,
            start: match &choice.piece {
                Piece::Whole | Piece::Left(_) => part.range.start.clone(),
                Piece::Right(cut) | Piece::Between(cut, _) => cut.at.clone(),
            },
            to: choice.to,
        }
    });
    preferred.map(|(_, _, _, choice)| choice)
}

/// The shards on the other side of a need, those that are furthest from their share first.
fn partners(model: &Model<'_>, need: Need) -> Vec<ShardAt> {
    let sign = if need.gives { 1 } else { -1 };
    let mut partners = model
        .shards
        .iter()
        .enumerate()
        .filter(|(at, shard)| *at != need.shard && shard.takes())
        .map(|(at, shard)| (sign * deviation(model, shard, need.measure), at))
        .filter(|(deviation, _)| *deviation < 0)
        // Those that are full last: they are looked at for the reason that can be told then.
        .map(|(deviation, at)| (need.gives && room::is_full(model, at), deviation, at))
        .collect::<Vec<_>>();
    partners.sort_unstable();
    partners.truncate(PARTNERS_MAX);
    partners.into_iter().map(|(_, _, at)| at).collect()
}

/// Calls `take` with the pieces of a part that could be moved to `to`: the whole, and those left and right of a cut
/// that come closest to what one has too much and the other too little of, and to what one move carries; for the sake of
/// load the hottest piece between two cuts, too.
fn pieces(model: &Model<'_>, at: PartAt, to: ShardAt, measure: Measure, mut take: impl FnMut(Piece, Load)) {
    let part = &model.parts[at];
    let max = model.limits.move_bytes_max;
    let indivisible = part.scanned() && part.known_from(0).is_none();
    if part.load.bytes <= max || indivisible {
        take(Piece::Whole, part.load);
    }
    if part.cuts() == 0 {
        return;
    }
    let (giver, taker) = (&model.shards[part.shard], &model.shards[to]);
    let mut take_cut = |i: usize| {
        let Some(cut) = part.cut(i) else { return };
        if !model.topology.keyspace.rules.is_legal_boundary(&cut.at) {
            return;
        }
        let right = part.load.minus(cut.left);
        // A piece without a cut in it may be too large for one move: the next scan finds more cuts, or there are none.
        if cut.left.bytes <= max || i.checked_sub(1).and_then(|i| part.known_upto(i)).is_none() {
            take(Piece::Left(cut.clone()), cut.left);
        }
        if right.bytes <= max || part.known_from(i + 1).is_none() {
            take(Piece::Right(cut), right);
        }
    };
    let mut tried = Vec::with_capacity(16);
    let wanted = Measure::ALL.iter().filter(|m| model.counts(**m)).map(|m| {
        let excess = giver.load.of(*m).saturating_sub(giver.target.of(*m));
        let room = taker.target.of(*m).saturating_sub(taker.load.of(*m));
        (*m, excess.min(room))
    });
    let for_load = measure == Measure::Work;
    for (measure, want) in wanted.chain([(Measure::Bytes, max)]) {
        let rest = part.load.of(measure).saturating_sub(want);
        let left = part.cuts_while(|cut| cut.left.of(measure) <= want);
        let right = part.cuts_while(|cut| cut.left.of(measure) < rest);
        let near = [left.checked_sub(1), Some(left), right.checked_sub(1), Some(right)];
        for i in near.into_iter().flatten().flat_map(|i| match for_load {
            true => [Some(i), None],
            false => [part.known_upto(i), part.known_from(i)],
        }) {
            let Some(i) = i else { continue };
            if !tried.contains(&i) {
                tried.push(i);
                take_cut(i);
            }
        }
    }
    if measure == Measure::Work {
        let excess = giver.load.work.saturating_sub(giver.target.work);
        let room = taker.target.work.saturating_sub(taker.load.work);
        let found = hottest(part, excess.min(room)).filter(|(piece, load)| {
            let is_legal = |cut: &Cut| model.topology.keyspace.rules.is_legal_boundary(&cut.at);
            load.bytes <= max && matches!(piece, Piece::Between(a, b) if is_legal(a) && is_legal(b))
        });
        if let Some((piece, load)) = found {
            take(piece, load);
        }
    }
}

/// The hottest slice of a part between two cuts next to each other, with the neighbours that are not cold beside it as long
/// as all of it is not above `want`.
pub(super) fn hottest(part: &Part, want: u64) -> Option<(Piece, Load)> {
    let cuts: Vec<Cut> = (0..part.cuts()).filter_map(|i| part.cut(i)).collect();
    // Slice `i` ends at cut `i`; the last one ends where the part does.
    let upto = |i: usize| match i.checked_sub(1) {
        None => Load::default(),
        Some(i) => cuts.get(i).map_or(part.load, |cut| cut.left),
    };
    let work = |i: usize| upto(i + 1).minus(upto(i)).work;
    let seed = (0..=cuts.len()).reduce(|a, b| if work(b) > work(a) { b } else { a })?;
    let (mut from, mut to, mut sum) = (seed, seed + 1, work(seed));
    if sum == 0 {
        return None;
    }
    loop {
        let left = from.checked_sub(1).map(work);
        let right = (to <= cuts.len()).then(|| work(to));
        let fits = |more: &u64| sum + more <= want && more.saturating_mul(8) >= work(seed);
        match (left.filter(fits), right.filter(fits)) {
            (Some(l), r) if r.is_none_or(|r| l >= r) => (from, sum) = (from - 1, sum + l),
            (_, Some(r)) => (to, sum) = (to + 1, sum + r),
            _ => break,
        }
    }
    let load = upto(to).minus(upto(from));
    let first = from.checked_sub(1).and_then(|i| cuts.get(i)).cloned();
    let piece = match (first, cuts.get(to - 1).cloned()) {
        (None, None) => Piece::Whole,
        (None, Some(end)) => Piece::Left(end),
        (Some(start), None) => Piece::Right(start),
        (Some(start), Some(end)) => Piece::Between(start, end),
    };
    Some((piece, load))
}

/// The keys of a piece of a part.
pub(super) fn keys_of(part: &Part, piece: &Piece) -> KeyRange {
    let (start, end) = (part.range.start.clone(), part.range.end.clone());
    match piece {
        Piece::Whole => KeyRange { start, end },
        Piece::Left(cut) => KeyRange { start, end: cut.at.clone() },
        Piece::Right(cut) => KeyRange { start: cut.at.clone(), end },
        Piece::Between(a, b) => KeyRange { start: a.at.clone(), end: b.at.clone() },
    }
}

/// How much less the two shards deviate (sum of squares) after a move of `load`, and whether it goes beyond the goal;
/// `None` if the move is not worth it.
fn gain(model: &Model<'_>, from: ShardAt, to: ShardAt, load: Load, need: Need) -> Option<(i128, bool)> {
    let (giver, taker) = (&model.shards[from], &model.shards[to]);
    let (mut gain, mut size, mut overshoots, mut worth_it) = (0i128, 0i128, false, false);
    for measure in Measure::ALL.into_iter().filter(|m| model.counts(*m)) {
        let tolerance = model.tolerance(measure);
        let moved = load.of(measure);
        let step = i128::from(moved) * SCALE / scale(model, measure);
        let excess = deviation(model, giver, measure);
        let room = -deviation(model, taker, measure);
        gain += 2 * step * (excess + room - step);
        size += step * step;
        let is_over = |load: u64, target: u64| {
            let beyond = load.saturating_sub(target);
            u128::from(beyond) * 10 > u128::from(target) && beyond >= tolerance
        };
        let (gives, takes) = (giver.target.of(measure), taker.target.of(measure));
        let left = giver.load.of(measure).saturating_sub(moved);
        let is_under = u128::from(left) * 10 < u128::from(gives) * 9 && gives - left >= tolerance;
        overshoots |= moved > 0 && (is_over(taker.load.of(measure) + moved, takes) || is_under);
        // Nothing is moved for crumbs, unless they are a fair part of what is too much.
        worth_it |= measure == need.measure && (moved >= tolerance.max(1) || step * 5 >= need.distance);
    }
    if need.measure == Measure::Work {
        let excess = giver.load.work.saturating_sub(giver.target.work);
        worth_it &= pays(load, load.work.min(excess));
    }
    // Without this a piece twice the difference could be thrown to and fro: what it takes away must be clearly more
    // than what it could bring when the loads drift a little.
    let damped = gain > 0 && gain * 3 >= size * 2;
    (damped && worth_it).then_some((gain, overshoots))
}

fn carry_out(model: &mut Model<'_>, need: Need, choice: &Choice) {
    let from = model.parts[choice.part].shard;
    let reason = {
        let what = what_text(need.measure);
        let share = |shard: &Shard| ratio_text(shard.load.of(need.measure), shard.target.of(need.measure));
        let (giver, taker) = (&model.shards[from], &model.shards[choice.to]);
        format!(
            "{} has {} × its share of {what}, {} {} ×",
            giver.name,
            share(giver),
            taker.name,
            share(taker)
        )
    };
    model.approach(choice, reason);
}

/// What a measure is called in "its share of".
pub(super) fn what_text(measure: Measure) -> &'static str {
    match measure {
        Measure::Keys => "keys",
        Measure::Bytes => "data",
        Measure::Work => "load",
    }
}
