//! Reading everything that meta holds about leases.

use sharded_etcd_core::{
    keyspace::{KeyRange, successor},
    records::LEASE_PREFIX,
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Shard, ShardError};

/// Keys of one page.
const PAGE_KEYS: i64 = 5_000;

/// Shows `look` every key of leases, in order, all at one revision, which is returned.
///
/// # Errors
/// If meta cannot be reached; `look` may have seen a part by then.
pub(super) async fn read_all(
    meta: &dyn Shard,
    mut look: impl FnMut(&pb::KeyValue),
) -> Result<i64, ShardError> {
    let mut range = KeyRange::prefix(LEASE_PREFIX);
    let mut revision = 0;
    loop {
        let request = pb::RangeRequest {
            key: range.request_key(),
            range_end: range.request_end(),
            limit: PAGE_KEYS,
            revision,
            ..Default::default()
        };
        let page = meta.range(request).await?;
        if revision == 0 {
            revision = page.header.as_ref().map_or(0, |h| h.revision);
        }
        page.kvs.iter().for_each(&mut look);
        let Some(last) = page.kvs.last().filter(|_| page.more) else { return Ok(revision) };
        range.start = successor(&last.key);
    }
}
