//! When `engine` compacts by itself, as etcd does (server/etcdserver/api/v3compactor of etcd 3.7). Pure: the caller
//! brings time and revisions.

use std::{collections::VecDeque, time::Duration};

use anyhow::{Context, Result, bail};
use sharded_etcd_crd::units::TimeSpan;

use crate::cli::CompactionMode;

/// A longer retention is acted on that often.
const INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// A retention of revisions is acted on that often.
const REVISIONS_INTERVAL: Duration = Duration::from_secs(300);
/// In one interval the revision is looked at this often.
const SAMPLES: u32 = 10;

/// How much history is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// That of so much time.
    Time(Duration),
    /// That of so many revisions.
    Revisions(i64),
}

impl Retention {
    /// What mode and retention of the command line say; None keeps all history.
    ///
    /// # Errors
    /// If they make no sense together.
    pub fn of(mode: CompactionMode, text: &str) -> Result<Option<Self>> {
        let number = text.parse::<i64>().ok();
        Ok(match (mode, number) {
            (_, Some(0)) => None,
            (CompactionMode::Revision, Some(revisions)) if revisions > 0 => Some(Self::Revisions(revisions)),
            (CompactionMode::Revision, _) => {
                bail!("--auto-compaction-retention {text:?} is no number of revisions")
            }
            (CompactionMode::Periodic, Some(hours)) => {
                let hours = u64::try_from(hours).ok().and_then(|hours| hours.checked_mul(3600));
                let seconds = hours.context("--auto-compaction-retention is no number of hours")?;
                Some(Self::Time(Duration::from_secs(seconds)))
            }
            (CompactionMode::Periodic, None) => {
                let time = TimeSpan(text.to_owned()).duration().map_err(anyhow::Error::msg);
                let time = time.context("--auto-compaction-retention")?;
                (!time.is_zero()).then_some(Self::Time(time))
            }
        })
    }
}

/// What is compacted when.
///
/// # Expected flow
/// At the start, and again after each [`Self::interval`]: [`Self::due`], and if there is something, and it was
/// compacted, [`Self::compacted`]; what was not is due again the next time. Then [`Self::sample`].
#[derive(Debug)]
pub struct Schedule {
    retention: Retention,
    /// The revisions of the retention, the oldest first.
    samples: VecDeque<i64>,
    /// What was compacted last.
    last: i64,
    /// When, since the start.
    last_at: Duration,
    /// How long after that the next compaction is due.
    wait: Duration,
}

impl Schedule {
    /// Begins now.
    pub fn new(retention: Retention) -> Self {
        let wait = match retention {
            // The first time when there is a history of that age.
            Retention::Time(time) => time,
            Retention::Revisions(_) => Duration::ZERO,
        };
        Self { retention, samples: VecDeque::new(), last: 0, last_at: Duration::ZERO, wait }
    }

    /// How long to wait between two looks.
    pub fn interval(&self) -> Duration {
        match self.retention {
            Retention::Time(time) => (time.min(INTERVAL_MAX) / SAMPLES).max(Duration::from_millis(1)),
            Retention::Revisions(_) => REVISIONS_INTERVAL,
        }
    }

    /// Notes the newest revision.
    pub fn sample(&mut self, newest: i64) {
        let Retention::Time(time) = self.retention else { return };
        let kept = (time.as_nanos() / self.interval().as_nanos()) as usize + 1;
        self.samples.push_back(newest);
        if self.samples.len() > kept {
            self.samples.pop_front();
        }
    }

    /// The revision to compact at that time since the start, if there is one.
    pub fn due(&mut self, at: Duration, newest: i64) -> Option<i64> {
        let revision = match self.retention {
            Retention::Revisions(kept) => newest - kept,
            Retention::Time(time) => {
                let oldest = *self.samples.front()?;
                if at.saturating_sub(self.last_at) < self.wait || oldest == self.last {
                    return None;
                }
                self.wait = time.min(INTERVAL_MAX);
                oldest
            }
        };
        (revision > 0 && revision != self.last).then_some(revision)
    }

    /// Notes that a revision was compacted, also if somebody else did it.
    pub fn compacted(&mut self, at: Duration, revision: i64) {
        self.last = revision;
        self.last_at = at;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn retentions() {
        let of = |mode, text| Retention::of(mode, text).unwrap();
        assert_eq!(of(CompactionMode::Periodic, "0"), None);
        assert_eq!(of(CompactionMode::Periodic, "0s"), None);
        assert_eq!(of(CompactionMode::Periodic, "2"), Some(Retention::Time(Duration::from_secs(7200))));
        assert_eq!(of(CompactionMode::Periodic, "30m"), Some(Retention::Time(Duration::from_secs(1800))));
        assert_eq!(of(CompactionMode::Revision, "1000"), Some(Retention::Revisions(1000)));
        for (mode, text) in [
            (CompactionMode::Revision, "30m"),
            (CompactionMode::Revision, "-1"),
            (CompactionMode::Periodic, "-1"),
            (CompactionMode::Periodic, "soon"),
        ] {
            assert!(Retention::of(mode, text).is_err(), "{text}");
        }
    }

    /// Minutes and revisions of what is compacted, where the revision is the minute, but for the failures.
    fn run(retention: Retention, minutes: u64, fails_at: &[u64]) -> Vec<(u64, i64)> {
        let mut schedule = Schedule::new(retention);
        let (mut at, mut done) = (Duration::ZERO, Vec::new());
        let revision = |at: Duration| (at.as_secs() / 60) as i64 + 1;
        schedule.sample(revision(at));
        loop {
            at += schedule.interval();
            let minute = at.as_secs() / 60;
            if minute > minutes {
                return done;
            }
            if let Some(due) = schedule.due(at, revision(at))
                && !fails_at.contains(&minute)
            {
                done.push((minute, due - 1));
                schedule.compacted(at, due);
            }
            schedule.sample(revision(at));
        }
    }

    #[test]
    fn first_after_the_retention_then_each_interval() {
        // What is that old, and up to one look older, is compacted; within an hour the interval is the retention.
        let half = Retention::Time(Duration::from_secs(30 * 60));
        assert_eq!(run(half, 100, &[]), [(30, 0), (60, 27), (90, 57)]);
        let hour = Retention::Time(Duration::from_secs(3600));
        assert_eq!(run(hour, 200, &[]), [(60, 0), (120, 54), (180, 114)]);
        // Beyond it is an hour.
        let day = Retention::Time(Duration::from_secs(24 * 3600));
        assert_eq!(run(day, 26 * 60, &[]), [(24 * 60, 0), (25 * 60, 54), (26 * 60, 114)]);
    }

    #[test]
    fn a_failed_compaction_is_tried_again_at_the_next_look() {
        let hour = Retention::Time(Duration::from_secs(3600));
        assert_eq!(run(hour, 190, &[120, 126]), [(60, 0), (132, 66)]);
        assert_eq!(run(hour, 192, &[120, 126]), [(60, 0), (132, 66), (192, 126)]);
    }

    #[test]
    fn a_number_of_revisions_is_kept() {
        assert_eq!(run(Retention::Revisions(7), 20, &[]), [(10, 3), (15, 8), (20, 13)]);
        assert_eq!(run(Retention::Revisions(7), 20, &[15]), [(10, 3), (20, 13)]);
    }

    #[test]
    fn nothing_is_compacted_twice() {
        for retention in [Retention::Time(Duration::from_secs(60)), Retention::Revisions(3)] {
            let mut schedule = Schedule::new(retention);
            let mut at = Duration::ZERO;
            let mut done = Vec::new();
            for _ in 0..100 {
                schedule.sample(5);
                at += schedule.interval();
                if let Some(revision) = schedule.due(at, 5) {
                    schedule.compacted(at, revision);
                    done.push(revision);
                }
            }
            assert_eq!(done.len(), 1, "{retention:?}: {done:?}");
        }
    }
}
