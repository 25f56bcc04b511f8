//! A real kube-apiserver and the endpoint: what it stores, copied through the endpoint, and the endpoint as its only store.
#![allow(clippy::unwrap_used)]

mod copied;
mod objects;
mod served;
mod twins;

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use serde_json::{Value, json};
use sharded_etcd_e2e::{Up, program};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{
    Shard,
    etcd::{EtcdOptions, EtcdShard},
};
use sharded_etcd_testkit::{KubeApiserver, wait_until};

/// How long one command may take on a busy machine; most take a tenth of a second.
const SOON: Duration = Duration::from_secs(60);

/// Where the topologies part the pods of a namespace, between those of two shards.
const PODS_PARTED: &str = "/registry/pods/team-1/pod-05";

/// How many kubectls create objects at a time: each one waits for the answer before it sends the next object.
const LANES: usize = 12;

/// Creates objects through the API server, [`LANES`] at a time, and checks that it took every one.
async fn create(server: &KubeApiserver, objects: &[Value]) -> Result<()> {
    let lanes = objects.chunks(objects.len().div_ceil(LANES)).map(|items| async move {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
        let printed =
            server.kubectl(&["create", "--validate=false", "-f", "-"], &list, SOON).await?.success()?;
        let created = printed.lines().filter(|line| line.ends_with(" created")).count();
        ensure!(created == items.len(), "{created} of {} objects were created: {printed}", items.len());
        Ok(())
    });
    for lane in futures::future::join_all(lanes).await {
        lane?;
    }
    Ok(())
}

/// Creates the namespaces and the custom resource definition, and waits until custom resources can be made.
async fn create_foundation(server: &KubeApiserver) -> Result<()> {
    create(server, &objects::foundation()).await?;
    kubectl(server, &["wait", "--for=condition=Established", "crd/widgets.example.com", "--timeout=60s"])
        .await?;
    Ok(())
}

/// What a kubectl that has to succeed prints.
async fn kubectl(server: &KubeApiserver, arguments: &[&str]) -> Result<String> {
    let output = server.kubectl(arguments, "", SOON).await?;
    output.success().with_context(|| format!("kubectl {}", arguments.join(" ")))
}

/// Saves a topology of three shards with this keyspace, YAML on one line.
fn save_topology(file: &Path, keyspace: &str) -> Result<()> {
    let text = format!(
        "apiVersion: shardedetcd.io/v1alpha1\nkind: ShardedEtcd\nmetadata: {{name: kube}}\n\
         spec:\n  shards: 3\n  keyspace: {keyspace}\n"
    );
    // Renamed into place, as editors do, so that nobody reads half a file.
    let new = file.with_extension("new");
    std::fs::write(&new, text)?;
    Ok(std::fs::rename(new, file)?)
}

/// What `status -o json` says.
async fn status(up: &Up) -> Result<Value> {
    status_at(&up.endpoint).await
}

/// The same of any endpoint that tells it.
async fn status_at(endpoint: &str) -> Result<Value> {
    let mut command = Command::new(program()?);
    command.args(["status", "-o", "json", "--endpoint", endpoint]);
    let output = tokio::process::Command::from(command).kill_on_drop(true).output();
    let output = tokio::time::timeout(SOON, output).await.context("status does not end")??;
    ensure!(output.status.success(), "status failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Waits until no range is on the way and no shard is above its share, and returns the status.
async fn settled(up: &Up) -> Result<Value> {
    let is = |status: &Value, condition: &str, wanted: &str| {
        let conditions = status["conditions"].as_array().into_iter().flatten();
        conditions.filter(|one| one["type"] == condition).any(|one| one["status"] == wanted)
    };
    wait_until("the topology is balanced", SOON, || async {
        let status = status(up).await.ok()?;
        (is(&status, "Balanced", "True") && is(&status, "Reconciling", "False")).then_some(status)
    })
    .await
}

/// The number of the shard that owns a key.
fn owner(status: &Value, key: &str) -> Result<u32> {
    for range in status["rangeMap"]["ranges"].as_array().into_iter().flatten() {
        let (start, end) = (range["start"].as_str().unwrap_or(""), range["end"].as_str().unwrap_or(""));
        if start <= key && (end.is_empty() || key < end) {
            let shard = range["shard"].as_str().and_then(|shard| shard.strip_prefix("shard-"));
            return Ok(shard.context("a range has no shard")?.parse()?);
        }
    }
    bail!("no range holds {key}")
}

/// Fails unless [`PODS_PARTED`] is a border between two shards.
fn pods_are_on_two_shards(status: &Value) -> Result<()> {
    let (below, above) = (owner(status, "/registry/pods/team-1/pod-049")?, owner(status, PODS_PARTED)?);
    ensure!(below != above, "all pods are on shard {below}");
    Ok(())
}

/// A client of any endpoint.
fn client(endpoint: &str) -> EtcdShard {
    EtcdShard::connect_lazy(vec![endpoint.to_owned()], EtcdOptions::default()).unwrap()
}

/// A request for all keys from `start` up to, not including, `end`; `end` "\0" is the end of the keyspace.
fn range(start: &str, end: &str) -> pb::RangeRequest {
    pb::RangeRequest {
        key: Bytes::copy_from_slice(start.as_bytes()),
        range_end: Bytes::copy_from_slice(end.as_bytes()),
        ..Default::default()
    }
}

/// All keys of a range at one revision, page by page as kube-apiserver lists.
///
/// Fails unless each page says of itself what is true: `count` of what is left, and `more` until the last one.
async fn paged(store: &EtcdShard, request: pb::RangeRequest, limit: i64) -> Result<Vec<pb::KeyValue>> {
    let mut found: Vec<pb::KeyValue> = Vec::new();
    let mut request = pb::RangeRequest { limit, ..request };
    let mut total = None;
    loop {
        let page = store.range(request.clone()).await?;
        let total = *total.get_or_insert(page.count);
        ensure!(page.count + i64::try_from(found.len())? == total, "a page counts {} keys left", page.count);
        found.extend(page.kvs);
        let len = i64::try_from(found.len())?;
        ensure!(page.more == (len < total), "more is {} after {len} of {total} keys", page.more);
        let Some(last) = found.last().filter(|_| page.more) else {
            return Ok(found);
        };
        request.key = [&last.key[..], b"\0"].concat().into();
        request.revision = page.header.map_or(request.revision, |header| match request.revision {
            0 => header.revision,
            asked => asked,
        });
    }
}
