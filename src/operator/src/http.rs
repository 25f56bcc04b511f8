//! Health and metrics over HTTP.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use kube::runtime::reflector::Store;
use sharded_etcd_crd::{ShardedEtcd, status::ConditionStatus};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::{Server, server::TcpIncoming},
};

use crate::{error::RunError, metrics::Metrics};

/// What health and metrics are answered from.
pub(crate) struct Health {
    pub(crate) metrics: Arc<Metrics>,
    /// The watches have shown everything once: this replica could act at once.
    synced: AtomicBool,
    resources: OnceLock<Store<ShardedEtcd>>,
}

impl Health {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { metrics, synced: AtomicBool::new(false), resources: OnceLock::new() })
    }

    pub(crate) fn set_resources(&self, resources: Store<ShardedEtcd>) {
        // Only the first run of an operator is shown.
        let _ = self.resources.set(resources);
    }

    pub(crate) fn set_synced(&self) {
        self.synced.store(true, Ordering::Relaxed);
    }
}

/// The paths.
pub(crate) fn router(health: Arc<Health>) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(health)
}

async fn readyz(State(health): State<Arc<Health>>) -> Response {
    if health.synced.load(Ordering::Relaxed) {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "the watches have not shown everything yet\n").into_response()
}

async fn metrics(State(health): State<Arc<Health>>) -> Response {
    let resources = health.resources.get().map(Store::state).unwrap_or_default();
    let not_ready = resources.iter().filter(|resource| !is_ready(resource)).count();
    let text = health.metrics.text(resources.len(), not_ready);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

fn is_ready(resource: &ShardedEtcd) -> bool {
    let mut conditions = resource.status.iter().flat_map(|status| &status.conditions);
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == ConditionStatus::True)
}

/// Serves until `stop`.
///
/// # Errors
/// [`RunError::Listen`] if the address cannot be had.
pub(crate) async fn serve(
    address: SocketAddr,
    health: Arc<Health>,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let listener = TcpListener::bind(address).await.map_err(|source| RunError::Listen { address, source })?;
    let served = Server::builder()
        .accept_http1(true)
        .add_routes(Routes::from(router(health)))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener), stop.cancelled_owned())
        .await;
    served.map_err(|error| RunError::Listen { address, source: std::io::Error::other(error) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    async fn get_path(health: &Arc<Health>, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = router(Arc::clone(health)).oneshot(request).await.unwrap();
        let code = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (code, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn ready_once_the_watches_have_shown_everything() {
        let health = Health::new(Metrics::new());
        assert_eq!(get_path(&health, "/livez").await.0, StatusCode::OK);
        assert_eq!(get_path(&health, "/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
        health.set_synced();
        assert_eq!(get_path(&health, "/readyz").await.0, StatusCode::OK);
        let (code, text) = get_path(&health, "/metrics").await;
        assert_eq!(code, StatusCode::OK);
        assert!(text.contains("sharded_etcd_operator_resources 0"), "{text}");
    }
}
