//! Making a lease attachable on a shard, once; afterwards it is known.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use sharded_etcd_core::{
    keyspace::ShardIx,
    lease::{
        Marker, MarkerStep, MarkerView, NEVER_GRANTED, Over, SHADOW_TTL_SECONDS, after_live, marker_txn,
        read_marker_txn, register_txn,
    },
    records::LeaseState,
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::Shard;
use tonic::Status;

use super::{Leases, meta_status};

/// Leases on shards that are remembered, in each of two generations.
const REMEMBERED_MAX: usize = 65_536;
/// Times that a first attach is begun anew as others were faster.
const TRIES_MAX: u32 = 8;

/// What a write that attaches keys to a lease has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// Compare the lease's marker on the shard with `live@epoch`.
    Live {
        /// The lease's epoch.
        epoch: i64,
    },
    /// There is no such lease: put with [`NEVER_GRANTED`], so that etcd says so exactly if that branch runs.
    NotFound,
}

type OnShard = (i64, ShardIx);

/// What is known of leases on shards.
#[derive(Default)]
pub(super) struct Attached {
    known: Mutex<Known>,
    /// One first attach at a time for each lease and shard. Bounded by the requests under way.
    pending: Mutex<HashMap<OnShard, Arc<tokio::sync::Mutex<()>>>>,
    /// Mod revision of the shards' floors, as last read.
    floors: Mutex<HashMap<ShardIx, i64>>,
}

/// Two generations: a full young one becomes the old one, and what is used moves up again.
#[derive(Default)]
struct Known {
    young: HashMap<OnShard, i64>,
    old: HashMap<OnShard, i64>,
}

impl Known {
    fn get(&mut self, key: OnShard) -> Option<i64> {
        if let Some(&epoch) = self.young.get(&key) {
            return Some(epoch);
        }
        let epoch = self.old.remove(&key)?;
        self.insert(key, epoch);
        Some(epoch)
    }

    fn insert(&mut self, key: OnShard, epoch: i64) {
        if self.young.len() >= REMEMBERED_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, epoch);
    }
}

/// A place in the queue for a first attach; gone from the map with the last one, also if its caller gives up.
struct Turn<'a> {
    pending: &'a Mutex<HashMap<OnShard, Arc<tokio::sync::Mutex<()>>>>,
    key: OnShard,
    lock: Arc<tokio::sync::Mutex<()>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut pending = self.pending.lock();
        // Clones are made under the same lock: two are the map's and this one.
        if Arc::strong_count(&self.lock) == 2 {
            pending.remove(&self.key);
        }
    }
}

impl Attached {
    fn turn(&self, key: OnShard) -> Turn<'_> {
        let lock = Arc::clone(self.pending.lock().entry(key).or_default());
        Turn { pending: &self.pending, key, lock }
    }

    pub(super) fn forget(&self, id: i64, shard: ShardIx) {
        let mut known = self.known.lock();
        known.young.remove(&(id, shard));
        known.old.remove(&(id, shard));
    }
}

impl Leases {
    /// Makes a lease attachable on a shard.
    ///
    /// A stale answer does no harm: the write compares the marker on the shard, and is then told to
    /// [forget](crate::kv::AttachLeases::forget) and ask again.
    ///
    /// # Errors
    /// If meta or the shard cannot be reached. Nothing is attached then.
    pub async fn attach_on(&self, id: i64, shard: ShardIx) -> Result<Attach, Status> {
        if id == NEVER_GRANTED {
            return Ok(Attach::NotFound);
        }
        let known = |leases: &Self| leases.attached.known.lock().get((id, shard));
        if let Some(epoch) = known(self) {
            return Ok(Attach::Live { epoch });
        }
        let turn = self.attached.turn((id, shard));
        let _mine = turn.lock.lock().await;
        match known(self) {
            Some(epoch) => Ok(Attach::Live { epoch }),
            None => self.first_attach(id, shard).await,
        }
    }

    async fn first_attach(&self, id: i64, shard: ShardIx) -> Result<Attach, Status> {
        let connection = self.ctx.shards.get(shard).await.map_err(|e| self.shard_status(shard, e))?;
        for _ in 0..TRIES_MAX {
            // In this order: the floor, then what meta says, then the marker.
            let floor = self.floor(connection.as_ref(), id, shard).await?;
            let facts = self.read(id).await?;
            let live = facts.record.as_ref().is_some_and(|r| r.state == LeaseState::Live) && facts.alive;
            if !live {
                return Ok(Attach::NotFound);
            }
            let epoch = facts.epoch;
            if !facts.shadows.contains(&shard) {
                let answer = self.meta().txn(register_txn(id, epoch, shard)).await.map_err(meta_status)?;
                if !answer.succeeded {
                    continue;
                }
            }
            self.grant_shadow(connection.as_ref(), id, shard).await?;
            if self.put_live(connection.as_ref(), id, shard, epoch, floor).await? {
                self.attached.known.lock().insert((id, shard), epoch);
                return Ok(Attach::Live { epoch });
            }
        }
        Err(Status::unavailable(format!(
            "lease {id:016x} could not be attached on {}: it kept changing; try again",
            self.ctx.line.cut().name(shard)
        )))
    }

    /// Mod revision of the shard's floor, read at some time before now.
    async fn floor(&self, connection: &dyn Shard, id: i64, shard: ShardIx) -> Result<i64, Status> {
        if let Some(&floor) = self.attached.floors.lock().get(&shard) {
            return Ok(floor);
        }
        let answer = connection.txn(read_marker_txn(id)).await.map_err(|e| self.shard_status(shard, e))?;
        let floor = MarkerView::from_answer(&answer).floor;
        self.attached.floors.lock().insert(shard, floor);
        Ok(floor)
    }

    async fn grant_shadow(&self, connection: &dyn Shard, id: i64, shard: ShardIx) -> Result<(), Status> {
        let request = pb::LeaseGrantRequest { id, ttl: SHADOW_TTL_SECONDS };
        match connection.lease_grant(request).await {
            // Whoever made it made it for this lease: while a record exists, nobody adopts or drops older ones.
            Err(error) if !error.is_lease_exist() => Err(self.shard_status(shard, error)),
            _ => Ok(()),
        }
    }

    /// Puts the marker; false if the lease or the shard's floor has moved on, so that the attach has to begin anew.
    async fn put_live(
        &self,
        connection: &dyn Shard,
        id: i64,
        shard: ShardIx,
        epoch: i64,
        floor: i64,
    ) -> Result<bool, Status> {
        let mut over = Over::Nothing;
        for _ in 0..TRIES_MAX {
            let txn = marker_txn(id, Marker::Live(epoch), over, Some(floor));
            let answer = connection.txn(txn).await.map_err(|e| self.shard_status(shard, e))?;
            if answer.succeeded {
                self.ctx.line.observe(shard, answer.header.map_or(0, |h| h.revision));
                return Ok(true);
            }
            let found = MarkerView::from_answer(&answer);
            let step = after_live(found.marker, epoch);
            if step == MarkerStep::Done {
                return Ok(true);
            }
            if found.floor != floor {
                self.attached.floors.lock().insert(shard, found.floor);
                return Ok(false);
            }
            if step == MarkerStep::Outdated {
                return Ok(false);
            }
            over = Over::Revision(found.modified);
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_leave_nothing_behind() {
        let attached = Attached::default();
        let (first, second) = (attached.turn((1, ShardIx(0))), attached.turn((1, ShardIx(0))));
        assert!(Arc::ptr_eq(&first.lock, &second.lock));
        drop(first);
        assert_eq!(attached.pending.lock().len(), 1);
        drop(second);
        assert_eq!(attached.pending.lock().len(), 0);
    }

    #[test]
    fn what_is_used_stays_known() {
        let mut known = Known::default();
        known.insert((0, ShardIx(0)), 7);
        for id in 1..=3 * REMEMBERED_MAX as i64 {
            known.insert((id, ShardIx(0)), 1);
            if id % 1000 == 0 {
                assert_eq!(known.get((0, ShardIx(0))), Some(7));
            }
        }
        assert_eq!(known.get((1, ShardIx(0))), None);
        assert!(known.young.len() + known.old.len() <= 2 * REMEMBERED_MAX);
    }
}
