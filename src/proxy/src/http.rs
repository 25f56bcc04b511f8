//! What the client port serves besides gRPC: health, version and metrics, as etcd does (server/etcdserver/api/etcdhttp).

use std::{sync::Arc, time::Duration};

use axum::Router;
use futures::{FutureExt, future::BoxFuture};
use sharded_etcd_etcd_api::messages::AlarmType;
use sharded_etcd_serve::probes::{Probed, with_probes};

use crate::{context::Context, metrics::OfShard, services::ETCD_VERSION};

/// A health check that takes longer has failed. etcd's own is the request time-out, 7 s; probes give up before.
const CHECK_MAX: Duration = Duration::from_secs(2);

/// The gRPC services with what is beside them.
pub fn with_http(grpc: Router, ctx: Arc<Context>) -> Router {
    with_probes(grpc, Arc::new(Probe(ctx)), |probe| metrics(&probe.0))
}

/// How a proxy is.
struct Probe(Arc<Context>);

impl Probed for Probe {
    /// None: alarms are of shards, each of which stops its own writes only.
    fn alarms(&self) -> BoxFuture<'_, Result<Vec<AlarmType>, String>> {
        async { Ok(Vec::new()) }.boxed()
    }

    fn lives(&self) -> BoxFuture<'_, Result<(), String>> {
        async { self.0.line.broken().map_or(Ok(()), Err) }.boxed()
    }

    fn serves(&self) -> BoxFuture<'_, Result<(), String>> {
        async { trouble(&self.0).await.map_or(Ok(()), Err) }.boxed()
    }

    fn release(&self) -> &'static str {
        ETCD_VERSION
    }
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

fn metrics(ctx: &Context) -> String {
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
    m.encode()
}
