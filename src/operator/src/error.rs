//! What can go wrong, a type for each step.

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
        task: &'static str,
    },
}
