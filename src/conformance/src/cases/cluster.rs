//! Cluster.

use sharded_etcd_etcd_api::messages as pb;
use tonic::Code::NotFound;

use crate::{
    Need, Suite,
    check::{Check, Ctx, needed},
};

async fn members(c: &Ctx, linearizable: bool) -> Check<pb::MemberListResponse> {
    let answer = c.api.cluster.clone().member_list(pb::MemberListRequest { linearizable }).await;
    Ok(needed("MemberList", answer)?.into_inner())
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
            let answer = c.api.cluster.clone().member_remove(pb::MemberRemoveRequest { id: 4711 }).await;
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
        .needs(Need::RaftMembers);
}
