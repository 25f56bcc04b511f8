//! Clients.

mod compact;
mod lease;
mod read;
mod watch;
mod write;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{check::NoAnswer, process::Process, rng::Rng, trace, world::World};

pub use watch::Watcher;

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Keys in each directory.
const KEYS: u64 = 5;

/// The directories of clients' keys; boundaries lie between and inside them.
pub const DIRECTORIES: [&str; 4] = ["/a/", "/g/", "/m/", "/t/"];

/// What every client has.
pub struct Client {
    /// Its name in the trace.
    pub name: String,
    /// The world.
    pub world: Arc<World>,
    /// Its own randomness.
    pub rng: Rng,
    /// Told to come to an end.
    pub stop: CancellationToken,
    values: std::sync::atomic::AtomicU64,
}

impl Client {
    /// A client of that name.
    pub fn new(world: &Arc<World>, name: String, stop: &CancellationToken) -> Arc<Self> {
        let rng = world.rng.fork();
        let values = std::sync::atomic::AtomicU64::new(0);
        Arc::new(Self { name, world: Arc::clone(world), rng, stop: stop.clone(), values })
    }

    /// A proxy that runs; waits for one.
    async fn proxy(&self) -> Option<Arc<Process>> {
        while !self.stop.is_cancelled() {
            let running = self.world.running();
            if !running.is_empty() {
                return Some(Arc::clone(self.rng.pick(&running)));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        None
    }

    /// Waits for an answer of a proxy.
    async fn ask<T>(
        &self,
        process: &Process,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, NoAnswer> {
        let result = tokio::select! {
            biased;
            () = process.killed.cancelled() => Err(NoAnswer::Lost),
            answer = tokio::time::timeout(PATIENCE, answer) => match answer {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(status)) => Err(NoAnswer::Status(status)),
                Err(_) => Err(NoAnswer::Lost),
            },
        };
        if result.is_ok() {
            let truth = self.world.truth.lock();
            self.world.require(self.world.history.cut(&truth, process));
        }
        result
    }

    fn said<T>(
        &self,
        process: &Process,
        what: std::fmt::Arguments<'_>,
        result: &Result<T, NoAnswer>,
        at: i64,
    ) {
        match result {
            Ok(_) => trace!(self.world, "{} {} {what} -> {at}", self.name, process.name),
            Err(NoAnswer::Lost) => trace!(self.world, "{} {} {what} -> lost", self.name, process.name),
            Err(NoAnswer::Status(s)) => {
                trace!(self.world, "{} {} {what} -> {:?} {}", self.name, process.name, s.code(), s.message());
            }
        }
    }

    fn key(&self) -> Bytes {
        let directory = self.rng.pick(&DIRECTORIES);
        format!("{directory}{}", self.rng.below(KEYS)).into()
    }

    /// A range of keys: one, a directory, some, or all.
    fn range(&self) -> (Bytes, Bytes) {
        match self.rng.below(10) {
            0..4 => (self.key(), Bytes::new()),
            4..7 => {
                let range =
                    sharded_etcd_core::keyspace::KeyRange::prefix(self.rng.pick(&DIRECTORIES).as_bytes());
                (range.start, range.end)
            }
            7 | 8 => {
                let (a, b) = (self.key(), self.key());
                if a < b { (a, b) } else { (b, Bytes::from_static(b"\0")) }
            }
            _ => (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
        }
    }

    /// A value that nobody else puts.
    fn value(&self) -> Bytes {
        let n = self.values.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        format!("{}.{n}", self.name).into()
    }

    async fn rest(&self, ms_max: u64) {
        let pause = Duration::from_micros(self.rng.below(ms_max * 1000));
        tokio::time::sleep(pause).await;
    }
}
