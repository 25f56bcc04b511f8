//! A whole proxy: its parts, wired, behind one listener.

use std::{num::NonZero, sync::Arc, time::Duration};

use sharded_etcd_core::keyspace::ShardIx;
use sharded_etcd_etcd_api::etcdserverpb::{
    auth_server::AuthServer, cluster_server::ClusterServer, kv_server::KvServer, lease_server::LeaseServer,
    maintenance_server::MaintenanceServer, watch_server::WatchServer,
};
use sharded_etcd_line::{
    Line, Shards,
    upkeep::{Caretaker, follow_up},
};
use sharded_etcd_serve::{Recipes, ServeError, ServerHealth, serve_on_threads};
use sharded_etcd_shard::ShardError;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{service::Routes, transport::Server};

use crate::{
    context::{Context, Identity, Limits},
    http,
    hub::Hub,
    kv::Kv,
    lease::Leases,
    metrics::Metrics,
    register::Registration,
    services::{
        auth::AuthService, cluster::ClusterService, kv::KvService, lease::LeaseService,
        maintenance::MaintenanceService, watch::WatchService,
    },
};

/// What gRPC adds to a request at most; a larger one is refused before it is read, as etcd does (embed: 512 KiB).
const GRPC_OVERHEAD_BYTES: usize = 512 << 10;
/// What the registration may take to be given up when the time for requests is over.
const LEAVE_MAX: Duration = Duration::from_secs(2);

/// How a proxy goes once it is told to.
///
/// First `/readyz` and `/health` answer 503 while everything is served as before, so that no new clients are sent here.
/// Then no connection is taken any more, streams end with an error that clients go on elsewhere after, and requests under
/// way come to their end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// How long it goes on serving. Default 0.
    pub delay: Duration,
    /// How long requests under way may take after that. Default 5 s.
    pub max: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self { delay: Duration::ZERO, max: Duration::from_secs(5) }
    }
}

/// What a proxy is made of.
pub struct ProxyOptions {
    /// The revision line.
    pub line: Arc<Line>,
    /// Checked connections to the shards, shared with the shard manager of the same process.
    pub shards: Arc<Shards>,
    /// Its name, unique in the topology.
    pub name: String,
    /// What clients are told to dial.
    pub client_urls: Vec<String>,
    /// Limits.
    pub limits: Limits,
    /// Generation of the routing that its connections are of, if there is one; see [`Proxy::took_up`].
    pub generation: Option<i64>,
    /// How it goes.
    pub drain: Drain,
}

/// Why a proxy could not start or serve.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// Meta does not answer.
    #[error("meta cannot be reached")]
    Meta(#[source] ShardError),
    /// The listener failed.
    #[error("the client port failed")]
    Serve(#[source] ServeError),
}

/// A running proxy.
pub struct Proxy {
    ctx: Arc<Context>,
    kv: Arc<Kv>,
    hub: Arc<Hub>,
    leases: Arc<Leases>,
    registration: Arc<Registration>,
    drain: Drain,
}

impl Proxy {
    /// Starts the parts and registers the proxy in meta.
    ///
    /// # Errors
    /// If meta does not answer.
    pub async fn start(options: ProxyOptions) -> Result<Arc<Self>, ProxyError> {
        let status = options.line.meta().status().await.map_err(ProxyError::Meta)?;
        let ctx = Arc::new(Context {
            line: options.line,
            shards: options.shards,
            identity: Identity::new(options.name, options.client_urls),
            limits: options.limits,
            metrics: Arc::new(Metrics::new()),
            draining: CancellationToken::new(),
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
            runtime: tokio::runtime::Handle::current(),
            raft_term: status.raft_term,
        });
        let caretaker = Caretaker::new(Arc::clone(&ctx.line), Arc::clone(&ctx.shards));
        ctx.tasks.spawn(caretaker.run(ctx.shutdown.clone()));
        let (line, shards) = (Arc::clone(&ctx.line), Arc::clone(&ctx.shards));
        ctx.tasks.spawn(follow_up(line, shards, ctx.shutdown.clone()));
        let leases = Leases::start(Arc::clone(&ctx));
        let hub = Hub::start(Arc::clone(&ctx));
        let passed = Arc::clone(&hub);
        let registration = Registration::start(Arc::clone(&ctx), options.generation, move || passed.passed());
        let fences = Some(hub.fence_events());
        let kv = Kv::start_with(Arc::clone(&ctx), Arc::clone(&leases) as Arc<_>, fences);
        Ok(Arc::new(Self { ctx, kv, hub, leases, registration, drain: options.drain }))
    }

    /// Its connections are as this generation of the routing says: the shard manager relies on it from then on.
    pub fn took_up(&self, generation: Option<i64>) {
        self.registration.took_up(generation);
    }

    /// Shared parts, for example the metrics.
    pub fn context(&self) -> &Arc<Context> {
        &self.ctx
    }

    /// Its key-value calls, for callers in the same process.
    pub fn kv(&self) -> &Arc<Kv> {
        &self.kv
    }

    /// Its watches, for callers in the same process.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Its leases, for callers in the same process.
    pub fn leases(&self) -> &Arc<Leases> {
        &self.leases
    }

    /// The names of the shards that clients' keys are on now.
    pub fn shard_names(&self) -> Vec<String> {
        let cut = self.ctx.line.cut();
        (0..cut.names.len())
            .filter(|&i| !cut.left[i])
            .map(|i| cut.name(ShardIx(i as u32)).to_owned())
            .collect()
    }

    /// Serves until `shutdown`, then goes as [`Drain`] says.
    ///
    /// # Errors
    /// If the listener fails.
    pub async fn serve(
        self: &Arc<Self>,
        listener: TcpListener,
        extra: Routes,
        shutdown: CancellationToken,
    ) -> Result<(), ProxyError> {
        let ctx = &self.ctx;
        let decode_max = ctx.limits.request_bytes_max + GRPC_OVERHEAD_BYTES;
        let c = || Arc::clone(ctx);
        let kv =
            KvServer::new(KvService::new(c(), Arc::clone(&self.kv))).max_decoding_message_size(decode_max);
        let watch = WatchServer::new(WatchService::new(c(), Arc::clone(&self.hub)));
        let lease = LeaseServer::new(LeaseService::new(c(), Arc::clone(&self.leases)));
        let cluster = ClusterServer::new(ClusterService::new(c(), Arc::clone(&self.registration)));
        let maintenance =
            MaintenanceServer::new(MaintenanceService::new(c(), Arc::clone(&self.registration)));
        let auth = AuthServer::new(AuthService::new(c()));
        let recipes = Recipes::new(
            Arc::new(KvService::new(c(), Arc::clone(&self.kv))),
            Arc::new(WatchService::new(c(), Arc::clone(&self.hub))),
            Arc::new(LeaseService::new(c(), Arc::clone(&self.leases))),
        );
        let health = ServerHealth::new(ctx.draining.clone(), ctx.shutdown.clone());
        let router = extra
            .add_service(kv)
            .add_service(watch)
            .add_service(lease)
            .add_service(cluster)
            .add_service(maintenance)
            .add_service(auth)
            .add_service(recipes.lock_server().max_decoding_message_size(decode_max))
            .add_service(recipes.election_server().max_decoding_message_size(decode_max))
            .add_service(health.server())
            .prepare()
            .into_axum_router();
        let router = http::with_http(router, c());
        let server = Server::builder()
            .accept_http1(true)
            .max_concurrent_streams(Some(u32::MAX >> 1))
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(8 << 20);
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        // Watches and keep-alive streams see the proxy's own shutdown and end; else the server would wait for them.
        let serving =
            serve_on_threads(vec![listener], server, Routes::from(router), threads, ctx.shutdown.clone());
        let Drain { delay, max } = self.drain;
        let told = async {
            shutdown.cancelled().await;
            ctx.draining.cancel();
            if !delay.is_zero() {
                tracing::info!(seconds = delay.as_secs_f32(), "told to stop; serving on for a while");
                tokio::time::sleep(delay).await;
            }
            ctx.shutdown.cancel();
            std::future::pending().await
        };
        let late = async {
            ctx.shutdown.cancelled().await;
            tokio::time::sleep(max).await;
            tracing::warn!("requests under way did not end in time");
        };
        let result = tokio::select! {
            result = serving => result,
            () = late => Ok(()),
            never = told => never,
        };
        self.stop().await;
        result.map_err(ProxyError::Serve)
    }

    /// Ends the background work: the registration goes, so that other proxies no longer name this one.
    pub async fn stop(&self) {
        self.ctx.shutdown.cancel();
        self.ctx.tasks.close();
        if tokio::time::timeout(LEAVE_MAX, self.ctx.tasks.wait()).await.is_err() {
            tracing::warn!("background work of the proxy did not end in time");
        }
    }
}
