//! The keys with the most work, found in bounded memory.
//!
//! The algorithm is Space-Saving (Metwally, Agrawal, El Abbadi, "Efficient computation of frequent and top-k elements in
//! data streams", 2005): a key that is not among the counters takes over the smallest one, and remembers what that one had
//! as its error.

use std::collections::HashMap;

use bytes::Bytes;

/// A bounded number of keys with what was offered for them.
///
/// # Guarantees
/// Of everything that was offered, `total`, with `capacity` counters:
/// - the work of a counter is at most `total / capacity` above what was offered for its key, and not below it;
/// - what is [sure](Counter::sure) of it was offered for its key;
/// - a key for which more than `total / capacity` was offered has a counter;
/// - all counters together hold `total`, so that they are a sample of where it lies.
///
/// After [`Sketch::absorb`] the first and third hold with twice that error, in both directions; the others as before.
#[derive(Debug, Clone)]
pub struct Sketch {
    capacity: usize,
    counters: Vec<Counter>,
    places: HashMap<Bytes, usize>,
    total: f64,
}

/// One key of a sketch.
#[derive(Debug, Clone, PartialEq)]
pub struct Counter {
    /// The key.
    pub key: Bytes,
    /// What was offered for it, at most.
    pub work: f64,
    /// How much of `work` may have been offered for other keys.
    pub error: f64,
}

impl Counter {
    /// What was offered for the key for sure.
    pub fn sure(&self) -> f64 {
        (self.work - self.error).max(0.0)
    }
}

impl Sketch {
    /// An empty one with at most this many counters, at least one.
    pub fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), counters: Vec::new(), places: HashMap::new(), total: 0.0 }
    }

    /// Work for a key, above nothing. A key that has a counter costs one look-up; any other a walk over the counters.
    pub fn offer(&mut self, key: &[u8], work: f64) {
        self.add(key, work, 0.0);
    }

    /// Everything that was offered.
    pub fn total(&self) -> f64 {
        self.total
    }

    /// The counters, in no particular order.
    pub fn counters(&self) -> &[Counter] {
        &self.counters
    }

    /// True if nothing was offered.
    pub fn is_empty(&self) -> bool {
        self.counters.is_empty()
    }

    /// As if only a part of everything had been offered. What is next to nothing is forgotten.
    pub fn scale(&mut self, factor: f64, least: f64) {
        for counter in &mut self.counters {
            counter.work *= factor;
            counter.error *= factor;
        }
        self.counters.retain(|counter| counter.work >= least);
        self.total = self.counters.iter().map(|c| c.work).sum();
        self.places = self.counters.iter().enumerate().map(|(i, c)| (c.key.clone(), i)).collect();
    }

    /// Offers everything that was offered to another one, times `factor`.
    pub fn absorb(&mut self, other: &Self, factor: f64) {
        // The largest last, so that they are not among those that are taken over.
        let mut counters: Vec<&Counter> = other.counters.iter().collect();
        counters.sort_by(|a, b| a.work.total_cmp(&b.work).then_with(|| a.key.cmp(&b.key)));
        for counter in counters {
            self.add(&counter.key, counter.work * factor, counter.error * factor);
        }
    }

    fn add(&mut self, key: &[u8], work: f64, error: f64) {
        if work.is_nan() || work <= 0.0 {
            return;
        }
        self.total += work;
        if let Some(&place) = self.places.get(key) {
            let counter = &mut self.counters[place];
            counter.work += work;
            counter.error += error;
            return;
        }
        let key = Bytes::copy_from_slice(key);
        if self.counters.len() < self.capacity {
            self.places.insert(key.clone(), self.counters.len());
            self.counters.push(Counter { key, work, error });
            return;
        }
        let smallest = self.counters.iter().enumerate().min_by(|a, b| a.1.work.total_cmp(&b.1.work));
        let Some((place, had)) = smallest.map(|(place, counter)| (place, counter.work)) else { return };
        let counter = Counter { key: key.clone(), work: had + work, error: had + error };
        let gone = std::mem::replace(&mut self.counters[place], counter);
        self.places.remove(&gone.key);
        self.places.insert(key, place);
    }
}
