//! The engine served on several single-threaded runtimes.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use sharded_etcd_engine::serve::routes;
use sharded_etcd_etcd_api::{etcdserverpb::kv_client::KvClient, messages as pb};
use sharded_etcd_serve::serve_on_threads;
use sharded_etcd_testkit::wait_until;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::support::*;

const CONNECTIONS: usize = 7;
const PUTS: usize = 40;
const LET_GO_MAX: Duration = Duration::from_secs(30);

#[tokio::test]
async fn answers_reach_the_connections_of_every_thread_and_a_dropped_server_lets_go() {
    let fixture = start().await;
    let listeners =
        [TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap()];
    let endpoints = listeners.each_ref().map(|listener| format!("http://{}", listener.local_addr().unwrap()));
    let shutdown = CancellationToken::new();
    let before = Arc::strong_count(&fixture.engine);
    let routes = routes(Arc::clone(&fixture.engine), vec![], shutdown.clone());
    let serving =
        tokio::spawn(serve_on_threads(listeners.into(), Server::builder(), routes, 3, shutdown.clone()));

    let clients = (0..CONNECTIONS).map(|connection| {
        let endpoint = endpoints[connection % endpoints.len()].clone();
        async move {
            let kv = KvClient::connect(endpoint).await.unwrap();
            let puts = (0..PUTS).map(|put| {
                let mut kv = kv.clone();
                let key = format!("{connection}/{put}").into();
                async move { kv.put(pb::PutRequest { key, ..Default::default() }).await.unwrap() }
            });
            let answers = join_all(puts).await.into_iter();
            let revisions: Vec<_> =
                answers.map(|answer| answer.into_inner().header.unwrap().revision).collect();
            (kv, revisions)
        }
    });
    let (kept, revisions): (Vec<_>, Vec<_>) = join_all(clients).await.into_iter().unzip();
    let mut revisions = revisions.concat();
    revisions.sort_unstable();
    assert!(revisions.into_iter().eq(2..2 + (CONNECTIONS * PUTS) as i64));

    // With connections open and without a shutdown.
    serving.abort();
    assert!(serving.await.unwrap_err().is_cancelled());
    let engine = &fixture.engine;
    wait_until("the threads let go of the engine", LET_GO_MAX, || async {
        (Arc::strong_count(engine) == before).then_some(())
    })
    .await
    .unwrap();
    drop(kept);
}
