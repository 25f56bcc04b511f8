//! What a helper does next about a lease.

use super::LeaseFacts;
use crate::records::{LeaseRecord, LeaseState};

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// A client revokes it.
    Revoke,
    /// See whether it has expired, or go on with what somebody else began.
    Help,
}

/// What follows from the facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// There is no such lease, or nothing of it is left.
    Ended,
    /// It lives and nobody asked for its end.
    Alive,
    /// Write this record if the one read is unchanged, and read again.
    Claim {
        /// The record to write.
        record: LeaseRecord,
        /// Only if the real lease is gone.
        if_expired: bool,
    },
    /// Somebody else is at it: wait until the record changes, and take over if it does not.
    Wait,
    /// Mine: delete its keys.
    Clear,
    /// Mine, and its keys are gone: drop its shadows, then end it.
    Drop,
}

/// The next step of the helper `me`.
///
/// `stale` is the mod revision of a record that did not change for longer than any helper leaves it alone: it is taken
/// over, and marked as uncertain, as the helper's `LeaseRevoke` may still be on its way.
pub fn next_step(facts: &LeaseFacts, me: u64, asked: Asked, stale: Option<i64>) -> Step {
    let Some(record) = &facts.record else { return Step::Ended };
    let mine = |state| LeaseRecord { state, helper: Some(me), ..record.clone() };
    match (record.state, record.helper) {
        (LeaseState::Live, _) if facts.alive && asked == Asked::Help => Step::Alive,
        (LeaseState::Live, _) => {
            Step::Claim { record: mine(LeaseState::Revoking), if_expired: asked == Asked::Help }
        }
        (LeaseState::Revoking, Some(helper)) if helper == me => Step::Clear,
        (LeaseState::Gone, Some(helper)) if helper == me => Step::Drop,
        (state, None) => Step::Claim { record: mine(state), if_expired: false },
        (state, Some(_)) if stale == Some(facts.modified) => {
            Step::Claim { record: LeaseRecord { uncertain: true, ..mine(state) }, if_expired: false }
        }
        (_, Some(_)) => Step::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(state: LeaseState, helper: Option<u64>, alive: bool) -> LeaseFacts {
        let record = LeaseRecord { ttl: 5, state, chosen: true, helper, uncertain: false };
        LeaseFacts {
            id: 1,
            revision: 20,
            record: Some(record),
            epoch: 10,
            modified: 12,
            alive,
            shadows: Vec::new(),
            map_modified: 2,
            position: 3,
        }
    }

    fn claim(facts: &LeaseFacts, asked: Asked, stale: Option<i64>) -> Option<(LeaseRecord, bool)> {
        match next_step(facts, 7, asked, stale) {
            Step::Claim { record, if_expired } => Some((record, if_expired)),
            _ => None,
        }
    }

    #[test]
    fn a_live_lease_ends_only_when_asked_or_expired() {
        let live = facts(LeaseState::Live, None, true);
        assert_eq!(next_step(&live, 7, Asked::Help, None), Step::Alive);
        let (record, if_expired) = claim(&live, Asked::Revoke, None).unwrap();
        assert_eq!((record.state, record.helper, if_expired), (LeaseState::Revoking, Some(7), false));
        let (_, if_expired) = claim(&facts(LeaseState::Live, None, false), Asked::Help, None).unwrap();
        assert!(if_expired, "decided in meta: a renewal may have come in between");
    }

    #[test]
    fn one_helper_at_a_time() {
        for state in [LeaseState::Revoking, LeaseState::Gone] {
            let other = facts(state, Some(8), false);
            assert_eq!(next_step(&other, 7, Asked::Help, None), Step::Wait);
            assert_eq!(next_step(&other, 7, Asked::Help, Some(11)), Step::Wait, "it has changed since");
            let (record, _) = claim(&other, Asked::Help, Some(12)).unwrap();
            assert!(record.uncertain && record.state == state && record.helper == Some(7));
            let (record, _) = claim(&facts(state, None, false), Asked::Help, None).unwrap();
            assert!(!record.uncertain, "given back in order");
        }
        assert_eq!(
            next_step(&facts(LeaseState::Revoking, Some(7), false), 7, Asked::Help, None),
            Step::Clear
        );
        assert_eq!(next_step(&facts(LeaseState::Gone, Some(7), false), 7, Asked::Help, None), Step::Drop);
        let none = LeaseFacts { record: None, ..facts(LeaseState::Gone, None, false) };
        assert_eq!(next_step(&none, 7, Asked::Revoke, None), Step::Ended);
    }
}
