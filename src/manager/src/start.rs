//! Starting a topology whose meta and shards are empty: what a shard manager does first in a cluster.
//!
//! # Order of steps
//!
//! | step | if the process is killed before the next |
//! | --- | --- |
//! | every shard of the spec answers | nothing has happened; the newest spec counts at the next try |
//! | what it is started with is written to meta (`t/first`), unless it is there | whoever comes next goes on with that, whatever the spec is by then |
//! | the first shard is claimed, the second, … | the same claims are found to be there already |
//! | the log's first entry and the identity are written to meta, and `t/first` is deleted, in one Txn | it has begun |
//!
//! Any number of managers may be at it at once, with older and newer specs: `t/first` makes them do the same, each step
//! is a no-op the second time, and the last one compares that there is no log yet. Nothing is served before that one.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use sharded_etcd_core::{
    records::{FirstRecord, TopologyId},
    topology::{Topology, shard_name},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::bootstrap::{self, BootstrapError, NewShard};
use sharded_etcd_shard::{Shard, ShardDirectory, with_causes};

/// How long a shard may take to show that it is there. Elections of etcd take a second or two.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Shards that are named, when many do not answer.
const NAMED_MAX: usize = 5;

/// Why a topology is not started yet.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Some shards do not answer.
    #[error("the topology is not started yet: it waits for {0}")]
    Waits(String),
    /// A step failed.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
}

/// Starts the topology, or finds that it has been; its identity.
///
/// # Errors
/// See [`StartError`]: try again with the newest `topology`.
pub async fn start_topology(
    meta: &dyn Shard,
    directory: &ShardDirectory,
    uid: &str,
    topology: &Topology,
) -> Result<TopologyId, StartError> {
    let id = TopologyId::of_uid(uid);
    if let Some(found) = bootstrap::topology_id(meta).await? {
        return if found.uid == id.uid {
            Ok(found)
        } else {
            Err(BootstrapError::OtherTopology { found: found.uid, expected: id.uid }.into())
        };
    }
    let first = match bootstrap::first(meta).await? {
        Some(first) if first.uid == uid => first,
        // Another topology's: the next step says so.
        _ => {
            let wanted = wanted(directory, uid, topology);
            connected(directory, &wanted).await?;
            bootstrap::fix_first(meta, &wanted).await?
        }
    };
    let connections = connected(directory, &first).await?;
    let shards: Vec<_> = first
        .shards
        .iter()
        .zip(&connections)
        .map(|((name, incarnation), shard)| NewShard {
            name,
            incarnation: *incarnation,
            shard: shard.as_ref(),
        })
        .collect();
    Ok(bootstrap::bootstrap(meta, &id, &shards, &first.ranges).await?)
}

fn wanted(directory: &ShardDirectory, uid: &str, topology: &Topology) -> FirstRecord {
    let named = |index| {
        let name = shard_name(index);
        let incarnation = directory.incarnation(&name).unwrap_or(0);
        (name, incarnation)
    };
    FirstRecord {
        uid: uid.to_owned(),
        shards: (0..topology.shards).map(named).collect(),
        ranges: topology.first_ranges(),
    }
}

/// Connections to all shards, each of which has just answered.
async fn connected(
    directory: &ShardDirectory,
    first: &FirstRecord,
) -> Result<Vec<Arc<dyn Shard>>, StartError> {
    let asked = first.shards.iter().map(|(name, incarnation)| async move {
        let Some(shard) = directory.get(name) else {
            return Err(format!("{name} (not in the routing file)"));
        };
        if directory.incarnation(name).is_some_and(|now| now != *incarnation) {
            return Err(format!("{name} (incarnation {incarnation}, which is not in the routing file)"));
        }
        // Linearizable: it needs a quorum, and so will the claim.
        let get = pb::RangeRequest { key: Bytes::from_static(b"\0"), count_only: true, ..Default::default() };
        match tokio::time::timeout(ANSWER_MAX, shard.range(get)).await {
            Ok(Ok(_)) => Ok(Arc::clone(&shard)),
            Ok(Err(error)) => Err(format!("{name} ({})", with_causes(&error))),
            Err(_) => Err(format!("{name} (no answer within {} s)", ANSWER_MAX.as_secs())),
        }
    });
    let mut connections = Vec::with_capacity(first.shards.len());
    let mut waits = Vec::new();
    for answer in futures::future::join_all(asked).await {
        match answer {
            Ok(connection) => connections.push(connection),
            Err(why) => waits.push(why),
        }
    }
    let more = waits.len().saturating_sub(NAMED_MAX);
    waits.truncate(NAMED_MAX);
    match (waits.is_empty(), more) {
        (true, _) => Ok(connections),
        (false, 0) => Err(StartError::Waits(waits.join(", "))),
        (false, more) => Err(StartError::Waits(format!("{} and {more} more", waits.join(", ")))),
    }
}
