//! The operator is killed at five moments of scaling out and in; what it leaves half done is finished.

use anyhow::Result;
use serde_json::{Value, json};

use crate::harness::{
    Operator, SETTLED_MAX, Sharing, Test, test, toolbox,
    topology::{conditions, resource, smallest},
};

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_is_killed_at_five_moments() {
    test("stops", Sharing::Beside, async |t| {
        t.apply(&resource("demo", smallest(json!({"rebalance": {"bytesPerSecond": "100Ki"}})))).await?;
        t.settled("demo", 1).await?;
        let toolbox = toolbox(t).await?;
        toolbox.seed("demo").await?;

        t.patch("demo", json!({"shards": 2})).await?;
        Operator::kill(t).await?;
        t.ok("first stop: the spec has just changed");
        object_is_there(t, "statefulsets", "demo-shard-1").await?;
        Operator::kill(t).await?;
        t.ok("second stop: the new shard's StatefulSet has just been made");
        reports(t, "a range is on its way, or all are there", |status| {
            let moves = status["moves"].as_array().is_some_and(|moves| !moves.is_empty());
            moves || (status["topology"].as_array().is_some_and(|t| t.len() == 2 && t[1]["keys"] != json!(0)))
        })
        .await?;
        Operator::kill(t).await?;
        t.ok("third stop: ranges are on their way to it");
        t.settled("demo", 2).await?;
        toolbox.verify_seed("demo").await?;

        t.patch("demo", json!({"shards": 1})).await?;
        reports(t, "the shard is drained, or gone", |status| {
            let shards = status["topology"].as_array().cloned().unwrap_or_default();
            shards.len() == 1 || shards.iter().any(|shard| shard["phase"] == "Draining")
        })
        .await?;
        Operator::kill(t).await?;
        t.ok("fourth stop: the shard is being drained");
        t.until("the shard's StatefulSet is being deleted, or gone", SETTLED_MAX, async || {
            let set = t.api.object(&t.namespace, "statefulsets", "demo-shard-1").await?;
            Ok(set.is_none_or(|set| !set["metadata"]["deletionTimestamp"].is_null()).then_some(()))
        })
        .await?;
        Operator::kill(t).await?;
        t.ok("fifth stop: the drained shard is being deleted");
        t.settled("demo", 1).await?;
        t.shard_gone("demo", 1).await?;
        toolbox.verify_seed("demo").await?;
        t.delete(&t.namespace, "demo", false).await
    })
    .await;
}

async fn object_is_there(t: &Test, plural: &str, name: &str) -> Result<()> {
    t.until(&format!("{name} is there"), SETTLED_MAX, async || {
        Ok(t.api.object(&t.namespace, plural, name).await?.map(|_| ()))
    })
    .await
}

async fn reports(t: &Test, what: &str, so: impl Fn(&Value) -> bool) -> Result<()> {
    t.until_so(what, SETTLED_MAX, || async {
        let resource = t.topology("demo").await?;
        Ok((so(&resource["status"]), conditions(&resource)))
    })
    .await
}
