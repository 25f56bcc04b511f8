//! How many shards the topology is told to have.

use super::{Problem, facts::Facts};

/// The share of the remaining shards' quotas that the data may fill after a scale-in: 4/5. The rest is for history,
/// for keys being larger in etcd's database than by themselves, and for shards that do not get the same.
const FILL_MAX: (u64, u64) = (4, 5);

/// How many shards the topology is told to have, at least the spec's `wanted`.
///
/// A scale-in is judged once, before it is begun, by what the shard manager reports:
///
/// ```text
/// bytes of clients' keys and values over all shards  ≤  4/5 × shards wanted × quota of a shard
/// ```
///
/// If it does not hold, or cannot be judged, the shards that are part of the line stay wanted. Once the routing has told
/// the topology of the lower number, it is not taken back but by the spec: data that grows in the middle does not
/// turn a drain around.
pub(super) fn effective_shards(facts: &Facts<'_>, wanted: u32, problems: &mut Vec<Problem>) -> u32 {
    let told = facts.routing.as_ref().and_then(|r| u32::try_from(r.resource.spec.shards).ok());
    let there = || {
        let sets = facts.observed.children.stateful_sets.values();
        let sets = sets.filter(|set| crate::names::is_owned(&set.metadata, &facts.uid));
        let sets = sets.filter_map(|set| {
            super::facts::index(crate::names::label(&set.metadata, crate::names::LABEL_CLUSTER)?)
        });
        facts.line.keys().copied().chain(sets).max().map(|index| index + 1)
    };
    let Some(current) = told.or_else(there).filter(|current| wanted < *current) else { return wanted };
    let Some(report) = facts.report else {
        if !facts.bootstrapped {
            return wanted;
        }
        problems.push(Problem::wait(
            "WaitingForTopology",
            format!(
                "spec.shards: {wanted} instead of {current} waits until the shard manager says whether the data fits"
            ),
        ));
        return current;
    };
    let last = facts.line.keys().next_back().map_or(0, |index| index + 1);
    if last <= wanted {
        return wanted;
    }
    let stay = last.clamp(wanted, current);
    if report.status.range_map.ranges.iter().any(|range| range.bytes.is_none()) {
        problems.push(Problem::wait(
            "WaitingForSizes",
            format!(
                "spec.shards: {wanted} instead of {current} waits until the sizes of all ranges are known"
            ),
        ));
        return stay;
    }
    let bytes = u64::try_from(report.status.bytes).unwrap_or_default();
    let quota = facts.resource.spec.etcd_quota_bytes();
    let room = u128::from(quota) * u128::from(wanted) * u128::from(FILL_MAX.0) / u128::from(FILL_MAX.1);
    if u128::from(bytes) <= room {
        return wanted;
    }
    let per_shard = u128::from(quota) * u128::from(FILL_MAX.0) / u128::from(FILL_MAX.1);
    let enough = u128::from(bytes).div_ceil(per_shard.max(1));
    problems.push(Problem {
        reason: "ScaleInRefused",
        message: format!(
            "{wanted} shards have room for {room} bytes (4/5 of {wanted} x {quota} bytes of quota), and clients' data \
             has {bytes} bytes: {stay} shards stay; write spec.shards: {enough} or more, or raise spec.etcd.quota"
        ),
        field: Some("spec.shards".to_owned()),
        temporary: false,
    });
    stay
}
