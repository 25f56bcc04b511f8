//! The port of a shard manager: open from the start, so that whoever asks hears why nothing is served yet.
//!
//! gRPC: the admin service, `Unavailable` with the reason until the shard manager works. HTTP/1 and HTTP/2: `/livez` (200
//! as long as the process runs), `/readyz` (503 with the reason until it works), `/metrics`.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use axum::{
    Router,
    extract::State as FromState,
    http::{StatusCode, header},
    response::{IntoResponse, Response as HttpResponse},
    routing::get,
};
use parking_lot::RwLock;
use sharded_etcd_admin_api::v1::{
    OrderRequest, OrderResponse, OrderStateRequest, OrderStateResponse, PlanRequest, PlanResponse,
    StatusRequest, StatusResponse,
    admin_server::{Admin, AdminServer},
};
use sharded_etcd_line::Line;
use sharded_etcd_manager::{AdminService, Manager};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status,
    service::Routes,
    transport::{Server, server::TcpIncoming},
};

/// How long requests under way may take once the process is told to stop.
const STOP_MAX: Duration = Duration::from_secs(3);

/// What answers on the port.
pub struct Front {
    state: RwLock<State>,
}

enum State {
    /// Nothing is served yet, or any more: why.
    Waits(String),
    Works(Arc<Works>),
}

/// A shard manager that works: leading, or standing by.
pub struct Works {
    /// Answers `status` and `plan`.
    pub admin: AdminService,
    /// Its line.
    pub line: Arc<Line>,
    /// The manager itself.
    pub manager: Arc<Manager>,
}

impl Front {
    /// One for a process that has just begun.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: RwLock::new(State::Waits("starting".to_owned())) })
    }

    /// Nothing is served; why.
    pub fn waits(&self, why: &str) {
        *self.state.write() = State::Waits(why.to_owned());
    }

    /// Everything is served from now on.
    pub fn works(&self, works: Works) {
        *self.state.write() = State::Works(Arc::new(works));
    }

    fn now(&self) -> Result<Arc<Works>, String> {
        match &*self.state.read() {
            State::Waits(why) => Err(why.clone()),
            State::Works(works) => Ok(Arc::clone(works)),
        }
    }

    /// Serves until shutdown, and lets requests under way finish for a bounded time.
    ///
    /// # Errors
    /// If the port fails.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, shutdown: CancellationToken) -> Result<()> {
        let http = Router::new()
            .route("/livez", get(async || "ok\n"))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(Arc::clone(&self));
        let router = Routes::new(AdminServer::new(Gate(self))).prepare().into_axum_router().merge(http);
        let serving = Server::builder()
            .accept_http1(true)
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .add_routes(Routes::from(router))
            .serve_with_incoming_shutdown(TcpIncoming::from(listener), shutdown.clone().cancelled_owned());
        tokio::select! {
            served = serving => served.context("the port failed"),
            () = async {
                shutdown.cancelled().await;
                tokio::time::sleep(STOP_MAX).await;
            } => Ok(()),
        }
    }
}

async fn readyz(FromState(front): FromState<Arc<Front>>) -> HttpResponse {
    let trouble = match front.now() {
        Ok(works) => works.line.broken(),
        Err(why) => Some(why),
    };
    match trouble {
        None => "ok\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn metrics(FromState(front): FromState<Arc<Front>>) -> HttpResponse {
    // Without anything in it the text ends with its end mark all the same.
    let text = front.now().map_or_else(|_| "# EOF\n".to_owned(), |works| works.manager.metrics_text());
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
        .into_response()
}

/// The admin service, once there is one.
struct Gate(Arc<Front>);

impl Gate {
    fn open(&self) -> Result<Arc<Works>, Status> {
        self.0.now().map_err(Status::unavailable)
    }
}

#[tonic::async_trait]
impl Admin for Gate {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.open()?.admin.status(request).await
    }

    async fn plan(&self, request: Request<PlanRequest>) -> Result<Response<PlanResponse>, Status> {
        self.open()?.admin.plan(request).await
    }

    async fn order(&self, request: Request<OrderRequest>) -> Result<Response<OrderResponse>, Status> {
        self.open()?.admin.order(request).await
    }

    async fn order_state(
        &self,
        request: Request<OrderStateRequest>,
    ) -> Result<Response<OrderStateResponse>, Status> {
        self.open()?.admin.order_state(request).await
    }
}
