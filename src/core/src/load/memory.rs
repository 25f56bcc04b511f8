//! What the planner is told to remember: peaks of the load, and what was moved.
//!
//! Both outlive the process that leads: [`Memory::told`] and [`Memory::recall`]. Without the peaks a new leader would follow a
//! load that swings, without the rests it would do so at once.

use std::time::Duration;

use super::{apportion::apportion_by, decay};
use crate::{
    keyspace::KeyRange,
    records::{MemoryRecord, RangePeak, RangeRest},
};

/// A peak counts half after this time.
const HOLD: Duration = Duration::from_secs(900);
/// First and longest rest of a range that was moved, before it is moved for load again.
const REST: (Duration, Duration) = (Duration::from_secs(120), Duration::from_secs(4 * 3600));
/// Moves that are remembered; beyond that the oldest is forgotten.
const MOVES_MAX: usize = 4096;
/// Bytes of keys of each kind that one process tells another; what was moved longest ago and what has least load is left
/// out first.
const TOLD_BYTES_MAX: usize = 64 << 10;
/// Work that one process tells another at least, in operations a second: what is less is noise.
const TOLD_WORK_MIN: f64 = 5.0;
/// Work that is forgotten, in operations a second.
const WORK_MIN: f64 = 0.5;

/// Makes a planner that remembers nothing steady.
///
/// # Guarantees
/// - A shard has to carry the peaks of its load, so the work of a range is its highest of late: what swings within
///   minutes looks as if it stood still, and nothing follows it to and fro.
/// - Keys that were moved rest; each time that they are moved again soon after, they rest twice as long. So whatever the
///   load does, the moves that it causes in a span of time grow with its logarithm only, up to one in four hours for
///   each range; and so they do whoever leads, as long as each tells the next.
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
        self.moves.push(Moved {
            range: range.clone(),
            times: times.saturating_add(1),
            until,
            forgotten: until + rest * 2,
        });
    }

    /// What the next one that leads has to know; without what people aborted, which is not known here.
    pub fn told(&self, now: Duration) -> MemoryRecord {
        let mut bytes = 0;
        let seconds = |until: Duration| until.saturating_sub(now).as_millis().div_ceil(1000) as u64;
        let newest_first = self.moves.iter().rev().filter(|m| m.forgotten > now);
        let told = newest_first.take_while(|m| {
            bytes += m.range.start.len() + m.range.end.len();
            bytes <= TOLD_BYTES_MAX
        });
        let mut rests: Vec<RangeRest> = told
            .map(|m| RangeRest {
                range: m.range.clone(),
                times: m.times,
                rest_s: seconds(m.until),
                kept_s: seconds(m.forgotten),
            })
            .collect();
        rests.reverse();
        let left = self.at.map_or(1.0, |at| decay(now.saturating_sub(at), HOLD));
        let mut busiest: Vec<&(KeyRange, f64)> = self.peaks.iter().collect();
        busiest.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.start.cmp(&b.0.start)));
        let mut bytes = 0;
        let told = busiest.into_iter().take_while(|(range, work)| {
            bytes += range.start.len() + range.end.len();
            bytes <= TOLD_BYTES_MAX && work * left >= TOLD_WORK_MIN
        });
        let mut peaks: Vec<RangePeak> = told
            .map(|(range, work)| RangePeak { range: range.clone(), work: (work * left).round() as u64 })
            .collect();
        peaks.sort_by(|a, b| a.range.start.cmp(&b.range.start));
        MemoryRecord { rests, peaks, aborted: Vec::new() }
    }

    /// Takes over what another one told: its peaks in place of those known here, its rests beside them. All goes on as if no time
    /// had passed since: it was told a minute ago at most, while somebody led.
    pub fn recall(&mut self, told: &MemoryRecord, now: Duration) {
        self.peaks.clear();
        for RangePeak { range, work } in &told.peaks {
            let is_after = |(last, _): &(KeyRange, f64)| !last.end.is_empty() && last.end <= range.start;
            if self.peaks.last().is_none_or(is_after) {
                self.peaks.push((range.clone(), *work as f64));
            }
        }
        self.at = Some(now);
        let known = std::mem::take(&mut self.moves);
        let recalled = told.rests.iter().map(|rest| {
            let span = |seconds: u64, most: Duration| now + Duration::from_secs(seconds).min(most);
            Moved {
                range: rest.range.clone(),
                times: rest.times,
                until: span(rest.rest_s, REST.1),
                forgotten: span(rest.kept_s, REST.1 * 3),
            }
        });
        self.moves
            .extend(recalled.filter(|r| !known.iter().any(|k| k.range == r.range && k.until > r.until)));
        let news = known.into_iter().filter(|k| k.forgotten > now);
        let news: Vec<Moved> = news.filter(|k| !self.moves.iter().any(|m| m.range == k.range)).collect();
        self.moves.extend(news);
        let spare = self.moves.len().saturating_sub(MOVES_MAX);
        self.moves.drain(..spare);
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
    fn the_next_one_goes_on_with_what_it_is_told() {
        let (range, other) = (KeyRange::new("a", "m"), KeyRange::new("m", "t"));
        let mut memory = Memory::default();
        memory.moved(&range, seconds(0));
        memory.moved(&range, seconds(200));
        memory.moved(&other, seconds(210));
        // The second rest of the one is until 440, the first of the other until 330.
        let told = memory.told(seconds(300));
        let shown: Vec<(u32, u64, u64)> = told.rests.iter().map(|r| (r.times, r.rest_s, r.kept_s)).collect();
        assert_eq!(shown, [(2, 140, 620), (1, 30, 270)]);
        let mut next = Memory::default();
        next.recall(&told, seconds(5000));
        assert!(next.rests(&range, seconds(5139)) && !next.rests(&range, seconds(5140)));
        assert!(next.rests(&other, seconds(5029)) && !next.rests(&other, seconds(5030)));
        // The third rest is as long as if nobody had taken over.
        next.moved(&range, seconds(5200));
        assert!(next.rests(&range, seconds(5200 + 479)) && !next.rests(&range, seconds(5200 + 480)));
        // What is known here and is longer stays; what is told twice is known once.
        next.recall(&told, seconds(5201));
        next.recall(&told, seconds(5201));
        assert!(next.rests(&range, seconds(5200 + 479)));
        assert_eq!(next.told(seconds(5201)).rests.len(), 2);
        // All is forgotten in the end.
        assert!(next.told(seconds(100_000)).rests.is_empty());
    }

    #[test]
    fn the_next_one_knows_the_peaks() {
        let map = [KeyRange::new("", "g"), KeyRange::new("g", "m"), KeyRange::new("m", "")];
        let mut memory = Memory::default();
        memory.see(seconds(0), &[(0, 800.0), (1, 6.0), (2, 90.0)], &map);
        let told = memory.told(seconds(900));
        let peak = |i: usize, work: u64| RangePeak { range: map[i].clone(), work };
        assert_eq!(told.peaks, [peak(0, 400), peak(2, 45)], "half is left, and noise is not told");
        let mut next = Memory::default();
        next.see(seconds(0), &[(1, 70.0)], &map);
        next.recall(&told, seconds(5000));
        assert_eq!(next.see(seconds(5900), &[], &map), [(0, 200.0), (2, 22.5)]);
        // Of peaks that overlap the first counts.
        let told = MemoryRecord {
            rests: Vec::new(),
            peaks: vec![peak(1, 50), peak(0, 60), peak(2, 70), peak(2, 80)],
            ..MemoryRecord::default()
        };
        next.recall(&told, seconds(6000));
        assert_eq!(next.see(seconds(6000), &[], &map), [(1, 50.0), (2, 70.0)]);
    }

    #[test]
    fn nonsense_that_is_told_does_no_harm() {
        let rest = |start: String, seconds: u64| RangeRest {
            range: KeyRange::new(start, ""),
            times: u32::MAX,
            rest_s: seconds,
            kept_s: seconds,
        };
        let mut memory = Memory::default();
        let rests = (0..6000).map(|i| rest(format!("{i:04}{}", "k".repeat(100)), u64::MAX)).collect();
        memory.recall(&MemoryRecord { rests, ..MemoryRecord::default() }, seconds(7));
        assert!(memory.rests(&KeyRange::whole(), seconds(7 + 14_399)));
        assert!(!memory.rests(&KeyRange::whole(), seconds(7 + 14_400)));
        let told = memory.told(seconds(8));
        assert!(told.rests.len() < 1000, "{} ranges", told.rests.len());
        assert!(told.rests.last().is_some_and(|r| r.range.start.starts_with(b"5999")), "the newest are told");
        memory.moved(&KeyRange::whole(), seconds(9));
        assert_eq!(memory.told(seconds(10)).rests.len(), 1);
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
