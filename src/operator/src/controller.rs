//! Runs the five steps for each resource, whenever something about it changed, while this replica may act.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt};
use kube::{
    Client,
    runtime::controller::{Config, Error, applier},
};
use sharded_etcd_crd::ShardedEtcd;
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    answers::Answers,
    ask::Ask,
    calls::Calls,
    error::RunError,
    http::Health,
    leader::{Candidate, Leadership},
    metrics::Metrics,
    names::MANAGED_BY,
    queue::Queue,
    reconcile::Context,
    settings::{Election, Pace, Settings},
    stores::{Stores, key_of},
};

/// Resources that are reconciled at the same time.
const CONCURRENCY: u16 = 16;
/// How long reconciles may take to end when the operator is told to stop; each call to the API server is bounded.
const STOP_MAX: Duration = Duration::from_secs(15);

/// The operator over a client, without the process around it.
pub struct Operator {
    client: Client,
    settings: Settings,
    asker: Arc<dyn Ask>,
    namespace: Option<String>,
    pace: Pace,
    election: Option<Election>,
    health: Arc<Health>,
}

impl Operator {
    /// An operator of all namespaces that acts without an election.
    pub fn new(client: Client, settings: Settings, asker: Arc<dyn Ask>) -> Self {
        let health = Health::new(Metrics::new());
        Self { client, settings, asker, namespace: None, pace: Pace::default(), election: None, health }
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

    pub(crate) fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// Reconciles until `shutdown`; what is under way then is finished, and the Lease is given back.
    ///
    /// # Errors
    /// [`RunError::LeaseLost`] when another replica may act: nothing was written after that.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), RunError> {
        let queue = Arc::new(Queue::default());
        let mut tasks = JoinSet::new();
        let stores = Stores::start(&self.client, self.namespace.as_deref(), &queue, &mut tasks);
        self.health.set_resources(stores.resources.clone());
        let acting = async {
            tokio::select! {
                () = stores.wait() => {}
                () = shutdown.cancelled() => return Ok(()),
            }
            self.health.set_synced();
            tracing::info!(resources = stores.resources.len(), "the watches have shown everything");
            match &self.election {
                None => {
                    self.act(&stores, &queue, Leadership::always(), &shutdown).await;
                    Ok(())
                }
                Some(election) => self.act_elected(election, &stores, &queue, &shutdown).await,
            }
        };
        tokio::select! {
            result = acting => result,
            Some(ended) = tasks.join_next() => {
                Err(RunError::TaskEnded { task: ended.map_or_else(|error| error.to_string(), str::to_owned) })
            }
        }
    }

    async fn act_elected(
        &self,
        election: &Election,
        stores: &Arc<Stores>,
        queue: &Arc<Queue>,
        shutdown: &CancellationToken,
    ) -> Result<(), RunError> {
        let mut candidate = Candidate::new(self.client.clone(), election.clone());
        let Some(leadership) = candidate.acquire(shutdown).await else { return Ok(()) };
        tracing::info!(identity = election.identity, lease = election.lease, "this replica acts now");
        self.health.metrics.set_leader(true);
        // A task of its own: renewing goes on whatever the reconciles do.
        let release = CancellationToken::new();
        let mut holding = JoinSet::new();
        holding.spawn(candidate.hold(leadership.clone(), release.clone()));
        let result = tokio::select! {
            biased;
            // Dropping what acts stops it at its next wait, and nothing is sent after the deadline anyway.
            () = leadership.lost() => Err(RunError::LeaseLost { lease: election.lease.clone() }),
            () = self.act(stores, queue, leadership.clone(), shutdown) => Ok(()),
        };
        self.health.metrics.set_leader(false);
        release.cancel();
        while holding.join_next().await.is_some() {}
        result
    }

    /// Reconciles until `shutdown`.
    async fn act(
        &self,
        stores: &Arc<Stores>,
        queue: &Arc<Queue>,
        leadership: Leadership,
        shutdown: &CancellationToken,
    ) {
        let answers = Answers::new(self.pace.clone());
        let metrics = Arc::clone(&self.health.metrics);
        let (mut polling, stop_polling) = self.poll(&answers, queue);
        let reporter = self.election.as_ref().map_or_else(|| MANAGED_BY.to_owned(), |e| e.identity.clone());
        let context = Arc::new(Context {
            calls: Calls::new(self.client.clone(), leadership, Arc::clone(&metrics)),
            stores: Arc::clone(stores),
            answers,
            settings: self.settings.clone(),
            pace: self.pace.clone(),
            metrics,
            reporter,
            memories: parking_lot::Mutex::default(),
        });
        // Whatever happened while this one stood by.
        stores.resources.state().iter().for_each(|resource| queue.push(key_of(resource)));
        let config = Config::default().concurrency(CONCURRENCY).debounce(self.pace.debounce);
        let ended = applier(
            |resource: Arc<ShardedEtcd>, context: Arc<Context>| {
                async move { context.reconcile(resource).await }.boxed()
            },
            |resource: Arc<ShardedEtcd>, error: &_, context: Arc<Context>| context.failed(&resource, error),
            Arc::clone(&context),
            stores.resources.clone(),
            Arc::clone(queue).requests(shutdown.clone()),
            config,
        )
        .for_each(|result| {
            match result {
                // Also for a name that only stray objects bear.
                Err(Error::ObjectNotFound(gone)) => {
                    context.gone(&(gone.namespace.unwrap_or_default(), gone.name));
                }
                // Logged by `failed`.
                Ok(_) | Err(Error::ReconcilerFailed(..)) => {}
                Err(error) => tracing::error!(%error, "the queue of reconciles fails"),
            }
            std::future::ready(())
        });
        let stopped = async {
            shutdown.cancelled().await;
            tokio::time::sleep(STOP_MAX).await;
        };
        tokio::select! {
            () = ended => {}
            () = stopped => tracing::warn!("some reconciles did not end in time; they are left"),
        }
        drop(stop_polling);
        // It ends at once.
        let _ = timeout(STOP_MAX, polling.join_next()).await;
    }

    /// Starts to ask shard managers, until the guard is dropped.
    fn poll(&self, answers: &Arc<Answers>, queue: &Arc<Queue>) -> (JoinSet<()>, DropGuard) {
        let stop = CancellationToken::new();
        let mut polling = JoinSet::new();
        let (answers, queue, asker) = (Arc::clone(answers), Arc::clone(queue), Arc::clone(&self.asker));
        let (metrics, stopped) = (Arc::clone(&self.health.metrics), stop.clone());
        polling.spawn(async move { answers.poll(asker, queue, metrics, stopped).await });
        (polling, stop.drop_guard())
    }
}
