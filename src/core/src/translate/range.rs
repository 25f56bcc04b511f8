//! The last part of a Range, done over what the shards returned.

use sharded_etcd_etcd_api::messages as pb;

/// True if the answer depends on all keys of the range, not only on the first `limit + 1` in key order: an order that is
/// not etcd's default, or a filter (etcd: server/etcdserver/txn/range.go, `rangeLimit`). A sort target without an order
/// counts as default there: only the first `limit + 1` keys are sorted.
fn needs_everything(request: &pb::RangeRequest) -> bool {
    !is_default_order(request) || has_revision_filters(request)
}

/// Whether keys in ascending order are what is asked for, also if another target would sort them in the end (etcd:
/// `IsDefaultOrdering`).
pub fn is_default_order(request: &pb::RangeRequest) -> bool {
    let ascending_keys =
        request.sort_target() == pb::SortTarget::Key && request.sort_order() == pb::SortOrder::Ascend;
    request.sort_order() == pb::SortOrder::None || ascending_keys
}

/// How many keys in key order the answer needs; `None` for all.
pub fn keys_needed(request: &pb::RangeRequest) -> Option<i64> {
    (request.limit > 0 && !needs_everything(request)).then(|| request.limit.saturating_add(1))
}

/// Whether the request bounds create or mod revisions (etcd: `HasRevisionFilters`).
pub fn has_revision_filters(r: &pb::RangeRequest) -> bool {
    [r.min_mod_revision, r.max_mod_revision, r.min_create_revision, r.max_create_revision]
        .iter()
        .any(|&f| f != 0)
}

/// Filters, sorts and cuts `kvs` (in key order, as clients know them, at least [`keys_needed`] of them if there are so
/// many) as etcd does; also says if there are more.
pub fn finish_range(request: &pb::RangeRequest, mut kvs: Vec<pb::KeyValue>) -> (Vec<pb::KeyValue>, bool) {
    if request.count_only {
        return (Vec::new(), false);
    }
    let keep = |min: i64, max: i64, value: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
    if has_revision_filters(request) {
        kvs.retain(|kv| {
            keep(request.min_mod_revision, request.max_mod_revision, kv.mod_revision)
                && keep(request.min_create_revision, request.max_create_revision, kv.create_revision)
        });
    }
    sort(request, &mut kvs);
    let mut more = false;
    if let Ok(limit) = usize::try_from(request.limit)
        && limit > 0
        && kvs.len() > limit
    {
        kvs.truncate(limit);
        more = true;
    }
    if request.keys_only {
        for kv in &mut kvs {
            kv.value = bytes::Bytes::new();
        }
    }
    (kvs, more)
}

fn sort(request: &pb::RangeRequest, kvs: &mut [pb::KeyValue]) {
    let target = request.sort_target();
    let order = match request.sort_order() {
        // etcd sorts ascending when only a target is given; by key everything is in that order already.
        pb::SortOrder::None if target != pb::SortTarget::Key => pb::SortOrder::Ascend,
        order => order,
    };
    if order == pb::SortOrder::None || (order == pb::SortOrder::Ascend && target == pb::SortTarget::Key) {
        return;
    }
    // Stable, so ties stay in key order, also descending.
    kvs.sort_by(|a, b| {
        let by = match target {
            pb::SortTarget::Key => a.key.cmp(&b.key),
            pb::SortTarget::Version => a.version.cmp(&b.version),
            pb::SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            pb::SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            pb::SortTarget::Value => a.value.cmp(&b.value),
        };
        if order == pb::SortOrder::Descend { by.reverse() } else { by }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kvs() -> Vec<pb::KeyValue> {
        [("a", 5, 1), ("b", 3, 2), ("c", 9, 3)]
            .map(|(key, mod_revision, create_revision)| pb::KeyValue {
                key: key.into(),
                mod_revision,
                create_revision,
                value: "v".into(),
                ..Default::default()
            })
            .to_vec()
    }

    fn keys(request: pb::RangeRequest) -> (String, bool) {
        let (kvs, more) = finish_range(&request, kvs());
        (kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect(), more)
    }

    #[test]
    fn sorts_filters_and_cuts_as_etcd() {
        let r = pb::RangeRequest::default();
        assert_eq!(keys(r.clone()), ("abc".into(), false));
        assert_eq!(keys(pb::RangeRequest { limit: 2, ..r.clone() }), ("ab".into(), true));
        assert_eq!(keys(pb::RangeRequest { limit: 3, ..r.clone() }), ("abc".into(), false));
        let by_mod = pb::RangeRequest { sort_target: pb::SortTarget::Mod.into(), ..r.clone() };
        assert_eq!(keys(by_mod.clone()), ("bac".into(), false));
        assert_eq!(keys_needed(&pb::RangeRequest { limit: 1, ..by_mod }), Some(2), "etcd sorts what it cut");
        let down = pb::RangeRequest { sort_order: pb::SortOrder::Descend.into(), limit: 1, ..r.clone() };
        assert_eq!(keys(down.clone()), ("c".into(), true));
        assert!(needs_everything(&down));
        assert!(!needs_everything(&pb::RangeRequest {
            sort_order: pb::SortOrder::Ascend.into(),
            ..r.clone()
        }));
        assert_eq!(keys(pb::RangeRequest { min_mod_revision: 4, limit: 1, ..r.clone() }), ("a".into(), true));
        assert_eq!(keys(pb::RangeRequest { max_create_revision: 1, ..r.clone() }), ("a".into(), false));
        assert_eq!(keys(pb::RangeRequest { count_only: true, ..r }), (String::new(), false));
    }
}
