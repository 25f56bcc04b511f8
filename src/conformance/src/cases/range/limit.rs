//! Limits, `more`, counts and pages.

use sharded_etcd_etcd_api::messages as pb;

use crate::{Suite, check::revision};

const FIVE: [(&str, &str); 5] = [("a/1", "1"), ("a/2", "2"), ("b/1", "3"), ("b/2", "4"), ("c/1", "5")];

pub(super) fn add(suite: &mut Suite) {
    for (name, limit, keys, more) in [
        ("none", 0, 5, false),
        ("one", 1, 1, true),
        ("one-less", 4, 4, true),
        ("all", 5, 5, false),
        ("one-more", 6, 5, false),
        ("largest", i64::MAX, 5, false),
        ("negative", -1, 5, false),
    ] {
        suite.case(
            format!("range/limit/{name}"),
            format!(
                "limit {limit} over five keys gives {keys} of them, with more {more}, and counts \
five"
            ),
            move |c| async move {
                c.puts(&FIVE).await?;
                let answer = c.range(pb::RangeRequest { limit, ..c.all() }).await?;
                let want: Vec<_> = FIVE.iter().take(keys).map(|(name, _)| *name).collect();
                c.same("keys", c.names(&answer.kvs), want.join(" "));
                c.same("more", answer.more, more);
                c.same("count", answer.count, 5);
                Ok(())
            },
        );
    }
    suite.case(
        "range/limit/count-only",
        "count_only has no keys and no more, whatever the limit",
        |c| async move {
            c.puts(&FIVE).await?;
            let answer = c.range(pb::RangeRequest { limit: 2, count_only: true, ..c.all() }).await?;
            c.same("answer", (answer.kvs.len(), answer.more, answer.count), (0, false, 5));
            Ok(())
        },
    );
    suite.case(
        "range/limit/keys-only",
        "keys_only with a limit gives keys without values, and more",
        |c| async move {
            c.puts(&FIVE).await?;
            let answer = c.range(pb::RangeRequest { limit: 3, keys_only: true, ..c.all() }).await?;
            c.same("pairs", c.words(&answer.kvs), "a/1= a/2= b/1=");
            c.same("rest", (answer.more, answer.count), (true, 5));
            Ok(())
        },
    );
    suite.case("range/limit/empty-range", "a limit on a range without keys has no more", |c| async move {
        let answer = c.range(pb::RangeRequest { limit: 1, ..c.all() }).await?;
        c.same("answer", (answer.kvs.len(), answer.more, answer.count), (0, false, 0));
        Ok(())
    });
    suite.case(
        "range/limit/pages",
        "pages at the revision of the first page show the store as it was then, each key \
once, whatever is written meanwhile",
        |c| async move {
            c.puts(&FIVE).await?;
            let mut request = pb::RangeRequest { limit: 2, ..c.all() };
            let mut pages = Vec::new();
            for write in ["a/0", "b/2", "c/2", "a/3"] {
                let answer = c.range(request.clone()).await?;
                request.revision = request.revision.max(revision(&answer.header));
                pages.push(c.words(&answer.kvs));
                c.put(write, "later").await?;
                let Some(last) = answer.kvs.last().filter(|_| answer.more) else { break };
                request.key = [last.key.as_ref(), &[0]].concat().into();
            }
            c.same("pages", pages, ["a/1=1 a/2=2", "b/1=3 b/2=4", "c/1=5"]);
            Ok(())
        },
    );
    suite.case(
        "range/limit/pages-count",
        "count of a later page counts the keys from its first key on",
        |c| async move {
            c.puts(&FIVE).await?;
            let request = pb::RangeRequest { limit: 2, key: c.key("b/1"), ..c.all() };
            let answer = c.range(request).await?;
            c.same(
                "answer",
                (c.names(&answer.kvs).as_str(), answer.more, answer.count),
                ("b/1 b/2", true, 3),
            );
            Ok(())
        },
    );
    suite.case(
        "range/limit/many-keys",
        "300 keys over all directories are all found, in order",
        |c| async move {
            let mut want = Vec::new();
            for dir in ["a", "b", "c"] {
                let mut puts = crate::request::txn();
                for n in 0..100 {
                    let name = format!("{dir}/{n:03}");
                    puts = puts.then(crate::request::put(c.key(&name), &name));
                    want.push(name);
                }
                c.txn(puts).await?;
            }
            let answer = c.range(c.all()).await?;
            c.same("keys", c.names(&answer.kvs), want.join(" "));
            let page = c.range(pb::RangeRequest { limit: 150, ..c.all() }).await?;
            c.same("page", c.names(&page.kvs), want[..150].join(" "));
            c.same("rest", (page.more, page.count), (true, 300));
            Ok(())
        },
    );
}
