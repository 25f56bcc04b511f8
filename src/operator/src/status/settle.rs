//! Keeps a status from being written again and again as counts go up and down.
//!
//! Counts (keys, bytes, revisions, sizes, load, progress) are taken over
//!
//! - together with any other change, or
//! - when a count of keys or bytes is off by more than 5 % (and by more than 100 keys, or 1 MiB), or a move has got on by
//!   ten points of a hundred, or
//! - when the shell says that it is time, at most once a minute.
//!
//! The texts that come from the shard manager count as the same when they differ in their digits only.

use sharded_etcd_crd::status::ShardedEtcdStatus;

/// Differences of keys below this are no news.
const KEYS_MIN: i64 = 100;
/// Differences of bytes below this are no news.
const BYTES_MIN: i64 = 1 << 20;
/// Points of a hundred that a move must get on by.
const PROGRESS_MIN: i64 = 10;

/// `next`, or `previous` if nothing worth writing has changed.
pub(super) fn settle(
    previous: &ShardedEtcdStatus,
    next: ShardedEtcdStatus,
    counts_due: bool,
) -> ShardedEtcdStatus {
    if counts_due || is_far(previous, &next) || without_counts(previous) != without_counts(&next) {
        next
    } else {
        previous.clone()
    }
}

/// The same with every count taken out.
fn without_counts(status: &ShardedEtcdStatus) -> ShardedEtcdStatus {
    let mut status = status.clone();
    status.keys = 0;
    status.bytes = 0;
    status.revision = 0;
    status.compact_revision = 0;
    status.load = None;
    for condition in status.conditions.iter_mut().filter(|condition| condition.type_ == super::BALANCED) {
        condition.message = without_digits(&condition.message);
    }
    for shard in &mut status.topology {
        shard.db_size = 0;
        shard.keys = 0;
        shard.bytes = 0;
        shard.message = shard.message.as_deref().map(without_digits);
    }
    for range in &mut status.range_map.ranges {
        range.keys = range.keys.map(|_| 0);
        range.bytes = range.bytes.map(|_| 0);
    }
    for moving in &mut status.moves {
        moving.progress = 0;
        moving.stall_ms = moving.stall_ms.map(|_| 0);
        moving.reason = without_digits(&moving.reason);
    }
    status
}

fn without_digits(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit() && *c != '.').collect()
}

/// Both have the same shards, ranges and moves where it matters; where not, something else has changed anyway.
fn is_far(previous: &ShardedEtcdStatus, next: &ShardedEtcdStatus) -> bool {
    let shards = previous.topology.iter().zip(&next.topology);
    let moves = previous.moves.iter().zip(&next.moves);
    off(previous.keys, next.keys, KEYS_MIN)
        || off(previous.bytes, next.bytes, BYTES_MIN)
        || shards.into_iter().any(|(a, b)| {
            off(a.keys, b.keys, KEYS_MIN)
                || off(a.bytes, b.bytes, BYTES_MIN)
                || off(a.db_size, b.db_size, BYTES_MIN)
        })
        || moves.into_iter().any(|(a, b)| a.progress.abs_diff(b.progress) >= PROGRESS_MIN.unsigned_abs())
}

/// Whether two counts differ by more than 5 % of the larger, and by more than `min`.
fn off(a: i64, b: i64, min: i64) -> bool {
    let difference = a.abs_diff(b);
    difference > min.unsigned_abs() && difference.saturating_mul(20) > a.max(b).unsigned_abs()
}
