//! Single guards and decisions, one by one. What they do together is in `simulation`.

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;

use super::*;
use crate::{
    keyspace::{KeyRange, RangeEntry, RangeMap, Rid},
    line::Entry,
    records::{
        self, ClaimState, CursorStage, FENCE_OPEN, MovePhase, Record, claims_key, cursor_key,
        fence_closed_by, fence_key, move_key, purge_key,
    },
};

fn record(phase: MovePhase) -> MoveRecord {
    MoveRecord {
        id: "m1".into(),
        rid: Rid::new("r"),
        new_rid: Rid::new("m-m1"),
        range: KeyRange::new("a", "c"),
        from: ShardIx(0),
        to: ShardIx(1),
        phase,
        reason: "test".into(),
    }
}

/// A move in a phase, with the source's fence and the destination's cursor stage.
fn seen(phase: MovePhase, fence: Option<&[u8]>, stage: Option<CursorStage>) -> Observation {
    let record = record(phase);
    let claims = Claims::default().with(&record.range, &record.rid, ClaimState::Open);
    Observation {
        map: MapView { modified: 11, generation: 4, owner: Some(ShardIx(0)) },
        source: Some(SourceView {
            fence: fence.map(|f| Stored { value: Bytes::copy_from_slice(f), modified: 20 }),
            claims: Stored { value: claims, modified: 21 },
            purge: None,
        }),
        destination: Some(DestinationView {
            fence: None,
            claims: Stored { value: Claims::default(), modified: 31 },
            cursor: stage.map(|stage| Stored { value: Cursor { copy_at: 9, stage }, modified: 32 }),
            purge: None,
        }),
        record: Some(Stored { value: record, modified: 41 }),
    }
}

fn closed() -> Bytes {
    fence_closed_by("m1")
}

fn tail() -> CursorStage {
    CursorStage::Tail { revision: 21, sub: 0 }
}

fn next(seen: &Observation, session: &Session) -> Step {
    decide(seen, session)
}

#[test]
fn the_way_of_a_move() {
    let session = Session { copy_at: 9, ..Session::default() };
    let copying = MovePhase::Copying;
    let open = Some(FENCE_OPEN);
    assert_eq!(next(&seen(copying, open, None), &session), Step::Do(Effect::Open { copy_at: 9 }));
    let copy = CursorStage::Copy { next: Bytes::new() };
    assert_eq!(next(&seen(copying, open, Some(copy)), &session), Step::Work(Work::Copy));
    assert_eq!(next(&seen(copying, open, Some(tail())), &session), Step::Work(Work::Tail));
    let ready = Session { ready_to_close: true, ..Session::default() };
    assert_eq!(next(&seen(copying, open, Some(tail())), &ready), Step::Do(Effect::Close));
    let mine = Session { closed_at: Some(20), ..ready.clone() };
    assert_eq!(
        next(&seen(copying, Some(&closed()), Some(tail())), &mine),
        Step::Work(Work::Drain { upto: 20 })
    );
    let drained = Session { drained: true, ..mine.clone() };
    assert_eq!(
        next(&seen(copying, Some(&closed()), Some(tail())), &drained),
        Step::Do(Effect::Seal { closed_at: 20 })
    );
    let sealed = CursorStage::Sealed { revision: 20 };
    assert_eq!(
        next(&seen(copying, Some(&closed()), Some(sealed)), &Session::default()),
        Step::Do(Effect::Flip { from_local: 20, to_local: 32 }),
        "whoever finds it sealed decides"
    );
}

#[test]
fn what_is_not_as_it_should_be_is_given_up() {
    let copying = MovePhase::Copying;
    let fresh = Session::default();
    let gives_up =
        |seen: &Observation, session: &Session| assert!(matches!(next(seen, session), Step::GiveUp(_)));
    // Closed by an executor that is gone, before the seal.
    gives_up(&seen(copying, Some(&closed()), Some(tail())), &fresh);
    gives_up(&seen(copying, Some(&closed()), None), &fresh);
    // Another close than the one that this executor made.
    gives_up(
        &seen(copying, Some(&closed()), Some(tail())),
        &Session { closed_at: Some(19), ..fresh.clone() },
    );
    gives_up(&seen(copying, Some(&closed()), Some(CursorStage::Sealed { revision: 19 })), &fresh);
    gives_up(&seen(copying, Some(FENCE_OPEN), Some(CursorStage::Sealed { revision: 20 })), &fresh);
    gives_up(&seen(copying, Some(FENCE_OPEN), Some(CursorStage::Void)), &fresh);
    gives_up(&seen(copying, None, Some(tail())), &fresh);
    gives_up(&seen(copying, Some(b"closed by other"), Some(tail())), &fresh);
    let mut elsewhere = seen(copying, Some(FENCE_OPEN), None);
    elsewhere.map.owner = Some(ShardIx(2));
    gives_up(&elsewhere, &fresh);
    let mut away = seen(copying, Some(&closed()), Some(tail()));
    away.destination = None;
    gives_up(&away, &fresh);
    let given_up = Session { give_up: Some("why".into()), ..fresh };
    away.source = None;
    assert_eq!(next(&away, &given_up), Step::Do(Effect::Abort), "the decision needs no shard");
}

#[test]
fn claims_in_the_way_are_waited_for() {
    let ready = Session { ready_to_close: true, ..Session::default() };
    let overlapping = KeyRange::new("b", "d");
    for state in [ClaimState::Opening("s".into()), ClaimState::Purging, ClaimState::Importing("m0".into())] {
        let with = |claims: &mut Stored<Claims>| {
            claims.value = claims.value.with(&overlapping, &Rid::new("x"), state.clone());
        };
        let mut at_source = seen(MovePhase::Copying, Some(FENCE_OPEN), Some(tail()));
        with(&mut at_source.source.as_mut().unwrap().claims);
        let step = next(&at_source, &ready);
        match state {
            // It waits for the move.
            ClaimState::Opening(_) => assert!(matches!(step, Step::GiveUp(_))),
            _ => assert!(matches!(step, Step::Wait(_)), "closing one fence of two stops nobody"),
        }
        let mut at_destination = seen(MovePhase::Copying, Some(FENCE_OPEN), None);
        with(&mut at_destination.destination.as_mut().unwrap().claims);
        assert!(matches!(next(&at_destination, &ready), Step::Wait(_)));
    }
}

/// Else nobody would know any more that the split's old fence is still there (simulation, seed 227086).
#[test]
fn a_move_that_is_given_up_leaves_the_split_that_made_its_range_to_be_closed() {
    for state in [ClaimState::Opening("split".into()), ClaimState::Open] {
        let mut aborting = seen(MovePhase::Aborting, Some(FENCE_OPEN), Some(tail()));
        let source = &mut aborting.source.as_mut().unwrap().claims.value;
        let record = record(MovePhase::Aborting);
        *source = source.with(&record.range, &record.rid, state.clone());
        let released = written(&Effect::Release.txn(&aborting).unwrap(), 22).value;
        assert_eq!(released.of(&record.rid).unwrap().state, state);
    }
}

#[test]
fn after_an_abort_the_source_comes_first() {
    let fresh = Session::default();
    let mut aborting = seen(MovePhase::Aborting, Some(&closed()), Some(tail()));
    assert_eq!(next(&aborting, &fresh), Step::Do(Effect::Release));
    aborting.destination = None;
    assert_eq!(next(&aborting, &fresh), Step::Do(Effect::Release), "also with the destination away");
    let released = Session { released: true, ..fresh.clone() };
    assert_eq!(next(&aborting, &released), Step::Unreachable(Place::Destination));
    let open = seen(MovePhase::Aborting, Some(FENCE_OPEN), Some(tail()));
    assert_eq!(next(&open, &fresh), Step::Do(Effect::Release), "rewritten even if it is open: late closes");
    assert_eq!(next(&open, &released), Step::Do(Effect::Void));
    let mut void = seen(MovePhase::Aborting, Some(FENCE_OPEN), Some(CursorStage::Void));
    assert_eq!(next(&void, &fresh), Step::Do(Effect::ForgetCursor));
    void.destination.as_mut().unwrap().purge = Some(33);
    assert_eq!(next(&void, &fresh), Step::Work(Work::Purge(Place::Destination)));
    let purged = Session { purged: true, ..fresh };
    assert_eq!(next(&void, &purged), Step::Do(Effect::PurgedDestination));
}

/// A guard that did not match because of another range's claims costs nothing; one that did because somebody else is at
/// work costs everything that was known.
#[test]
fn what_is_known_is_kept_while_nobody_else_works_on_the_move() {
    let before = seen(MovePhase::Copying, Some(&closed()), Some(tail()));
    let known = Session { ready_to_close: true, closed_at: Some(20), drained: true, ..Session::default() };
    let mut now = before.clone();
    now.destination.as_mut().unwrap().claims.modified += 5;
    now.source.as_mut().unwrap().claims.modified += 5;
    now.map.modified += 5;
    assert!(now.continues(&before));
    assert_eq!(next(&now, &known), Step::Do(Effect::Seal { closed_at: 20 }));

    let mut imported = before.clone();
    imported.destination.as_mut().unwrap().cursor.as_mut().unwrap().modified += 1;
    let mut decided = before.clone();
    decided.record.as_mut().unwrap().modified += 1;
    let mut away = before.clone();
    away.destination = None;
    for now in [imported, decided, away] {
        assert!(!now.continues(&before));
    }
    let over = Session { give_up: Some("why".into()), released: true, voided: true, ..known };
    assert_eq!(over.forgotten(), Session { released: true, voided: true, ..Session::default() });
}

/// Whoever aborts sends the same, and nothing against a decision.
#[test]
fn an_abort_needs_the_record_only() {
    let copying = seen(MovePhase::Copying, None, None);
    let record = copying.record.clone().unwrap();
    assert_eq!(abort_txn(&record), Effect::Abort.txn(&copying));
    for phase in [MovePhase::Flipped, MovePhase::Aborting] {
        assert_eq!(abort_txn(&Stored { value: self::record(phase), modified: 41 }), None);
    }
}

fn compares(effect: &Effect, seen: &Observation) -> Vec<pb::Compare> {
    effect.txn(seen).unwrap().compare
}

#[test]
fn every_effect_compares_what_was_read_where_it_goes() {
    let seen = seen(MovePhase::Copying, Some(FENCE_OPEN), Some(tail()));
    let on_source = [
        ops::modified_at(claims_key(), 21),
        ops::modified_at(fence_key(&Rid::new("r")), 20),
        ops::modified_at(purge_key(&Rid::new("r")), 0),
    ];
    let on_destination = [
        ops::modified_at(claims_key(), 31),
        ops::modified_at(cursor_key("m1"), 32),
        ops::modified_at(purge_key(&Rid::new("m-m1")), 0),
    ];
    let in_meta = [ops::modified_at(move_key(&Rid::new("r")), 41)];
    for effect in [Effect::Close, Effect::Release, Effect::PurgeSource, Effect::PurgedSource] {
        assert!(compares(&effect, &seen).starts_with(&on_source), "{effect:?}");
    }
    let all = [
        Effect::Open { copy_at: 1 },
        Effect::Seal { closed_at: 1 },
        Effect::Void,
        Effect::PurgedDestination,
        Effect::ForgetCursor,
    ];
    for effect in all {
        assert!(compares(&effect, &seen).starts_with(&on_destination), "{effect:?}");
    }
    for effect in [Effect::Flip { from_local: 1, to_local: 2 }, Effect::Abort, Effect::Forget] {
        assert!(compares(&effect, &seen).starts_with(&in_meta), "{effect:?}");
    }
    let flip = compares(&Effect::Flip { from_local: 1, to_local: 2 }, &seen);
    assert!(flip.contains(&ops::modified_at(Bytes::from_static(records::MAP), 11)));
    let open = compares(&Effect::Open { copy_at: 1 }, &seen);
    assert!(open.contains(&ops::is_empty(&KeyRange::new("a", "c"))));
    assert!(open.contains(&ops::is_empty(&records::override_range(&KeyRange::new("a", "c")))));
}

#[test]
fn every_effect_that_opens_closes_seals_voids_or_purges_puts_the_claims() {
    let seen = seen(MovePhase::Copying, Some(FENCE_OPEN), Some(tail()));
    let all = [
        Effect::Open { copy_at: 1 },
        Effect::Close,
        Effect::Seal { closed_at: 1 },
        Effect::Release,
        Effect::Void,
        Effect::PurgeSource,
        Effect::PurgedSource,
        Effect::PurgedDestination,
    ];
    for effect in all {
        let puts =
            effect.txn(&seen).unwrap().success.into_iter().any(
                |op| matches!(op.request, Some(pb::Request::RequestPut(put)) if put.key == claims_key()),
            );
        assert!(puts, "{effect:?}");
    }
}

#[test]
fn the_flip_is_in_the_log_with_close_and_seal() {
    let seen = seen(MovePhase::Copying, Some(&closed()), Some(CursorStage::Sealed { revision: 20 }));
    let txn = Effect::Flip { from_local: 20, to_local: 32 }.txn(&seen).unwrap();
    let logged: Vec<_> = txn
        .success
        .iter()
        .filter_map(|op| match &op.request {
            Some(pb::Request::RequestPut(put)) if put.key.as_ref() == records::CUT_LATEST => Some(&put.value),
            _ => None,
        })
        .collect();
    assert_eq!(logged.len(), 1, "one entry for each Txn");
    let Entry::Flip(flip) = Entry::decode(logged[0]).unwrap() else { panic!("no flip") };
    assert_eq!((flip.from_local, flip.to_local, flip.new_rid.as_str()), (20, 32, "m-m1"));
}

fn map() -> RangeMap {
    let entry = |s: &'static str, e: &'static str, rid: &str| RangeEntry {
        range: KeyRange::new(s, e),
        rid: Rid::new(rid),
        shard: ShardIx(0),
        imported_at: 0,
    };
    RangeMap::new(1, vec![entry("", "m", "a"), entry("m", "", "b")]).unwrap()
}

fn owned(map: &RangeMap) -> Stored<Claims> {
    let open = |c: Claims, e: &RangeEntry| c.with(&e.range, &e.rid, ClaimState::Open);
    Stored { value: map.entries().iter().fold(Claims::default(), open), modified: 5 }
}

fn written(txn: &pb::TxnRequest, modified: i64) -> Stored<Claims> {
    let claims = txn.success.iter().find_map(|op| match &op.request {
        Some(pb::Request::RequestPut(put)) if put.key == claims_key() => {
            Some(Claims::decode(&put.value).unwrap())
        }
        _ => None,
    });
    Stored { value: claims.unwrap(), modified }
}

/// Walks a split or merge through its steps; every step is found again from what is stored alone.
fn walk(reshape: &Reshape) -> RangeMap {
    let mut map = map();
    let mut claims = owned(&map);
    let view = MapView { modified: 7, generation: 1, owner: None };
    let Some(ReshapeStep::Open(txn)) = reshape_step(reshape, ShardIx(0), &map, &view, &claims) else {
        panic!("not opened")
    };
    claims = written(&txn, 8);
    let found = pending_reshape(&claims.value).unwrap();
    assert_eq!(found, *reshape);
    let Some(ReshapeStep::Log(txn)) = reshape_step(&found, ShardIx(0), &map, &view, &claims) else {
        panic!("not logged")
    };
    assert!(txn.compare.contains(&ops::modified_at(Bytes::from_static(records::MAP), 7)));
    for (old, _) in &reshape.old {
        assert!(
            txn.compare.contains(&ops::created_at(move_key(old), 0)),
            "no move of {old} may be under way"
        );
    }
    map = match reshape.entry().unwrap() {
        Entry::Split(s) => map.split(&s.rid, &s.at, s.left, s.right).unwrap(),
        Entry::Merge(m) => map.merged(&m.left, &m.right, m.rid).unwrap(),
        other => panic!("{other:?}"),
    };
    let found = pending_reshape(&claims.value).unwrap();
    let Some(ReshapeStep::Close(txn)) = reshape_step(&found, ShardIx(0), &map, &view, &claims) else {
        panic!("not closed")
    };
    for (old, _) in &reshape.old {
        assert!(txn.success.contains(&ops::delete(fence_key(old))));
    }
    claims = written(&txn, 9);
    assert_eq!(pending_reshape(&claims.value), None);
    assert_eq!(reshape_step(reshape, ShardIx(0), &map, &view, &claims), None);
    map
}

#[test]
fn splits_and_merges_open_log_and_close() {
    let split = propose_split(&map(), &Rid::new("a"), &Bytes::from_static(b"f"), "1").unwrap();
    assert_eq!(walk(&split).entries().len(), 3);
    let merge = propose_merge(&map(), &Rid::new("a"), &Rid::new("b"), "2").unwrap();
    assert_eq!(walk(&merge).entries().len(), 1);
    assert_eq!(propose_split(&map(), &Rid::new("a"), &Bytes::from_static(b"m"), "3"), None);
    assert_eq!(propose_merge(&map(), &Rid::new("b"), &Rid::new("a"), "4"), None);
}

#[test]
fn a_split_of_what_has_moved_away_is_undone() {
    let split = propose_split(&map(), &Rid::new("a"), &Bytes::from_static(b"f"), "1").unwrap();
    let view = MapView { modified: 7, generation: 1, owner: None };
    let Some(ReshapeStep::Open(txn)) = reshape_step(&split, ShardIx(0), &map(), &view, &owned(&map())) else {
        panic!("not opened")
    };
    let moved = map().flipped(&Rid::new("a"), Rid::new("m-1"), ShardIx(1), 99).unwrap();
    let claims = Stored { value: written(&txn, 8).value.without(&Rid::new("a")), modified: 9 };
    let found = pending_reshape(&claims.value).unwrap();
    let Some(ReshapeStep::Cancel(txn)) = reshape_step(&found, ShardIx(0), &moved, &view, &claims) else {
        panic!("not undone")
    };
    assert!(written(&txn, 10).value.of(&Rid::new("s-1-l")).is_none());
}

/// A move of one child began before the split was closed, and was given up, which opened its claim (simulation, seed
/// 332663).
#[test]
fn a_split_in_the_log_is_closed_also_if_one_of_its_children_is_open_already() {
    let split = propose_split(&map(), &Rid::new("a"), &Bytes::from_static(b"f"), "1").unwrap();
    let view = MapView { modified: 7, generation: 1, owner: None };
    let Some(ReshapeStep::Open(txn)) = reshape_step(&split, ShardIx(0), &map(), &view, &owned(&map())) else {
        panic!("not opened")
    };
    let (left, right) = (&split.new[0], &split.new[1]);
    let logged =
        map().split(&Rid::new("a"), &Bytes::from_static(b"f"), left.0.clone(), right.0.clone()).unwrap();
    let claims = written(&txn, 8).value.without(&left.0).with(&left.1, &left.0, ClaimState::Open);
    let claims = Stored { value: claims, modified: 9 };
    for reshape in [&split, &pending_reshape(&claims.value).unwrap()] {
        let Some(ReshapeStep::Close(txn)) = reshape_step(reshape, ShardIx(0), &logged, &view, &claims) else {
            panic!("not closed")
        };
        assert!(txn.success.contains(&ops::delete(fence_key(&Rid::new("a")))));
        let closed = written(&txn, 10).value;
        assert!(closed.of(&Rid::new("a")).is_none());
        assert!([left, right].iter().all(|(rid, _)| closed.of(rid).unwrap().state == ClaimState::Open));
    }
}

#[test]
fn a_second_split_waits_for_the_first() {
    let first = propose_split(&map(), &Rid::new("a"), &Bytes::from_static(b"f"), "1").unwrap();
    let second = propose_split(&map(), &Rid::new("b"), &Bytes::from_static(b"t"), "2").unwrap();
    let view = MapView { modified: 7, generation: 1, owner: None };
    let Some(ReshapeStep::Open(txn)) = reshape_step(&first, ShardIx(0), &map(), &view, &owned(&map())) else {
        panic!("not opened")
    };
    assert_eq!(reshape_step(&second, ShardIx(0), &map(), &view, &written(&txn, 8)), None);
}
