//! RangeStream, new in etcd 3.7 (server/etcdserver/v3_server.go, `rangeStream`).

use pb::{SortOrder, SortTarget};
use sharded_etcd_etcd_api::messages as pb;
use tonic::{
    Code::{InvalidArgument, OutOfRange, Unimplemented},
    Status,
};

use super::texts::{FAR, FUTURE, NO_KEY, SORT_OPTION};
use crate::{
    Suite,
    check::{Check, Ctx, needed, revision},
    request::{get, put, txn},
};

/// All parts of an answer.
async fn parts(c: &Ctx, request: pb::RangeRequest) -> Result<Vec<pb::RangeResponse>, Status> {
    let mut stream = c.api.kv.clone().range_stream(request).await?.into_inner();
    let mut parts = Vec::new();
    while let Some(part) = stream.message().await? {
        parts.push(part.range_response.ok_or_else(|| Status::internal("a part without an answer"))?);
    }
    Ok(parts)
}

/// One answer made of all parts; only the last part may have a header, a count and `more`.
async fn whole(c: &Ctx, request: pb::RangeRequest) -> Check<pb::RangeResponse> {
    let mut parts = needed("RangeStream", parts(c, request).await)?;
    let mut whole = parts.pop().unwrap_or_default();
    for part in parts.iter().rev() {
        c.same("header of an earlier part", part.header, None);
        c.same("rest of an earlier part", (part.count, part.more), (0, false));
        whole.kvs.splice(0..0, part.kvs.iter().cloned());
    }
    c.holds("the last part has a header", whole.header.is_some());
    Ok(whole)
}

const FIVE: [(&str, &str); 5] = [("a/1", "1"), ("a/2", "2"), ("b/1", "3"), ("b/2", "4"), ("c/1", "5")];

type Change = fn(&Ctx, pb::RangeRequest) -> pb::RangeRequest;

pub(super) fn add(suite: &mut Suite) {
    let same: [(&str, Change); 9] = [
        ("all", |_, r| r),
        ("one-key", |c, _| get(c.key("b/1"))),
        ("missing-key", |c, _| get(c.key("b/9"))),
        ("directory", |c, _| c.dir("b/")),
        ("serializable", |_, r| pb::RangeRequest { serializable: true, ..r }),
        ("ascending", |_, r| pb::RangeRequest { sort_order: SortOrder::Ascend.into(), ..r }),
        ("target-only", |_, r| pb::RangeRequest { sort_target: SortTarget::Key.into(), ..r }),
        ("keys-only", |_, r| pb::RangeRequest { keys_only: true, ..r }),
        ("count-only", |_, r| pb::RangeRequest { count_only: true, ..r }),
    ];
    for (name, change) in same {
        suite.case(
            format!("range-stream/{name}"),
            format!("the parts of a stream make the answer that Range gives ({name})"),
            move |c| async move {
                let last = c.puts(&FIVE).await?[4];
                let request = pb::RangeRequest { revision: last, ..change(&c, c.all()) };
                let want = c.range(request.clone()).await?;
                let got = whole(&c, request).await?;
                c.same("answer", (got.kvs, got.more, got.count), (want.kvs, want.more, want.count));
                Ok(())
            },
        );
    }
    for (limit, keys, more) in [(1, 1, true), (4, 4, true), (5, 5, false), (9, 5, false)] {
        suite.case(
            format!("range-stream/limit-{limit}"),
            format!(
                "limit {limit} over five keys streams {keys} of them, with more {more}, and counts \
five"
            ),
            move |c| async move {
                c.puts(&FIVE).await?;
                let answer = whole(&c, pb::RangeRequest { limit, ..c.all() }).await?;
                c.same("answer", (answer.kvs.len(), answer.more, answer.count), (keys, more, 5));
                Ok(())
            },
        );
    }
    suite.case("range-stream/empty", "a range without keys is one part with a header", |c| async move {
        let parts = needed("RangeStream", parts(&c, c.all()).await)?;
        c.same("parts", parts.len(), 1);
        c.holds("there is a header", parts.iter().all(|part| part.header.is_some()));
        c.same("count", parts.iter().map(|part| part.count).sum::<i64>(), 0);
        Ok(())
    });
    suite.case(
        "range-stream/many-keys",
        "300 keys over all directories come in order, each once",
        |c| async move {
            let mut want = Vec::new();
            for dir in ["a", "b", "c"] {
                let mut puts = txn();
                for n in 0..100 {
                    let name = format!("{dir}/{n:03}");
                    puts = puts.then(put(c.key(&name), &name));
                    want.push(name);
                }
                c.txn(puts).await?;
            }
            let answer = whole(&c, c.all()).await?;
            c.same("keys", c.names(&answer.kvs), want.join(" "));
            c.same("rest", (answer.count, answer.more), (300, false));
            let answer = whole(&c, pb::RangeRequest { limit: 250, ..c.all() }).await?;
            c.same("limited", c.names(&answer.kvs), want[..250].join(" "));
            c.same("rest", (answer.count, answer.more), (300, true));
            Ok(())
        },
    );
    suite.case("range-stream/first", "the first part is small, so that it comes soon", |c| async move {
        let puts = (0..25).fold(txn(), |puts, n| puts.then(put(c.key(&format!("b/{n:02}")), "x")));
        c.txn(puts).await?;
        for (limit, first, several) in [(0, 10, true), (5, 5, false), (10, 10, false), (25, 10, true)] {
            let parts = needed("RangeStream", parts(&c, pb::RangeRequest { limit, ..c.all() }).await)?;
            c.same("keys of the first part", parts.first().map(|part| part.kvs.len()), Some(first));
            c.same("there are more parts", parts.len() > 1, several);
            c.same("count", parts.last().map(|part| part.count), Some(25));
        }
        Ok(())
    });
    suite.case(
        "range-stream/large",
        "more than one message can hold comes in several parts",
        |c| async move {
            let value = "v".repeat(200_000);
            let mut want = Vec::new();
            for n in 0..24 {
                want.push(format!("{}/{n:02}", ["a", "b", "c"][n / 8]));
                c.put(&want[n], &value).await?;
            }
            let parts = needed("RangeStream", parts(&c, c.all()).await)?;
            c.holds("there are several parts", parts.len() > 1);
            let keys: Vec<_> = parts.iter().flat_map(|part| &part.kvs).map(|kv| c.name(&kv.key)).collect();
            c.same("keys", keys.join(" "), want.join(" "));
            Ok(())
        },
    );
    suite.case(
        "range-stream/past",
        "a stream at a revision shows the store as it was then",
        |c| async move {
            let at = c.puts(&FIVE).await?;
            c.put("b/1", "later").await?;
            let answer = whole(&c, pb::RangeRequest { revision: at[3], ..c.all() }).await?;
            c.same("pairs", c.words(&answer.kvs), "a/1=1 a/2=2 b/1=3 b/2=4");
            c.holds("the header is not before the last write", revision(&answer.header) > at[4]);
            Ok(())
        },
    );
    suite.case("range-stream/errors/empty-key", "a stream without a key is refused", |c| async move {
        c.refused(parts(&c, pb::RangeRequest::default()).await, InvalidArgument, NO_KEY);
        Ok(())
    });
    suite.case(
        "range-stream/errors/unknown-sort",
        "a stream with an unknown sort order is refused",
        |c| async move {
            c.refused(
                parts(&c, pb::RangeRequest { sort_order: 7, ..c.all() }).await,
                InvalidArgument,
                SORT_OPTION,
            );
            Ok(())
        },
    );
    suite.case("range-stream/errors/future", "a stream at a future revision is refused", |c| async move {
        let request = pb::RangeRequest { revision: c.now().await? + FAR, ..c.all() };
        c.refused(parts(&c, request).await, OutOfRange, FUTURE);
        Ok(())
    });
    for (name, order, target) in [
        ("descend", SortOrder::Descend, SortTarget::Key),
        ("by-mod", SortOrder::Ascend, SortTarget::Mod),
        ("by-value", SortOrder::Descend, SortTarget::Value),
    ] {
        suite.case(
            format!("range-stream/errors/sorted-{name}"),
            "a stream is only served in key order",
            move |c| async move {
                let request =
                    pb::RangeRequest { sort_order: order.into(), sort_target: target.into(), ..c.all() };
                let text = "RangeStream does not support custom sort orders";
                c.refused(parts(&c, request).await, Unimplemented, text);
                Ok(())
            },
        );
    }
    let filters: [(&str, Change); 4] = [
        ("min-mod", |_, r| pb::RangeRequest { min_mod_revision: 1, ..r }),
        ("max-mod", |_, r| pb::RangeRequest { max_mod_revision: 1, ..r }),
        ("min-create", |_, r| pb::RangeRequest { min_create_revision: 1, ..r }),
        ("max-create", |_, r| pb::RangeRequest { max_create_revision: 1, ..r }),
    ];
    for (name, change) in filters {
        suite.case(
            format!("range-stream/errors/{name}"),
            "a stream is only served without bounds on revisions",
            move |c| async move {
                let text = "RangeStream does not support revision filters";
                c.refused(parts(&c, change(&c, c.all())).await, Unimplemented, text);
                Ok(())
            },
        );
    }
}
