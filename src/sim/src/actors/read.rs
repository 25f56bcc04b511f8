//! Readers.

use std::sync::Arc;

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;

use super::Client;
use crate::{check::NoAnswer, process::Process};

impl Client {
    /// Reads until it is told to stop, at most so often.
    pub async fn read(self: Arc<Self>, most: u64, pause_ms: u64) {
        for _ in 0..most {
            if self.stop.is_cancelled() {
                return;
            }
            let Some(process) = self.proxy().await else { return };
            let request = self.range_request();
            let pages = request.limit > 0 && self.rng.chance(50);
            let answer = self.range_on(&process, request.clone()).await;
            if let Ok(answer) = answer
                && pages
            {
                self.next_pages(request, answer).await;
            }
            self.rest(pause_ms).await;
        }
    }

    fn range_request(&self) -> pb::RangeRequest {
        let (key, range_end) = self.range();
        let mut request = pb::RangeRequest { key, range_end, ..Default::default() };
        request.serializable = self.rng.chance(20);
        match self.rng.below(12) {
            0 | 1 => request.limit = self.rng.between(1, 4) as i64,
            2 => request.count_only = true,
            3 => request.keys_only = true,
            4 => {
                request.sort_order = pb::SortOrder::Descend.into();
                request.limit = self.rng.below(4) as i64;
            }
            5 => {
                request.min_mod_revision = self.rng.below(self.world.history.told().unsigned_abs() + 1) as i64
            }
            6 => {
                request.max_create_revision =
                    self.rng.below(self.world.history.told().unsigned_abs() + 1) as i64
            }
            7..10 => request.revision = self.past(),
            _ => {}
        }
        request
    }

    /// A revision that was there, perhaps one that is compacted, seldom one that is not there yet.
    pub(super) fn past(&self) -> i64 {
        let told = self.world.history.told().unsigned_abs();
        match self.rng.below(10) {
            0 => told as i64 + 1 + self.rng.below(3) as i64,
            1..4 => (told - self.rng.below(told.min(5) + 1)) as i64,
            _ => self.rng.between(1, told.max(1)) as i64,
        }
        .max(1)
    }

    pub(super) async fn range_on(
        &self,
        process: &Process,
        request: pb::RangeRequest,
    ) -> Result<pb::RangeResponse, NoAnswer> {
        let history = &self.world.history;
        let asked = history.ask();
        let result = self.ask(process, process.proxy.kv().range(request.clone())).await;
        let at = result.as_ref().ok().and_then(|r| r.header.as_ref()).map_or(0, |h| h.revision);
        let what = format_args!("range {:?} {:?} at {}", request.key, request.range_end, request.revision);
        self.said(process, what, &result, at);
        let truth = self.world.truth.lock();
        self.world.require(match &result {
            Ok(answer) => history.read(&truth, asked, &request, answer),
            Err(why) => history.not_read(&truth, asked, &request, why),
        });
        result
    }

    /// The pages after the first one, at its revision, as kube-apiserver reads them: each from any proxy.
    async fn next_pages(&self, first: pb::RangeRequest, answer: pb::RangeResponse) {
        let Some(header) = answer.header else { return };
        let revision = if first.revision > 0 { first.revision } else { header.revision };
        let (mut more, mut last) = (answer.more, answer.kvs.last().cloned());
        let descending = first.sort_order != i32::from(pb::SortOrder::None);
        while let (true, Some(kv), false) = (more, &last, descending) {
            let key: Bytes = [kv.key.as_ref(), &[0]].concat().into();
            let request = pb::RangeRequest { key, revision, ..first.clone() };
            let Some(process) = self.proxy().await else { return };
            let Ok(answer) = self.range_on(&process, request).await else { return };
            (more, last) = (answer.more, answer.kvs.last().cloned());
        }
    }
}
