//! Tells what this proxy counts: from counters to a record in meta.

use std::{sync::Arc, time::Duration};

use rand::Rng;
use sharded_etcd_core::{keyspace::RangeMap, load::Book, records::LoadRecord};
use tokio::time::Instant;

use super::Load;

/// What was done so long ago counts half.
const HALF_LIFE: Duration = Duration::from_secs(60);
/// Time between two looks at the counters, and a part of it more or less, so that proxies that began together do not tell
/// together.
const INTERVAL: Duration = Duration::from_secs(10);
const JITTER: f64 = 0.1;

/// Takes what is counted away from time to time.
pub(crate) struct Publisher {
    book: Book,
    taken: Instant,
    due: Instant,
}

impl Publisher {
    /// Begins to count, by this map.
    pub(crate) fn new(load: &Load, map: &Arc<RangeMap>) -> Self {
        load.take(map);
        let now = Instant::now();
        Self { book: Book::new(HALF_LIFE), taken: now, due: now + pause() }
    }

    /// What to tell, once it is time.
    pub(crate) fn due(&mut self, load: &Load, map: &Arc<RangeMap>) -> Option<LoadRecord> {
        let now = Instant::now();
        if now < self.due {
            return None;
        }
        let (counted, keys) = load.take(map);
        self.book.tick(now - self.taken, &counted, &keys, map.entries());
        (self.taken, self.due) = (now, now + pause());
        Some(self.book.report())
    }
}

fn pause() -> Duration {
    INTERVAL.mul_f64(1.0 + sharded_etcd_line::random::rng().random_range(-JITTER..JITTER))
}
