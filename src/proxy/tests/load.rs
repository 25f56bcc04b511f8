//! What a proxy tells of the load that it sees.
#![allow(clippy::unwrap_used)]

mod support;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use sharded_etcd_core::records::{LoadRecord, Record, load_key, proxy_key};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_proxy::{kv::Kv, register::Registration};
use sharded_etcd_testkit::wait_until;
use support::{NoLeases, Topology};

/// Proxies tell about every ten seconds.
const LIMIT: Duration = Duration::from_secs(120);

async fn get(topology: &Topology, key: Bytes) -> Option<pb::KeyValue> {
    let request = pb::RangeRequest { key, ..Default::default() };
    topology.meta.range(request).await.unwrap().kvs.pop()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_load_is_told_as_long_as_the_proxy_lives() {
    let topology = Topology::start(2, &["m"]).await;
    let ctx = topology.context("a").await;
    let registration = Registration::start(Arc::clone(&ctx), None, || 1);
    let kv = Kv::start(Arc::clone(&ctx), Arc::new(NoLeases));
    let put = |key: &'static str| pb::PutRequest { key: key.into(), value: "v".into(), ..Default::default() };
    kv.put(put("a")).await.unwrap();
    kv.put(put("z")).await.unwrap();
    let told = wait_until("the load is told", LIMIT, async || {
        for _ in 0..100 {
            kv.range(pb::RangeRequest { key: "z".into(), ..Default::default() }).await.unwrap();
        }
        get(&topology, load_key(ctx.identity.member_id)).await
    });
    let told = told.await.unwrap();
    let registered = get(&topology, proxy_key(ctx.identity.member_id)).await.unwrap();
    assert!(told.lease != 0 && told.lease == registered.lease, "it goes with the registration");
    let record = LoadRecord::decode(&told.value).unwrap();
    let busiest = record.ranges.iter().max_by_key(|range| range.reads).unwrap();
    assert!(busiest.range.start == "m" && busiest.reads > 0 && busiest.read_bytes > 0, "{record:?}");
    let key = record.keys.iter().max_by_key(|key| key.work).unwrap();
    assert!(key.key == "z" && key.sure > 0, "{record:?}");

    ctx.shutdown.cancel();
    wait_until("the load is forgotten with the proxy", LIMIT, async || {
        get(&topology, load_key(ctx.identity.member_id)).await.is_none().then_some(())
    })
    .await
    .unwrap();
    drop(registration);
}
