//! Processes: real proxies over the simulated network, which can be killed.

use std::{sync::Arc, time::Duration};

use sharded_etcd_etcd_api::etcdserverpb::{watch_client::WatchClient, watch_server::WatchServer};
use sharded_etcd_line::{Line, LineOptions, Shards, latest, upkeep::CaretakerOptions};
use sharded_etcd_proxy::{Drain, Proxy, ProxyOptions, context::Limits, services::watch::WatchService};
use sharded_etcd_shard::{Shard, ShardDirectory};
use tokio_util::sync::CancellationToken;

use crate::{
    net::Link,
    scaling::{self, Routing},
    trace,
    world::World,
};

/// Pause before a proxy that could not start tries again.
const START_PAUSE: Duration = Duration::from_millis(50);

/// Watch answers above this are parted for watchers that want fragments: two events, about.
const FRAGMENT_BYTES: usize = 200;

/// What every process has: a name, its own line, and connections to everything.
pub struct Parts {
    /// Its line.
    pub line: Arc<Line>,
    /// The shards.
    pub shards: Arc<Shards>,
}

/// The fold is condensed as often as can be, and proxies have no patience with managers that write no checkpoints.
fn options() -> LineOptions {
    let caretaker = CaretakerOptions {
        patience: Duration::from_millis(600),
        grown_max: 60,
        lag_max: Duration::from_millis(500),
    };
    let condense_interval = Duration::from_millis(250);
    LineOptions { segments_max: 2, condense_interval, caretaker, ..LineOptions::default() }
}

impl Parts {
    /// Connects a process; tries until it works or the process is dead.
    pub async fn connect(
        world: &Arc<World>,
        name: &str,
        dead: &latest::Receiver<bool>,
        routing: &Routing,
    ) -> Option<Self> {
        let link = |etcd| Link::new(world, name, etcd, dead.clone()) as Arc<dyn Shard>;
        let directory = ShardDirectory::new();
        routing.apply(&directory, |etcd| Link::new(world, name, etcd, dead.clone()));
        while !*dead.borrow() {
            match Line::start(link(&world.meta), options()).await {
                Ok(line) => {
                    let shards = Shards::new(Arc::clone(&line), directory);
                    return Some(Self { line, shards });
                }
                Err(error) => trace!(world, "{name} cannot start: {error}"),
            }
            tokio::time::sleep(START_PAUSE).await;
        }
        None
    }
}

/// A running proxy.
pub struct Process {
    /// Its name; the same after a restart.
    pub name: String,
    /// The proxy.
    pub proxy: Arc<Proxy>,
    /// Its line.
    pub line: Arc<Line>,
    /// Cancelled when it is killed.
    pub killed: CancellationToken,
    dead: latest::Sender<bool>,
}

impl Process {
    /// Starts the proxy of this place, and puts it there, unless there is one.
    pub async fn start(world: &Arc<World>, place: usize) {
        if world.proxies.lock()[place].is_some() || !world.starting.lock().insert(place) {
            return;
        }
        Self::begin(world, place).await;
        world.starting.lock().remove(&place);
    }

    async fn begin(world: &Arc<World>, place: usize) {
        let name = format!("proxy-{place}");
        let dead = latest::Sender::new(false);
        let is_dead = dead.subscribe();
        let mut routings = world.routing.subscribe();
        let routing = routings.borrow_and_update().clone();
        let connected = Parts::connect(world, &name, &is_dead, &routing).await;
        let Some(Parts { line, shards }) = connected else { return };
        let directory = shards.directory().clone();
        let options = ProxyOptions {
            line: Arc::clone(&line),
            shards,
            name: name.clone(),
            client_urls: vec![format!("http://{name}:2379")],
            limits: Limits {
                progress_interval: Duration::from_millis(700),
                fragment_bytes: FRAGMENT_BYTES,
                ..Limits::default()
            },
            generation: routing.known(),
            drain: Drain::default(),
        };
        match Proxy::start(options).await {
            Ok(proxy) => {
                trace!(world, "{name} runs");
                let (of, link) = (Arc::clone(&proxy), Link::maker(world, &name, &is_dead));
                scaling::follow(world, &name, routings, is_dead, move |routing| {
                    routing.apply(&directory, &link);
                    of.took_up(routing.known());
                });
                let process = Self { name, proxy, line, killed: CancellationToken::new(), dead };
                world.proxies.lock()[place] = Some(Arc::new(process));
            }
            Err(error) => {
                trace!(world, "{name} cannot start: {error}");
                line.close().await;
            }
        }
    }

    /// Kills it: nothing of it is sent or heard any more.
    pub fn kill(&self) {
        self.dead.send_modify(|dead| *dead = true);
        self.killed.cancel();
        self.proxy.context().shutdown.cancel();
        let line = Arc::clone(&self.line);
        tokio::spawn(async move { line.close().await });
    }

    /// A client of its watch service.
    pub fn watches(&self) -> WatchClient<WatchServer<WatchService>> {
        let ctx = Arc::clone(self.proxy.context());
        WatchClient::new(WatchServer::new(WatchService::new(ctx, Arc::clone(self.proxy.hub()))))
    }
}
