//! The shards and meta that a routing file names, connected, and kept as the file says while it is replaced.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use sharded_etcd_crd::routing::{RoutedShard, Routing};
use sharded_etcd_line::bootstrap;
use sharded_etcd_shard::{
    Shard, ShardDirectory,
    etcd::{EtcdOptions, EtcdShard},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::watched_file::{self, Change, WatchedFile};

/// A routing file, followed.
pub struct Routed {
    /// The newest good contents.
    pub routing: Routing,
    /// The connection to meta.
    pub meta: Arc<dyn Shard>,
    /// The connections to the shards.
    pub directory: ShardDirectory,
    /// Sees every good contents.
    pub published: watch::Sender<Routing>,
    path: PathBuf,
    connected: BTreeMap<String, RoutedShard>,
}

impl Routed {
    /// Reads the file, connects, and checks that meta is the topology's.
    ///
    /// # Errors
    /// If the file makes no sense, or meta does not answer or belongs to something else.
    pub async fn open(path: &Path, shutdown: &CancellationToken) -> Result<(Self, mpsc::Receiver<Change>)> {
        let (file, text) = WatchedFile::read(path)
            .with_context(|| format!("cannot read the routing file {}", path.display()))?;
        let routing = Routing::parse(path, text.as_bytes())?;
        let meta = connect(&routing.meta).with_context(|| format!("meta in {}", path.display()))?;
        let urls = routing.meta.join(" ");
        match bootstrap::topology_id(meta.as_ref()).await {
            Ok(Some(id)) if id.uid == routing.uid => {}
            Ok(Some(id)) => bail!(
                "meta at {urls} is of topology {}, but {} is of {}",
                id.uid,
                path.display(),
                routing.uid
            ),
            Ok(None) => bail!("meta at {urls} holds no topology yet: start `sharded-etcd up` first"),
            Err(error) => return Err(error).with_context(|| format!("meta at {urls}")),
        }
        let mut this = Self {
            meta,
            directory: ShardDirectory::new(),
            published: watch::Sender::new(routing.clone()),
            path: path.to_owned(),
            connected: BTreeMap::new(),
            routing: routing.clone(),
        };
        this.take(routing);
        Ok((this, watched_file::watch(file, shutdown.clone())))
    }

    /// Keeps the connections as the file says, until the watch on it ends.
    pub async fn follow(mut self, mut changes: mpsc::Receiver<Change>) {
        while let Some(change) = changes.recv().await {
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
    }

    fn take(&mut self, routing: Routing) {
        if routing.meta != self.routing.meta {
            tracing::error!(
                "meta has other endpoints now ({}): start this process again",
                routing.meta.join(" ")
            );
        }
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
                    self.directory.insert(name.clone(), connection);
                    self.connected.insert(name.clone(), shard.clone());
                }
                Err(error) => tracing::error!(shard = %name, "{error:#}; going on as before"),
            }
        }
        self.published.send_replace(routing.clone());
        self.routing = routing;
    }
}

fn connect(endpoints: &[String]) -> Result<Arc<dyn Shard>> {
    let shard = EtcdShard::connect_lazy(endpoints.to_vec(), EtcdOptions::default())?;
    Ok(Arc::new(shard))
}
