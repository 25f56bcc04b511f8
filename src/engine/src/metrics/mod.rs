//! What an engine counts, under the names that etcd has for it, in the Prometheus text format.
//!
//! Counting costs an addition to memory of the thread's own; everything that can be looked up is looked up when
//! somebody asks.

mod calls;
mod process;
mod text;

use std::{
    cell::Cell,
    sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::mvcc::Changes;
pub(crate) use calls::{Calls, InFlight, Method};
pub(crate) use text::encode;

/// Threads beyond that number share places.
const PLACES: usize = 16;

/// A counter that threads add to without getting in each other's way.
#[derive(Debug, Default)]
pub(crate) struct Count([Place; PLACES]);

/// As large as what processors fetch at a time.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Place(AtomicU64);

impl Count {
    /// Adds one.
    pub(crate) fn up(&self) {
        self.add(1);
    }

    /// Adds a number.
    pub(crate) fn add(&self, number: u64) {
        self.0[place()].0.fetch_add(number, Ordering::Relaxed);
    }

    /// The sum.
    pub(crate) fn get(&self) -> u64 {
        self.0.iter().map(|place| place.0.load(Ordering::Relaxed)).sum()
    }
}

/// The place of this thread.
fn place() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    MINE.with(|mine| {
        if mine.get() == usize::MAX {
            mine.set(NEXT.fetch_add(1, Ordering::Relaxed) % PLACES);
        }
        mine.get()
    })
}

/// Everything that is counted.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) calls: Calls,
    pub(crate) puts: Count,
    pub(crate) deletes: Count,
    /// Revisions of more than one change.
    pub(crate) txns: Count,
    pub(crate) leases_granted: Count,
    pub(crate) leases_revoked: Count,
    pub(crate) leases_renewed: Count,
    pub(crate) leases_expired: Count,
    pub(crate) watch_streams: AtomicI64,
    pub(crate) watch_events: Count,
    /// Batches that could not be written.
    pub(crate) failed: Count,
    /// Writing and syncing a batch, in seconds.
    pub(crate) log_seconds: Histogram,
    pub(crate) log_bytes: Count,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            calls: Calls::default(),
            puts: Count::default(),
            deletes: Count::default(),
            txns: Count::default(),
            leases_granted: Count::default(),
            leases_revoked: Count::default(),
            leases_renewed: Count::default(),
            leases_expired: Count::default(),
            watch_streams: AtomicI64::new(0),
            watch_events: Count::default(),
            failed: Count::default(),
            // As etcd, with one more below: a good disk needs less than a millisecond.
            log_seconds: Histogram::new(exponential_buckets(0.000_25, 2.0, 16)),
            log_bytes: Count::default(),
        }
    }
}

impl Metrics {
    /// Counts what was published.
    pub(crate) fn published(&self, revisions: &[Changes]) {
        let (mut puts, mut deletes, mut txns) = (0, 0, 0);
        for changes in revisions {
            let changes = changes.as_slice();
            let live = changes.iter().filter(|version| version.is_live()).count();
            puts += live as u64;
            deletes += (changes.len() - live) as u64;
            txns += u64::from(changes.len() > 1);
        }
        self.puts.add(puts);
        self.deletes.add(deletes);
        self.txns.add(txns);
    }

    /// Counts a batch that was written to the log.
    pub(crate) fn logged(&self, bytes: u64, took: Duration) {
        self.log_seconds.observe(took.as_secs_f64());
        self.log_bytes.add(bytes);
    }
}
