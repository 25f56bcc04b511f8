//! What the client port serves besides gRPC: health, version and metrics, as etcd does (server/etcdserver/api/etcdhttp).

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use crate::{
    context::Context,
    metrics::OfShard,
    services::{CLUSTER_VERSION, ETCD_VERSION},
};

/// A health check that takes longer has failed. etcd's own is the request time-out, 7 s; probes give up before.
const CHECK_MAX: Duration = Duration::from_secs(2);

/// The paths.
pub fn router(ctx: Arc<Context>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/version", get(version))
        .route("/metrics", get(metrics))
        .with_state(ctx)
}

/// Why this proxy cannot serve, if so: the line is unusable, or meta does not answer. A shard that is away does not
/// count: everything else is served.
async fn trouble(ctx: &Context) -> Option<String> {
    if let Some(why) = ctx.line.broken() {
        return Some(why);
    }
    if ctx.draining.is_cancelled() || ctx.shutdown.is_cancelled() {
        return Some("shutting down".to_owned());
    }
    match tokio::time::timeout(CHECK_MAX, ctx.line.refresh()).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("meta does not answer".to_owned()),
    }
}

async fn health(State(ctx): State<Arc<Context>>) -> Response {
    let (code, body) = match trouble(&ctx).await {
        None => (StatusCode::OK, serde_json::json!({"health": "true", "reason": ""})),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, serde_json::json!({"health": "false", "reason": why})),
    };
    (code, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

async fn livez(State(ctx): State<Arc<Context>>) -> Response {
    match ctx.line.broken() {
        None => "ok\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn readyz(State(ctx): State<Arc<Context>>) -> Response {
    match trouble(&ctx).await {
        None => "ok\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn version() -> Response {
    let body = serde_json::json!({
        "etcdserver": ETCD_VERSION, "etcdcluster": CLUSTER_VERSION, "storage": CLUSTER_VERSION,
    });
    ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

async fn metrics(State(ctx): State<Arc<Context>>) -> Response {
    let m = &ctx.metrics;
    let cut = ctx.line.cut();
    m.line_revision.set(cut.revision);
    m.line_position.set(cut.position);
    m.line_segments.set(i64::try_from(ctx.line.with_fold(|f| f.segment_count())).unwrap_or(i64::MAX));
    let stats = &ctx.line.stats;
    m.line_appends.set(stats.appends.load(std::sync::atomic::Ordering::Relaxed));
    m.line_refreshes.set(stats.refreshes.load(std::sync::atomic::Ordering::Relaxed));
    let quarantined = ctx.shards.quarantined();
    for (i, name) in cut.names.iter().enumerate() {
        let is = quarantined.iter().any(|(ix, _)| ix.index() == i);
        m.quarantined.get_or_create(&OfShard { shard: name.to_string() }).set(i64::from(is));
    }
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], m.encode())
        .into_response()
}
