//! One proxy's view of the load: rates that forget slowly, from counts that only grow.

use std::time::Duration;

use bytes::Bytes;

use super::{Counts, Rates, Share, Sketch, apportion, decay, rates::coarse};
use crate::{
    keyspace::KeyRange,
    records::{KeyLoad, LoadRecord, RangeLoad, Record},
};

/// Ranges in a report at most.
pub const RANGES_MAX: usize = 512;
/// Keys in a report at most, and counters of the sketch behind it.
pub const KEYS_MAX: usize = 256;
/// Bytes of a report at most.
pub const REPORT_BYTES_MAX: usize = 64 << 10;
/// Longer keys are not told: a report is bounded.
const KEY_BYTES_MAX: usize = 512;
/// Ranges and keys with less work, and fewer events, than this a second are not told.
const WORK_MIN: f64 = 1.0;

/// What was counted at one range since the last time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// The keys.
    pub range: KeyRange,
    /// The counts.
    pub counts: Counts,
}

/// Rates of all ranges that have any, and the keys with most work. Each is a mean over the past in which what was a
/// half-life ago counts half: a load has to last for about that long to be seen in full.
#[derive(Debug, Clone)]
pub struct Book {
    half_life: Duration,
    /// Sorted by start, without overlap.
    ranges: Vec<(KeyRange, Rates)>,
    keys: Sketch,
}

impl Book {
    /// Knows nothing yet.
    pub fn new(half_life: Duration) -> Self {
        Self { half_life, ranges: Vec::new(), keys: Sketch::new(KEYS_MAX) }
    }

    /// Takes in what was counted in the time that has `elapsed` since the last call, by any map, and a sample of it;
    /// `map` are the ranges as they are now, sorted.
    pub fn tick(
        &mut self,
        elapsed: Duration,
        counted: &[Counted],
        sampled: &Sketch,
        map: &[impl AsRef<KeyRange>],
    ) {
        if elapsed.is_zero() {
            return;
        }
        let left = decay(elapsed, self.half_life);
        self.keys.scale(left, WORK_MIN / 4.0);
        self.keys.absorb(sampled, (1.0 - left) / elapsed.as_secs_f64());
        let keys = self.sampled();
        let old = self.ranges.iter().map(|(range, rates)| (range, rates.times(left)));
        let new = counted.iter().map(|c| (&c.range, Rates::over(&c.counts, elapsed).times(1.0 - left)));
        let laid = apportion(old.chain(new), &keys, map);
        let told = laid.into_iter().filter(|(_, rates)| rates.work() + rates.events >= WORK_MIN / 4.0);
        self.ranges = told.map(|(i, rates)| (map[i].as_ref().clone(), rates)).collect();
    }

    /// What to tell: the busiest of each, bounded in number and bytes.
    pub fn report(&self) -> LoadRecord {
        let mut busiest: Vec<&(KeyRange, Rates)> =
            self.ranges.iter().filter(|(_, rates)| rates.work() + rates.events >= WORK_MIN).collect();
        busiest.sort_by(|(a, of_a), (b, of_b)| {
            of_b.work().total_cmp(&of_a.work()).then_with(|| a.start.cmp(&b.start))
        });
        busiest.truncate(RANGES_MAX);
        loop {
            let mut record =
                LoadRecord { ranges: busiest.iter().map(|(r, l)| told(r, l)).collect(), keys: self.keys() };
            record.ranges.sort_by(|a, b| a.range.start.cmp(&b.range.start));
            // Boundaries may be long: then fewer of them. Halving ends, as the keys alone always fit.
            if busiest.is_empty() || record.encode().len() <= REPORT_BYTES_MAX {
                return record;
            }
            busiest.truncate(busiest.len() / 2);
        }
    }

    /// Sampled keys and their work, sorted.
    fn sampled(&self) -> Vec<(Bytes, f64)> {
        let mut keys: Vec<_> = self.keys.counters().iter().map(|c| (c.key.clone(), c.work)).collect();
        keys.sort_by(|a, b| a.0.cmp(&b.0));
        keys
    }

    fn keys(&self) -> Vec<KeyLoad> {
        let counters = self.keys.counters().iter();
        let mut busiest: Vec<_> =
            counters.filter(|c| c.work >= WORK_MIN && c.key.len() <= KEY_BYTES_MAX).collect();
        busiest.sort_by(|a, b| b.work.total_cmp(&a.work).then_with(|| a.key.cmp(&b.key)));
        let mut room = REPORT_BYTES_MAX / 2;
        busiest.retain(|counter| {
            // In hexadecimal, with names and figures around it.
            let bytes = counter.key.len() * 2 + 64;
            let fits = bytes <= room;
            room = room.saturating_sub(bytes);
            fits
        });
        let key =
            |c: &super::Counter| KeyLoad { key: c.key.clone(), work: whole(c.work), sure: whole(c.sure()) };
        let mut keys: Vec<KeyLoad> = busiest.into_iter().map(key).collect();
        keys.sort_by(|a, b| a.key.cmp(&b.key));
        keys
    }
}

fn told(range: &KeyRange, rates: &Rates) -> RangeLoad {
    RangeLoad {
        range: range.clone(),
        reads: whole(rates.reads),
        writes: whole(rates.writes),
        read_bytes: whole(rates.read_bytes),
        written_bytes: whole(rates.written_bytes),
        events: whole(rates.events),
    }
}

/// Two digits: a load that stands still is told once.
fn whole(rate: f64) -> u64 {
    coarse(rate) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_secs(10);

    fn map(starts: &[&'static str]) -> Vec<KeyRange> {
        let end = |i: usize| starts.get(i + 1).copied().unwrap_or("");
        starts.iter().enumerate().map(|(i, start)| KeyRange::new(*start, end(i))).collect()
    }

    fn reads(range: &KeyRange, reads: u64) -> Counted {
        Counted { range: range.clone(), counts: Counts { reads, ..Counts::default() } }
    }

    #[test]
    fn a_load_is_seen_in_half_after_a_half_life_and_forgotten_in_time() {
        let map = map(&["", "m"]);
        let mut book = Book::new(Duration::from_secs(60));
        let none = Sketch::new(1);
        for _ in 0..6 {
            book.tick(TICK, &[reads(&map[1], 2000)], &none, &map);
        }
        let told = book.report();
        assert_eq!(told.ranges.len(), 1);
        assert_eq!((told.ranges[0].range.clone(), told.ranges[0].reads), (map[1].clone(), 100));
        for _ in 0..60 {
            book.tick(TICK, &[reads(&map[1], 2000)], &none, &map);
        }
        assert_eq!(book.report().ranges[0].reads, 200);
        assert_eq!(book.report(), book.report());
        let mut ticks = 0;
        while book.report() != LoadRecord::default() {
            book.tick(TICK, &[], &none, &map);
            ticks += 1;
        }
        // Eight half-lives from 200 to below 1.
        assert_eq!(ticks, 46);
    }

    #[test]
    fn counts_by_an_older_map_go_to_the_ranges_of_today() {
        let (old, new) = (map(&[""]), map(&["", "m"]));
        let mut book = Book::new(Duration::from_secs(60));
        let mut sampled = Sketch::new(8);
        sampled.offer(b"a", 3000.0);
        sampled.offer(b"z", 9000.0);
        for _ in 0..100 {
            book.tick(TICK, &[reads(&old[0], 4000)], &sampled, &new);
        }
        let told: Vec<_> = book.report().ranges.into_iter().map(|r| (r.range, r.reads)).collect();
        assert_eq!(told, [(new[0].clone(), 100), (new[1].clone(), 300)]);
        let keys: Vec<_> = book.report().keys.into_iter().map(|k| (k.key, k.work, k.sure)).collect();
        assert_eq!(keys, [(Bytes::from_static(b"a"), 300, 300), (Bytes::from_static(b"z"), 900, 900)]);
    }

    #[test]
    fn a_report_is_bounded_and_has_the_busiest() {
        let starts: Vec<Bytes> =
            (0..2000).map(|i| format!("/{}/{i:05}/", "long".repeat(20)).into()).collect();
        let end = |i: usize| starts.get(i + 1).cloned().unwrap_or_default();
        let map: Vec<KeyRange> = (0..2000)
            .map(|i| KeyRange::new(if i == 0 { Bytes::new() } else { starts[i].clone() }, end(i)))
            .collect();
        let mut book = Book::new(TICK);
        let mut sampled = Sketch::new(KEYS_MAX);
        for start in &starts {
            sampled.offer(start, 1000.0);
        }
        sampled.offer(&[b'x'; KEY_BYTES_MAX + 1], 1e9);
        let counted: Vec<Counted> =
            map.iter().zip(1u64..).map(|(range, i)| reads(range, 1000 + i * 100)).collect();
        book.tick(TICK, &counted, &sampled, &map);
        let report = book.report();
        assert!(report.encode().len() <= REPORT_BYTES_MAX, "{}", report.encode().len());
        assert!(
            report.ranges.len() >= 64 && report.keys.len() >= 64,
            "{} {}",
            report.ranges.len(),
            report.keys.len()
        );
        assert!(report.ranges.windows(2).all(|w| w[0].range.start < w[1].range.start));
        assert!(report.ranges.iter().all(|told| told.range.start >= starts[2000 - RANGES_MAX]));
        assert!(report.keys.iter().all(|told| told.key.len() <= KEY_BYTES_MAX));
    }
}
