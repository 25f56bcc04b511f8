//! One bound on the bytes a second of all moves together.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Spreads bytes over time; shared by all moves.
#[derive(Debug)]
pub struct Throttle {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    bytes_per_second: Option<u64>,
    free_at: Instant,
}

impl Throttle {
    /// A throttle with this rate; `None`: no bound.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self { state: Mutex::new(State { bytes_per_second, free_at: Instant::now() }) }
    }

    /// Changes the rate for what is taken from now on.
    pub fn set(&self, bytes_per_second: Option<u64>) {
        self.state.lock().bytes_per_second = bytes_per_second;
    }

    /// Waits until what was taken before has been paid for, then takes `bytes`.
    pub async fn take(&self, bytes: usize) {
        let until = {
            let mut state = self.state.lock();
            let Some(rate) = state.bytes_per_second else { return };
            let start = state.free_at.max(Instant::now());
            state.free_at = start + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
            start
        };
        tokio::time::sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever takes waits for what others have taken; the rate is never exceeded, however busy the machine is.
    #[tokio::test]
    async fn takers_share_one_rate() {
        let throttle = Throttle::new(Some(10_000));
        let begun = Instant::now();
        let takers = (0..4).map(|_| async {
            throttle.take(500).await;
            throttle.take(500).await;
        });
        futures::future::join_all(takers).await;
        // The last one waits for the 3,500 bytes before it.
        assert!(begun.elapsed() >= Duration::from_millis(350), "{:?}", begun.elapsed());
        throttle.set(None);
        throttle.take(1 << 40).await;
        throttle.take(1 << 40).await;
    }
}
