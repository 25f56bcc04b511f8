//! How much of the time a move may work, so that clients of its shards do not notice.
//!
//! Additive increase, multiplicative decrease, as congestion control does it: after a look at a shard that took longer than
//! it does in quiet times, the share of time that goes to imports is halved; after a quick one it grows by a twentieth.

use std::time::Duration;

/// What the share grows by after a quick look.
const GROWTH: f64 = 0.05;
/// A move goes on however slow a shard is.
const SHARE_MIN: f64 = 1.0 / 32.0;
/// A look is slow above this many times the latency of quiet times, and this much more.
const SLOW_FACTOR: f64 = 2.0;
const SLOW_MORE: Duration = Duration::from_millis(50);
/// What quiet times are is forgotten slowly: a look above it raises it by so much of the difference.
const DRIFT: f64 = 0.02;
/// Longest pause, after however long an import.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The pace of one move.
#[derive(Debug, Clone, PartialEq)]
pub struct Pace {
    /// Of the time, how much may go to imports: (0, 1].
    share: f64,
    /// Latency of the source and of the destination in quiet times, in seconds; `None` before the first look.
    quiet: [Option<f64>; 2],
}

impl Default for Pace {
    fn default() -> Self {
        Self { share: 1.0, quiet: [None; 2] }
    }
}

impl Pace {
    /// Takes note of how long a small read took on source and destination, while imports go on.
    pub fn observe(&mut self, source: Duration, destination: Duration) {
        let mut slow = false;
        for (quiet, latency) in self.quiet.iter_mut().zip([source, destination]) {
            let latency = latency.as_secs_f64();
            let before = quiet.unwrap_or(latency);
            slow |= latency > before * SLOW_FACTOR + SLOW_MORE.as_secs_f64();
            *quiet = Some(if latency < before { latency } else { before + (latency - before) * DRIFT });
        }
        self.share = match slow {
            true => (self.share / 2.0).max(SHARE_MIN),
            false => (self.share + GROWTH).min(1.0),
        };
    }

    /// How long to do nothing after work that took so long.
    pub fn pause(&self, worked: Duration) -> Duration {
        worked.mul_f64(1.0 / self.share - 1.0).min(PAUSE_MAX)
    }

    /// Of the time, how much may go to imports, in percent.
    pub fn percent(&self) -> u32 {
        // Between 3 and 100.
        (self.share * 100.0).round() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_millis(2);

    /// A shard whose small reads take 2 ms, and longer the larger a part of its time goes to imports and to clients.
    fn latency(imports: f64, clients: f64) -> Duration {
        let left = (1.0 - imports * 0.9 - clients).max(0.005);
        QUICK.div_f64(left)
    }

    #[test]
    fn a_quiet_shard_is_used_in_full() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            pace.observe(QUICK, latency(pace.share, 0.0));
            assert_eq!((pace.percent(), pace.pause(Duration::from_secs(1))), (100, Duration::ZERO));
        }
    }

    #[test]
    fn clients_get_their_time_back_and_what_they_leave_is_used() {
        let mut pace = Pace::default();
        pace.observe(QUICK, QUICK);
        let mut shares = Vec::new();
        for _ in 0..200 {
            pace.observe(QUICK, latency(pace.share, 0.5));
            shares.push(pace.share);
        }
        let mean = shares[50..].iter().sum::<f64>() / 150.0;
        assert!((0.2..0.65).contains(&mean), "half of the time is there: {mean}");
        let slow = shares[50..].iter().filter(|&&s| latency(s, 0.5) > QUICK * 4 + SLOW_MORE).count();
        assert!(slow < 50, "slow in {slow} of 150 looks");
        for _ in 0..30 {
            pace.observe(QUICK, latency(pace.share, 0.0));
        }
        assert_eq!(pace.percent(), 100, "clients are gone");
    }

    #[test]
    fn either_shard_slows_a_move_and_none_stops_it() {
        for (source, destination) in [(1, 500), (500, 1)] {
            let mut pace = Pace::default();
            pace.observe(QUICK, QUICK);
            pace.observe(Duration::from_millis(source), Duration::from_millis(destination));
            assert_eq!((pace.percent(), pace.pause(QUICK)), (50, QUICK));
            for _ in 0..10 {
                pace.observe(Duration::from_millis(source), Duration::from_millis(destination));
            }
            assert_eq!(pace.percent(), 3);
            assert_eq!(pace.pause(Duration::from_secs(60)), PAUSE_MAX);
        }
    }

    /// A shard that is slow for good is what it is: after a while that is quiet.
    #[test]
    fn what_is_quiet_is_learned_again() {
        let mut pace = Pace::default();
        pace.observe(QUICK, QUICK);
        for _ in 0..400 {
            pace.observe(QUICK, Duration::from_millis(80));
        }
        assert_eq!(pace.percent(), 100);
    }
}
