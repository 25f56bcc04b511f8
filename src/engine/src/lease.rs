//! When leases expire. Pure: the caller brings the time.
//!
//! The store knows which leases exist, what is attached to them, and how much time each had left when that was last
//! written down: when the engine is closed, and from time to time for leases that nobody renews, as etcd's lease
//! checkpoints do. This table knows only deadlines, which are not durable. After a restart a lease runs what is written
//! down, or its full time: it may expire late, never early.
//!
//! # Why never early
//! What is to be written down says after which renewal it was looked at ([`Left`]), and is dropped when there was another
//! one by the time the committer comes to it. From the moment it was looked at, the lease is marked here: a renewal that
//! finds the mark has the full time written down, and is answered only after that.

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
    /// How often it was renewed.
    renewals: u64,
    /// After how many renewals less than its full time was last handed out to be written down, unless it was all of it
    /// since.
    marked: Option<u64>,
}

/// How much time a lease has left, to be written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// The lease.
    pub id: i64,
    /// Seconds; 0 for all of its time.
    pub seconds: i64,
    /// How often it had been renewed when that was so.
    pub renewals: u64,
}

/// What a renewal found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// The lease runs its full time from now on.
    Renewed {
        /// Where less than that is, or may get, written down: what is to be written down before the renewal counts.
        /// [`Deadlines::written`] follows it.
        to_write_down: Option<Left>,
    },
    /// Its time is over; it is being revoked and cannot come back.
    Expired,
}

impl Deadlines {
    /// Lets a lease go on after a restart with the time that was written down.
    pub fn resume(&mut self, id: i64, seconds: i64, now: Instant) {
        self.set(id, seconds, now);
        if let Some(timer) = self.by_id.get_mut(&id) {
            timer.marked = Some(timer.renewals);
        }
    }

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
        let to_write_down = self.by_id.get_mut(&id).and_then(|timer| {
            timer.renewals += 1;
            timer.marked.map(|_| Left { id, seconds: 0, renewals: timer.renewals })
        });
        Renewal::Renewed { to_write_down }
    }

    /// Notes that the full time of a lease is written down, as a renewal wanted it.
    pub fn written(&mut self, full: Left) {
        if let Some(timer) = self.by_id.get_mut(&full.id) {
            // What was handed out after that renewal is behind it in the log.
            timer.marked = timer.marked.filter(|marked| *marked >= full.renewals);
        }
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
        &mut self,
        leases: impl Iterator<Item = (i64, &'a Lease)>,
        seconds_min: i64,
        now: Instant,
    ) -> Vec<Left> {
        leases
            .filter_map(|(id, lease)| {
                let left = self.remaining(id, now)?;
                let begun = i64::from(left.subsec_nanos() > 0);
                let seconds = i64::try_from(left.as_secs()).unwrap_or(i64::MAX).saturating_add(begun).max(1);
                let written = if lease.remaining == 0 { lease.ttl } else { lease.remaining };
                if written.saturating_sub(seconds) < seconds_min {
                    return None;
                }
                let timer = self.by_id.get_mut(&id)?;
                timer.marked = Some(timer.renewals);
                Some(Left { id, seconds, renewals: timer.renewals })
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
        let timer =
            self.by_id.entry(id).or_insert(Timer { deadline, queued: None, renewals: 0, marked: None });
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

    /// Whether a lease was not renewed since: what it had left is still not more than it has.
    pub fn is_current(&self, left: Left) -> bool {
        left.seconds == 0
            || self.deadlines.by_id.get(&left.id).is_some_and(|timer| timer.renewals == left.renewals)
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
        assert_eq!(deadlines.renew(1, 5, later), Renewal::Renewed { to_write_down: None });
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
        let mut at = |milliseconds, seconds_min| -> Vec<(i64, i64)> {
            let now = start + Duration::from_millis(milliseconds);
            let left = deadlines.to_write_down((1..).zip(&leases), seconds_min, now);
            left.into_iter().map(|left| (left.id, left.seconds)).collect()
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
    fn whatever_the_order_a_renewal_is_not_followed_by_less_than_the_full_time() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let lease = Lease { ttl: 100, remaining: 0, keys: Default::default() };
        let mut clock = LeaseClock::default();
        clock.at(start).start(1, 100, start);
        let renew = |clock: &mut LeaseClock, seconds| match clock.at(at(seconds)).renew(1, 100, at(seconds)) {
            Renewal::Renewed { to_write_down } => to_write_down,
            Renewal::Expired => panic!("expired"),
        };
        let look = |clock: &mut LeaseClock, seconds| {
            clock.at(at(seconds)).to_write_down([(1, &lease)].into_iter(), 1, at(seconds))[0]
        };
        assert_eq!(renew(&mut clock, 1), None);
        // Looked at, and renewed before it was written down: it is not, and the renewal does not rely on that.
        let early = look(&mut clock, 10);
        let full = renew(&mut clock, 11).unwrap();
        assert!(!clock.is_current(early) && clock.is_current(full));
        // Meanwhile it is looked at again: that comes behind the full time, and the next renewal has to know.
        let late = look(&mut clock, 20);
        clock.at(start).written(full);
        assert!(clock.is_current(late));
        let full = renew(&mut clock, 21).unwrap();
        clock.at(start).written(full);
        assert_eq!(renew(&mut clock, 22), None, "all of it is written down");
        // After a restart with less.
        let mut clock = LeaseClock::default();
        clock.at(start).resume(1, 30, start);
        assert_eq!(clock.at(start).remaining(1, at(10)), Some(Duration::from_secs(20)));
        assert!(renew(&mut clock, 10).is_some());
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
