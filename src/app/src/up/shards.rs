//! The shards of this machine, kept as they are wanted: made, taken into the line, and removed once they have left it.
//!
//! # Order of steps
//!
//! | step | if the process is killed before the next |
//! | --- | --- |
//! | note the shard in `topology.json` | the next start makes it |
//! | open its engine | the same |
//! | join the line | the join is repeated: it is the same one |
//! | … it is drained and leaves the line (the shard manager does that) | |
//! | note in `topology.json` that its folder is left over | the next start removes the folder |
//! | close the engine, remove the folder | the same |

use std::{path::PathBuf, sync::Arc};

use rand::Rng;
use sharded_etcd_core::{
    records::{Record, TopologyId},
    topology::shard_name,
};
use sharded_etcd_crd::routing::{Engine, RoutedShard, Routing};
use sharded_etcd_line::{
    Line,
    bootstrap::{self, BootstrapError, NewShard},
};
use sharded_etcd_shard::{Shard, ShardDirectory};

use super::{
    data_dir::{DataDir, Member, State},
    desired::Desired,
    engines::{Engines, META, OpenError},
    etcd_children::EtcdError,
};
use crate::files::{self, FileError};

/// Why the shards are not as wanted.
#[derive(Debug, thiserror::Error)]
pub enum ShardsError {
    /// A file or folder of the data folder cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// An engine does not run.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// etcd processes cannot be prepared.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// The topology cannot be started, or a shard not be taken in.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// Meta has lost the topology.
    #[error(
        "meta in {} is empty, but the topology was running: put its folder back, or start over with another --data-dir",
        path.display()
    )]
    MetaLost {
        /// The data folder.
        path: PathBuf,
    },
    /// Meta's data are of another topology.
    #[error("meta in {} belongs to topology {found}, not {expected}: put the right folder back", path.display())]
    OtherMeta {
        /// The data folder.
        path: PathBuf,
        /// Uid in meta.
        found: String,
        /// Uid in `topology.json`.
        expected: String,
    },
}

/// The shards of a data folder, running.
pub struct LocalShards {
    dir: DataDir,
    state: State,
    engines: Engines,
    directory: ShardDirectory,
    meta: Arc<dyn Shard>,
}

impl LocalShards {
    /// Opens what the data folder holds; makes a new topology if it holds none.
    ///
    /// # Errors
    /// See [`ShardsError`]. Engines that were opened are closed again.
    pub async fn open(
        dir: DataDir,
        state: State,
        mut engines: Engines,
        desired: &Desired,
    ) -> Result<Self, ShardsError> {
        match Self::open_meta(&dir, state, &mut engines).await {
            Ok((state, meta)) => {
                let mut this = Self { dir, state, engines, directory: ShardDirectory::new(), meta };
                match this.open_shards(desired).await {
                    Ok(()) => Ok(this),
                    Err(error) => {
                        this.close().await;
                        Err(error)
                    }
                }
            }
            Err(error) => {
                engines.close_all().await;
                Err(error)
            }
        }
    }

    async fn open_meta(
        dir: &DataDir,
        mut state: State,
        engines: &mut Engines,
    ) -> Result<(State, Arc<dyn Shard>), ShardsError> {
        engines.prepare(dir, &mut state).await?;
        state.meta.has_data = state.bootstrapped;
        dir.save(&state)?;
        dir.remove_leftovers(&mut state)?;
        let opened = engines.open(dir, [(META.to_owned(), state.meta.clone())], None).await?;
        let (_, meta) = opened.into_iter().next().expect("one engine was asked for");
        let id = bootstrap::topology_id(meta.as_ref()).await?;
        let path = || dir.path().to_owned();
        match id {
            Some(id) if id.uid != state.uid => {
                return Err(ShardsError::OtherMeta { path: path(), found: id.uid, expected: state.uid });
            }
            Some(_) if !state.bootstrapped => {
                // Killed right after the bootstrap: all shards noted then are part of it.
                state.bootstrapped = true;
                state.shards.values_mut().for_each(|member| member.has_data = true);
                dir.save(&state)?;
            }
            None if state.bootstrapped => return Err(ShardsError::MetaLost { path: path() }),
            None => {
                // Killed before the bootstrap: nothing was served yet, and other shards may be wanted now.
                let begun: Vec<_> = state.shards.keys().cloned().collect();
                begun.iter().for_each(|name| state.remove_shard(name));
                dir.save(&state)?;
                dir.remove_leftovers(&mut state)?;
            }
            Some(_) => {}
        }
        Ok((state, meta))
    }

    /// Opens the shards there are, and bootstraps the topology if there are none.
    async fn open_shards(&mut self, desired: &Desired) -> Result<(), ShardsError> {
        if !self.state.bootstrapped {
            for index in 0..desired.topology.shards {
                self.state.add_shard(&shard_name(index));
            }
            self.note(desired);
        }
        self.engines.prepare(&self.dir, &mut self.state).await?;
        self.dir.save(&self.state)?;
        let members: Vec<_> = self.state.shards.iter().map(|(n, m)| (n.clone(), m.clone())).collect();
        let opened = self.engines.open(&self.dir, members, desired.topology.quota_bytes).await?;
        for (name, shard) in opened {
            self.directory.insert(name, shard);
        }
        if !self.state.bootstrapped {
            self.bootstrap(desired).await?;
            self.state.bootstrapped = true;
            self.state.meta.has_data = true;
            self.state.shards.values_mut().for_each(|member| member.has_data = true);
            self.dir.save(&self.state)?;
        }
        Ok(())
    }

    async fn bootstrap(&self, desired: &Desired) -> Result<(), ShardsError> {
        let names: Vec<_> = (0..desired.topology.shards).map(shard_name).collect();
        let connections: Vec<_> = names
            .iter()
            .map(|name| self.directory.get(name).expect("every shard was opened above"))
            .collect();
        let shards: Vec<_> = names
            .iter()
            .zip(&connections)
            .map(|(name, shard)| NewShard {
                name,
                incarnation: self.state.shards[name].incarnation,
                shard: shard.as_ref(),
            })
            .collect();
        let ranges = desired.topology.first_ranges();
        let id = TopologyId { uid: self.state.uid.clone(), cluster_id: self.state.cluster_id };
        bootstrap::bootstrap(self.meta.as_ref(), &id, &shards, &ranges).await?;
        Ok(())
    }

    fn note(&mut self, desired: &Desired) {
        self.state.shards_wanted = desired.topology.shards;
        self.state.delimiter.clone_from(&desired.resource.spec.keyspace.delimiter);
        if let Some(name) = desired.name() {
            self.state.name = Some(name.to_owned());
        }
    }

    /// Makes the shards that are wanted and not there, takes them into the line, and forgets those that were begun and
    /// are no longer wanted. Those that are to leave are left to the shard manager.
    ///
    /// # Errors
    /// See [`ShardsError`]; a repeat goes on where this one failed.
    pub async fn want(&mut self, desired: &Desired, line: &Line) -> Result<(), ShardsError> {
        let wanted: Vec<_> = (0..desired.topology.shards).map(shard_name).collect();
        let begun =
            self.state.shards.iter().filter(|(name, member)| !member.has_data && !wanted.contains(name));
        let dropped: Vec<_> = begun.map(|(name, _)| name.clone()).collect();
        self.note(desired);
        for name in &wanted {
            self.state.add_shard(name);
        }
        for name in dropped {
            self.drop_shard(&name).await?;
        }
        self.engines.prepare(&self.dir, &mut self.state).await?;
        self.dir.save(&self.state)?;
        self.dir.remove_leftovers(&mut self.state)?;
        let closed = self.state.shards.iter().filter(|(name, _)| self.directory.get(name).is_none());
        let closed: Vec<_> = closed.map(|(name, member)| (name.clone(), member.clone())).collect();
        for (name, shard) in self.engines.open(&self.dir, closed, desired.topology.quota_bytes).await? {
            self.directory.insert(name, shard);
        }
        self.join(line).await
    }

    /// Takes shards into the line that are noted and not in it.
    async fn join(&mut self, line: &Line) -> Result<(), ShardsError> {
        let new: Vec<_> =
            self.state.shards.iter().filter(|(_, m)| !m.has_data).map(|(n, _)| n.clone()).collect();
        for name in new {
            let incarnation = self.state.shards[&name].incarnation;
            let is_in = line.with_fold(|fold| {
                let mut shards = fold.shards().iter();
                shards.any(|s| s.name == name && s.incarnation == incarnation)
            });
            // Killed right after the join: it may hold keys by now, and could not be claimed again.
            if !is_in {
                let shard = self.directory.get(&name).expect("every shard noted was opened above");
                bootstrap::join(line, &NewShard { name: &name, incarnation, shard: shard.as_ref() }).await?;
            }
            if let Some(member) = self.state.shards.get_mut(&name) {
                member.has_data = true;
            }
            self.dir.save(&self.state)?;
            tracing::info!(shard = %name, incarnation, "shard joined");
        }
        Ok(())
    }

    /// Removes the shards that have left the line, with their data; true if there were any.
    ///
    /// # Errors
    /// If a folder cannot be removed; the next start tries again.
    pub async fn remove_left(&mut self, line: &Line) -> Result<bool, ShardsError> {
        let left: Vec<_> = line.with_fold(|fold| {
            let has_left = |name: &str, member: &Member| {
                let mut joins = fold.shards().iter().rev();
                joins.any(|s| s.name == name && s.incarnation == member.incarnation && s.left)
            };
            let shards = self.state.shards.iter().filter(|(name, member)| has_left(name, member));
            shards.map(|(name, _)| name.clone()).collect()
        });
        for name in &left {
            tracing::info!(shard = %name, "shard has left; removing its data");
            self.drop_shard(name).await?;
        }
        Ok(!left.is_empty())
    }

    async fn drop_shard(&mut self, name: &str) -> Result<(), ShardsError> {
        self.state.remove_shard(name);
        self.dir.save(&self.state)?;
        self.directory.remove(name);
        self.engines.close(name).await;
        self.dir.remove_leftovers(&mut self.state)?;
        Ok(())
    }

    /// The routing file's contents for processes of their own.
    fn routing(&self, desired: &Desired) -> Routing {
        let endpoints = |member: &Member| {
            member.ports.map(|ports| format!("http://127.0.0.1:{}", ports.client)).into_iter().collect()
        };
        let routed =
            |member: &Member| RoutedShard { incarnation: member.incarnation, endpoints: endpoints(member) };
        Routing {
            uid: self.state.uid.clone(),
            bootstrap: false,
            engine: self.state.engine,
            meta: endpoints(&self.state.meta),
            shards: self.state.shards.iter().map(|(name, member)| (name.clone(), routed(member))).collect(),
            resource: desired.resource.clone(),
        }
    }

    /// Replaces the routing file.
    ///
    /// # Errors
    /// If it cannot be written; the old one is still there then.
    pub fn write_routing(&self, desired: &Desired) -> Result<(), FileError> {
        files::replace(&self.dir.path().join("routing.json"), &self.routing(desired).encode())
    }

    /// The state that is saved.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The connections to the shards.
    pub fn directory(&self) -> &ShardDirectory {
        &self.directory
    }

    /// The connection to meta.
    pub fn meta(&self) -> &Arc<dyn Shard> {
        &self.meta
    }

    /// The engines, to ask what they run on.
    pub fn engines(&self) -> &Engines {
        &self.engines
    }

    /// Closes all engines.
    pub async fn close(mut self) {
        self.engines.close_all().await;
    }
}

/// The state of a new topology, with an identity of its own.
pub fn new_state(engine: Engine, desired: &Desired) -> State {
    let mut rng = rand::rng();
    State {
        uid: format!("{:032x}", rng.random::<u128>()),
        cluster_id: rng.random_range(1..=u64::MAX),
        engine,
        name: desired.name().map(str::to_owned),
        shards_wanted: desired.topology.shards,
        delimiter: desired.resource.spec.keyspace.delimiter.clone(),
        bootstrapped: false,
        meta: Member::default(),
        shards: Default::default(),
        next_incarnations: Default::default(),
        leftovers: Default::default(),
    }
}
