//! A client's transaction as the guarded transaction that its shard runs, and the shard's answer as the client's.
//!
//! The shape is the one of the protocol's section "Write": compares on fences and lease markers around, a read of a
//! fence at the revision that the proxy knows in front (a shard that lost history refuses it), the client's operations
//! behind, flat when they have no compares of their own.

use std::collections::HashMap;

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;

use super::{StoredOverride, Translated, client_kv, evaluate, finish_range, impossible, translate_compare};
use crate::{
    keyspace::{KeyRange, RangeMap, Rid, ShardIx},
    line::Fold,
    records::{fence_key, lease_live, lease_marker_key, override_key, override_range},
    sabotage::Sabotage,
};

/// A lease id that no client can have: a put with it fails in etcd exactly if its branch runs.
pub const NEVER_GRANTED: i64 = i64::MAX;

/// A lease that the transaction attaches keys to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseGuard {
    /// Its id.
    pub id: i64,
    /// The epoch of its marker on the shard; `None` if there is no such lease.
    pub epoch: Option<i64>,
}

/// What the proxy read for a compare that only it can decide.
#[derive(Debug, Clone, Default)]
pub struct Decided {
    /// The result.
    pub result: bool,
    /// Compares that hold as long as the result does.
    pub guards: Vec<pb::Compare>,
}

/// Everything that a transaction is built from.
pub struct TxnBuilder<'a> {
    /// The fold, for translation.
    pub fold: &'a Fold,
    /// The map that named the owner.
    pub map: &'a RangeMap,
    /// The shard.
    pub shard: ShardIx,
    /// The ownerships touched; their fences are compared.
    pub rids: &'a [Rid],
    /// The leases attached.
    pub leases: &'a [LeaseGuard],
    /// Results of compares, by [`TxnBuilder::reads_needed`]'s number.
    pub decided: &'a HashMap<usize, Decided>,
    /// Answers of the ranges at an explicit revision, by their number in the transaction (see [`explicit_ranges`]);
    /// `None` for one that fails if its branch runs.
    pub fixed: &'a HashMap<usize, Option<pb::RangeResponse>>,
}

/// A transaction for the shard.
#[derive(Debug, Clone)]
pub struct Built {
    /// To be sent.
    pub request: pb::TxnRequest,
    /// How to read its answer.
    pub shape: Shape,
    /// True if the client's operations are nested in a transaction of their own.
    pub nested: bool,
}

/// What the operations of a transaction are, as sent.
#[derive(Debug, Clone, Default)]
pub struct Shape {
    success: Vec<ShapeOp>,
    failure: Vec<ShapeOp>,
}

/// One operation as sent.
#[derive(Debug, Clone)]
pub enum ShapeOp {
    /// A range; the overrides of its keys are read behind it if it is imported.
    Range {
        /// The client's request.
        request: pb::RangeRequest,
        /// Overrides follow.
        overrides: bool,
        /// Sent without sort, limit and filters: finished here.
        finish: bool,
    },
    /// Answered already; nothing was sent.
    Fixed(pb::RangeResponse),
    /// A put; the override of its key is read in front of it if a previous value of an imported key is asked for.
    Put {
        /// An override comes first.
        overrides: bool,
    },
    /// A delete; the overrides are deleted behind it if it is in an imported range.
    Delete {
        /// Overrides follow.
        overrides: bool,
    },
    /// A delete of keys that nobody can have; nothing was sent.
    NoDelete,
    /// A transaction.
    Txn(Shape),
}

/// All key ranges that a transaction touches now: compares, puts, deletes, and ranges without a revision of their own.
pub fn touched(txn: &pb::TxnRequest) -> Vec<KeyRange> {
    let mut ranges = Vec::new();
    collect(txn, &mut ranges);
    ranges
}

fn collect(txn: &pb::TxnRequest, ranges: &mut Vec<KeyRange>) {
    let mut add = |range: KeyRange| {
        if !range.is_empty() {
            ranges.push(range);
        }
    };
    for c in &txn.compare {
        add(KeyRange::of_request(&c.key, &c.range_end));
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match &op.request {
            Some(pb::Request::RequestRange(r)) if r.revision <= 0 => {
                add(KeyRange::of_request(&r.key, &r.range_end))
            }
            Some(pb::Request::RequestPut(p)) => add(KeyRange::key(&p.key)),
            Some(pb::Request::RequestDeleteRange(d)) => add(KeyRange::of_request(&d.key, &d.range_end)),
            _ => {}
        }
    }
    for op in txn.success.iter().chain(&txn.failure) {
        if let Some(pb::Request::RequestTxn(inner)) = &op.request {
            collect(inner, ranges);
        }
    }
}

/// The ranges at an explicit revision, in the order of the transaction; their places are their numbers.
pub fn explicit_ranges(txn: &pb::TxnRequest) -> Vec<&pb::RangeRequest> {
    let mut list = Vec::new();
    for op in txn.success.iter().chain(&txn.failure) {
        match &op.request {
            Some(pb::Request::RequestRange(r)) if r.revision > 0 => list.push(r),
            Some(pb::Request::RequestTxn(inner)) => list.extend(explicit_ranges(inner)),
            _ => {}
        }
    }
    list
}

/// True if no branch of the transaction can write.
pub fn is_read_only(txn: &pb::TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).all(|op| match &op.request {
        Some(pb::Request::RequestRange(_)) | None => true,
        Some(pb::Request::RequestTxn(inner)) => is_read_only(inner),
        Some(pb::Request::RequestPut(_) | pb::Request::RequestDeleteRange(_)) => false,
    })
}

/// The leases that puts of the transaction attach to, each once.
pub fn leases(txn: &pb::TxnRequest) -> Vec<i64> {
    let mut list = Vec::new();
    for op in txn.success.iter().chain(&txn.failure) {
        match &op.request {
            Some(pb::Request::RequestPut(p)) if p.lease != 0 => list.push(p.lease),
            Some(pb::Request::RequestTxn(inner)) => list.extend(leases(inner)),
            _ => {}
        }
    }
    list.sort_unstable();
    list.dedup();
    list
}

/// Numbers handed out while a transaction is walked, always in the same order.
#[derive(Default)]
struct Numbers {
    compare: usize,
    explicit: usize,
}

impl TxnBuilder<'_> {
    /// The compares that only the proxy can decide, with their numbers in the transaction.
    pub fn reads_needed(&self, txn: &pb::TxnRequest) -> Vec<(usize, pb::Compare)> {
        let mut list = Vec::new();
        self.find_reads(txn, &mut 0, &mut list);
        list
    }

    fn find_reads(&self, txn: &pb::TxnRequest, number: &mut usize, list: &mut Vec<(usize, pb::Compare)>) {
        for compare in &txn.compare {
            let range = KeyRange::of_request(&compare.key, &compare.range_end);
            if !range.is_empty() && self.translate(&range, compare) == Translated::Read {
                list.push((*number, compare.clone()));
            }
            *number += 1;
        }
        for op in txn.success.iter().chain(&txn.failure) {
            if let Some(pb::Request::RequestTxn(inner)) = &op.request {
                self.find_reads(inner, number, list);
            }
        }
    }

    /// The transaction for the shard. Every compare of [`TxnBuilder::reads_needed`] must be decided.
    pub fn build(&self, txn: pb::TxnRequest) -> Built {
        let mut guards = Vec::new();
        for rid in self.rids {
            if Sabotage::DropFence.is_on() {
                continue;
            }
            guards.push(value_is(fence_key(rid), Bytes::from_static(crate::records::FENCE_OPEN)));
        }
        for lease in self.leases {
            if let Some(epoch) = lease.epoch {
                guards.push(value_is(lease_marker_key(lease.id), lease_live(epoch)));
            }
        }
        let v = self.fold.shard(self.shard).map_or(0, |s| s.v);
        let first_fence = self.rids.first().map(fence_key).unwrap_or_default();
        let history = pb::RangeRequest {
            key: first_fence.clone(),
            revision: v,
            count_only: true,
            ..Default::default()
        };
        let get = |key| op(pb::Request::RequestRange(pb::RangeRequest { key, ..Default::default() }));
        let failure = self
            .rids
            .iter()
            .map(|rid| get(fence_key(rid)))
            .chain(self.leases.iter().filter(|l| l.epoch.is_some()).map(|l| get(lease_marker_key(l.id))));
        let failure = failure.collect();
        let nested = !txn.compare.is_empty();
        let (user, shape) = self.inner(txn, &mut Numbers::default(), &mut guards, &first_fence);
        let mut success = vec![op(pb::Request::RequestRange(history))];
        if nested {
            success.push(op(pb::Request::RequestTxn(user)));
        } else {
            success.extend(user.success);
        }
        Built { request: pb::TxnRequest { compare: guards, success, failure }, shape, nested }
    }

    fn inner(
        &self,
        txn: pb::TxnRequest,
        numbers: &mut Numbers,
        guards: &mut Vec<pb::Compare>,
        fence: &Bytes,
    ) -> (pb::TxnRequest, Shape) {
        let mut compare = Vec::with_capacity(txn.compare.len());
        for c in txn.compare {
            let number = numbers.compare;
            numbers.compare += 1;
            compare.extend(self.compare(number, c, guards, fence));
        }
        let mut branch = |ops: Vec<pb::RequestOp>| {
            let mut sent = Vec::with_capacity(ops.len());
            let mut shape = Vec::with_capacity(ops.len());
            for op in ops.into_iter().filter_map(|op| op.request) {
                shape.push(self.operation(op, numbers, guards, fence, &mut sent));
            }
            (sent, shape)
        };
        let (success, shape_success) = branch(txn.success);
        let (failure, shape_failure) = branch(txn.failure);
        let shape = Shape { success: shape_success, failure: shape_failure };
        (pb::TxnRequest { compare, success, failure }, shape)
    }

    /// The compare as sent; `None` if it is true whatever the shard holds.
    fn compare(
        &self,
        number: usize,
        compare: pb::Compare,
        guards: &mut Vec<pb::Compare>,
        fence: &Bytes,
    ) -> Option<pb::Compare> {
        let constant = |result: bool| (!result).then(|| impossible(fence.clone()));
        let range = KeyRange::of_request(&compare.key, &compare.range_end);
        if range.is_empty() {
            return constant(evaluate(&compare, &[]));
        }
        match self.translate(&range, &compare) {
            Translated::Native(mut native) => {
                clamp(&mut native.range_end, &range);
                Some(native)
            }
            Translated::Constant(result) => constant(result),
            Translated::Beyond(result) => {
                let v = self.fold.shard(self.shard).map_or(0, |s| s.v);
                let mut guard = pb::Compare {
                    result: pb::CompareResult::Less.into(),
                    target: pb::CompareTarget::Mod.into(),
                    target_union: Some(pb::TargetUnion::ModRevision(v + 1)),
                    key: compare.key,
                    range_end: compare.range_end,
                };
                clamp(&mut guard.range_end, &range);
                guards.push(guard);
                constant(result)
            }
            Translated::Read => {
                let decided = self.decided.get(&number).cloned().unwrap_or_default();
                guards.extend(decided.guards);
                constant(decided.result)
            }
        }
    }

    fn operation(
        &self,
        request: pb::Request,
        numbers: &mut Numbers,
        guards: &mut Vec<pb::Compare>,
        fence: &Bytes,
        sent: &mut Vec<pb::RequestOp>,
    ) -> ShapeOp {
        match request {
            pb::Request::RequestRange(r) => self.range(r, numbers, sent),
            pb::Request::RequestPut(mut p) => {
                let overrides = p.prev_kv && self.imported_at(&KeyRange::key(&p.key)) > 0;
                if overrides {
                    let get = pb::RangeRequest { key: override_key(&p.key), ..Default::default() };
                    sent.push(op(pb::Request::RequestRange(get)));
                }
                if self.leases.iter().any(|l| l.id == p.lease && l.epoch.is_none()) {
                    p.lease = NEVER_GRANTED;
                }
                sent.push(op(pb::Request::RequestPut(p)));
                ShapeOp::Put { overrides }
            }
            pb::Request::RequestDeleteRange(mut d) => {
                let range = KeyRange::of_request(&d.key, &d.range_end);
                if range.is_empty() {
                    return ShapeOp::NoDelete;
                }
                let overrides = self.imported_at(&range) > 0;
                clamp(&mut d.range_end, &range);
                let prev_kv = d.prev_kv;
                let single = d.range_end.is_empty();
                let key = d.key.clone();
                sent.push(op(pb::Request::RequestDeleteRange(d)));
                if overrides {
                    let all = override_range(&range);
                    let delete = if single {
                        pb::DeleteRangeRequest { key: override_key(&key), range_end: Bytes::new(), prev_kv }
                    } else {
                        pb::DeleteRangeRequest { key: all.start, range_end: all.end, prev_kv }
                    };
                    sent.push(op(pb::Request::RequestDeleteRange(delete)));
                }
                ShapeOp::Delete { overrides }
            }
            pb::Request::RequestTxn(inner) => {
                let (mut txn, shape) = self.inner(inner, numbers, guards, fence);
                if Sabotage::ForgetNested.is_on() {
                    txn.compare.clear();
                }
                sent.push(op(pb::Request::RequestTxn(txn)));
                ShapeOp::Txn(shape)
            }
        }
    }

    fn range(
        &self,
        request: pb::RangeRequest,
        numbers: &mut Numbers,
        sent: &mut Vec<pb::RequestOp>,
    ) -> ShapeOp {
        if request.revision > 0 {
            let number = numbers.explicit;
            numbers.explicit += 1;
            return match self.fixed.get(&number) {
                Some(Some(answer)) => ShapeOp::Fixed(answer.clone()),
                _ => {
                    // A revision that no shard ever has: the transaction fails exactly if this branch runs.
                    let poison = pb::RangeRequest {
                        key: request.key.clone(),
                        revision: i64::MAX,
                        ..Default::default()
                    };
                    sent.push(op(pb::Request::RequestRange(poison)));
                    ShapeOp::Fixed(pb::RangeResponse::default())
                }
            };
        }
        let range = KeyRange::of_request(&request.key, &request.range_end);
        if range.is_empty() {
            return ShapeOp::Fixed(pb::RangeResponse::default());
        }
        let overrides = self.imported_at(&range) > 0 && !request.count_only;
        let filters = request.min_mod_revision != 0
            || request.max_mod_revision != 0
            || request.min_create_revision != 0
            || request.max_create_revision != 0;
        let finish = overrides || (filters && !request.count_only);
        let mut native = request.clone();
        native.revision = 0;
        clamp(&mut native.range_end, &range);
        if finish {
            native = pb::RangeRequest {
                key: native.key,
                range_end: native.range_end,
                keys_only: request.keys_only && request.sort_target() != pb::SortTarget::Value,
                ..Default::default()
            };
        }
        let single = native.range_end.is_empty();
        sent.push(op(pb::Request::RequestRange(native)));
        if overrides {
            let all = override_range(&range);
            let get = if single {
                pb::RangeRequest { key: override_key(&request.key), ..Default::default() }
            } else {
                pb::RangeRequest { key: all.start, range_end: all.end, ..Default::default() }
            };
            sent.push(op(pb::Request::RequestRange(get)));
        }
        ShapeOp::Range { request, overrides, finish }
    }

    fn imported_at(&self, range: &KeyRange) -> i64 {
        self.map.overlapping(range).map(|e| e.imported_at).max().unwrap_or(0)
    }

    fn translate(&self, range: &KeyRange, compare: &pb::Compare) -> Translated {
        translate_compare(self.fold, self.shard, self.imported_at(range), compare)
    }
}

/// What a shard said to a built transaction that took its branch, before it is translated.
#[derive(Debug)]
pub struct WriteAnswer {
    /// The client's part: `succeeded`, and the responses as the shape says.
    pub response: pb::TxnResponse,
    /// True if anything was written, so the shard's revision is this transaction's own.
    pub wrote: bool,
    /// The shard's revision.
    pub local: i64,
}

impl WriteAnswer {
    /// Takes the client's part out of the answer.
    pub fn of(answer: pb::TxnResponse, nested: bool) -> Self {
        let local = answer.header.as_ref().map_or(0, |h| h.revision);
        let mut responses = answer.responses;
        if !responses.is_empty() {
            responses.remove(0);
        }
        let response = if nested {
            match responses.pop().and_then(|op| op.response) {
                Some(pb::Response::ResponseTxn(txn)) => txn,
                _ => pb::TxnResponse::default(),
            }
        } else {
            pb::TxnResponse { header: None, succeeded: true, responses }
        };
        let wrote = wrote(&response);
        Self { response, wrote, local }
    }
}

fn wrote(response: &pb::TxnResponse) -> bool {
    response.responses.iter().any(|op| match &op.response {
        Some(pb::Response::ResponsePut(_)) => true,
        Some(pb::Response::ResponseDeleteRange(d)) => d.deleted > 0,
        Some(pb::Response::ResponseTxn(inner)) => wrote(inner),
        _ => false,
    })
}

/// The shard's answer as the client's: revisions of the line everywhere, companions taken out.
///
/// `revision` is the answer's header revision; the fold must cover the shard's revision of the answer.
pub fn read_answer(
    fold: &Fold,
    shard: ShardIx,
    shape: &Shape,
    answer: WriteAnswer,
    revision: i64,
) -> pb::TxnResponse {
    let reader = Reader { fold, shard, local: answer.local, revision };
    reader.txn(shape, answer.response)
}

struct Reader<'a> {
    fold: &'a Fold,
    shard: ShardIx,
    local: i64,
    revision: i64,
}

impl Reader<'_> {
    fn txn(&self, shape: &Shape, response: pb::TxnResponse) -> pb::TxnResponse {
        let branch = if response.succeeded { &shape.success } else { &shape.failure };
        let mut raw = response.responses.into_iter().filter_map(|op| op.response);
        let responses =
            branch.iter().map(|op| pb::ResponseOp { response: Some(self.operation(op, &mut raw)) }).collect();
        // etcd leaves the header of a nested transaction empty.
        pb::TxnResponse {
            header: Some(pb::ResponseHeader::default()),
            succeeded: response.succeeded,
            responses,
        }
    }

    fn operation(&self, op: &ShapeOp, raw: &mut impl Iterator<Item = pb::Response>) -> pb::Response {
        match op {
            ShapeOp::Fixed(answer) => {
                let header = Some(self.header(self.local));
                pb::Response::ResponseRange(pb::RangeResponse { header, ..answer.clone() })
            }
            ShapeOp::NoDelete => {
                let header = Some(self.header(self.local));
                pb::Response::ResponseDeleteRange(pb::DeleteRangeResponse { header, ..Default::default() })
            }
            ShapeOp::Range { request, overrides, finish } => {
                let data = range_of(raw.next());
                let overrides =
                    if *overrides { overrides_of(range_of(raw.next()).kvs) } else { HashMap::new() };
                let mut kvs = self.kvs(data.kvs, &overrides);
                let mut more = data.more;
                if *finish {
                    (kvs, more) = finish_range(request, kvs);
                }
                let header = data.header.map(|h| self.header(h.revision));
                pb::Response::ResponseRange(pb::RangeResponse { header, kvs, more, count: data.count })
            }
            ShapeOp::Put { overrides } => {
                let overrides =
                    if *overrides { overrides_of(range_of(raw.next()).kvs) } else { HashMap::new() };
                let put = match raw.next() {
                    Some(pb::Response::ResponsePut(put)) => put,
                    _ => pb::PutResponse::default(),
                };
                let prev_kv = put.prev_kv.map(|kv| self.kv(kv, &overrides));
                let header = put.header.map(|h| self.header(h.revision));
                pb::Response::ResponsePut(pb::PutResponse { header, prev_kv })
            }
            ShapeOp::Delete { overrides } => {
                let data = delete_of(raw.next());
                let overrides =
                    if *overrides { overrides_of(delete_of(raw.next()).prev_kvs) } else { HashMap::new() };
                let header = data.header.map(|h| self.header(h.revision));
                let prev_kvs = self.kvs(data.prev_kvs, &overrides);
                pb::Response::ResponseDeleteRange(pb::DeleteRangeResponse {
                    header,
                    deleted: data.deleted,
                    prev_kvs,
                })
            }
            ShapeOp::Txn(shape) => {
                let inner = match raw.next() {
                    Some(pb::Response::ResponseTxn(txn)) => txn,
                    _ => pb::TxnResponse::default(),
                };
                pb::Response::ResponseTxn(self.txn(shape, inner))
            }
        }
    }

    /// Before its first write a transaction of etcd shows the revision before its own.
    fn header(&self, local: i64) -> pb::ResponseHeader {
        let revision = if local >= self.local { self.revision } else { self.revision - 1 };
        pb::ResponseHeader { revision, ..Default::default() }
    }

    fn kvs(&self, kvs: Vec<pb::KeyValue>, overrides: &HashMap<Bytes, StoredOverride>) -> Vec<pb::KeyValue> {
        kvs.into_iter().map(|kv| self.kv(kv, overrides)).collect()
    }

    fn kv(&self, kv: pb::KeyValue, overrides: &HashMap<Bytes, StoredOverride>) -> pb::KeyValue {
        let o = overrides.get(&kv.key);
        client_kv(self.fold, self.shard, kv, o)
    }
}

fn range_of(response: Option<pb::Response>) -> pb::RangeResponse {
    match response {
        Some(pb::Response::ResponseRange(range)) => range,
        _ => pb::RangeResponse::default(),
    }
}

fn delete_of(response: Option<pb::Response>) -> pb::DeleteRangeResponse {
    match response {
        Some(pb::Response::ResponseDeleteRange(delete)) => delete,
        _ => pb::DeleteRangeResponse::default(),
    }
}

/// Overrides by the client's key.
pub fn overrides_of(kvs: Vec<pb::KeyValue>) -> HashMap<Bytes, StoredOverride> {
    kvs.iter()
        .filter_map(|kv| Some((crate::records::overridden_key(&kv.key)?, StoredOverride::from_kv(kv)?)))
        .collect()
}

/// Sets the end of a request that covers a range to the clamped one; a single key keeps its empty end.
fn clamp(range_end: &mut Bytes, range: &KeyRange) {
    if !range_end.is_empty() {
        *range_end = range.end.clone();
    }
}

fn op(request: pb::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn value_is(key: Bytes, value: Bytes) -> pb::Compare {
    pb::Compare {
        result: pb::CompareResult::Equal.into(),
        target: pb::CompareTarget::Value.into(),
        key,
        range_end: Bytes::new(),
        target_union: Some(pb::TargetUnion::Value(value)),
    }
}
