//! `shard-manager`: one shard manager in a process of its own, over the shards that a routing file names.

use std::{io::Write, sync::Arc};

use anyhow::{Context, Result};
use sharded_etcd_core::topology::Topology;
use sharded_etcd_crd::routing::Routing;
use sharded_etcd_line::{Line, LineOptions, Shards};
use sharded_etcd_manager::{Manager, ManagerOptions};
use tokio::sync::watch;
use tonic::transport::{Server, server::TcpIncoming};

use crate::{admin, cli::ShardManagerArgs, host, listen::listen, routed::Routed, signals};

/// Runs until it is told to stop.
///
/// # Errors
/// If it cannot start, or its port fails.
pub async fn run(args: ShardManagerArgs) -> Result<()> {
    let shutdown = signals::shutdown()?;
    let (routed, changes) = Routed::open(&args.routing, &shutdown).await?;
    let listener = listen(&args.listen).await?;
    let bound = listener.local_addr().context("the port has no address")?;
    let line = Line::start(Arc::clone(&routed.meta), LineOptions::default())
        .await
        .context("the revision line cannot be read")?;
    let shards = Shards::new(Arc::clone(&line), routed.directory.clone());
    let name = args.name.unwrap_or_else(|| format!("{}-{}", host::name(), std::process::id()));
    let (topology, wanted) = watch::channel(Arc::new(topology(&routed.routing)?));
    let manager = Manager::start(ManagerOptions::new(Arc::clone(&line), Arc::clone(&shards), wanted, name));
    let routings = routed.published.subscribe();
    let follower = tokio::spawn(routed.follow(changes));
    let passer = tokio::spawn(pass_on(routings, topology));
    let _ = writeln!(std::io::stdout().lock(), "sharded-etcd shard-manager answers at http://{bound}");
    let routes = admin::routes(&line, &shards, manager.sizes(), None);
    let served = Server::builder()
        .add_routes(routes)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener), shutdown.cancelled_owned())
        .await;
    manager.close().await;
    follower.abort();
    passer.abort();
    line.close().await;
    served.context("the port failed")
}

/// Tells the shard manager what the routing file asks for.
async fn pass_on(mut routings: watch::Receiver<Routing>, wanted: watch::Sender<Arc<Topology>>) {
    while routings.changed().await.is_ok() {
        let next = topology(&routings.borrow_and_update());
        match next {
            Ok(next) => drop(wanted.send_replace(Arc::new(next))),
            Err(error) => tracing::error!("{error:#}; going on as before"),
        }
    }
}

fn topology(routing: &Routing) -> Result<Topology> {
    routing.topology().map_err(|errors| {
        let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("the resource in the routing file: {}", errors.join("; "))
    })
}
