//! Where a range could be split so that its load is parted.

use bytes::Bytes;

use crate::{
    keyspace::{KeyRange, Rules, prefix_end, successor},
    placement::CutPoint,
};

/// The cut points that a scan of `range` found, with what work lies before each, and more of them around the sampled
/// keys (sorted; others than those of the range are passed over): before and behind each that may be parted from what is
/// around it. What keys and bytes lie before those is not known: all that the scan found between two of its points is
/// taken to lie where the sampled keys between them do. Where the scan found every point there is, that is so; else a hot
/// piece is taken for larger than it is, rather than for smaller: what looks smaller than it is would be split off for a
/// gain that is not there once it is counted.
///
/// `keys`, `bytes` and `work` are those of the whole range. Without samples work lies where keys are.
pub fn cuts_with_work(
    range: &KeyRange,
    cuts: &[CutPoint],
    (keys, bytes): (u64, u64),
    work: u64,
    sampled: &[(Bytes, f64)],
    rules: &Rules,
) -> Vec<CutPoint> {
    let from = sampled.partition_point(|(key, _)| key < &range.start);
    let inside = sampled[from..].partition_point(|(key, _)| range.contains(key));
    let sampled = &sampled[from..from + inside];
    let mut made: Vec<CutPoint> = Vec::with_capacity(cuts.len() + 2 * sampled.len());
    let (mut lower, mut begin) = ((0, 0), 0);
    let mut around = boundaries(range, sampled, rules).into_iter().peekable();
    for cut in cuts.iter().map(Some).chain([None]) {
        let upper = cut.map_or((keys, bytes), |cut| (cut.keys_before, cut.bytes_before));
        let mut between = Vec::new();
        while let Some(at) = around.next_if(|at| cut.is_none_or(|cut| *at <= cut.at)) {
            if cut.is_none_or(|cut| at != cut.at) {
                between.push(at);
            }
        }
        let end = sampled.partition_point(|(key, _)| cut.is_none_or(|cut| *key < cut.at));
        let in_slice = &sampled[begin..end.max(begin)];
        let parts = between.len() as u64 + 1;
        for (at, nth) in between.into_iter().zip(1..) {
            let (before, of) = match in_slice.len() as u64 {
                0 => (nth, parts),
                n => (in_slice.partition_point(|(key, _)| *key < at) as u64, n),
            };
            let put = |low: u64, high: u64| low + part(high.saturating_sub(low), before, of);
            let (keys_before, bytes_before) = (put(lower.0, upper.0), put(lower.1, upper.1));
            made.push(CutPoint { at, keys_before, bytes_before, work_before: 0, guessed: true });
        }
        made.extend(cut.cloned());
        (lower, begin) = (upper, end);
    }
    let total: f64 = sampled.iter().map(|(_, work)| work).sum();
    let (mut before, mut passed) = (0.0, 0);
    for cut in &mut made {
        while let Some((_, work)) = sampled.get(passed).filter(|(key, _)| *key < cut.at) {
            before += work;
            passed += 1;
        }
        cut.work_before = match total > 0.0 {
            true => ((before / total * work as f64) as u64).min(work),
            false => part(work, cut.keys_before, keys.max(1)).min(work),
        };
    }
    made
}

fn part(of: u64, nth: u64, parts: u64) -> u64 {
    u64::try_from(u128::from(of) * u128::from(nth) / u128::from(parts.max(1))).unwrap_or(u64::MAX)
}

/// Legal boundaries before and behind each sampled key, sorted, strictly inside the range.
fn boundaries(range: &KeyRange, sampled: &[(Bytes, f64)], rules: &Rules) -> Vec<Bytes> {
    let mut found = Vec::with_capacity(sampled.len() * 2);
    let mut previous: Option<&Bytes> = None;
    for (key, _) in sampled {
        let (start, end) = match rules.directory(key) {
            // Inside a splittable prefix a single key can be parted from the others of its directory.
            _ if rules.is_legal_boundary(key) && rules.is_legal_boundary(&successor(key)) => {
                (key.clone(), successor(key))
            }
            Some(directory) => (Bytes::copy_from_slice(directory), prefix_end(directory)),
            None => (key.clone(), successor(key)),
        };
        found.extend(previous.and_then(|before| rules.boundary_between(before, key)));
        found.extend([start, end]);
        previous = Some(key);
    }
    found.retain(|at| range.start < *at && range.contains(at) && rules.is_legal_boundary(at));
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(at: &'static str, keys_before: u64) -> CutPoint {
        CutPoint {
            at: Bytes::from_static(at.as_bytes()),
            keys_before,
            bytes_before: keys_before * 10,
            work_before: 0,
            guessed: false,
        }
    }

    fn show(cuts: &[CutPoint]) -> Vec<(String, u64, u64)> {
        cuts.iter()
            .map(|c| (String::from_utf8_lossy(&c.at).into_owned(), c.keys_before, c.work_before))
            .collect()
    }

    fn sampled(keys: &[(&'static str, f64)]) -> Vec<(Bytes, f64)> {
        keys.iter().map(|(key, work)| (Bytes::from_static(key.as_bytes()), *work)).collect()
    }

    #[test]
    fn a_hot_directory_gets_boundaries_around_it() {
        let range = KeyRange::new("", "/x/");
        let cuts = [cut("/d/", 40), cut("/m/", 80)];
        let keys = sampled(&[("/e/1", 30.0), ("/e/2", 60.0), ("/m/1", 10.0), ("/y/", 1e9)]);
        let made = cuts_with_work(&range, &cuts, (100, 1000), 50, &keys, &Rules::default());
        // All 40 keys between the two cuts are taken to be where the sampled ones are.
        let expected = [("/d/", 40, 0), ("/e/", 40, 0), ("/e0", 80, 45), ("/m/", 80, 45), ("/m0", 100, 50)];
        assert_eq!(show(&made), expected.map(|(at, keys, work)| (at.to_owned(), keys, work)));
    }

    #[test]
    fn keys_between_two_cuts_are_where_the_sampled_ones_are() {
        let keys = sampled(&[("/e/1", 30.0), ("/g/1", 60.0), ("/g/2", 10.0), ("/g/3", 10.0), ("/z/1", 10.0)]);
        let made = cuts_with_work(
            &KeyRange::whole(),
            &[cut("/d/", 40), cut("/m/", 80), cut("/q/", 90)],
            (100, 1000),
            120,
            &keys,
            &Rules::default(),
        );
        let before = |at: &str| show(&made).into_iter().find(|(cut, ..)| cut == at).map(|(_, keys, _)| keys);
        let asked = ["/e/", "/e0", "/g/", "/g0", "/z/", "/z0"].map(before);
        assert_eq!(asked, [40, 50, 50, 80, 90, 100].map(Some), "{:?}", show(&made));
        assert!(made.windows(2).all(|w| w[0].keys_before <= w[1].keys_before));
        // No key was sampled between these two, where the boundary between those around it lies.
        let made = cuts_with_work(
            &KeyRange::whole(),
            &[cut("/a/", 40), cut("/q/", 90)],
            (100, 0),
            9,
            &keys[4..],
            &Rules::default(),
        );
        assert_eq!(show(&made)[..2], [("/a/".to_owned(), 40, 0), ("/q/".to_owned(), 90, 0)]);
    }

    #[test]
    fn a_splittable_directory_is_parted_at_its_keys() {
        let rules = Rules { splittable: vec![Bytes::from_static(b"/p/")], ..Rules::default() };
        let keys = sampled(&[("/p/a", 10.0), ("/p/b", 30.0)]);
        let made = cuts_with_work(&KeyRange::whole(), &[], (100, 0), 80, &keys, &rules);
        let at: Vec<_> = show(&made).into_iter().map(|(at, _, work)| (at, work)).collect();
        let expected = [("/p/a", 0), ("/p/a\0", 20), ("/p/b", 20), ("/p/b\0", 80)];
        assert_eq!(at, expected.map(|(at, work)| (at.to_owned(), work)));
    }

    #[test]
    fn without_samples_work_lies_where_keys_are() {
        let made = cuts_with_work(&KeyRange::whole(), &[cut("m", 25)], (100, 0), 80, &[], &Rules::default());
        assert_eq!(show(&made), [("m".to_owned(), 25, 20)]);
    }
}
