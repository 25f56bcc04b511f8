//! `operator`: runs topologies in a Kubernetes cluster.

use anyhow::{Context, Result};
use sharded_etcd_operator::Options;

use crate::{cli::OperatorArgs, signals};

/// Runs until it is told to stop.
///
/// # Errors
/// If there is no cluster, or what it needs of it ends; it should be started again then.
pub async fn run(args: OperatorArgs) -> Result<()> {
    // Several libraries would each choose one for the process, and disagree; it fails only if one was chosen already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let shutdown = signals::shutdown()?;
    let options = Options {
        image: args.image,
        etcd_image: args.etcd_image,
        watch_namespace: args.watch_namespace,
        listen: args.listen,
        lease_namespace: args.lease_namespace,
        identity: args.identity,
    };
    sharded_etcd_operator::run(options, shutdown).await.context("the operator cannot go on")
}
