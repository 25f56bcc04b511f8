//! Keeps the fold in memory of the order of the live keys.
//!
//! Every cut adds segments, and which of them no live key needs only the shards' keys tell. The leading shard manager asks
//! them when it writes a checkpoint; all other processes take the segments of that checkpoint for their own.

use std::sync::{Arc, atomic::Ordering};

use sharded_etcd_core::line::Fold;

use crate::{Line, checkpoint::read_checkpoint};

impl Line {
    /// Takes the segments of an older checkpoint of this line instead of its own, if there are fewer; returns how many
    /// that saved.
    pub fn condense(&self, checkpoint: &Fold) -> usize {
        // Not under the lock for writing: answers are translated with this fold meanwhile.
        let mut condensed = self.with_fold(Fold::clone);
        let saved = condensed.adopt(checkpoint);
        if saved == 0 {
            return 0;
        }
        let mut fold = self.fold.write();
        let saved = fold.adopt(&condensed);
        self.stats.condensed.fetch_add(i64::try_from(saved).unwrap_or(i64::MAX), Ordering::Relaxed);
        saved
    }

    /// Looks at the newest checkpoint whenever the fold has grown to twice of what was left the last time.
    pub(crate) async fn condense_loop(self: Arc<Self>) {
        let mut left = 0_usize;
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return,
                () = tokio::time::sleep(self.options.condense_interval) => {}
            }
            let segments = self.with_fold(Fold::segment_count);
            if segments <= self.options.segments_max.max(left.saturating_mul(2)) {
                continue;
            }
            let read = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return,
                read = read_checkpoint(self.meta.as_ref()) => read,
            };
            match read {
                Ok(Some(checkpoint)) => {
                    let saved = self.condense(&checkpoint);
                    if saved > 0 {
                        left = self.with_fold(Fold::segment_count);
                        tracing::debug!(saved, left, "took the segments of a condensed checkpoint");
                    }
                }
                Ok(None) => {}
                // It is read again after the interval; until then memory grows by what is written.
                Err(error) => {
                    tracing::warn!(%error, segments, "cannot read a checkpoint to condense the line")
                }
            }
        }
    }
}
