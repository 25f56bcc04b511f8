//! Two topologies in one namespace and one in another do not touch each other.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::harness::{
    SETTLED_MAX, Sharing, kubectl, test, toolbox,
    topology::{resource, smallest},
};

#[tokio::test(flavor = "multi_thread")]
async fn three_topologies_do_not_touch_each_other() {
    test("neighbours", Sharing::Beside, async |t| -> Result<()> {
        let here = t.namespace.clone();
        let there = format!("{here}-other");
        t.make_namespace(&there).await?;
        let places = [(&here, "demo"), (&here, "demo-2"), (&there, "demo")];
        for (namespace, name) in places {
            let object = resource(name, smallest(json!({}))).to_string();
            kubectl(&["-n", namespace, "apply", "-f", "-"], &object, SETTLED_MAX).await?.success()?;
        }
        for (namespace, name) in places {
            t.settled_in(namespace, name, 1).await?;
        }
        let toolbox = toolbox(t).await?;
        let endpoint = |place: (&String, &str)| format!("{}.{}", place.1, place.0);
        for place in places {
            toolbox.etcdctl(&endpoint(place), &["put", "/who", &endpoint(place)]).await?;
        }
        t.ok("each has a key of the same name");
        let mut lives = Vec::new();
        for (namespace, name) in &places[1..] {
            lives.push(t.pod_lives(namespace, name).await?);
        }

        t.patch("demo", json!({"shards": 2})).await?;
        t.settled("demo", 2).await?;
        t.delete(&here, "demo", false).await?;
        for (at, place) in places.into_iter().enumerate().skip(1) {
            let got = toolbox.etcdctl(&endpoint(place), &["get", "/who", "--print-value-only"]).await?;
            ensure!(got.trim() == endpoint(place), "{} answers {got:?}", endpoint(place));
            let now = t.pod_lives(place.0, place.1).await?;
            ensure!(
                now == lives[at - 1],
                "pods of {} changed: {now:?}, before {:?}",
                endpoint(place),
                lives[at - 1]
            );
        }
        t.ok("one was scaled and deleted: the others have their keys, and none of their pods was touched");
        t.delete(&here, "demo-2", false).await?;
        t.delete(&there, "demo", false).await?;
        kubectl(&["delete", "namespace", &there, "--wait=false"], "", SETTLED_MAX).await?.success()?;
        Ok(())
    })
    .await;
}
