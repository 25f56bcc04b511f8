//! What only the operator can see is wrong with a spec: it says so in conditions and Events, with the remedy, and a spec that is
//! right again is followed.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::harness::{
    SETTLED_MAX, Sharing, Test, kubectl, test, toolbox,
    topology::{resource, smallest},
};

/// A spec that the API server takes and that cannot be done.
struct Wrong {
    /// Name of the resource.
    name: &'static str,
    /// What is wrong, on top of the smallest spec.
    spec: Value,
    /// What a condition and an Event say.
    words: &'static [&'static str],
    /// What makes it right, as a merge patch of the spec.
    remedy: Value,
}

/// Nodes with a label that none has.
fn node_affinity(operator: &str) -> Value {
    let term = json!({"matchExpressions": [{"key": "no-such-label", "operator": operator}]});
    let required = json!({"nodeSelectorTerms": [term]});
    json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}})
}

fn wrongs() -> Vec<Wrong> {
    let huge = json!({"resources": {"requests": {"cpu": "900"}}});
    vec![
        Wrong {
            name: "members-do-not-fit",
            spec: json!({"etcd": huge}),
            words: &["Insufficient cpu"],
            remedy: json!({"etcd": {"resources": null}}),
        },
        Wrong {
            name: "proxies-do-not-fit",
            spec: json!({"proxy": huge}),
            words: &["Insufficient cpu"],
            remedy: json!({"proxy": {"resources": null}}),
        },
        Wrong {
            name: "priority",
            spec: json!({"etcd": {"priorityClassName": "no-such-priority"}}),
            words: &["no-such-priority"],
            remedy: json!({"etcd": {"priorityClassName": null}}),
        },
        Wrong {
            name: "image",
            spec: json!({"image": "localhost:1/no-such-image"}),
            words: &["no-such-image"],
            remedy: json!({"image": null}),
        },
        Wrong {
            name: "nowhere",
            spec: json!({"etcd": {"affinity": node_affinity("Exists")}}),
            words: &["fits no node", "affinity"],
            remedy: json!({"etcd": {"affinity": null}}),
        },
        Wrong {
            name: "affinity",
            spec: json!({"etcd": {"affinity": node_affinity("NoSuchOperator")}}),
            words: &["NoSuchOperator"],
            remedy: json!({"etcd": {"affinity": null}}),
        },
        Wrong {
            name: "flag",
            spec: json!({"etcd": {"extraArgs": {"no-such-flag": "1"}}}),
            words: &["no-such-flag"],
            remedy: json!({"etcd": {"extraArgs": null}}),
        },
    ]
}

/// Three at a time: each has four pods, which all start at once.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_told_and_what_is_right_again_is_done() {
    test("told", Sharing::Beside, async |t| {
        let all = wrongs();
        for some in all.chunks(3) {
            let each = some.iter().map(|wrong| told_and_remedied(t, wrong));
            futures::future::try_join_all(each).await?;
        }
        Ok(())
    })
    .await;
}

async fn told_and_remedied(t: &Test, wrong: &Wrong) -> Result<()> {
    let name = wrong.name;
    t.apply(&resource(name, smallest(wrong.spec.clone()))).await?;
    told(t, name, wrong.words).await?;
    t.patch(name, wrong.remedy.clone()).await?;
    t.settled(name, 1).await?;
    t.delete(&t.namespace, name, false).await
}

/// Some condition and some Event have these words, and the resource is not said to be ready or done.
async fn told(t: &Test, name: &str, words: &[&str]) -> Result<()> {
    t.until_so(&format!("a condition of {name} has {words:?}"), SETTLED_MAX, || async {
        let resource = t.topology(name).await?;
        let conditions = resource["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let so = conditions.iter().any(|c| {
            let text = format!("{} {}", c["reason"], c["message"]);
            words.iter().all(|word| text.contains(word)) && (c["type"] == "Ready") != (c["status"] == "True")
        });
        Ok((so, crate::harness::topology::conditions(&resource)))
    })
    .await?;
    t.event(name, "Warning", words).await?;
    t.ok(format!("{name}: a condition and an Event have {words:?}"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_storage_class_is_told() {
    test("told-class", Sharing::Beside, async |t| {
        let class = "e2e-no-such-class";
        let classes = "/apis/storage.k8s.io/v1/storageclasses";
        t.kubectl(&["delete", "storageclass", class, "--ignore-not-found"]).await?;
        t.apply(&resource("demo", smallest(json!({"etcd": {"storage": {"className": class}}})))).await?;
        told(t, "demo", &[class, "spec.etcd.storage.className"]).await?;
        // As the message says: create it. Like the default one, but for its name.
        let all = t.api.get(classes).await?.context("there are no storage classes")?;
        let is_default = |c: &&Value| {
            c["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true"
        };
        let default = all["items"].as_array().into_iter().flatten().find(is_default);
        let mut new = default.context("there is no default storage class")?.clone();
        new["metadata"] = json!({"name": class});
        new["apiVersion"] = json!("storage.k8s.io/v1");
        new["kind"] = json!("StorageClass");
        t.apply(&new).await?;
        t.settled("demo", 1).await?;
        t.delete(&t.namespace, "demo", false).await?;
        t.kubectl(&["delete", "storageclass", class]).await.map(|_| ())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_that_is_too_small_is_told() {
    test("told-quota", Sharing::Beside, async |t| {
        let quota = json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"},
            "spec": {"hard": {"count/statefulsets.apps": "1"}},
        });
        t.apply(&quota).await?;
        t.apply(&resource("demo", smallest(json!({})))).await?;
        told(t, "demo", &["exceeded quota", "small"]).await?;
        t.kubectl(&["delete", "resourcequota", "small"]).await?;
        t.settled("demo", 1).await?;
        let quota = json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "pods"},
            "spec": {"hard": {"pods": "4"}},
        });
        t.apply(&quota).await?;
        t.patch("demo", json!({"shards": 2})).await?;
        told(t, "demo", &["exceeded quota", "pods"]).await?;
        t.kubectl(&["delete", "resourcequota", "pods"]).await?;
        t.settled("demo", 2).await?;
        t.delete(&t.namespace, "demo", false).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_of_somebody_else_is_told_and_left_alone() {
    test("told-foreign", Sharing::Beside, async |t| {
        t.kubectl(&["create", "service", "clusterip", "demo", "--tcp=80:80"]).await?;
        t.apply(&resource("demo", smallest(json!({})))).await?;
        told(t, "demo", &["Service demo"]).await?;
        let service = t.api.object(&t.namespace, "services", "demo").await?.unwrap_or_default();
        ensure!(
            service["spec"]["ports"][0]["port"] == json!(80),
            "the foreign Service was changed: {service}"
        );
        t.kubectl(&["delete", "service", "demo"]).await?;
        t.settled("demo", 1).await?;
        t.delete(&t.namespace, "demo", false).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retained_volume_is_told_and_not_taken() {
    test("told-retained", Sharing::Beside, async |t| {
        let retain = json!({"shards": 2, "etcd": {"storage": {"retain": "Retain"}}});
        t.apply(&resource("demo", smallest(retain))).await?;
        t.settled("demo", 2).await?;
        t.patch("demo", json!({"shards": 1})).await?;
        t.settled("demo", 1).await?;
        let claim = "data-demo-shard-1-0";
        let kept = t.api.object(&t.namespace, "persistentvolumeclaims", claim).await?;
        ensure!(kept.is_some(), "{claim} was to be kept");
        t.ok("the drained shard's volume is kept");
        t.patch("demo", json!({"shards": 2})).await?;
        told(t, "demo", &[claim]).await?;
        t.kubectl(&["delete", "pvc", claim, "--timeout=60s"]).await?;
        t.settled("demo", 2).await?;
        t.delete(&t.namespace, "demo", true).await?;
        let kept = t.of(&t.namespace, "demo", "persistentvolumeclaims").await?;
        ensure!(kept.len() >= 2, "the volumes of the shards were to be kept: {}", kept.len());
        t.ok("the volumes are kept when the resource is deleted");
        // A new resource of the same name is not the old one.
        t.apply(&resource("demo", smallest(json!({"shards": 1})))).await?;
        told(t, "demo", &["data-demo-shard-0-0"]).await?;
        t.kubectl(&["delete", "pvc", "data-demo-shard-0-0", "data-demo-shard-1-0", "--timeout=60s"]).await?;
        t.settled("demo", 1).await?;
        t.delete(&t.namespace, "demo", false).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scale_in_that_does_not_fit_is_told_with_numbers() {
    test("told-scale-in", Sharing::Beside, async |t| {
        // Half on each shard from the start: all of it on one, as it is written, is close to what one etcd may hold.
        let halves = json!({"presplit": ["/big/dir-0010/"]});
        let spec = json!({"shards": 2, "etcd": {"quota": "16Mi"}, "keyspace": halves});
        t.apply(&resource("demo", smallest(spec))).await?;
        t.settled("demo", 2).await?;
        let toolbox = toolbox(t).await?;
        let fill = ["workload", "seed", "--endpoints", "demo:2379", "--prefix", "/big/", "--keys", "1700"];
        let fill =
            [&fill[..], &["--dirs", "20", "--value-bytes", "8192", "--state", "/tmp/big.json"]].concat();
        toolbox.run(&fill).await?;
        t.until_so("the operator knows of 13 MiB in two shards of 16 MiB", SETTLED_MAX, || async {
            let bytes = t.topology("demo").await?["status"]["bytes"].as_i64().unwrap_or_default();
            Ok((bytes > 13_500_000, bytes.to_string()))
        })
        .await?;
        t.ok("13 MiB are written into two shards of 16 MiB");
        t.settled("demo", 2).await?;
        t.patch("demo", json!({"shards": 1})).await?;
        told(t, "demo", &["have room for", "spec.shards: 2"]).await?;
        let resource = t.topology("demo").await?;
        let phases: Vec<_> = resource["status"]["topology"].as_array().into_iter().flatten().collect();
        ensure!(phases.len() == 2, "both shards stay: {phases:?}");
        t.patch("demo", json!({"shards": 2})).await?;
        t.settled("demo", 2).await?;
        kubectl(&["-n", &t.namespace, "get", "se"], "", SETTLED_MAX).await?.success()?;
        t.delete(&t.namespace, "demo", false).await
    })
    .await;
}
