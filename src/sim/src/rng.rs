//! The simulation's own randomness: the same on every machine and in every release.

use parking_lot::Mutex;
use sharded_etcd_testkit::Dice;

/// Dice that many tasks throw.
#[derive(Debug)]
pub struct Rng(Mutex<Dice>);

impl Rng {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(Dice::new(seed)))
    }

    /// Another sequence, which depends on this one.
    pub fn fork(&self) -> Self {
        Self::new(self.next())
    }

    /// The next number.
    pub fn next(&self) -> u64 {
        self.0.lock().next()
    }

    /// A number below `end`, which is at least 1.
    pub fn below(&self, end: u64) -> u64 {
        self.0.lock().below(end)
    }

    /// A number in `[from, upto]`.
    pub fn between(&self, from: u64, upto: u64) -> u64 {
        from + self.below(upto - from + 1)
    }

    /// True in `percent` of a hundred cases.
    pub fn chance(&self, percent: u64) -> bool {
        self.0.lock().percent(percent)
    }

    /// One of these; `of` is not empty.
    pub fn pick<'a, T>(&self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}
