//! What clients see of the endpoint's members, its state and its alarms.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use sharded_etcd_core::records::{ProxyRecord, Record, proxy_key};
use sharded_etcd_etcd_api::{
    etcdserverpb::{auth_server::Auth, cluster_server::Cluster, maintenance_server::Maintenance},
    messages as pb,
};
use sharded_etcd_proxy::{
    context::{Context, Identity},
    register::Registration,
    services::{auth::AuthService, cluster::ClusterService, maintenance::MaintenanceService},
};
use sharded_etcd_testkit::wait_until;
use support::Topology;
use tonic::{Code, Request, Status};

const LIMIT: Duration = Duration::from_secs(60);
const NOSPACE: i32 = pb::AlarmType::Nospace as i32;

/// A proxy at an address, with what its watchers have passed.
async fn proxy(topology: &Topology, name: &str) -> (Arc<Context>, Arc<Registration>, Arc<AtomicI64>) {
    let mut ctx = Arc::into_inner(topology.context(name).await).unwrap();
    ctx.identity = Identity::new(name, vec![format!("http://{name}:2379")]);
    let (ctx, passed) = (Arc::new(ctx), Arc::new(AtomicI64::new(1)));
    let read = Arc::clone(&passed);
    let registration = Registration::start(Arc::clone(&ctx), None, move || read.load(Ordering::SeqCst));
    (ctx, registration, passed)
}

async fn list(service: &ClusterService, linearizable: bool) -> Vec<pb::Member> {
    let answer = service.member_list(Request::new(pb::MemberListRequest { linearizable })).await.unwrap();
    answer.into_inner().members
}

async fn registered(topology: &Topology, member_id: u64) -> Option<ProxyRecord> {
    let request = pb::RangeRequest { key: proxy_key(member_id), ..Default::default() };
    let kvs = topology.meta.range(request).await.unwrap().kvs;
    kvs.first().map(|kv| ProxyRecord::decode(&kv.value).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_the_live_proxies() {
    let topology = Topology::start(1, &[]).await;
    let (a, a_registration, a_passed) = proxy(&topology, "a").await;
    let service = ClusterService::new(Arc::clone(&a), Arc::clone(&a_registration));
    let alone = list(&service, false).await;
    assert_eq!(alone.len(), 1, "itself, registered already or not");
    assert_eq!((alone[0].id, alone[0].name.as_str()), (a.identity.member_id, "a"));
    assert_eq!((&alone[0].client_ur_ls, &alone[0].peer_ur_ls), (&vec!["http://a:2379".to_owned()], &vec![]));

    let (b, b_registration, _) = proxy(&topology, "b").await;
    wait_until("b is registered", LIMIT, async || registered(&topology, b.identity.member_id).await)
        .await
        .unwrap();
    assert_eq!(list(&service, true).await.len(), 2, "a linearizable list knows at once");
    wait_until("a sees b", LIMIT, async || (list(&service, false).await.len() == 2).then_some(()))
        .await
        .unwrap();
    wait_until("b sees a", LIMIT, async || (b_registration.proxies().len() == 2).then_some(()))
        .await
        .unwrap();
    let leader = a_registration.leader();
    assert_eq!(leader, b_registration.leader(), "all name the same leader");
    assert_eq!(leader, a.identity.member_id.min(b.identity.member_id));

    a_passed.store(41, Ordering::SeqCst);
    wait_until("the revision is brought up to date", LIMIT, async || {
        registered(&topology, a.identity.member_id).await.filter(|record| record.revision == 41)
    })
    .await
    .unwrap();

    // A registration that is lost comes back.
    let leases = topology.meta.lease_leases().await.unwrap().leases;
    for lease in leases {
        topology.meta.lease_revoke(pb::LeaseRevokeRequest { id: lease.id }).await.unwrap();
    }
    wait_until("a is back", LIMIT, async || registered(&topology, a.identity.member_id).await).await.unwrap();

    b.shutdown.cancel();
    wait_until("a sees b leave", LIMIT, async || (list(&service, false).await.len() == 1).then_some(()))
        .await
        .unwrap();
    assert_eq!(a_registration.leader(), a.identity.member_id);
    let refused = service.member_add(Request::new(pb::MemberAddRequest::default())).await.unwrap_err();
    assert!(refused.message().contains("spec.proxy.replicas"), "{}", refused.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn state_is_that_of_all_shards() {
    let topology = Topology::start(2, &["m"]).await;
    let (a, registration, _) = proxy(&topology, "a").await;
    let service = MaintenanceService::new(Arc::clone(&a), registration);
    let status = async || service.status(Request::new(pb::StatusRequest {})).await.unwrap().into_inner();
    let first = status().await;
    assert_eq!((first.version.as_str(), first.storage_version.as_str()), ("3.7.3", "3.7.0"));
    assert_eq!(first.leader, a.identity.member_id);
    assert_eq!(first.errors, Vec::<String>::new());
    assert!(first.raft_term == 2 && first.raft_index > 0 && first.raft_index == first.raft_applied_index);
    let mut sizes = [0, 0];
    for shard in &topology.shards {
        let status = shard.status().await.unwrap();
        sizes = [sizes[0] + status.db_size, sizes[1] + status.db_size_quota];
    }
    assert_eq!([first.db_size, first.db_size_quota], sizes);

    topology.directory.remove("shard-1");
    let away = wait_until("the newest state is told", LIMIT, async || {
        Some(status().await).filter(|status| !status.errors.is_empty())
    });
    let away = away.await.unwrap();
    assert!(away.errors[0].contains("shard-1"), "{:?}", away.errors);
    let error = service.defragment(Request::new(pb::DefragmentRequest {})).await.unwrap_err();
    assert!(
        error.message().contains("shard-1") && !error.message().contains("shard-0"),
        "{}",
        error.message()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn alarms_of_shards_are_shown_and_disarmed() {
    use pb::alarm_request::AlarmAction;
    let topology = Topology::start(2, &["m"]).await;
    let (a, registration, _) = proxy(&topology, "a").await;
    let service = MaintenanceService::new(Arc::clone(&a), registration);
    let ask = async |action: AlarmAction| {
        let request = pb::AlarmRequest { action: action.into(), member_id: 0, alarm: NOSPACE };
        service.alarm(Request::new(request)).await.map(|answer| answer.into_inner().alarms)
    };
    assert_eq!(ask(AlarmAction::Get).await.unwrap(), []);
    for shard in &topology.shards {
        let raise = pb::AlarmRequest { action: AlarmAction::Activate.into(), member_id: 9, alarm: NOSPACE };
        shard.alarm(raise).await.unwrap();
    }
    let shown = [pb::AlarmMember { member_id: a.identity.member_id, alarm: NOSPACE }];
    assert_eq!(ask(AlarmAction::Get).await.unwrap(), shown, "once, as one member's");
    let refused = ask(AlarmAction::Activate).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(ask(AlarmAction::Deactivate).await.unwrap(), shown);
    assert_eq!(ask(AlarmAction::Get).await.unwrap(), []);
    for shard in &topology.shards {
        assert_eq!(shard.alarm(pb::AlarmRequest::default()).await.unwrap().alarms, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_there_is_not_says_what_to_do() {
    let topology = Topology::start(1, &[]).await;
    let (a, registration, _) = proxy(&topology, "a").await;
    let maintenance = MaintenanceService::new(Arc::clone(&a), registration);
    let auth = AuthService::new(a);
    let status = auth.auth_status(Request::new(pb::AuthStatusRequest {})).await.unwrap().into_inner();
    assert!(!status.enabled);
    let token = auth.authenticate(Request::new(pb::AuthenticateRequest::default())).await.unwrap_err();
    assert_eq!(
        (token.code(), token.message()),
        (Code::FailedPrecondition, "etcdserver: authentication is not enabled")
    );
    let refused: Vec<Status> = vec![
        auth.user_add(Request::new(pb::AuthUserAddRequest::default())).await.unwrap_err(),
        auth.auth_enable(Request::new(pb::AuthEnableRequest {})).await.unwrap_err(),
        maintenance.hash_kv(Request::new(pb::HashKvRequest::default())).await.unwrap_err(),
        maintenance.snapshot(Request::new(pb::SnapshotRequest {})).await.err().unwrap(),
        maintenance.move_leader(Request::new(pb::MoveLeaderRequest::default())).await.unwrap_err(),
    ];
    for status in refused {
        assert_eq!(status.code(), Code::Unimplemented);
        assert!(status.message().contains(':'), "no remedy in {}", status.message());
    }
}
