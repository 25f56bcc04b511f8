use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

const STEPS: u64 = 100_000;

fn kv(value: u64, create: i64, modified: i64, version: i64) -> Kv {
    Kv { value, create, modified, version }
}

fn call(begin: u64, input: Input, output: Output) -> Call<Op> {
    Call { begin, end: Some(begin + 5), op: Op { input, output: Some(output) } }
}

fn put(begin: u64, value: u64, revision: i64) -> Call<Op> {
    let input = Input::Write { guard: None, change: Change::Put(value) };
    call(begin, input, Output::Wrote { revision, previous: None })
}

fn unknown(begin: u64, guard: Option<Guard>, change: Change) -> Call<Op> {
    Call { begin, end: None, op: Op { input: Input::Write { guard, change }, output: None } }
}

fn get(begin: u64, kv: Option<Kv>, revision: i64) -> Call<Op> {
    call(begin, Input::Get, Output::Read { kv, revision })
}

fn delete(begin: u64, revision: i64) -> Call<Op> {
    let input = Input::Write { guard: None, change: Change::Delete };
    call(begin, input, Output::Wrote { revision, previous: None })
}

fn swap(begin: u64, guard: Guard, value: u64, output: Output) -> Call<Op> {
    call(begin, Input::Write { guard: Some(guard), change: Change::Put(value) }, output)
}

#[track_caller]
fn fits(history: &[Call<Op>]) {
    assert_eq!(check_key(history, 1, STEPS), Verdict::Linearizable);
}

#[track_caller]
fn refused(history: &[Call<Op>]) {
    let verdict = check_key(history, 1, STEPS);
    assert!(matches!(verdict, Verdict::Refused { .. }), "{verdict:?}");
}

#[test]
fn a_life_of_a_key() {
    fits(&[
        get(0, None, 1),
        put(10, 1, 5),
        get(20, Some(kv(1, 5, 5, 1)), 7),
        put(30, 2, 8),
        get(40, Some(kv(2, 5, 8, 2)), 8),
        delete(50, 9),
        get(60, None, 9),
        put(70, 3, 11),
        get(80, Some(kv(3, 11, 11, 1)), 20),
    ]);
}

#[test]
fn stale_reads_lost_writes_and_wrong_numbers_are_refused() {
    let after = |read| refused(&[put(0, 1, 5), put(10, 2, 6), read]);
    after(get(20, Some(kv(1, 5, 5, 1)), 6));
    after(get(20, None, 6));
    after(get(20, Some(kv(2, 5, 6, 1)), 6));
    after(get(20, Some(kv(2, 6, 6, 2)), 6));
    after(get(20, Some(kv(2, 5, 7, 2)), 7));
    // The header is older than what is read.
    after(get(20, Some(kv(2, 5, 6, 2)), 5));
    fits(&[put(0, 1, 5), put(10, 2, 6), get(20, Some(kv(2, 5, 6, 2)), 6)]);
}

#[test]
fn revisions_of_one_key_only_grow() {
    refused(&[put(0, 1, 5), put(10, 2, 5)]);
    refused(&[put(0, 1, 5), put(10, 2, 4)]);
    refused(&[get(0, None, 9), put(10, 2, 9)]);
    // Concurrent ones are in the order of their revisions.
    let both = |read| [put(0, 1, 9), put(1, 2, 5), read];
    fits(&both(get(20, Some(kv(1, 5, 9, 2)), 9)));
    refused(&both(get(20, Some(kv(2, 5, 5, 1)), 9)));
}

#[test]
fn comparisons_that_succeed_against_the_state_are_refused() {
    let wrote = |revision| Output::Wrote { revision, previous: None };
    fits(&[swap(0, Guard::Modified(0), 1, wrote(5)), swap(10, Guard::Modified(5), 2, wrote(6))]);
    refused(&[put(0, 1, 5), swap(10, Guard::Modified(0), 2, wrote(6))]);
    refused(&[put(0, 1, 5), swap(10, Guard::Modified(4), 2, wrote(6))]);
    refused(&[put(0, 1, 5), swap(10, Guard::Version(2), 2, wrote(6))]);
    refused(&[put(0, 1, 5), swap(10, Guard::Value(2), 2, wrote(6))]);
    // Two that both saw the same state before them: one update is lost.
    refused(&[
        put(0, 1, 5),
        swap(10, Guard::Modified(5), 2, wrote(6)),
        swap(11, Guard::Modified(5), 3, wrote(7)),
    ]);
}

#[test]
fn comparisons_that_fail_against_the_state_are_refused() {
    let read = |kv, revision| Output::Read { kv, revision };
    let is = Some(kv(1, 5, 5, 1));
    fits(&[put(0, 1, 5), swap(10, Guard::Modified(4), 2, read(is, 5))]);
    refused(&[put(0, 1, 5), swap(10, Guard::Modified(5), 2, read(is, 5))]);
    refused(&[put(0, 1, 5), swap(10, Guard::Value(1), 2, read(is, 5))]);
    refused(&[put(0, 1, 5), swap(10, Guard::Modified(0), 2, read(None, 5))]);
    // An unguarded put always writes.
    let unguarded = Input::Write { guard: None, change: Change::Put(2) };
    refused(&[put(0, 1, 5), call(10, unguarded, read(is, 5))]);
}

#[test]
fn a_delete_finds_what_is_there() {
    let nothing = call(
        10,
        Input::Write { guard: None, change: Change::Delete },
        Output::Read { kv: None, revision: 5 },
    );
    refused(&[put(0, 1, 5), nothing.clone()]);
    refused(&[delete(0, 5)]);
    fits(&[put(0, 1, 4), delete(5, 5), nothing]);
}

#[test]
fn the_previous_value_has_to_be_the_one_that_was_there() {
    let put_over = |previous| {
        let input = Input::Write { guard: None, change: Change::Put(2) };
        call(10, input, Output::Wrote { revision: 6, previous: Some(previous) })
    };
    fits(&[put(0, 1, 5), put_over(Some(kv(1, 5, 5, 1)))]);
    refused(&[put(0, 1, 5), put_over(None)]);
    refused(&[put(0, 1, 5), put_over(Some(kv(1, 5, 5, 2)))]);
}

#[test]
fn an_unknown_write_gets_its_revision_from_who_reads_it() {
    let maybe = unknown(10, None, Change::Put(2));
    let read = |create, modified, version| {
        [put(0, 1, 5), maybe.clone(), get(20, Some(kv(2, create, modified, version)), 9)]
    };
    fits(&read(5, 7, 2));
    refused(&read(7, 7, 1));
    refused(&read(5, 5, 2));
    refused(&read(5, 7, 3));
    // It may come late, but once, and what overwrites it ends it.
    let history =
        |last| [put(0, 1, 5), maybe.clone(), get(20, Some(kv(1, 5, 5, 1)), 9), put(30, 3, 12), last];
    fits(&history(get(40, Some(kv(3, 5, 12, 3)), 12)));
    fits(&history(get(40, Some(kv(3, 5, 12, 2)), 12)));
    fits(&history(get(40, Some(kv(2, 5, 13, 3)), 13)));
    refused(&history(get(40, Some(kv(2, 5, 10, 3)), 13)));
    refused(&history(get(40, Some(kv(3, 5, 12, 4)), 12)));
}

#[test]
fn there_has_to_be_room_for_the_revision_of_an_unknown_write() {
    let version_three = get(30, Some(kv(3, 5, 6, 3)), 6);
    refused(&[put(0, 1, 5), unknown(10, None, Change::Put(2)), put(20, 3, 6), version_three]);
    let with_room = get(30, Some(kv(3, 5, 7, 3)), 7);
    fits(&[put(0, 1, 5), unknown(10, None, Change::Put(2)), put(20, 3, 7), with_room]);
}

#[test]
fn an_unknown_comparison_takes_effect_only_where_it_holds() {
    let maybe = |guard| unknown(10, Some(guard), Change::Put(2));
    let read = get(20, Some(kv(2, 5, 6, 2)), 6);
    fits(&[put(0, 1, 5), maybe(Guard::Modified(5)), read.clone()]);
    refused(&[put(0, 1, 5), maybe(Guard::Modified(4)), read.clone()]);
    refused(&[put(0, 1, 5), maybe(Guard::Value(9)), read.clone()]);
    refused(&[put(0, 1, 5), maybe(Guard::Version(0)), read]);
    // A comparison with the revision that an unknown write got.
    let then = swap(30, Guard::Modified(7), 3, Output::Wrote { revision: 8, previous: None });
    fits(&[put(0, 1, 5), unknown(10, None, Change::Put(2)), then.clone()]);
    refused(&[put(0, 1, 5), then]);
}

#[test]
fn an_unknown_delete_may_have_happened() {
    let maybe = unknown(10, None, Change::Delete);
    fits(&[put(0, 1, 5), maybe.clone(), get(20, None, 6)]);
    refused(&[put(0, 1, 5), maybe.clone(), get(20, None, 6), get(30, Some(kv(1, 5, 5, 1)), 6)]);
    refused(&[put(0, 1, 5), get(20, None, 6), unknown(30, None, Change::Delete)]);
}

/// A store with one key that really does one thing at a time, used by several clients at once.
struct Store {
    kv: Option<Kv>,
    revision: i64,
    written: BTreeMap<u64, i64>,
}

impl Store {
    fn answer(&mut self, input: Input, random: &mut StdRng) -> Output {
        // Other keys are written to meanwhile.
        self.revision += random.random_range(0..3);
        let read = Output::Read { kv: self.kv, revision: self.revision };
        let Input::Write { guard, change } = input else { return read };
        if guard.is_some_and(|guard| !guard.holds(self.kv.as_ref())) {
            return read;
        }
        let previous = random.random_bool(0.5).then_some(self.kv);
        let next = match (change, self.kv) {
            (Change::Delete, None) => return read,
            (Change::Delete, Some(_)) => None,
            (Change::Put(value), None) => Some(kv(value, self.revision + 1, self.revision + 1, 1)),
            (Change::Put(value), Some(was)) => {
                Some(kv(value, was.create, self.revision + 1, was.version + 1))
            }
        };
        (self.kv, self.revision) = (next, self.revision + 1);
        if let Some(kv) = next {
            self.written.insert(kv.value, kv.modified);
        }
        Output::Wrote { revision: self.revision, previous }
    }
}

fn some_input(random: &mut StdRng, value: u64, known: Option<Kv>) -> Input {
    let guard = match random.random_range(0..6) {
        0 => Some(Guard::Modified(known.map_or(0, |kv| kv.modified))),
        1 => Some(Guard::Version(known.map_or(0, |kv| kv.version))),
        2 => known.map(|kv| Guard::Value(kv.value)),
        _ => None,
    };
    let change = if random.random_bool(0.8) { Change::Put(value) } else { Change::Delete };
    if random.random_bool(0.4) { Input::Get } else { Input::Write { guard, change } }
}

/// A history that is linearizable because each operation is done at one moment between its begin and its end. A part of the
/// answers gets lost, of operations that were done and of others that were not.
fn true_history(random: &mut StdRng, operations: u64) -> (Vec<Call<Op>>, BTreeMap<u64, i64>) {
    let mut store = Store { kv: None, revision: 1, written: BTreeMap::new() };
    let mut known = None;
    let history = (0..operations)
        .map(|n| {
            // One moment each 10 units; operations reach over several of them.
            let moment = 100 + 10 * n;
            let begin = moment - random.random_range(0..60);
            let end = moment + random.random_range(0..60);
            let input = some_input(random, n, known);
            let lost = input != Input::Get && random.random_bool(0.05);
            if lost && random.random_bool(0.5) {
                return Call { begin, end: None, op: Op { input, output: None } };
            }
            let output = store.answer(input, random);
            if random.random_bool(0.3) {
                known = store.kv;
            }
            let output = (!lost).then_some(output);
            Call { begin, end: output.map(|_| end), op: Op { input, output } }
        })
        .collect();
    (history, store.written)
}

#[test]
fn true_histories_are_accepted_as_they_are_and_settled() {
    for seed in 0..200 {
        let random = &mut StdRng::seed_from_u64(seed);
        let (history, written) = true_history(random, 300);
        // Unsettled, every unknown outcome doubles the search: a part is enough.
        assert_eq!(check_key(&history[..60], 1, STEPS), Verdict::Linearizable, "seed {seed}");
        assert_eq!(check_key(&settle(&history[..100], None), 1, STEPS), Verdict::Linearizable, "seed {seed}");
        let settled = settle(&history, Some(&written));
        assert_eq!(check_key(&settled, 1, STEPS), Verdict::Linearizable, "seed {seed}");
    }
}

#[test]
fn with_one_stale_answer_they_are_refused() {
    for seed in 0..200 {
        let random = &mut StdRng::seed_from_u64(seed);
        let (history, written) = true_history(random, 300);
        // A read late in the history shows what an acknowledged write had replaced long before.
        let old = history.iter().find_map(|call| match call.op.output {
            Some(Output::Read { kv: Some(kv), .. }) => Some(kv),
            _ => None,
        });
        let late = history.iter().rposition(|call| call.op.input == Input::Get);
        let (Some(old), Some(late)) = (old, late) else { panic!("seed {seed}: no reads") };
        let mut wrong = settle(&history, Some(&written));
        let late = wrong.iter().position(|call| call == &history[late]).unwrap();
        let newest = wrong[late].op.output.unwrap().revision();
        wrong[late].op.output = Some(Output::Read { kv: Some(old), revision: newest });
        let verdict = check_key(&wrong, 1, STEPS);
        assert!(matches!(verdict, Verdict::Refused { .. }), "seed {seed}: {verdict:?}");
    }
}

#[test]
fn what_somebody_saw_is_settled_and_what_nobody_wrote_is_left_out() {
    let history = [put(0, 1, 5), unknown(10, None, Change::Put(2)), get(20, Some(kv(2, 5, 7, 2)), 9)];
    let settled = settle(&history, None);
    assert_eq!((settled[1].end, settled[1].op.output.unwrap().revision()), (Some(25), 7));
    let unseen = [put(0, 1, 5), unknown(10, None, Change::Put(2)), unknown(11, None, Change::Delete)];
    assert_eq!(settle(&unseen, None), unseen);
    assert_eq!(settle(&unseen, Some(&BTreeMap::from([(1, 5)]))), [unseen[0].clone(), unseen[2].clone()]);
    let late = settle(&unseen, Some(&BTreeMap::from([(1, 5), (2, 8)])));
    assert_eq!((late[1].end, late[1].op.output.unwrap().revision()), (Some(u64::MAX), 8));
}
