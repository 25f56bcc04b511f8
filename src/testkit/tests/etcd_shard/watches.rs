//! Watch streams.

use std::time::Duration;

use futures::StreamExt;
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Certainty, Shard, WatchStream};
use sharded_etcd_testkit::wait_until;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::Code;

use super::{etcd, put};

/// How long an event may take.
const SOON: Duration = Duration::from_secs(20);

fn from_revision(start_revision: i64) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        start_revision,
        ..Default::default()
    }
}

async fn answer(stream: &mut WatchStream) -> pb::WatchResponse {
    timeout(SOON, stream.next()).await.unwrap().unwrap().unwrap()
}

#[tokio::test]
async fn events_come_in_order_from_the_past_and_live() {
    let etcd = etcd().await;
    let shard = etcd.shard();
    let first = shard.put(put("a", "1")).await.unwrap().header.unwrap().revision;
    shard.put(put("a", "2")).await.unwrap();
    let mut stream =
        shard.watch(pb::WatchCreateRequest { prev_kv: true, ..from_revision(first) }).await.unwrap();
    assert!(answer(&mut stream).await.created);
    shard.put(put("a", "3")).await.unwrap();
    let mut values = Vec::new();
    while values.len() < 3 {
        for event in answer(&mut stream).await.events {
            values.push((event.kv.unwrap().value, event.prev_kv.map(|kv| kv.value)));
        }
    }
    let expected = [("1", None), ("2", Some("1")), ("3", Some("2"))];
    assert_eq!(values, expected.map(|(value, previous)| (value.into(), previous.map(Into::into))));
}

#[tokio::test]
async fn a_compacted_start_ends_the_stream_and_names_the_revision() {
    let etcd = etcd().await;
    let shard = etcd.shard();
    let mut newest = 0;
    for value in ["1", "2", "3"] {
        newest = shard.put(put("a", value)).await.unwrap().header.unwrap().revision;
    }
    shard.compact(pb::CompactionRequest { revision: newest, physical: true }).await.unwrap();
    let mut stream = shard.watch(from_revision(newest - 1)).await.unwrap();
    assert!(answer(&mut stream).await.created);
    let last = answer(&mut stream).await;
    assert!(last.canceled);
    assert_eq!(last.compact_revision, newest);
    assert!(timeout(SOON, stream.next()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_broken_connection_ends_the_stream_with_an_error() {
    let mut etcd = etcd().await;
    let shard = etcd.shard();
    let mut stream = shard.watch(from_revision(0)).await.unwrap();
    assert!(answer(&mut stream).await.created);
    etcd.kill();
    let error = timeout(SOON, stream.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!((error.code, error.certainty), (Code::Unavailable, Certainty::Ambiguous), "{error}");
    assert!(timeout(SOON, stream.next()).await.unwrap().is_none());
    let Err(error) = shard.watch(from_revision(0)).await else { panic!("a dead etcd opened a watch") };
    assert_eq!(error.certainty, Certainty::NotSent, "{error}");

    etcd.restart().await.unwrap();
    let mut stream = wait_until("a watch can be opened again", SOON, || async {
        shard.watch(from_revision(0)).await.ok()
    })
    .await
    .unwrap();
    assert!(answer(&mut stream).await.created);
}

#[tokio::test]
async fn dropping_a_stream_ends_its_watcher_in_etcd() {
    let etcd = etcd().await;
    let shard = etcd.shard();
    let mut streams = Vec::new();
    for _ in 0..5 {
        let mut stream = shard.watch(from_revision(0)).await.unwrap();
        assert!(answer(&mut stream).await.created);
        streams.push(stream);
    }
    let endpoint = etcd.endpoint();
    assert_eq!(watchers(&endpoint).await, 5);
    streams.truncate(1);
    wait_until("four watchers are gone", SOON, || async { (watchers(&endpoint).await == 1).then_some(()) })
        .await
        .unwrap();
}

/// The number of watchers that etcd's metrics show.
async fn watchers(endpoint: &str) -> u64 {
    let address = endpoint.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.unwrap();
    let value = page.lines().find_map(|line| line.strip_prefix("etcd_debugging_mvcc_watcher_total "));
    value.unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_reader_that_stands_still_does_not_hold_up_calls_or_lose_events() {
    let etcd = etcd().await;
    let shard = etcd.shard();
    let mut stream = shard.watch(from_revision(0)).await.unwrap();
    assert!(answer(&mut stream).await.created);
    // More than the flow-control window of a stream and, as of 40 MiB, of a connection.
    for number in 0..40 {
        shard.put(put(&format!("{number:02}"), vec![b'x'; 1 << 20])).await.unwrap();
    }
    let mut seen = 0;
    while seen < 40 {
        seen += answer(&mut stream).await.events.len();
    }
    assert_eq!(seen, 40);
}
