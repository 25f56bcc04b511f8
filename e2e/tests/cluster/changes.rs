//! The spec changes under clients that allow no error: more shards, fewer, other pins.

use anyhow::Result;
use serde_json::json;

use crate::harness::{Load, Sharing, test, toolbox, topology::resource};

#[tokio::test(flavor = "multi_thread")]
async fn shards_come_and_go_and_clients_do_not_notice() {
    test("changes", Sharing::Alone, async |t| -> Result<()> {
        // Compacted by the clients alone, who judge that nobody else does: only then is the history short that the
        // shards leave behind, and they go soon.
        let spec = json!({"shards": 3});
        t.apply(&resource("demo", spec)).await?;
        t.settled("demo", 3).await?;
        let toolbox = toolbox(t).await?;
        toolbox.seed("demo").await?;
        let load = Load::start(t, "clients", "demo", false).await?;

        t.kubectl(&["scale", "se", "demo", "--replicas=5"]).await?;
        t.ok("kubectl scale se demo --replicas=5");
        t.settled("demo", 5).await?;
        load.check_running().await?;
        toolbox.verify_seed("demo").await?;

        t.patch("demo", json!({"keyspace": {"pins": [{"prefix": "/app/", "shard": 4}]}})).await?;
        t.settled("demo", 5).await?;
        t.pinned("demo", "/app/", "shard-4").await?;
        t.patch("demo", json!({"keyspace": {"pins": [{"prefix": "/app/", "shard": 1}]}})).await?;
        t.settled("demo", 5).await?;
        t.pinned("demo", "/app/", "shard-1").await?;

        t.kubectl(&["scale", "se", "demo", "--replicas=2"]).await?;
        t.ok("kubectl scale se demo --replicas=2");
        t.settled("demo", 2).await?;
        for shard in 2..5 {
            t.shard_gone("demo", shard).await?;
        }
        t.ok("the three shards that were drained are gone with their volumes");
        toolbox.verify_seed("demo").await?;
        load.judge().await?;
        t.story("demo", &["shard-4", "Events"]).await?;
        t.delete(&t.namespace, "demo", false).await
    })
    .await;
}
