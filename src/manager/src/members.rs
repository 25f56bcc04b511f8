//! Shards that join and shards that leave.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use sharded_etcd_core::{
    keyspace::{KeyRange, ShardIx},
    line::Entry,
    moves::ops,
    records::{
        self, LEASE_PREFIX, MOVES_PREFIX, MapRecord, MoveRecord, PROXIES_PREFIX, ProxyRecord, Record,
        lease_id_of_key,
    },
    sabotage::Sabotage,
    topology::{Topology, shard_index, shard_name},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::{
    Line, Shards,
    bootstrap::{self, NewShard},
};
use sharded_etcd_shard::{Certainty, with_causes};
use tokio::time::Instant;

use crate::{ManagerError, error::Result, leader::Term, mover::observe::read_map};

/// Registrations of shadows that one Txn drops, and keys of meta that one Range reads.
const PAGE: i64 = 500;

/// Takes shards into the line and out of it.
pub(crate) struct Members {
    line: Arc<Line>,
    shards: Arc<Shards>,
    drain_history_max: Duration,
    term: Term,
    /// Since when a shard owns nothing.
    empty_since: Mutex<HashMap<ShardIx, Instant>>,
}

/// What a shard that leaves waits for; `None`: it has left.
pub(crate) type Waiting = Option<String>;

impl Members {
    pub(crate) fn new(line: Arc<Line>, shards: Arc<Shards>, drain_history_max: Duration, term: Term) -> Self {
        Self { line, shards, drain_history_max, term, empty_since: Mutex::default() }
    }

    /// Takes in every shard that the topology wants, that can be reached, and that every proxy knows; what keeps the others
    /// out. Nothing is sent to the others.
    pub(crate) async fn join(&self, topology: &Topology) -> Vec<(String, String)> {
        let mut waits = Vec::new();
        let names = (0..topology.shards).map(shard_name);
        let new: Vec<String> =
            names.filter(|name| self.line.with_fold(|fold| fold.shard_named(name)).is_none()).collect();
        if new.is_empty() {
            return waits;
        }
        let behind = self.proxies_behind(topology.generation).await;
        for name in new {
            if let Some(why) = &behind {
                waits.push((name, why.clone()));
                continue;
            }
            let Some(connection) = self.shards.directory().get(&name) else {
                waits.push((name, "it is not running yet, or there is no connection to it".to_owned()));
                continue;
            };
            let last = self.line.with_fold(|fold| {
                fold.shards().iter().filter(|s| s.name == name).map(|s| s.incarnation).max()
            });
            let incarnation = match (self.shards.directory().incarnation(&name), last) {
                (Some(given), Some(last)) if given <= last => {
                    waits.push((
                        name,
                        format!("incarnation {given} of it has left; the next one is not there yet"),
                    ));
                    continue;
                }
                (Some(given), _) => given,
                (None, last) => last.map_or(0, |last| last + 1),
            };
            let new = NewShard { name: &name, incarnation, shard: connection.as_ref() };
            match self.join_line(&new).await {
                Ok(true) => tracing::info!(shard = name, incarnation, "shard joined"),
                Ok(false) => waits.push((name, "another shard manager leads now".to_owned())),
                Err(error) => waits.push((name, with_causes(&error))),
            }
        }
        waits
    }

    /// Writes the shard's join to the log; false if this term is over.
    ///
    /// The operator removes what is not part of the line and not wanted any more, so no join may arrive after that was said.
    /// The guard sees to it for the joins of other terms. If it is unknown whether one of this term arrived, the term is over.
    async fn join_line(&self, new: &NewShard<'_>) -> Result<bool> {
        let join = bootstrap::claim_empty(new).await?;
        let put = ops::put(Bytes::from_static(records::CUT_LATEST), Entry::Join(join).encode());
        let joined = self.append_if(vec![self.term.guard()], vec![put]).await;
        if matches!(&joined, Err(ManagerError::Meta(error)) if error.certainty == Certainty::Ambiguous) {
            self.term.token.cancel();
        }
        joined
    }

    /// Writes to meta, an entry of the log among it, and waits until that is folded; false if a guard failed.
    async fn append_if(&self, guards: Vec<pb::Compare>, writes: Vec<pb::RequestOp>) -> Result<bool> {
        let answer = self.line.meta().txn(ops::txn(guards, writes)).await.map_err(ManagerError::Meta)?;
        if answer.succeeded {
            self.line.at_position(answer.header.map_or(0, |h| h.revision)).await?;
        }
        Ok(answer.succeeded)
    }

    /// The proxies that have not taken up a generation of the routing, as a reason to wait. A range on a shard that a proxy
    /// does not know is a range that it cannot serve. One that hangs loses its registration, so this ends.
    async fn proxies_behind(&self, generation: i64) -> Option<String> {
        if generation == 0 {
            return None;
        }
        let range = ops::range_request(&KeyRange::prefix(PROXIES_PREFIX));
        let answer = match self.line.meta().range(range).await {
            Ok(answer) => answer,
            Err(error) => return Some(format!("the proxies cannot be read from meta: {error}")),
        };
        let records = answer.kvs.iter().filter_map(|kv| ProxyRecord::decode(&kv.value).ok());
        let digest = self.shards.directory().digest();
        let is_behind = |proxy: &ProxyRecord| {
            proxy.generation.is_some_and(|known| known < generation)
                || proxy.shards.is_some_and(|known| known != digest)
        };
        let mut behind = records.filter(is_behind);
        let first = behind.next()?;
        let more = match behind.count() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let name = first.name;
        Some(match first.generation {
            Some(known) if known < generation => {
                format!(
                    "proxy {name}{more} has not taken up generation {generation} of the spec yet, only {known}"
                )
            }
            _ => format!("proxy {name}{more} does not know the same shards as the shard manager yet"),
        })
    }

    /// Moves every drained shard that is to leave a step on; what each still waits for.
    pub(crate) async fn leave(&self, topology: &Topology, moves: &[MoveRecord]) -> Vec<(String, Waiting)> {
        let leaving: Vec<(ShardIx, String)> = self.line.with_fold(|fold| {
            let all = fold.shards().iter().enumerate();
            all.filter(|(_, s)| !s.left && shard_index(&s.name).is_none_or(|index| index >= topology.shards))
                .map(|(i, s)| (ShardIx(u32::try_from(i).unwrap_or(u32::MAX)), s.name.clone()))
                .collect()
        });
        self.empty_since.lock().retain(|ix, _| leaving.iter().any(|l| l.0 == *ix));
        let mut waits = Vec::new();
        for (ix, name) in leaving {
            // One that cannot be reached does not hold up the others.
            let waiting = self.leave_one(ix, moves).await;
            let waiting = waiting.unwrap_or_else(|error| Some(with_causes(&error)));
            if waiting.is_none() {
                tracing::info!(shard = name, "shard left");
            }
            waits.push((name, waiting));
        }
        waits
    }

    async fn leave_one(&self, ix: ShardIx, moves: &[MoveRecord]) -> Result<Waiting> {
        if self.line.cut().map.owns_any(ix) {
            self.empty_since.lock().remove(&ix);
            return Ok(Some("it still owns ranges".to_owned()));
        }
        let since = *self.empty_since.lock().entry(ix).or_insert_with(Instant::now);
        if moves.iter().any(|m| m.from == ix || m.to == ix) {
            return Ok(Some("a move from or to it is not over".to_owned()));
        }
        let shard = self.shards.get(ix).await?;
        let all = KeyRange::whole().clamped();
        let count = pb::RangeRequest { count_only: true, ..ops::range_request(&all) };
        let left = shard.range(count).await?.count;
        if left > 0 {
            return Ok(Some(format!("{left} keys on it are still to be deleted")));
        }
        if let Some(last_flip_away) = self.history_only_on(ix) {
            let patience = self.drain_history_max.saturating_sub(since.elapsed());
            if patience.is_zero() {
                tracing::info!(
                    revision = last_flip_away,
                    "compacting the history that only a leaving shard has"
                );
                self.line.append(&Entry::Compact(last_flip_away)).await?;
            } else {
                return Ok(Some(format!(
                    "history before revision {last_flip_away} is still readable there; it is compacted in {} s at the latest",
                    patience.as_secs() + 1
                )));
            }
        }
        if let Some(lease) = self.drop_shadows(ix).await? {
            return Ok(Some(format!("lease {lease:x} is still registered there")));
        }
        Ok(if self.leave_line(ix).await? {
            None
        } else {
            Some("the range map changed; looking again".to_owned())
        })
    }

    /// The revision of the last flip that took a range away from the shard, if what was before it is not compacted: nobody
    /// else has that. To be asked when the shard owns nothing; a flip may have been since anything asked before.
    fn history_only_on(&self, ix: ShardIx) -> Option<i64> {
        if Sabotage::LeaveWithHistory.is_on() {
            return None;
        }
        self.line.with_fold(|fold| {
            let last_flip_away = fold.shard(ix)?.last_flip_away;
            (fold.compacted < last_flip_away).then_some(last_flip_away)
        })
    }

    /// Drops registrations of leases on a shard that owns nothing; the first one that could not be dropped.
    ///
    /// Guarded by the map that gives the shard nothing, and by there being no move at all: nothing can be attached there
    /// then. A late registration is seen by the next look.
    async fn drop_shadows(&self, ix: ShardIx) -> Result<Option<i64>> {
        let meta = self.line.meta();
        let (modified, _) = self.map_without(ix).await?;
        let mut rest = KeyRange::prefix(LEASE_PREFIX);
        let suffix = format!("shadow/{:08}", ix.0);
        loop {
            let request = pb::RangeRequest { limit: PAGE, keys_only: true, ..ops::range_request(&rest) };
            let answer = meta.range(request).await.map_err(ManagerError::Meta)?;
            let found: Vec<(i64, Bytes)> = answer
                .kvs
                .iter()
                .filter_map(|kv| {
                    let (id, what) = lease_id_of_key(&kv.key)?;
                    (what == suffix).then(|| (id, kv.key.clone()))
                })
                .collect();
            if let Some((id, _)) = found.first() {
                let deletes = found.iter().map(|(_, key)| ops::delete(key.clone())).collect();
                let txn = ops::txn(no_change_since(modified), deletes);
                if !meta.txn(txn).await.map_err(ManagerError::Meta)?.succeeded {
                    return Ok(Some(*id));
                }
            }
            match answer.kvs.last() {
                Some(last) if answer.more => rest.start = sharded_etcd_core::keyspace::successor(&last.key),
                _ => return Ok(None),
            }
        }
    }

    /// Writes the shard's leave to the log; false if the map changed or a move began meanwhile.
    async fn leave_line(&self, ix: ShardIx) -> Result<bool> {
        let (modified, generation) = self.map_without(ix).await?;
        // Of this very map, or of a newer one that the guard refuses.
        if self.history_only_on(ix).is_some() {
            return Ok(false);
        }
        let writes = vec![
            ops::put(Bytes::from_static(records::MAP), MapRecord { generation }.encode()),
            ops::put(Bytes::from_static(records::CUT_LATEST), Entry::Leave(ix).encode()),
        ];
        self.append_if(no_change_since(modified), writes).await
    }

    /// Mod revision and generation of a map that gives `ix` nothing; revision 0, which matches nothing, if it does.
    async fn map_without(&self, ix: ShardIx) -> Result<(i64, u64)> {
        let map = read_map(self.line.meta().as_ref()).await.map_err(ManagerError::Meta)?;
        let Some(map) = map else { return Ok((0, 0)) };
        let cut = self.line.at_position(map.mod_revision).await?;
        let modified = if cut.map.owns_any(ix) { 0 } else { map.mod_revision };
        Ok((modified, MapRecord::decode(&map.value)?.generation))
    }
}

/// The map is the one that was read, and there is no move.
fn no_change_since(map_modified: i64) -> Vec<pb::Compare> {
    vec![
        ops::modified_at(Bytes::from_static(records::MAP), map_modified),
        ops::is_empty(&KeyRange::prefix(MOVES_PREFIX)),
    ]
}
