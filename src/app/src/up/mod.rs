//! `up`: a whole topology on this machine.
//!
//! ```text
//! file ──parse──► Desired ──► LocalShards: engines, joined to the line ──► proxy on one port
//!   ▲                              │                                          │
//!   └── saved again ◄── user       └── shard manager moves ranges ◄───────────┘ (all in this process)
//! ```
//!
//! One loop reacts to what happens: a new text in the file, a shard that has left the line, a signal. A text that
//! cannot be run is told with all its problems, and the last good one goes on.

pub mod data_dir;
pub mod desired;
mod engines;
mod etcd_children;
mod progress;
mod shards;

use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use sharded_etcd_core::topology::Topology;
use sharded_etcd_crd::{routing::Engine, version_mismatch};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::{Line, LineOptions, Shards};
use sharded_etcd_manager::{Manager, ManagerOptions};
use sharded_etcd_proxy::{Drain, Proxy, ProxyOptions, context::Limits};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use self::{
    data_dir::{DataDir, State},
    desired::{Desired, in_file},
    engines::{Backend, Engines},
    etcd_children::EtcdProgram,
    shards::{LocalShards, new_state},
};
pub use engines::ETCD_QUOTA_BYTES;

use crate::{
    admin,
    cli::{EngineKind, UpArgs, WatchArgs, client_urls},
    listen::listen,
    signals,
    watched_file::{self, Change, WatchedFile},
};

/// Name of the proxy and the shard manager in this process; there is one such process for a data folder.
const NAME: &str = "up";
/// How long a range that was moved stays where it is: shorter than in a cluster, as somebody looks on here.
const SETTLE: Duration = Duration::from_secs(5);
/// How often is looked for shards that have left.
const HOUSEKEEPING: Duration = Duration::from_millis(500);
/// A new topology that could not be run, for example as the disk was full, is tried again after so many looks.
const RETRY_LOOKS: u32 = 20;

/// Runs until it is told to stop.
///
/// # Errors
/// If it cannot start, or the client port fails.
pub async fn run(args: UpArgs) -> Result<()> {
    let shutdown = signals::shutdown()?;
    // A file that makes no sense is told before anything is touched.
    let (file, from_file) = match &args.file {
        Some(path) => {
            let (file, text) =
                WatchedFile::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            (Some(file), Some(Desired::of_file(&text).map_err(|e| anyhow::anyhow!(in_file(path, &e)))?))
        }
        None => (None, None),
    };
    if from_file.is_none() {
        Desired::of_shards(args.shards, None)?;
    }
    let (dir, state) = DataDir::open(&args.data_dir)?;
    let desired = match from_file {
        Some(desired) => desired,
        None => Desired::of_shards(args.shards, state.as_ref())?,
    };
    let source = args.file.clone().unwrap_or_else(|| PathBuf::from("the command line"));
    if let Some(state) = &state {
        desired.check_against(state).map_err(|e| anyhow::anyhow!(in_file(&source, &e)))?;
    }
    let backend = backend(&args, &dir, state.as_ref()).await?;
    check_version(&backend, &desired, &source)?;
    let listener = listen(&args.listen.listen).await?;
    let bound = listener.local_addr().context("the client port has no address")?;
    let urls = client_urls(&args.listen.advertise_client_urls, &[bound]);

    let state = state.unwrap_or_else(|| new_state(backend.kind(), &desired));
    let engines = Engines::new(backend, state.uid.clone());
    let shards = tokio::select! {
        shards = LocalShards::open(dir, state, engines, &desired) => shards?,
        () = shutdown.cancelled() => bail!("stopped while starting"),
    };
    let mut up = Up::start(shards, desired, args.file, urls.clone(), &args.watch).await?;
    let serving = {
        let (proxy, shutdown) = (Arc::clone(&up.proxy), up.stop.clone());
        let extra = admin::routes(&up.line, &up.checked, up.manager.sizes(), urls.first().cloned());
        tokio::spawn(async move { proxy.serve(listener, extra, shutdown).await })
    };
    up.tell_without_effect();
    let count = up.desired.topology.shards;
    let plural = if count == 1 { "" } else { "s" };
    let mut stdout = std::io::stdout().lock();
    // Nobody may be reading it any more.
    let _ = writeln!(stdout, "sharded-etcd serves {count} shard{plural} at {}", urls.join(" "));
    let _ = stdout.flush();
    drop(stdout);

    let changes = file.map(|file| watched_file::watch(file, shutdown.clone()));
    let mut serving = serving;
    let served = tokio::select! {
        served = &mut serving => Some(served),
        () = up.react(changes, &shutdown) => None,
    };
    tracing::info!("stopping");
    up.stop.cancel();
    let served = match served {
        Some(served) => served,
        None => serving.await,
    };
    up.close().await;
    served.context("the proxy crashed")??;
    Ok(())
}

/// What answers as a shard: as asked for, else as before.
async fn backend(args: &UpArgs, dir: &DataDir, state: Option<&State>) -> Result<Backend> {
    let asked = args.engine.map(|kind| match kind {
        EngineKind::Embedded => Engine::Embedded,
        EngineKind::Etcd => Engine::Etcd,
    });
    let before = state.map(|state| state.engine);
    if let (Some(asked), Some(before)) = (asked, before)
        && asked != before
    {
        let name = |engine| if engine == Engine::Etcd { "etcd" } else { "embedded" };
        bail!(
            "{} was made with --engine {}, and data cannot change over to {}: start with --engine {}, or give another \
             folder with --data-dir",
            dir.path().display(),
            name(before),
            name(asked),
            name(before),
        );
    }
    Ok(match asked.or(before).unwrap_or(Engine::Embedded) {
        Engine::Embedded if args.etcd.is_some() => {
            bail!("--etcd has no effect on the embedded engine: add --engine etcd")
        }
        Engine::Embedded => Backend::Embedded,
        Engine::Etcd => Backend::Etcd(EtcdProgram::find(args.etcd.as_deref()).await?),
    })
}

/// Refuses a release of etcd that is not the one that runs.
fn check_version(backend: &Backend, desired: &Desired, source: &Path) -> Result<()> {
    if let Backend::Etcd(program) = backend
        && let Some(error) = version_mismatch(&desired.resource.spec, &program.version)
    {
        bail!("{}:\n  {error}", source.display());
    }
    Ok(())
}

/// A question that any shard answers, and only if it can reach a quorum.
fn probe() -> pb::RangeRequest {
    pb::RangeRequest { key: Bytes::from_static(b"\0"), count_only: true, ..Default::default() }
}

/// A running topology.
struct Up {
    shards: LocalShards,
    line: Arc<Line>,
    checked: Arc<Shards>,
    proxy: Arc<Proxy>,
    manager: Arc<Manager>,
    /// What the shard manager is to reach.
    topology: watch::Sender<Arc<Topology>>,
    /// What runs.
    desired: Desired,
    /// What is wanted and could not be run yet.
    pending: Option<Desired>,
    file: Option<PathBuf>,
    /// Fields that were already told to have no effect.
    told: Vec<String>,
    stop: CancellationToken,
}

impl Up {
    async fn start(
        mut shards: LocalShards,
        desired: Desired,
        file: Option<PathBuf>,
        urls: Vec<String>,
        watch: &WatchArgs,
    ) -> Result<Self> {
        let line = match Line::start(Arc::clone(shards.meta()), LineOptions::default()).await {
            Ok(line) => line,
            Err(error) => {
                shards.close().await;
                return Err(error).context("the revision line cannot be read");
            }
        };
        let started = async {
            shards.remove_left(&line).await?;
            shards.want(&desired, &line).await?;
            shards.write_routing(&desired)?;
            let checked = Shards::new(Arc::clone(&line), shards.directory().clone());
            let quota = shards.engines().backend().client_quota_bytes(desired.topology.quota_bytes);
            let limits = Limits {
                quota_bytes: i64::try_from(quota).unwrap_or(i64::MAX),
                progress_interval: watch.watch_progress_notify_interval,
                ..Limits::default()
            };
            let options = ProxyOptions {
                line: Arc::clone(&line),
                shards: Arc::clone(&checked),
                name: NAME.to_owned(),
                client_urls: urls,
                limits,
                generation: None,
                drain: Drain::default(),
            };
            Ok::<_, anyhow::Error>((Proxy::start(options).await?, checked))
        };
        let started = started.await;
        match started {
            Ok((proxy, checked)) => {
                let topology = watch::Sender::new(Arc::new(desired.topology.clone()));
                let manager = Manager::start(ManagerOptions {
                    settle: SETTLE,
                    ..ManagerOptions::new(Arc::clone(&line), Arc::clone(&checked), topology.subscribe(), NAME)
                });
                proxy.context().metrics.with_registry(|registry| manager.register_metrics(registry));
                let (told, stop) = (Vec::new(), CancellationToken::new());
                tokio::spawn(progress::show(Arc::clone(manager.progress()), Arc::clone(&line), stop.clone()));
                let pending = None;
                Ok(Self {
                    shards,
                    line,
                    checked,
                    proxy,
                    manager,
                    topology,
                    desired,
                    pending,
                    file,
                    told,
                    stop,
                })
            }
            Err(error) => {
                line.close().await;
                shards.close().await;
                Err(error)
            }
        }
    }

    /// Reacts to what happens, until shutdown.
    async fn react(&mut self, mut changes: Option<mpsc::Receiver<Change>>, shutdown: &CancellationToken) {
        let mut looks = interval(HOUSEKEEPING);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks_since_failure = 0;
        loop {
            let change = async {
                match &mut changes {
                    Some(changes) => changes.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                change = change => match change {
                    Some(change) => {
                        self.take(change).await;
                        looks_since_failure = 0;
                    }
                    // The watch ends with the shutdown only.
                    None => changes = None,
                },
                _ = looks.tick() => {
                    self.keep_house().await;
                    if self.pending.is_some() {
                        looks_since_failure += 1;
                    }
                    if looks_since_failure >= RETRY_LOOKS {
                        looks_since_failure = 0;
                        self.run_pending().await;
                    }
                }
            }
        }
    }

    /// A new text in the file.
    async fn take(&mut self, change: Change) {
        let Some(path) = self.file.clone() else { return };
        let desired = match change {
            Change::Unreadable(why) => {
                tracing::error!("cannot read {}: {why}; running on with its last good text", path.display());
                return;
            }
            Change::Text(text) => Desired::of_file(&text),
        };
        let checked = desired.and_then(|desired| {
            desired.check_against(self.shards.state())?;
            if let Backend::Etcd(program) = self.shards.engines().backend()
                && let Some(error) = version_mismatch(&desired.resource.spec, &program.version)
            {
                return Err(desired::Refused(error.to_string()));
            }
            Ok(desired)
        });
        match checked {
            Ok(desired) => {
                self.pending = Some(desired);
                self.run_pending().await;
            }
            Err(refused) => {
                tracing::error!("{}\nrunning on with its last good text", in_file(&path, &refused));
            }
        }
    }

    /// Makes the topology what is wanted.
    async fn run_pending(&mut self) {
        let Some(desired) = self.pending.take() else { return };
        if let Err(error) = self.shards.want(&desired, &self.line).await {
            let error = anyhow::Error::from(error);
            tracing::error!(
                "the new topology cannot be run yet: {error:#}; running on as before, and trying again"
            );
            self.pending = Some(desired);
            return;
        }
        let before = (self.desired.topology.shards, self.desired.topology.quota_bytes);
        if before.1 != desired.topology.quota_bytes {
            tracing::warn!("spec.etcd.quota: the new quota holds from the next start on");
        }
        tracing::info!(shards = desired.topology.shards, "running the new topology");
        self.topology.send_replace(Arc::new(desired.topology.clone()));
        self.desired = desired;
        self.write_routing();
        self.tell_without_effect();
    }

    /// Removes shards that have left. One that is wanted again meanwhile comes back empty.
    async fn keep_house(&mut self) {
        match self.shards.remove_left(&self.line).await {
            Ok(false) => {}
            Ok(true) => {
                if let Err(error) = self.shards.want(&self.desired, &self.line).await {
                    tracing::error!("{:#}", anyhow::Error::from(error));
                }
                self.write_routing();
            }
            Err(error) => {
                tracing::error!("a shard that has left cannot be removed: {:#}", anyhow::Error::from(error))
            }
        }
    }

    fn write_routing(&self) {
        if let Err(error) = self.shards.write_routing(&self.desired) {
            tracing::error!("{:#}", anyhow::Error::from(error));
        }
    }

    fn tell_without_effect(&mut self) {
        let fields = self.desired.without_effect(self.shards.state().engine);
        let new: Vec<_> = fields.into_iter().filter(|field| !self.told.contains(field)).collect();
        if !new.is_empty() {
            tracing::warn!("no effect here, only in a cluster: {}", new.join(", "));
            self.told.extend(new);
        }
    }

    /// Ends everything but the proxy, which has ended.
    async fn close(self) {
        self.manager.close().await;
        self.line.close().await;
        self.shards.close().await;
    }
}
