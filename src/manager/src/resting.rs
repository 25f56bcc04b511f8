//! Ranges whose moves were given up: they rest before they are moved again.

use std::time::Duration;

use parking_lot::Mutex;
use sharded_etcd_core::{keyspace::KeyRange, placement::Wait, records::RangeAborted};
use tokio::time::Instant;

/// First and longest rest after a move that was aborted.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Rest after one that a person aborted.
const REST_BY_HAND: Duration = Duration::from_secs(600);
/// Ranges whose move a person aborted that are remembered; beyond that the oldest is forgotten.
const BY_HAND_MAX: usize = 256;
/// Bytes of their keys that the next leader is told; beyond that the oldest are left out.
const TOLD_BYTES_MAX: usize = 64 << 10;

#[derive(Debug)]
struct Rest {
    range: KeyRange,
    times: u32,
    until: Instant,
    by_hand: bool,
}

/// The ranges that rest; as many as moves were aborted in ten minutes at most, and a bounded number of them by people.
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
        if list.iter().filter(|r| r.by_hand).count() >= BY_HAND_MAX
            && let Some(oldest) = list.iter().position(|r| r.by_hand)
        {
            list.remove(oldest);
        }
        let until = now + REST_BY_HAND;
        list.push(Rest { range: range.clone(), times: 1, until, by_hand: true });
    }

    /// The moves that people aborted, for the next leader; the others it may try a little too early.
    pub(crate) fn told(&self, now: Instant) -> Vec<RangeAborted> {
        let list = self.0.lock();
        let mut bytes = 0;
        let newest_first = list.iter().rev().filter(|r| r.by_hand && now < r.until).take_while(|r| {
            bytes += r.range.start.len() + r.range.end.len();
            bytes <= TOLD_BYTES_MAX
        });
        let mut told: Vec<RangeAborted> = newest_first
            .map(|r| RangeAborted {
                range: r.range.clone(),
                rest_s: r.until.saturating_duration_since(now).as_millis().div_ceil(1000) as u64,
            })
            .collect();
        told.reverse();
        told
    }

    /// Takes over what the leader before was told by people. It goes on as if no time had passed since it was written, which
    /// is a minute at most while somebody leads.
    pub(crate) fn recall(&self, told: &[RangeAborted], now: Instant) {
        let spare = told.len().saturating_sub(BY_HAND_MAX);
        for RangeAborted { range, rest_s } in &told[spare..] {
            let mut list = self.tidy(now);
            if list.iter().any(|r| r.range == *range) {
                continue;
            }
            let until = now + Duration::from_secs(*rest_s).min(REST_BY_HAND);
            list.push(Rest { range: range.clone(), times: 1, until, by_hand: true });
        }
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

    #[test]
    fn the_next_leader_knows_what_people_aborted() {
        let (resting, range) = (Resting::default(), KeyRange::new("a", "b"));
        let now = Instant::now();
        resting.aborted(&KeyRange::new("x", "y"), now);
        resting.aborted_by_hand(&range, now);
        let told = resting.told(now + Duration::from_secs(100));
        assert_eq!(told, [RangeAborted { range: range.clone(), rest_s: 500 }]);
        let (next, later) = (Resting::default(), now + Duration::from_secs(5000));
        next.recall(&told, later);
        next.recall(&told, later);
        assert!(next.rests(&range, later + Duration::from_secs(499)));
        assert!(!next.rests(&range, later + Duration::from_secs(500)));
        assert!(next.waits(later)[0].reason.contains("by hand") && next.waits(later).len() == 1);
        // A person may think again.
        next.clear(&range);
        assert!(next.told(later).is_empty());
    }

    #[test]
    fn what_is_remembered_and_told_is_bounded() {
        let resting = Resting::default();
        let now = Instant::now();
        let range =
            |i: usize, long: usize| KeyRange::new(format!("{i:05}{}", "k".repeat(long)), format!("{i:05}~"));
        (0..1000).for_each(|i| resting.aborted_by_hand(&range(i, 0), now));
        let told = resting.told(now);
        assert_eq!(told.len(), BY_HAND_MAX);
        assert_eq!(told[BY_HAND_MAX - 1].range, range(999, 0), "the newest are kept");
        (0..100).for_each(|i| resting.aborted_by_hand(&range(i, 2000), now));
        let told = resting.told(now);
        assert!(told.len() < 40 && told.len() > 20, "{}", told.len());
        // Nonsense does no harm.
        let nonsense: Vec<_> =
            (0..5000).map(|i| RangeAborted { range: range(i, 0), rest_s: u64::MAX }).collect();
        let next = Resting::default();
        next.recall(&nonsense, now);
        assert_eq!(next.told(now).len(), BY_HAND_MAX);
        assert!(!next.rests(&KeyRange::whole(), now + REST_BY_HAND));
    }
}
