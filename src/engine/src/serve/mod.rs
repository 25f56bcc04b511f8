//! The engine as an etcd server over gRPC, for etcdctl, clients in other processes, and tests.

mod auth;
mod cluster;
mod kv;
mod lease;
mod maintenance;
mod watch;

use std::{num::NonZero, sync::Arc};

use sharded_etcd_etcd_api::etcdserverpb::{
    auth_server::AuthServer, cluster_server::ClusterServer, kv_server::KvServer, lease_server::LeaseServer,
    maintenance_server::MaintenanceServer, watch_server::WatchServer,
};
use sharded_etcd_serve::{Recipes, ServerHealth, serve_on_threads};
use sharded_etcd_shard::ShardError;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status, service::Routes, transport::Server};

use crate::{Engine, metrics::Method};

/// etcd lets a message be this much larger than a request (`grpcOverheadBytes`).
const GRPC_OVERHEAD_BYTES: usize = 512 * 1024;

/// Why serving ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listener has no address.
    #[error("cannot read the address of the listener")]
    Address(#[source] std::io::Error),
    /// The threads failed.
    #[error(transparent)]
    Threads(#[from] sharded_etcd_serve::ServeError),
}

/// Serves etcd's KV, Watch, Lease, Maintenance, Cluster, Auth, Lock and Election services, and gRPC's Health, until
/// `shutdown`; open watches end then.
///
/// The engine stays open. There is no TLS, and authentication is off for good: listen on a loopback address only.
///
/// # Errors
/// When the listener or the HTTP/2 server fails.
pub async fn serve(
    engine: Arc<Engine>,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let address = listener.local_addr().map_err(ServeError::Address)?;
    let routes = routes(engine, vec![format!("http://{address}")], shutdown.clone());
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    serve_on_threads(vec![listener], Server::builder(), routes, threads, shutdown).await?;
    Ok(())
}

/// The services alone, for a server that has other paths as well. Watches end at `shutdown`; `client_urls` is what
/// MemberList tells clients to dial.
pub fn routes(engine: Arc<Engine>, client_urls: Vec<String>, shutdown: CancellationToken) -> Routes {
    let bytes_max = engine.config.max_request_bytes.saturating_add(GRPC_OVERHEAD_BYTES);
    let health = ServerHealth::new(shutdown.clone(), shutdown.clone());
    let service = Service { engine, client_urls: client_urls.into(), shutdown, heavy: Heavy::default() };
    let calls = Arc::new(service.clone());
    let recipes = Recipes::new(Arc::clone(&calls), Arc::clone(&calls), calls);
    Routes::new(KvServer::new(service.clone()).max_decoding_message_size(bytes_max))
        .add_service(WatchServer::new(service.clone()).max_decoding_message_size(bytes_max))
        .add_service(LeaseServer::new(service.clone()))
        .add_service(MaintenanceServer::new(service.clone()))
        .add_service(ClusterServer::new(service.clone()))
        .add_service(AuthServer::new(service))
        .add_service(recipes.lock_server().max_decoding_message_size(bytes_max))
        .add_service(recipes.election_server().max_decoding_message_size(bytes_max))
        .add_service(health.server())
}

/// What every service needs.
#[derive(Clone)]
struct Service {
    engine: Arc<Engine>,
    client_urls: Arc<[String]>,
    shutdown: CancellationToken,
    heavy: Heavy,
}

/// Snapshots that are sent at the same time.
const SNAPSHOTS_MAX: usize = 4;
/// Hashes that are computed at the same time.
const HASHES_MAX: usize = 1;

/// Places for what takes long and needs memory for each version.
#[derive(Clone)]
struct Heavy {
    snapshots: Arc<Semaphore>,
    hashes: Arc<Semaphore>,
}

impl Default for Heavy {
    fn default() -> Self {
        Self {
            snapshots: Arc::new(Semaphore::new(SNAPSHOTS_MAX)),
            hashes: Arc::new(Semaphore::new(HASHES_MAX)),
        }
    }
}

impl Service {
    /// Counts a call that is answered at once, and gives its answer the form that gRPC wants.
    fn answer<T>(&self, method: Method, answer: Result<T, Status>) -> Result<Response<T>, Status> {
        self.engine.shared.metrics.calls.count(method, answer).map(Response::new)
    }
}

/// The error as gRPC carries it. (A function: both types belong to other crates.)
fn status(error: ShardError) -> Status {
    Status::new(error.code, error.message)
}

fn not_here(call: &str) -> Status {
    Status::unimplemented(format!(
        "{call} is not available on an embedded engine, which has one member and no raft"
    ))
}
