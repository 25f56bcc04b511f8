//! The quota of a shard: no plan takes a shard over it, whatever weights and pins say.
//!
//! A shard over its quota refuses what clients put (etcd's code, from the proxy), so a move that fills it up does harm where
//! there was none. What counts is what its database has in use, history included, plus what is brought to it. For balance
//! four fifths are the bound, as for a scale-in: the rest is for clients and history. What has to go somewhere, from a
//! shard that leaves or for a pin, may take all of it.

use super::{
    model::{Measure, Model, ShardAt},
    planner::Waits,
    text::bytes_text,
};

/// The part of the quota that balance fills.
const BALANCE: (u64, u64) = (4, 5);

/// Bytes of clients that the shard may hold so that four fifths of its quota are in use.
pub(super) fn most(model: &Model<'_>, shard: ShardAt) -> u64 {
    let Some(quota) = model.topology.quota_bytes else { return u64::MAX };
    (quota / BALANCE.1 * BALANCE.0).saturating_sub(beside(model, shard))
}

/// Bytes in use beside what clients' keys and values take up: history, the database's own, what is being copied.
fn beside(model: &Model<'_>, shard: ShardAt) -> u64 {
    let shard = &model.shards[shard];
    shard.used_bytes.saturating_sub(shard.held.bytes)
}

/// Bytes that can be brought to the shard for balance.
pub(super) fn for_balance(model: &Model<'_>, shard: ShardAt) -> u64 {
    most(model, shard).saturating_sub(model.shards[shard].load.bytes)
}

/// Bytes that can be brought to the shard if they have to go somewhere.
pub(super) fn at_all(model: &Model<'_>, shard: ShardAt) -> u64 {
    let Some(quota) = model.topology.quota_bytes else { return u64::MAX };
    quota.saturating_sub(beside(model, shard)).saturating_sub(model.shards[shard].load.bytes)
}

/// Why so many bytes cannot be brought to the shard, if so.
pub(super) fn no_room(model: &Model<'_>, shard: ShardAt, bytes: u64) -> Option<String> {
    let quota = model.topology.quota_bytes?;
    no_room_of(&model.shards[shard].name, quota, at_all(model, shard), bytes)
}

/// Why so many bytes cannot be brought to a shard, if its quota leaves less.
pub(crate) fn no_room_of(shard: &str, quota: u64, left: u64, bytes: u64) -> Option<String> {
    (bytes > left).then(|| {
        format!(
            "{} would take {shard} over its quota: {} of {} are left; raise etcd.quota, or delete data and let history be compacted",
            bytes_text(bytes),
            bytes_text(left),
            bytes_text(quota)
        )
    })
}

/// True if the shard is given nothing more for balance, or next to nothing.
pub(super) fn is_full(model: &Model<'_>, shard: ShardAt) -> bool {
    model.topology.quota_bytes.is_some() && for_balance(model, shard) < model.tolerance(Measure::Bytes).max(1)
}

/// What bounds a shard, for people: after its name.
pub(super) fn bound_text(model: &Model<'_>, shard: ShardAt) -> String {
    let quota = model.topology.quota_bytes.unwrap_or(u64::MAX);
    let beside = beside(model, shard);
    let bound = bytes_text(quota / BALANCE.1 * BALANCE.0);
    let quota = bytes_text(quota);
    match beside {
        0 => format!("balance fills {bound} of its quota of {quota}"),
        _ => format!(
            "balance fills {bound} of its quota of {quota}, of which history and the like take {}",
            bytes_text(beside)
        ),
    }
}

/// Says which shards hold clearly less than what their weight says, as their quota allows no more.
pub(super) fn report_capped(model: &Model<'_>, waits: &mut Waits) {
    for (at, shard) in model.shards.iter().enumerate() {
        let Some(wanted) = shard.capped else { continue };
        let target = shard.target.bytes;
        let matters = wanted.saturating_sub(target) >= model.tolerance(Measure::Bytes).max(1);
        if matters && super::balance::above(wanted, target) {
            let (wanted, bound) = (bytes_text(wanted), bound_text(model, at));
            waits.add(
                &shard.name,
                format!("by its weight it should have {wanted}, but {bound}: raise etcd.quota or shards"),
            );
        }
    }
}
