//! Which leases this proxy is going to help, and when.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

/// Pauses before another attempt at the same lease: from this, doubled each time …
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// … up to this.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Leases to look at, each once, in the order of their times. Bounded by the number of leases there are.
#[derive(Default)]
pub(super) struct Agenda {
    state: Mutex<State>,
    earlier: Notify,
}

#[derive(Default)]
struct State {
    order: BTreeSet<(Instant, i64)>,
    due: HashMap<i64, Instant>,
    /// Failed attempts in a row.
    failed: HashMap<i64, u32>,
}

impl Agenda {
    /// Looks at a lease at `at`, or earlier if that was planned.
    pub(super) fn add(&self, id: i64, at: Instant) {
        let mut state = self.state.lock();
        match state.due.get(&id).copied() {
            Some(planned) if planned <= at => return,
            Some(planned) => _ = state.order.remove(&(planned, id)),
            None => {}
        }
        state.due.insert(id, at);
        state.order.insert((at, id));
        drop(state);
        self.earlier.notify_one();
    }

    /// Another attempt after one that failed, later each time.
    pub(super) fn retry(&self, id: i64) {
        let failed = {
            let mut state = self.state.lock();
            let failed = state.failed.entry(id).or_default();
            *failed += 1;
            *failed
        };
        self.add(id, Instant::now() + pause(failed));
    }

    /// An attempt went well: the next failure starts with a short pause.
    pub(super) fn succeeded(&self, id: i64) {
        self.state.lock().failed.remove(&id);
    }

    /// The next lease whose time has come.
    pub(super) async fn next(&self) -> i64 {
        loop {
            let earlier = self.earlier.notified();
            let next = self.state.lock().next(Instant::now());
            match next {
                Next::Due(id) => return id,
                Next::At(at) => {
                    tokio::select! {
                        biased;
                        () = tokio::time::sleep_until(at) => {}
                        () = earlier => {}
                    }
                }
                Next::Idle => earlier.await,
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// This lease, which is no longer on the agenda.
    Due(i64),
    /// Nothing before that.
    At(Instant),
    /// Nothing at all.
    Idle,
}

impl State {
    fn next(&mut self, now: Instant) -> Next {
        match self.order.first().copied() {
            Some((at, id)) if at <= now => {
                self.order.remove(&(at, id));
                self.due.remove(&id);
                Next::Due(id)
            }
            Some((at, _)) => Next::At(at),
            None => Next::Idle,
        }
    }
}

/// How long to wait after so many failed attempts in a row.
fn pause(failed: u32) -> Duration {
    PAUSE_MIN.saturating_mul(1 << failed.min(10).saturating_sub(1)).min(PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lease_once_at_its_earliest_time() {
        let agenda = Agenda::default();
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        agenda.add(1, at(3));
        agenda.add(2, at(2));
        agenda.add(1, at(1));
        agenda.add(1, at(9));
        let mut state = agenda.state.lock();
        assert_eq!(state.next(now), Next::At(at(1)));
        assert_eq!(state.next(at(5)), Next::Due(1));
        assert_eq!(state.next(at(5)), Next::Due(2));
        assert_eq!(state.next(at(99)), Next::Idle);
    }

    #[tokio::test]
    async fn an_earlier_lease_is_not_slept_over() {
        let agenda = Agenda::default();
        agenda.add(1, Instant::now() + Duration::from_secs(3600));
        let (next, ()) = tokio::join!(agenda.next(), async { agenda.add(2, Instant::now()) });
        assert_eq!(next, 2);
    }

    #[test]
    fn attempts_become_rarer_and_recover() {
        let pauses: Vec<_> = (1..9).map(|failed| pause(failed).as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        assert_eq!(pause(u32::MAX), PAUSE_MAX);
        let agenda = Agenda::default();
        agenda.retry(7);
        agenda.retry(7);
        assert_eq!(agenda.state.lock().failed[&7], 2);
        agenda.succeeded(7);
        assert!(agenda.state.lock().failed.is_empty());
    }
}
