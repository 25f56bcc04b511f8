//! Moves over real (embedded) shards: whatever happens on the way, no acknowledged write is lost or changed.
#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use rand::{Rng, SeedableRng, rngs::StdRng};
use sharded_etcd_core::{
    keyspace::{KeyRange, ShardIx},
    moves::{Effect, ops},
    records::{MovePhase, lease_shadow_key},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_manager::{Failpoints, ManagerError, Outcome, Point, Proceed, Reshaper, When, run_move};
use world::{Client, World};

async fn load(client: &Client, prefix: &str, keys: usize) {
    for i in 0..keys {
        client.put(&format!("{prefix}{i:05}"), &format!("value {i}"), 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_keeps_everything() {
    let world = World::new(3).await;
    let client = Client::new(&world);
    load(&client, "a", 300).await;
    load(&client, "z", 20).await;
    client.put("a00007", "again", 0).await;
    client.delete("a00008").await;
    let rid = world.plan("a", 2, "one").await;
    let outcome = run_move(&world.context(Failpoints::default()), &rid, None).await.unwrap();
    assert_eq!(outcome, Outcome::Moved);
    assert_eq!(world.owner("a").0, 2);
    client.check().await;
    world.assert_clean(3).await;
    // Keys go on from where they were, and back again.
    client.put("a00007", "third", 0).await;
    client.delete("a00009").await;
    client.put("a00009", "born again", 0).await;
    client.check().await;
    let rid = world.plan("a", 0, "two").await;
    assert_eq!(run_move(&world.context(Failpoints::default()), &rid, None).await.unwrap(), Outcome::Moved);
    client.check().await;
    world.assert_clean(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moves_under_writes_keep_everything() {
    let world = World::new(3).await;
    let client = Client::new(&world);
    load(&client, "a", 500).await;
    let stop = Arc::new(AtomicBool::new(false));
    // The writers' keys are apart, so that each model entry has one writer.
    let writers: Vec<_> = ["a", "b", "c", "x"]
        .into_iter()
        .enumerate()
        .map(|(i, prefix)| {
            tokio::spawn(Arc::clone(&client).run(prefix, i as u64 + 1, 400, Arc::clone(&stop)))
        })
        .collect();
    for (n, to) in [2, 1, 0, 2].into_iter().enumerate() {
        let rid = world.plan("a", to, &format!("m{n}")).await;
        let context = world.context(Failpoints::default());
        let outcome = run_move(&context, &rid, None).await.unwrap();
        assert_eq!(outcome, Outcome::Moved);
        assert_eq!(world.owner("a").0, to);
        assert_eq!(context.progress.counters.take_stalls().len(), 1);
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    assert!(client.writes.load(Ordering::Relaxed) > 500);
    client.check().await;
    world.assert_clean(3).await;
}

/// Runs the move with the executor killed at one point, the first time that it comes there, then with another executor.
async fn killed_at(point: Point, give_up: Option<&str>) -> bool {
    let world = World::new(3).await;
    let client = Client::new(&world);
    load(&client, "a", 40).await;
    let rid = world.plan("a", 2, "killed").await;
    if give_up.is_some() {
        // An executor before that has copied something, so that there is something to be undone.
        let copied = Failpoints::new(|at| {
            if at.step == "copy" && at.when == When::After { Proceed::Die } else { Proceed::Go }
        });
        assert!(run_move(&world.context(copied), &rid, None).await.is_err());
    }
    let hits = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&hits);
    let failpoints = Failpoints::new(move |at| {
        if at == point && counted.fetch_add(1, Ordering::Relaxed) == 0 { Proceed::Die } else { Proceed::Go }
    });
    let first = run_move(&world.context(failpoints), &rid, give_up.map(str::to_owned)).await;
    let killed = match first {
        Err(ManagerError::Failpoint(_)) => true,
        Ok(_) => false,
        Err(error) => panic!("{point}: {error}"),
    };
    // Between the two executors clients go on; a closed source waits for the second one.
    client.put("zz", "elsewhere", 0).await;
    let second = run_move(&world.context(Failpoints::default()), &rid, None).await.unwrap();
    let owner = world.owner("a").0;
    match &second {
        Outcome::Moved => assert_eq!(owner, 2, "{point}"),
        Outcome::Aborted(reason) => {
            assert_eq!(owner, 0, "{point}");
            assert!(!reason.is_empty());
        }
        Outcome::NotFound => assert!(!killed || point.step == Effect::Forget.name(), "{point}"),
    }
    client.put("a00001", "after", 0).await;
    client.check().await;
    world.assert_clean(3).await;
    killed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_before_or_after_any_step_is_resumed() {
    let steps = Effect::NAMES.iter().copied().chain(["copy", "tail", "verify", "drain", "purge"]);
    let points = steps.flat_map(|step| [When::Before, When::After].map(|when| Point { step, when }));
    let tried = futures::stream::iter(points)
        .map(|point| async move {
            let mut killed = killed_at(point, None).await;
            killed |= killed_at(point, Some("a test wants it")).await;
            assert!(killed, "{point} was never reached");
        })
        .buffer_unordered(8);
    assert_eq!(tried.count().await, 34);
}

/// Executors are killed at any moment, also between a Txn and its answer, and doubled, and one of them wants to abort.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn executors_killed_doubled_and_at_odds_keep_everything() {
    let world = World::new(3).await;
    let client = Client::new(&world);
    load(&client, "a", 300).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = ["a", "b"]
        .into_iter()
        .enumerate()
        .map(|(i, prefix)| {
            tokio::spawn(Arc::clone(&client).run(prefix, i as u64 + 1, 300, Arc::clone(&stop)))
        })
        .collect();
    let seed: u64 = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (mut moved, mut aborted) = (0, 0);
    for n in 0..12u32 {
        let (owner, _) = world.owner("a");
        let to = (owner + 1 + random.random_range(0..2)) % 3;
        let rid = world.plan("a", to, &format!("m{n}")).await;
        while world.record(&rid).await.is_some() {
            let give_up = random.random_bool(0.1).then(|| "a test wants it".to_owned());
            let runs: Vec<_> = (0..random.random_range(1..3))
                .map(|_| {
                    let (context, rid, give_up) =
                        (world.context(Failpoints::default()), rid.clone(), give_up.clone());
                    tokio::spawn(async move { run_move(&context, &rid, give_up).await })
                })
                .collect();
            let most = Duration::from_millis(random.random_range(1..400));
            let _ = tokio::time::timeout(most, futures::future::join_all(runs.iter().map(finished))).await;
            for run in runs {
                run.abort();
            }
        }
        if world.owner("a").0 == to { moved += 1 } else { aborted += 1 }
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(moved + aborted, 12);
    client.check().await;
    world.assert_clean(3).await;
}

async fn finished<T>(task: &tokio::task::JoinHandle<T>) {
    while !task.is_finished() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_05_leases_move_along_and_end_meanwhile() {
    let world = World::new(3).await;
    let client = Client::new(&world);
    for lease in [11, 12, 13] {
        world.grant(lease).await;
        world.shadow(lease, 0).await;
        for i in 0..60 {
            client.put(&format!("a{lease}-{i:03}"), "leased", lease).await;
        }
    }
    // One lease ends while its keys are copied: its keys first, then its record.
    let rid = world.plan("a", 2, "leases").await;
    let copied =
        Failpoints::new(
            |at| {
                if at.step == "copy" && at.when == When::After { Proceed::Die } else { Proceed::Go }
            },
        );
    assert!(run_move(&world.context(copied), &rid, None).await.is_err());
    for i in 0..60 {
        client.delete(&format!("a12-{i:03}")).await;
    }
    world.end_lease(12).await;
    // Its shadow on the destination is dropped behind the executor's back, with the copies that hang on it.
    let _ = world.shard(2).await.lease_revoke(pb::LeaseRevokeRequest { id: 12 }).await;
    // And one has ended before anything of it was imported.
    assert_eq!(run_move(&world.context(Failpoints::default()), &rid, None).await.unwrap(), Outcome::Moved);
    client.check().await;
    world.assert_clean(3).await;
    for (lease, keys) in [(11, 60), (12, 0), (13, 60)] {
        let ask = pb::LeaseTimeToLiveRequest { id: lease, keys: true };
        let shadow = world.shard(2).await.lease_time_to_live(ask).await.unwrap();
        assert_eq!(shadow.keys.len(), keys, "keys of lease {lease} on the destination");
        if keys > 0 {
            assert!(shadow.ttl > 1_000_000_000);
            let registered =
                pb::RangeRequest { key: lease_shadow_key(lease, ShardIx(2)), ..Default::default() };
            assert_eq!(
                world.meta.range(registered).await.unwrap().kvs.len(),
                1,
                "lease {lease} is not registered"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_05_keys_of_a_lease_that_is_over_come_without_it_and_go() {
    let world = World::new(3).await;
    let client = Client::new(&world);
    world.grant(21).await;
    world.shadow(21, 0).await;
    client.put("a-leased", "v", 21).await;
    client.put("a-other", "v", 0).await;
    let rid = world.plan("a", 1, "over").await;
    // The copy is to read what was before the deletes: the cursor is fixed now.
    let opened =
        Failpoints::new(
            |at| {
                if at.step == "open" && at.when == When::After { Proceed::Die } else { Proceed::Go }
            },
        );
    assert!(run_move(&world.context(opened), &rid, None).await.is_err());
    client.delete("a-leased").await;
    world.end_lease(21).await;
    assert_eq!(run_move(&world.context(Failpoints::default()), &rid, None).await.unwrap(), Outcome::Moved);
    client.check().await;
    world.assert_clean(3).await;
}

/// Splits and merges under writes, killed before and after each step, found again and finished.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn splits_and_merges_survive_crashes_under_writes() {
    let world = World::new(3).await;
    let client = Client::new(&world);
    load(&client, "a", 100).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(Arc::clone(&client).run("a", 7, 100, Arc::clone(&stop)));
    let reshaper = |failpoints| Reshaper {
        line: Arc::clone(&world.line),
        shards: Arc::clone(&world.shards),
        failpoints,
    };
    let sound = reshaper(Failpoints::default());
    let mut n = 0;
    for step in ["reshape-open", "reshape-log", "reshape-close"] {
        for when in [When::Before, When::After] {
            let point = Point { step, when };
            let killed =
                || reshaper(Failpoints::new(move |at| if at == point { Proceed::Die } else { Proceed::Go }));
            let before = world.line.cut().map.entries().len();
            n += 1;
            let at = bytes::Bytes::from(format!("a{:05}", n * 10));
            let rid = world.owner("a00000").1;
            assert!(killed().split(&rid, &at, &format!("{n}")).await.is_err());
            sound.finish_pending(ShardIx(0)).await.unwrap();
            world.line.refresh().await.unwrap();
            let rid = world.owner("a00000").1;
            if world.line.cut().map.entries().len() == before {
                assert_eq!(point, Point { step: "reshape-open", when: When::Before });
                assert!(sound.split(&rid, &at, &format!("{n}b")).await.unwrap().is_some());
            }
            let (left, right) = (world.owner("a00000").1, world.owner(std::str::from_utf8(&at).unwrap()).1);
            assert_ne!(left, right);
            // The right child moves away and comes back, then both become one.
            for (to, id) in [(2, format!("away{n}")), (0, format!("back{n}"))] {
                let rid = world.plan(std::str::from_utf8(&at).unwrap(), to, &id).await;
                let moved = run_move(&world.context(Failpoints::default()), &rid, None).await.unwrap();
                assert_eq!(moved, Outcome::Moved);
            }
            let right = world.owner(std::str::from_utf8(&at).unwrap()).1;
            assert!(killed().merge(&left, &right, &format!("m{n}")).await.is_err());
            sound.finish_pending(ShardIx(0)).await.unwrap();
            world.line.refresh().await.unwrap();
            if world.owner("a00000").1 == left {
                assert!(sound.merge(&left, &right, &format!("m{n}b")).await.unwrap().is_some());
            }
            assert_eq!(world.line.cut().map.entries().len(), before);
        }
    }
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    client.check().await;
    world.assert_clean(3).await;
}

/// A split and a move of one range that meet wait for each other: the move gives way at once, as it can be undone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_gives_way_to_a_split_that_was_begun_before() {
    let world = World::new(3).await;
    let client = Client::new(&world);
    load(&client, "a", 50).await;
    let reshaper = |failpoints| Reshaper {
        line: Arc::clone(&world.line),
        shards: Arc::clone(&world.shards),
        failpoints,
    };
    let at = bytes::Bytes::from_static(b"a00020");
    let opened = Point { step: "reshape-open", when: When::After };
    let killed = reshaper(Failpoints::new(move |p| if p == opened { Proceed::Die } else { Proceed::Go }));
    let (_, rid) = world.owner("a");
    assert!(killed.split(&rid, &at, "1").await.is_err());
    let sound = reshaper(Failpoints::default());
    assert_eq!(world.plan("a", 2, "meets").await, rid);
    sound.finish_pending(ShardIx(0)).await.unwrap();
    assert_eq!(world.owner("a00030").1, rid, "not logged while the move is written down");
    let context = world.context(Failpoints::default());
    let moved = tokio::time::timeout(context.options.wait_max / 2, run_move(&context, &rid, None)).await;
    let Ok(Ok(Outcome::Aborted(why))) = moved else { panic!("{moved:?}") };
    assert!(why.contains("splitting or merging"), "{why}");
    assert!(sound.finish_pending(ShardIx(0)).await.unwrap());
    world.line.refresh().await.unwrap();
    assert_ne!(world.owner("a00030").1, world.owner("a00010").1);

    // One that is not begun yet is not begun while the move is written down.
    let left = world.plan("a", 2, "first").await;
    assert_eq!(sound.split(&left, &bytes::Bytes::from_static(b"a00010"), "2").await.unwrap(), None);
    assert_eq!(run_move(&context, &left, None).await.unwrap(), Outcome::Moved);
    client.check().await;
    world.assert_clean(3).await;
}

/// A destination that cannot be reached: writers of the source do not wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_destination_releases_the_source() {
    let world = World::new(3).await;
    let client = Client::new(&world);
    load(&client, "a", 50).await;
    let rid = world.plan("a", 2, "lost").await;
    let lost = Arc::clone(&world);
    let failpoints = Failpoints::new(move |at| {
        if at.step == "close" && at.when == When::After {
            lost.directory.remove("shard-2");
        }
        Proceed::Go
    });
    let error = run_move(&world.context(failpoints), &rid, None).await.unwrap_err();
    assert!(error.to_string().contains("shard-2"), "{error}");
    assert_eq!(world.record(&rid).await.unwrap().phase, MovePhase::Aborting);
    client.put("a00001", "not held", 0).await;
    let back = Arc::clone(&world.engines.lock()[2]);
    world.directory.insert("shard-2", back);
    let outcome = run_move(&world.context(Failpoints::default()), &rid, None).await.unwrap();
    assert!(matches!(outcome, Outcome::Aborted(_)));
    client.check().await;
    world.assert_clean(3).await;
}

/// One revision deletes more keys than one import takes; an executor dies after each part, and the next goes on inside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_10_a_revision_of_thousands_of_events_is_imported_in_parts() {
    let world = World::new(3).await;
    let client = Client::new(&world);
    load(&client, "a", 1_300).await;
    let rid = world.plan("a", 2, "one").await;
    let copied = Failpoints::new(|at| if at.step == "tail" { Proceed::Die } else { Proceed::Go });
    assert!(run_move(&world.context(copied), &rid, None).await.is_err());
    let source = world.shard(0).await;
    let delete = ops::delete_range(&KeyRange::new("a", "a01250"));
    let deleted = source.txn(ops::txn(vec![], vec![delete])).await.unwrap();
    world.line.cover(ShardIx(0), deleted.header.unwrap().revision).await.unwrap();
    client.model.lock().retain(|key, _| key.as_ref() >= b"a01250".as_slice());

    let mut inside = 0;
    let outcome = loop {
        let once = Arc::new(AtomicUsize::new(0));
        let failpoints = Failpoints::new(move |at| {
            let first =
                at.step == "tail" && at.when == When::After && once.fetch_add(1, Ordering::Relaxed) == 0;
            // Four executors die; what is left after that is for the fifth.
            if first && inside < 4 { Proceed::Die } else { Proceed::Go }
        });
        match run_move(&world.context(failpoints), &rid, None).await {
            Ok(outcome) => break outcome,
            Err(ManagerError::Failpoint(_)) => inside += 1,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!((outcome, inside), (Outcome::Moved, 4));
    client.check().await;
    world.assert_clean(3).await;
}
