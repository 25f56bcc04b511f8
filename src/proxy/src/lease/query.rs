//! What clients ask about leases.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use sharded_etcd_core::{
    keyspace::ShardIx,
    lease::visible_keys,
    records::{LeaseRecord, LeaseState, Record, lease_id_of_key, lease_marker_key},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::Cut;
use sharded_etcd_shard::Shard;
use tonic::Status;

use super::{Leases, all::read_all, meta_status};
use crate::context::line_status;

/// Times that the keys are collected anew as a range changed its owner meanwhile.
const TRIES_MAX: u32 = 5;

impl Leases {
    /// etcd's `Lease.LeaseTimeToLive`. A lease that is not there, or no longer, answers TTL -1.
    ///
    /// # Errors
    /// If meta, or a shard with keys of it, cannot be reached.
    pub async fn time_to_live(
        &self,
        request: pb::LeaseTimeToLiveRequest,
    ) -> Result<pb::LeaseTimeToLiveResponse, Status> {
        let id = request.id;
        let facts = self.read(id).await?;
        let Some(record) = facts.record.filter(LeaseRecord::is_for_clients) else {
            return Ok(pb::LeaseTimeToLiveResponse {
                header: self.header(),
                id,
                ttl: -1,
                ..Default::default()
            });
        };
        let ttl = match record.state {
            LeaseState::Live if facts.alive => {
                let request = pb::LeaseTimeToLiveRequest { id, keys: false };
                let answer = self.meta().lease_time_to_live(request).await.map_err(meta_status)?;
                // Expired since the read: its keys are still there.
                answer.ttl.max(0)
            }
            _ => 0,
        };
        let keys = if request.keys { self.keys_of(id).await? } else { Vec::new() };
        Ok(pb::LeaseTimeToLiveResponse { header: self.header(), id, ttl, granted_ttl: record.ttl, keys })
    }

    /// The keys attached to a lease, over all shards, sorted.
    async fn keys_of(&self, id: i64) -> Result<Vec<Bytes>, Status> {
        for _ in 0..TRIES_MAX {
            let facts = self.read(id).await?;
            let cut = self.ctx.line.at_position(facts.position).await.map_err(line_status)?;
            let joined = |s: &&ShardIx| !cut.left.get(s.index()).copied().unwrap_or(true);
            let collecting = facts.shadows.iter().filter(joined).map(|&s| self.keys_on(id, s, &cut));
            let lists = futures::future::try_join_all(collecting).await?;
            // A range that moved in between may have been looked for on the wrong shard.
            let after = self.ctx.line.refresh().await.map_err(line_status)?;
            if after.map.generation == cut.map.generation {
                let all: BTreeSet<Bytes> = lists.into_iter().flatten().collect();
                return Ok(all.into_iter().collect());
            }
        }
        Err(Status::unavailable("the keys of the lease are being moved: try again"))
    }

    async fn keys_on(&self, id: i64, shard: ShardIx, cut: &Cut) -> Result<Vec<Bytes>, Status> {
        let named = |e| self.shard_status(shard, e);
        let connection = self.ctx.shards.get(shard).await.map_err(named)?;
        let request = pb::LeaseTimeToLiveRequest { id, keys: true };
        let answer = connection.lease_time_to_live(request).await.map_err(named)?;
        // It shows state, so the line has to cover it.
        let local = self.newest_local(connection.as_ref(), shard, id).await?;
        self.ctx.line.cover(shard, local).await.map_err(line_status)?;
        Ok(visible_keys(&answer.keys, &cut.map, shard))
    }

    /// A local revision that is not below what any earlier answer of the shard showed. The header of
    /// `LeaseTimeToLive` is none: a member that asks its leader for the rest fills in its own revision.
    pub(super) async fn newest_local(
        &self,
        connection: &dyn Shard,
        shard: ShardIx,
        id: i64,
    ) -> Result<i64, Status> {
        let get = pb::RangeRequest { key: lease_marker_key(id), count_only: true, ..Default::default() };
        let answer = connection.range(get).await.map_err(|e| self.shard_status(shard, e))?;
        Ok(answer.header.map_or(0, |h| h.revision))
    }

    /// etcd's `Lease.LeaseLeases`: all leases of clients, those with the least time left first.
    ///
    /// # Errors
    /// If meta cannot be reached.
    pub async fn leases(&self) -> Result<pb::LeaseLeasesResponse, Status> {
        let mut leases = Vec::new();
        let look = |kv: &pb::KeyValue| {
            if let Some((id, "")) = lease_id_of_key(&kv.key)
                && LeaseRecord::decode(&kv.value).is_ok_and(|record| record.is_for_clients())
            {
                leases.push(pb::LeaseStatus { id });
            }
        };
        let meta = self.meta();
        read_all(meta.as_ref(), look).await.map_err(meta_status)?;
        // Meta has the real ones, in that order; those that it has no more are ending.
        let real = meta.lease_leases().await.map_err(meta_status)?.leases;
        let order: HashMap<i64, usize> = real.iter().enumerate().map(|(at, lease)| (lease.id, at)).collect();
        leases.sort_by_key(|lease| order.get(&lease.id));
        Ok(pb::LeaseLeasesResponse { header: self.header(), leases })
    }
}
