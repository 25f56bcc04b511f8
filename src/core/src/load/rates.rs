//! Counts and rates of one range.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Share;

/// What a write counts, in reads.
const WRITE: f64 = 4.0;
/// Bytes, read or written, that count as one read.
const BYTES: f64 = 16384.0;

/// What was counted at one range.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that read.
    pub reads: u64,
    /// Requests that write.
    pub writes: u64,
    /// Bytes of keys and values given to clients.
    pub read_bytes: u64,
    /// Bytes of keys and values taken from clients.
    pub written_bytes: u64,
    /// Events sent to watchers, one for each watcher.
    pub events: u64,
}

impl Counts {
    /// True if nothing was counted.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

/// Rates of one range or shard, each by the second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Requests that read.
    pub reads: f64,
    /// Requests that write.
    pub writes: f64,
    /// Bytes given to clients.
    pub read_bytes: f64,
    /// Bytes taken from clients.
    pub written_bytes: f64,
    /// Events sent to watchers.
    pub events: f64,
}

impl Rates {
    /// The mean rates while `counts` were counted; nothing for no time.
    pub fn over(counts: &Counts, elapsed: Duration) -> Self {
        let seconds = elapsed.as_secs_f64();
        if seconds <= 0.0 {
            return Self::default();
        }
        let rate = |n: u64| n as f64 / seconds;
        Self {
            reads: rate(counts.reads),
            writes: rate(counts.writes),
            read_bytes: rate(counts.read_bytes),
            written_bytes: rate(counts.written_bytes),
            events: rate(counts.events),
        }
    }

    /// What it costs the shard, in operations a second; see the [module](super).
    pub fn work(&self) -> f64 {
        work(self.reads, self.writes, self.read_bytes + self.written_bytes)
    }

    /// Each figure with two significant digits: enough for people, and what stands still looks so.
    #[must_use]
    pub fn coarse(self) -> Self {
        self.each(coarse)
    }

    fn each(self, f: impl Fn(f64) -> f64) -> Self {
        Self {
            reads: f(self.reads),
            writes: f(self.writes),
            read_bytes: f(self.read_bytes),
            written_bytes: f(self.written_bytes),
            events: f(self.events),
        }
    }
}

impl Share for Rates {
    fn plus(self, other: Self) -> Self {
        Self {
            reads: self.reads + other.reads,
            writes: self.writes + other.writes,
            read_bytes: self.read_bytes + other.read_bytes,
            written_bytes: self.written_bytes + other.written_bytes,
            events: self.events + other.events,
        }
    }

    fn times(self, factor: f64) -> Self {
        self.each(|rate| rate * factor)
    }
}

/// What so many reads, writes and bytes cost a shard, in operations.
pub fn work(reads: f64, writes: f64, bytes: f64) -> f64 {
    reads + WRITE * writes + bytes / BYTES
}

/// What is left of 1 after `elapsed`, if half of it is left after `half_life`.
pub fn decay(elapsed: Duration, half_life: Duration) -> f64 {
    let half_lives = elapsed.as_secs_f64() / half_life.as_secs_f64().max(f64::MIN_POSITIVE);
    0.5f64.powf(half_lives)
}

/// Two significant digits; nothing below a half.
pub(super) fn coarse(rate: f64) -> f64 {
    if !rate.is_finite() || rate < 0.5 {
        return 0.0;
    }
    if rate < 100.0 {
        return rate.round();
    }
    let unit = 10f64.powi(rate.log10().floor() as i32 - 1);
    (rate / unit).round() * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_weighs_writes_and_bytes() {
        let rates =
            Rates { reads: 10.0, writes: 5.0, read_bytes: 16384.0, written_bytes: 16384.0, events: 1e9 };
        assert_eq!(rates.work(), 10.0 + 20.0 + 2.0);
        let counts = Counts { reads: 100, events: 30, ..Counts::default() };
        let rates = Rates::over(&counts, Duration::from_secs(10));
        assert_eq!((rates.reads, rates.events), (10.0, 3.0));
        assert_eq!(Rates::over(&counts, Duration::ZERO), Rates::default());
    }

    #[test]
    fn half_is_left_after_a_half_life_however_it_is_cut() {
        let (minute, second) = (Duration::from_secs(60), Duration::from_secs(1));
        assert_eq!(decay(minute, minute), 0.5);
        assert_eq!(decay(Duration::ZERO, minute), 1.0);
        let steps: f64 = (0..60).map(|_| decay(second, minute)).product();
        assert!((steps - 0.5).abs() < 1e-9, "{steps}");
    }

    #[test]
    fn two_digits_are_enough() {
        let shown = [0.0, 0.4, 0.6, 12.3, 99.4, 123.0, 1256.0, 98_765.0, f64::NAN].map(coarse);
        assert_eq!(shown, [0.0, 0.0, 1.0, 12.0, 99.0, 120.0, 1300.0, 99_000.0, 0.0]);
    }
}
