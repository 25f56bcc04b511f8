//! Upkeep by a process that is no shard manager, for as long as nobody else sees to it.

use std::{sync::Arc, time::Duration};

use rand::Rng;
use sharded_etcd_core::line::{Due, Entry, Seen, Vigil};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Upkeep, UpkeepError, UpkeepOptions};
use crate::{Line, Shards, append::put_entry, checkpoint::read_head};

/// In one patience meta is looked at between [`LOOKS`] and twice as many times.
const LOOKS: u32 = 4;

/// When a caretaker acts.
#[derive(Debug, Clone)]
pub struct CaretakerOptions {
    /// How long the newest checkpoint is the same, while the log goes on, until a caretaker writes one. Default 5 min.
    pub patience: Duration,
    /// Meta's revisions beyond the newest checkpoint after which it does at once. Default 100,000, about 20 MiB of log.
    pub grown_max: i64,
    /// How long a proxy that lags may hold back the compaction of shards. Default 5 min.
    pub lag_max: Duration,
}

impl Default for CaretakerOptions {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(300),
            grown_max: 100_000,
            lag_max: UpkeepOptions::default().lag_max,
        }
    }
}

/// Looks now and then whether anybody keeps the log short, and does it if nobody does.
///
/// # Guarantees
/// Without any shard manager, meta's history, the shards' history and what a start has to read stay bounded by what is
/// written in one patience and a quarter, as long as one caretaker runs. Beside a manager it does nothing.
pub struct Caretaker {
    line: Arc<Line>,
    upkeep: Upkeep,
    options: CaretakerOptions,
}

impl Caretaker {
    /// For a line, with its options, and its shards.
    pub fn new(line: Arc<Line>, shards: Arc<Shards>) -> Self {
        let options = line.options().caretaker.clone();
        let segments_max = line.options().segments_max;
        let upkeep =
            Upkeep::new(Arc::clone(&line), shards, UpkeepOptions { lag_max: options.lag_max, segments_max });
        Self { line, upkeep, options }
    }

    /// Runs until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let started = Instant::now();
        let mut vigil = Vigil::new(self.options.patience, self.options.grown_max);
        loop {
            // At times of its own, so that of several processes one finds the checkpoint of another.
            let pause = self.options.patience.mul_f64(crate::random::rng().random_range(0.5..1.0)) / LOOKS;
            let round = async {
                tokio::time::sleep(pause).await;
                self.round(&mut vigil, started).await
            };
            let done = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                done = round => done,
            };
            if let Err(error) = done {
                tracing::warn!(%error, "cannot see to the log's history; it is tried again");
            }
        }
    }

    async fn round(&self, vigil: &mut Vigil, started: Instant) -> Result<(), UpkeepError> {
        let meta = self.line.meta();
        // A fold that cannot go on is of a release that does not know what the log says.
        if self.line.broken().is_some() {
            return Ok(());
        }
        let head = read_head(meta.as_ref()).await?;
        let (checkpoint, folded) = (head.position(), self.line.cut().position);
        let seen = Seen { checkpoint, folded, meta: head.meta };
        match vigil.look(started.elapsed(), seen) {
            Due::Nothing => Ok(()),
            Due::Entry => {
                put_entry(meta.as_ref(), &Entry::Adv(Vec::new())).await?;
                Ok(())
            }
            Due::Checkpoint => {
                tracing::info!(checkpoint, folded, "writing a checkpoint, as no shard manager does");
                self.upkeep.checkpoint().await?;
                self.upkeep.compact_shards().await
            }
        }
    }
}
