//! etcd's `Cluster` service: the members that clients see are the proxies.

use std::sync::Arc;

use sharded_etcd_etcd_api::{etcdserverpb::cluster_server::Cluster, messages as pb};
use tonic::{Request, Response, Status};

use crate::{
    context::{Context, status_of},
    register::{Proxies, Registration},
};

/// etcd's `Cluster` service.
pub struct ClusterService {
    ctx: Arc<Context>,
    registration: Arc<Registration>,
}

impl ClusterService {
    /// The service; members are the live registrations.
    pub fn new(ctx: Arc<Context>, registration: Arc<Registration>) -> Self {
        Self { ctx, registration }
    }
}

/// The proxies as members, by id. They have no peers.
fn members(proxies: Proxies) -> Vec<pb::Member> {
    let member = |(id, proxy): (u64, sharded_etcd_core::records::ProxyRecord)| pb::Member {
        id,
        name: proxy.name,
        client_ur_ls: proxy.client_urls,
        ..Default::default()
    };
    proxies.into_iter().map(member).collect()
}

/// The answer to calls that would change members.
fn declared(what: &str) -> Status {
    Status::unimplemented(format!(
        "{what}: members are declared, not added by hand; set spec.proxy.replicas for more or fewer endpoints, and \
         spec.shards for more or fewer shards"
    ))
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    /// Clients dial what this says (clientv3's `Sync`).
    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        let proxies = if request.into_inner().linearizable {
            self.registration.read_proxies().await.map_err(status_of)?
        } else {
            self.registration.proxies()
        };
        let header = self.ctx.header(self.ctx.line.cut().revision);
        Ok(Response::new(pb::MemberListResponse { header: Some(header), members: members(proxies) }))
    }

    async fn member_add(
        &self,
        _: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        Err(declared("a member cannot be added"))
    }

    async fn member_remove(
        &self,
        _: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        Err(declared("a member cannot be removed"))
    }

    async fn member_update(
        &self,
        _: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        Err(declared("a member cannot be updated"))
    }

    async fn member_promote(
        &self,
        _: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        Err(declared("a member cannot be promoted"))
    }
}
