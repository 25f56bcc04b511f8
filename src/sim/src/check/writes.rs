//! Invariants of writes.

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;
use tonic::{Code, Status};

use super::{Asked, Fate, History, Op, OpId};
use crate::{
    etcd::NO_SPACE,
    state::{Keys, answer, holds},
    truth::Truth,
};

/// Why a client has no answer.
#[derive(Debug, Clone)]
pub enum NoAnswer {
    /// It was told so.
    Status(Status),
    /// The proxy died, or was silent for too long.
    Lost,
}

impl NoAnswer {
    /// True if the request certainly did nothing.
    pub fn is_refused(&self) -> bool {
        let Self::Status(status) = self else { return false };
        match status.code() {
            Code::InvalidArgument | Code::FailedPrecondition | Code::NotFound | Code::OutOfRange => {
                // Of a delete over several shards a part may be done.
                !status.message().starts_with("deleted ")
            }
            Code::ResourceExhausted => status.message() == NO_SPACE,
            // clientv3 sends a mutation again on this one.
            Code::Unavailable => {
                status.message() == "there is no connection available"
                    || status.message().starts_with("not sent: ")
            }
            _ => false,
        }
    }
}

/// What a transaction does on a state.
struct Outcome {
    succeeded: bool,
    responses: Vec<pb::Response>,
    /// Key, and what was put there with which lease; nothing for a deletion.
    effects: Vec<(Bytes, Option<(Bytes, i64)>)>,
}

/// Runs a transaction on the keys as they were at a revision, with those inside it. Its operations do not see one another's
/// writes, so none may touch a key that another one writes.
fn run(keys: &Keys, txn: &pb::TxnRequest, at: i64) -> Outcome {
    let succeeded = txn.compare.iter().all(|c| holds(c, &keys.range(&c.key, &c.range_end, at)));
    let mut outcome = Outcome { succeeded, responses: Vec::new(), effects: Vec::new() };
    for op in if succeeded { &txn.success } else { &txn.failure } {
        let response = match &op.request {
            Some(pb::Request::RequestRange(range)) => {
                let at = if range.revision > 0 { range.revision } else { at };
                pb::Response::ResponseRange(answer(keys, range, at))
            }
            Some(pb::Request::RequestPut(put)) => {
                outcome.effects.push((put.key.clone(), Some((put.value.clone(), put.lease))));
                let prev_kv = keys.live(&put.key, at).filter(|_| put.prev_kv);
                pb::Response::ResponsePut(pb::PutResponse { header: None, prev_kv })
            }
            Some(pb::Request::RequestDeleteRange(delete)) => {
                let found = keys.range(&delete.key, &delete.range_end, at);
                outcome.effects.extend(found.iter().map(|kv| (kv.key.clone(), None)));
                let deleted = found.len() as i64;
                let prev_kvs = if delete.prev_kv { found } else { Vec::new() };
                pb::Response::ResponseDeleteRange(pb::DeleteRangeResponse { header: None, deleted, prev_kvs })
            }
            Some(pb::Request::RequestTxn(inner)) => {
                let inner = run(keys, inner, at);
                outcome.effects.extend(inner.effects);
                let responses = inner.responses.into_iter().map(|r| pb::ResponseOp { response: Some(r) });
                pb::Response::ResponseTxn(pb::TxnResponse {
                    header: None,
                    succeeded: inner.succeeded,
                    responses: responses.collect(),
                })
            }
            None => continue,
        };
        outcome.responses.push(response);
    }
    outcome
}

fn bare(responses: &[pb::ResponseOp]) -> Vec<pb::Response> {
    let without = |r: &pb::Response| match r.clone() {
        pb::Response::ResponseRange(r) => {
            pb::Response::ResponseRange(pb::RangeResponse { header: None, ..r })
        }
        pb::Response::ResponsePut(r) => pb::Response::ResponsePut(pb::PutResponse { header: None, ..r }),
        pb::Response::ResponseDeleteRange(r) => {
            pb::Response::ResponseDeleteRange(pb::DeleteRangeResponse { header: None, ..r })
        }
        pb::Response::ResponseTxn(r) => {
            let inner = bare(&r.responses).into_iter().map(|r| pb::ResponseOp { response: Some(r) });
            pb::Response::ResponseTxn(pb::TxnResponse { header: None, responses: inner.collect(), ..r })
        }
    };
    responses.iter().filter_map(|op| op.response.as_ref()).map(without).collect()
}

/// True if an operation wrote, be it of a transaction inside.
fn has_written(response: &pb::Response) -> bool {
    match response {
        pb::Response::ResponsePut(_) => true,
        pb::Response::ResponseDeleteRange(r) => r.deleted > 0,
        pb::Response::ResponseTxn(r) => {
            r.responses.iter().filter_map(|op| op.response.as_ref()).any(has_written)
        }
        pb::Response::ResponseRange(_) => false,
    }
}

/// All that a transaction and those inside it may put and delete.
fn ops_of(txn: &pb::TxnRequest, each: &mut impl FnMut(&pb::Request)) {
    for request in txn.success.iter().chain(&txn.failure).filter_map(|op| op.request.as_ref()) {
        match request {
            pb::Request::RequestTxn(inner) => ops_of(inner, each),
            other => each(other),
        }
    }
}

impl History {
    /// A write is asked for. Its puts' values are its own.
    pub fn begin(&self, txn: &pb::TxnRequest) -> (OpId, Asked) {
        let asked = self.ask();
        let mut state = self.state.lock();
        let id = state.ops.len();
        let mut deletes = Vec::new();
        ops_of(txn, &mut |request| match request {
            pb::Request::RequestPut(put) => {
                state.values.insert(put.value.clone(), id);
            }
            pb::Request::RequestDeleteRange(delete) => {
                deletes.push((delete.key.clone(), delete.range_end.clone()));
            }
            _ => {}
        });
        state.ops.push(Op { floor: asked.floor, deletes, fate: Fate::Open, at: None });
        (id, asked)
    }

    /// A write was not answered.
    ///
    /// # Errors
    /// If it says that it did nothing, and it did.
    pub fn not_written(&self, id: OpId, why: &NoAnswer) -> Result<(), String> {
        let mut state = self.state.lock();
        state.checks += 1;
        let op = &mut state.ops[id];
        if !why.is_refused() {
            op.fate = Fate::Unknown;
            return Ok(());
        }
        op.fate = Fate::Refused;
        match op.at {
            Some(at) => Err(format!("write {id} was refused ({why:?}), and is there at revision {at}")),
            None => Ok(()),
        }
    }

    /// A write was answered.
    ///
    /// # Errors
    /// If the answer is not what the line says.
    pub fn written(
        &self,
        truth: &Truth,
        id: OpId,
        asked: Asked,
        txn: &pb::TxnRequest,
        response: &pb::TxnResponse,
    ) -> Result<(), String> {
        let at = self.header(truth, asked, response.header.as_ref())?;
        let found = bare(&response.responses);
        let wrote = found.iter().any(has_written);
        let mut state = self.state.lock();
        let op = &mut state.ops[id];
        op.fate = Fate::Done;
        let what = || format!("write {id} {txn:?} was answered {response:?}");
        // What wrote saw the state before it; what did not saw the state of its revision.
        let expected = run(&truth.keys, txn, if wrote { at - 1 } else { at });
        if expected.succeeded != response.succeeded {
            return Err(format!("{}, but its compares say {}", what(), expected.succeeded));
        }
        if expected.responses != found {
            return Err(format!("{}, expected {:?}", what(), expected.responses));
        }
        if wrote {
            if at <= asked.floor {
                return Err(format!("{}, at a revision that was known before", what()));
            }
            let events = truth.events.get(&at).map_or(&[][..], Vec::as_slice);
            let there: Vec<_> = events
                .iter()
                .map(|e| {
                    let kv = e.kv();
                    let put = (!e.is_delete()).then(|| (kv.value.clone(), kv.lease));
                    (kv.key.clone(), put)
                })
                .collect();
            if there != expected.effects {
                return Err(format!("{}, but revision {at} is {there:?}", what()));
            }
        } else if op.at.is_some() {
            return Err(format!("{}, but it wrote", what()));
        }
        Ok(())
    }

    /// A deletion, over any number of shards, was answered.
    ///
    /// # Errors
    /// If the answer is not what the line says.
    pub fn deleted(
        &self,
        truth: &Truth,
        id: OpId,
        asked: Asked,
        request: &pb::DeleteRangeRequest,
        response: &pb::DeleteRangeResponse,
    ) -> Result<(), String> {
        let at = self.header(truth, asked, response.header.as_ref())?;
        self.state.lock().ops[id].fate = Fate::Done;
        let what = || format!("deletion {id} {request:?} was answered {response:?}");
        if request.prev_kv && response.prev_kvs.len() as i64 != response.deleted {
            return Err(format!("{}: counts differ", what()));
        }
        for prev in &response.prev_kvs {
            let mut deletions = truth.events.range(asked.floor + 1..=at).flat_map(|(_, events)| events);
            if !deletions.any(|e| e.is_delete() && e.event.prev_kv.as_ref() == Some(prev)) {
                return Err(format!("{}, but {prev:?} was not deleted", what()));
            }
        }
        let left = truth.keys.range(&request.key, &request.range_end, at);
        match left.iter().find(|kv| truth.keys.lived_through(&kv.key, asked.floor, at)) {
            Some(kv) => Err(format!("{}, but {:?} lived on", what(), kv.key)),
            None => Ok(()),
        }
    }
}
