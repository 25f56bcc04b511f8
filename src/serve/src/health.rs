//! `grpc.health.v1.Health`, which gRPC probes and clients that balance ask: of the server as a whole, as etcd has it
//! (server/etcdserver/api/v3rpc/health.go).

use std::collections::HashMap;

use futures::{
    FutureExt, StreamExt,
    stream::{self, BoxStream},
};
use sharded_etcd_etcd_api::health::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// The name of the server as a whole; there is no other.
const WHOLE: &str = "";

/// Says that it serves until it drains.
#[derive(Debug, Clone)]
pub struct ServerHealth {
    draining: CancellationToken,
    shutdown: CancellationToken,
}

impl ServerHealth {
    /// A server that takes no new clients from `draining` on, and whose streams end at `shutdown`.
    pub fn new(draining: CancellationToken, shutdown: CancellationToken) -> Self {
        Self { draining, shutdown }
    }

    /// `grpc.health.v1.Health`.
    pub fn server(self) -> HealthServer<Self> {
        HealthServer::new(self)
    }

    fn now(&self) -> HealthCheckResponse {
        let is_draining = self.draining.is_cancelled() || self.shutdown.is_cancelled();
        answer(if is_draining { ServingStatus::NotServing } else { ServingStatus::Serving })
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for ServerHealth {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        match request.into_inner().service.as_str() {
            WHOLE => Ok(Response::new(self.now())),
            _ => Err(Status::not_found("unknown service")),
        }
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        let statuses = HashMap::from([(WHOLE.to_owned(), self.now())]);
        Ok(Response::new(HealthListResponse { statuses }))
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    /// Sends the state now and each change. One of a service that is not there may come to be, so the stream stays open.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let is_whole = request.into_inner().service == WHOLE;
        let first = if is_whole { self.now() } else { answer(ServingStatus::ServiceUnknown) };
        let changes = if is_whole && first == answer(ServingStatus::Serving) {
            let not_serving = Ok(answer(ServingStatus::NotServing));
            self.draining.clone().cancelled_owned().map(move |()| not_serving).into_stream().boxed()
        } else {
            stream::empty().boxed()
        };
        let open = changes.chain(stream::pending()).take_until(self.shutdown.clone().cancelled_owned());
        let stopped = async { Err(Status::unavailable("etcdserver: server stopped")) };
        let answers = stream::once(async move { Ok(first) }).chain(open).chain(stream::once(stopped));
        Ok(Response::new(answers.boxed()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn a_server_that_drains_says_so_to_who_asks_and_to_who_listens() {
        let (draining, shutdown) = (CancellationToken::new(), CancellationToken::new());
        let health = ServerHealth::new(draining.clone(), shutdown.clone());
        let whole = || Request::new(HealthCheckRequest::default());
        let other = || Request::new(HealthCheckRequest { service: "other".to_owned() });
        let mut changes = health.watch(whole()).await.unwrap().into_inner();
        let mut others = health.watch(other()).await.unwrap().into_inner();
        assert_eq!(changes.next().await.unwrap().unwrap().status(), ServingStatus::Serving);
        assert_eq!(others.next().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
        draining.cancel();
        assert_eq!(changes.next().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        assert_eq!(health.check(whole()).await.unwrap().into_inner().status(), ServingStatus::NotServing);
        let mut late = health.watch(whole()).await.unwrap().into_inner();
        assert_eq!(late.next().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        shutdown.cancel();
        for stream in [&mut changes, &mut others, &mut late] {
            assert_eq!(stream.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
            assert!(stream.next().await.is_none());
        }
    }
}
