use proptest::prelude::*;

use super::*;

/// A number that is written and read.
struct Number;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Write(u8),
    Read(u8),
}

impl Model for Number {
    type State = u8;
    type Op = Op;

    fn step(&self, state: &u8, op: &Op) -> Option<u8> {
        match *op {
            Op::Write(number) => Some(number),
            Op::Read(number) => (number == *state).then_some(*state),
        }
    }

    fn effect(&self, _: &u8, op: &Op) -> Option<u8> {
        match *op {
            Op::Write(number) => Some(number),
            Op::Read(_) => None,
        }
    }
}

const STEPS: u64 = 100_000;

fn call(begin: u64, end: u64, op: Op) -> Call<Op> {
    Call { begin, end: Some(end), op }
}

fn unknown(begin: u64, op: Op) -> Call<Op> {
    Call { begin, end: None, op }
}

fn verdict(history: &[Call<Op>]) -> Verdict {
    check(&Number, 0, history, STEPS)
}

#[test]
fn concurrent_operations_may_be_in_either_order() {
    let both = |read| [call(0, 10, Op::Write(1)), call(5, 15, Op::Read(read))];
    assert_eq!(verdict(&both(0)), Verdict::Linearizable);
    assert_eq!(verdict(&both(1)), Verdict::Linearizable);
    assert_eq!(verdict(&both(2)), Verdict::Refused { longest: 1, stuck: vec![1] });
}

#[test]
fn a_stale_read_is_refused_and_named() {
    let history = [call(0, 1, Op::Write(1)), call(2, 3, Op::Write(2)), call(4, 5, Op::Read(1))];
    assert_eq!(verdict(&history), Verdict::Refused { longest: 2, stuck: vec![2] });
}

#[test]
fn two_readers_cannot_see_two_writes_in_different_orders() {
    let history = [
        call(0, 100, Op::Write(1)),
        call(0, 100, Op::Write(2)),
        call(10, 11, Op::Read(1)),
        call(12, 13, Op::Read(2)),
        call(14, 15, Op::Read(1)),
    ];
    assert!(matches!(verdict(&history), Verdict::Refused { .. }));
    assert_eq!(verdict(&history[..4]), Verdict::Linearizable);
}

#[test]
fn an_unknown_write_may_take_effect_at_any_later_moment_or_never_but_once() {
    let write = unknown(10, Op::Write(7));
    let reads = |numbers: &[u8]| {
        let reads = numbers.iter().zip(1..).map(|(&n, at)| call(10 * at, 10 * at + 5, Op::Read(n)));
        [write.clone()].into_iter().chain(reads).collect::<Vec<_>>()
    };
    assert_eq!(verdict(&reads(&[0, 0, 0])), Verdict::Linearizable);
    assert_eq!(verdict(&reads(&[0, 0, 7])), Verdict::Linearizable);
    assert_eq!(verdict(&reads(&[7, 7, 7])), Verdict::Linearizable);
    assert!(matches!(verdict(&reads(&[7, 0, 0])), Verdict::Refused { .. }));
    // Before its begin it cannot be seen.
    let early = [unknown(10, Op::Write(7)), call(0, 5, Op::Read(7))];
    assert!(matches!(verdict(&early), Verdict::Refused { .. }));
}

#[test]
fn operations_that_touch_are_concurrent() {
    assert_eq!(verdict(&[call(0, 5, Op::Write(1)), call(5, 6, Op::Read(0))]), Verdict::Linearizable);
    assert!(matches!(verdict(&[call(0, 5, Op::Write(1)), call(6, 7, Op::Read(0))]), Verdict::Refused { .. }));
}

#[test]
fn gives_up_at_the_bound_and_says_so() {
    // Many writes at once and a read of what nobody wrote: every order has to be tried.
    let mut history: Vec<_> = (0..12).map(|n| call(0, 100, Op::Write(n))).collect();
    history.push(call(0, 100, Op::Read(99)));
    assert_eq!(check(&Number, 0, &history, 500), Verdict::Unknown { steps: 500 });
    // With the cache it is a matter of the sets of writes, not of their orders.
    assert!(matches!(check(&Number, 0, &history, 1_000_000), Verdict::Refused { longest: 12, .. }));
}

#[test]
fn a_long_history_takes_steps_in_proportion() {
    let history: Vec<_> = (0..20_000_u64)
        .map(|n| {
            let op = if n % 2 == 0 { Op::Write((n / 2 % 200) as u8) } else { Op::Read((n / 2 % 200) as u8) };
            call(10 * n, 10 * n + 5, op)
        })
        .collect();
    assert_eq!(check(&Number, 0, &history, 40_000), Verdict::Linearizable);
}

#[test]
fn nothing_recorded_is_linearizable() {
    assert_eq!(verdict(&[]), Verdict::Linearizable);
    assert_eq!(verdict(&[unknown(0, Op::Read(9))]), Verdict::Linearizable);
}

/// Tries every order of every subset of the unknown ones. For a handful of operations only.
fn by_brute_force(history: &[Call<Op>], placed: &mut Vec<usize>, state: u8) -> bool {
    let left = |placed: &[usize]| (0..history.len()).filter(|at| !placed.contains(at)).collect::<Vec<_>>();
    let open = left(placed);
    if open.iter().all(|&at| history[at].end.is_none()) {
        return true;
    }
    for &at in &open {
        let late = open.iter().any(|&other| history[other].end.is_some_and(|end| end < history[at].begin));
        let next = match history[at].end {
            Some(_) => Number.step(&state, &history[at].op),
            None => Number.effect(&state, &history[at].op),
        };
        if let Some(next) = next.filter(|_| !late) {
            placed.push(at);
            if by_brute_force(history, placed, next) {
                return true;
            }
            placed.pop();
        }
    }
    false
}

fn some_history() -> impl Strategy<Value = Vec<Call<Op>>> {
    let op = prop_oneof![(0..3_u8).prop_map(Op::Write), (0..3_u8).prop_map(Op::Read)];
    let one = (0..12_u64, prop::option::weighted(0.8, 0..6_u64), op).prop_map(|(begin, takes, op)| Call {
        begin,
        end: takes.map(|takes| begin + takes),
        op,
    });
    prop::collection::vec(one, 0..7)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn agrees_with_brute_force(history in some_history()) {
        let expected = by_brute_force(&history, &mut Vec::new(), 0);
        let found = verdict(&history);
        prop_assert_eq!(found == Verdict::Linearizable, expected, "{:?}", found);
        let gave_up = matches!(found, Verdict::Unknown { .. });
        prop_assert!(!gave_up);
    }
}
