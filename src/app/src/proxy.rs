//! `proxy`: one proxy in a process of its own, over the shards that a routing file names.

use std::{io::Write, sync::Arc};

use anyhow::{Context, Result};
use sharded_etcd_crd::routing::Routing;
use sharded_etcd_line::{Line, LineOptions, Shards};
use sharded_etcd_manager::Sizes;
use sharded_etcd_proxy::{Proxy, ProxyOptions, context::Limits};

use crate::{
    admin,
    cli::{ProxyArgs, client_urls},
    host,
    listen::listen,
    routed::Routed,
    signals,
};

/// Runs until it is told to stop.
///
/// # Errors
/// If it cannot start, or the client port fails.
pub async fn run(args: ProxyArgs) -> Result<()> {
    let shutdown = signals::shutdown()?;
    let (routed, changes) = Routed::open(&args.routing, &shutdown).await?;
    let listener = listen(&args.listen.listen).await?;
    let bound = listener.local_addr().context("the client port has no address")?;
    let urls = client_urls(&args.listen.advertise_client_urls, bound);
    let line = Line::start(Arc::clone(&routed.meta), LineOptions::default())
        .await
        .context("the revision line cannot be read")?;
    let shards = Shards::new(Arc::clone(&line), routed.directory.clone());
    let sizes = Sizes::new(Arc::clone(&line), Arc::clone(&shards));
    let admin = admin::routes(&line, &shards, &sizes, urls.first().cloned());
    let options = ProxyOptions {
        line: Arc::clone(&line),
        shards,
        name: args.name.unwrap_or_else(|| format!("{}-{}", host::name(), bound.port())),
        client_urls: urls.clone(),
        limits: limits(&routed.routing),
    };
    let proxy = Proxy::start(options).await?;
    let follower = tokio::spawn(routed.follow(changes));
    let _ = writeln!(std::io::stdout().lock(), "sharded-etcd proxy serves at {}", urls.join(" "));
    let served = proxy.serve(listener, admin, shutdown).await;
    follower.abort();
    line.close().await;
    Ok(served?)
}

/// The limits that a resource sets.
fn limits(routing: &Routing) -> Limits {
    let asked = routing.topology().ok().and_then(|topology| topology.quota_bytes);
    let quota = asked.unwrap_or(crate::up::ETCD_QUOTA_BYTES);
    Limits { quota_bytes: i64::try_from(quota).unwrap_or(i64::MAX), ..Limits::default() }
}
