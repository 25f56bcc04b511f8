//! What meta says about one lease.

use sharded_etcd_etcd_api::messages as pb;

use crate::{
    keyspace::ShardIx,
    records::{LeaseRecord, Record, RecordError, lease_id_of_key},
};

/// A lease in meta, read in one transaction ([`super::read_txn`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseFacts {
    /// Its id.
    pub id: i64,
    /// Meta's revision at the read: no registration in here is newer.
    pub revision: i64,
    /// The record; `None`: no client has such a lease.
    pub record: Option<LeaseRecord>,
    /// Create revision of the record: the epoch. 0 without a record.
    pub epoch: i64,
    /// Mod revision of the record. 0 without a record.
    pub modified: i64,
    /// The real lease of this epoch lives.
    pub alive: bool,
    /// Shards with a registered shadow.
    pub shadows: Vec<ShardIx>,
    /// Mod revision of the range map's key.
    pub map_modified: i64,
    /// The log's end.
    pub position: i64,
}

impl LeaseFacts {
    /// From the answer to [`super::read_txn`], or to a transaction that reads the facts behind what it does.
    ///
    /// # Errors
    /// If the record cannot be read by this release.
    pub fn from_answer(id: i64, answer: pb::TxnResponse) -> Result<Self, RecordError> {
        let revision = answer.header.map_or(0, |h| h.revision);
        let mut ranges = answer.responses.into_iter().filter_map(|op| match op.response {
            Some(pb::Response::ResponseRange(range)) => Some(range.kvs),
            _ => None,
        });
        let mut next = || ranges.next().unwrap_or_default();
        let (record, alive, shadows, map, log) = (next(), next(), next(), next(), next());
        let modified = |kvs: &[pb::KeyValue]| kvs.first().map_or(0, |kv| kv.mod_revision);
        let epoch = record.first().map_or(0, |kv| kv.create_revision);
        Ok(Self {
            id,
            revision,
            modified: modified(&record),
            epoch,
            alive: alive.first().is_some_and(|kv| kv.create_revision == epoch),
            shadows: shadows.iter().filter_map(|kv| shadow_of(&kv.key)).collect(),
            map_modified: modified(&map),
            position: modified(&log),
            record: record.first().map(|kv| LeaseRecord::decode(&kv.value)).transpose()?,
        })
    }
}

/// The shard of a registration's key.
fn shadow_of(key: &[u8]) -> Option<ShardIx> {
    let (_, rest) = lease_id_of_key(key)?;
    rest.strip_prefix("shadow/")?.parse().ok().map(ShardIx)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{CUT_LATEST, LeaseState, MAP, lease_alive_key, lease_key, lease_shadow_key};

    fn range(kvs: Vec<pb::KeyValue>) -> pb::ResponseOp {
        let range = pb::RangeResponse { kvs, ..Default::default() };
        pb::ResponseOp { response: Some(pb::Response::ResponseRange(range)) }
    }

    fn kv(key: impl Into<bytes::Bytes>, create: i64, modified: i64) -> pb::KeyValue {
        pb::KeyValue {
            key: key.into(),
            create_revision: create,
            mod_revision: modified,
            ..Default::default()
        }
    }

    #[test]
    fn reads_an_answer() {
        let record =
            LeaseRecord { ttl: 5, state: LeaseState::Live, chosen: false, helper: None, uncertain: false };
        let answer = |alive: i64| pb::TxnResponse {
            header: Some(pb::ResponseHeader { revision: 40, ..Default::default() }),
            responses: vec![
                pb::ResponseOp { response: Some(pb::Response::ResponsePut(Default::default())) },
                range(vec![pb::KeyValue { value: record.encode(), ..kv(lease_key(9), 30, 31) }]),
                range(vec![kv(lease_alive_key(9), alive, alive)]),
                range(vec![
                    kv(lease_shadow_key(9, ShardIx(2)), 32, 32),
                    kv(lease_shadow_key(9, ShardIx(12)), 33, 33),
                ]),
                range(vec![kv(MAP, 2, 3)]),
                range(vec![kv(CUT_LATEST, 2, 38)]),
            ],
            ..Default::default()
        };
        let facts = LeaseFacts::from_answer(9, answer(30)).unwrap();
        assert_eq!((facts.epoch, facts.modified, facts.map_modified, facts.position), (30, 31, 3, 38));
        assert!(facts.alive);
        assert_eq!(facts.shadows, [ShardIx(2), ShardIx(12)]);
        assert!(!LeaseFacts::from_answer(9, answer(29)).unwrap().alive, "alive of an older epoch");
        let none = LeaseFacts::from_answer(9, pb::TxnResponse::default()).unwrap();
        assert_eq!((none.record, none.epoch, none.alive), (None, 0, false));
    }
}
