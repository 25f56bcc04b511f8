//! The traps of moves that docs/consistency.md numbers, one by one: each has a Txn that comes at the worst moment.

use sharded_etcd_etcd_api::messages as pb;

use super::{
    Effect, MapView, Observation, Stored, import_txn, ops, purge_chunk_txn,
    simulation::{KEY, World, claims, look_at_destination, look_at_source, new_rid, range, rid},
};
use crate::{
    keyspace::{KeyRange, RangeEntry, Rid, ShardIx},
    line::{Entry, Fold, Init, Join},
    records::{
        self, ClaimState, Cursor, CursorStage, FENCE_OPEN, MapRecord, MoveRecord, Record, claims_key,
        fence_key, move_key, purge_key,
    },
};

impl World {
    /// What an executor that looks now sees.
    fn seen(&self) -> Observation {
        let record = self.meta.get(&move_key(&rid()));
        let map = self.meta.get(&records::MAP.into()).unwrap();
        Observation {
            record: record
                .map(|r| Stored { value: MoveRecord::decode(&r.value).unwrap(), modified: r.modified }),
            map: MapView {
                modified: map.modified,
                generation: MapRecord::decode(&map.value).unwrap().generation,
                owner: Some(ShardIx(0)),
            },
            source: Some(look_at_source(&self.source)),
            destination: Some(look_at_destination(&self.destination)),
        }
    }

    /// Delivers the Txn of an effect that was decided on `seen`; its revision, if its guards held.
    fn deliver_effect(&mut self, effect: &Effect, seen: &Observation) -> Option<i64> {
        self.store(effect.place()).txn(&effect.txn(seen).unwrap())
    }

    /// An executor that is alone does this now.
    fn does(&mut self, effect: &Effect) -> i64 {
        let seen = self.seen();
        self.deliver_effect(effect, &seen).unwrap_or_else(|| panic!("{effect:?} is refused"))
    }

    /// Imports the key as the source has it, on a cursor with this mod revision.
    fn import(&self, cursor: i64) -> pb::TxnRequest {
        let value = self.source.get(&KEY.into()).unwrap().value;
        let kv = pb::KeyValue { key: KEY.into(), value, ..Default::default() };
        let next =
            Cursor { copy_at: 1, stage: CursorStage::Tail { revision: self.source.revision + 1, sub: 0 } };
        import_txn("1", cursor, &[super::Change::Put(kv)], &next)
    }

    fn cursor(&self) -> i64 {
        self.seen().destination.unwrap().cursor.unwrap().modified
    }

    /// Up to the seal; the local revisions of close and seal.
    fn sealed(&mut self) -> (i64, i64) {
        self.does(&Effect::Open { copy_at: self.source.revision });
        let import = self.import(self.cursor());
        self.destination.txn(&import).unwrap();
        let closed_at = self.does(&Effect::Close);
        (closed_at, self.does(&Effect::Seal { closed_at }))
    }

    fn fence(&self) -> Option<bytes::Bytes> {
        self.source.get(&fence_key(&rid())).map(|fence| fence.value)
    }
}

#[test]
fn trap_02_a_zombies_close_after_an_abort_closes_nothing() {
    let mut world = World::new(1);
    world.does(&Effect::Open { copy_at: 1 });
    let before = world.seen();
    world.does(&Effect::Abort);
    world.does(&Effect::Release);
    assert_eq!(world.deliver_effect(&Effect::Close, &before), None);
    assert_eq!(world.fence().unwrap(), FENCE_OPEN, "writers go on");
}

#[test]
fn trap_02_a_zombies_import_after_seal_or_flip_changes_nothing() {
    let mut world = World::new(1);
    world.does(&Effect::Open { copy_at: world.source.revision });
    let stale = world.import(world.cursor());
    world.destination.txn(&stale).unwrap();
    let also_stale = world.import(world.cursor());
    let from_local = world.does(&Effect::Close);
    let to_local = world.does(&Effect::Seal { closed_at: from_local });
    assert_eq!(world.destination.txn(&also_stale), None, "after the seal");
    world.does(&Effect::Flip { from_local, to_local });
    // A client writes by the new map; what was copied long ago must not come back.
    world.destination.txn(&ops::txn(vec![], vec![ops::put(KEY.into(), "new")])).unwrap();
    assert_eq!(world.destination.txn(&stale), None);
    assert_eq!(world.destination.txn(&also_stale), None);
    assert_eq!(world.destination.get(&KEY.into()).unwrap().value, "new");
}

#[test]
fn trap_02_a_zombies_open_makes_no_second_cursor() {
    let mut world = World::new(1);
    let before = world.seen();
    world.does(&Effect::Open { copy_at: 1 });
    assert_eq!(world.deliver_effect(&Effect::Open { copy_at: 1 }, &before), None);
    // Also after an abort that has undone the first one altogether.
    world.does(&Effect::Abort);
    world.does(&Effect::Release);
    world.does(&Effect::Void);
    world.does(&Effect::PurgedDestination);
    world.does(&Effect::ForgetCursor);
    assert_eq!(world.deliver_effect(&Effect::Open { copy_at: 1 }, &before), None);
    assert_eq!(claims(&world.destination).value.claims, []);
}

#[test]
fn trap_02_a_zombies_purge_after_the_range_came_back_deletes_nothing() {
    let mut world = World::new(1);
    let (from_local, to_local) = world.sealed();
    world.does(&Effect::Flip { from_local, to_local });
    let before = world.seen();
    world.does(&Effect::PurgeSource);
    let guard = world.seen().source.unwrap().purge.unwrap();
    let chunk = purge_chunk_txn(purge_key(&rid()), guard, &range());
    world.source.txn(&chunk).unwrap();
    world.does(&Effect::PurgedSource);
    // Another move brings the range back under another rid, with the key.
    let back = Rid::new("m-2");
    let claimed = claims(&world.source).value.with(&range(), &back, ClaimState::Open);
    let puts = vec![
        ops::put(claims_key(), claimed.encode()),
        ops::put(fence_key(&back), FENCE_OPEN),
        ops::put(KEY.into(), "came back"),
    ];
    world.source.txn(&ops::txn(vec![], puts)).unwrap();
    assert_eq!(world.deliver_effect(&Effect::PurgeSource, &before), None);
    assert_eq!(world.source.txn(&chunk), None);
    assert_eq!(world.deliver_effect(&Effect::PurgedSource, &before), None);
    assert_eq!(world.source.get(&KEY.into()).unwrap().value, "came back");
    assert_eq!(world.source.get(&fence_key(&back)).unwrap().value, FENCE_OPEN);
}

#[test]
fn trap_03_of_an_abort_and_a_flip_under_way_at_once_one_is_taken() {
    for flip_first in [true, false] {
        let mut world = World::new(1);
        let (from_local, to_local) = world.sealed();
        let seen = world.seen();
        let flip = Effect::Flip { from_local, to_local };
        let (first, second) = if flip_first { (flip, Effect::Abort) } else { (Effect::Abort, flip) };
        assert!(world.deliver_effect(&first, &seen).is_some());
        assert_eq!(world.deliver_effect(&second, &seen), None, "{second:?} after {first:?}");
        if !flip_first {
            // The sealed fence was open already, and no log ever names it.
            let log = world.meta.get(&records::CUT_LATEST.into());
            assert_eq!(log, None);
            world.does(&Effect::Release);
            assert_eq!(world.fence().unwrap(), FENCE_OPEN);
            world.does(&Effect::Void);
            assert_eq!(world.destination.get(&fence_key(&new_rid())), None);
        }
    }
}

#[test]
fn trap_04_a_flip_covers_the_close_and_the_seal() {
    let mut world = World::new(1);
    let (source, destination) = (ShardIx(0), ShardIx(1));
    let join = |name: &str, l0| Join { shard: name.into(), incarnation: 0, l0, etcd_cluster_id: 1 };
    let before = RangeEntry { range: range(), rid: rid(), shard: source, imported_at: 0 };
    let other = |start: &'static str, end: &'static str, rid| RangeEntry {
        range: KeyRange::new(start, end),
        rid: Rid::new(rid),
        shard: source,
        imported_at: 0,
    };
    let init = Init {
        cluster_id: 7,
        joins: vec![join("shard-0", world.source.revision), join("shard-1", world.destination.revision)],
        ranges: vec![other("", "a", "below"), before, other("z", "", "above")],
    };
    let mut fold = Fold::start(1, &Entry::Init(init)).unwrap();
    let (from_local, to_local) = world.sealed();
    // Nobody has cut yet: neither close nor seal, nor an import, is part of the line.
    assert_eq!(fold.global(source, from_local), None);
    assert_eq!(fold.global(destination, to_local), None);
    world.does(&Effect::Flip { from_local, to_local });
    let logged = world.meta.get(&records::CUT_LATEST.into()).unwrap().value;
    fold.apply(2, &Entry::decode(&logged).unwrap()).unwrap();
    let flipped = fold.revision;
    let (closed, sealed) = (fold.global(source, from_local), fold.global(destination, to_local));
    assert!(closed.is_some_and(|n| n < flipped) && sealed.is_some_and(|n| n < flipped));
    assert_eq!(fold.map().owner(KEY).shard, destination);
    // Every import has a number at which the source still owns the key, so that no watcher takes it for a put.
    for local in 1..=to_local {
        if let Some(number) = fold.global(destination, local) {
            assert_eq!(fold.map_at(number).owner(KEY).shard, source, "local revision {local}");
        }
    }
}

#[test]
fn trap_14_imports_are_large_and_fit_a_shard() {
    let change = |at: usize| {
        let kv = pb::KeyValue { key: format!("k{at:04}").into(), value: "v".into(), ..Default::default() };
        super::Change::Put(kv)
    };
    let all: Vec<_> = (0..super::BATCH_KEYS_MAX).map(change).collect();
    let cursor = Cursor { copy_at: 1, stage: CursorStage::Tail { revision: 2, sub: 0 } };
    let txn = import_txn("1", 1, &all, &cursor);
    // A cursor compare for each 127 keys was slow; shards run with at least 10,000 operations in a Txn.
    assert!(all.len() > 3 * 127);
    assert!(txn.success.len() <= 10_000 && txn.compare.len() == 1);
}
