//! The Kubernetes shell: reconciles `ShardedEtcd` resources into StatefulSets, Services, Deployments and the rest.
//!
//! Five steps, a file each: dereference (client) → validate (pure) → build (pure) → apply (client) → status.
//!
//! ```text
//! API server ──watches──> stores ──> queue ──> controller ──> reconcile: the five steps
//! shard managers <──ask── answers ──────^                        │ calls: only while leader says so
//! ```

mod answers;
mod apply;
pub mod ask;
pub mod build;
mod calls;
pub mod controller;
mod dereference;
mod diff;
pub mod error;
mod events;
mod http;
mod leader;
mod memory;
mod metrics;
pub mod model;
pub mod names;
mod quantity;
mod queue;
mod reconcile;
pub mod restart;
pub mod settings;
pub mod status;
mod stores;
pub mod validate;

use std::sync::Arc;

use kube::{Client, Config};
use tokio_util::sync::CancellationToken;

pub use controller::Operator;
pub use error::RunError;
pub use settings::Options;

use crate::{
    ask::GrpcAsk,
    settings::{Election, Settings},
};

/// Where a pod finds its namespace.
const POD_NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// Runs the operator until `shutdown`: connects to the cluster of the environment (KUBECONFIG, else the pod's service
/// account), serves health and metrics, and reconciles while it holds the Lease.
///
/// # Errors
/// See [`RunError`]; the process should end with failure, so that it is started again.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), RunError> {
    let config = Config::infer().await.map_err(RunError::Config)?;
    let own_namespace = config.default_namespace.clone();
    let client = Client::try_from(config).map_err(|error| RunError::Client(Box::new(error)))?;
    let lease_namespace = options.lease_namespace.unwrap_or(own_namespace);
    let identity = options.identity.unwrap_or_else(identity);
    let mut settings = Settings::new(options.image, options.etcd_image);
    // Outside a cluster the operator has no pods that a NetworkPolicy could let in.
    settings.operator_namespace =
        std::fs::read_to_string(POD_NAMESPACE).ok().map(|text| text.trim().to_owned());
    let mut operator = Operator::new(client, settings, Arc::new(GrpcAsk::new()))
        .with_election(Election::new(lease_namespace, identity));
    if let Some(namespace) = options.watch_namespace {
        operator = operator.in_namespace(namespace);
    }
    let stop = CancellationToken::new();
    let serving = http::serve(options.listen, operator.health(), stop.clone());
    tokio::pin!(serving);
    let result = tokio::select! {
        result = operator.run(shutdown) => result,
        served = &mut serving => {
            return served.and(Err(RunError::TaskEnded { task: "health and metrics".to_owned() }));
        }
    };
    stop.cancel();
    // What is being answered; a scrape that hangs holds nothing up.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), serving).await;
    result
}

/// The host's name, which is the pod's, and a random part, as a container may be started again in the same pod.
fn identity() -> String {
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "operator".to_owned());
    format!("{host}_{:08x}", rand::random::<u32>())
}
