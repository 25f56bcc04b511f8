//! Which step is next.

use crate::records::{Claim, ClaimState, CursorStage, FENCE_OPEN, MovePhase, MoveRecord, fence_closed_by};

use super::{DestinationView, Effect, Observation, Place, Session, SourceView};

/// What an executor does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send this Txn, then decide again.
    Do(Effect),
    /// Longer work that ends in another observation or session.
    Work(Work),
    /// The move cannot go on, for this reason: the session is to give it up, then decide again.
    GiveUp(String),
    /// Nothing can be done now, for this reason; look again later.
    Wait(String),
    /// Nothing can be done before this place can be reached again.
    Unreachable(Place),
    /// There is no such move (any more).
    Done,
}

/// Longer work, of many Txns each guarded by the cursor or by the purge's guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Copy the range as it was at the cursor's `copy_at`.
    Copy,
    /// Apply the source's events, verify in full, come close to the source's end; then the session is `ready_to_close`.
    Tail,
    /// Apply the source's events up to the close and compare what changed since the verification; then the session is
    /// `drained`.
    Drain {
        /// Local revision of the close.
        upto: i64,
    },
    /// Delete the copy at this place; then the session is `purged`.
    Purge(Place),
}

/// The next step of a move.
pub fn decide(seen: &Observation, session: &Session) -> Step {
    let Some(stored) = &seen.record else { return Step::Done };
    let record = &stored.value;
    match record.phase {
        // The decision is in meta alone, and needs no shard: that may be what the move is given up for.
        MovePhase::Copying if session.give_up.is_some() => Step::Do(Effect::Abort),
        MovePhase::Copying => copying(seen, session, record),
        MovePhase::Flipped => flipped(seen, session, record),
        MovePhase::Aborting => aborting(seen, session, record),
    }
}

/// What the fence of the source says.
enum Fence {
    Open,
    /// By this move, at this local revision.
    Closed(i64),
    Other,
}

fn fence(source: &SourceView, record: &MoveRecord) -> Fence {
    match &source.fence {
        Some(f) if f.value == FENCE_OPEN => Fence::Open,
        Some(f) if f.value == fence_closed_by(&record.id) => Fence::Closed(f.modified),
        _ => Fence::Other,
    }
}

fn copying(seen: &Observation, session: &Session, record: &MoveRecord) -> Step {
    let Some(source) = &seen.source else { return Step::Unreachable(Place::Source) };
    let fence = fence(source, record);
    if seen.map.owner != Some(record.from) || matches!(fence, Fence::Other) {
        // Not by this protocol. An abort touches only what is this move's own.
        return give_up("the range is not, or no longer, the source's to give");
    }
    let Some(destination) = &seen.destination else {
        return match fence {
            Fence::Closed(_) => give_up("the destination cannot be reached while writers wait"),
            _ => Step::Unreachable(Place::Destination),
        };
    };
    let Some(cursor) = &destination.cursor else {
        return match fence {
            Fence::Closed(_) => give_up("the source was closed before the destination was opened"),
            _ => open_destination(source, destination, session, record),
        };
    };
    match (&cursor.value.stage, fence) {
        (CursorStage::Sealed { revision }, Fence::Closed(at)) if at == *revision => {
            Step::Do(Effect::Flip { from_local: at, to_local: cursor.modified })
        }
        (CursorStage::Copy { .. }, Fence::Open) => Step::Work(Work::Copy),
        (CursorStage::Tail { .. }, Fence::Open) if !session.ready_to_close => Step::Work(Work::Tail),
        (CursorStage::Tail { .. }, Fence::Open) => {
            match source.claims.value.other_on(&record.range, &record.rid) {
                None => Step::Do(Effect::Close),
                // Closing the fence would not stop who writes by the other one's.
                Some(other) => wait_for("source", other),
            }
        }
        (CursorStage::Tail { .. }, Fence::Closed(at)) if session.closed_at == Some(at) => {
            if session.drained {
                Step::Do(Effect::Seal { closed_at: at })
            } else {
                Step::Work(Work::Drain { upto: at })
            }
        }
        // Closed by an executor that is gone, nobody knows how long ago: writers wait, so it is given up.
        (CursorStage::Tail { .. } | CursorStage::Copy { .. }, _) => {
            give_up("its executor was lost while writers waited")
        }
        (CursorStage::Void, _) => give_up("the destination's copy was dropped"),
        (CursorStage::Sealed { .. }, _) => {
            give_up("the source is not closed where the destination was sealed")
        }
    }
}

fn open_destination(
    source: &SourceView,
    destination: &DestinationView,
    session: &Session,
    record: &MoveRecord,
) -> Step {
    if let Some(other) = source.claims.value.other_on(&record.range, &record.rid) {
        return wait_for("source", other);
    }
    if let Some(other) = destination.claims.value.other_on(&record.range, &record.new_rid) {
        return wait_for("destination", other);
    }
    Step::Do(Effect::Open { copy_at: session.copy_at })
}

fn flipped(seen: &Observation, session: &Session, record: &MoveRecord) -> Step {
    let Some(source) = &seen.source else { return Step::Unreachable(Place::Source) };
    if source.purge.is_some() {
        return purge_or(session, Place::Source, Effect::PurgedSource);
    }
    if let Fence::Closed(_) = fence(source, record) {
        return Step::Do(Effect::PurgeSource);
    }
    forget(seen)
}

fn aborting(seen: &Observation, session: &Session, record: &MoveRecord) -> Step {
    // The source first: its writers wait. A void cursor tells that it has been released.
    let void = matches!(
        &seen.destination,
        Some(DestinationView { cursor: Some(c), .. }) if c.value.stage == CursorStage::Void
    );
    if !void && !session.voided && !session.released {
        match &seen.source {
            None => return Step::Unreachable(Place::Source),
            Some(source) if !matches!(fence(source, record), Fence::Other) => {
                return Step::Do(Effect::Release);
            }
            Some(_) => {}
        }
    }
    let Some(destination) = &seen.destination else { return Step::Unreachable(Place::Destination) };
    if !void && !session.voided {
        return Step::Do(Effect::Void);
    }
    if destination.purge.is_some() {
        return purge_or(session, Place::Destination, Effect::PurgedDestination);
    }
    forget(seen)
}

/// Purges, and when that is done, says so.
fn purge_or(session: &Session, place: Place, purged: Effect) -> Step {
    if session.purged { Step::Do(purged) } else { Step::Work(Work::Purge(place)) }
}

/// Nothing is left but the move's own records.
fn forget(seen: &Observation) -> Step {
    match &seen.destination {
        None => Step::Unreachable(Place::Destination),
        Some(destination) if destination.cursor.is_some() => Step::Do(Effect::ForgetCursor),
        Some(_) => Step::Do(Effect::Forget),
    }
}

fn give_up(why: &str) -> Step {
    Step::GiveUp(why.to_owned())
}

/// Waits for what is in the way. A split or merge that is being opened on the *source* waits for this move itself: its entry gets
/// into the log only while no move of the old range is written down, and it cannot be undone while its entry may be under
/// way. A move can be, so it gives way.
fn wait_for(place: &str, other: &Claim) -> Step {
    let reason = in_the_way(place, other);
    match (place, &other.state) {
        ("source", ClaimState::Opening(_)) => Step::GiveUp(reason),
        _ => Step::Wait(reason),
    }
}

fn in_the_way(place: &str, other: &Claim) -> String {
    let what = match &other.state {
        ClaimState::Open => "owns an overlapping range".to_owned(),
        ClaimState::Opening(_) => "is splitting or merging an overlapping range".to_owned(),
        ClaimState::Closed(id) => format!("has an overlapping range closed by move {id}"),
        ClaimState::Importing(id) => format!("is being filled there by move {id}"),
        ClaimState::Purging => "still deletes an earlier copy".to_owned(),
    };
    format!("the {place} {what} ({})", other.range)
}
