//! Who is taken in and let go in a cluster: incarnations, generations, and what the operator is told of them.
#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde_json::{Value, json};
use sharded_etcd_admin_api::v1::{StatusRequest, admin_server::Admin};
use sharded_etcd_core::{
    line::Entry,
    records::{CUT_LATEST, ProxyRecord, Record, proxy_key},
    topology::{Draft, Topology, validate},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_manager::{AdminService, Manager, ManagerOptions};
use sharded_etcd_shard::{Shard, ShardError};
use sharded_etcd_testkit::wait_until;
use tokio::sync::watch;
use tonic::{Code, Request};
use world::{OnTxn, World, engine, run_txn};

fn topology(shards: u32, generation: i64) -> Arc<Topology> {
    let mut topology = validate(Draft::new("demo", shards)).unwrap();
    topology.generation = generation;
    Arc::new(topology)
}

async fn register(world: &World, generation: Option<i64>, shards: Option<u64>) {
    let record =
        ProxyRecord { name: "proxy-a".into(), client_urls: vec![], revision: i64::MAX, generation, shards };
    let put = pb::PutRequest { key: proxy_key(7), value: record.encode(), ..Default::default() };
    world.meta.put(put).await.unwrap();
}

/// Asks the admin service until its answer is as wanted.
async fn until(admin: &AdminService, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let last = parking_lot::Mutex::new(Value::Null);
    let found = wait_until(what, Duration::from_secs(60), || async {
        let answer = admin.status(Request::new(StatusRequest {})).await.unwrap();
        let status: Value = serde_json::from_str(&answer.into_inner().status_json).unwrap();
        *last.lock() = status.clone();
        holds(&status).then_some(status)
    });
    match found.await {
        Ok(status) => status,
        Err(error) => panic!("{error}: {:#}", last.lock()),
    }
}

fn shard<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["topology"].as_array().unwrap().iter().find(|s| s["shard"] == name).unwrap_or(&Value::Null)
}

fn is_join(request: &pb::TxnRequest) -> bool {
    let is_join = |op: &pb::RequestOp| match &op.request {
        Some(pb::Request::RequestPut(put)) => {
            put.key == CUT_LATEST && matches!(Entry::decode(&put.value), Ok(Entry::Join(_)))
        }
        _ => false,
    };
    request.success.iter().any(is_join)
}

fn message(shard: &Value) -> &str {
    shard["message"].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_join_leave_and_come_back_as_the_operator_makes_them() {
    let world = World::new(2).await;
    register(&world, Some(4), None).await;
    let (wanted, received) = watch::channel(topology(3, 5));
    let mut options =
        ManagerOptions::new(Arc::clone(&world.line), Arc::clone(&world.shards), received, "one");
    options.interval = Duration::from_millis(50);
    options.drain_history_max = Duration::from_secs(3);
    options.settle = Duration::ZERO;
    let manager = Manager::start(options);
    let admin = AdminService::new(
        Arc::clone(&world.line),
        Arc::clone(&world.shards),
        Arc::clone(manager.sizes()),
        Arc::new(|_: &str| Err("not asked here".to_owned())),
        None,
    );

    // It runs, but a proxy does not know it yet.
    let first: Arc<dyn Shard> = engine(&world.dir, "shard-2").await;
    world.directory.insert_incarnation("shard-2", 0, first);
    let waits = until(&admin, "shard-2 waits", |s| !message(shard(s, "shard-2")).is_empty()).await;
    let joining = shard(&waits, "shard-2");
    assert_eq!((&joining["phase"], &joining["incarnation"]), (&json!("Joining"), &json!(0)));
    assert_eq!((&joining["members"], &joining["ready"]), (&json!(1), &json!(1)));
    assert!(message(joining).contains("proxy proxy-a has not taken up generation 5"), "{joining}");
    assert_eq!(waits["observedGeneration"], 5);
    assert_eq!(waits.get("left"), None);
    register(&world, Some(5), Some(1)).await;
    until(&admin, "the shards are compared", |s| {
        message(shard(s, "shard-2")).contains("proxy proxy-a does not know the same shards")
    })
    .await;
    register(&world, Some(5), Some(world.directory.digest())).await;
    until(&admin, "shard-2 serves", |s| shard(s, "shard-2")["phase"] == "Serving").await;

    // It leaves.
    wanted.send_replace(topology(2, 6));
    let left = until(&admin, "shard-2 has left", |s| !s["left"].is_null()).await;
    assert_eq!(left["left"], json!([{"shard": "shard-2", "incarnation": 0}]));
    assert!(shard(&left, "shard-2").is_null());

    // The same one is not taken in again, whatever it holds; the next one is, also with a proxy of an older release.
    register(&world, None, None).await;
    wanted.send_replace(topology(3, 7));
    let waits = until(&admin, "shard-2 waits again", |s| message(shard(s, "shard-2")).contains("left")).await;
    assert!(message(shard(&waits, "shard-2")).contains("incarnation 0 of it has left"), "{waits:#}");
    let second: Arc<dyn Shard> = engine(&world.dir, "shard-2-again").await;
    world.directory.insert_incarnation("shard-2", 3, second);
    let back = until(&admin, "shard-2 is back", |s| shard(s, "shard-2")["phase"] == "Serving").await;
    assert_eq!(shard(&back, "shard-2")["incarnation"], 3);
    assert_eq!(back["left"], json!([{"shard": "shard-2", "incarnation": 0}]));
    assert_eq!(back["observedGeneration"], 7);

    // Begun, and dropped before it joined: nothing is told of it. One that is wanted and not there is.
    wanted.send_replace(topology(4, 8));
    let waits = until(&admin, "shard-3 waits", |s| !message(shard(s, "shard-3")).is_empty()).await;
    assert_eq!(shard(&waits, "shard-3")["phase"], "Joining");
    wanted.send_replace(topology(3, 9));
    let dropped = until(&admin, "shard-3 is dropped", |s| s["observedGeneration"] == 9).await;
    assert!(shard(&dropped, "shard-3").is_null());
    assert_eq!(dropped["left"].as_array().unwrap().len(), 1);
    manager.close().await;
    let alone = until(&admin, "nobody leads", |s| s["observedGeneration"].is_null()).await;
    assert_eq!(alone["topology"].as_array().unwrap().len(), 3);
}

/// A join may be under way to meta for long. Once it was said that the shard is not part of the line, the operator may remove
/// it: the join must not arrive after that, also if the same manager leads on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_arrives_late_does_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let meta: Arc<dyn Shard> = engine(&dir, "meta").await;
    // The first join is kept on its way: whoever sent it has no answer.
    let kept = Arc::new(Mutex::new(None));
    let keeping = OnTxn::over(&meta, {
        let kept = Arc::clone(&kept);
        move |meta, request| {
            let mut kept = kept.lock();
            if is_join(&request) && kept.is_none() {
                *kept = Some(request);
                return Box::pin(async { Err(ShardError::ambiguous(Code::DeadlineExceeded, "no answer")) });
            }
            run_txn(meta, request)
        }
    });
    let shard: Arc<dyn Shard> = engine(&dir, "shard-0").await;
    let world = World::over(dir, keeping, vec![shard], Vec::new()).await;
    world.add_engine("shard-1").await;
    let (wanted, received) = watch::channel(topology(2, 1));
    let mut options =
        ManagerOptions::new(Arc::clone(&world.line), Arc::clone(&world.shards), received, "one");
    options.interval = Duration::from_millis(50);
    let manager = Manager::start(options);
    let late = wait_until("the join to be sent", Duration::from_secs(60), || async { kept.lock().clone() });
    let late = late.await.unwrap();
    // It is not wanted any more before anybody tries again.
    wanted.send_replace(topology(1, 2));
    manager.status().wait_for(|s| s.leading && s.spec_generation == 2).await.unwrap();
    let answer = meta.txn(late).await.unwrap();
    assert!(!answer.succeeded, "{answer:?}");
    // The next one, of a term that is not over, does.
    wanted.send_replace(topology(2, 3));
    wait_until("the shard to join", Duration::from_secs(60), || async {
        world.line.with_fold(|fold| fold.shard_named("shard-1"))
    })
    .await
    .unwrap();
    manager.close().await;
}
