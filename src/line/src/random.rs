//! Randomness for jitter and for ids; a deterministic simulation seeds it.

use std::cell::RefCell;

use rand::{RngCore, SeedableRng, rngs::StdRng};

thread_local! {
    static SEEDED: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// From now on, what [`rng`] gives on this thread follows from `seed` alone; `None` for the system's randomness again.
pub fn seed_this_thread(seed: Option<u64>) {
    SEEDED.with_borrow_mut(|seeded| *seeded = seed.map(StdRng::seed_from_u64));
}

/// The thread's generator: as [`rand::rng`], unless the thread was seeded.
pub fn rng() -> Random {
    Random(())
}

/// See [`rng`].
#[derive(Debug)]
pub struct Random(());

impl Random {
    fn with<T>(use_it: impl FnOnce(&mut dyn RngCore) -> T) -> T {
        SEEDED.with_borrow_mut(|seeded| match seeded {
            Some(seeded) => use_it(seeded),
            None => use_it(&mut rand::rng()),
        })
    }
}

impl RngCore for Random {
    fn next_u32(&mut self) -> u32 {
        Self::with(|rng| rng.next_u32())
    }

    fn next_u64(&mut self) -> u64 {
        Self::with(|rng| rng.next_u64())
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        Self::with(|rng| rng.fill_bytes(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seeded_thread_repeats_itself() {
        let draw = || (0..4).map(|_| rng().next_u64()).collect::<Vec<_>>();
        seed_this_thread(Some(7));
        let first = draw();
        seed_this_thread(Some(7));
        assert_eq!(draw(), first);
        seed_this_thread(None);
        assert_ne!(draw(), first);
    }
}
