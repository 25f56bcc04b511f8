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
        let pause = PAUSE_MIN.saturating_mul(1 << failed.min(10).saturating_sub(1)).min(PAUSE_MAX);
        self.add(id, Instant::now() + pause);
    }

    /// An attempt went well: the next failure starts with a short pause.
    pub(super) fn succeeded(&self, id: i64) {
        self.state.lock().failed.remove(&id);
    }

    /// The next lease whose time has come.
    pub(super) async fn next(&self) -> i64 {
        loop {
            let earlier = self.earlier.notified();
            let first = self.state.lock().order.first().copied();
            match first {
                Some((at, id)) if at <= Instant::now() => {
                    let mut state = self.state.lock();
                    if state.order.remove(&(at, id)) {
                        state.due.remove(&id);
                        return id;
                    }
                }
                Some((at, _)) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at) => {}
                        () = earlier => {}
                    }
                }
                None => earlier.await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_lease_once_at_its_earliest_time() {
        let agenda = Agenda::default();
        let now = Instant::now();
        agenda.add(1, now + Duration::from_secs(3));
        agenda.add(2, now + Duration::from_secs(2));
        agenda.add(1, now + Duration::from_secs(1));
        agenda.add(1, now + Duration::from_secs(9));
        assert_eq!(agenda.next().await, 1);
        assert_eq!(Instant::now() - now, Duration::from_secs(1));
        assert_eq!(agenda.next().await, 2);
        let idle = tokio::time::timeout(Duration::from_secs(60), agenda.next());
        assert!(idle.await.is_err(), "nothing is left");
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_become_rarer_and_recover() {
        let agenda = Agenda::default();
        let mut pauses = Vec::new();
        for _ in 0..9 {
            let before = Instant::now();
            agenda.retry(7);
            agenda.next().await;
            pauses.push((Instant::now() - before).as_millis());
        }
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
        agenda.succeeded(7);
        let before = Instant::now();
        agenda.retry(7);
        agenda.next().await;
        assert_eq!(Instant::now() - before, PAUSE_MIN);
    }
}
