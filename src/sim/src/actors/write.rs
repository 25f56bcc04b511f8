//! Writers: puts, deletions, and transactions that compare.

use std::sync::Arc;

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;

use super::{Client, DIRECTORIES, KEYS};

impl Client {
    /// Writes until it is told to stop, at most so often.
    pub async fn write(self: Arc<Self>, most: u64, pause_ms: u64) {
        for _ in 0..most {
            if self.stop.is_cancelled() {
                return;
            }
            match self.rng.below(20) {
                0..11 => self.put(0).await,
                11 | 12 => self.delete(self.key(), Bytes::new()).await,
                13 => {
                    let (key, end) = self.range();
                    self.delete(key, end).await;
                }
                _ => self.compare_and_write().await,
            }
            self.rest(pause_ms).await;
        }
    }

    /// Puts a key.
    pub(super) async fn put(&self, lease: i64) {
        let Some(process) = self.proxy().await else { return };
        let prev_kv = self.rng.chance(50);
        let put =
            pb::PutRequest { key: self.key(), value: self.value(), lease, prev_kv, ..Default::default() };
        let _ = self.put_on(&process, put).await;
    }

    pub(super) async fn put_on(
        &self,
        process: &crate::process::Process,
        put: pb::PutRequest,
    ) -> Result<i64, crate::check::NoAnswer> {
        let history = &self.world.history;
        let txn =
            pb::TxnRequest { success: vec![op(pb::Request::RequestPut(put.clone()))], ..Default::default() };
        let (id, asked) = history.begin(&txn);
        let result = self.ask(process, process.proxy.kv().put(put.clone())).await;
        let at = result.as_ref().ok().and_then(|r| r.header.as_ref()).map_or(0, |h| h.revision);
        self.said(
            process,
            format_args!("put {:?} {:?} lease {:x}", put.key, put.value, put.lease),
            &result,
            at,
        );
        let truth = self.world.truth.lock();
        match result {
            Ok(answer) => {
                let (header, prev_kv) = (answer.header, answer.prev_kv);
                let response = pb::Response::ResponsePut(pb::PutResponse { header, prev_kv });
                let responses = vec![pb::ResponseOp { response: Some(response) }];
                let answer = pb::TxnResponse { header, succeeded: true, responses };
                self.world.require(history.written(&truth, id, asked, &txn, &answer));
                Ok(at)
            }
            Err(why) => {
                self.world.require(history.not_written(id, &why));
                Err(why)
            }
        }
    }

    async fn delete(&self, key: Bytes, range_end: Bytes) {
        let Some(process) = self.proxy().await else { return };
        let history = &self.world.history;
        let delete = pb::DeleteRangeRequest { key, range_end, prev_kv: self.rng.chance(70) };
        let request = op(pb::Request::RequestDeleteRange(delete.clone()));
        let (id, asked) = history.begin(&pb::TxnRequest { success: vec![request], ..Default::default() });
        let result = self.ask(&process, process.proxy.kv().delete_range(delete.clone())).await;
        let at = result.as_ref().ok().and_then(|r| r.header.as_ref()).map_or(0, |h| h.revision);
        self.said(&process, format_args!("delete {:?} {:?}", delete.key, delete.range_end), &result, at);
        let truth = self.world.truth.lock();
        self.world.require(match result {
            Ok(answer) => history.deleted(&truth, id, asked, &delete, &answer),
            Err(why) => history.not_written(id, &why),
        });
    }

    /// Reads a key and writes it, or one beside it, if it has not changed since.
    async fn compare_and_write(&self) {
        let Some(process) = self.proxy().await else { return };
        let directory = self.rng.pick(&DIRECTORIES);
        let n = self.rng.below(KEYS);
        let key: Bytes = format!("{directory}{n}").into();
        let beside: Bytes = format!("{directory}{}", (n + 1) % KEYS).into();
        let known = if self.rng.chance(80) {
            let truth = self.world.truth.lock();
            truth.keys.live(&key, truth.revision)
        } else {
            None
        };
        let known = known.unwrap_or_default();
        let (target, operand) = match self.rng.below(5) {
            0 | 1 => (pb::CompareTarget::Mod, pb::TargetUnion::ModRevision(known.mod_revision)),
            2 => (pb::CompareTarget::Create, pb::TargetUnion::CreateRevision(known.create_revision)),
            3 => (pb::CompareTarget::Version, pb::TargetUnion::Version(known.version)),
            _ => (pb::CompareTarget::Value, pb::TargetUnion::Value(known.value)),
        };
        let result = match (target, self.rng.below(4)) {
            (pb::CompareTarget::Mod, 0) => pb::CompareResult::Less,
            (pb::CompareTarget::Mod, 1) => pb::CompareResult::Greater,
            (_, 2) => pb::CompareResult::NotEqual,
            _ => pb::CompareResult::Equal,
        };
        let range_end = if self.rng.chance(15) { format!("{directory}9").into() } else { Bytes::new() };
        let compare = pb::Compare {
            result: result.into(),
            target: target.into(),
            key: key.clone(),
            range_end,
            target_union: Some(operand),
        };
        let get = pb::RangeRequest { key: key.clone(), ..Default::default() };
        let mut success = Vec::new();
        match self.rng.below(6) {
            0 => {
                let delete = pb::DeleteRangeRequest { key, prev_kv: true, ..Default::default() };
                success.push(op(pb::Request::RequestDeleteRange(delete)));
            }
            1 => success.push(op(pb::Request::RequestRange(get.clone()))),
            n => {
                let value = self.value();
                let put = pb::PutRequest { key, value, prev_kv: n == 2, ..Default::default() };
                success.push(op(pb::Request::RequestPut(put)));
                if n > 3 {
                    let put = pb::PutRequest { key: beside, value: self.value(), ..Default::default() };
                    success.push(op(pb::Request::RequestPut(put)));
                }
            }
        }
        let mut failure = vec![op(pb::Request::RequestRange(get))];
        if self.rng.chance(40) {
            let branch = if self.rng.chance(70) { &mut success } else { &mut failure };
            branch.push(op(pb::Request::RequestTxn(self.inside(directory, n + 2, 2))));
        }
        let txn = pb::TxnRequest { compare: vec![compare], success, failure };
        let history = &self.world.history;
        let (id, asked) = history.begin(&txn);
        let result = self.ask(&process, process.proxy.kv().txn(txn.clone())).await;
        let at = result.as_ref().ok().and_then(|r| r.header.as_ref()).map_or(0, |h| h.revision);
        self.said(&process, format_args!("txn {directory}{n}"), &result, at);
        let truth = self.world.truth.lock();
        self.world.require(match result {
            Ok(answer) => history.written(&truth, id, asked, &txn, &answer),
            Err(why) => history.not_written(id, &why),
        });
    }
}

impl Client {
    /// A transaction for inside another one, on keys that nothing else in that one writes; with another inside, perhaps.
    fn inside(&self, directory: &str, n: u64, depth: u32) -> pb::TxnRequest {
        let key: Bytes = format!("{directory}{}", n % KEYS).into();
        let compare = pb::Compare {
            result: self.rng.pick(&[pb::CompareResult::Equal, pb::CompareResult::NotEqual]).to_owned().into(),
            target: pb::CompareTarget::Version.into(),
            key: key.clone(),
            range_end: Bytes::new(),
            target_union: Some(pb::TargetUnion::Version(self.rng.below(2) as i64)),
        };
        let put = pb::PutRequest {
            key: key.clone(),
            value: self.value(),
            prev_kv: self.rng.chance(50),
            ..Default::default()
        };
        let delete = pb::DeleteRangeRequest { key, prev_kv: true, ..Default::default() };
        let mut success = vec![op(pb::Request::RequestPut(put))];
        let failure = vec![op(pb::Request::RequestDeleteRange(delete))];
        if depth > 1 && self.rng.chance(30) {
            success.push(op(pb::Request::RequestTxn(self.inside(directory, n + 1, depth - 1))));
        }
        pb::TxnRequest { compare: vec![compare], success, failure }
    }
}

fn op(request: pb::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}
