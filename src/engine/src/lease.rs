//! When leases expire. Pure: the caller brings the time.
//!
//! The store knows which leases exist, what is attached to them, and how much time each had left when that was last
//! written down: when the engine is closed, and from time to time for leases that nobody renews, as etcd's lease
//! checkpoints do. This table knows only deadlines, which are not durable. After a restart a lease runs what is written
//! down, or its full time: it may expire late, never early, since a renewal is answered only once nothing shorter is
//! written down.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    time::Duration,
};

use tokio::time::Instant;

use crate::mvcc::Lease;

/// The longest time to live that can be granted, in seconds (etcd: `MaxLeaseTTL`).
pub const TTL_SECONDS_MAX: i64 = 9_000_000_000;

/// Shortest time to live that is granted, in seconds: what etcd derives from its default election timeout of 1 s.
pub const TTL_SECONDS_MIN: i64 = 2;

/// Deadlines of leases.
#[derive(Debug, Default)]
pub struct Deadlines {
    by_id: HashMap<i64, Timer>,
    /// Deadlines as they were when they were queued; looked up again before they count.
    queue: BinaryHeap<Reverse<(Instant, i64)>>,
}

#[derive(Debug, Clone, Copy)]
struct Timer {
    /// None stands for a deadline beyond what the clock can say.
    deadline: Option<Instant>,
    /// The time of this lease's one entry in the queue; entries with other times are left over.
    queued: Option<Instant>,
}

/// What a renewal found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// The lease runs its full time from now on.
    Renewed,
    /// Its time is over; it is being revoked and cannot come back.
    Expired,
}

impl Deadlines {
    /// Lets a lease run from `now` unless it runs already.
    pub fn start(&mut self, id: i64, ttl_seconds: i64, now: Instant) {
        if !self.by_id.contains_key(&id) {
            self.set(id, ttl_seconds, now);
        }
    }

    /// Starts the full time again, unless it is over.
    pub fn renew(&mut self, id: i64, ttl_seconds: i64, now: Instant) -> Renewal {
        if self.is_expired(id, now) {
            return Renewal::Expired;
        }
        self.set(id, ttl_seconds, now);
        Renewal::Renewed
    }

    /// Whether the deadline has come.
    pub fn is_expired(&self, id: i64, now: Instant) -> bool {
        self.by_id.get(&id).and_then(|timer| timer.deadline).is_some_and(|deadline| deadline <= now)
    }

    /// Time left: None if the lease does not run, the maximum if it never expires.
    pub fn remaining(&self, id: i64, now: Instant) -> Option<Duration> {
        let timer = self.by_id.get(&id)?;
        Some(timer.deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(now)))
    }

    /// Forgets a lease.
    pub fn stop(&mut self, id: i64) {
        self.by_id.remove(&id);
    }

    /// Up to `limit` leases whose time is over. They stay in the table, expired, until [`Self::stop`]; a lease is
    /// given out again after `again` in case its revocation failed.
    pub fn take_expired(&mut self, now: Instant, again: Duration, limit: usize) -> Vec<i64> {
        let mut expired = Vec::new();
        let mut requeue = Vec::new();
        while expired.len() < limit {
            match self.queue.peek() {
                Some(Reverse((at, _))) if *at <= now => {}
                _ => break,
            }
            let Some(Reverse((at, id))) = self.queue.pop() else { break };
            let Some(timer) = self.by_id.get_mut(&id).filter(|timer| timer.queued == Some(at)) else {
                continue;
            };
            let Some(deadline) = timer.deadline else { continue };
            timer.queued = if deadline <= now {
                expired.push(id);
                now.checked_add(again)
            } else {
                // Renewed since it was queued.
                Some(deadline)
            };
            requeue.extend(timer.queued.map(|at| Reverse((at, id))));
        }
        self.queue.extend(requeue);
        expired
    }

    /// Leases with at least `seconds_min` less time left than is written down, and how many seconds each has left, a
    /// begun one included: a lease may run longer after a restart, never shorter.
    pub fn to_write_down<'a>(
        &self,
        leases: impl Iterator<Item = (i64, &'a Lease)>,
        seconds_min: i64,
        now: Instant,
    ) -> Vec<(i64, i64)> {
        leases
            .filter_map(|(id, lease)| {
                let left = self.remaining(id, now)?;
                let begun = i64::from(left.subsec_nanos() > 0);
                let seconds = i64::try_from(left.as_secs()).unwrap_or(i64::MAX).saturating_add(begun).max(1);
                let written = if lease.remaining == 0 { lease.ttl } else { lease.remaining };
                (written.saturating_sub(seconds) >= seconds_min).then_some((id, seconds))
            })
            .collect()
    }

    /// When [`Self::take_expired`] has something to look at next.
    pub fn next(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse((at, _))| *at)
    }

    fn set(&mut self, id: i64, ttl_seconds: i64, now: Instant) {
        let ttl = Duration::from_secs(u64::try_from(ttl_seconds).unwrap_or(0));
        let deadline = now.checked_add(ttl);
        // A renewed lease stays in the queue with its earlier time: it is looked up when that comes.
        let timer = self.by_id.entry(id).or_insert(Timer { deadline, queued: None });
        timer.deadline = deadline;
        if timer.queued.is_none()
            && let Some(deadline) = deadline
        {
            timer.queued = Some(deadline);
            self.queue.push(Reverse((deadline, id)));
        }
    }
}

/// Deadlines, and leases that were granted and do not run yet: the committer's thread has no clock of the runtime.
#[derive(Debug, Default)]
pub struct LeaseClock {
    deadlines: Deadlines,
    granted: Vec<(i64, i64)>,
}

impl LeaseClock {
    /// Notes a granted lease; it runs from the next [`Self::at`] on.
    pub fn granted(&mut self, id: i64, ttl_seconds: i64) {
        self.granted.push((id, ttl_seconds));
    }

    /// Notes that a lease is gone.
    pub fn revoked(&mut self, id: i64) {
        self.granted.retain(|(granted, _)| *granted != id);
        self.deadlines.stop(id);
    }

    /// The deadlines, as of `now`.
    pub fn at(&mut self, now: Instant) -> &mut Deadlines {
        for (id, ttl_seconds) in self.granted.drain(..) {
            self.deadlines.start(id, ttl_seconds, now);
        }
        &mut self.deadlines
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const AGAIN: Duration = Duration::from_secs(3);
    const NONE: [i64; 0] = [];

    #[test]
    fn a_lease_expires_at_its_deadline_and_not_before() {
        let start = Instant::now();
        let mut deadlines = Deadlines::default();
        deadlines.start(1, 5, start);
        let just_before = start + Duration::from_millis(4999);
        assert_eq!(deadlines.take_expired(just_before, AGAIN, 10), NONE);
        assert_eq!(deadlines.remaining(1, just_before), Some(Duration::from_millis(1)));
        assert_eq!(deadlines.take_expired(start + Duration::from_secs(5), AGAIN, 10), [1]);
    }

    #[test]
    fn a_renewal_starts_the_full_time_again_but_not_after_expiry() {
        let start = Instant::now();
        let mut deadlines = Deadlines::default();
        deadlines.start(1, 5, start);
        let later = start + Duration::from_secs(4);
        assert_eq!(deadlines.renew(1, 5, later), Renewal::Renewed);
        assert_eq!(deadlines.take_expired(start + Duration::from_secs(8), AGAIN, 10), NONE);
        assert_eq!(deadlines.renew(1, 5, later + Duration::from_secs(5)), Renewal::Expired);
        assert_eq!(deadlines.take_expired(later + Duration::from_secs(5), AGAIN, 10), [1]);
    }

    #[test]
    fn an_expired_lease_is_given_out_again_until_it_is_stopped() {
        let start = Instant::now();
        let mut deadlines = Deadlines::default();
        deadlines.start(1, 1, start);
        let due = start + Duration::from_secs(1);
        assert_eq!(deadlines.take_expired(due, AGAIN, 10), [1]);
        assert_eq!(deadlines.take_expired(due, AGAIN, 10), NONE);
        assert_eq!(deadlines.take_expired(due + AGAIN, AGAIN, 10), [1]);
        deadlines.stop(1);
        assert_eq!(deadlines.take_expired(due + 2 * AGAIN, AGAIN, 10), NONE);
    }

    #[test]
    fn an_id_that_is_granted_again_has_only_its_new_deadline() {
        let start = Instant::now();
        let mut deadlines = Deadlines::default();
        deadlines.start(1, 1, start);
        deadlines.stop(1);
        deadlines.start(1, 5, start);
        assert_eq!(deadlines.take_expired(start + Duration::from_secs(4), AGAIN, 10), NONE);
        assert_eq!(deadlines.take_expired(start + Duration::from_secs(5), AGAIN, 10), [1]);
    }

    #[test]
    fn the_limit_leaves_the_rest_for_later() {
        let start = Instant::now();
        let mut deadlines = Deadlines::default();
        for id in 1..=5 {
            deadlines.start(id, 1, start);
        }
        let due = start + Duration::from_secs(1);
        assert_eq!(deadlines.take_expired(due, AGAIN, 3).len(), 3);
        assert_eq!(deadlines.take_expired(due, AGAIN, 3).len(), 2);
    }

    #[test]
    fn what_is_written_down_is_never_less_than_what_is_left() {
        let start = Instant::now();
        let mut deadlines = Deadlines::default();
        for id in 1..=4 {
            deadlines.start(id, 100, start);
        }
        deadlines.start(5, TTL_SECONDS_MAX, start);
        deadlines.renew(2, 100, start + Duration::from_secs(10));
        let lease = |remaining| Lease { ttl: 100, remaining, keys: Default::default() };
        let leases = [lease(0), lease(0), lease(95), lease(89), lease(0), lease(0)];
        let at = |milliseconds, seconds_min| {
            let leases = (1..).zip(&leases);
            deadlines.to_write_down(leases, seconds_min, start + Duration::from_millis(milliseconds))
        };
        assert_eq!(
            at(10_500, 1),
            [(1, 90), (3, 90)],
            "2 was renewed, 4 has less written down, 6 does not run"
        );
        assert_eq!(at(10_500, 6), [(1, 90)]);
        assert_eq!(at(200_000, 1), [(1, 1), (2, 1), (3, 1), (4, 1)]);
    }

    #[test]
    fn the_longest_lease_does_not_overflow() {
        let start = Instant::now();
        let mut deadlines = Deadlines::default();
        deadlines.start(1, TTL_SECONDS_MAX, start);
        assert!(deadlines.remaining(1, start).unwrap() >= Duration::from_secs(8_999_999_999));
        assert_eq!(deadlines.take_expired(start + Duration::from_secs(1 << 32), AGAIN, 10), NONE);
    }
}
