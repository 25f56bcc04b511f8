//! The last step of a Range: filters, sort, limit, `more` and keys-only, on what the index found.
//!
//! Pure, so that it can also finish answers that were merged from several stores.

use std::cmp::Ordering;

use sharded_etcd_etcd_api::messages as pb;

/// The finished part of a [`pb::RangeResponse`].
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Finished {
    /// Keys and values in the order asked for, at most `limit` of them.
    pub kvs: Vec<pb::KeyValue>,
    /// True when the limit cut something off.
    pub more: bool,
}

/// Whether the index already delivers the order asked for (ascending by key), so that it may stop at the limit.
pub fn is_default_order(request: &pb::RangeRequest) -> bool {
    request.sort_order == pb::SortOrder::None as i32
        || (request.sort_target == pb::SortTarget::Key as i32
            && request.sort_order == pb::SortOrder::Ascend as i32)
}

/// Whether the request filters on create or mod revisions.
pub fn has_revision_filters(request: &pb::RangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

/// How many keys are needed from the index: one more than the limit, to know `more`, or `None` for all of them.
///
/// A target other than the key with order NONE still sorts what the limited scan found, as etcd does.
pub fn scan_limit(request: &pb::RangeRequest) -> Option<usize> {
    if request.limit <= 0 || !is_default_order(request) || has_revision_filters(request) {
        return None;
    }
    usize::try_from(request.limit.saturating_add(1)).ok()
}

/// Filters, sorts and cuts `kvs` (in key order, all or the first [`scan_limit`] of them) as etcd's Range does.
///
/// `count` of the response is not touched by filters or limit: it is the number of keys in the range.
pub fn finish_range(mut kvs: Vec<pb::KeyValue>, request: &pb::RangeRequest) -> Finished {
    if has_revision_filters(request) {
        kvs.retain(|kv| {
            (request.max_mod_revision == 0 || kv.mod_revision <= request.max_mod_revision)
                && (request.min_mod_revision == 0 || kv.mod_revision >= request.min_mod_revision)
                && (request.max_create_revision == 0 || kv.create_revision <= request.max_create_revision)
                && (request.min_create_revision == 0 || kv.create_revision >= request.min_create_revision)
        });
    }
    sort(&mut kvs, request);
    let limit = usize::try_from(request.limit).unwrap_or(0);
    let more = limit > 0 && kvs.len() > limit;
    if more {
        kvs.truncate(limit);
    }
    if request.keys_only {
        for kv in &mut kvs {
            kv.value = bytes::Bytes::new();
        }
    }
    Finished { kvs, more }
}

fn sort(kvs: &mut [pb::KeyValue], request: &pb::RangeRequest) {
    let target = pb::SortTarget::try_from(request.sort_target).unwrap_or(pb::SortTarget::Key);
    let mut order = pb::SortOrder::try_from(request.sort_order).unwrap_or(pb::SortOrder::None);
    if target != pb::SortTarget::Key && order == pb::SortOrder::None {
        order = pb::SortOrder::Ascend;
    }
    let by_target = |a: &pb::KeyValue, b: &pb::KeyValue| -> Ordering {
        match target {
            pb::SortTarget::Key => a.key.cmp(&b.key),
            pb::SortTarget::Version => a.version.cmp(&b.version),
            pb::SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            pb::SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            pb::SortTarget::Value => a.value.cmp(&b.value),
        }
    };
    match order {
        pb::SortOrder::None => {}
        // The sort is stable: equal keys stay in ascending key order, which etcd leaves open.
        pb::SortOrder::Ascend if target == pb::SortTarget::Key => {}
        pb::SortOrder::Ascend => kvs.sort_by(by_target),
        pb::SortOrder::Descend => kvs.sort_by(|a, b| by_target(b, a)),
    }
}
