//! Leases against the order of the revisions, and against the clock.
//!
//! Nobody says when a revision was written, but whoever was told of it, or of a later one, knows that it had been by then.
//! So a lease that ended too early is found, and one that ended late never is: that is for whoever waits for it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Fault, History, Outcome, States, Unexplained, fault};

/// A renewal that was answered, the grant included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewal {
    /// When it was sent; the lease lived for its whole time from some moment after that.
    pub begin: u64,
}

/// A lease as its client knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lease {
    /// Its time to live, in the unit of the clock.
    pub ttl: u64,
    /// The renewals that were answered with that time.
    pub renewals: Vec<Renewal>,
    /// When a revoke was sent first, whatever came of it.
    pub revoking: Option<u64>,
    /// The header's revision of a revoke that was answered.
    pub revoked: Option<i64>,
}

impl Lease {
    /// Whether it may be over at a moment: its time is, or somebody revokes it.
    pub fn may_end_by(&self, now: u64) -> bool {
        self.revoking.is_some() || now >= self.lives_until()
    }

    /// The first moment at which it may be over by itself.
    fn lives_until(&self) -> u64 {
        self.renewals.iter().map(|renewal| renewal.begin + self.ttl).max().unwrap_or(0)
    }
}

/// Whether all that a revision wrote are deletions of keys with leases.
pub(super) fn may_end(history: &History, states: &States, revision: i64) -> bool {
    let keys = states.written.get(&revision).into_iter().flatten();
    let leased = |key: usize| {
        states.at(key, revision - 1).is_some_and(|item| history.leases.contains_key(&item.lease))
    };
    keys.copied().all(|key| leased(key) && states.at(key, revision).is_none())
}

/// Holds the leases to the order; what their ends delete is taken out of `left`.
pub(super) fn explain(history: &History, states: &States, left: &mut Unexplained) -> Result<(), Fault> {
    let known = known_by(history);
    // Of each lease and group, the revisions in which its end deleted keys.
    let mut ends: BTreeMap<(i64, usize), BTreeSet<i64>> = BTreeMap::new();
    let revisions: Vec<i64> = left.keys().copied().collect();
    for revision in revisions {
        let Some(keys) = left.get(&revision) else { continue };
        let mut leases = BTreeSet::new();
        for &key in keys {
            let was = states.at(key, revision - 1);
            match was {
                Some(was) if was.lease != 0 && states.at(key, revision).is_none() => {
                    leases.insert(was.lease);
                    ends.entry((was.lease, history.groups[key])).or_default().insert(revision);
                }
                _ => {
                    return fault(format!("revision {revision} writes key {key}, which nobody did: {was:?}"));
                }
            }
        }
        let (Some(&id), 1) = (leases.first(), leases.len()) else {
            return fault(format!("revision {revision} deletes keys of leases {leases:?}"));
        };
        let Some(lease) = history.leases.get(&id) else {
            return fault(format!("revision {revision} deletes keys of lease {id:x}, which nobody has"));
        };
        let by = known.range(revision..).map(|(_, by)| *by).min().unwrap_or(u64::MAX);
        // A revoke has not begun when somebody already knows what it did: else it may be its doing.
        let by_revoke = lease.revoking.is_some_and(|begun| begun <= by);
        if !by_revoke && by < lease.lives_until() {
            return fault(format!(
                "revision {revision} deletes keys of lease {id:x}, which was known at {by}, and it lives until {}: {lease:?}",
                lease.lives_until()
            ));
        }
        left.remove(&revision);
    }
    for ((id, group), revisions) in ends {
        // Attached to it again between the two: then these were another attachment's keys.
        let (Some(&first), Some(&last)) = (revisions.first(), revisions.last()) else { continue };
        if first != last {
            return fault(format!(
                "lease {id:x} ended in group {group} at {revisions:?}, not in one revision"
            ));
        }
        let stays = (0..states.len()).find(|&key| {
            history.groups[key] == group && states.at(key, first).is_some_and(|item| item.lease == id)
        });
        if let Some(key) = stays {
            return fault(format!(
                "lease {id:x} ended in group {group} at {first}, and key {key} is still there"
            ));
        }
    }
    for (id, lease) in &history.leases {
        let Some(revoked) = lease.revoked else { continue };
        for key in 0..states.len() {
            if states.at(key, revoked).is_some_and(|item| item.lease == *id) {
                return fault(format!(
                    "lease {id:x} was revoked by revision {revoked}, and key {key} is still there"
                ));
            }
        }
        let later = history.events.iter().filter(|event| event.revision > revoked);
        if let Some(event) =
            later.filter_map(|e| e.item.map(|item| (e, item))).find(|(_, item)| item.lease == *id)
        {
            return fault(format!(
                "{:?} is attached to a lease that was revoked by revision {revoked}",
                event.0
            ));
        }
    }
    Ok(())
}

/// For each revision that anybody was told of, the first moment at which somebody was.
fn known_by(history: &History) -> BTreeMap<i64, u64> {
    let answers = history.txns.iter().filter_map(|txn| match &txn.outcome {
        Outcome::Answered { end, answer } => Some((answer.revision, *end)),
        _ => None,
    });
    let mut known = BTreeMap::new();
    for (revision, at) in answers.chain(history.events.iter().map(|event| (event.revision, event.told))) {
        let first = known.entry(revision).or_insert(at);
        *first = at.min(*first);
    }
    known
}
