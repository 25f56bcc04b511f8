//! `etcdserverpb.Lease`.

use futures::{StreamExt, future::ready, stream};
use sharded_etcd_etcd_api::{etcdserverpb::lease_server::Lease, messages as pb};
use sharded_etcd_shard::Shard;
use tonic::{Request, Response, Status, Streaming};

use super::{Service, status};
use crate::{
    errors,
    metrics::{InFlight, Method},
};

#[tonic::async_trait]
impl Lease for Service {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        self.answer(Method::LeaseGrant, self.engine.lease_grant(request.into_inner()).await.map_err(status))
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        self.answer(Method::LeaseRevoke, self.engine.lease_revoke(request.into_inner()).await.map_err(status))
    }

    type LeaseKeepAliveStream = stream::BoxStream<'static, Result<pb::LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let engine = std::sync::Arc::clone(&self.engine);
        let shutdown = self.shutdown.clone();
        let mut call = InFlight::new(&self.engine.shared, Method::LeaseKeepAlive);
        // One renewal after the other, and the stream ends with its first error.
        let answers = request
            .into_inner()
            .then(move |request| {
                let engine = std::sync::Arc::clone(&engine);
                async move { engine.lease_keep_alive(request?.id).await.map_err(status) }
            })
            .map(move |answer| call.see(answer))
            .take_until(shutdown.clone().cancelled_owned());
        // As for watches: a server that stops says so.
        let told = async move { shutdown.is_cancelled().then(|| Err(status(errors::stopped()))) };
        Ok(Response::new(answers.chain(stream::once(told).filter_map(ready)).boxed()))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        self.answer(
            Method::LeaseTimeToLive,
            self.engine.lease_time_to_live(request.into_inner()).await.map_err(status),
        )
    }

    async fn lease_leases(
        &self,
        _: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        self.answer(Method::LeaseLeases, self.engine.lease_leases().await.map_err(status))
    }
}
