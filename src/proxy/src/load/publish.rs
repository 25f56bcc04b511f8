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
    pub(crate) fn new(load: &Load, map: &Arc<RangeMap>, now: Instant) -> Self {
        load.take(map);
        Self { book: Book::new(HALF_LIFE), taken: now, due: now + pause() }
    }

    /// What to tell, once it is time.
    pub(crate) fn due(&mut self, load: &Load, map: &Arc<RangeMap>, now: Instant) -> Option<LoadRecord> {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use sharded_etcd_core::keyspace::{KeyRange, RangeEntry, Rid, ShardIx};
    use sharded_etcd_etcd_api::messages as pb;

    use super::*;

    fn map() -> Arc<RangeMap> {
        let entry =
            RangeEntry { range: KeyRange::whole(), rid: Rid::new("r"), shard: ShardIx(0), imported_at: 0 };
        Arc::new(RangeMap::new(1, vec![entry]).unwrap())
    }

    /// The next report that differs from `told`, and the how manieth it is; among 100.
    fn next_news(
        publisher: &mut Publisher,
        load: &Load,
        now: &mut Instant,
        told: &LoadRecord,
    ) -> Option<(u32, LoadRecord)> {
        let map = map();
        let mut reports = 0;
        while reports < 100 {
            *now += Duration::from_secs(1);
            let Some(report) = publisher.due(load, &map, *now) else { continue };
            reports += 1;
            if report != *told {
                return Some((reports, report));
            }
        }
        None
    }

    #[test]
    fn who_is_not_asked_anything_has_nothing_to_tell() {
        let (load, mut now, nothing) = (Load::default(), Instant::now(), LoadRecord::default());
        let mut publisher = Publisher::new(&load, &map(), now);
        assert_eq!(publisher.due(&load, &map(), now + Duration::from_secs(8)), None, "not so soon");
        assert_eq!(next_news(&mut publisher, &load, &mut now, &nothing), None);

        let request = pb::RangeRequest { key: "a".into(), ..Default::default() };
        (0..10_000).for_each(|_| load.read(&request, &[]));
        let (reports, mut told) = next_news(&mut publisher, &load, &mut now, &nothing).unwrap();
        assert_eq!((reports, told.ranges.len(), told.keys.len()), (1, 1, 1));
        // It is forgotten, and then there is nothing to tell again.
        let mut writes = 0;
        while let Some((_, report)) = next_news(&mut publisher, &load, &mut now, &told) {
            told = report;
            writes += 1;
        }
        assert_eq!(told, nothing);
        assert!((10..60).contains(&writes), "{writes}");
    }
}
