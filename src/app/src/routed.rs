//! The shards and meta that a routing file names, connected, and kept as the file says while it is replaced.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use sharded_etcd_crd::routing::{RoutedShard, Routing};
use sharded_etcd_line::bootstrap;
use sharded_etcd_shard::{
    Relay, Shard, ShardDirectory,
    etcd::{EtcdOptions, EtcdShard},
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::watched_file::{self, Change, WatchedFile};

/// How often other endpoints of meta are tried until they answer.
const META_RETRY: Duration = Duration::from_secs(2);

/// A routing file, followed.
pub struct Routed {
    /// The newest good contents.
    pub routing: Routing,
    /// The connection to meta.
    pub meta: Arc<Relay>,
    /// The connections to the shards.
    pub directory: ShardDirectory,
    /// Sees every good contents, once the connections are as they say.
    pub published: watch::Sender<Routing>,
    path: PathBuf,
    file: WatchedFile,
    connected: BTreeMap<String, RoutedShard>,
    /// The endpoints that `meta` leads to.
    meta_endpoints: Vec<String>,
    /// Why other endpoints of meta are not used yet.
    meta_trouble: String,
}

impl Routed {
    /// Reads the file and prepares the connections; nothing is asked yet.
    ///
    /// # Errors
    /// If the file makes no sense.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, text) = WatchedFile::read(path)
            .with_context(|| format!("cannot read the routing file {}", path.display()))?;
        let routing = Routing::parse(path, text.as_bytes())?;
        let meta = connect(&routing.meta).with_context(|| format!("meta in {}", path.display()))?;
        let mut this = Self {
            meta: Arc::new(Relay::new(meta)),
            directory: ShardDirectory::new(),
            published: watch::Sender::new(routing.clone()),
            path: path.to_owned(),
            file,
            connected: BTreeMap::new(),
            meta_endpoints: routing.meta.clone(),
            meta_trouble: String::new(),
            routing: routing.clone(),
        };
        this.take(routing);
        Ok(this)
    }

    /// Keeps the connections as the file says, until shutdown.
    pub async fn follow(mut self, shutdown: CancellationToken) {
        let mut changes = watched_file::watch(self.file.clone(), shutdown);
        let mut retries = interval(META_RETRY);
        retries.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                change = changes.recv() => match change {
                    Some(change) => self.changed(change),
                    None => return,
                },
                _ = retries.tick(), if self.meta_endpoints != self.routing.meta => self.reconnect_meta().await,
            }
        }
    }

    fn changed(&mut self, change: Change) {
        let path = self.path.display();
        match change {
            Change::Unreadable(why) => {
                tracing::error!("cannot read {path}: {why}; going on with its last contents")
            }
            Change::Text(text) => match Routing::parse(&self.path, text.as_bytes()) {
                Ok(routing) if routing.uid != self.routing.uid => {
                    tracing::error!(
                        "{path} is of another topology now, {}; going on with its last contents",
                        routing.uid
                    );
                }
                Ok(routing) => self.take(routing),
                Err(error) => {
                    tracing::error!("{:#}; going on with its last contents", anyhow::Error::from(error));
                }
            },
        }
    }

    fn take(&mut self, routing: Routing) {
        let gone: Vec<_> =
            self.connected.keys().filter(|name| !routing.shards.contains_key(*name)).cloned().collect();
        for name in gone {
            tracing::info!(shard = %name, "shard is gone");
            self.directory.remove(&name);
            self.connected.remove(&name);
        }
        for (name, shard) in &routing.shards {
            if self.connected.get(name) == Some(shard) {
                continue;
            }
            match connect(&shard.endpoints) {
                Ok(connection) => {
                    tracing::debug!(shard = %name, endpoints = ?shard.endpoints, "shard connected");
                    self.directory.insert_incarnation(name.clone(), shard.incarnation, connection);
                    self.connected.insert(name.clone(), shard.clone());
                }
                Err(error) => tracing::error!(shard = %name, "{error:#}; going on as before"),
            }
        }
        self.published.send_replace(routing.clone());
        self.routing = routing;
    }

    /// Goes over to the endpoints that the file names for meta, once they are seen to lead to the same one. What is under
    /// way goes on over the old ones as long as they are there.
    async fn reconnect_meta(&mut self) {
        match self.other_meta().await {
            Ok(connection) => {
                tracing::info!(endpoints = %self.routing.meta.join(" "), "meta has other endpoints");
                self.meta.replace(connection);
                self.meta_endpoints.clone_from(&self.routing.meta);
                self.meta_trouble.clear();
            }
            Err(error) => {
                let why = format!("{error:#}");
                if why != self.meta_trouble {
                    tracing::error!(
                        "meta's other endpoints cannot be used: {why}; going on with those from before"
                    );
                    self.meta_trouble = why;
                }
            }
        }
    }

    async fn other_meta(&self) -> Result<Arc<dyn Shard>> {
        let connection = connect(&self.routing.meta)?;
        match bootstrap::topology_id(connection.as_ref()).await? {
            Some(id) if id.uid == self.routing.uid => Ok(connection),
            Some(id) => bail!("they are of topology {}, not {}", id.uid, self.routing.uid),
            // Right if nothing has been started anywhere yet.
            None => match bootstrap::topology_id(self.meta.as_ref()).await {
                Ok(None) => Ok(connection),
                Ok(Some(_)) => bail!("they hold no topology"),
                Err(error) => {
                    Err(error).context("they hold no topology, and those from before do not answer")
                }
            },
        }
    }
}

/// Checks that meta holds the topology of a routing file.
///
/// # Errors
/// If it does not answer, holds nothing, or belongs to something else.
pub async fn check_meta(meta: &dyn Shard, routing: &Routing, path: &Path) -> Result<()> {
    let urls = routing.meta.join(" ");
    match bootstrap::topology_id(meta).await {
        Ok(Some(id)) if id.uid == routing.uid => Ok(()),
        Ok(Some(id)) => {
            bail!("meta at {urls} is of topology {}, but {} is of {}", id.uid, path.display(), routing.uid)
        }
        Ok(None) if routing.bootstrap => {
            bail!(
                "meta at {urls} holds no topology yet: the shard manager starts it once every shard answers"
            )
        }
        Ok(None) => bail!("meta at {urls} holds no topology yet: start `sharded-etcd up` first"),
        Err(error) => Err(error).with_context(|| format!("meta at {urls}")),
    }
}

fn connect(endpoints: &[String]) -> Result<Arc<dyn Shard>> {
    let shard = EtcdShard::connect_lazy(endpoints.to_vec(), EtcdOptions::default())?;
    Ok(Arc::new(shard))
}
