//! Reading what is stored of a move: meta, the shards, meta again.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use sharded_etcd_core::{
    keyspace::{Rid, ShardIx},
    moves::{DestinationView, MapView, Observation, Session, SourceView, Stored},
    records::{
        self, Claims, Cursor, MapRecord, MovePhase, MoveRecord, Record, claims_key, cursor_key, fence_key,
        move_key, purge_key,
    },
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::Line;
use sharded_etcd_shard::{Shard, ShardError};

use super::Mover;
use crate::{ManagerError, error::Result};

/// Tries to see meta unchanged over a read of the shards.
const TRIES_MAX: usize = 20;
/// Longest look at one shard.
const SHARD_WAIT: Duration = Duration::from_secs(1);

impl Mover<'_> {
    /// Reads everything that is stored of the move, see rule 3 of [`sharded_etcd_core::moves`].
    pub(crate) async fn observe(&mut self, session: &Session) -> Result<Observation> {
        for _ in 0..TRIES_MAX {
            let (record, map) = self.observe_meta().await?;
            let mut seen = Observation { record, map, source: None, destination: None };
            let Some(stored) = seen.record.clone() else { return Ok(seen) };
            let record = &stored.value;
            if record.phase == MovePhase::Copying && session.give_up.is_some() {
                // The decision to abort needs no shard, which may be what the move is given up for.
                return Ok(seen);
            }
            let source =
                self.look(record.from, |shard| async move { observe_source(shard.as_ref(), record).await });
            let destination = self
                .look(record.to, |shard| async move { observe_destination(shard.as_ref(), record).await });
            let (source, destination) = tokio::join!(source, destination);
            self.unreachable = None;
            seen.source = self.reached(source)?;
            seen.destination = self.reached(destination)?;
            let again = self.meta.range(get(move_key(self.rid))).await.map_err(ManagerError::Meta)?;
            if again.kvs.first().map(|kv| kv.mod_revision) == Some(stored.modified) {
                return Ok(seen);
            }
        }
        Err(ManagerError::Slow { what: "seeing a move's record unchanged", ms: 0 })
    }

    /// Looks at one of the shards, but not for long: the writers of the other one may be waiting.
    async fn look<T, F: Future<Output = Result<T>>>(
        &self,
        ix: ShardIx,
        look: impl FnOnce(Arc<dyn Shard>) -> F,
    ) -> Result<T> {
        let looked = async { look(self.shard(ix).await?).await };
        let slow = |_| ManagerError::Slow { what: "a look at a shard", ms: SHARD_WAIT.as_millis() };
        tokio::time::timeout(SHARD_WAIT, looked).await.map_err(slow)?
    }

    /// `None`, with the reason kept, for a shard that cannot be reached.
    fn reached<T>(&mut self, looked: Result<T>) -> Result<Option<T>> {
        match looked {
            Ok(seen) => Ok(Some(seen)),
            Err(error @ (ManagerError::Shard(_) | ManagerError::Slow { .. })) => {
                self.unreachable = Some(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn observe_meta(&self) -> Result<(Option<Stored<MoveRecord>>, MapView)> {
        let ops = [move_key(self.rid), Bytes::from_static(records::MAP)].map(range_op).into();
        let answer = self
            .meta
            .txn(pb::TxnRequest { success: ops, ..Default::default() })
            .await
            .map_err(ManagerError::Meta)?;
        let mut kvs = answers(answer);
        let record = kvs.next().flatten();
        let record = record
            .map(|kv| {
                Ok::<_, ManagerError>(Stored {
                    value: MoveRecord::decode(&kv.value)?,
                    modified: kv.mod_revision,
                })
            })
            .transpose()?;
        let map = map_view(&self.context.line, kvs.next().flatten(), self.rid).await?;
        Ok((record, map))
    }
}

/// The range map as of at least the newest change of `map`.
pub(crate) async fn map_view(line: &Line, map: Option<pb::KeyValue>, rid: &Rid) -> Result<MapView> {
    let modified = map.as_ref().map_or(0, |kv| kv.mod_revision);
    let generation = match &map {
        Some(kv) => MapRecord::decode(&kv.value)?.generation,
        None => 0,
    };
    // The log's entry of a map change has the revision of that change: they are put in one Txn.
    let cut = line.at_position(modified).await?;
    let owner = cut.map.by_rid(rid).map(|e| e.shard);
    Ok(MapView { modified, generation, owner })
}

async fn observe_source(shard: &dyn Shard, record: &MoveRecord) -> Result<SourceView> {
    let ops = [fence_key(&record.rid), claims_key(), purge_key(&record.rid)].map(range_op).into();
    let mut kvs = answers(shard.txn(pb::TxnRequest { success: ops, ..Default::default() }).await?);
    Ok(SourceView {
        fence: kvs.next().flatten().map(stored),
        claims: claims(kvs.next().flatten())?,
        purge: kvs.next().flatten().map(|kv| kv.mod_revision),
    })
}

async fn observe_destination(shard: &dyn Shard, record: &MoveRecord) -> Result<DestinationView> {
    let keys = [fence_key(&record.new_rid), claims_key(), cursor_key(&record.id), purge_key(&record.new_rid)];
    let ops = keys.map(range_op).into();
    let mut kvs = answers(shard.txn(pb::TxnRequest { success: ops, ..Default::default() }).await?);
    Ok(DestinationView {
        fence: kvs.next().flatten().map(stored),
        claims: claims(kvs.next().flatten())?,
        cursor: kvs
            .next()
            .flatten()
            .map(|kv| {
                Ok::<_, ManagerError>(Stored { value: Cursor::decode(&kv.value)?, modified: kv.mod_revision })
            })
            .transpose()?,
        purge: kvs.next().flatten().map(|kv| kv.mod_revision),
    })
}

/// The claims of a shard.
pub(crate) async fn read_claims(shard: &dyn Shard) -> Result<Stored<Claims>> {
    claims(shard.range(get(claims_key())).await.map_err(ManagerError::Shard)?.kvs.pop())
}

/// The newest change of `map`, from meta.
pub(crate) async fn read_map(meta: &dyn Shard) -> std::result::Result<Option<pb::KeyValue>, ShardError> {
    Ok(meta.range(get(Bytes::from_static(records::MAP))).await?.kvs.pop())
}

fn claims(kv: Option<pb::KeyValue>) -> Result<Stored<Claims>> {
    match kv {
        Some(kv) => Ok(Stored { value: Claims::decode(&kv.value)?, modified: kv.mod_revision }),
        None => Ok(Stored::default()),
    }
}

fn stored(kv: pb::KeyValue) -> Stored<Bytes> {
    Stored { value: kv.value, modified: kv.mod_revision }
}

pub(crate) fn get(key: Bytes) -> pb::RangeRequest {
    pb::RangeRequest { key, ..Default::default() }
}

fn range_op(key: Bytes) -> pb::RequestOp {
    pb::RequestOp { request: Some(pb::Request::RequestRange(get(key))) }
}

/// The first key of each Range of a read-only Txn.
fn answers(answer: pb::TxnResponse) -> impl Iterator<Item = Option<pb::KeyValue>> {
    answer.responses.into_iter().map(|op| match op.response {
        Some(pb::Response::ResponseRange(range)) => range.kvs.into_iter().next(),
        _ => None,
    })
}
