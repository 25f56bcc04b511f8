//! What failures left behind: shadows and real leases without a record, markers of ended leases, revocations whose
//! helper stopped.

use std::{collections::BTreeSet, sync::Arc};

use rand::Rng;
use sharded_etcd_core::{
    keyspace::ShardIx,
    lease::{adopt_txn, records_txn, remove_markers_txn},
    records::{LeaseRecord, LeaseState, lease_id_of_marker, lease_marker_range},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Shard, ShardError};

use super::Leases;

/// Operations of one transaction in meta, which runs with etcd's default limit of 128.
const RECORDS_MAX: usize = 100;
/// Markers that one sweep looks at on one shard, and leases that it adopts; what is left waits for the next.
const MARKERS_MAX: i64 = 2_000;
const ADOPT_MAX: usize = 100;

impl Leases {
    /// Sweeps from time to time until shutdown.
    pub(super) async fn sweep_loop(self: Arc<Self>) {
        let mut recordless = BTreeSet::new();
        loop {
            let pause = self
                .options
                .sweep_interval
                .mul_f64(sharded_etcd_line::random::rng().random_range(0.75..1.25));
            tokio::select! {
                biased;
                () = self.ctx.shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            tokio::select! {
                biased;
                () = self.ctx.shutdown.cancelled() => return,
                () = self.sweep(&mut recordless) => {}
            }
        }
    }

    /// One sweep. `recordless`: real leases that had no record at the last one.
    async fn sweep(&self, recordless: &mut BTreeSet<i64>) {
        let now = tokio::time::Instant::now();
        let rest = self.options.rest;
        let due = self.view.select(|seen| {
            let rests = seen.uncertain_since.is_some_and(|since| now < since + rest);
            seen.needs_help() && !(seen.record.state == LeaseState::Gone && seen.record.chosen && rests)
        });
        for id in due {
            self.look_soon(id);
        }
        if let Err(error) = self.sweep_meta(recordless).await {
            tracing::debug!(%error, "real leases were not swept");
        }
        let cut = self.ctx.line.cut();
        for shard in (0..cut.names.len()).filter(|&i| !cut.left[i]).map(|i| ShardIx(i as u32)) {
            if let Err(error) = self.sweep_shard(shard).await {
                tracing::debug!(shard = cut.name(shard), %error, "shadows and markers were not swept");
            }
        }
    }

    /// Real leases without a record and without keys: a grant that failed half-way. Seen twice, so that one that is being
    /// granted is not among them; meta's own have keys.
    async fn sweep_meta(&self, recordless: &mut BTreeSet<i64>) -> Result<(), ShardError> {
        let leases = self.meta().lease_leases().await?.leases;
        let now: BTreeSet<i64> =
            leases.into_iter().map(|lease| lease.id).filter(|&id| !self.view.contains(id)).collect();
        let twice: Vec<i64> = now.intersection(recordless).copied().take(ADOPT_MAX).collect();
        *recordless = now;
        for id in twice {
            let request = pb::LeaseTimeToLiveRequest { id, keys: true };
            let found = self.meta().lease_time_to_live(request).await?;
            if found.ttl >= 0 && found.keys.is_empty() {
                self.adopt(id, &[]).await?;
            }
        }
        Ok(())
    }

    async fn sweep_shard(&self, shard: ShardIx) -> Result<(), ShardError> {
        let connection = self.ctx.shards.get(shard).await?;
        let shadows = connection.lease_leases().await?.leases;
        let orphans = shadows.into_iter().map(|lease| lease.id).filter(|&id| !self.view.contains(id));
        for id in orphans.take(ADOPT_MAX) {
            self.adopt(id, &[shard]).await?;
        }
        self.sweep_markers(connection.as_ref(), shard).await
    }

    /// Makes what was found without a record a lease that is being revoked; nothing happens if there is a record. Its time
    /// to live of 0 keeps it from clients.
    async fn adopt(&self, id: i64, shadows: &[ShardIx]) -> Result<(), ShardError> {
        // Perhaps a client's choice: nothing tells.
        let record =
            LeaseRecord { ttl: 0, state: LeaseState::Revoking, chosen: true, helper: None, uncertain: false };
        if self.meta().txn(adopt_txn(id, &record, shadows)).await?.succeeded {
            tracing::info!(
                lease = format_args!("{id:016x}"),
                "ending a lease that was left without a record"
            );
            self.look_soon(id);
        }
        Ok(())
    }

    /// Removes markers of leases that have ended. The markers are read first, the records after them: a marker that is
    /// there has had its record before.
    async fn sweep_markers(&self, connection: &dyn Shard, shard: ShardIx) -> Result<(), ShardError> {
        let range = lease_marker_range();
        let request = pb::RangeRequest {
            key: range.request_key(),
            range_end: range.request_end(),
            limit: MARKERS_MAX,
            keys_only: true,
            ..Default::default()
        };
        let markers = connection.range(request).await?.kvs;
        let markers: Vec<(i64, i64)> = markers
            .iter()
            .filter_map(|kv| Some((lease_id_of_marker(&kv.key)?, kv.mod_revision)))
            .filter(|&(id, _)| !self.view.contains(id))
            .collect();
        let mut ended = Vec::new();
        for chunk in markers.chunks(RECORDS_MAX) {
            let ids: Vec<i64> = chunk.iter().map(|&(id, _)| id).collect();
            let answer = self.meta().txn(records_txn(&ids)).await?;
            let absent = answer.responses.iter().map(|op| match &op.response {
                Some(pb::Response::ResponseRange(range)) => range.kvs.is_empty(),
                _ => false,
            });
            ended.extend(chunk.iter().zip(absent).filter(|(_, absent)| *absent).map(|(&marker, _)| marker));
        }
        if !ended.is_empty() {
            let answer = connection.txn(remove_markers_txn(&ended)).await?;
            self.ctx.line.observe(shard, answer.header.map_or(0, |h| h.revision));
        }
        Ok(())
    }
}
