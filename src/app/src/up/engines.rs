//! The engines of a data folder: meta's and the shards', embedded or real etcd.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::{join_all, try_join_all};
use sharded_etcd_crd::routing::Engine;
use sharded_etcd_engine::{Engine as Embedded, EngineConfig, EngineError};
use sharded_etcd_shard::{
    Shard, ShardError,
    etcd::{EtcdOptions, EtcdShard},
};

use tokio::net::TcpStream;

use super::{
    data_dir::{DataDir, LOCK_LOOK, LOCK_PATIENCE, Member, Ports, State},
    etcd_children::{self, EtcdChild, EtcdError, EtcdMember, EtcdProgram},
};

/// Name of meta's engine.
pub const META: &str = "meta";
/// How long an etcd may take until it serves: replaying 8 GiB from a slow disk takes minutes.
const READY_MAX: Duration = Duration::from_secs(300);
/// An etcd that died this often while it started will not start.
const DEATHS_MAX: u32 = 4;
/// Quota of one shard where the resource names none; the embedded engine keeps its data in memory.
const EMBEDDED_QUOTA_BYTES: u64 = 2 << 30;
/// What etcd's documentation suggests at most.
pub const ETCD_QUOTA_BYTES: u64 = 8 << 30;
/// A client's transaction may have 128 operations; guards and imports come on top.
pub(super) const TXN_OPS_MAX: usize = 10_000;
/// A client's request may have 1.5 MiB; imports put many keys into one transaction.
pub(super) const REQUEST_BYTES_MAX: usize = 16 << 20;

/// Why an engine does not run.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The embedded engine cannot be opened.
    #[error("cannot open {name}")]
    Embedded {
        /// Meta, or the shard's name.
        name: String,
        /// Why.
        source: EngineError,
    },
    /// There is no etcd to run, or not the way it has to be run.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// etcd does not come up.
    #[error("the etcd of {name} does not serve: {why}; its log is {}", log.display())]
    NotReady {
        /// Meta, or the shard's name.
        name: String,
        /// Why.
        why: String,
        /// Where it logs.
        log: PathBuf,
    },
    /// Its endpoint cannot be used.
    #[error("cannot connect to the etcd of {name}")]
    Connect {
        /// Meta, or the shard's name.
        name: String,
        /// Why.
        source: ShardError,
    },
    /// The data of a shard that has data is not there.
    #[error(
        "{} is gone, but {name} has data that is nowhere else: put the folder back, or start over with another \
         --data-dir",
        folder.display()
    )]
    Gone {
        /// Meta, or the shard's name.
        name: String,
        /// Where its data should be.
        folder: PathBuf,
    },
}

/// What the engines run on.
#[derive(Debug, Clone)]
pub enum Backend {
    /// In this process.
    Embedded,
    /// As children of this process.
    Etcd(EtcdProgram),
}

impl Backend {
    /// Its kind, as the data folder notes it.
    pub fn kind(&self) -> Engine {
        match self {
            Self::Embedded => Engine::Embedded,
            Self::Etcd(_) => Engine::Etcd,
        }
    }

    /// How many bytes of one shard clients may fill.
    pub fn client_quota_bytes(&self, asked: Option<u64>) -> u64 {
        asked.unwrap_or(match self {
            Self::Embedded => EMBEDDED_QUOTA_BYTES,
            Self::Etcd(_) => ETCD_QUOTA_BYTES,
        })
    }

    /// The engine's own quota: above the clients', which the proxy keeps, so that a shard that is full for clients can
    /// still be drained. At its own quota a shard refuses every transaction with a put in it.
    fn quota_bytes(&self, asked: Option<u64>) -> u64 {
        let quota = self.client_quota_bytes(asked);
        quota.saturating_add((quota / 8).max(64 << 20))
    }
}

/// The running engines.
pub struct Engines {
    backend: Backend,
    uid: String,
    running: BTreeMap<String, Running>,
}

enum Running {
    Embedded(Arc<Embedded>),
    Etcd(EtcdChild),
}

impl Engines {
    /// None yet; `uid` is the topology's.
    pub fn new(backend: Backend, uid: impl Into<String>) -> Self {
        Self { backend, uid: uid.into(), running: BTreeMap::new() }
    }

    /// What they run on.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Ends what an earlier run left behind, and gives every etcd that does not run yet ports that are free. The
    /// state is to be saved before they are opened.
    ///
    /// # Errors
    /// If an orphan cannot be ended, or no port is free.
    pub async fn prepare(&self, dir: &DataDir, state: &mut State) -> Result<(), EtcdError> {
        if matches!(self.backend, Backend::Embedded) {
            return Ok(());
        }
        let leftovers = state.leftovers.iter().map(|folder| dir.path().join(folder));
        let members =
            [(META, &state.meta)].into_iter().chain(state.shards.iter().map(|(n, m)| (n.as_str(), m)));
        let idle = members
            .filter(|(name, _)| !self.running.contains_key(*name))
            .map(|(name, member)| dir.engine_path(name, member.incarnation));
        let folders: Vec<_> = leftovers.chain(idle).collect();
        try_join_all(folders.iter().map(|folder| etcd_children::end_orphan(folder))).await?;

        let mut taken: Vec<Ports> =
            [&state.meta].into_iter().chain(state.shards.values()).filter_map(|m| m.ports).collect();
        let members = [(META, &mut state.meta)]
            .into_iter()
            .chain(state.shards.iter_mut().map(|(name, member)| (name.as_str(), member)));
        for (name, member) in members.filter(|(name, _)| !self.running.contains_key(*name)) {
            if !member.ports.is_some_and(etcd_children::are_free) {
                let ports = etcd_children::free_ports(&taken)?;
                tracing::debug!(engine = name, ?ports, "ports chosen");
                taken.push(ports);
                member.ports = Some(ports);
            }
        }
        Ok(())
    }

    /// Starts engines and waits until each of them serves.
    ///
    /// # Errors
    /// See [`OpenError`]; those that were started are stopped again.
    pub async fn open(
        &mut self,
        dir: &DataDir,
        members: impl IntoIterator<Item = (String, Member)>,
        quota_bytes: Option<u64>,
    ) -> Result<Vec<(String, Arc<dyn Shard>)>, OpenError> {
        let this = &*self;
        let opening = members.into_iter().map(|(name, member)| async move {
            let opened = this.open_one(dir, &name, &member, quota_bytes).await;
            opened.map(|(running, shard)| (name, running, shard))
        });
        let mut opened = Vec::new();
        let mut failed = None;
        for outcome in join_all(opening).await {
            match outcome {
                Ok(one) => opened.push(one),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let Some(error) = failed {
            join_all(opened.into_iter().map(|(_, running, _)| running.close())).await;
            return Err(error);
        }
        let mut shards = Vec::new();
        for (name, running, shard) in opened {
            self.running.insert(name.clone(), running);
            shards.push((name, shard));
        }
        Ok(shards)
    }

    async fn open_one(
        &self,
        dir: &DataDir,
        name: &str,
        member: &Member,
        quota_bytes: Option<u64>,
    ) -> Result<(Running, Arc<dyn Shard>), OpenError> {
        let folder = dir.engine_path(name, member.incarnation);
        if member.has_data && !folder.exists() {
            return Err(OpenError::Gone { name: name.to_owned(), folder });
        }
        // Meta is no place for clients' data: it gets the room that there is.
        let quota_bytes = self.backend.quota_bytes(quota_bytes.filter(|_| name != META));
        match &self.backend {
            Backend::Embedded => {
                let mut config = EngineConfig::new(folder, name);
                config.quota_bytes = i64::try_from(quota_bytes).unwrap_or(i64::MAX);
                config.max_txn_ops = TXN_OPS_MAX;
                config.max_request_bytes = REQUEST_BYTES_MAX;
                let started = Instant::now();
                let opened = loop {
                    match Embedded::open(config.clone()).await {
                        // The folder is ours: it is a process that was killed a moment ago that still holds it.
                        Err(EngineError::Locked { .. }) if started.elapsed() < LOCK_PATIENCE => {
                            tokio::time::sleep(LOCK_LOOK).await;
                        }
                        outcome => break outcome,
                    }
                };
                let engine =
                    opened.map_err(|source| OpenError::Embedded { name: name.to_owned(), source })?;
                Ok((Running::Embedded(Arc::clone(&engine)), engine))
            }
            Backend::Etcd(program) => {
                let ports = member.ports.expect("`prepare` gave every etcd its ports");
                let etcd = EtcdMember {
                    name: name.to_owned(),
                    data_dir: folder,
                    log: dir.path().join(format!("{name}.log")),
                    token: format!("{}-{name}-{}", self.uid, member.incarnation),
                    ports,
                    quota_bytes,
                };
                let connect = EtcdShard::connect_lazy(vec![etcd.endpoint()], EtcdOptions::default());
                let shard = connect.map_err(|source| OpenError::Connect { name: name.to_owned(), source })?;
                let child = EtcdChild::start(program, etcd);
                match wait_ready(&child, &shard).await {
                    Ok(()) => Ok((Running::Etcd(child), Arc::new(shard))),
                    Err(why) => {
                        let log = child.member().log.clone();
                        child.stop().await;
                        Err(OpenError::NotReady { name: name.to_owned(), why, log })
                    }
                }
            }
        }
    }

    /// Stops one engine; its data stay.
    pub async fn close(&mut self, name: &str) {
        if let Some(running) = self.running.remove(name) {
            running.close().await;
        }
    }

    /// Stops all engines, meta last.
    pub async fn close_all(&mut self) {
        let meta = self.running.remove(META);
        join_all(std::mem::take(&mut self.running).into_values().map(Running::close)).await;
        if let Some(meta) = meta {
            meta.close().await;
        }
    }
}

impl Running {
    async fn close(self) {
        match self {
            Self::Embedded(engine) => engine.close().await,
            Self::Etcd(child) => child.stop().await,
        }
    }
}

/// Waits until etcd answers a linearizable question.
async fn wait_ready(child: &EtcdChild, shard: &EtcdShard) -> Result<(), String> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(10);
    loop {
        let state = child.state();
        if state.deaths >= DEATHS_MAX {
            return Err(state.last_death.unwrap_or_default());
        }
        // The adapter logs what it cannot connect to; that an etcd that starts does not listen yet is no news.
        let client = (Ipv4Addr::LOCALHOST, child.member().ports.client);
        if state.pid.is_some() && TcpStream::connect(client).await.is_ok() {
            match shard.range(super::probe()).await {
                Ok(_) => return Ok(()),
                Err(error) if started.elapsed() > READY_MAX => {
                    return Err(format!("no answer within {READY_MAX:?}: {error}"));
                }
                Err(_) => {}
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_quota_leaves_room_above_the_clients() {
        let embedded = Backend::Embedded;
        assert_eq!(embedded.quota_bytes(Some(16 << 20)), (16 + 64) << 20);
        assert_eq!(embedded.quota_bytes(Some(8 << 30)), 9 << 30);
        let etcd = Backend::Etcd(EtcdProgram { path: "etcd".into(), version: "3.7.3".into() });
        assert_eq!(etcd.client_quota_bytes(None), 8 << 30);
        assert!(embedded.quota_bytes(None) > embedded.client_quota_bytes(None));
    }

    #[tokio::test]
    async fn a_folder_that_is_gone_is_not_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (dir, _) = DataDir::open(folder.path()).unwrap();
        let mut engines = Engines::new(Backend::Embedded, "u");
        let member = Member { has_data: true, ..Member::default() };
        let error = engines.open(&dir, [("shard-1".to_owned(), member)], None).await.err().unwrap();
        assert!(matches!(&error, OpenError::Gone { name, .. } if name == "shard-1"), "{error}");
        assert!(!dir.engine_path("shard-1", 0).exists());
    }
}
