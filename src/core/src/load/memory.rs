//! What the planner is told to remember: peaks of the load, and what was moved.

use std::time::Duration;

use super::{apportion::apportion_by, decay};
use crate::keyspace::KeyRange;

/// A peak counts half after this time.
const HOLD: Duration = Duration::from_secs(900);
/// First and longest rest of a range that was moved, before it is moved for load again.
const REST: (Duration, Duration) = (Duration::from_secs(120), Duration::from_secs(4 * 3600));
/// Moves that are remembered; beyond that the oldest is forgotten.
const MOVES_MAX: usize = 4096;
/// Work that is forgotten, in operations a second.
const WORK_MIN: f64 = 0.5;

/// Makes a planner that remembers nothing steady.
///
/// # Guarantees
/// - A shard has to carry the peaks of its load, so the work of a range is its highest of late: what swings within
///   minutes looks as if it stood still, and nothing follows it to and fro.
/// - Keys that were moved rest; each time that they are moved again soon after, they rest twice as long. So whatever the
///   load does, the moves that it causes in a span of time grow with its logarithm only, up to one in four hours for
///   each range.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Sorted by start, without overlap.
    peaks: Vec<(KeyRange, f64)>,
    at: Option<Duration>,
    moves: Vec<Moved>,
}

#[derive(Debug, Clone)]
struct Moved {
    range: KeyRange,
    times: u32,
    until: Duration,
    forgotten: Duration,
}

impl Memory {
    /// The work of ranges as of `now`, a time that goes on from call to call: `work` by index in `map`, sorted, whose ranges are
    /// sorted and tile the keyspace. Gives the highest of late, by index. The peak of a range that was split since is
    /// shared out as the work is now.
    pub fn see(
        &mut self,
        now: Duration,
        work: &[(usize, f64)],
        map: &[impl AsRef<KeyRange>],
    ) -> Vec<(usize, f64)> {
        let left = self.at.map_or(1.0, |at| decay(now.saturating_sub(at), HOLD));
        self.at = Some(now);
        let now_at = |i: usize| work.binary_search_by_key(&i, |(i, _)| *i).map_or(0.0, |at| work[at].1);
        let before = self.peaks.iter().map(|(range, work)| (range, work * left));
        let mut peaks = apportion_by(before, map, |_, i| now_at(i));
        for &(i, work) in work {
            match peaks.binary_search_by_key(&i, |(i, _)| *i) {
                Ok(at) => peaks[at].1 = peaks[at].1.max(work),
                Err(at) => peaks.insert(at, (i, work)),
            }
        }
        peaks.retain(|(_, work)| *work >= WORK_MIN);
        self.peaks = peaks.iter().map(|(i, work)| (map[*i].as_ref().clone(), *work)).collect();
        self.moves.retain(|m| m.forgotten > now);
        peaks
    }

    /// These keys were moved.
    pub fn moved(&mut self, range: &KeyRange, now: Duration) {
        let before = self.moves.iter().filter(|m| m.forgotten > now && m.range.overlaps(range));
        let times = before.map(|m| m.times).max().unwrap_or(0);
        let rest = (REST.0 * 2u32.saturating_pow(times)).min(REST.1);
        self.moves.retain(|m| !range.covers(&m.range));
        if self.moves.len() >= MOVES_MAX {
            self.moves.remove(0);
        }
        let until = now + rest;
        self.moves.push(Moved { range: range.clone(), times: times + 1, until, forgotten: until + rest * 2 });
    }

    /// True if these keys are not to be moved for load now.
    pub fn rests(&self, range: &KeyRange, now: Duration) -> bool {
        self.moves.iter().any(|m| now < m.until && m.range.overlaps(range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn peaks_are_held_and_fade() {
        let map = [KeyRange::new("", "m"), KeyRange::new("m", "")];
        let mut memory = Memory::default();
        assert_eq!(memory.see(seconds(0), &[(1, 800.0)], &map), [(1, 800.0)]);
        assert_eq!(memory.see(seconds(900), &[(0, 10.0), (1, 0.0)], &map), [(0, 10.0), (1, 400.0)]);
        assert_eq!(memory.see(seconds(900), &[(1, 500.0)], &map), [(0, 10.0), (1, 500.0)]);
        // The range is split; the peak is shared out as the work is.
        let map = [KeyRange::new("", "m"), KeyRange::new("m", "t"), KeyRange::new("t", "")];
        let work = [(1, 5.0), (2, 20.0)];
        assert_eq!(memory.see(seconds(900), &work, &map), [(0, 10.0), (1, 100.0), (2, 400.0)]);
        assert!(memory.see(seconds(100_000), &[], &map).is_empty());
    }

    #[test]
    fn keys_rest_longer_each_time_that_they_are_moved_soon_again() {
        let (range, part) = (KeyRange::new("a", "m"), KeyRange::new("b", "c"));
        let mut memory = Memory::default();
        let mut now = seconds(1000);
        let mut rests = Vec::new();
        for _ in 0..9 {
            memory.moved(&range, now);
            let begun = now;
            while memory.rests(&part, now) {
                now += seconds(60);
            }
            rests.push((now - begun).as_secs());
        }
        assert_eq!(rests, [120, 240, 480, 960, 1920, 3840, 7680, 14_400, 14_400]);
        assert!(!memory.rests(&KeyRange::new("m", ""), seconds(1000)));
        // Long after, it begins anew.
        now += seconds(100_000);
        memory.moved(&range, now);
        assert!(memory.rests(&range, now + seconds(119)) && !memory.rests(&range, now + seconds(120)));
    }
}
