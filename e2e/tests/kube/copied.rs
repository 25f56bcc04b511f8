//! Real input: everything that a kube-apiserver with 2,000 objects stores, copied through the endpoint over three shards.

use anyhow::{Result, ensure};
use sharded_etcd_e2e::Up;
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Shard, etcd::EtcdShard};
use sharded_etcd_testkit::{
    EtcdProcess, EtcdProcessOptions, KubeApiserver,
    command::finish,
    tools::{self, Tools},
};
use tokio::process::Command;

use super::*;

/// Six ranges, two on each shard; the border of two shards is among the pods of a namespace.
fn keyspace() -> String {
    let presplit = format!(
        "[/registry/configmaps/, /registry/leases/, /registry/pods/, {PODS_PARTED}, /registry/secrets/]"
    );
    format!("{{splittable: [/registry/], presplit: {presplit}}}")
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_a_kube_apiserver_stores_is_copied_key_by_key_and_value_by_value() -> Result<()> {
    let etcd = EtcdProcess::start(EtcdProcessOptions::default()).await?;
    store_objects(&etcd).await?;

    let folder = tempfile::tempdir()?;
    let file = folder.path().join("kube.yaml");
    save_topology(&file, &keyspace())?;
    let up = Up::start(&folder.path().join("data"), &["-f", &file.display().to_string()]).await?;
    pods_are_on_two_shards(&status(&up).await?)?;
    let copied = workload(&["copy", "--from", &etcd.endpoint(), "--to", &up.endpoint]).await?;
    println!("{}", copied.trim());

    // Once while ranges may still be on the way to other shards, and once when they have come to rest.
    let keys = compare(&etcd, &up).await?;
    let status = settled(&up).await?;
    assert_eq!(compare(&etcd, &up).await?, keys);
    assert!(keys > objects::OBJECTS, "only {keys} keys");

    let shards = status["topology"].as_array().unwrap();
    let on_each: Vec<_> = shards.iter().map(|shard| shard["keys"].as_u64().unwrap()).collect();
    assert_eq!(on_each.len(), 3);
    assert!(on_each.iter().all(|&keys| keys > 300), "the data is not on all shards: {on_each:?}");
    println!("{keys} keys, on the shards {on_each:?}");

    let (a, b) = (etcd.shard(), client(&up.endpoint));
    for request in requests() {
        lists_equal(&a, &b, request).await?;
    }
    Ok(())
}

/// Has a kube-apiserver store the objects, and ends it so that nothing changes any more.
async fn store_objects(etcd: &EtcdProcess) -> Result<()> {
    let mut server = KubeApiserver::start(&etcd.endpoint(), &[]).await?;
    create_foundation(&server).await?;
    let objects = objects::everything();
    assert_eq!(objects.len(), objects::OBJECTS);
    create(&server, &objects).await?;
    server.process().kill();
    Ok(())
}

/// Compares all keys and values with the official client, and returns how many there are.
async fn compare(etcd: &EtcdProcess, up: &Up) -> Result<usize> {
    let printed = workload(&["diff", "--a", &etcd.endpoint(), "--b", &up.endpoint]).await?;
    let equal = printed.lines().last().and_then(|line| line.split(' ').next()).and_then(|n| n.parse().ok());
    let count = pb::RangeRequest { count_only: true, ..range("\0", "\0") };
    let counts =
        (etcd.shard().range(count.clone()).await?.count, client(&up.endpoint).range(count).await?.count);
    let keys: usize = equal.with_context(|| format!("workload diff printed no count: {printed}"))?;
    ensure!(counts == (i64::try_from(keys)?, i64::try_from(keys)?), "{keys} keys are equal, of {counts:?}");
    Ok(keys)
}

async fn workload(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(tools::program(Tools::Workload, "workload").await?);
    command.args(arguments);
    finish(command, "workload", "", SOON).await?.success()
}

/// Ranges over one shard and over several, whole resources and parts, from a key on, and keys that are not there.
fn requests() -> Vec<pb::RangeRequest> {
    let order = |target: pb::SortTarget, order: pb::SortOrder| pb::RangeRequest {
        sort_order: order.into(),
        sort_target: target.into(),
        ..range("/registry/", "/registry0")
    };
    let mut requests = vec![
        range("\0", "\0"),
        range("/registry/", "/registry0"),
        range("/registry/pods/", "/registry/pods0"),
        range("/registry/pods/team-1/", "/registry/pods/team-10"),
        range("/registry/pods/team-1/pod-04", "/registry/pods/team-1/pod-07"),
        range("/registry/pods/team-1/pod-053", ""),
        range("/registry/pods/team-1/pod-05", "\0"),
        range("/registry/leases/team-2/node-1", "/registry/secrets/team-1/"),
        range("/registry/secrets/team-3/secret-299", "\0"),
        range("/registry/nothing", "/registry/nothing0"),
        range("/zzz", "\0"),
        order(pb::SortTarget::Key, pb::SortOrder::Descend),
        order(pb::SortTarget::Value, pb::SortOrder::Ascend),
    ];
    let keys_only = requests.iter().map(|request| pb::RangeRequest { keys_only: true, ..request.clone() });
    requests.extend(keys_only.collect::<Vec<_>>());
    requests
}

/// Compares what both answer to a request: whole, cut off at a limit, counted, and in pages.
async fn lists_equal(a: &EtcdShard, b: &EtcdShard, request: pb::RangeRequest) -> Result<()> {
    let whole = same_answer(a, b, &request).await?;
    for limit in [1, 37, 500] {
        same_answer(a, b, &pb::RangeRequest { limit, ..request.clone() }).await?;
    }
    same_answer(a, b, &pb::RangeRequest { count_only: true, keys_only: false, ..request.clone() }).await?;
    let ordered = pb::RangeRequest { sort_order: 0, sort_target: 0, ..request.clone() };
    if ordered == request {
        let pages = contents(paged(b, request.clone(), 100).await?);
        ensure!(pages == whole, "pages of {request:?} hold other keys than the whole");
    }
    Ok(())
}

type Contents = Vec<(Bytes, Bytes)>;

/// Both answers hold the same keys and values in the same order, with the same count; the keys and values.
async fn same_answer(a: &EtcdShard, b: &EtcdShard, request: &pb::RangeRequest) -> Result<Contents> {
    let (x, y) = (a.range(request.clone()).await?, b.range(request.clone()).await?);
    ensure!(
        (x.count, x.more) == (y.count, y.more),
        "{request:?}: etcd has {}, {}, the endpoint {}, {}",
        x.count,
        x.more,
        y.count,
        y.more
    );
    let (x, y) = (contents(x.kvs), contents(y.kvs));
    let differs = x.iter().zip(&y).position(|(x, y)| x != y);
    ensure!(
        x.len() == y.len() && differs.is_none(),
        "{request:?}: {} and {} keys, the first that differs: {differs:?}",
        x.len(),
        y.len()
    );
    Ok(y)
}

fn contents(kvs: Vec<pb::KeyValue>) -> Contents {
    kvs.into_iter().map(|kv| (kv.key, kv.value)).collect()
}
