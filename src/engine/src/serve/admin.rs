//! `etcdserverpb.Maintenance` and `etcdserverpb.Cluster`, as far as one member without raft has them.

use futures::stream::BoxStream;
use sharded_etcd_etcd_api::{
    etcdserverpb::{cluster_server::Cluster, maintenance_server::Maintenance},
    messages as pb,
};
use sharded_etcd_shard::Shard;
use tonic::{Request, Response, Status};

use super::{Service, not_here, status};

#[tonic::async_trait]
impl Maintenance for Service {
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        self.engine.alarm(request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        self.engine.status().await.map(Response::new).map_err(status)
    }

    async fn defragment(
        &self,
        _: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        self.engine.defragment().await.map(Response::new).map_err(status)
    }

    async fn hash(&self, _: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        Err(not_here("Hash"))
    }

    async fn hash_kv(&self, _: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        Err(not_here("HashKV"))
    }

    type SnapshotStream = BoxStream<'static, Result<pb::SnapshotResponse, Status>>;

    async fn snapshot(
        &self,
        _: Request<pb::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(not_here("Snapshot"))
    }

    async fn move_leader(
        &self,
        _: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        Err(not_here("MoveLeader"))
    }

    async fn downgrade(
        &self,
        _: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        Err(not_here("Downgrade"))
    }
}

#[tonic::async_trait]
impl Cluster for Service {
    async fn member_add(
        &self,
        _: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        Err(not_here("MemberAdd"))
    }

    async fn member_remove(
        &self,
        _: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        Err(not_here("MemberRemove"))
    }

    async fn member_update(
        &self,
        _: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        Err(not_here("MemberUpdate"))
    }

    async fn member_list(
        &self,
        _: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        let member = pb::Member {
            id: self.engine.member_id(),
            name: self.engine.name().to_owned(),
            peer_ur_ls: Vec::new(),
            client_ur_ls: self.client_urls.to_vec(),
            is_learner: false,
        };
        let header = Some(self.engine.shared.current_header());
        Ok(Response::new(pb::MemberListResponse { header, members: vec![member] }))
    }

    async fn member_promote(
        &self,
        _: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        Err(not_here("MemberPromote"))
    }
}
