//! `proxy`: one proxy in a process of its own, over the shards that a routing file names.
//!
//! In a cluster (`bootstrap` in the routing file) it waits for meta and the topology in it, for as long as it takes; its
//! port opens when it can serve. Under `up`, which has started the topology already, what is missing is an error.

use std::{io::Write, path::Path, sync::Arc};

use anyhow::{Context, Result};
use sharded_etcd_crd::routing::Routing;
use sharded_etcd_line::{Line, LineOptions, Shards};
use sharded_etcd_manager::Sizes;
use sharded_etcd_proxy::{Drain, Proxy, ProxyOptions, context::Limits};
use sharded_etcd_shard::{Relay, Shard};
use tokio::sync::watch;

use crate::{
    admin,
    cli::{ProxyArgs, WatchArgs, client_urls},
    host,
    listen::listen,
    patience::until_it_succeeds,
    routed::{Routed, check_meta},
    signals,
};

/// Runs until it is told to stop.
///
/// # Errors
/// If it cannot start, or the client port fails.
pub async fn run(args: ProxyArgs) -> Result<()> {
    let shutdown = signals::shutdown()?;
    let routed = Routed::open(&args.routing)?;
    let (meta, directory) = (Arc::clone(&routed.meta), routed.directory.clone());
    let mut routings = routed.published.subscribe();
    let follower = tokio::spawn(routed.follow(shutdown.clone()));
    let line = tokio::select! {
        line = start(&args.routing, &meta, &routings) => line?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let listener = listen(&args.listen.listen).await?;
    let bound = listener.local_addr().context("the client port has no address")?;
    let urls = client_urls(&args.listen.advertise_client_urls, &[bound]);
    let shards = Shards::new(Arc::clone(&line), directory);
    let sizes = Sizes::new(Arc::clone(&line), Arc::clone(&shards));
    let admin = admin::routes(&line, &shards, &sizes, urls.first().cloned());
    let routing = routings.borrow_and_update().clone();
    let options = ProxyOptions {
        line: Arc::clone(&line),
        shards,
        name: args.name.unwrap_or_else(|| format!("{}-{}", host::name(), bound.port())),
        client_urls: urls.clone(),
        limits: limits(&routing, &args.watch),
        generation: generation(&routing),
        drain: Drain { delay: args.drain_delay, max: args.drain_max },
    };
    let proxy = Proxy::start(options).await?;
    let passer = tokio::spawn(pass_on(routings, Arc::clone(&proxy)));
    let _ = writeln!(std::io::stdout().lock(), "sharded-etcd proxy serves at {}", urls.join(" "));
    let served = proxy.serve(listener, admin, shutdown).await;
    passer.abort();
    follower.abort();
    line.close().await;
    Ok(served?)
}

/// The line of a topology that is there.
async fn start(path: &Path, meta: &Arc<Relay>, routings: &watch::Receiver<Routing>) -> Result<Arc<Line>> {
    let attempt = async || {
        let routing = routings.borrow().clone();
        check_meta(meta.as_ref(), &routing, path).await?;
        let line = Line::start(Arc::clone(meta) as Arc<dyn Shard>, LineOptions::default());
        line.await.context("the revision line cannot be read")
    };
    let bootstrap = routings.borrow().bootstrap;
    if bootstrap { Ok(until_it_succeeds(|_| {}, attempt).await) } else { attempt().await }
}

/// Tells the proxy which contents of the routing file its connections are of.
async fn pass_on(mut routings: watch::Receiver<Routing>, proxy: Arc<Proxy>) {
    while routings.changed().await.is_ok() {
        proxy.took_up(generation(&routings.borrow_and_update()));
    }
}

fn generation(routing: &Routing) -> Option<i64> {
    routing.resource.metadata.generation.filter(|generation| *generation > 0)
}

/// The limits that a resource and flags set.
fn limits(routing: &Routing, watch: &WatchArgs) -> Limits {
    let asked = routing.topology().ok().and_then(|topology| topology.quota_bytes);
    let quota = asked.unwrap_or(crate::up::ETCD_QUOTA_BYTES);
    Limits {
        quota_bytes: i64::try_from(quota).unwrap_or(i64::MAX),
        progress_interval: watch.watch_progress_notify_interval,
        ..Limits::default()
    }
}
