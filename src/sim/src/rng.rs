//! The simulation's own randomness: the same on every machine and in every release.

use parking_lot::Mutex;

/// SplitMix64: small, and every seed gives an unrelated sequence.
#[derive(Debug)]
pub struct Rng(Mutex<u64>);

impl Rng {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(seed))
    }

    /// Another sequence, which depends on this one.
    pub fn fork(&self) -> Self {
        Self::new(self.next())
    }

    /// The next number.
    pub fn next(&self) -> u64 {
        let mut state = self.0.lock();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is at least 1.
    pub fn below(&self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// A number in `[from, upto]`.
    pub fn between(&self, from: u64, upto: u64) -> u64 {
        from + self.below(upto - from + 1)
    }

    /// True in `percent` of a hundred cases.
    pub fn chance(&self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of these; `of` is not empty.
    pub fn pick<'a, T>(&self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}
