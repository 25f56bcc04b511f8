//! The space quota of clients. The shards' own quota is set above it, as a full etcd refuses every transaction with a put
//! in any branch and could not even be drained (protocol: trap 13).

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::RwLock;
use sharded_etcd_core::{
    keyspace::{KeyRange, ShardIx},
    records::touch_key,
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::Shard;
use tonic::{Code, Status};

use crate::context::Context;

/// How often the shards' sizes are asked for.
const INTERVAL: Duration = Duration::from_secs(2);
/// While a shard is full, something small is written to it at every so many looks: etcd counts pages that a commit freed as
/// in use until the next one, and without writes of clients there might be none.
const TOUCH_EVERY: u32 = 3;

/// Which shards are full.
pub(super) struct Quota {
    full: RwLock<HashSet<ShardIx>>,
    any: AtomicBool,
}

impl Quota {
    pub(super) fn start(ctx: &Arc<Context>) -> Arc<Self> {
        let quota = Arc::new(Self { full: RwLock::default(), any: AtomicBool::new(false) });
        if ctx.limits.quota_bytes > 0 {
            ctx.tasks.spawn(watch_sizes(Arc::clone(ctx), Arc::clone(&quota)));
        }
        quota
    }

    pub(super) fn is_exceeded(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Refuses a transaction that puts on a full shard, as etcd does: whichever branch the put is in.
    pub(super) fn check(
        &self,
        txn: &pb::TxnRequest,
        ctx: &Context,
        ranges: &[KeyRange],
    ) -> Result<(), Status> {
        let map = ctx.line.cut().map.clone();
        let full = self.full.read();
        let on_full = ranges.iter().flat_map(|r| map.overlapping(r)).any(|entry| full.contains(&entry.shard));
        if on_full && puts(txn) {
            return Err(Status::new(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"));
        }
        Ok(())
    }
}

fn puts(txn: &pb::TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match &op.request {
        Some(pb::Request::RequestPut(_)) => true,
        Some(pb::Request::RequestTxn(inner)) => puts(inner),
        _ => false,
    })
}

async fn watch_sizes(ctx: Arc<Context>, quota: Arc<Quota>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    let mut looks = 0_u32;
    loop {
        tokio::select! {
            biased;
            () = ctx.shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        looks = looks.wrapping_add(1);
        let cut = ctx.line.cut();
        let mut full = HashSet::new();
        for i in (0..cut.left.len()).filter(|&i| !cut.left[i]) {
            let ix = ShardIx(i as u32);
            let Ok(shard) = ctx.shards.get(ix).await else { continue };
            // What cannot be asked is not known to be full; its own quota still holds.
            if let Ok(status) = shard.status().await
                && status.db_size_in_use >= ctx.limits.quota_bytes
            {
                full.insert(ix);
                if looks.is_multiple_of(TOUCH_EVERY) {
                    touch(&ctx, ix, shard.as_ref()).await;
                }
            }
        }
        quota.any.store(!full.is_empty(), Ordering::Relaxed);
        let mut known = quota.full.write();
        if *known != full {
            tracing::warn!(shards = ?full.iter().map(|s| cut.name(*s)).collect::<Vec<_>>(), "shards over their quota");
            *known = full;
        }
    }
}

async fn touch(ctx: &Context, ix: ShardIx, shard: &dyn Shard) {
    match shard.put(pb::PutRequest { key: touch_key(), ..Default::default() }).await {
        Ok(answer) => ctx.line.observe(ix, answer.header.map_or(0, |header| header.revision)),
        // The next one is some seconds away.
        Err(error) => tracing::debug!(shard = ix.0, %error, "a full shard could not be written to"),
    }
}
