//! Transactions that only read: they may go over everything.

use sharded_etcd_etcd_api::messages as pb;
use tonic::Code::OutOfRange;

use crate::{
    Suite,
    cases::texts::{FAR, FUTURE},
    check::revision,
    request::{always, get, nested, never, ranged, txn, value_is, version_is},
};

pub(super) fn add(suite: &mut Suite) {
    suite.case(
        "txn/read-only/over-directories",
        "ranges over all directories show one moment, that of the header",
        |c| async move {
            let at = c.puts(&[("a/1", "1"), ("b/1", "2"), ("c/1", "3")]).await?;
            let answer = c.txn(txn().then(get(c.key("c/1"))).then(get(c.key("a/1"))).then(c.all())).await?;
            let seen: Vec<_> =
                answer.responses.iter().filter_map(|op| ranged(Some(op))).map(|r| c.words(&r.kvs)).collect();
            c.same("pairs", seen, ["c/1=3", "a/1=1", "a/1=1 b/1=2 c/1=3"]);
            c.holds("the header is not before the last write", revision(&answer.header) >= at[2]);
            Ok(())
        },
    );
    suite.case(
        "txn/read-only/compares",
        "compares over all directories decide a read-only transaction",
        |c| async move {
            c.puts(&[("a/1", "1"), ("b/1", "2"), ("c/1", "3")]).await?;
            for (value, want) in [("2", "c/1=3"), ("9", "a/1=1")] {
                let request = txn()
                    .when(version_is(c.key("a/1"), 1))
                    .when(value_is(c.key("b/1"), value))
                    .when(version_is(c.key("c/2"), 0))
                    .then(get(c.key("c/1")))
                    .or(get(c.key("a/1")));
                let answer = c.txn(request).await?;
                c.same("succeeded", answer.succeeded, value == "2");
                c.same(
                    "pairs",
                    ranged(answer.responses.first()).map(|r| c.words(&r.kvs)).as_deref(),
                    Some(want),
                );
            }
            Ok(())
        },
    );
    suite.case(
        "txn/read-only/range-compare",
        "a compare over all directories decides a read-only transaction",
        |c| async move {
            let at = c.puts(&[("a/1", "1"), ("b/1", "1"), ("c/1", "1")]).await?;
            let (key, range_end) = c.everything();
            for (operand, want) in [(at[2] + 1, true), (at[2], false)] {
                let compare = pb::Compare {
                    range_end: range_end.clone(),
                    ..crate::request::compare(
                        key.clone(),
                        pb::TargetUnion::ModRevision(operand),
                        pb::CompareResult::Less,
                    )
                };
                c.same("succeeded", c.txn(txn().when(compare)).await?.succeeded, want);
            }
            Ok(())
        },
    );
    suite.case(
        "txn/read-only/options",
        "ranges of a read-only transaction have all options",
        |c| async move {
            let at = c.puts(&[("a/1", "z"), ("b/1", "y"), ("c/1", "x"), ("b/1", "w")]).await?;
            let sorted = |target: pb::SortTarget, order: pb::SortOrder| pb::RangeRequest {
                sort_target: target.into(),
                sort_order: order.into(),
                limit: 2,
                ..c.all()
            };
            let request = txn()
                .then(sorted(pb::SortTarget::Value, pb::SortOrder::Ascend))
                .then(sorted(pb::SortTarget::Mod, pb::SortOrder::Descend))
                .then(pb::RangeRequest { count_only: true, ..c.all() })
                .then(pb::RangeRequest { keys_only: true, ..c.all() })
                .then(pb::RangeRequest { revision: at[1], ..c.all() })
                .then(pb::RangeRequest { min_create_revision: at[1], ..c.all() })
                .then(pb::RangeRequest { serializable: true, revision: at[3], ..get(c.key("b/1")) });
            let answer = c.txn(request).await?;
            let seen: Vec<_> = answer
                .responses
                .iter()
                .filter_map(|op| ranged(Some(op)))
                .map(|r| format!("{} {} {}", c.words(&r.kvs), r.more, r.count))
                .collect();
            let want = [
                "b/1=w c/1=x true 3",
                "b/1=w c/1=x true 3",
                " false 3",
                "a/1= b/1= c/1= false 3",
                "a/1=z b/1=y false 2",
                "b/1=w c/1=x false 3",
                "b/1=w false 1",
            ];
            c.same("answers", seen, want);
            Ok(())
        },
    );
    suite.case("txn/read-only/nested", "read-only transactions nest", |c| async move {
        c.puts(&[("a/1", "1"), ("c/1", "3")]).await?;
        let inner = txn().when(version_is(c.key("c/1"), 1)).then(get(c.key("a/1"))).or(get(c.key("c/1")));
        let answer =
            c.txn(txn().when(always(c.key("b/1"))).then(inner.clone()).then(get(c.key("c/1")))).await?;
        let inside = nested(answer.responses.first());
        let seen = inside.and_then(|inner| ranged(inner.responses.first())).map(|r| c.words(&r.kvs));
        c.same("pairs", seen.as_deref(), Some("a/1=1"));
        c.same("beside", ranged(answer.responses.get(1)).map(|r| c.words(&r.kvs)).as_deref(), Some("c/1=3"));
        Ok(())
    });
    suite.case(
        "txn/read-only/compares-only",
        "a transaction of compares alone says whether they hold",
        |c| async move {
            let at = c.put("c/1", "x").await?;
            for (compare, want) in [(version_is(c.key("c/1"), 1), true), (never(c.key("a/1")), false)] {
                let answer = c.txn(txn().when(compare)).await?;
                c.same("answer", (answer.succeeded, answer.responses.len()), (want, 0));
                c.holds("the header is not before the last write", revision(&answer.header) >= at);
            }
            Ok(())
        },
    );
    suite.case(
        "txn/read-only/serializable",
        "a transaction of serializable ranges is answered",
        |c| async move {
            let at = c.puts(&[("a/1", "1"), ("c/1", "3")]).await?;
            let request = pb::RangeRequest { serializable: true, revision: at[1], ..c.all() };
            c.until("the transaction shows the writes", || async {
                let answer = match c.try_txn(txn().then(request.clone()).into()).await {
                    Ok(answer) => answer,
                    // A serializable read may be late.
                    Err(status) if status.message() == FUTURE => return Ok(None),
                    Err(status) => return Err(crate::check::Stop(status.to_string())),
                };
                let words = ranged(answer.responses.first()).map(|r| c.words(&r.kvs));
                Ok((words.as_deref() == Some("a/1=1 c/1=3")).then_some(()))
            })
            .await
        },
    );
    suite.case(
        "txn/read-only/future",
        "a read-only transaction at a future revision is refused if that branch runs",
        |c| async move {
            let future = || pb::RangeRequest { revision: FAR, ..c.all() };
            c.refused(c.try_txn(txn().then(future()).into()).await, OutOfRange, FUTURE);
            let request = txn().when(always(c.key("a/1"))).then(get(c.key("a/1"))).or(future());
            c.same("other branch", c.txn(request).await?.succeeded, true);
            Ok(())
        },
    );
}
