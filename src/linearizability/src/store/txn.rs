//! Transactions against the order of the revisions.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, Answer, Fault, History, Item, Outcome, Request, States, Txn, Unexplained, fault};

/// Whether an answered request wrote anything.
pub(super) fn writes(request: &Request, answer: &Answer) -> bool {
    branch(request, answer.succeeded).iter().enumerate().any(|(i, action)| match action {
        Action::Put { .. } => true,
        Action::Delete { .. } => {
            answer.seen.get(i).is_some_and(|s| s.as_ref().is_some_and(|s| !s.is_empty()))
        }
        Action::Get { .. } => false,
    })
}

/// Holds every request to the order; gives what revisions wrote that none of them accounts for, and the revisions that one of
/// unknown outcome may have written, or another may.
pub(super) fn explain(history: &History, states: &States) -> Result<(Unexplained, BTreeSet<i64>), Fault> {
    let mut left = states.written.clone();
    let mut at = BTreeMap::new();
    for event in &history.events {
        if let Some(item) = event.item
            && at.insert(item.kv.value, event.revision).is_some()
        {
            return fault(format!("{event:?}: its value was put before"));
        }
    }
    for txn in &history.txns {
        match &txn.outcome {
            Outcome::Answered { answer, .. } => answered(txn, answer, states, &mut left)?,
            Outcome::Refused => {
                if let Some(value) = values(&txn.request).find(|value| at.contains_key(value)) {
                    return fault(format!("{txn:?} was refused, and {value} is there"));
                }
            }
            Outcome::Unknown => unknown(history, txn, &at, states, &mut left)?,
        }
    }
    let doubtful = deletes_of_unknown_outcome(history, states, &mut left);
    Ok((left, doubtful))
}

/// Takes out of `left` the deletions that requests of unknown outcome may have done: as many as there are requests that can
/// have done them, each one. Those that no end of a lease can have done come first. Gives all that one of them may have done.
fn deletes_of_unknown_outcome(history: &History, states: &States, left: &mut Unexplained) -> BTreeSet<i64> {
    let unknown = history.txns.iter().filter(|txn| txn.outcome == Outcome::Unknown);
    let unknown: Vec<(&Txn, i64)> = unknown.map(|txn| (txn, floor(history, txn))).collect();
    let may_be = |revision: i64, (txn, floor): &(&Txn, i64)| {
        let effect = run(branch(&txn.request, holds(&txn.request, states, revision - 1)), states, revision);
        let deletes = !effect.wrote.is_empty() && effect.wrote.values().all(Option::is_none);
        revision > *floor && deletes && is_whole(&effect, states, revision)
    };
    let leased =
        |key: &usize, revision: i64| states.at(*key, revision - 1).is_some_and(|item| item.lease != 0);
    let mut open: Vec<(bool, i64, Vec<usize>)> = left
        .iter()
        .map(|(&revision, keys)| {
            let by_lease = keys.iter().all(|key| leased(key, revision));
            let by = (0..unknown.len()).filter(|&i| may_be(revision, &unknown[i])).collect();
            (by_lease, revision, by)
        })
        .collect();
    open.sort_unstable();
    // A matching that grows by augmenting paths: whoever has been found stays found.
    let mut taken: Vec<Option<usize>> = vec![None; unknown.len()];
    for at in 0..open.len() {
        let mut seen = vec![false; unknown.len()];
        if augment(at, &open, &mut taken, &mut seen) {
            left.remove(&open[at].1);
        }
    }
    open.iter().filter(|(.., by)| !by.is_empty()).map(|(_, revision, _)| *revision).collect()
}

fn augment(
    at: usize,
    open: &[(bool, i64, Vec<usize>)],
    taken: &mut [Option<usize>],
    seen: &mut [bool],
) -> bool {
    for &by in &open[at].2 {
        if std::mem::replace(&mut seen[by], true) {
            continue;
        }
        if taken[by].is_none_or(|other| augment(other, open, taken, seen)) {
            taken[by] = Some(at);
            return true;
        }
    }
    false
}

fn branch(request: &Request, succeeded: bool) -> &[Action] {
    if succeeded { &request.then } else { &request.otherwise }
}

fn values(request: &Request) -> impl Iterator<Item = u64> {
    request.then.iter().chain(&request.otherwise).filter_map(|action| match action {
        Action::Put { value, .. } => Some(*value),
        _ => None,
    })
}

/// The highest revision that anybody was told before a request was sent.
fn floor(history: &History, txn: &Txn) -> i64 {
    let told = history.txns.iter().filter_map(|other| match &other.outcome {
        Outcome::Answered { end, answer } if *end < txn.begin => Some(answer.revision),
        _ => None,
    });
    told.max().unwrap_or(history.before).max(history.before)
}

/// Whether all compares hold after a revision.
fn holds(request: &Request, states: &States, revision: i64) -> bool {
    request.compares.iter().all(|(key, guard)| {
        let item = states.at(*key, revision);
        guard.holds(item.map(|item| item.kv).as_ref())
    })
}

/// What a branch does.
#[derive(Default)]
struct Effect {
    /// What each action sees.
    seen: Vec<BTreeMap<usize, Item>>,
    /// What is there of the keys that it wrote.
    wrote: BTreeMap<usize, Option<Item>>,
}

impl Effect {
    fn keys(&self) -> BTreeSet<usize> {
        self.wrote.keys().copied().collect()
    }
}

/// Runs a branch at a revision, on what the one before left; later actions see what earlier ones did, as in etcd.
fn run(actions: &[Action], states: &States, revision: i64) -> Effect {
    let mut effect = Effect::default();
    for action in actions {
        let now = |from: usize, upto: usize, effect: &Effect| {
            let mut found = states.range(from, upto, revision - 1);
            for (&key, item) in effect.wrote.range(from..upto) {
                match item {
                    Some(item) => drop(found.insert(key, *item)),
                    None => drop(found.remove(&key)),
                }
            }
            found
        };
        let seen = match *action {
            Action::Get { from, upto } => now(from, upto, &effect),
            Action::Delete { from, upto } => {
                let found = now(from, upto, &effect);
                effect.wrote.extend(found.keys().map(|key| (*key, None)));
                found
            }
            Action::Put { key, value, lease } => {
                let found = now(key, key + 1, &effect);
                let was = found.get(&key);
                let (create, version) = was.map_or((revision, 1), |was| (was.kv.create, was.kv.version + 1));
                let kv = crate::key::Kv { value, create, modified: revision, version };
                effect.wrote.insert(key, Some(Item { kv, lease }));
                found
            }
        };
        effect.seen.push(seen);
    }
    effect
}

/// True if a revision wrote just what the branch writes.
fn is_whole(effect: &Effect, states: &States, revision: i64) -> bool {
    states.written.get(&revision).is_some_and(|keys| *keys == effect.keys())
        && effect.wrote.iter().all(|(key, item)| states.at(*key, revision) == *item)
}

fn answered(txn: &Txn, answer: &Answer, states: &States, left: &mut Unexplained) -> Result<(), Fault> {
    let actions = branch(&txn.request, answer.succeeded);
    let wrote = writes(&txn.request, answer);
    // A write is at its revision, on what the one before left; what wrote nothing is after it.
    let revision = if wrote { answer.revision } else { txn.request.at.unwrap_or(answer.revision) + 1 };
    if holds(&txn.request, states, revision - 1) != answer.succeeded {
        return fault(format!("{txn:?} compared what was not there after revision {}", revision - 1));
    }
    if revision - 1 > answer.revision || answer.seen.len() != actions.len() {
        return fault(format!("{txn:?} is no answer to what was asked for"));
    }
    let effect = run(actions, states, revision);
    let differs =
        effect.seen.iter().zip(&answer.seen).position(|(is, seen)| seen.as_ref().is_some_and(|s| s != is));
    if let Some(at) = differs {
        return fault(format!("{txn:?}: at revision {revision} its action {at} sees {:?}", effect.seen[at]));
    }
    if wrote {
        if !is_whole(&effect, states, revision) {
            let is: Vec<_> =
                (0..states.len()).filter_map(|key| Some((key, states.at(key, revision)?))).collect();
            return fault(format!("{txn:?} is not what revision {revision} wrote, which left {is:?}"));
        }
        if left.remove(&revision).is_none() {
            return fault(format!("{txn:?} shares its revision"));
        }
    } else if !effect.wrote.is_empty() {
        return fault(format!("{txn:?} wrote nothing, and would have written {:?}", effect.wrote));
    }
    Ok(())
}

/// A request of which nobody was told: if one of its values is there, it is there in whole, once, and not too early.
fn unknown(
    history: &History,
    txn: &Txn,
    at: &BTreeMap<u64, i64>,
    states: &States,
    left: &mut Unexplained,
) -> Result<(), Fault> {
    let Some(revision) = values(&txn.request).find_map(|value| at.get(&value).copied()) else {
        return Ok(());
    };
    if revision <= floor(history, txn) {
        return fault(format!("{txn:?} took effect at {revision}, before it was asked for"));
    }
    let succeeded = holds(&txn.request, states, revision - 1);
    if !is_whole(&run(branch(&txn.request, succeeded), states, revision), states, revision) {
        return fault(format!("{txn:?} is not what revision {revision} wrote, a part of which is its"));
    }
    left.remove(&revision);
    Ok(())
}
