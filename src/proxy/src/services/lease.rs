//! etcd's `Lease` service.

use std::sync::Arc;

use futures::stream::BoxStream;
use sharded_etcd_etcd_api::{etcdserverpb::lease_server::Lease, messages as pb};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::count::count;
use crate::{context::Context, lease::Leases};

/// Answers to keep-alives that a slow client has not taken yet; then it is asked for no more of them.
const ANSWERS_MAX: usize = 16;

/// etcd's `Lease` service over [`Leases`].
pub struct LeaseService {
    ctx: Arc<Context>,
    leases: Arc<Leases>,
}

impl LeaseService {
    /// The service.
    pub fn new(ctx: Arc<Context>, leases: Arc<Leases>) -> Self {
        Self { ctx, leases }
    }
}

#[tonic::async_trait]
impl Lease for LeaseService {
    type LeaseKeepAliveStream = BoxStream<'static, Result<pb::LeaseKeepAliveResponse, Status>>;

    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let pb::LeaseGrantRequest { ttl, id } = request.into_inner();
        count(&self.ctx, "LeaseGrant", self.leases.grant(ttl, id).await)
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        count(&self.ctx, "LeaseRevoke", self.leases.revoke(request.into_inner().id).await)
    }

    /// Answers each request in turn, as etcd does, until the client closes the stream.
    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let mut requests = request.into_inner();
        let (answers, stream) = mpsc::channel(ANSWERS_MAX);
        let leases = Arc::clone(&self.leases);
        let shutdown = self.ctx.shutdown.clone();
        self.ctx.tasks.spawn(async move {
            loop {
                let request = tokio::select! {
                    biased;
                    () = shutdown.cancelled() => Err(Status::unavailable("etcdserver: server stopped")),
                    () = answers.closed() => return,
                    request = requests.message() => request,
                };
                let answer = match request {
                    Ok(Some(request)) => leases.keep_alive(request.id).await,
                    Ok(None) => return,
                    Err(status) => Err(status),
                };
                let last = answer.is_err();
                if answers.send(answer).await.is_err() || last {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        count(&self.ctx, "LeaseTimeToLive", self.leases.time_to_live(request.into_inner()).await)
    }

    async fn lease_leases(
        &self,
        _: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        count(&self.ctx, "LeaseLeases", self.leases.leases().await)
    }
}
