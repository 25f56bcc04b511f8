//! `etcdserverpb.Maintenance`.

use std::sync::Arc;

use futures::{StreamExt, stream::BoxStream};
use pb::downgrade_request::DowngradeAction;
use sharded_etcd_etcd_api::{etcdserverpb::maintenance_server::Maintenance, messages as pb};
use sharded_etcd_shard::{Shard, ShardError};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Service, status};
use crate::{
    errors, hash,
    metrics::{InFlight, Method},
    snapshot::{self, Member},
};

/// Parts of a snapshot that wait for the client at most.
const PARTS_MAX: usize = 4;

impl Service {
    fn cluster_version(&self) -> pb::DowngradeResponse {
        let header = Some(self.engine.shared.current_header());
        pb::DowngradeResponse { header, version: CLUSTER_VERSION.to_owned() }
    }

    fn member(&self) -> Member {
        Member { name: self.engine.name().to_owned(), client_urls: Arc::clone(&self.client_urls) }
    }

    fn downgraded(&self, request: &pb::DowngradeRequest) -> Result<pb::DowngradeResponse, Status> {
        let action = DowngradeAction::try_from(request.action)
            .map_err(|_| Status::unknown("etcdserver: unknown method"))?;
        // There is never one to cancel, which is no error.
        if action == DowngradeAction::Cancel {
            return Ok(self.cluster_version());
        }
        if downgrade_target(&request.version)? != LOWER {
            return Err(Status::invalid_argument("etcdserver: invalid downgrade target version"));
        }
        if action == DowngradeAction::Enable {
            return Err(Status::unimplemented(
                "an embedded engine has one form of data and is not downgraded; restore a snapshot of it with an etcd \
                 of that version instead",
            ));
        }
        Ok(self.cluster_version())
    }

    /// Does what would hold up others in a thread of its own, one of all callers at a time.
    async fn hashed<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ShardError> + Send + 'static,
    ) -> Result<T, Status> {
        let Ok(permit) = Arc::clone(&self.heavy.hashes).acquire_owned().await else {
            return Err(status(errors::stopped()));
        };
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        done.await.map_err(|_| status(errors::stopped()))?.map_err(status)
    }
}

#[tonic::async_trait]
impl Maintenance for Service {
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        self.answer(Method::Alarm, self.engine.alarm(request.into_inner()).await.map_err(status))
    }

    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        self.answer(Method::Status, self.engine.status().await.map_err(status))
    }

    async fn defragment(
        &self,
        _: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        self.answer(Method::Defragment, self.engine.defragment().await.map_err(status))
    }

    async fn hash(&self, _: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        let (shared, member) = (Arc::clone(&self.engine.shared), self.member());
        let work = move || {
            let (revision, layout) = snapshot::newest(&shared, &member).ok_or_else(errors::stopped)?;
            let header = Some(shared.header(revision));
            Ok(pb::HashResponse { header, hash: shared.read(snapshot::hash(&layout).map_err(Into::into))? })
        };
        self.answer(Method::Hash, self.hashed(work).await)
    }

    async fn hash_kv(
        &self,
        request: Request<pb::HashKvRequest>,
    ) -> Result<Response<pb::HashKvResponse>, Status> {
        let shared = Arc::clone(&self.engine.shared);
        let revision = request.into_inner().revision;
        let work = move || {
            let (hash, newest) = hash::hash_kv(&shared, revision)?;
            Ok(pb::HashKvResponse {
                header: Some(shared.header(newest)),
                hash: hash.hash,
                compact_revision: hash.compact_revision,
                hash_revision: hash.revision,
            })
        };
        self.answer(Method::HashKV, self.hashed(work).await)
    }

    type SnapshotStream = BoxStream<'static, Result<pb::SnapshotResponse, Status>>;

    async fn snapshot(
        &self,
        _: Request<pb::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let mut call = InFlight::new(&self.engine.shared, Method::Snapshot);
        // What is being sent stays in memory, and a client may be slow: beyond that it is refused.
        let Ok(permit) = Arc::clone(&self.heavy.snapshots).try_acquire_owned() else {
            return call.see(Err(status(errors::too_many_requests())));
        };
        let (shared, member) = (Arc::clone(&self.engine.shared), self.member());
        let (parts, receiver) = mpsc::channel(PARTS_MAX);
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            snapshot::stream(&shared, &member, parts);
        });
        let parts = ReceiverStream::new(receiver)
            .map(move |part| call.see(part.map_err(status)))
            .take_until(self.shutdown.clone().cancelled_owned());
        Ok(Response::new(parts.boxed()))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        // It leads already.
        let answer = if request.into_inner().target_id == self.engine.member_id() {
            Ok(pb::MoveLeaderResponse { header: None })
        } else {
            Err(Status::failed_precondition("etcdserver: bad leader transferee"))
        };
        self.answer(Method::MoveLeader, answer)
    }

    async fn downgrade(
        &self,
        request: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        self.answer(Method::Downgrade, self.downgraded(&request.into_inner()))
    }
}

/// The version of the cluster, without a patch.
const CLUSTER_VERSION: &str = "3.7";
/// The only version that etcd would downgrade to: one minor release below its own.
const LOWER: (u64, u64) = (3, 6);

/// Major and minor of `3.6` or `3.6.0`.
fn downgrade_target(version: &str) -> Result<(u64, u64), Status> {
    let parts: Option<Vec<u64>> = version.split('.').map(|part| part.parse().ok()).collect();
    match parts.as_deref() {
        Some([major, minor] | [major, minor, _]) => Ok((*major, *minor)),
        _ => Err(Status::invalid_argument("etcdserver: wrong downgrade target version format")),
    }
}
