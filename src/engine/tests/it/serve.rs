//! The engine as a gRPC server, through tonic's clients and the adapter for real etcd.

use futures::{StreamExt, stream};
use sharded_etcd_engine::serve::serve;
use sharded_etcd_etcd_api::{
    etcdserverpb::{
        cluster_client::ClusterClient, kv_client::KvClient, lease_client::LeaseClient,
        watch_client::WatchClient,
    },
    messages as pb,
    v3electionpb::{self, election_client::ElectionClient},
};
use sharded_etcd_shard::{
    Shard,
    etcd::{EtcdOptions, EtcdShard},
};
use sharded_etcd_testkit::etcdctl_with_input;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::support::*;

pub struct Server {
    pub fixture: Fixture,
    pub endpoint: String,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

pub async fn server() -> Server {
    serve_fixture(start().await).await
}

pub async fn serve_fixture(fixture: Fixture) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let shutdown = CancellationToken::new();
    let serving = serve(std::sync::Arc::clone(&fixture.engine), listener, shutdown.clone());
    let task = tokio::spawn(async move { serving.await.unwrap() });
    Server { fixture, endpoint, shutdown, task }
}

#[tokio::test]
async fn the_adapter_for_etcd_works_with_it() {
    let server = server().await;
    let shard = EtcdShard::connect_lazy(vec![server.endpoint.clone()], EtcdOptions::default()).unwrap();
    let mut watch = shard.watch(watch_all()).await.unwrap();
    assert!(next(&mut watch).await.created);
    shard.put(put("a", "1")).await.unwrap();
    assert_eq!(events(&mut watch, 1).await, ["+a@2"]);
    assert_eq!(keys(&shard.range(all()).await.unwrap()), ["a"]);
    let error = shard.range(pb::RangeRequest { revision: 9, ..get("a") }).await.unwrap_err();
    assert!(error.is_future_rev());
    assert_eq!(shard.status().await.unwrap().version, "3.7.3");
    assert_eq!(shard.lease_grant(pb::LeaseGrantRequest { id: 3, ttl: 60 }).await.unwrap().ttl, 60);
    assert_eq!(shard.lease_keep_alive(3).await.unwrap().ttl, 60);
    assert_eq!(shard.lease_keep_alive(4).await.unwrap().ttl, 0);
}

#[tokio::test]
async fn calls_beside_the_port() {
    let server = server().await;
    let mut kv = KvClient::connect(server.endpoint.clone()).await.unwrap();
    for n in 0..30 {
        server.fixture.put(&format!("k{n:02}"), &"v".repeat(100_000)).await;
    }
    let mut parts = kv.range_stream(all()).await.unwrap().into_inner();
    let mut seen: Vec<pb::RangeResponse> = Vec::new();
    while let Some(part) = parts.message().await.unwrap() {
        seen.push(part.range_response.unwrap());
    }
    let last = seen.last().unwrap();
    assert_eq!((last.count, last.more, revision(&last.header)), (30, false, 31));
    assert!(
        seen.len() > 2 && seen[..seen.len() - 1].iter().all(|part| part.header.is_none() && part.count == 0)
    );
    assert_eq!(seen.iter().map(|part| part.kvs.len()).sum::<usize>(), 30);

    let deleted = kv.delete_range(delete("k", "l")).await.unwrap().into_inner();
    assert_eq!(deleted.deleted, 30);

    let mut lease = LeaseClient::connect(server.endpoint.clone()).await.unwrap();
    server.fixture.grant(5, 60).await;
    let ids = stream::iter([5, 6, 5].map(|id| pb::LeaseKeepAliveRequest { id }));
    let mut answers = lease.lease_keep_alive(ids).await.unwrap().into_inner();
    for expected in [60, 0, 60] {
        assert_eq!(answers.message().await.unwrap().unwrap().ttl, expected);
    }

    let mut cluster = ClusterClient::connect(server.endpoint.clone()).await.unwrap();
    let members = cluster.member_list(pb::MemberListRequest::default()).await.unwrap().into_inner().members;
    assert_eq!(members[0].client_ur_ls, std::slice::from_ref(&server.endpoint));
    let refused = cluster.member_remove(pb::MemberRemoveRequest { id: 1 }).await.unwrap_err();
    assert_eq!(refused.message(), "etcdserver: member not found");
    let peer_ur_ls = vec!["http://127.0.0.1:1".to_owned()];
    let refused =
        cluster.member_add(pb::MemberAddRequest { peer_ur_ls, is_learner: false }).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unimplemented);
}

#[tokio::test]
async fn many_watchers_on_one_stream() {
    let server = server().await;
    let mut client = WatchClient::connect(server.endpoint.clone()).await.unwrap();
    let (requests, outgoing) = mpsc::channel(16);
    let send = |union: pb::RequestUnion| {
        requests.try_send(pb::WatchRequest { request_union: Some(union) }).unwrap();
    };
    let create = |key: &str, watch_id: i64| {
        let key = key.to_owned().into();
        pb::RequestUnion::CreateRequest(pb::WatchCreateRequest { key, watch_id, ..Default::default() })
    };
    let mut responses = client.watch(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    let mut answer = async || responses.message().await.unwrap().unwrap();

    send(create("a", 0));
    assert_eq!(answer().await.watch_id, 0);
    send(create("b", 7));
    assert_eq!(answer().await.watch_id, 7);
    send(create("c", 7));
    let refused = answer().await;
    assert_eq!((refused.watch_id, refused.created, refused.canceled), (-1, true, true));
    send(create("c", 0));
    let third = answer().await;
    assert_eq!((third.watch_id, third.created), (1, true));

    server.fixture.put("b", "1").await;
    server.fixture.put("x", "1").await;
    send(pb::RequestUnion::ProgressRequest(pb::WatchProgressRequest {}));
    let seen = answer().await;
    assert_eq!((seen.watch_id, seen.events.len()), (7, 1));
    let progress = answer().await;
    assert_eq!((progress.watch_id, revision(&progress.header), progress.events.len()), (-1, 3, 0));

    send(pb::RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 7 }));
    let cancelled = answer().await;
    assert_eq!((cancelled.watch_id, cancelled.canceled), (7, true));
    server.fixture.put("b", "2").await;
    server.fixture.put("a", "2").await;
    let seen = answer().await;
    assert_eq!((seen.watch_id, seen.events.len()), (0, 1));
}

#[tokio::test]
async fn serving_ends_with_open_watches() {
    let server = server().await;
    let shard = EtcdShard::connect_lazy(vec![server.endpoint.clone()], EtcdOptions::default()).unwrap();
    let mut watch = shard.watch(watch_all()).await.unwrap();
    assert!(next(&mut watch).await.created);
    server.shutdown.cancel();
    tokio::time::timeout(std::time::Duration::from_secs(10), server.task).await.unwrap().unwrap();
    assert!(!matches!(watch.next().await, Some(Ok(_))));
    // The engine is still open.
    server.fixture.put("a", "1").await;
}

#[tokio::test]
async fn streams_end_with_an_error_after_which_clients_go_on() {
    let server = server().await;
    let mut watches = WatchClient::connect(server.endpoint.clone()).await.unwrap();
    let create =
        pb::RequestUnion::CreateRequest(pb::WatchCreateRequest { key: "a".into(), ..Default::default() });
    let request = stream::iter([pb::WatchRequest { request_union: Some(create) }]);
    let mut watch = watches.watch(request.chain(stream::pending())).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().unwrap().created);

    let mut leases = LeaseClient::connect(server.endpoint.clone()).await.unwrap();
    server.fixture.grant(5, 60).await;
    let beat = stream::iter([pb::LeaseKeepAliveRequest { id: 5 }]).chain(stream::pending());
    let mut answers = leases.lease_keep_alive(beat).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().ttl, 60);

    let mut elections = ElectionClient::connect(server.endpoint.clone()).await.unwrap();
    let campaign = v3electionpb::CampaignRequest { name: "e".into(), lease: 5, value: "one".into() };
    elections.campaign(campaign).await.unwrap();
    let name = v3electionpb::LeaderRequest { name: "e".into() };
    let mut leaders = elections.observe(name).await.unwrap().into_inner();
    assert_eq!(leaders.message().await.unwrap().unwrap().kv.unwrap().value, "one");

    server.shutdown.cancel();
    let told = [
        watch.message().await.unwrap_err(),
        answers.message().await.unwrap_err(),
        leaders.message().await.unwrap_err(),
    ];
    for status in told {
        assert_eq!(
            (status.code(), status.message()),
            (tonic::Code::Unavailable, "etcdserver: server stopped")
        );
    }
}

#[tokio::test]
async fn etcdctl_is_content() {
    let server = server().await;
    let run = async |arguments: &[&str], input: &str| {
        let output = etcdctl_with_input(&server.endpoint, arguments, input).await.unwrap();
        output.success().unwrap_or_else(|error| panic!("etcdctl {arguments:?}: {error:#}"))
    };
    run(&["put", "a/1", "one"], "").await;
    run(&["put", "a/2", "two"], "").await;
    assert_eq!(run(&["get", "--prefix", "a/", "--order=DESCEND"], "").await, "a/2\ntwo\na/1\none\n");
    assert_eq!(run(&["del", "a/2"], "").await.trim(), "1");
    let transaction = "value(\"a/1\") = \"one\"\n\nput b yes\nget a/1\n\nput b no\n\n";
    assert!(run(&["txn"], transaction).await.starts_with("SUCCESS"));
    assert_eq!(run(&["get", "b", "--print-value-only"], "").await.trim(), "yes");
    let granted = run(&["lease", "grant", "60"], "").await;
    let id = granted.split(' ').nth(1).unwrap();
    run(&["put", "leased", "x", "--lease", id], "").await;
    assert!(run(&["lease", "timetolive", id, "--keys"], "").await.contains("leased"));
    run(&["lease", "keep-alive", "--once", id], "").await;
    run(&["lease", "revoke", id], "").await;
    assert_eq!(run(&["get", "leased"], "").await, "");
    assert_eq!(run(&["lock", "mutex", "echo", "locked"], "").await.trim(), "locked");
    assert!(run(&["endpoint", "status"], "").await.contains("3.7.3"));
    run(&["endpoint", "health"], "").await;
    assert!(run(&["member", "list"], "").await.contains("started"));
    run(&["compact", "--physical", "4"], "").await;
    run(&["defrag"], "").await;
    assert_eq!(run(&["alarm", "list"], "").await, "");
    let refused = etcdctl_with_input(&server.endpoint, &["get", "a/1", "--rev=2"], "").await.unwrap();
    assert!(refused.stderr.contains("required revision has been compacted"), "{refused:?}");
}
