//! What a `ShardedEtcd` is, and waiting for what it should be.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{SETTLED_MAX, Test};

/// Everything that the operator makes, by plural.
pub(crate) const KINDS: &[&str] = &[
    "statefulsets",
    "deployments",
    "replicasets",
    "pods",
    "services",
    "configmaps",
    "secrets",
    "serviceaccounts",
    "poddisruptionbudgets",
    "networkpolicies",
    "persistentvolumeclaims",
];

/// A resource.
pub(crate) fn resource(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "shardedetcd.io/v1alpha1", "kind": "ShardedEtcd", "metadata": {"name": name}, "spec": spec})
}

/// A spec with as few pods as there can be, and more in it.
pub(crate) fn smallest(more: Value) -> Value {
    let mut spec = json!({
        "shards": 1,
        "etcd": {"members": 1},
        "meta": {"members": 1},
        "proxy": {"replicas": 1},
        "shardManager": {"replicas": 1},
        "compaction": {"retention": "5s"},
    });
    merge(&mut spec, more);
    spec
}

/// Puts what `more` says into `into`, as a merge patch does.
pub(crate) fn merge(into: &mut Value, more: Value) {
    match more {
        Value::Object(fields) if into.is_object() => {
            for (key, value) in fields {
                merge(&mut into[&key], value);
            }
        }
        Value::Object(_) => {
            *into = json!({});
            merge(into, more);
        }
        value => *into = value,
    }
}

/// A condition of a resource, if it speaks of the newest spec.
pub(crate) fn condition<'a>(resource: &'a Value, type_: &str) -> Option<&'a Value> {
    let status = &resource["status"];
    if status["observedGeneration"] != resource["metadata"]["generation"] {
        return None;
    }
    status["conditions"].as_array()?.iter().find(|c| c["type"] == type_)
}

/// All conditions in one line each.
pub(crate) fn conditions(resource: &Value) -> String {
    let status = &resource["status"];
    let mut text = format!(
        "generation {}, observed {}, shards {}",
        resource["metadata"]["generation"], status["observedGeneration"], status["shards"]
    );
    for c in status["conditions"].as_array().into_iter().flatten() {
        let part = |field: &str| c[field].as_str().unwrap_or_default().to_owned();
        let (type_, state, reason) = (part("type"), part("status"), part("reason"));
        text += &format!("\n  {type_}={state} {reason}: {}", part("message"));
    }
    for shard in status["topology"].as_array().into_iter().flatten() {
        text += &format!("\n  {}", shard);
    }
    for movement in status["moves"].as_array().into_iter().flatten() {
        text += &format!("\n  move {}", movement);
    }
    text
}

fn is(resource: &Value, type_: &str, status: &str) -> bool {
    condition(resource, type_).is_some_and(|c| c["status"] == status)
}

impl Test {
    /// A resource as it is.
    pub(crate) async fn topology(&self, name: &str) -> Result<Value> {
        self.topology_in(&self.namespace, name).await
    }

    /// A resource of another namespace as it is.
    pub(crate) async fn topology_in(&self, namespace: &str, name: &str) -> Result<Value> {
        let found = self.api.object(namespace, "shardedetcds", name).await?;
        found.with_context(|| format!("there is no ShardedEtcd {name} in {namespace}"))
    }

    /// Waits until a resource is Ready with this number of shards, all of them serving, and nothing is under way.
    pub(crate) async fn settled(&self, name: &str, shards: usize) -> Result<()> {
        self.settled_in(&self.namespace, name, shards).await
    }

    /// As [`settled`](Self::settled), in another namespace.
    pub(crate) async fn settled_in(&self, namespace: &str, name: &str, shards: usize) -> Result<()> {
        let what = format!("{name} is Ready with {shards} shards and nothing moves");
        self.until_so(&what, SETTLED_MAX, || async {
            let resource = self.topology_in(namespace, name).await?;
            let topology = resource["status"]["topology"].as_array().cloned().unwrap_or_default();
            let so = is(&resource, "Ready", "True")
                && is(&resource, "Reconciling", "False")
                && is(&resource, "Stalled", "False")
                && topology.len() == shards
                && topology.iter().all(|s| s["phase"] == "Serving")
                && resource["status"]["moves"].as_array().is_none_or(Vec::is_empty);
            Ok((so, conditions(&resource)))
        })
        .await?;
        self.ok(what);
        Ok(())
    }

    /// Waits until an Event about a resource, Warning or Normal, has these words.
    pub(crate) async fn event(&self, name: &str, type_: &str, words: &[&str]) -> Result<()> {
        let what = format!("an Event about {name}, {type_}, has {words:?}");
        self.until_so(&what, SETTLED_MAX, || async {
            let events = self.api.list(&self.namespace, "events", "").await?;
            let about = events.iter().filter(|e| {
                e["involvedObject"]["name"] == name && e["involvedObject"]["kind"] == "ShardedEtcd"
            });
            let lines: Vec<_> =
                about.map(|e| format!("{} {} {}", e["type"], e["reason"], e["message"])).collect();
            let so = lines.iter().any(|l| l.contains(type_) && words.iter().all(|w| l.contains(w)));
            Ok((so, lines.join("\n")))
        })
        .await
    }

    /// The objects of a kind that belong to a resource.
    pub(crate) async fn of(&self, namespace: &str, name: &str, plural: &str) -> Result<Vec<Value>> {
        self.api.list(namespace, plural, &format!("app.kubernetes.io/instance={name}")).await
    }

    /// The pods of one component of a resource, by name.
    pub(crate) async fn pods_of(&self, name: &str, component: &str) -> Result<Vec<String>> {
        let labels = format!("app.kubernetes.io/instance={name},app.kubernetes.io/component={component}");
        let pods = self.api.list(&self.namespace, "pods", &labels).await?;
        Ok(pods.iter().filter_map(|p| p["metadata"]["name"].as_str().map(str::to_owned)).collect())
    }

    /// uid and restarts of every pod of a resource, sorted: equal if no pod was touched.
    pub(crate) async fn pod_lives(&self, namespace: &str, name: &str) -> Result<Vec<String>> {
        let pods = self.of(namespace, name, "pods").await?;
        let mut lives: Vec<_> = pods
            .iter()
            .map(|p| {
                let containers = p["status"]["containerStatuses"].as_array().into_iter().flatten();
                let restarts: i64 = containers.filter_map(|c| c["restartCount"].as_i64()).sum();
                format!("{} {} {restarts}", p["metadata"]["name"], p["metadata"]["uid"])
            })
            .collect();
        lives.sort();
        Ok(lives)
    }

    /// Changes the spec by a merge patch.
    pub(crate) async fn patch(&self, name: &str, spec: Value) -> Result<()> {
        let patch = json!({"spec": spec}).to_string();
        self.kubectl(&["patch", "se", name, "--type=merge", "-p", &patch]).await?;
        self.ok(format!("{name} is changed: {patch}"));
        Ok(())
    }

    /// Deletes a resource and waits until nothing of it is left but volume claims, if they are to be kept.
    pub(crate) async fn delete(&self, namespace: &str, name: &str, keep_claims: bool) -> Result<()> {
        let arguments = ["-n", namespace, "delete", "se", name, "--timeout=120s"];
        super::kubectl(&arguments, "", SETTLED_MAX).await?.success()?;
        self.until_so(&format!("nothing is left of {name}"), Duration::from_secs(120), || async {
            let mut left = Vec::new();
            for plural in KINDS.iter().filter(|p| !keep_claims || **p != "persistentvolumeclaims") {
                for object in self.of(namespace, name, plural).await? {
                    left.push(format!("{plural} {}", object["metadata"]["name"]));
                }
            }
            Ok((left.is_empty(), format!("left: {}", left.join(", "))))
        })
        .await?;
        self.ok(format!("{name} is deleted, and nothing of it is left"));
        Ok(())
    }

    /// Waits until a shard is gone with its volumes.
    pub(crate) async fn shard_gone(&self, name: &str, index: u32) -> Result<()> {
        let labels = format!("app.kubernetes.io/instance={name},shardedetcd.io/cluster=shard-{index}");
        self.until_so(&format!("shard-{index} is gone with its volumes"), SETTLED_MAX, || async {
            let mut left = Vec::new();
            for plural in ["statefulsets", "pods", "persistentvolumeclaims"] {
                for object in self.api.list(&self.namespace, plural, &labels).await? {
                    left.push(format!("{plural} {}", object["metadata"]["name"]));
                }
            }
            Ok((left.is_empty(), format!("left: {}", left.join(", "))))
        })
        .await
    }

    /// Every range below a prefix is on a shard, as the status says.
    pub(crate) async fn pinned(&self, name: &str, prefix: &str, shard: &str) -> Result<()> {
        let end = format!("{}0", prefix.trim_end_matches('/'));
        self.until_so(&format!("{prefix} is on {shard}"), SETTLED_MAX, || async {
            let resource = self.topology(name).await?;
            let ranges = resource["status"]["rangeMap"]["ranges"].as_array().cloned().unwrap_or_default();
            let inside = ranges.iter().filter(|range| {
                let (from, to) = (range["start"].as_str(), range["end"].as_str());
                from.unwrap_or_default() < end.as_str() && to.is_some_and(|to| to.is_empty() || to > prefix)
            });
            let owners: Vec<_> = inside.filter_map(|range| range["shard"].as_str()).collect();
            let so = !owners.is_empty() && owners.iter().all(|owner| *owner == shard);
            Ok((so, format!("{prefix} is on {owners:?}")))
        })
        .await?;
        self.ok(format!("every key below {prefix} is on {shard}"));
        Ok(())
    }

    /// Fails unless `kubectl get` and `describe` show a reader what is going on.
    pub(crate) async fn story(&self, name: &str, words: &[&str]) -> Result<()> {
        let line = self.kubectl(&["get", "se", name]).await?;
        let header = line.lines().next().unwrap_or_default();
        for column in ["READY", "SHARDS", "BALANCED", "ENDPOINT", "AGE"] {
            ensure!(header.contains(column), "kubectl get se has no column {column}: {line}");
        }
        super::has_words(&self.kubectl(&["describe", "se", name]).await?, words)?;
        self.ok(format!("kubectl describe tells of {words:?}"));
        Ok(())
    }
}
