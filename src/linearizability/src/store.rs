//! A whole store of etcd's kind, stepped in the order of its revisions: transactions on several keys, reads of several keys,
//! and leases.
//!
//! No search is needed. Every write that took effect has a revision of its own, and a watch from the beginning tells which
//! keys each revision put and deleted, so the order of all writes is known, also of those whose outcome nobody was told. What
//! is left is to hold everything else to that order:
//!
//! - each event follows from the ones before it, and is the doing of somebody: of one transaction, all of whose writes are
//!   in that revision and no others, or of the end of a lease;
//! - each answer shows what was there at its revision, compares included, and each acknowledged write is there;
//! - nothing is earlier in that order than what was told before it was asked for ([`line::contradiction`]);
//! - keys of a lease vanish no earlier than its time after the last renewal that was answered, unless it was revoked; once a
//!   revoke is answered none is there and none comes, and those that can go together go in one revision.
//!
//! What was ordered so is linearizable: the order is one of all operations, a store that does one thing at a time answers
//! like that in it, and it does not contradict real time.

mod lease;
mod txn;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use crate::{
    key::{Guard, Kv},
    line::{self, Contradiction, Stamp},
};

pub use lease::{Lease, Renewal};

/// A key that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// Value and revisions.
    pub kv: Kv,
    /// The lease that it is attached to; 0 for none.
    pub lease: i64,
}

/// A key of one revision, as a watch tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The revision.
    pub revision: i64,
    /// Number of the key.
    pub key: usize,
    /// What it is now; `None` for a deletion.
    pub item: Option<Item>,
    /// When the watch told it, on the clock of the operations; it had happened by then.
    pub told: u64,
}

/// What a transaction asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Puts a value, which nobody else ever puts, with a lease or 0.
    Put {
        /// Number of the key.
        key: usize,
        /// The value.
        value: u64,
        /// The lease.
        lease: i64,
    },
    /// Deletes keys `[from, upto)` and tells what they were.
    Delete {
        /// Number of the first key.
        from: usize,
        /// Number of the key behind the last.
        upto: usize,
    },
    /// Reads keys `[from, upto)`.
    Get {
        /// Number of the first key.
        from: usize,
        /// Number of the key behind the last.
        upto: usize,
    },
}

/// A request: a transaction, of which a read or a write alone is the shortest. No branch puts a key twice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// What is compared, on which keys.
    pub compares: Vec<(usize, Guard)>,
    /// What is done if all of that holds.
    pub then: Vec<Action>,
    /// What is done if not.
    pub otherwise: Vec<Action>,
    /// It only reads, at this revision and not at the newest.
    pub at: Option<i64>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The header's revision.
    pub revision: i64,
    /// Whether the compares held.
    pub succeeded: bool,
    /// For each action of the branch that ran, the keys that a read saw, that a deletion deleted, and what a put replaced
    /// (if that was asked for: else `None`).
    pub seen: Vec<Option<BTreeMap<usize, Item>>>,
}

/// What is known of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Answered {
        /// When.
        end: u64,
        /// How.
        answer: Answer,
    },
    /// It took effect at any moment after its begin, or never.
    Unknown,
    /// It was refused before anything was done.
    Refused,
}

/// One request of one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Txn {
    /// When it was sent.
    pub begin: u64,
    /// What was asked for.
    pub request: Request,
    /// What came of it.
    pub outcome: Outcome,
}

/// All that was recorded.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// No key was there at this revision.
    pub before: i64,
    /// For each key its group: what the end of a lease deletes of one group vanishes in one revision.
    pub groups: Vec<usize>,
    /// What a watch over all keys told, complete, in its order.
    pub events: Vec<Event>,
    /// The requests of all clients.
    pub txns: Vec<Txn>,
    /// The leases of all clients.
    pub leases: BTreeMap<i64, Lease>,
}

/// Something that cannot be; the text says what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault(pub String);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

pub(crate) fn fault<T>(text: String) -> Result<T, Fault> {
    Err(Fault(text))
}

/// Judges a history.
///
/// # Errors
/// The first thing found that cannot be.
pub fn check(history: &History) -> Result<(), Fault> {
    let states = States::replay(history)?;
    in_real_time(history)?;
    let (mut left, doubtful) = txn::explain(history, &states)?;
    // Whoever did these, somebody may have.
    left.retain(|revision, _| !doubtful.contains(revision) || !lease::may_end(history, &states, *revision));
    lease::explain(history, &states, &mut left)?;
    match left.into_iter().next() {
        None => Ok(()),
        Some((revision, keys)) => {
            fault(format!("revision {revision} writes keys {keys:?}, which nobody did"))
        }
    }
}

/// Keys that a revision wrote and that nobody has been found for, by revision.
pub(crate) type Unexplained = BTreeMap<i64, BTreeSet<usize>>;

/// What every key was, from which revision on.
pub(crate) struct States {
    keys: Vec<Vec<(i64, Option<Item>)>>,
    /// The keys that each revision wrote.
    pub(crate) written: Unexplained,
}

impl States {
    fn replay(history: &History) -> Result<Self, Fault> {
        let mut this = Self { keys: vec![Vec::new(); history.groups.len()], written: BTreeMap::new() };
        let mut newest = history.before;
        for event in &history.events {
            let Some(states) = this.keys.get_mut(event.key) else {
                return fault(format!("{event:?} is of no key"));
            };
            let again = states.last().is_some_and(|(since, _)| *since == event.revision);
            if event.revision < newest || event.revision <= history.before || again {
                return fault(format!("{event:?} comes after an event at {newest}"));
            }
            newest = event.revision;
            let was = states.last().and_then(|(_, item)| *item);
            match (event.item, was) {
                (None, None) => return fault(format!("{event:?} deletes what is not there")),
                (None, Some(_)) => {}
                (Some(item), was) => {
                    let (create, version) =
                        was.map_or((event.revision, 1), |was| (was.kv.create, was.kv.version + 1));
                    if (item.kv.create, item.kv.version, item.kv.modified)
                        != (create, version, event.revision)
                    {
                        return fault(format!("{event:?} comes where the key is {was:?}"));
                    }
                }
            }
            states.push((event.revision, event.item));
            this.written.entry(event.revision).or_default().insert(event.key);
        }
        Ok(this)
    }

    /// What a key was after a revision.
    pub(crate) fn at(&self, key: usize, revision: i64) -> Option<Item> {
        let states = self.keys.get(key)?;
        let after = states.partition_point(|(since, _)| *since <= revision);
        after.checked_sub(1).and_then(|at| states[at].1)
    }

    /// What there was of keys `[from, upto)` after a revision.
    pub(crate) fn range(&self, from: usize, upto: usize, revision: i64) -> BTreeMap<usize, Item> {
        (from..upto).filter_map(|key| Some((key, self.at(key, revision)?))).collect()
    }

    /// How many keys there are.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }
}

/// The revisions of all answers against real time, and those of unknown outcomes as far as they were seen.
fn in_real_time(history: &History) -> Result<(), Fault> {
    let mut stamps = Vec::new();
    let mut of = Vec::new();
    for txn in &history.txns {
        if let Outcome::Answered { end, answer } = &txn.outcome {
            let wrote = txn::writes(&txn.request, answer);
            stamps.push(Stamp { begin: txn.begin, end: *end, revision: answer.revision, wrote });
            of.push(txn);
        }
    }
    match line::contradiction(&stamps) {
        None => Ok(()),
        Some(Contradiction::Back { first, second }) => fault(format!(
            "{:?} had been answered, and the revision goes back in {:?}",
            of[first], of[second]
        )),
        Some(Contradiction::Shared { first, second }) => {
            fault(format!("{:?} and {:?} wrote at one revision", of[first], of[second]))
        }
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
