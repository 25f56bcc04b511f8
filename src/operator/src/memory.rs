//! What the operator remembers of a resource from one reconcile to the next. It may be lost at any time: then a few more
//! calls are made.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use tokio::time::Instant;

use crate::model::ApplyFailure;

/// Looks in vain before they become rarer.
const LOOKS: u32 = 5;

/// Kind and name of an object.
pub(crate) type ObjectKey = (String, String);

/// Of one object.
#[derive(Debug, Default)]
pub(crate) struct ObjectMemory {
    /// resourceVersion and hash of the manifest when nothing differed.
    pub(crate) clean: Option<(String, String)>,
    /// Our own last write, until the watch shows it: its resourceVersion, and when.
    pub(crate) written: Option<(String, Instant)>,
    /// What was refused: hash of the manifest, resourceVersion of the object then, why, and when.
    pub(crate) refused: Option<(String, Option<String>, ApplyFailure, Instant)>,
    /// Hash of the manifest of which the API server changes a field, so that comparing fields says nothing.
    pub(crate) stubborn: Option<String>,
    /// Conflicts in a row.
    pub(crate) conflicts: u32,
}

impl ObjectMemory {
    /// Whether what the watch shows (`None`: no object) is older than our own last write.
    pub(crate) fn is_behind(&self, shown: Option<&str>, max: Duration) -> bool {
        self.written.as_ref().is_some_and(|(version, at)| at.elapsed() < max && is_older(shown, version))
    }
}

/// Whether `shown` is an older state than `written`. Versions are compared as numbers, as KEP-5504 allows.
fn is_older(shown: Option<&str>, written: &str) -> bool {
    let Some(shown) = shown else { return true };
    match (shown.parse::<u64>(), written.parse::<u64>()) {
        (Ok(shown), Ok(written)) => shown < written,
        _ => false,
    }
}

/// Of one resource.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Of which one: another resource of the same name is another.
    pub(crate) uid: String,
    pub(crate) objects: HashMap<ObjectKey, ObjectMemory>,
    /// Uids of objects that were deleted, and when, until the watch shows it.
    pub(crate) deleted: HashMap<String, Instant>,
    /// Uids of objects that are to be destroyed, and since when that is the decision.
    pub(crate) decided: HashMap<String, Instant>,
    /// Objects that belong to something else, as `Service demo`.
    pub(crate) foreign: Vec<String>,
    /// Our own last write of the status.
    pub(crate) status: ObjectMemory,
    /// When counts were last written.
    pub(crate) counted: Option<Instant>,
    /// Reconciles in a row that did not do all that they should.
    pub(crate) failures: u32,
    /// Looks in a row that found what they saw to be old, or that wait for an answer.
    pub(crate) looks: u32,
    /// Failures that are in the log.
    pub(crate) logged: Vec<ApplyFailure>,
    /// Events in the last while: see `events`.
    pub(crate) events: BTreeMap<(String, String), SentEvent>,
}

/// An Event that was published.
#[derive(Debug, Clone)]
pub(crate) struct SentEvent {
    pub(crate) name: String,
    pub(crate) count: i32,
    pub(crate) at: Instant,
}

impl Memory {
    /// How long to wait after a reconcile that did not do all: doubled each time.
    pub(crate) fn backoff(&self, min: Duration, max: Duration) -> Duration {
        let doubled = 2_u32.saturating_pow(self.failures.saturating_sub(1).min(16));
        min.saturating_mul(doubled).min(max)
    }

    /// How long to wait before another look: longer once several were in vain.
    pub(crate) fn look_after(&self, min: Duration, max: Duration) -> Duration {
        let doubled = 2_u32.saturating_pow((self.looks / LOOKS).min(16));
        min.saturating_mul(doubled).min(max.max(min))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_watch_is_behind_until_it_shows_the_write() {
        let max = Duration::from_secs(10);
        let mut object = ObjectMemory::default();
        assert!(!object.is_behind(None, max));
        object.written = Some(("9".into(), Instant::now()));
        assert!(object.is_behind(None, max) && object.is_behind(Some("8"), max));
        assert!(!object.is_behind(Some("9"), max) && !object.is_behind(Some("10"), max));
        tokio::time::advance(max).await;
        assert!(!object.is_behind(Some("8"), max), "it is believed in the end");
    }

    #[test]
    fn retries_back_off() {
        let (min, max) = (Duration::from_secs(1), Duration::from_secs(60));
        let after = |failures| Memory { failures, ..Memory::default() }.backoff(min, max).as_secs();
        assert_eq!([1, 2, 3, 6, 7, 1000].map(after), [1, 2, 4, 32, 60, 60]);
        let look = |looks| Memory { looks, ..Memory::default() }.look_after(min, max).as_secs();
        assert_eq!([1, 4, 5, 10, 1000].map(look), [1, 1, 2, 4, 60]);
    }
}
