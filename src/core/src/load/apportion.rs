//! Figures of ranges as they were, laid on ranges as they are.

use bytes::Bytes;

use crate::keyspace::KeyRange;

/// Something that can be shared out.
pub trait Share: Copy + Default {
    /// The sum.
    #[must_use]
    fn plus(self, other: Self) -> Self;
    /// A part of it.
    #[must_use]
    fn times(self, factor: f64) -> Self;
}

impl Share for f64 {
    fn plus(self, other: Self) -> Self {
        self + other
    }

    fn times(self, factor: f64) -> Self {
        self * factor
    }
}

/// Lays `figures` on the ranges `to`, which are sorted and tile the keyspace: a range that was moved or merged keeps what
/// it had, and one that was split shares it out as the work of its sampled `keys` (sorted) lies, or evenly if there are
/// none. What is not zero is given with the index in `to`, sorted; the sum stays the same.
pub fn apportion<'a, T: Share>(
    figures: impl IntoIterator<Item = (&'a KeyRange, T)>,
    keys: &[(Bytes, f64)],
    to: &[impl AsRef<KeyRange>],
) -> Vec<(usize, T)> {
    apportion_by(figures, to, |range, i| work_in(keys, &to[i].as_ref().intersect(range)))
}

/// As [`apportion`]; what a range shares out is shared out by `weight`, of the range and the index in `to`.
pub(super) fn apportion_by<'a, T: Share>(
    figures: impl IntoIterator<Item = (&'a KeyRange, T)>,
    to: &[impl AsRef<KeyRange>],
    weight: impl Fn(&KeyRange, usize) -> f64,
) -> Vec<(usize, T)> {
    let mut laid: Vec<(usize, T)> = Vec::new();
    for (range, figure) in figures {
        let from = to.partition_point(|r| !r.as_ref().end.is_empty() && r.as_ref().end <= range.start);
        let until = match range.end.is_empty() {
            true => to.len(),
            false => to.partition_point(|r| r.as_ref().start < range.end),
        };
        let parts = from..until.max(from);
        if parts.len() <= 1 {
            laid.extend(parts.map(|i| (i, figure)));
            continue;
        }
        let total: f64 = parts.clone().map(|i| weight(range, i)).sum();
        let even = 1.0 / parts.len() as f64;
        let share = |i: usize| if total > 0.0 { weight(range, i) / total } else { even };
        laid.extend(parts.map(|i| (i, figure.times(share(i)))));
    }
    laid.sort_by_key(|(i, _)| *i);
    let mut sums: Vec<(usize, T)> = Vec::with_capacity(laid.len());
    for (i, figure) in laid {
        match sums.last_mut() {
            Some((last, sum)) if *last == i => *sum = sum.plus(figure),
            _ => sums.push((i, figure)),
        }
    }
    sums
}

/// The work of the sampled keys that lie in a range.
fn work_in(keys: &[(Bytes, f64)], range: &KeyRange) -> f64 {
    let from = keys.partition_point(|(key, _)| key < &range.start);
    let inside = keys[from..].iter().take_while(|(key, _)| range.contains(key));
    inside.map(|(_, work)| work).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(starts: &[&'static str]) -> Vec<KeyRange> {
        let end = |i: usize| starts.get(i + 1).copied().unwrap_or("");
        starts.iter().enumerate().map(|(i, start)| KeyRange::new(*start, end(i))).collect()
    }

    #[test]
    fn moved_merged_and_split_ranges_keep_their_load() {
        let old = ranges(&["", "d", "m", "t"]);
        let figures = || old.iter().zip([1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(apportion(figures(), &[], &old), [(0, 1.0), (1, 10.0), (2, 100.0), (3, 1000.0)]);
        // "" and "d" were merged, "m" was split at "p", and nothing is known of where in it the load lay.
        let new = ranges(&["", "m", "p", "t"]);
        assert_eq!(apportion(figures(), &[], &new), [(0, 11.0), (1, 50.0), (2, 50.0), (3, 1000.0)]);
        let keys = [("m1", 3.0), ("p", 1.0), ("z", 5.0)]
            .map(|(key, work)| (Bytes::from_static(key.as_bytes()), work));
        assert_eq!(apportion(figures(), &keys, &new), [(0, 11.0), (1, 75.0), (2, 25.0), (3, 1000.0)]);
    }
}
