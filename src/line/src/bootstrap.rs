//! The first entry of the log, and shards that join later.

use bytes::Bytes;
use sharded_etcd_core::{
    keyspace::{KeyRange, RESERVED, RangeEntry, ShardIx},
    line::{Entry, Init, Join},
    records::{self, Claim, ClaimState, Claims, FENCE_OPEN, FirstRecord, MapRecord, Record, TopologyId},
    sabotage::Sabotage,
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Shard, ShardError};

use crate::{Line, LineError};

/// Why a topology could not be started or a shard not taken in.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// A shard, or meta, failed.
    #[error("{who} cannot be reached")]
    Unreachable {
        /// Which.
        who: String,
        /// What it answered.
        source: ShardError,
    },
    /// The shard holds data of something else.
    #[error(
        "{shard} is not empty and does not belong to this topology ({found}): give it an empty data folder"
    )]
    Foreign {
        /// Its name.
        shard: String,
        /// What was found there.
        found: String,
    },
    /// The shard was claimed for other ranges than these.
    #[error(
        "{shard} was claimed by an earlier start of this topology, with other ranges: write the spec's shards and keyspace \
         as they were then, or delete the topology with its data and make it anew"
    )]
    OtherRanges {
        /// Its name.
        shard: String,
    },
    /// Meta belongs to another topology.
    #[error(
        "meta belongs to topology {found}, not {expected}: point to the right meta, or give it an empty data folder"
    )]
    OtherTopology {
        /// Uid in meta.
        found: String,
        /// Uid of this topology.
        expected: String,
    },
    /// A stored record cannot be read.
    #[error(transparent)]
    Record(#[from] records::RecordError),
    /// The line failed.
    #[error(transparent)]
    Line(#[from] LineError),
}

/// A shard to start or join with.
pub struct NewShard<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its incarnation, from 0.
    pub incarnation: u32,
    /// The connection.
    pub shard: &'a dyn Shard,
}

/// Reads the topology's identity from meta.
///
/// # Errors
/// If meta cannot be read, or was written by a newer release.
pub async fn topology_id(meta: &dyn Shard) -> Result<Option<TopologyId>, BootstrapError> {
    let key = Bytes::from_static(records::TOPOLOGY_ID);
    let answer =
        meta.range(pb::RangeRequest { key, ..Default::default() }).await.map_err(unreachable("meta"))?;
    Ok(answer.kvs.first().map(|kv| TopologyId::decode(&kv.value)).transpose()?)
}

/// Writes down what the topology is started with, unless it has been; what it is then.
///
/// For starts by several processes that may have been told different things: all go on with what the first one wrote, and
/// what was wanted meanwhile is reached from there as any change is. [`bootstrap`] takes it away again.
///
/// # Errors
/// See [`BootstrapError`].
pub async fn fix_first(meta: &dyn Shard, wanted: &FirstRecord) -> Result<FirstRecord, BootstrapError> {
    let key = Bytes::from_static(records::FIRST);
    let get = pb::RangeRequest { key: key.clone(), ..Default::default() };
    let txn = pb::TxnRequest {
        compare: vec![
            never_created(&KeyRange::key(records::FIRST)),
            never_created(&KeyRange::key(records::CUT_LATEST)),
        ],
        success: vec![put_op(pb::PutRequest { key, value: wanted.encode(), ..Default::default() })],
        failure: vec![pb::RequestOp { request: Some(pb::Request::RequestRange(get)) }],
    };
    let answer = meta.txn(txn).await.map_err(unreachable("meta"))?;
    if answer.succeeded {
        return Ok(wanted.clone());
    }
    let found = answer.responses.into_iter().next().and_then(|op| op.response);
    let Some(pb::Response::ResponseRange(found)) = found else { return Ok(wanted.clone()) };
    // None is there if the topology has been started meanwhile: then `bootstrap` changes nothing.
    let Some(kv) = found.kvs.first() else { return Ok(wanted.clone()) };
    let found = FirstRecord::decode(&kv.value)?;
    if found.uid == wanted.uid {
        Ok(found)
    } else {
        Err(BootstrapError::OtherTopology { found: found.uid, expected: wanted.uid.clone() })
    }
}

/// What the topology is being started with, if somebody began to.
///
/// # Errors
/// See [`BootstrapError`].
pub async fn first(meta: &dyn Shard) -> Result<Option<FirstRecord>, BootstrapError> {
    let key = Bytes::from_static(records::FIRST);
    let answer =
        meta.range(pb::RangeRequest { key, ..Default::default() }).await.map_err(unreachable("meta"))?;
    Ok(answer.kvs.first().map(|kv| FirstRecord::decode(&kv.value)).transpose()?)
}

/// Opens the first ranges on their shards and writes the log's first entry. May race with others and may be repeated:
/// one of them wins, and the identity in meta is returned.
///
/// `ranges` names shards by their places in `shards`.
///
/// # Errors
/// See [`BootstrapError`]. Nothing is served before the last step, so a failed try does no harm.
pub async fn bootstrap(
    meta: &dyn Shard,
    id: &TopologyId,
    shards: &[NewShard<'_>],
    ranges: &[RangeEntry],
) -> Result<TopologyId, BootstrapError> {
    if let Some(found) = topology_id(meta).await? {
        return same_topology(found, id);
    }
    let mut joins = Vec::with_capacity(shards.len());
    for (i, new) in shards.iter().enumerate() {
        let own: Vec<_> = ranges.iter().filter(|r| r.shard == ShardIx(i as u32)).collect();
        joins.push(claim(new, &own).await?);
    }
    let put = |key: &'static [u8], value| pb::PutRequest {
        key: Bytes::from_static(key),
        value,
        ..Default::default()
    };
    let init = Entry::Init(Init { cluster_id: id.cluster_id, joins, ranges: ranges.to_vec() });
    let success = vec![
        put_op(put(records::TOPOLOGY_ID, id.encode())),
        put_op(put(records::MAP, MapRecord { generation: 1 }.encode())),
        put_op(put(records::CUT_LATEST, init.encode())),
        delete_op(records::FIRST),
    ];
    let compare = vec![never_created(&KeyRange::key(records::CUT_LATEST))];
    let txn = pb::TxnRequest { compare, success, failure: Vec::new() };
    meta.txn(txn).await.map_err(unreachable("meta"))?;
    match topology_id(meta).await? {
        Some(found) => same_topology(found, id),
        None => Err(LineError::NotBootstrapped.into()),
    }
}

/// Makes a new, empty shard ours; the entry that takes it into the line. Repeating it is a no-op.
///
/// # Errors
/// [`BootstrapError::Foreign`] if it holds anything, for example the volume of a shard that left.
pub async fn claim_empty(new: &NewShard<'_>) -> Result<Join, BootstrapError> {
    let mut join = claim(new, &[]).await?;
    if Sabotage::JoinAtStart.is_on() {
        join.l0 = 1;
    }
    Ok(join)
}

/// Takes a new, empty shard into the line, where nobody else can take it out meanwhile. Repeating it is a no-op.
///
/// # Errors
/// As [`claim_empty`], and if meta did not take the entry.
pub async fn join(line: &Line, new: &NewShard<'_>) -> Result<(), BootstrapError> {
    let join = claim_empty(new).await?;
    line.append(&Entry::Join(join)).await?;
    Ok(())
}

/// Makes an empty shard ours: its claims, and the open fences of its first ranges.
async fn claim(new: &NewShard<'_>, ranges: &[&RangeEntry]) -> Result<Join, BootstrapError> {
    let claims = Claims {
        claims: ranges
            .iter()
            .map(|r| Claim { range: r.range.clone(), rid: r.rid.clone(), state: ClaimState::Open })
            .collect(),
    };
    let value = claims.encode();
    let put = |key, value| put_op(pb::PutRequest { key, value, ..Default::default() });
    let mut success = vec![put(records::claims_key(), value.clone())];
    success.extend(ranges.iter().map(|r| put(records::fence_key(&r.rid), Bytes::from_static(FENCE_OPEN))));
    let get = |key, range_end| {
        let range = pb::RangeRequest { key, range_end, limit: 1, ..Default::default() };
        pb::RequestOp { request: Some(pb::Request::RequestRange(range)) }
    };
    // Else: was it this very bootstrap, a moment ago, and no client has written yet?
    let clients = get(Bytes::from_static(b"\0"), Bytes::from_static(RESERVED));
    let failure = vec![get(records::claims_key(), Bytes::new()), clients];
    let txn = pb::TxnRequest { compare: vec![never_created(&KeyRange::whole())], success, failure };
    let answer = new.shard.txn(txn).await.map_err(unreachable(new.name))?;
    let header = answer.header.unwrap_or_default();
    if !answer.succeeded {
        let mut found = answer.responses.into_iter().filter_map(|op| match op.response {
            Some(pb::Response::ResponseRange(range)) => Some(range.kvs),
            _ => None,
        });
        let ours = found.next().and_then(|mut kvs| kvs.pop());
        let foreign =
            |found: &str| BootstrapError::Foreign { shard: new.name.to_owned(), found: found.to_owned() };
        if !found.next().is_none_or(|kvs| kvs.is_empty()) {
            return Err(foreign("it holds keys"));
        }
        match ours {
            Some(kv) if kv.value == value => {}
            Some(_) => return Err(BootstrapError::OtherRanges { shard: new.name.to_owned() }),
            None => return Err(foreign("it has other records")),
        }
    }
    Ok(Join {
        shard: new.name.to_owned(),
        incarnation: new.incarnation,
        l0: header.revision,
        etcd_cluster_id: header.cluster_id,
    })
}

fn same_topology(found: TopologyId, expected: &TopologyId) -> Result<TopologyId, BootstrapError> {
    if found.uid == expected.uid {
        Ok(found)
    } else {
        Err(BootstrapError::OtherTopology { found: found.uid, expected: expected.uid.clone() })
    }
}

/// `create(range) == 0`: true exactly if no key lives there.
fn never_created(range: &KeyRange) -> pb::Compare {
    let range_end = if range.end == sharded_etcd_core::keyspace::successor(&range.start) {
        Bytes::new()
    } else {
        range.request_end()
    };
    pb::Compare {
        result: pb::CompareResult::Equal.into(),
        target: pb::CompareTarget::Create.into(),
        key: range.request_key(),
        range_end,
        target_union: Some(pb::TargetUnion::CreateRevision(0)),
    }
}

fn put_op(put: pb::PutRequest) -> pb::RequestOp {
    pb::RequestOp { request: Some(pb::Request::RequestPut(put)) }
}

fn delete_op(key: &'static [u8]) -> pb::RequestOp {
    let delete = pb::DeleteRangeRequest { key: Bytes::from_static(key), ..Default::default() };
    pb::RequestOp { request: Some(pb::Request::RequestDeleteRange(delete)) }
}

fn unreachable(who: &str) -> impl Fn(ShardError) -> BootstrapError + '_ {
    move |source| BootstrapError::Unreachable { who: who.to_owned(), source }
}
