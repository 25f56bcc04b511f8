//! When a process that is no shard manager keeps the log short.

use std::time::Duration;

/// What a process sees of meta, as meta's revisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Log position of the newest checkpoint; 0 if there is none.
    pub checkpoint: i64,
    /// Log position that the process has folded.
    pub folded: i64,
    /// Meta's newest revision.
    pub meta: i64,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// An entry that says nothing: meta can only be compacted up to a position of the log, and the log stands still.
    Entry,
    /// A checkpoint.
    Checkpoint,
}

/// Watches whether anybody writes checkpoints.
///
/// The shard manager writes one whenever there is something new, so a newest checkpoint that stays the same for long while
/// the log goes on means that there is no manager. Which process is first to act is left to chance: all look at times of
/// their own, and a new checkpoint, whoever wrote it, lets all others wait for their full patience again.
#[derive(Debug, Clone)]
pub struct Vigil {
    patience: Duration,
    grown_max: i64,
    /// The newest checkpoint, and when it was first seen.
    since: Option<(i64, Duration)>,
}

impl Vigil {
    /// One that acts once the newest checkpoint has been the same for `patience`, or once meta has gone `grown_max`
    /// revisions beyond it, however long that took.
    pub fn new(patience: Duration, grown_max: i64) -> Self {
        Self { patience, grown_max, since: None }
    }

    /// What is due at `now`, the time since any fixed moment.
    pub fn look(&mut self, now: Duration, seen: Seen) -> Due {
        let since = match self.since {
            Some((checkpoint, at)) if checkpoint == seen.checkpoint => at,
            _ => now,
        };
        self.since = Some((seen.checkpoint, since));
        let is_large = seen.meta.saturating_sub(seen.checkpoint) >= self.grown_max;
        let is_old = now.saturating_sub(since) >= self.patience;
        match seen.folded > seen.checkpoint {
            true if is_large || is_old => Due::Checkpoint,
            // What grew is not the log; only a checkpoint of a process that is ahead of this one could help as well.
            false if is_large && seen.folded == seen.checkpoint => Due::Entry,
            _ => Due::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(checkpoint: i64, folded: i64, meta: i64) -> Seen {
        Seen { checkpoint, folded, meta }
    }

    fn vigil() -> Vigil {
        Vigil::new(Duration::from_secs(300), 1000)
    }

    fn look(vigil: &mut Vigil, seconds: u64, seen: Seen) -> Due {
        vigil.look(Duration::from_secs(seconds), seen)
    }

    #[test]
    fn acts_when_nobody_has_for_as_long_as_it_has_patience() {
        let mut vigil = vigil();
        assert_eq!(look(&mut vigil, 5000, seen(10, 20, 30)), Due::Nothing, "it has only begun to look");
        assert_eq!(look(&mut vigil, 5299, seen(10, 25, 40)), Due::Nothing);
        assert_eq!(look(&mut vigil, 5300, seen(10, 25, 40)), Due::Checkpoint);
        assert_eq!(look(&mut vigil, 5301, seen(10, 25, 40)), Due::Checkpoint, "until it is done");
    }

    #[test]
    fn waits_anew_whenever_somebody_has() {
        let mut vigil = vigil();
        for (seconds, checkpoint) in [(0, 10), (299, 20), (598, 30), (897, 40)] {
            assert_eq!(look(&mut vigil, seconds, seen(checkpoint, checkpoint + 5, 50)), Due::Nothing);
        }
        assert_eq!(look(&mut vigil, 1196, seen(40, 45, 50)), Due::Nothing);
        assert_eq!(look(&mut vigil, 1197, seen(40, 45, 50)), Due::Checkpoint);
    }

    #[test]
    fn a_log_that_grows_fast_is_cut_at_once() {
        let mut vigil = vigil();
        assert_eq!(look(&mut vigil, 0, seen(10, 900, 1009)), Due::Nothing);
        assert_eq!(look(&mut vigil, 1, seen(10, 900, 1010)), Due::Checkpoint);
        assert_eq!(look(&mut vigil, 2, seen(900, 901, 1011)), Due::Nothing, "it was done");
        assert_eq!(look(&mut vigil, 3, seen(0, 5, 1000)), Due::Checkpoint, "there never was one");
    }

    #[test]
    fn nothing_new_needs_no_checkpoint_and_one_that_is_behind_writes_none() {
        let mut vigil = vigil();
        assert_eq!(look(&mut vigil, 0, seen(10, 10, 11)), Due::Nothing);
        assert_eq!(look(&mut vigil, 9999, seen(10, 10, 500)), Due::Nothing);
        assert_eq!(look(&mut vigil, 10_000, seen(10, 9, 2000)), Due::Nothing);
        assert_eq!(look(&mut vigil, 10_000, seen(10, 9, i64::MAX)), Due::Nothing);
    }

    #[test]
    fn where_the_rest_of_meta_grows_the_log_is_moved_on() {
        let mut vigil = vigil();
        assert_eq!(look(&mut vigil, 0, seen(10, 10, 1009)), Due::Nothing);
        assert_eq!(look(&mut vigil, 1, seen(10, 10, 1010)), Due::Entry);
        assert_eq!(look(&mut vigil, 2, seen(10, 1011, 1011)), Due::Checkpoint);
        assert_eq!(look(&mut vigil, 3, seen(1011, 1011, 1013)), Due::Nothing);
    }

    /// Whatever several of them see at once, one that has just been outrun does nothing until its patience is over again.
    #[test]
    fn of_many_one_acts_at_a_time() {
        let mut vigils: Vec<Vigil> = (0..5).map(|_| vigil()).collect();
        let (mut checkpoint, mut written) = (1, 0);
        for second in 0..3000_u64 {
            let vigil = &mut vigils[usize::try_from(second % 5).unwrap_or(0)];
            let log = 2 + i64::try_from(second).unwrap_or(0) / 7;
            if look(vigil, second, seen(checkpoint, log, log)) == Due::Checkpoint {
                (checkpoint, written) = (log, written + 1);
            }
        }
        assert!((9..=10).contains(&written), "{written} in 3000 s");
    }
}
