//! Which step is next.

use crate::records::{Claim, ClaimState, CursorStage, FENCE_OPEN, MovePhase, MoveRecord, fence_closed_by};

use super::{Effect, Observation, Place, Session};

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
        MovePhase::Copying if session.give_up.is_some() => Step::Do(Effect::Abort),
        MovePhase::Copying => copying(seen, session, record),
        MovePhase::Flipped => flipped(seen, session, record),
        MovePhase::Aborting => aborting(seen, session, record),
    }
}

fn copying(seen: &Observation, session: &Session, record: &MoveRecord) -> Step {
    let fence = seen.source.fence.as_ref();
    let open = fence.is_some_and(|f| f.value == FENCE_OPEN);
    let closed_at = fence.filter(|f| f.value == fence_closed_by(&record.id)).map(|f| f.modified);
    if seen.map.owner != Some(record.from) || (!open && closed_at.is_none()) {
        // Not by this protocol. An abort touches only what is this move's own.
        return give_up("the range is not, or no longer, the source's to give");
    }
    let Some(cursor) = &seen.destination.cursor else {
        return match closed_at {
            None => open_destination(seen, session, record),
            Some(_) => give_up("the source was closed before the destination was opened"),
        };
    };
    match (&cursor.value.stage, closed_at) {
        (CursorStage::Sealed { revision }, Some(at)) if at == *revision => {
            Step::Do(Effect::Flip { from_local: at, to_local: cursor.modified })
        }
        (CursorStage::Copy { .. }, None) => Step::Work(Work::Copy),
        (CursorStage::Tail { .. }, None) if !session.ready_to_close => Step::Work(Work::Tail),
        (CursorStage::Tail { .. }, None) => {
            match seen.source.claims.value.other_on(&record.range, &record.rid) {
                None => Step::Do(Effect::Close),
                // Closing the fence would not stop who writes by the other one's.
                Some(other) => Step::Wait(in_the_way("source", other)),
            }
        }
        (CursorStage::Tail { revision, sub }, Some(at)) if session.closed_at == Some(at) => {
            let passed = *revision > at && *sub == 0;
            if session.drained && passed {
                Step::Do(Effect::Seal { closed_at: at })
            } else {
                Step::Work(Work::Drain { upto: at })
            }
        }
        // Closed by an executor that is gone, nobody knows how long ago: writers wait, so it is given up.
        (CursorStage::Tail { .. } | CursorStage::Copy { .. }, Some(_)) => {
            give_up("its executor was lost while writers waited")
        }
        (CursorStage::Void, _) => give_up("the destination's copy was dropped"),
        (CursorStage::Sealed { .. }, _) => {
            give_up("the source is not closed where the destination was sealed")
        }
    }
}

fn open_destination(seen: &Observation, session: &Session, record: &MoveRecord) -> Step {
    if let Some(other) = seen.source.claims.value.other_on(&record.range, &record.rid) {
        return Step::Wait(in_the_way("source", other));
    }
    if let Some(other) = seen.destination.claims.value.other_on(&record.range, &record.new_rid) {
        return Step::Wait(in_the_way("destination", other));
    }
    Step::Do(Effect::Open { copy_at: session.copy_at })
}

fn flipped(seen: &Observation, session: &Session, record: &MoveRecord) -> Step {
    let fence = seen.source.fence.as_ref();
    if seen.source.purge.is_some() {
        return if session.purged {
            Step::Do(Effect::PurgedSource)
        } else {
            Step::Work(Work::Purge(Place::Source))
        };
    }
    if fence.is_some_and(|f| f.value == fence_closed_by(&record.id)) {
        return Step::Do(Effect::PurgeSource);
    }
    if seen.destination.cursor.is_some() {
        return Step::Do(Effect::ForgetCursor);
    }
    Step::Do(Effect::Forget)
}

fn aborting(seen: &Observation, session: &Session, record: &MoveRecord) -> Step {
    let void = matches!(&seen.destination.cursor, Some(c) if c.value.stage == CursorStage::Void);
    if !void && !session.voided {
        // The source first: its writers wait. A void cursor tells that it has been released.
        let fence = seen.source.fence.as_ref().map(|f| &f.value);
        let ours = fence.is_some_and(|f| f == FENCE_OPEN || *f == fence_closed_by(&record.id));
        return Step::Do(if ours && !session.released { Effect::Release } else { Effect::Void });
    }
    if seen.destination.purge.is_some() {
        return if session.purged {
            Step::Do(Effect::PurgedDestination)
        } else {
            Step::Work(Work::Purge(Place::Destination))
        };
    }
    if seen.destination.cursor.is_some() {
        return Step::Do(Effect::ForgetCursor);
    }
    Step::Do(Effect::Forget)
}

fn give_up(why: &str) -> Step {
    Step::GiveUp(why.to_owned())
}

fn in_the_way(place: &str, other: &Claim) -> String {
    let what = match &other.state {
        ClaimState::Open => "owns an overlapping range".to_owned(),
        ClaimState::Opening(_) => "is being split or merged there".to_owned(),
        ClaimState::Closed(id) => format!("has an overlapping range closed by move {id}"),
        ClaimState::Importing(id) => format!("is being filled there by move {id}"),
        ClaimState::Purging => "still deletes an earlier copy".to_owned(),
    };
    format!("the {place} {what} ({})", other.range)
}
