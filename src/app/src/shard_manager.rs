//! `shard-manager`: one shard manager in a process of its own, over the shards that a routing file names.
//!
//! In a cluster (`bootstrap` in the routing file) everything starts at once: the port opens first, then meta and the
//! shards are waited for, for as long as it takes, and a topology that is not there yet is started
//! ([`sharded_etcd_manager::start_topology`]). Under `up`, which has started it already, what is missing is an error.

use std::{io::Write, path::Path, sync::Arc};

use anyhow::{Context, Result};
use sharded_etcd_core::topology::Topology;
use sharded_etcd_crd::routing::Routing;
use sharded_etcd_line::{Line, LineOptions, Shards};
use sharded_etcd_manager::{Failpoints, Manager, ManagerOptions, start_topology};
use sharded_etcd_shard::{Relay, Shard, ShardDirectory};
use tokio::sync::watch;

use crate::{
    admin,
    cli::ShardManagerArgs,
    front::{Front, Works},
    host,
    listen::listen,
    patience::until_it_succeeds,
    routed::{Routed, check_meta},
    signals,
};

/// Names a folder of gates, see [`Failpoints::gates`]; for tests only.
const MOVE_GATES: &str = "SHARDED_ETCD_MOVE_GATES";

/// Runs until it is told to stop.
///
/// # Errors
/// If the routing file makes no sense, its port fails, or under `up` if meta cannot be used.
pub async fn run(args: ShardManagerArgs) -> Result<()> {
    let shutdown = signals::shutdown()?;
    let routed = Routed::open(&args.routing)?;
    let listener = listen(&args.listen).await?;
    let bound = listener.local_addr().context("the port has no address")?;
    let front = Front::new();
    let mut serving = tokio::spawn(Arc::clone(&front).serve(listener, shutdown.clone()));
    let (meta, directory) = (Arc::clone(&routed.meta), routed.directory.clone());
    let mut routings = routed.published.subscribe();
    let follower = tokio::spawn(routed.follow(shutdown.clone()));
    let line = tokio::select! {
        line = start(&args.routing, &meta, &directory, &routings, &front) => line?,
        served = &mut serving => return served.context("the port's task crashed")?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let shards = Shards::new(Arc::clone(&line), directory);
    let name = args.name.unwrap_or_else(|| format!("{}-{}", host::name(), std::process::id()));
    let (topology, wanted) = watch::channel(Arc::new(topology(&routings.borrow_and_update())?));
    let manager = Manager::start(ManagerOptions {
        failpoints: failpoints(),
        ..ManagerOptions::new(Arc::clone(&line), Arc::clone(&shards), wanted, name)
    });
    let passer = tokio::spawn(pass_on(routings, topology));
    let admin = admin::service(&line, &shards, manager.sizes(), None);
    front.works(Works { admin, line: Arc::clone(&line), manager: Arc::clone(&manager) });
    let _ = writeln!(std::io::stdout().lock(), "sharded-etcd shard-manager answers at http://{bound}");
    let ended = tokio::select! {
        served = &mut serving => Some(served),
        () = shutdown.cancelled() => None,
    };
    // Leadership is given up first: a standby takes over while requests here come to their end.
    front.waits("shutting down");
    manager.close().await;
    follower.abort();
    passer.abort();
    line.close().await;
    let served = match ended {
        Some(served) => served,
        None => serving.await,
    };
    served.context("the port's task crashed")?
}

/// Where tests of whole processes hold moves; nothing unless they say so.
fn failpoints() -> Failpoints {
    let folder = std::env::var_os(MOVE_GATES);
    folder.map_or_else(Failpoints::default, |folder| Failpoints::gates(Path::new(&folder)))
}

/// The line, of a topology that is started if need be.
async fn start(
    path: &Path,
    meta: &Arc<Relay>,
    directory: &ShardDirectory,
    routings: &watch::Receiver<Routing>,
    front: &Front,
) -> Result<Arc<Line>> {
    let attempt = async || {
        // The newest contents count at each attempt.
        let routing = routings.borrow().clone();
        if routing.bootstrap {
            let wanted = topology(&routing)?;
            start_topology(meta.as_ref(), directory, &routing.uid, &wanted).await?;
        } else {
            check_meta(meta.as_ref(), &routing, path).await?;
        }
        let meta = Arc::clone(meta) as Arc<dyn Shard>;
        Line::start(meta, LineOptions::default()).await.context("the revision line cannot be read")
    };
    let bootstrap = routings.borrow().bootstrap;
    if bootstrap { Ok(until_it_succeeds(|why| front.waits(why), attempt).await) } else { attempt().await }
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
