//! Moves over real (embedded) shards: whatever happens on the way, no acknowledged write is lost or changed.
#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use sharded_etcd_core::moves::Effect;
use sharded_etcd_manager::{Failpoints, ManagerError, Outcome, Point, Proceed, When, run_move};
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
    let mut reached = Vec::new();
    let steps = Effect::NAMES.iter().copied().chain(["copy", "tail", "verify", "drain", "purge"]);
    for step in steps {
        for when in [When::Before, When::After] {
            let point = Point { step, when };
            let mut killed = killed_at(point, None).await;
            killed |= killed_at(point, Some("a test wants it")).await;
            assert!(killed, "{point} was never reached");
            reached.push(point);
        }
    }
    assert_eq!(reached.len(), 34);
}
