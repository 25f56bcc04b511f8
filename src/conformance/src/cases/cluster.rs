//! Cluster.

use std::time::Duration;

use pb::downgrade_request::DowngradeAction;
use sharded_etcd_etcd_api::messages as pb;
use tonic::{
    Code::{FailedPrecondition, InvalidArgument, NotFound, Unknown},
    Status,
};

use crate::{
    Need, Suite,
    check::{Check, Ctx, needed},
};

async fn members(c: &Ctx, linearizable: bool) -> Check<pb::MemberListResponse> {
    let answer = c.api.cluster.clone().member_list(pb::MemberListRequest { linearizable }).await;
    Ok(needed("MemberList", answer)?.into_inner())
}

/// How long a change of the members is waited for before it is asked for again.
const CHANGE_MAX: Duration = Duration::from_secs(4);

/// Asks for a change of the members that is refused. While another one is not applied yet, etcd drops a change silently
/// and waits for it as long as the client does (raft: "possible unapplied conf change"); cases run side by side.
async fn change<T, F: Future<Output = Result<T, Status>>>(ask: impl Fn() -> F) -> Result<T, Status> {
    for _ in 0..5 {
        if let Ok(answer) = tokio::time::timeout(CHANGE_MAX, ask()).await {
            return answer;
        }
    }
    ask().await
}

pub(super) fn add(suite: &mut Suite) {
    for linearizable in [true, false] {
        let kind = if linearizable { "linearizable" } else { "serializable" };
        suite.case(
            format!("cluster/members/{kind}"),
            format!(
                "the member that answers is listed with a name and an URL that clients can dial \
({kind})"
            ),
            move |c| async move {
                let answer = members(&c, linearizable).await?;
                let header = answer.header.unwrap_or_default();
                let own: Vec<_> =
                    answer.members.iter().filter(|member| member.id == header.member_id).collect();
                c.same("times it is listed", own.len(), 1);
                for member in own {
                    c.holds("it has a name", !member.name.is_empty());
                    c.same("learner", member.is_learner, false);
                    let dialled = member.client_ur_ls.iter().any(|url| url.starts_with("http://127.0.0.1:"));
                    c.holds("it has a client URL", dialled);
                }
                Ok(())
            },
        );
    }
    suite.case(
        "cluster/members/dial",
        "the URL that is listed serves the same cluster (clientv3's Sync)",
        |c| async move {
            c.put("b/1", "x").await?;
            let answer = members(&c, true).await?;
            let cluster_id = answer.header.unwrap_or_default().cluster_id;
            for url in answer.members.iter().flat_map(|member| &member.client_ur_ls) {
                let api = crate::Api::connect(url).await;
                let api = api.map_err(|error| crate::Stop(format!("{url} cannot be dialled: {error}")))?;
                let read = needed("Range", api.kv.clone().range(c.all()).await)?.into_inner();
                c.same("cluster", read.header.unwrap_or_default().cluster_id, cluster_id);
                c.same("pairs", c.words(&read.kvs), "b/1=x");
            }
            Ok(())
        },
    );
    suite.case("cluster/members/leader", "the leader that Status names is listed", |c| async move {
        let answer = c.api.maintenance.clone().status(pb::StatusRequest {}).await;
        let leader = needed("Status", answer)?.into_inner().leader;
        let listed = members(&c, true).await?.members.iter().any(|member| member.id == leader);
        c.holds("it is listed", listed);
        Ok(())
    });
    suite
        .case("cluster/remove/unknown", "removing a member that does not exist is refused", |c| async move {
            let ask =
                || async { c.api.cluster.clone().member_remove(pb::MemberRemoveRequest { id: 4711 }).await };
            let answer = change(ask).await;
            c.refused(answer, NotFound, "etcdserver: member not found");
            Ok(())
        })
        .needs(Need::RaftMembers);
    suite
        .case("cluster/members/peers", "a member has a peer URL", |c| async move {
            let answer = members(&c, true).await?;
            c.holds("all have one", answer.members.iter().all(|member| !member.peer_ur_ls.is_empty()));
            Ok(())
        })
        .needs(Need::Peers);
    changes(suite);
}

/// Changes of the members that are refused, and what goes without any.
fn changes(suite: &mut Suite) {
    suite
        .case("cluster/remove/only", "the only member is not removed", |c| async move {
            let id = own_id(&c).await?;
            let ask = || async { c.api.cluster.clone().member_remove(pb::MemberRemoveRequest { id }).await };
            let answer = change(ask).await;
            c.refused(
                answer,
                // etcd forgets to translate this one.
                Unknown,
                "etcdserver: re-configuration failed due to not enough started members",
            );
            Ok(())
        })
        .needs(Need::RaftMembers);
    suite
        .case(
            "cluster/promote/unknown",
            "promoting a member that does not exist is refused",
            |c| async move {
                let ask = || async {
                    c.api.cluster.clone().member_promote(pb::MemberPromoteRequest { id: 4711 }).await
                };
                let answer = change(ask).await;
                c.refused(answer, NotFound, "etcdserver: member not found");
                Ok(())
            },
        )
        .needs(Need::RaftMembers);
    suite
        .case("cluster/promote/no-learner", "only a learner can be promoted", |c| async move {
            let id = own_id(&c).await?;
            let ask =
                || async { c.api.cluster.clone().member_promote(pb::MemberPromoteRequest { id }).await };
            let answer = change(ask).await;
            c.refused(answer, FailedPrecondition, "etcdserver: can only promote a learner member");
            Ok(())
        })
        .needs(Need::RaftMembers);
    suite
        .case("cluster/update/unknown", "changing a member that does not exist is refused", |c| async move {
            let peer_ur_ls = vec!["http://127.0.0.1:1".to_owned()];
            let request = pb::MemberUpdateRequest { id: 4711, peer_ur_ls };
            c.refused(
                change(|| async { c.api.cluster.clone().member_update(request.clone()).await }).await,
                NotFound,
                "etcdserver: member not found",
            );
            Ok(())
        })
        .needs(Need::RaftMembers);
    for (name, urls) in [
        ("none", &[][..]),
        ("no-url", &["127.0.0.1:1"]),
        ("no-port", &["http://127.0.0.1"]),
        ("path", &["http://127.0.0.1:1/path"]),
        ("other-scheme", &["ftp://127.0.0.1:1"]),
        ("one-of-two", &["http://127.0.0.1:1", ""]),
    ] {
        suite
            .case(
                format!("cluster/add/{name}"),
                "a member without proper peer URLs is not added",
                move |c| async move {
                    let peer_ur_ls = urls.iter().map(|url| (*url).to_owned()).collect();
                    let request = pb::MemberAddRequest { peer_ur_ls, is_learner: false };
                    c.refused(
                        c.api.cluster.clone().member_add(request).await,
                        InvalidArgument,
                        "etcdserver: given member URLs are invalid",
                    );
                    Ok(())
                },
            )
            .needs(Need::RaftMembers);
    }
    suite
        .case("cluster/move-leader/itself", "the leader can be moved to where it is", |c| async move {
            let target_id = own_id(&c).await?;
            let answer = c.api.maintenance.clone().move_leader(pb::MoveLeaderRequest { target_id }).await;
            needed("MoveLeader", answer)?;
            Ok(())
        })
        .needs(Need::RaftMembers);
    suite
        .case("cluster/move-leader/unknown", "the leader is not moved to nobody", |c| async move {
            let answer =
                c.api.maintenance.clone().move_leader(pb::MoveLeaderRequest { target_id: 4711 }).await;
            c.refused(answer, FailedPrecondition, "etcdserver: bad leader transferee");
            Ok(())
        })
        .needs(Need::RaftMembers);
    for version in ["3.6", "3.6.0", "3.6.7"] {
        suite
            .case(
                format!("cluster/downgrade/validate/{version}"),
                "a downgrade by one minor release would be possible",
                move |c| async move {
                    // etcd decides on the version of a new cluster a moment after the start.
                    let version = c
                        .until("there is a version", || async {
                            Ok(downgrade(&c, DowngradeAction::Validate, version).await.ok())
                        })
                        .await?;
                    c.same("version", version, "3.7");
                    Ok(())
                },
            )
            .needs(Need::RaftMembers);
    }
    for version in ["3.5", "3.7", "3.8", "4.6"] {
        for action in [DowngradeAction::Validate, DowngradeAction::Enable] {
            suite
                .case(
                    format!("cluster/downgrade/{}/{version}", action.as_str_name().to_lowercase()),
                    "a downgrade by anything but one minor release is refused",
                    move |c| async move {
                        c.refused(
                            downgrade(&c, action, version).await,
                            InvalidArgument,
                            "etcdserver: invalid downgrade target version",
                        );
                        Ok(())
                    },
                )
                .needs(Need::RaftMembers);
        }
    }
    for version in ["", "3", "three", "3.6.x"] {
        suite
            .case(
                format!("cluster/downgrade/malformed/{version:?}"),
                "a downgrade to what is no version is refused",
                move |c| async move {
                    c.refused(
                        downgrade(&c, DowngradeAction::Validate, version).await,
                        InvalidArgument,
                        "etcdserver: wrong downgrade target version format",
                    );
                    Ok(())
                },
            )
            .needs(Need::RaftMembers);
    }
    suite
        .case("cluster/downgrade/cancel", "cancelling no downgrade is no error", |c| async move {
            let version = needed("Downgrade", downgrade(&c, DowngradeAction::Cancel, "").await)?;
            c.same("version", version, "3.7");
            Ok(())
        })
        .needs(Need::RaftMembers);
    suite
        .case("cluster/members/header", "the header has no revision", |c| async move {
            let header = members(&c, true).await?.header.unwrap_or_default();
            c.same("revision", header.revision, 0);
            c.holds(
                "it has the rest",
                header.cluster_id != 0 && header.member_id != 0 && header.raft_term > 0,
            );
            Ok(())
        })
        .needs(Need::RaftMembers);
}

async fn own_id(c: &Ctx) -> Check<u64> {
    Ok(members(c, true).await?.header.unwrap_or_default().member_id)
}

async fn downgrade(c: &Ctx, action: DowngradeAction, version: &str) -> Result<String, Status> {
    let request = pb::DowngradeRequest { action: action.into(), version: version.to_owned() };
    c.api.maintenance.clone().downgrade(request).await.map(|answer| answer.into_inner().version)
}
