//! The admin service beside a manager, and alone.
#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use sharded_etcd_admin_api::v1::{PlanRequest, StatusRequest, admin_server::Admin};
use sharded_etcd_core::topology::{Draft, Topology, validate};
use sharded_etcd_manager::{AdminService, Manager, ManagerOptions, Sizes};
use tokio::sync::watch;
use tonic::Request;
use world::{Client, World};

fn read(json: &str) -> Result<Topology, String> {
    let shards = json.parse().map_err(|_| "spec.shards: not a number".to_owned())?;
    validate(Draft::new("demo", shards)).map_err(|e| format!("{e:?}"))
}

async fn status(admin: &AdminService) -> Value {
    let answer = admin.status(Request::new(StatusRequest {})).await.unwrap();
    serde_json::from_str(&answer.into_inner().status_json).unwrap()
}

async fn plan(admin: &AdminService, resource: &str) -> Result<Value, tonic::Status> {
    let request = PlanRequest { resource_json: resource.into() };
    Ok(serde_json::from_str(&admin.plan(Request::new(request)).await?.into_inner().plan_json).unwrap())
}

/// Asks until it is so: a status is up to half a second old, and a manager tells what it does once a round.
async fn until(admin: &AdminService, name: &str, holds: &str) -> Value {
    let mut last = Value::Null;
    for _ in 0..200 {
        last = status(admin).await;
        if condition(&last, name) == holds {
            return last;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{name} is not {holds}: {last:#}");
}

fn condition<'a>(status: &'a Value, name: &str) -> &'a str {
    let conditions = status["conditions"].as_array().unwrap();
    conditions.iter().find(|c| c["type"] == name).map_or("absent", |c| c["status"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_and_plan_without_and_with_a_manager() {
    let world = World::new(2).await;
    let client = Client::new(&world);
    for i in 0..500 {
        client.put(&format!("a{i:05}"), &"v".repeat(50), 0).await;
    }
    let sizes = Sizes::new(Arc::clone(&world.line), Arc::clone(&world.shards));
    let admin = AdminService::new(
        Arc::clone(&world.line),
        Arc::clone(&world.shards),
        sizes,
        Arc::new(read),
        Some("127.0.0.1:2379".into()),
    );
    let alone = status(&admin).await;
    assert_eq!((&alone["keys"], &alone["shards"]), (&500.into(), &2.into()));
    assert_eq!(alone["endpoint"], "127.0.0.1:2379");
    assert_eq!(alone["rangeMap"]["ranges"][0]["end"], "m");
    assert_eq!((condition(&alone, "Ready"), condition(&alone, "Balanced")), ("True", "Unknown"));

    // What a spec would do is known without a manager, and nothing is done.
    let wider = plan(&admin, "3").await.unwrap();
    let steps = wider["steps"].as_array().unwrap();
    assert!(steps.iter().any(|s| s["action"] == "move" && s["to"] == "shard-2"), "{wider:#}");
    assert!(steps.iter().all(|s| !s["reason"].as_str().unwrap().is_empty()));
    assert_eq!(plan(&admin, "x").await.unwrap_err().message(), "spec.shards: not a number");
    assert_eq!(world.line.refresh().await.unwrap().map.entries().len(), 2);

    let (_wanted, topology) = watch::channel(Arc::new(read("2").unwrap()));
    let mut options =
        ManagerOptions::new(Arc::clone(&world.line), Arc::clone(&world.shards), topology, "one");
    options.interval = Duration::from_millis(50);
    let manager = Manager::start(options);
    let mut seen = manager.status();
    let settled = seen.wait_for(|s| s.complete && s.settled && s.balanced);
    tokio::time::timeout(Duration::from_secs(60), settled).await.unwrap().unwrap();
    let managed = until(&admin, "Balanced", "True").await;
    assert_eq!(condition(&managed, "Reconciling"), "False");
    assert_eq!(managed["bytes"], 500 * 56);
    for shard in managed["topology"].as_array().unwrap() {
        assert!(shard["keys"].as_i64().unwrap() >= 200, "{managed:#}");
        assert_eq!(shard["phase"], "Serving");
    }
    assert_eq!(plan(&admin, "2").await.unwrap()["steps"].as_array().unwrap().len(), 0);

    // A shard that cannot be reached is named; the rest is told all the same.
    world.directory.remove("shard-1");
    let broken = until(&admin, "Ready", "False").await;
    let lost = broken["topology"].as_array().unwrap().iter().find(|s| s["shard"] == "shard-1").unwrap();
    assert_eq!(lost["phase"], "Unreachable");
    assert!(lost["message"].as_str().unwrap().contains("shard-1"));
    manager.close().await;
}
