use std::collections::HashMap;

use bytes::Bytes;

use super::{Next, Order, OrderRecord, OrderState, Scene, ShardAt, StepKey, next, plan_id};
use crate::{
    keyspace::{KeyRange, RangeEntry, RangeMap, Rid, ShardIx},
    placement::{Action, Step},
    records::{MovePhase, MoveRecord, Record},
    topology::{Draft, DraftPin, RebalanceMode, Topology, validate},
};

struct World {
    map: RangeMap,
    shards: Vec<ShardAt>,
    bytes: HashMap<Rid, u64>,
    moves: Vec<MoveRecord>,
    topology: Topology,
}

fn shard(name: &str) -> ShardAt {
    ShardAt { name: name.into(), takes: true, trouble: None, used_bytes: 0 }
}

impl World {
    /// `[, /c/)` on shard-0, `[/c/, /m/)` on shard-1, `[/m/, )` on shard-1.
    fn new(change: impl FnOnce(&mut Draft)) -> Self {
        let mut draft = Draft::new("demo", 2);
        change(&mut draft);
        let entry = |start: &'static str, end: &'static str, rid: &str, ix| RangeEntry {
            range: KeyRange::new(start, end),
            rid: Rid::new(rid),
            shard: ShardIx(ix),
            imported_at: 0,
        };
        let entries = vec![entry("", "/c/", "a", 0), entry("/c/", "/m/", "b", 1), entry("/m/", "", "c", 1)];
        Self {
            map: RangeMap::new(1, entries).unwrap(),
            shards: vec![shard("shard-0"), shard("shard-1")],
            bytes: HashMap::new(),
            moves: Vec::new(),
            topology: validate(draft).unwrap(),
        }
    }

    fn moving(mut self, rid: &str, to: u32, phase: MovePhase) -> Self {
        let entry = self.map.by_rid(&Rid::new(rid)).unwrap();
        self.moves.push(MoveRecord {
            id: format!("m{rid}"),
            rid: entry.rid.clone(),
            new_rid: Rid::new(format!("m-{rid}")),
            range: entry.range.clone(),
            from: entry.shard,
            to: ShardIx(to),
            phase,
            reason: "to balance".into(),
        });
        self
    }

    fn next(&self, order: Order) -> Next {
        self.next_of(&OrderRecord::new(order))
    }

    fn went_on(&self, order: Order) -> Next {
        self.next_of(&OrderRecord { state: OrderState::Running, ..OrderRecord::new(order) })
    }

    fn next_of(&self, record: &OrderRecord) -> Next {
        let Self { map, shards, bytes, moves, topology } = self;
        next(record, &Scene { map, shards, bytes, moves, topology })
    }
}

fn world() -> World {
    World::new(|_| {})
}

fn to(start: &'static str, end: &'static str, to: &str) -> Order {
    Order::Move { range: KeyRange::new(start, end), to: to.into() }
}

fn split(at: &'static str) -> Order {
    Order::Split { at: Bytes::from(at) }
}

fn merge(at: &'static str) -> Order {
    Order::Merge { at: Bytes::from(at) }
}

fn abort(start: &'static str, end: &'static str) -> Order {
    Order::Abort { range: KeyRange::new(start, end) }
}

#[track_caller]
fn refused(next: Next, words: &[&str]) {
    let Next::Refused(why) = next else { panic!("not refused: {next:?}") };
    for word in words {
        assert!(why.contains(word), "{why:?} lacks {word:?}");
    }
}

#[track_caller]
fn waits(next: Next, word: &str) {
    let Next::Wait(why) = next else { panic!("does not wait: {next:?}") };
    assert!(why.contains(word), "{why:?} lacks {word:?}");
}

#[track_caller]
fn done(next: Next, word: &str) {
    let Next::Done(what) = next else { panic!("not done: {next:?}") };
    assert!(what.contains(word), "{what:?} lacks {word:?}");
}

#[track_caller]
fn action(next: Next) -> Action {
    let Next::Do(step) = next else { panic!("nothing to do: {next:?}") };
    assert!(step.ready);
    step.action
}

#[test]
fn a_range_is_cut_out_and_then_moved() {
    let cut = action(world().next(to("/a/", "/b/", "shard-1")));
    let Action::Split { rid, at, .. } = cut else { panic!("{cut:?}") };
    assert_eq!((rid.as_str(), at.as_ref()), ("a", b"/a/".as_ref()));
    let cut = action(world().next(to("", "/b/", "shard-1")));
    assert!(matches!(cut, Action::Split { at, .. } if at.as_ref() == b"/b/"));
    let moved = action(world().next(to("", "/c/", "shard-1")));
    assert!(matches!(moved, Action::Move { rid, to, .. } if rid.as_str() == "a" && to == "shard-1"));
    // Over several ranges: one after the other; to the end of all keys too.
    let moved = action(world().next(to("/c/", "", "shard-0")));
    assert!(matches!(moved, Action::Move { rid, .. } if rid.as_str() == "b"));
    done(world().next(to("/c/", "", "shard-1")), "2 ranges are on shard-1");
    done(world().next(to("/d/", "/e/", "shard-1")), "1 range is on shard-1");
}

#[test]
fn a_move_waits_for_what_is_in_its_way() {
    let world = world().moving("a", 1, MovePhase::Copying);
    waits(world.next(to("", "/c/", "shard-1")), "is under way");
    waits(world.next(to("/c/", "/m/", "shard-0")), "at most 1 moves");
    let elsewhere = World::new(|d| d.shards = 3);
    let mut elsewhere = elsewhere.moving("a", 1, MovePhase::Copying);
    elsewhere.shards.push(shard("shard-2"));
    waits(elsewhere.next(to("", "/c/", "shard-2")), "moves to shard-1");
    // Past the flip the range is the destination's, and the move counts no more.
    let purging = self::world().moving("b", 0, MovePhase::Flipped);
    assert!(matches!(action(purging.next(to("", "/c/", "shard-1"))), Action::Move { .. }));
    let mut broken = self::world();
    broken.shards[1].trouble = Some("shard-1 does not answer".into());
    waits(broken.next(to("", "/c/", "shard-1")), "shard-1 does not answer");
}

#[test]
fn a_move_that_makes_no_sense_is_refused() {
    refused(world().next(to("/b/", "/a/", "shard-1")), &["holds no key"]);
    refused(world().next(to("", "/c/", "shard-7")), &["no shard shard-7", "shard-0, shard-1"]);
    refused(world().next(to("/a/x", "/c/", "shard-1")), &["directory \"/a/\"", "\"/a0\"", "splittable"]);
    let mut leaving = world();
    leaving.shards[1].takes = false;
    refused(leaving.next(to("", "/c/", "shard-1")), &["write one of shard-0"]);
    let pinned = World::new(|d| {
        d.pins = vec![DraftPin { prefix: Bytes::from_static(b"/b/"), shard: 0 }];
    });
    refused(pinned.next(to("/a/", "/c/", "shard-1")), &["pinned to shard-0", "spec.keyspace.pins"]);
    done(pinned.next(to("/b/", "/b0", "shard-0")), "on shard-0");
}

#[test]
fn splits() {
    assert!(matches!(action(world().next(split("/d/"))), Action::Split { rid, .. } if rid.as_str() == "b"));
    done(world().next(split("/c/")), "begins at");
    refused(world().next(split("/d/key")), &["directory \"/d/\""]);
    waits(world().moving("b", 0, MovePhase::Copying).next(split("/d/")), "under way");
}

#[test]
fn merges() {
    let merged = action(world().next(merge("/m/")));
    assert!(matches!(merged, Action::Merge { range, .. } if range == KeyRange::new("/c/", "")));
    refused(world().next(merge("/c/")), &["on shard-0", "on shard-1", "move one"]);
    refused(world().next(merge("")), &["first range"]);
    refused(world().next(merge("/z/")), &["no range begins at", "lies in"]);
    done(world().went_on(merge("/z/")), "any more");
    let presplit = World::new(|d| d.presplit = vec![Bytes::from_static(b"/m/")]);
    refused(presplit.next(merge("/m/")), &["spec.keyspace.presplit"]);
    waits(world().moving("c", 0, MovePhase::Copying).next(merge("/m/")), "under way");
}

#[test]
fn aborts() {
    let copying = world().moving("a", 1, MovePhase::Copying);
    assert_eq!(copying.next(abort("/b/", "/d/")), Next::Abort(vec![Rid::new("a")]));
    refused(copying.next(abort("/c/", "")), &["nothing of", "moves"]);
    waits(world().moving("a", 1, MovePhase::Aborting).went_on(abort("", "")), "copy is deleted");
    done(world().went_on(abort("", "")), "any more");
    refused(world().moving("a", 1, MovePhase::Flipped).next(abort("", "")), &["move the range back"]);
    done(world().moving("a", 1, MovePhase::Flipped).went_on(abort("", "")), "point of return");
}

#[test]
fn paused_begins_nothing_but_ends() {
    let paused = World::new(|d| d.mode = RebalanceMode::Paused).moving("a", 1, MovePhase::Copying);
    refused(paused.next(split("/d/")), &["Paused", "set Automatic"]);
    refused(paused.next(to("/c/", "", "shard-0")), &["Paused"]);
    assert!(matches!(paused.next(abort("", "")), Next::Abort(_)));
}

#[test]
fn a_plan_has_the_same_id_as_long_as_its_steps_are_the_same() {
    let step = |rid: &str, to: &str, keys| Step {
        action: Action::Move { rid: Rid::new(rid), range: KeyRange::new("", "m"), to: to.into() },
        from: "shard-0".into(),
        keys,
        bytes: 0,
        work: 0,
        reason: String::new(),
        ready: false,
    };
    let id = plan_id(&[step("a", "shard-1", 1)]);
    assert_eq!(id, plan_id(&[step("b", "shard-1", 2)]), "neither its figures nor ids of ownerships matter");
    assert_ne!(id, plan_id(&[step("a", "shard-2", 1)]));
    assert_ne!(id, plan_id(&[]));
    assert_eq!(id.len(), 8);
}

#[test]
fn records_round_trip() {
    let mut record = OrderRecord::new(to("\u{1}", "", "shard-1"));
    record.steps = vec![StepKey::Split { at: Bytes::from_static(&[0xff, 0]) }];
    assert_eq!(OrderRecord::decode(&record.encode()).unwrap(), record);
    for order in [split("a"), merge("b"), abort("", "c"), Order::Approve { plan: "1f".into() }] {
        assert!(!order.to_string().is_empty());
        let record = OrderRecord::new(order);
        assert_eq!(OrderRecord::decode(&record.encode()).unwrap(), record);
    }
}

#[test]
fn a_move_by_hand_does_not_fill_a_shard_up() {
    let mut w = World::new(|draft| draft.quota_bytes = Some(100 << 20));
    waits(w.next(to("/c/", "/m/", "shard-0")), "the size of [\"/c/\", \"/m/\") is being read");
    w.bytes.insert(Rid::new("b"), 40 << 20);
    w.shards[0].used_bytes = 61 << 20;
    let no_room = "40.0 MiB would take shard-0 over its quota: 39.0 MiB of 100.0 MiB are left";
    refused(w.next(to("/c/", "/m/", "shard-0")), &[no_room, "raise etcd.quota"]);
    w.shards[0].used_bytes = 60 << 20;
    assert!(matches!(w.next(to("/c/", "/m/", "shard-0")), Next::Do(_)));
}
