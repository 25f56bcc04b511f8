//! Bounds on mod and create revisions.

use sharded_etcd_etcd_api::messages as pb;

use super::store;
use crate::{Suite, check::Ctx};

type Set = fn(&mut pb::RangeRequest, i64);
type Keep = fn(&pb::KeyValue, i64) -> bool;

const FILTERS: [(&str, Set, Keep); 4] = [
    ("min-mod", |r, at| r.min_mod_revision = at, |kv, at| kv.mod_revision >= at),
    ("max-mod", |r, at| r.max_mod_revision = at, |kv, at| kv.mod_revision <= at),
    ("min-create", |r, at| r.min_create_revision = at, |kv, at| kv.create_revision >= at),
    ("max-create", |r, at| r.max_create_revision = at, |kv, at| kv.create_revision <= at),
];

/// Where the bound is, as a place among the five revisions; with a distance from it.
const BOUNDS: [(&str, usize, i64); 6] = [
    ("below-all", 0, -1),
    ("lowest", 0, 0),
    ("middle", 2, 0),
    ("above-middle", 2, 1),
    ("highest", 4, 0),
    ("above-all", 4, 1_000_000),
];

fn nth(kvs: &[pb::KeyValue], by_mod: bool, place: usize) -> i64 {
    let of = |kv: &pb::KeyValue| if by_mod { kv.mod_revision } else { kv.create_revision };
    let mut revisions: Vec<i64> = kvs.iter().map(of).collect();
    revisions.sort_unstable();
    revisions[place]
}

fn names(c: &Ctx, kvs: &[pb::KeyValue], keep: impl Fn(&pb::KeyValue) -> bool) -> String {
    let kept: Vec<_> = kvs.iter().filter(|kv| keep(kv)).cloned().collect();
    c.names(&kept)
}

pub(super) fn add(suite: &mut Suite) {
    for (filter, set, keep) in FILTERS {
        for (bound, place, distance) in BOUNDS {
            suite.case(
                format!("range/filter/{filter}-{bound}"),
                format!(
                    "{filter} keeps exactly the keys within the bound, which belongs to it; count counts \
all keys"
                ),
                move |c| async move {
                    let store = store(&c).await?;
                    let at = nth(&store.kvs, filter.ends_with("mod"), place) + distance;
                    let mut request = c.all();
                    set(&mut request, at);
                    let answer = c.range(request).await?;
                    c.same("keys", c.names(&answer.kvs), names(&c, &store.kvs, |kv| keep(kv, at)));
                    c.same("count", answer.count, 5);
                    c.same("more", answer.more, false);
                    Ok(())
                },
            );
        }
        suite.case(
            format!("range/filter/{filter}-negative"),
            format!("a negative {filter} is a bound like any other"),
            move |c| async move {
                let store = store(&c).await?;
                let mut request = c.all();
                set(&mut request, -1);
                let answer = c.range(request).await?;
                c.same("keys", c.names(&answer.kvs), names(&c, &store.kvs, |kv| keep(kv, -1)));
                Ok(())
            },
        );
        suite.case(
            format!("range/filter/{filter}-count-only"),
            format!("count_only counts all keys of the range, {filter} or not"),
            move |c| async move {
                let store = store(&c).await?;
                let mut request = pb::RangeRequest { count_only: true, ..c.all() };
                set(&mut request, nth(&store.kvs, filter.ends_with("mod"), 2));
                let answer = c.range(request).await?;
                c.same("count", answer.count, 5);
                c.same("keys", answer.kvs.len(), 0);
                Ok(())
            },
        );
        suite.case(
            format!("range/filter/{filter}-limit"),
            format!("a limit cuts what {filter} has kept, and more says whether it did"),
            move |c| async move {
                let store = store(&c).await?;
                let at = nth(&store.kvs, filter.ends_with("mod"), 2);
                for limit in 1..=4 {
                    let mut request = pb::RangeRequest { limit, ..c.all() };
                    set(&mut request, at);
                    let answer = c.range(request).await?;
                    let mut want: Vec<_> = store.kvs.iter().filter(|kv| keep(kv, at)).cloned().collect();
                    let more = want.len() as i64 > limit;
                    want.truncate(limit as usize);
                    c.same("keys", c.names(&answer.kvs), c.names(&want));
                    c.same("more", answer.more, more);
                    c.same("count", answer.count, 5);
                }
                Ok(())
            },
        );
        suite.case(
            format!("range/filter/{filter}-past"),
            format!("{filter} speaks of the revisions that the keys had at the revision read"),
            move |c| async move {
                let store = store(&c).await?;
                let at = nth(&store.before, filter.ends_with("mod"), 2);
                let mut request = pb::RangeRequest { revision: store.before_revision, ..c.all() };
                set(&mut request, at);
                let answer = c.range(request).await?;
                c.same("keys", c.names(&answer.kvs), names(&c, &store.before, |kv| keep(kv, at)));
                Ok(())
            },
        );
    }
    suite.case(
        "range/filter/window",
        "lower and upper bounds hold together, on mod and create revisions at once",
        |c| async move {
            let store = store(&c).await?;
            let (low, high) = (nth(&store.kvs, true, 1), nth(&store.kvs, true, 3));
            let latest = nth(&store.kvs, false, 3);
            let request = pb::RangeRequest {
                min_mod_revision: low,
                max_mod_revision: high,
                max_create_revision: latest,
                ..c.all()
            };
            let answer = c.range(request).await?;
            let keep =
                |kv: &pb::KeyValue| (low..=high).contains(&kv.mod_revision) && kv.create_revision <= latest;
            c.same("keys", c.names(&answer.kvs), names(&c, &store.kvs, keep));
            Ok(())
        },
    );
    suite.case(
        "range/filter/oldest-before",
        "a prefix, max_create_revision, descending by create revision and limit 1 find the \
waiter ahead (client/v3/concurrency)",
        |c| async move {
            let at = c.puts(&[("b/1", ""), ("b/2", ""), ("b/3", "")]).await?;
            let request = |max| pb::RangeRequest {
                max_create_revision: max,
                sort_target: pb::SortTarget::Create.into(),
                sort_order: pb::SortOrder::Descend.into(),
                limit: 1,
                ..c.dir("b/")
            };
            c.same("ahead of the last", c.names(&c.range(request(at[2] - 1)).await?.kvs), "b/2");
            c.same("ahead of the first", c.names(&c.range(request(at[0] - 1)).await?.kvs), "");
            Ok(())
        },
    );
}
