//! Reads of the log's end: one for all requests that wait.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use sharded_etcd_core::records;
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_serve::{Asker, Round, ask};
use sharded_etcd_shard::ShardError;

use crate::{Line, LineError, Wake, append::ANSWER_MAX};

/// How often a read of the log's end is sent at most.
const READS_MAX: u32 = 4;

type Answer = Result<i64, ShardError>;

/// Requests that wait for a read of the log's end which begins after they arrived.
#[derive(Default)]
pub(crate) struct Refresher {
    waiting: Mutex<Vec<Asker<Answer>>>,
    wake: Wake,
}

impl Refresher {
    /// The log's end at a moment after this call.
    pub(crate) async fn position(&self, most: Duration) -> Result<i64, LineError> {
        let (asker, position) = ask();
        self.waiting.lock().push(asker);
        self.wake.notify_one();
        match tokio::time::timeout(most, position).await {
            Ok(Ok(position)) => position.map_err(LineError::Meta),
            Ok(Err(_)) => Err(LineError::Closed),
            Err(_) => Err(LineError::Timeout { what: "the log's end", ms: most.as_millis() }),
        }
    }
}

impl Line {
    pub(crate) async fn refresh_loop(self: Arc<Self>) {
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return,
                () = self.refresher.wake.notified() => {}
            }
            let batch = std::mem::take(&mut *self.refresher.waiting.lock());
            if batch.is_empty() {
                continue;
            }
            let answer = self.read_end_patiently().await;
            self.stats.refreshes.fetch_add(1, Ordering::Relaxed);
            let mut round = Round::new();
            for asker in batch {
                round.answer(asker, answer.clone());
            }
        }
    }

    /// A read that is not answered is sent again: a member may hang while others serve.
    async fn read_end_patiently(&self) -> Answer {
        for _ in 1..READS_MAX {
            if let Ok(answer) = tokio::time::timeout(ANSWER_MAX, self.read_end()).await {
                return answer;
            }
        }
        self.read_end().await
    }

    async fn read_end(&self) -> Answer {
        let key = Bytes::from_static(records::CUT_LATEST);
        let answer = self.meta.range(pb::RangeRequest { key, ..Default::default() }).await?;
        let Some(kv) = answer.kvs.first() else {
            return Err(ShardError::refused(
                tonic::Code::DataLoss,
                "meta has lost the log: cut/latest is not there",
            ));
        };
        // The read may bring the next entry before the watch does.
        if let Err(error) = self.fold_entry(kv.mod_revision, kv.version, &kv.value) {
            return Err(ShardError::refused(tonic::Code::DataLoss, error.to_string()));
        }
        Ok(kv.mod_revision)
    }
}
