//! Sort targets and orders, alone and with other options.

use std::cmp::Ordering;

use pb::{SortOrder, SortTarget};
use sharded_etcd_etcd_api::messages as pb;

use super::store;
use crate::{Suite, request::get};

pub(super) const TARGETS: [(SortTarget, &str); 5] = [
    (SortTarget::Key, "key"),
    (SortTarget::Version, "version"),
    (SortTarget::Create, "create"),
    (SortTarget::Mod, "mod"),
    (SortTarget::Value, "value"),
];
const ORDERS: [(SortOrder, &str); 3] =
    [(SortOrder::None, "none"), (SortOrder::Ascend, "ascend"), (SortOrder::Descend, "descend")];

fn by(target: SortTarget, a: &pb::KeyValue, b: &pb::KeyValue) -> Ordering {
    match target {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    }
}

/// As etcd sorts: without an order ascending, which for keys they are in already.
pub(super) fn sorted(mut kvs: Vec<pb::KeyValue>, target: SortTarget, order: SortOrder) -> Vec<pb::KeyValue> {
    kvs.sort_by(|a, b| by(target, a, b));
    if order == SortOrder::Descend {
        kvs.reverse();
    }
    kvs
}

pub(super) fn add(suite: &mut Suite) {
    for (target, target_name) in TARGETS {
        for (order, order_name) in ORDERS {
            suite.case(
                format!("range/sort/{target_name}-{order_name}"),
                format!(
                    "keys are sorted by {target_name}, order {order_name} \
(server/etcdserver/txn/range.go)"
                ),
                move |c| async move {
                    let store = store(&c).await?;
                    let request =
                        pb::RangeRequest { sort_target: target.into(), sort_order: order.into(), ..c.all() };
                    let answer = c.range(request).await?;
                    c.same("pairs", answer.kvs, sorted(store.kvs, target, order));
                    c.same("more", answer.more, false);
                    c.same("count", answer.count, 5);
                    Ok(())
                },
            );
            suite.case(
                format!("range/sort/{target_name}-{order_name}-limit"),
                format!(
                    "with a limit and order {order_name} by {target_name}, the first keys of that order are \
                     returned; without \
                     an order only the first limit + 1 keys by name are sorted"
                ),
                move |c| async move {
                    let store = store(&c).await?;
                    let request = pb::RangeRequest {
                        sort_target: target.into(),
                        sort_order: order.into(),
                        limit: 2,
                        ..c.all()
                    };
                    let answer = c.range(request).await?;
                    let mut want = store.kvs;
                    if order == SortOrder::None {
                        want.truncate(3);
                    }
                    let mut want = sorted(want, target, order);
                    want.truncate(2);
                    c.same("pairs", answer.kvs, want);
                    c.same("more", answer.more, true);
                    c.same("count", answer.count, 5);
                    Ok(())
                },
            );
        }
        suite.case(
            format!("range/sort/{target_name}-descend-past"),
            format!("keys of a past revision are sorted by {target_name} as it was then"),
            move |c| async move {
                let store = store(&c).await?;
                let request = pb::RangeRequest {
                    sort_target: target.into(),
                    sort_order: SortOrder::Descend.into(),
                    revision: store.before_revision,
                    ..c.all()
                };
                let answer = c.range(request).await?;
                c.same("pairs", answer.kvs, sorted(store.before, target, SortOrder::Descend));
                Ok(())
            },
        );
        suite.case(
            format!("range/sort/{target_name}-descend-keys-only"),
            format!("keys_only leaves values out after sorting by {target_name}"),
            move |c| async move {
                let store = store(&c).await?;
                let request = pb::RangeRequest {
                    sort_target: target.into(),
                    sort_order: SortOrder::Descend.into(),
                    keys_only: true,
                    ..c.all()
                };
                let answer = c.range(request).await?;
                let mut want = sorted(store.kvs, target, SortOrder::Descend);
                want.iter_mut().for_each(|kv| kv.value.clear());
                c.same("pairs", answer.kvs, want);
                Ok(())
            },
        );
    }
    suite.case(
        "range/sort/newest-of-many",
        "descending by create revision with limit 1 gives the key that was created last \
(clientv3's WithLastCreate)",
        |c| async move {
            c.puts(&[("b/1", "x"), ("c/9", "x"), ("a/5", "x"), ("c/9", "y")]).await?;
            let request = pb::RangeRequest {
                sort_target: SortTarget::Create.into(),
                sort_order: SortOrder::Descend.into(),
                limit: 1,
                ..c.all()
            };
            let answer = c.range(request).await?;
            c.same("keys", c.names(&answer.kvs), "a/5");
            c.same("more", answer.more, true);
            Ok(())
        },
    );
    suite.case("range/sort/one-key", "sort options do not matter for a single key", |c| async move {
        c.puts(&[("a/1", "x"), ("a/2", "y")]).await?;
        let request = pb::RangeRequest {
            sort_target: SortTarget::Value.into(),
            sort_order: SortOrder::Descend.into(),
            ..get(c.key("a/2"))
        };
        c.same("pairs", c.words(&c.range(request).await?.kvs), "a/2=y");
        Ok(())
    });
}
