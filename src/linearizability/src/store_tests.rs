#![allow(clippy::unwrap_used)]

use super::*;

const LEASE: i64 = 0x77;
const SECOND: u64 = 1000;

fn kv(value: u64, create: i64, modified: i64, version: i64) -> Kv {
    Kv { value, create, modified, version }
}

fn item(value: u64, create: i64, modified: i64, version: i64, lease: i64) -> Item {
    Item { kv: kv(value, create, modified, version), lease }
}

fn event(revision: i64, key: usize, item: Option<Item>) -> Event {
    Event { revision, key, item, told: revision.unsigned_abs() * 100 + 90 }
}

fn put(key: usize, value: u64, lease: i64) -> Action {
    Action::Put { key, value, lease }
}

/// Revision `r` is written somewhere in the moments from `100 * r` to `100 * r + 50`.
fn answered(
    revision: i64,
    request: Request,
    succeeded: bool,
    seen: Vec<Option<BTreeMap<usize, Item>>>,
) -> Txn {
    let begin = revision.unsigned_abs() * 100;
    let answer = Answer { revision, succeeded, seen };
    Txn { begin, request, outcome: Outcome::Answered { end: begin + 50, answer } }
}

fn unknown(revision: i64, request: Request) -> Txn {
    Txn { begin: revision.unsigned_abs() * 100, request, outcome: Outcome::Unknown }
}

fn seen(items: &[(usize, Item)]) -> Option<BTreeMap<usize, Item>> {
    Some(items.iter().copied().collect())
}

/// Keys 0 to 2 are one group, 3 another.
///
/// At 10 a transaction puts 0 and 1; at 11 one that compares deletes 1, puts 2 and reads its own doing; at 12 a compare fails;
/// at 13 keys 0 and 2 are attached to a lease, by somebody who was not told; at 14 key 3 is; at 20 and 21 the lease is revoked.
fn good() -> History {
    let first = Request { then: vec![put(0, 1, 0), put(1, 2, 0)], ..Request::default() };
    let second = Request {
        compares: vec![(0, Guard::Value(1)), (2, Guard::Modified(0))],
        then: vec![Action::Delete { from: 1, upto: 2 }, put(2, 3, 0), Action::Get { from: 0, upto: 3 }],
        otherwise: vec![Action::Get { from: 0, upto: 1 }],
        at: None,
    };
    let third =
        Request { compares: vec![(1, Guard::Version(1))], then: vec![put(1, 4, 0)], ..second.clone() };
    let attach = Request { then: vec![put(0, 5, LEASE), put(2, 6, LEASE)], ..Request::default() };
    let other = Request { then: vec![put(3, 7, LEASE)], ..Request::default() };
    let all = |at| Request { then: vec![Action::Get { from: 0, upto: 4 }], at, ..Request::default() };
    let (zero, one, two) = (item(1, 10, 10, 1, 0), item(2, 10, 10, 1, 0), item(3, 11, 11, 1, 0));
    let (zero_leased, two_leased) = (item(5, 10, 13, 2, LEASE), item(6, 11, 13, 2, LEASE));
    let three = item(7, 14, 14, 1, LEASE);
    let everything = seen(&[(0, zero_leased), (2, two_leased), (3, three)]);
    let lease = Lease {
        ttl: 3 * SECOND,
        renewals: vec![Renewal { begin: 1200 }, Renewal { begin: 1600 }],
        revoking: Some(1900),
        revoked: Some(21),
    };
    History {
        before: 5,
        groups: vec![0, 0, 0, 1],
        events: vec![
            event(10, 0, Some(zero)),
            event(10, 1, Some(one)),
            event(11, 1, None),
            event(11, 2, Some(two)),
            event(13, 0, Some(zero_leased)),
            event(13, 2, Some(two_leased)),
            event(14, 3, Some(three)),
            event(20, 0, None),
            event(20, 2, None),
            event(21, 3, None),
        ],
        txns: vec![
            answered(10, first, true, vec![None, seen(&[])]),
            answered(11, second, true, vec![seen(&[(1, one)]), None, seen(&[(0, zero), (2, two)])]),
            answered(12, third, false, vec![seen(&[(0, zero)])]),
            unknown(13, attach),
            answered(14, other, true, vec![None]),
            answered(15, all(None), true, vec![everything]),
            answered(16, all(Some(10)), true, vec![seen(&[(0, zero), (1, one)])]),
            answered(22, all(None), true, vec![seen(&[])]),
        ],
        leases: BTreeMap::from([(LEASE, lease)]),
    }
}

fn answer(history: &mut History, at: usize) -> &mut Answer {
    match &mut history.txns[at].outcome {
        Outcome::Answered { answer, .. } => answer,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn finds(text: &str, spoil: impl FnOnce(&mut History)) {
    let mut history = good();
    spoil(&mut history);
    let found = check(&history).expect_err("it finds nothing");
    assert!(found.0.contains(text), "{found}");
}

#[track_caller]
fn passes(change: impl FnOnce(&mut History)) {
    let mut history = good();
    change(&mut history);
    check(&history).unwrap();
}

#[test]
fn what_is_right_passes() {
    passes(|_| {});
    check(&History::default()).unwrap();
    // Nobody was told of the first transaction either, and an attach that never was done says nothing.
    passes(|history| history.txns[0].outcome = Outcome::Unknown);
    passes(|history| {
        let never = Request { then: vec![put(1, 99, LEASE)], ..Request::default() };
        history.txns.push(unknown(2, never));
    });
    passes(|history| {
        let never = Request { then: vec![put(1, 99, LEASE)], ..Request::default() };
        history.txns.push(Txn { outcome: Outcome::Refused, ..unknown(2, never) });
    });
}

#[test]
fn a_lost_write_is_found() {
    // All of it, and one key of two.
    finds("is not what revision 10 wrote", |history| {
        history.events.drain(..2);
        history.events.remove(0);
        history.events[1].item = Some(item(5, 13, 13, 1, LEASE));
    });
    finds("is not what revision 10 wrote", |history| {
        history.events.drain(1..3);
    });
    finds("is not what revision 14 wrote", |history| {
        history.events.retain(|e| e.key != 3);
        history.txns.remove(5);
    });
}

#[test]
fn a_stale_read_is_found() {
    // It is right for its header, and the header is older than what had been told.
    finds("the revision goes back", |history| {
        let (zero, two) = (item(1, 10, 10, 1, 0), item(3, 11, 11, 1, 0));
        *answer(history, 7) =
            Answer { revision: 12, succeeded: true, seen: vec![seen(&[(0, zero), (2, two)])] };
    });
    // It has a new header, and shows what was before.
    finds("its action 0 sees", |history| answer(history, 7).seen = vec![seen(&[(0, item(1, 10, 10, 1, 0))])]);
    // It mixes two revisions.
    finds("its action 0 sees", |history| {
        let zero = item(1, 10, 10, 1, 0);
        answer(history, 5).seen[0].as_mut().unwrap().insert(0, zero);
    });
    finds("its action 0 sees", |history| {
        answer(history, 6).seen[0].as_mut().unwrap().remove(&1);
    });
}

#[test]
fn a_transaction_half_applied_is_found() {
    finds("is not what revision 11 wrote", |history| {
        history.events.remove(3);
        history.events.retain(|e| e.key != 2);
    });
    // Also if nobody was told of it.
    finds("a part of which is its", |history| {
        history.events.retain(|e| e.key != 2 || e.revision == 11);
        history.txns.remove(5);
    });
    // In two revisions.
    finds("is not what revision 10 wrote", |history| {
        history.events[1] = event(11, 1, Some(item(2, 11, 11, 1, 0)));
        history.events.remove(2);
    });
    // With more than was asked for.
    finds("is not what revision 14 wrote", |history| {
        history.events.insert(7, event(14, 1, Some(item(88, 14, 14, 1, 0))));
    });
}

#[test]
fn a_compare_that_saw_something_else_is_found() {
    // Key 0 has value 5 only later.
    finds("compared what was not there", |history| history.txns[1].request.compares[0].1 = Guard::Value(5));
    finds("compared what was not there", |history| {
        history.txns[1].request.compares[1].1 = Guard::Modified(11)
    });
    // It should have been true.
    finds("compared what was not there", |history| {
        history.txns[2].request.compares[0] = (0, Guard::Version(1))
    });
    // An unknown outcome whose compare was false when it was done.
    finds("a part of which is its", |history| history.txns[3].request.compares.push((1, Guard::Version(1))));
}

#[test]
fn what_nobody_did_is_found() {
    finds("which nobody did", |history| {
        history.txns.remove(3);
    });
    finds("was refused", |history| history.txns[3].outcome = Outcome::Refused);
    finds("before it was asked for", |history| history.txns[3].begin = 1550);
    finds("was put before", |history| history.events[5].item = Some(item(5, 11, 13, 2, LEASE)));
    finds("comes where the key is", |history| history.events[4].item = Some(item(5, 13, 13, 1, LEASE)));
    finds("comes after", |history| history.events.swap(4, 7));
    finds("deletes what is not there", |history| history.events[0].item = None);
    // Attached to no lease, or to another one.
    finds("a part of which is its", |history| history.events[5].item = Some(item(6, 11, 13, 2, 0)));
    finds("which nobody has", |history| history.leases.clear());
}

#[test]
fn deletions_of_unknown_outcome_are_each_done_by_somebody() {
    let delete = |from, upto| Request { then: vec![Action::Delete { from, upto }], ..Request::default() };
    let guarded = Request { compares: vec![(0, Guard::Value(1))], ..delete(1, 2) };
    let both = |history: &mut History, first: Request, second: Request| {
        history.events.insert(4, event(12, 1, Some(item(40, 12, 12, 1, 0))));
        history.events.insert(8, event(17, 1, None));
        history.txns[2] =
            answered(12, Request { then: vec![put(1, 40, 0)], ..Request::default() }, true, vec![None]);
        history.txns.truncate(5);
        history.txns.push(unknown(8, first));
        history.txns.push(unknown(8, second));
    };
    passes(|history| both(history, delete(1, 2), delete(1, 2)));
    // The compare holds before revision 13 only.
    finds("which nobody did", |history| both(history, guarded.clone(), guarded));
    // Not before it was asked for, and not a part of what it asks for.
    finds("which nobody did", |history| {
        both(history, delete(0, 3), delete(0, 3));
    });
    finds("which nobody did", |history| {
        both(history, delete(1, 2), delete(1, 2));
        history.txns.retain(|txn| txn.begin != 800);
        history.txns.push(unknown(19, delete(1, 2)));
        history.txns.push(answered(
            18,
            Request { then: vec![Action::Get { from: 1, upto: 2 }], ..Request::default() },
            true,
            vec![seen(&[])],
        ));
    });
}

#[test]
fn a_key_that_outlives_a_revoked_lease_is_found() {
    finds("is still there", |history| {
        history.events.pop();
        answer(history, 7).seen = vec![seen(&[(3, item(7, 14, 14, 1, LEASE))])];
    });
    // Or is attached afterwards.
    finds("attached to a lease that was revoked", |history| {
        history.events.push(event(23, 3, Some(item(50, 23, 23, 1, LEASE))));
        history.txns.push(answered(
            23,
            Request { then: vec![put(3, 50, LEASE)], ..Request::default() },
            true,
            vec![None],
        ));
    });
    // One group in two revisions, and one of its keys not at all.
    finds("not in one revision", |history| {
        history.events[8] = event(21, 2, None);
        history.events[9] = event(22, 3, None);
        history.leases.get_mut(&LEASE).unwrap().revoked = Some(22);
    });
    finds("is still there", |history| {
        history.events.remove(8);
        history.leases.get_mut(&LEASE).unwrap().revoked = None;
        answer(history, 7).seen = vec![seen(&[(2, item(6, 11, 13, 2, LEASE))])];
    });
}

#[test]
fn a_key_that_is_gone_before_its_time_is_found() {
    // The last renewal was sent at 1600, for three seconds, and revision 20 was known at 2090.
    finds("it lives until 4600", |history| {
        let lease = history.leases.get_mut(&LEASE).unwrap();
        (lease.revoking, lease.revoked) = (None, None);
    });
    // A revoke that was sent after somebody knew.
    finds("it lives until 4600", |history| history.leases.get_mut(&LEASE).unwrap().revoking = Some(2091));
    // Somebody knows by the header of an answer, not by the watch.
    finds("was known at 2250", |history| {
        let lease = history.leases.get_mut(&LEASE).unwrap();
        (lease.revoking, lease.revoked) = (None, None);
        history.events.iter_mut().for_each(|event| event.told = 9_000);
    });
    // Once its time is over it may vanish without a revoke.
    passes(|history| {
        let lease = history.leases.get_mut(&LEASE).unwrap();
        (lease.revoking, lease.revoked) = (None, None);
        lease.renewals.truncate(1);
        lease.ttl = 800;
    });
    // A revoke of which nobody was told may have been done, too.
    passes(|history| history.leases.get_mut(&LEASE).unwrap().revoked = None);
}

/// A store that does one thing at a time, and clients whose requests overlap.
mod random {
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    const KEYS: usize = 6;

    struct World {
        random: StdRng,
        history: History,
        now: BTreeMap<usize, Item>,
        clock: u64,
        value: u64,
        lease: i64,
    }

    impl World {
        fn new(seed: u64) -> Self {
            let history = History { before: 3, groups: vec![0, 0, 0, 1, 1, 1], ..History::default() };
            let random = StdRng::seed_from_u64(seed);
            Self { random, history, now: BTreeMap::new(), clock: 1_000, value: 0, lease: 0 }
        }

        fn revision(&self) -> i64 {
            self.history.events.last().map_or(self.history.before, |event| event.revision)
        }

        fn actions(&mut self) -> Vec<Action> {
            let mut keys: Vec<usize> = (0..KEYS).collect();
            (0..self.random.random_range(0..4))
                .map(|_| {
                    let from = self.random.random_range(0..KEYS);
                    let upto = (from + self.random.random_range(1..4)).min(KEYS);
                    match self.random.random_range(0..5) {
                        0 => Action::Delete { from, upto },
                        1 => Action::Get { from, upto },
                        _ => {
                            let key = keys.swap_remove(self.random.random_range(0..keys.len()));
                            self.value += 1;
                            let lease = if self.random.random_bool(0.3) { self.lease } else { 0 };
                            Action::Put { key, value: self.value, lease }
                        }
                    }
                })
                .collect()
        }

        /// One request, done at one moment of its time.
        fn request(&mut self) {
            let guard = |world: &mut Self| {
                let key = world.random.random_range(0..KEYS);
                let item = world.now.get(&key).filter(|_| world.random.random_bool(0.8));
                let modified = item.map_or(0, |item| item.kv.modified);
                (key, Guard::Modified(modified))
            };
            let compares = (0..self.random.random_range(0..3)).map(|_| guard(self)).collect();
            let (then, otherwise) = (self.actions(), self.actions());
            let request = Request { compares, then, otherwise, at: None };
            let begin = self.clock - self.random.random_range(0..40);
            let known = self.random.random_bool(0.75);
            if !known && self.random.random_bool(0.5) {
                self.history.txns.push(Txn { begin, request, outcome: Outcome::Unknown });
                return;
            }
            let succeeded =
                request.compares.iter().all(|(key, guard)| guard.holds(self.now.get(key).map(|i| &i.kv)));
            let actions = if succeeded { &request.then } else { &request.otherwise };
            let revision = self.revision() + 1;
            let before = self.now.clone();
            let mut seen = Vec::new();
            for action in actions {
                match *action {
                    Action::Put { key, value, lease } => {
                        let was = self.now.get(&key).copied();
                        let (create, version) =
                            was.map_or((revision, 1), |was| (was.kv.create, was.kv.version + 1));
                        seen.push(Some(was.map(|was| (key, was)).into_iter().collect()));
                        self.now.insert(key, item(value, create, revision, version, lease));
                    }
                    Action::Delete { from, upto } => {
                        seen.push(Some(self.now.range(from..upto).map(|(k, i)| (*k, *i)).collect()));
                        self.now.retain(|key, _| !(from..upto).contains(key));
                    }
                    Action::Get { from, upto } => {
                        seen.push(Some(self.now.range(from..upto).map(|(k, i)| (*k, *i)).collect()));
                    }
                }
            }
            let deleted_own = actions.iter().any(|a| matches!(a, Action::Delete { .. }))
                && actions.iter().any(|a| matches!(a, Action::Put { .. }));
            if deleted_own && (0..KEYS).any(|key| wrote_and_deleted(actions, key)) {
                // Two events of one key in one revision: not of this model.
                self.now = before;
                return;
            }
            let wrote = self.diff(&before, revision);
            let outcome = if known {
                let revision = if wrote { revision } else { revision - 1 };
                let end = self.clock + self.random.random_range(0..40);
                Outcome::Answered { end, answer: Answer { revision, succeeded, seen } }
            } else {
                Outcome::Unknown
            };
            self.history.txns.push(Txn { begin, request, outcome });
        }

        fn diff(&mut self, before: &BTreeMap<usize, Item>, revision: i64) -> bool {
            let told = self.clock + self.random.random_range(0..60);
            let mut wrote = false;
            for key in 0..KEYS {
                let item = self.now.get(&key).copied();
                if item != before.get(&key).copied() {
                    self.history.events.push(Event { revision, key, item, told });
                    wrote = true;
                }
            }
            wrote
        }

        /// The lease is renewed or ends, and another one begins.
        fn leases(&mut self) {
            let begin = self.clock - 5;
            if let Some(lease) = self.history.leases.get_mut(&self.lease) {
                let lives = lease.renewals.iter().map(|r| r.begin + lease.ttl).max().unwrap_or(0);
                if self.clock < lives && self.random.random_bool(0.6) {
                    lease.renewals.push(Renewal { begin });
                    return;
                }
                let revoked = self.clock < lives || self.random.random_bool(0.5);
                if revoked {
                    lease.revoking = Some(begin);
                }
                let id = self.lease;
                for group in [0, 1] {
                    let before = self.now.clone();
                    self.now.retain(|key, item| item.lease != id || *key / 3 != group);
                    let revision = self.revision() + 1;
                    self.diff(&before, revision);
                }
                let revision = self.revision();
                if revoked && self.random.random_bool(0.7) {
                    self.history.leases.get_mut(&id).unwrap().revoked = Some(revision);
                }
            }
            self.lease += 1;
            let ttl = self.random.random_range(20..400);
            let renewals = vec![Renewal { begin }];
            self.history.leases.insert(self.lease, Lease { ttl, renewals, ..Lease::default() });
        }
    }

    fn wrote_and_deleted(actions: &[Action], key: usize) -> bool {
        let puts = actions.iter().any(|a| matches!(a, Action::Put { key: k, .. } if *k == key));
        let deletes = actions
            .iter()
            .any(|a| matches!(a, Action::Delete { from, upto } if (*from..*upto).contains(&key)));
        puts && deletes
    }

    fn history(seed: u64) -> History {
        let mut world = World::new(seed);
        for _ in 0..60 {
            world.clock += world.random.random_range(1..30);
            if world.random.random_bool(0.15) {
                world.leases();
            } else {
                world.request();
            }
        }
        world.history
    }

    #[test]
    fn histories_of_a_right_store_pass() {
        let mut events = 0;
        for seed in 0..500 {
            let history = history(seed);
            events += history.events.len();
            check(&history).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        }
        assert!(events > 10_000, "{events}");
    }

    #[test]
    fn one_change_to_a_read_or_an_event_is_found() {
        let (mut reads, mut events) = (0, 0);
        for seed in 0..200 {
            let right = history(seed);
            let mut random = StdRng::seed_from_u64(!seed);
            for at in 0..right.txns.len() {
                let mut wrong = right.clone();
                let Outcome::Answered { answer, .. } = &mut wrong.txns[at].outcome else { continue };
                let Some(seen) = answer.seen.iter_mut().flatten().find(|seen| !seen.is_empty()) else {
                    continue;
                };
                let kv = seen.values_mut().next().unwrap();
                kv.kv.version += 1;
                assert!(check(&wrong).is_err(), "seed {seed}: read {at}");
                reads += 1;
            }
            if !right.events.is_empty() {
                let mut wrong = right.clone();
                let at = random.random_range(0..wrong.events.len());
                match &mut wrong.events[at].item {
                    Some(item) => item.kv.value += 1_000_000,
                    None => continue,
                }
                assert!(check(&wrong).is_err(), "seed {seed}: event {at}");
                events += 1;
            }
        }
        assert!(reads > 500 && events > 100, "{reads} {events}");
    }
}
