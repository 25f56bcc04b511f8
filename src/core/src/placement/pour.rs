//! What each shard should hold: so much that all are filled to the same level for their weight.

/// A shard to pour into.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vessel {
    /// What is in it already and stays.
    pub(super) floor: u64,
    /// How wide it is, relative to the others; not zero.
    pub(super) weight: u64,
    /// What it may hold; what is in it already stays even so.
    pub(super) most: u64,
}

/// What a vessel holds in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Level {
    /// What it holds.
    pub(super) held: u64,
    /// What it would hold if it had no bound.
    pub(super) wanted: u64,
}

/// Pours `free` into the vessels, none of which is filled above what it may hold, unless all of them are full: then what is
/// left is poured as if they had no bounds.
pub(super) fn pour(free: u64, vessels: &[Vessel]) -> Vec<Level> {
    let everyone: Vec<usize> = (0..vessels.len()).collect();
    let wanted = levels(u128::from(free), vessels, &everyone);
    let mut held = wanted.clone();
    let (mut open, mut left) = (everyone, u128::from(free));
    // Each pass closes one vessel at least.
    loop {
        let bound = |v: usize| vessels[v].most.max(vessels[v].floor);
        let (full, rest): (Vec<usize>, Vec<usize>) = open.iter().partition(|v| held[**v] > bound(**v));
        if full.is_empty() {
            break;
        }
        if rest.is_empty() {
            held.clone_from(&wanted);
            break;
        }
        for v in full {
            held[v] = bound(v);
            left = left.saturating_sub(u128::from(bound(v) - vessels[v].floor));
        }
        for (v, level) in rest.iter().zip(levels(left, vessels, &rest)) {
            held[*v] = level;
        }
        open = rest;
    }
    held.into_iter().zip(wanted).map(|(held, wanted)| Level { held, wanted }).collect()
}

/// What each of these vessels holds with `free` poured into them.
fn levels(free: u128, vessels: &[Vessel], open: &[usize]) -> Vec<u64> {
    let mut by_floor = open.to_vec();
    by_floor.sort_by(|a, b| {
        let (left, right) = (vessels[*a], vessels[*b]);
        let (of_left, of_right) = (
            u128::from(left.floor) * u128::from(right.weight),
            u128::from(right.floor) * u128::from(left.weight),
        );
        of_left.cmp(&of_right).then(a.cmp(b))
    });
    // The level reaches the emptiest first, then the next, until what is free is used up.
    let (mut volume, mut weights, mut reached) = (free, 0u128, 0);
    for v in &by_floor {
        let vessel = vessels[*v];
        let is_above = u128::from(vessel.floor) * weights > volume * u128::from(vessel.weight);
        if reached > 0 && is_above {
            break;
        }
        volume += u128::from(vessel.floor);
        weights += u128::from(vessel.weight);
        reached += 1;
    }
    let mut poured: Vec<u64> = open.iter().map(|v| vessels[*v].floor).collect();
    for v in &by_floor[..reached] {
        let level = volume * u128::from(vessels[*v].weight) / weights.max(1);
        let Ok(at) = open.binary_search(v) else { continue };
        poured[at] = poured[at].max(u64::try_from(level).unwrap_or(u64::MAX));
    }
    poured
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(free: u64, vessels: &[(u64, u64, u64)]) -> Vec<u64> {
        let vessels: Vec<Vessel> =
            vessels.iter().map(|&(floor, weight, most)| Vessel { floor, weight, most }).collect();
        pour(free, &vessels).into_iter().map(|level| level.held).collect()
    }

    #[test]
    fn all_reach_the_same_level_for_their_weight() {
        assert_eq!(held(300, &[(0, 1, 999), (0, 1, 999), (0, 1, 999)]), [100, 100, 100]);
        assert_eq!(held(300, &[(0, 1, 999), (0, 2, 999)]), [100, 200]);
        // What is there stays, and the others share the rest.
        assert_eq!(held(100, &[(200, 1, 999), (0, 1, 999), (20, 1, 999)]), [200, 60, 60]);
        assert_eq!(held(5, &[]), [0; 0]);
    }

    #[test]
    fn what_one_may_not_hold_goes_to_the_others() {
        assert_eq!(held(300, &[(0, 1, 40), (0, 1, 999), (0, 1, 999)]), [40, 130, 130]);
        // The second one is full only with what the first may not hold.
        assert_eq!(held(300, &[(0, 1, 40), (0, 1, 120), (0, 1, 999)]), [40, 120, 140]);
        // What is above its bound already is not poured anywhere.
        assert_eq!(held(100, &[(90, 1, 50), (0, 1, 999), (0, 1, 999)]), [90, 50, 50]);
    }

    #[test]
    fn when_all_are_full_weights_decide_alone() {
        assert_eq!(held(300, &[(0, 1, 40), (0, 1, 50), (0, 1, 60)]), [100, 100, 100]);
    }

    #[test]
    fn what_is_wanted_is_told() {
        let vessels = [Vessel { floor: 0, weight: 9, most: 80 }, Vessel { floor: 0, weight: 1, most: 80 }];
        assert_eq!(pour(100, &vessels), [Level { held: 80, wanted: 90 }, Level { held: 20, wanted: 10 }]);
    }
}
