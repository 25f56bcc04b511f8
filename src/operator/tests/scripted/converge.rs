//! From nothing to Ready, and then no more writes.

use serde_json::{Value, json};

use crate::support::{
    server::{Call, Watching},
    world::World,
};

/// The sample, with one shard of three members.
pub fn sample() -> Value {
    json!({"shards": 3, "etcd": {"members": 3, "storage": {"size": "1Gi"}}, "meta": {"members": 3}})
}

#[tokio::test(start_paused = true)]
async fn a_resource_becomes_ready_and_then_nothing_is_written() {
    let mut world = World::default();
    world.apply("demo", sample());
    let operator = world.start(Watching::Fresh);
    world.until("demo is ready", |w| w.is_ready("demo")).await;
    world.settle(&operator).await;
    world.assert_sound("create");
    let before = operator.link.calls().len();
    for _ in 0..1200 {
        world.tick().await;
    }
    let calls = operator.link.calls();
    let writes: Vec<String> = calls[before..].iter().filter(|c| c.mutates()).map(Call::to_string).collect();
    assert!(writes.is_empty(), "written in 20 steady minutes: {writes:#?}");
}
