//! Deleting the copy that is no longer, or never became, the range.

use sharded_etcd_core::{
    keyspace::{KeyRange, successor},
    moves::{Observation, Place, Session, ops, purge_chunk_txn},
    records::{overridden_key, override_range, purge_key},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::Shard;

use super::{Interrupt, Mover};

/// Keys that one Txn deletes. Each deletion is an event for every watcher of the shard, all of one revision.
const CHUNK_KEYS: i64 = 500;

impl Mover<'_> {
    /// [`Work::Purge`](sharded_etcd_core::moves::Work::Purge).
    pub(crate) async fn purge(
        &mut self,
        place: Place,
        seen: &mut Observation,
        session: &mut Session,
    ) -> Result<(), Interrupt> {
        let Some(record) = seen.record.as_ref().map(|r| r.value.clone()) else { return Err(Interrupt::Lost) };
        let (ix, rid, guard) = match place {
            Place::Source => (record.from, &record.rid, seen.source.as_ref().and_then(|s| s.purge)),
            _ => (record.to, &record.new_rid, seen.destination.as_ref().and_then(|d| d.purge)),
        };
        let Some(guard) = guard else { return Err(Interrupt::Lost) };
        let shard = self.shard(ix).await?;
        let keys = record.range.clamped();
        loop {
            self.context.failpoints.before("purge").await?;
            let Some(chunk) = next_chunk(shard.as_ref(), &keys).await? else { break };
            let answer = shard.txn(purge_chunk_txn(purge_key(rid), guard, &chunk)).await?;
            if !answer.succeeded {
                return Err(Interrupt::Lost);
            }
            self.context.failpoints.after("purge").await?;
        }
        session.purged = true;
        Ok(())
    }
}

/// The next keys to delete; `None` if neither a key nor an override is left.
async fn next_chunk(shard: &dyn Shard, keys: &KeyRange) -> Result<Option<KeyRange>, Interrupt> {
    let first = |range: &KeyRange| pb::RangeRequest {
        limit: CHUNK_KEYS,
        keys_only: true,
        ..ops::range_request(range)
    };
    let last = shard.range(first(keys)).await?.kvs.pop().map(|kv| kv.key);
    let last = match last {
        Some(key) => Some(key),
        None => {
            let last = shard.range(first(&override_range(keys))).await?.kvs.pop();
            last.and_then(|kv| overridden_key(&kv.key))
        }
    };
    Ok(last.map(|key| KeyRange { start: keys.start.clone(), end: successor(&key) }))
}
