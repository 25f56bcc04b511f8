//! What can go wrong, a type for each step. Validate and build cannot fail; what they find is data.

pub use crate::{calls::CallError, leader::NotLeading};

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no cluster to connect to.
    #[error(
        "cannot find out which cluster to connect to; run in a pod with a service account, or set KUBECONFIG"
    )]
    Config(#[source] kube::config::InferConfigError),
    /// The client cannot be made.
    #[error("cannot make a client of the cluster")]
    Client(#[source] Box<kube::Error>),
    /// The address for health and metrics is taken or not ours.
    #[error("cannot listen on {address} for health and metrics")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Another replica acts, or nobody knows: this one must stop at once.
    #[error("lost the lease {lease}; another replica goes on")]
    LeaseLost {
        /// Its name.
        lease: String,
    },
    /// A task of the operator ended on its own.
    #[error("the task {task} ended although nobody asked it to")]
    TaskEnded {
        /// What it does.
        task: String,
    },
}

/// Why a reconcile did not come to its end. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// Step 4: this replica may not act, or the resource cannot be read.
    #[error("cannot apply the objects")]
    Apply(#[source] CallError),
    /// Step 5.
    #[error("cannot write the status")]
    Status(#[source] CallError),
}

/// An error and its sources, in one line; a source that says the same again is left out.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}
