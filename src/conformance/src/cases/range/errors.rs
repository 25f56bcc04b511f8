//! Ranges that are refused.

use sharded_etcd_etcd_api::messages as pb;
use tonic::Code::InvalidArgument;

use crate::{
    Suite,
    cases::texts::{FAR, NO_KEY, SORT_OPTION},
};

pub(super) fn add(suite: &mut Suite) {
    let empty: [(&str, pb::RangeRequest); 5] = [
        ("empty-key", pb::RangeRequest::default()),
        ("empty-key-with-end", pb::RangeRequest { range_end: "z".into(), ..Default::default() }),
        ("empty-key-to-the-end", pb::RangeRequest { range_end: vec![0].into(), ..Default::default() }),
        ("empty-key-count-only", pb::RangeRequest { count_only: true, ..Default::default() }),
        ("empty-key-in-the-future", pb::RangeRequest { revision: FAR, ..Default::default() }),
    ];
    for (name, request) in empty {
        suite.case(
            format!("range/errors/{name}"),
            "a range without a key is refused, before anything else is looked at \
(server/etcdserver/api/v3rpc/key.go)",
            move |c| {
                let request = request.clone();
                async move {
                    c.refused(c.try_range(request).await, InvalidArgument, NO_KEY);
                    Ok(())
                }
            },
        );
    }
    for (name, order, target) in [
        ("sort-order", 3, 0),
        ("negative-sort-order", -1, 0),
        ("sort-target", 0, 5),
        ("negative-sort-target", 1, -1),
    ] {
        suite.case(
            format!("range/errors/unknown-{name}"),
            "an unknown sort order or target is refused",
            move |c| async move {
                let request = pb::RangeRequest { sort_order: order, sort_target: target, ..c.all() };
                c.refused(c.try_range(request).await, InvalidArgument, SORT_OPTION);
                Ok(())
            },
        );
    }
}
