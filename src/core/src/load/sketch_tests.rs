//! What a sketch promises, for any stream.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::Sketch;

fn key(n: u16) -> Vec<u8> {
    format!("k{n}").into_bytes()
}

/// Few keys often, many seldom.
fn stream() -> impl Strategy<Value = Vec<(u16, u8)>> {
    prop::collection::vec((prop_oneof![3 => 0u16..4, 2 => 0u16..40, 1 => 0u16..400], 1u8..5), 0..600)
}

fn truth(streams: &[(&[(u16, u8)], f64)]) -> BTreeMap<Vec<u8>, f64> {
    let mut truth = BTreeMap::new();
    for (stream, factor) in streams {
        for (n, work) in *stream {
            *truth.entry(key(*n)).or_default() += f64::from(*work) * factor;
        }
    }
    truth
}

fn filled(stream: &[(u16, u8)], capacity: usize) -> Sketch {
    let mut sketch = Sketch::new(capacity);
    stream.iter().for_each(|(n, work)| sketch.offer(&key(*n), f64::from(*work)));
    sketch
}

const SLACK: f64 = 1e-6;

/// `below`: by how much a counter may be below the truth.
fn holds(
    sketch: &Sketch,
    truth: &BTreeMap<Vec<u8>, f64>,
    above: f64,
    below: f64,
) -> Result<(), TestCaseError> {
    let held: f64 = sketch.counters().iter().map(|c| c.work).sum();
    prop_assert!((held - sketch.total()).abs() < SLACK);
    for counter in sketch.counters() {
        let was = truth[counter.key.as_ref()];
        prop_assert!(counter.work <= was + above + SLACK, "{counter:?}, in truth {was}");
        prop_assert!(counter.work >= was - below - SLACK, "{counter:?}, in truth {was}");
        prop_assert!(counter.sure() <= was + SLACK, "{counter:?}, in truth {was}");
    }
    for (key, was) in truth {
        let is_there = sketch.counters().iter().any(|c| c.key.as_ref() == key.as_slice());
        prop_assert!(is_there || *was <= above + SLACK, "{key:?} with {was} has no counter");
    }
    Ok(())
}

proptest! {
    #[test]
    fn errors_are_bounded(stream in stream(), capacity in 1usize..50) {
        let sketch = filled(&stream, capacity);
        let truth = truth(&[(&stream, 1.0)]);
        let bound = sketch.total() / capacity as f64;
        prop_assert!(sketch.counters().len() <= capacity);
        prop_assert!((sketch.total() - truth.values().sum::<f64>()).abs() < SLACK);
        holds(&sketch, &truth, bound, 0.0)?;
    }

    /// As a proxy does it: what was offered lately is added to what is left of before.
    #[test]
    fn errors_stay_bounded_when_sketches_are_added_up(
        streams in prop::collection::vec(stream(), 1..6),
        capacity in 1usize..50,
    ) {
        let mut sketch = Sketch::new(capacity);
        for stream in &streams {
            sketch.scale(0.5, 0.0);
            sketch.absorb(&filled(stream, capacity), 1.0);
        }
        let n = streams.len();
        let weighed: Vec<_> =
            streams.iter().enumerate().map(|(i, s)| (s.as_slice(), 0.5f64.powi((n - 1 - i) as i32))).collect();
        let truth = truth(&weighed);
        let bound = 2.0 * sketch.total() / capacity as f64;
        prop_assert!((sketch.total() - truth.values().sum::<f64>()).abs() < SLACK);
        holds(&sketch, &truth, bound, bound)?;
    }
}

#[test]
fn what_is_next_to_nothing_is_forgotten() {
    let mut sketch = filled(&[(1, 4), (2, 1)], 8);
    sketch.scale(0.5, 1.0);
    assert_eq!(sketch.counters().len(), 1);
    assert_eq!((sketch.counters()[0].key.as_ref(), sketch.counters()[0].work), (b"k1".as_ref(), 2.0));
    sketch.offer(b"k2", 3.0);
    assert_eq!(sketch.total(), 5.0);
    sketch.scale(0.0, 1.0);
    assert!(sketch.is_empty() && sketch.total() == 0.0);
}
