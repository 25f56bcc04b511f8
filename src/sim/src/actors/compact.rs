//! A client that compacts.

use std::sync::Arc;

use sharded_etcd_etcd_api::messages as pb;

use super::Client;

impl Client {
    /// Compacts now and then.
    pub async fn compact(self: Arc<Self>, most: u64, pause_ms: u64) {
        for _ in 0..most {
            self.rest(pause_ms).await;
            if self.stop.is_cancelled() {
                return;
            }
            let Some(process) = self.proxy().await else { return };
            let told = self.world.history.told().unsigned_abs();
            let revision = if self.rng.chance(10) {
                self.past()
            } else {
                (told - self.rng.below(told.min(20) + 1)) as i64
            };
            let history = &self.world.history;
            let asked = history.ask();
            let request = pb::CompactionRequest { revision, physical: false };
            let result = self.ask(&process, process.proxy.kv().compact(request)).await;
            self.said(&process, format_args!("compact {revision}"), &result, revision);
            let truth = self.world.truth.lock();
            self.world.require(match &result {
                Ok(answer) => {
                    history.compacted(revision);
                    history.header(&truth, asked, answer.header.as_ref()).map(|_| ())
                }
                Err(why) => history.not_compacted(&truth, asked, revision, why),
            });
        }
    }
}
