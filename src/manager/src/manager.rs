//! Starting and stopping a shard manager.

use std::{sync::Arc, time::Duration};

use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use sharded_etcd_core::{placement::Limits, topology::Topology};
use sharded_etcd_line::{Line, Shards};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Failpoints, HistoryOptions, ManagerStatus, MoverOptions, Progress,
    control::Control,
    leader::{Term, lead},
    sizes::Sizes,
};

/// How a shard manager is run. Start from [`ManagerOptions::new`].
#[derive(Clone)]
pub struct ManagerOptions {
    /// The line, shared with a proxy in the same process.
    pub line: Arc<Line>,
    /// The shards, by join number; their directory tells which others can be reached.
    pub shards: Arc<Shards>,
    /// What is wanted.
    pub topology: watch::Receiver<Arc<Topology>>,
    /// Name of this manager, unlike that of all others.
    pub name: String,
    /// Pause between two rounds. Default 1 s; a changed topology ends it.
    pub interval: Duration,
    /// Bounds on each move.
    pub mover: MoverOptions,
    /// Bounds on plans.
    pub limits: Limits,
    /// When history is cut off.
    pub history: HistoryOptions,
    /// A drained shard waits so long for the compaction of the history that only it has; then the history is compacted
    /// at the shard's last flip. Default 5 min.
    pub drain_history_max: Duration,
    /// A range that was moved stays where it is for so long, unless a pin or a drain wants it elsewhere. Default 30 s.
    pub settle: Duration,
    /// For tests.
    pub failpoints: Failpoints,
}

impl ManagerOptions {
    /// The defaults.
    pub fn new(
        line: Arc<Line>,
        shards: Arc<Shards>,
        topology: watch::Receiver<Arc<Topology>>,
        name: impl Into<String>,
    ) -> Self {
        Self {
            line,
            shards,
            topology,
            name: name.into(),
            interval: Duration::from_secs(1),
            mover: MoverOptions::default(),
            limits: Limits::default(),
            history: HistoryOptions::default(),
            drain_history_max: Duration::from_secs(300),
            settle: Duration::from_secs(30),
            failpoints: Failpoints::default(),
        }
    }
}

/// A running shard manager: leads, or stands by to lead.
pub struct Manager {
    status: watch::Receiver<Arc<ManagerStatus>>,
    progress: Arc<Progress>,
    sizes: Arc<Sizes>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl Manager {
    /// Starts it. It campaigns for leadership at once.
    pub fn start(options: ManagerOptions) -> Arc<Self> {
        let options = Arc::new(options);
        let (sender, status) = watch::channel(Arc::default());
        let progress = Arc::new(Progress::default());
        let sizes = Sizes::new(Arc::clone(&options.line), Arc::clone(&options.shards));
        let manager = Arc::new(Self {
            status,
            progress: Arc::clone(&progress),
            sizes: Arc::clone(&sizes),
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let shutdown = manager.shutdown.clone();
        manager.tasks.spawn(async move {
            let meta = Arc::clone(options.line.meta());
            let name = options.name.clone();
            let work = |term: Term| {
                let (options, sizes) = (Arc::clone(&options), Arc::clone(&sizes));
                let (progress, status) = (Arc::clone(&progress), sender.clone());
                Control::new(options, sizes, progress, status, term).run()
            };
            lead(meta, &name, shutdown, work).await;
        });
        manager
    }

    /// What it is doing; changes with each round.
    pub fn status(&self) -> watch::Receiver<Arc<ManagerStatus>> {
        self.status.clone()
    }

    /// Progress of the moves that it executes, and counters for metrics.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Adds its metrics to a registry.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.progress.counters.register(registry);
    }

    /// Its metrics in the text format of Prometheus, for a process that serves nothing else.
    pub fn metrics_text(&self) -> String {
        let mut registry = Registry::with_prefix("sharded_etcd");
        self.register_metrics(&mut registry);
        let leading: Gauge = Gauge::default();
        leading.set(i64::from(self.status.borrow().leading));
        registry.register("manager_leading", "1 if this shard manager leads the topology", leading);
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }

    /// Sizes of the ranges, for the admin service of the same process.
    pub fn sizes(&self) -> &Arc<Sizes> {
        &self.sizes
    }

    /// Stops it and gives leadership up; returns when nothing of it runs any more. What is under way is gone on with by the
    /// next leader.
    pub async fn close(&self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
