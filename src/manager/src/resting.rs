//! Ranges whose moves were given up: they rest before they are moved again.

use std::time::Duration;

use parking_lot::Mutex;
use sharded_etcd_core::{keyspace::KeyRange, placement::Wait};
use tokio::time::Instant;

/// First and longest rest after a move that was aborted.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Rest after one that a person aborted.
const REST_BY_HAND: Duration = Duration::from_secs(600);

#[derive(Debug)]
struct Rest {
    range: KeyRange,
    times: u32,
    until: Instant,
    by_hand: bool,
}

/// The ranges that rest; as many as moves were aborted in ten minutes at most.
#[derive(Debug, Default)]
pub(crate) struct Resting(Mutex<Vec<Rest>>);

impl Resting {
    /// A move of the range was aborted; it rests the longer the more often that happens.
    pub(crate) fn aborted(&self, range: &KeyRange, now: Instant) {
        let mut list = self.tidy(now);
        match list.iter_mut().find(|r| r.range == *range) {
            Some(rest) => {
                let pause = (REST.0 * 2_u32.saturating_pow(rest.times)).min(REST.1);
                rest.times += 1;
                rest.until = rest.until.max(now + pause);
            }
            None => list.push(Rest { range: range.clone(), times: 1, until: now + REST.0, by_hand: false }),
        }
    }

    /// A person aborts the move of the range: the planner leaves it alone for long.
    pub(crate) fn aborted_by_hand(&self, range: &KeyRange, now: Instant) {
        let mut list = self.tidy(now);
        list.retain(|r| r.range != *range);
        let until = now + REST_BY_HAND;
        list.push(Rest { range: range.clone(), times: 1, until, by_hand: true });
    }

    /// The range was moved, or a person asks for it to be.
    pub(crate) fn clear(&self, range: &KeyRange) {
        self.0.lock().retain(|r| r.range != *range);
    }

    /// True if a move of these keys was aborted a short while ago.
    pub(crate) fn rests(&self, range: &KeyRange, now: Instant) -> bool {
        self.0.lock().iter().any(|r| r.range.overlaps(range) && now < r.until)
    }

    /// Those that rest, for people.
    pub(crate) fn waits(&self, now: Instant) -> Vec<Wait> {
        let list = self.0.lock();
        let resting = list.iter().filter(|r| now < r.until).map(|r| {
            let seconds = r.until.saturating_duration_since(now).as_secs() + 1;
            let what = r.range.to_string();
            let reason = match r.by_hand {
                true => format!("its move was aborted by hand; it is not planned again for {seconds} s"),
                false => format!("its move was aborted {} times; it is tried again in {seconds} s", r.times),
            };
            Wait { what, reason }
        });
        resting.collect()
    }

    /// How often moves of a range were aborted counts for a minute after its rest.
    fn tidy(&self, now: Instant) -> parking_lot::MutexGuard<'_, Vec<Rest>> {
        let mut list = self.0.lock();
        list.retain(|r| r.until + REST.1 > now);
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_rests_longer_each_time() {
        let (resting, range) = (Resting::default(), KeyRange::new("a", "b"));
        let mut now = Instant::now();
        let mut rests = Vec::new();
        for _ in 0..8 {
            resting.aborted(&range, now);
            let begun = now;
            while resting.rests(&KeyRange::key(b"a"), now) {
                now += Duration::from_millis(500);
            }
            rests.push((now - begun).as_secs());
        }
        assert_eq!(rests, [1, 2, 4, 8, 16, 32, 60, 60]);
        now += Duration::from_secs(61);
        resting.aborted(&range, now);
        assert!(resting.waits(now)[0].reason.contains("aborted 1 times"), "{:?}", resting.waits(now));
        assert!(!resting.rests(&KeyRange::new("b", "c"), now));
    }

    #[test]
    fn what_a_person_aborts_rests_for_long() {
        let (resting, range) = (Resting::default(), KeyRange::new("a", "b"));
        let now = Instant::now();
        resting.aborted_by_hand(&range, now);
        // The executor tells the same abort a moment later.
        resting.aborted(&range, now);
        let later = now + Duration::from_secs(599);
        assert!(resting.rests(&range, later));
        assert!(resting.waits(later)[0].reason.contains("by hand"));
        resting.clear(&range);
        assert!(!resting.rests(&range, later) && resting.waits(later).is_empty());
    }
}
