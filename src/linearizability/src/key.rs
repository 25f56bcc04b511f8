//! One key of etcd, as a client sees it.
//!
//! Revisions are part of what is checked: an acknowledged write says which one it has, a read says at which one the store
//! was, and on one key they can only grow. A write with an unknown outcome has one too, which a later read may show.

use std::collections::BTreeMap;

use crate::{Call, Model, Verdict, check};

/// A key that is there. Values are numbers, best unique ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kv {
    /// The value.
    pub value: u64,
    /// `create_revision`.
    pub create: i64,
    /// `mod_revision`.
    pub modified: i64,
    /// `version`.
    pub version: i64,
}

/// What a transaction compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Guard {
    /// `mod_revision == n`; 0 for a key that is not there.
    Modified(i64),
    /// `version == n`; 0 for a key that is not there.
    Version(i64),
    /// `value == n`, false for a key that is not there.
    Value(u64),
}

impl Guard {
    /// Whether it is true of a key.
    pub fn holds(self, kv: Option<&Kv>) -> bool {
        match self {
            Guard::Modified(revision) => kv.map_or(0, |kv| kv.modified) == revision,
            Guard::Version(version) => kv.map_or(0, |kv| kv.version) == version,
            Guard::Value(value) => kv.is_some_and(|kv| kv.value == value),
        }
    }
}

/// What a write does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    /// Puts a value.
    Put(u64),
    /// Deletes the key.
    Delete,
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Input {
    /// A linearizable read.
    Get,
    /// A put or a delete, alone or in a transaction that compares first and reads the key if that fails.
    Write {
        /// The comparison.
        guard: Option<Guard>,
        /// The write.
        change: Change,
    },
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Output {
    /// Nothing was written, and this was read: by a read, by a transaction whose comparison failed, or by a delete that
    /// found nothing.
    Read {
        /// The key.
        kv: Option<Kv>,
        /// The header's revision.
        revision: i64,
    },
    /// It was written.
    Wrote {
        /// The header's revision.
        revision: i64,
        /// What was there before (`prev_kv`), if it was asked for.
        previous: Option<Option<Kv>>,
    },
}

impl Output {
    /// The header's revision.
    pub fn revision(&self) -> i64 {
        match self {
            Output::Read { revision, .. } | Output::Wrote { revision, .. } => *revision,
        }
    }

    /// What it says about the key.
    pub fn kv(&self) -> Option<&Kv> {
        match self {
            Output::Read { kv, .. } => kv.as_ref(),
            Output::Wrote { previous, .. } => previous.as_ref().and_then(Option::as_ref),
        }
    }
}

/// A request and its answer; `None` if that never came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Op {
    /// The request.
    pub input: Input,
    /// The answer.
    pub output: Option<Output>,
}

/// A revision of which only a lower bound is known, until somebody reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Revision {
    Exactly(i64),
    AtLeast(i64),
}

impl Revision {
    fn may_be(self, revision: i64) -> bool {
        match self {
            Revision::Exactly(known) => known == revision,
            Revision::AtLeast(least) => revision >= least,
        }
    }
}

/// What the model holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    live: Option<Live>,
    /// The highest revision that has been seen so far.
    floor: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Live {
    value: u64,
    create: Revision,
    modified: Revision,
    version: i64,
}

impl State {
    /// A key that is not there, in a store that is at this revision.
    pub fn absent(revision: i64) -> Self {
        Self { live: None, floor: revision }
    }

    /// The same state, with what a read tells about it; `None` if the read does not fit.
    fn knowing(&self, seen: Option<&Kv>) -> Option<Self> {
        match (&self.live, seen) {
            (None, None) => Some(self.clone()),
            (Some(live), Some(kv)) => {
                let fits = live.value == kv.value
                    && live.version == kv.version
                    && live.create.may_be(kv.create)
                    && live.modified.may_be(kv.modified)
                    && kv.create <= kv.modified;
                let (create, modified) = (Revision::Exactly(kv.create), Revision::Exactly(kv.modified));
                let live = Live { create, modified, ..live.clone() };
                fits.then_some(Self { live: Some(live), floor: self.floor.max(kv.modified) })
            }
            _ => None,
        }
    }

    /// Whether a comparison can be true.
    fn may_hold(&self, guard: Guard) -> bool {
        match (guard, &self.live) {
            (_, None) => guard.holds(None),
            (Guard::Modified(revision), Some(live)) => revision != 0 && live.modified.may_be(revision),
            (Guard::Version(version), Some(live)) => live.version == version,
            (Guard::Value(value), Some(live)) => live.value == value,
        }
    }

    /// After a write with this revision; `None` if there is nothing to delete.
    fn after(&self, change: Change, revision: Revision) -> Option<Self> {
        let floor = match revision {
            Revision::Exactly(revision) | Revision::AtLeast(revision) => revision,
        };
        let live = match change {
            Change::Delete => {
                self.live.as_ref()?;
                None
            }
            Change::Put(value) => Some(match &self.live {
                Some(live) => {
                    Live { value, modified: revision, version: live.version + 1, create: live.create }
                }
                None => Live { value, create: revision, modified: revision, version: 1 },
            }),
        };
        Some(Self { live, floor })
    }
}

/// The model of one key.
#[derive(Debug, Clone, Copy, Default)]
pub struct EtcdKey;

impl Model for EtcdKey {
    type State = State;
    type Op = Op;

    fn step(&self, state: &State, op: &Op) -> Option<State> {
        match (op.input, op.output?) {
            (input, Output::Read { kv, revision }) => {
                let allowed = match input {
                    Input::Get => true,
                    Input::Write { guard, change } => {
                        guard.is_some_and(|guard| !guard.holds(kv.as_ref()))
                            || (change == Change::Delete && kv.is_none())
                    }
                };
                let known = state.knowing(kv.as_ref())?;
                (allowed && revision >= known.floor).then_some(State { floor: revision, ..known })
            }
            (Input::Get, Output::Wrote { .. }) => None,
            (Input::Write { guard, change }, Output::Wrote { revision, previous }) => {
                let known = match previous {
                    Some(previous) => state.knowing(previous.as_ref())?,
                    None => state.clone(),
                };
                let holds = guard.is_none_or(|guard| known.may_hold(guard));
                (holds && revision > known.floor)
                    .then(|| known.after(change, Revision::Exactly(revision)))
                    .flatten()
            }
        }
    }

    fn effect(&self, state: &State, op: &Op) -> Option<State> {
        match op.input {
            Input::Get => None,
            Input::Write { guard, change } => {
                let holds = guard.is_none_or(|guard| state.may_hold(guard));
                holds.then(|| state.after(change, Revision::AtLeast(state.floor + 1))).flatten()
            }
        }
    }

    fn rank(&self, op: &Op) -> i64 {
        op.output.as_ref().map_or(0, Output::revision)
    }
}

/// Checks the history of one key, which was not there when the store was at `revision`.
pub fn check_key(history: &[Call<Op>], revision: i64, steps_max: u64) -> Verdict {
    check(&EtcdKey, State::absent(revision), history, steps_max)
}

/// Settles the outcome of puts that is not known but that others have seen, which makes the search much shorter.
///
/// Values must be unique: whoever shows a value has seen that put. It has the revision that they show, and took effect before
/// the first of them ended. With `written`, the value and revision of every put that ever took effect (as a watch from the
/// beginning tells it), those that are not in it never did and are left out.
pub fn settle(history: &[Call<Op>], written: Option<&BTreeMap<u64, i64>>) -> Vec<Call<Op>> {
    let mut seen: BTreeMap<u64, (i64, u64)> = BTreeMap::new();
    for call in history {
        if let (Some(kv), Some(end)) = (call.op.output.as_ref().and_then(Output::kv), call.end) {
            let first = seen.entry(kv.value).or_insert((kv.modified, end));
            first.1 = first.1.min(end);
        }
    }
    let settled = |call: &Call<Op>| {
        let Input::Write { change: Change::Put(value), .. } = call.op.input else {
            return Some(call.clone());
        };
        if call.end.is_some() {
            return Some(call.clone());
        }
        let (revision, end) = match (seen.get(&value), written) {
            (Some(&(revision, end)), _) => (revision, end),
            (None, Some(written)) => (*written.get(&value)?, u64::MAX),
            (None, None) => return Some(call.clone()),
        };
        let output = Some(Output::Wrote { revision, previous: None });
        Some(Call { end: Some(end), op: Op { output, ..call.op }, ..*call })
    };
    history.iter().filter_map(settled).collect()
}

#[cfg(test)]
#[path = "key_tests.rs"]
mod tests;
