//! Load: what clients do is shown, ranges move for its sake, and what cannot be helped is named.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::Value;
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Shard, etcd::EtcdShard};
use sharded_etcd_testkit::wait_until;
use tokio::task::JoinSet;

use crate::harness::{Engine, Up, client, run};

/// How long it may take until a load is seen, and until something has moved, on a busy machine: rates forget slowly.
const LIMIT: Duration = Duration::from_secs(180);
/// Gentle enough for two cores that do other things, and far above `loadTolerance` below.
const PAUSE: Duration = Duration::from_millis(10);

/// So few keys that nothing moves for their number or their size.
const SPEC: &str = "shards: 2\nrebalance: {loadTolerance: 10}";

/// Reads one key again and again. A busy machine may let a request fail: that is not what is tested here.
fn read_on(readers: &mut JoinSet<()>, client: &Arc<EtcdShard>, key: &'static str) {
    let client = Arc::clone(client);
    readers.spawn(async move {
        let request = pb::RangeRequest { key: Bytes::from_static(key.as_bytes()), ..Default::default() };
        loop {
            if let Ok(answer) = client.range(request.clone()).await {
                assert_eq!(answer.count, 1, "{key}");
            }
            tokio::time::sleep(PAUSE).await;
        }
    });
}

fn status(up: &Up) -> Value {
    let ended = run(&["status", "-o", "json", "--endpoint", &up.endpoint()]);
    if ended.code == Some(0) { serde_json::from_str(&ended.stdout).unwrap() } else { Value::Null }
}

async fn wait_status(up: &Up, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let found = wait_until(what, LIMIT, || {
        last = status(up);
        std::future::ready(holds(&last).then_some(()))
    });
    match found.await {
        Ok(()) => last,
        Err(error) => panic!("{error}; status: {last:#}"),
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_tree_is_spread_and_a_hot_key_is_named() {
    let up = Up::file(Engine::Embedded, SPEC).await;
    let client = Arc::new(client(&up.endpoint()));
    let hot = ["/hot/a/x", "/hot/b/x", "/hot/c/x", "/hot/d/x"];
    for key in ["/cold/x", "/one/x"].into_iter().chain(hot) {
        up.ctl(&["put", key, "v"]).await;
    }
    let mut readers = JoinSet::new();
    for _ in 0..8 {
        read_on(&mut readers, &client, "/one/x");
    }

    // One key is all that is asked for: nothing can be done about it, and that is said.
    let seen = wait_status(&up, "the hot key is named", |status| {
        list(status, "conditions").iter().any(|condition| {
            text(condition, "type") == "Balanced"
                && text(condition, "status") == "False"
                && text(condition, "message").contains("the key \"/one/x\" alone has ")
        })
    })
    .await;
    assert_eq!(text(&seen["load"]["keys"][0], "key"), "/one/x", "{seen:#}");
    assert_eq!(list(&seen["rangeMap"], "ranges").len(), 1, "{seen:#}");
    assert!(seen["load"]["shards"][0]["reads"].as_i64() > Some(0), "{seen:#}");

    // A tree of directories is as hot: some of it goes to the other shard.
    for key in hot {
        read_on(&mut readers, &client, key);
        read_on(&mut readers, &client, key);
    }
    let seen = wait_status(&up, "ranges have moved for load", |status| {
        let has_load =
            |shard: &str| list(&status["load"], "shards").iter().any(|s| text(s, "shard") == shard);
        has_load("shard-0") && has_load("shard-1")
    })
    .await;
    let moved: Vec<&Value> =
        list(&seen["load"], "ranges").iter().filter(|range| text(range, "shard") == "shard-1").collect();
    assert!(!moved.is_empty(), "the busy ranges are named: {seen:#}");
    let shown = run(&["status", "--endpoint", &up.endpoint()]).stdout;
    for column in ["READS/S", "BUSY RANGE", "HOT KEY", "/one/x"] {
        assert!(shown.contains(column), "{shown}");
    }
    assert!(readers.try_join_next().is_none(), "a reader has found a key gone");
    for key in hot {
        assert_eq!(up.ctl(&["get", key, "--print-value-only"]).await.trim(), "v");
    }
}
