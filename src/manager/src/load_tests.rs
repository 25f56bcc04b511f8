//! What proxies tell in meta, and what becomes of it.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use sharded_etcd_core::{
    keyspace::{RangeEntry, Rid, ShardIx},
    records::{self, MEMORY, MemoryRecord, TopologyId, load_key},
};
use sharded_etcd_engine::{Engine, EngineConfig};
use sharded_etcd_line::{
    LineOptions,
    bootstrap::{NewShard, bootstrap},
};
use sharded_etcd_shard::Shard;
use tempfile::TempDir;

use super::*;

/// Meta and two shards; shard 0 has the keys below "m", shard 1 the rest.
struct World {
    _dir: TempDir,
    meta: Arc<dyn Shard>,
    line: Arc<Line>,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let open = async |name: &str| {
            Engine::open(EngineConfig::new(dir.path().join(name), name)).await.unwrap() as Arc<dyn Shard>
        };
        let meta = open("meta").await;
        let shards = [open("shard-0").await, open("shard-1").await];
        let new = shards.iter().zip(["shard-0", "shard-1"]);
        let new: Vec<NewShard<'_>> =
            new.map(|(shard, name)| NewShard { name, incarnation: 0, shard: shard.as_ref() }).collect();
        let range = |start: &'static str, end: &'static str, ix: u32| RangeEntry {
            range: KeyRange::new(start, end),
            rid: Rid::new(format!("b-{ix}")),
            shard: ShardIx(ix),
            imported_at: 0,
        };
        let id = TopologyId { uid: "test".into(), cluster_id: 7 };
        bootstrap(meta.as_ref(), &id, &new, &[range("", "m", 0), range("m", "", 1)]).await.unwrap();
        let line = Line::start(Arc::clone(&meta), LineOptions::default()).await.unwrap();
        Self { _dir: dir, meta, line }
    }

    fn loads(&self) -> Loads {
        Loads::new(Arc::clone(&self.line))
    }

    async fn put(&self, key: Bytes, value: Bytes) {
        self.meta.txn(ops::txn(Vec::new(), vec![ops::put(key, value)])).await.unwrap();
    }

    /// What the proxy with this id tells.
    async fn tells(
        &self,
        proxy: u64,
        ranges: &[(&'static str, &'static str, u64, u64)],
        keys: &[(&'static str, u64)],
    ) {
        let ranges = ranges.iter().map(|&(start, end, reads, writes)| records::RangeLoad {
            range: KeyRange::new(start, end),
            reads,
            writes,
            read_bytes: 0,
            written_bytes: 0,
            events: 3,
        });
        let keys =
            keys.iter().map(|&(key, work)| records::KeyLoad { key: Bytes::from(key), work, sure: work });
        let record = LoadRecord { ranges: ranges.collect(), keys: keys.collect() };
        self.put(load_key(proxy), record.encode()).await;
    }

    async fn told(&self) -> MemoryRecord {
        let answer = self.meta.range(get(Bytes::from_static(MEMORY))).await.unwrap();
        MemoryRecord::decode(&answer.kvs[0].value).unwrap()
    }
}

/// Reads anew, however short a while ago that was done.
async fn read(loads: &Loads) {
    loads.state.lock().read_at = None;
    loads.refresh().await;
}

fn view_of(world: &World, i: usize) -> RangeView {
    let cut = world.line.cut();
    let entry = &cut.map.entries()[i];
    RangeView {
        range: entry.range.clone(),
        rid: entry.rid.clone(),
        shard: cut.name(entry.shard).to_owned(),
        keys: 100,
        bytes: 1000,
        work: 0,
        hot: None,
        rests: false,
        cuts: Some(Vec::new()),
        moving_to: None,
        moved_recently: false,
    }
}

/// The range with this index, as a plan sees it now.
fn seen(world: &World, loads: &Loads, i: usize) -> RangeView {
    let mut view = view_of(world, i);
    loads.view(&world.line.cut().map).add_to(&mut view, i, &Rules::default());
    view
}

#[tokio::test]
async fn reports_of_all_proxies_are_laid_on_the_shards() {
    let world = World::new().await;
    let loads = world.loads();
    loads.refresh().await;
    assert!(loads.status(&world.line.cut()).is_none(), "nobody tells anything");
    world.tells(1, &[("", "m", 100, 10), ("m", "", 7, 0)], &[("a", 90), ("x", 7)]).await;
    world.tells(2, &[("", "m", 1151, 0)], &[("a", 60), ("b", 5)]).await;
    world.put(load_key(3), Bytes::from_static(b"no record")).await;
    read(&loads).await;
    let status = loads.status(&world.line.cut()).unwrap();
    // 1251 reads and 10 writes, in two digits; each proxy tells three events for each range.
    let shard = |name: &str, reads, writes, operations, events| ShardLoad {
        shard: name.to_owned(),
        reads,
        writes,
        read_bytes: 0,
        written_bytes: 0,
        watch_events: events,
        operations,
    };
    assert_eq!(status.shards, [shard("shard-0", 1300, 10, 1300, 6), shard("shard-1", 7, 0, 7, 3)]);
    let ranges: Vec<_> =
        status.ranges.iter().map(|r| (r.start.as_str(), r.end.as_str(), r.operations)).collect();
    assert_eq!(ranges, [("", "m", 1300), ("m", "", 7)], "the busiest first");
    let keys: Vec<_> = status.keys.iter().map(|k| (k.key.as_str(), k.shard.as_str(), k.operations)).collect();
    assert_eq!(keys[0], ("a", "shard-0", 150), "{keys:?}");
}

#[tokio::test]
async fn at_most_ten_of_each_are_listed() {
    let world = World::new().await;
    let loads = world.loads();
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
    let keys: Vec<(&'static str, u64)> = names.into_iter().zip(100..).collect();
    world.tells(1, &[("", "m", 2000, 0)], &keys).await;
    read(&loads).await;
    let listed = loads.status(&world.line.cut()).unwrap().keys;
    assert_eq!((listed.len(), listed[0].key.as_str()), (10, "l"));
}

#[tokio::test]
async fn what_was_read_a_moment_ago_is_not_read_again() {
    let world = World::new().await;
    let loads = world.loads();
    world.tells(1, &[("", "m", 50, 0)], &[]).await;
    loads.refresh().await;
    world.tells(1, &[("", "m", 80, 0)], &[]).await;
    // As if it had been read this very moment, however slow this machine is.
    loads.state.lock().read_at = Some(Instant::now() + Duration::from_secs(3600));
    loads.refresh().await;
    assert_eq!(loads.status(&world.line.cut()).unwrap().shards[0].reads, 50);
    read(&loads).await;
    assert_eq!(loads.status(&world.line.cut()).unwrap().shards[0].reads, 80);
}

#[tokio::test]
async fn a_plan_sees_peaks_hot_keys_and_rests() {
    let world = World::new().await;
    let loads = world.loads();
    world.tells(1, &[("", "m", 1000, 0), ("m", "", 0, 1)], &[("c", 600), ("d", 400)]).await;
    read(&loads).await;
    let view = seen(&world, &loads, 0);
    assert_eq!((view.work, view.rests), (1000, false));
    assert_eq!(view.hot.map(|hot| (hot.key, hot.work)), Some((Bytes::from("c"), 600)));
    let cuts = view.cuts.unwrap();
    assert!(cuts.iter().any(|cut| cut.at == "d" && cut.work_before == 600), "{cuts:?}");
    assert_eq!(seen(&world, &loads, 1).work, 4, "a write counts four reads");
    // The load goes, its peak stays; a range that was moved rests.
    world.tells(1, &[("", "m", 0, 0)], &[]).await;
    read(&loads).await;
    loads.moved(&KeyRange::new("", "m"));
    let view = seen(&world, &loads, 0);
    // A peak counts half after a quarter of an hour, so nearly all of it is there.
    assert!((500..=1000).contains(&view.work) && view.rests, "{view:?}");
    assert!(!seen(&world, &loads, 1).rests);
    // Another one of the same process takes it over.
    let other = world.loads();
    assert_eq!(seen(&world, &other, 0).work, 0);
    other.adopt(&loads);
    let adopted = seen(&world, &other, 0);
    assert!(adopted.work >= 500 && adopted.rests, "{adopted:?}");
}

#[tokio::test]
async fn next_to_no_load_is_none() {
    let world = World::new().await;
    let loads = world.loads();
    world.tells(1, &[("", "b", 1, 0), ("b", "", 0, 0)], &[]).await;
    read(&loads).await;
    let mut view = view_of(&world, 1);
    loads.view(&world.line.cut().map).add_to(&mut view, 1, &Rules::default());
    assert_eq!(view, view_of(&world, 1));
}

#[tokio::test]
async fn the_next_leader_is_told_what_to_remember() {
    let world = World::new().await;
    let (first, next) = (world.loads(), world.loads());
    first.recall().await.unwrap();
    first.tell(Vec::new()).await.unwrap();
    assert!(world.meta.range(ops::range_request(&KeyRange::prefix(MEMORY))).await.unwrap().kvs.is_empty());
    world.tells(1, &[("", "m", 1000, 0)], &[]).await;
    read(&first).await;
    assert_eq!(seen(&world, &first, 0).work, 1000);
    first.moved(&KeyRange::new("", "m"));
    first.tell(Vec::new()).await.unwrap();
    let told = world.told().await;
    assert_eq!(told.rests.len(), 1);
    assert_eq!((told.rests[0].range.end.as_ref(), told.rests[0].times), (b"m".as_slice(), 1));
    // It is told once, not in each round.
    let written = |loads: &Loads| loads.state.lock().told.as_ref().map(|(at, _)| *at);
    first.state.lock().told.as_mut().unwrap().0 += Duration::from_secs(3600);
    let at = written(&first);
    first.tell(Vec::new()).await.unwrap();
    assert_eq!(written(&first), at);
    // The load has gone meanwhile; the next one knows of it, and of the move.
    world.tells(1, &[("", "m", 0, 0)], &[]).await;
    read(&next).await;
    assert_eq!(seen(&world, &next, 0).work, 0);
    next.recall().await.unwrap();
    let known = seen(&world, &next, 0);
    assert!(known.rests && known.work >= 500, "{known:?}");
    // And told again when it is old, or another move is over.
    next.moved(&KeyRange::new("m", ""));
    next.tell(Vec::new()).await.unwrap();
    assert_eq!(world.told().await.rests.len(), 2);
    // What people aborted goes along, and is told at once.
    let aborted = vec![RangeAborted { range: KeyRange::new("m", "q"), rest_s: 600 }];
    next.tell(aborted.clone()).await.unwrap();
    assert_eq!(world.told().await.aborted, aborted);
    assert_eq!(world.loads().recall().await.unwrap(), aborted);
    next.tell(Vec::new()).await.unwrap();
    assert!(world.told().await.aborted.is_empty());
    // A record of a newer release is not guessed at, and stops nobody.
    world.put(Bytes::from_static(MEMORY), Bytes::from_static(br#"{"v":99,"rests":[],"peaks":[]}"#)).await;
    let last = world.loads();
    last.recall().await.unwrap();
    assert!(!seen(&world, &last, 0).rests);
}
