//! The search for an order of the operations that a sequential model can follow.

use std::{collections::HashSet, fmt::Debug, hash::Hash};

/// What a store that does one thing at a time does.
pub trait Model {
    /// What it holds.
    type State: Clone + Eq + Hash + Debug;
    /// An operation together with its answer.
    type Op: Debug;

    /// The state after an operation that answered as recorded; `None` if it cannot answer so in this state.
    fn step(&self, state: &Self::State, op: &Self::Op) -> Option<Self::State>;

    /// The state after an operation with an unknown outcome took effect; `None` if it cannot, or changes nothing.
    fn effect(&self, state: &Self::State, op: &Self::Op) -> Option<Self::State>;

    /// Answers can only come in the order of their ranks, such as a revision that never goes back. It decides nothing that
    /// [`Model::step`] does not, it spares the search what cannot succeed.
    fn rank(&self, _op: &Self::Op) -> i64 {
        0
    }
}

/// One operation of one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call<O> {
    /// When it was sent.
    pub begin: u64,
    /// When its answer came; `None` if its outcome is not known.
    pub end: Option<u64>,
    /// The operation and its answer.
    pub op: O,
}

/// What the search says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order.
    Linearizable,
    /// There is none.
    Refused {
        /// How many operations with an answer the longest order holds.
        longest: usize,
        /// Positions in the history of those that could have come next and do not fit.
        stuck: Vec<usize>,
    },
    /// Neither was found within so many steps.
    Unknown {
        /// The bound.
        steps: u64,
    },
}

/// Positions of operations, as bits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn has(&self, at: usize) -> bool {
        self.0.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }

    fn set(&mut self, at: usize) {
        if self.0.len() <= at / 64 {
            self.0.resize(at / 64 + 1, 0);
        }
        self.0[at / 64] |= 1 << (at % 64);
    }

    /// Shifts by whole words, so that what is below `64 * words` is forgotten.
    fn forget(&mut self, words: usize) {
        self.0.drain(..words.min(self.0.len()));
    }
}

/// What has been put in order. Two orders of the same operations that lead to the same state have the same future.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Placed<S> {
    /// Operations with an answer, sorted by begin: all below `64 * words` are placed.
    words: usize,
    /// The rest of them, from there on.
    answered: Bits,
    /// Operations with an unknown outcome that took effect.
    unknown: Bits,
    state: S,
}

impl<S> Placed<S> {
    fn has(&self, at: usize) -> bool {
        at < 64 * self.words || self.answered.has(at - 64 * self.words)
    }

    fn place(&mut self, at: usize) {
        self.answered.set(at - 64 * self.words);
        let full = self.answered.0.iter().take_while(|word| **word == u64::MAX).count();
        self.answered.forget(full);
        self.words += full;
    }
}

/// One place in the search: what has been placed, and what may come next.
struct Frame<S> {
    placed: Placed<S>,
    count: usize,
    /// Positions in the two sorted lists; those with an answer first, as they say more.
    next: Vec<Next>,
    tried: usize,
}

#[derive(Debug, Clone, Copy)]
enum Next {
    Answered(usize),
    Unknown(usize),
}

/// Searches for an order in which `model`, starting in `initial`, answers as recorded; at most `steps_max` tries.
pub fn check<M: Model>(model: &M, initial: M::State, history: &[Call<M::Op>], steps_max: u64) -> Verdict {
    let sorted = |answered: bool| {
        let mut positions: Vec<usize> =
            (0..history.len()).filter(|&at| history[at].end.is_some() == answered).collect();
        positions.sort_by_key(|&at| history[at].begin);
        positions
    };
    let (answered, unknown) = (sorted(true), sorted(false));
    let rank = |position: usize| model.rank(&history[position].op);
    let mut by_rank = answered.clone();
    by_rank.sort_by_key(|&position| rank(position));
    let frame = |placed: Placed<M::State>, count: usize| {
        let mut next = candidates(history, &answered, &unknown, &placed);
        // As what is placed is placed by rank, the first ones by rank are those that are.
        let lowest = by_rank.get(count).map(|&position| rank(position));
        next.retain(|next| position(*next, &answered).is_none_or(|position| Some(rank(position)) == lowest));
        Frame { placed, count, next, tried: 0 }
    };
    let start = Placed { words: 0, answered: Bits::default(), unknown: Bits::default(), state: initial };
    let mut stack = vec![frame(start, 0)];
    let mut seen = HashSet::new();
    let (mut longest, mut stuck) = (0, Vec::new());
    let mut steps = 0;
    while let Some(top) = stack.last_mut() {
        if top.count == answered.len() {
            return Verdict::Linearizable;
        }
        let Some(&next) = top.next.get(top.tried) else {
            if top.count > longest || stuck.is_empty() {
                longest = top.count;
                stuck = top.next.iter().filter_map(|next| position(*next, &answered)).collect();
                if stuck.is_empty() {
                    stuck.extend(by_rank.get(longest));
                }
            }
            stack.pop();
            continue;
        };
        top.tried += 1;
        if steps == steps_max {
            return Verdict::Unknown { steps };
        }
        steps += 1;
        let (state, count) = match next {
            Next::Answered(at) => (model.step(&top.placed.state, &history[answered[at]].op), top.count + 1),
            Next::Unknown(at) => (model.effect(&top.placed.state, &history[unknown[at]].op), top.count),
        };
        let Some(state) = state else { continue };
        let mut placed = Placed { state, ..top.placed.clone() };
        match next {
            Next::Answered(at) => placed.place(at),
            Next::Unknown(at) => placed.unknown.set(at),
        }
        if seen.insert(placed.clone()) {
            stack.push(frame(placed, count));
        }
    }
    Verdict::Refused { longest, stuck }
}

fn position(next: Next, answered: &[usize]) -> Option<usize> {
    match next {
        Next::Answered(at) => Some(answered[at]),
        Next::Unknown(_) => None,
    }
}

/// What may come next: whatever began before, or when, the first of the operations not placed yet ended.
fn candidates<O, S>(
    history: &[Call<O>],
    answered: &[usize],
    unknown: &[usize],
    placed: &Placed<S>,
) -> Vec<Next> {
    let mut first_end = u64::MAX;
    let mut next = Vec::new();
    for (at, &position) in answered.iter().enumerate().skip(64 * placed.words) {
        let call = &history[position];
        if call.begin > first_end {
            break;
        }
        if !placed.has(at) {
            first_end = first_end.min(call.end.unwrap_or(u64::MAX));
            next.push(Next::Answered(at));
        }
    }
    // Whoever ends first is tried first: mostly it is the right one.
    next.retain(|next| position(*next, answered).is_some_and(|at| history[at].begin <= first_end));
    next.sort_by_key(|next| position(*next, answered).and_then(|at| history[at].end));
    let begun = unknown.iter().enumerate().take_while(|(_, at)| history[**at].begin <= first_end);
    next.extend(begun.filter(|(at, _)| !placed.unknown.has(*at)).map(|(at, _)| Next::Unknown(at)));
    next
}

#[cfg(test)]
#[path = "search_tests.rs"]
mod tests;
