//! Writes that wait: the fence of their range is closed, as it is being moved or split.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use sharded_etcd_core::keyspace::{Rid, ShardIx};
use sharded_etcd_line::Line;
use tokio::{sync::broadcast, time::Instant};
use tonic::Status;

use crate::{context::Context, metrics::Metrics};

/// The first pause between two tries; doubled each time. It is for a fence that was written before anybody listened: a change
/// of the map, or of a fence that is told, ends a pause at once.
const PAUSE_MIN: Duration = Duration::from_millis(4);
/// The longest pause where changes of fences are told, and where they are not.
const PAUSE_MAX: Duration = Duration::from_millis(250);
const PAUSE_MAX_UNTOLD: Duration = Duration::from_millis(50);

/// What waits for one ownership.
#[derive(Debug, Default)]
struct Queue {
    requests: usize,
    bytes: usize,
}

/// All writes that wait now, counted for each ownership.
pub(super) struct Held {
    queues: Arc<Mutex<HashMap<Rid, Queue>>>,
    metrics: Arc<Metrics>,
    requests_max: usize,
    bytes_max: usize,
    wait_max: Duration,
    fences: Option<Fences>,
}

/// Which shards' fences were written.
type Fences = broadcast::Receiver<ShardIx>;

/// One write that waits; leaves when dropped.
pub(super) struct Hold {
    queues: Arc<Mutex<HashMap<Rid, Queue>>>,
    metrics: Arc<Metrics>,
    rid: Rid,
    bytes: usize,
    since: Instant,
    wait_max: Duration,
    pause: Duration,
    fences: Option<Fences>,
}

impl Held {
    /// `fences` tells when a fence was written; without it, writes are tried again and again.
    pub(super) fn new(ctx: &Context, fences: Option<Fences>) -> Self {
        Self {
            queues: Arc::default(),
            metrics: Arc::clone(&ctx.metrics),
            requests_max: ctx.limits.held_requests_max,
            bytes_max: ctx.limits.held_bytes_max,
            wait_max: ctx.limits.held_max,
            fences,
        }
    }

    /// Takes a place in the queue of an ownership, for a request of so many bytes.
    pub(super) fn enter(&self, rid: &Rid, bytes: usize) -> Result<Hold, Status> {
        let mut queues = self.queues.lock();
        let (requests, waiting) = queues.get(rid).map_or((0, 0), |queue| (queue.requests, queue.bytes));
        if requests >= self.requests_max || waiting + bytes > self.bytes_max {
            self.metrics.held_refused.inc();
            return Err(not_sent());
        }
        queues.insert(rid.clone(), Queue { requests: requests + 1, bytes: waiting + bytes });
        self.metrics.held_writes.inc();
        Ok(Hold {
            queues: Arc::clone(&self.queues),
            metrics: Arc::clone(&self.metrics),
            rid: rid.clone(),
            bytes,
            since: Instant::now(),
            wait_max: self.wait_max,
            pause: PAUSE_MIN,
            // From here on, not from when this proxy began to listen.
            fences: self.fences.as_ref().map(Fences::resubscribe),
        })
    }
}

impl Hold {
    /// Until it is worth to try again: the map no longer names `rid`, a fence of its shard was written (an abort opens it
    /// again without a change of the map), or a pause is over.
    pub(super) async fn wait(&mut self, line: &Line, rid: &Rid, shard: ShardIx) -> Result<(), Status> {
        let left = self.wait_max.saturating_sub(self.since.elapsed());
        if left.is_zero() {
            self.metrics.held_refused.inc();
            return Err(not_sent());
        }
        let mut cuts = line.subscribe();
        let moved = cuts.wait_for(|cut| cut.map.by_rid(rid).is_none());
        let longest = if self.fences.is_some() { PAUSE_MAX } else { PAUSE_MAX_UNTOLD };
        let written = written(self.fences.as_mut(), shard);
        // Whatever it is, the write is tried again; what it finds then decides.
        tokio::select! {
            _ = moved => {}
            () = written => {}
            () = tokio::time::sleep(self.pause.min(left)) => {}
        }
        self.pause = (self.pause * 2).min(longest);
        Ok(())
    }
}

/// Until a fence of the shard was written, or so many were that this may have been one of them; for ever if that is not told.
async fn written(fences: Option<&mut Fences>, shard: ShardIx) {
    let Some(fences) = fences else { return std::future::pending().await };
    loop {
        match fences.recv().await {
            Ok(ix) if ix == shard => return,
            Ok(_) => {}
            Err(broadcast::error::RecvError::Lagged(_)) => return,
            Err(broadcast::error::RecvError::Closed) => return std::future::pending().await,
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.metrics.held_writes.dec();
        self.metrics.held_seconds.observe(self.since.elapsed().as_secs_f64());
        let mut queues = self.queues.lock();
        if let Some(queue) = queues.get_mut(&self.rid) {
            queue.requests -= 1;
            queue.bytes -= self.bytes;
            if queue.requests == 0 {
                queues.remove(&self.rid);
            }
        }
    }
}

/// The one text for which clientv3 sends a mutation again (client/v3/retry.go, `isSafeRetryMutableRPC`): right here, as
/// every try so far was refused by the shard.
fn not_sent() -> Status {
    Status::unavailable("there is no connection available")
}
