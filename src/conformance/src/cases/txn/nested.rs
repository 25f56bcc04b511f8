//! Transactions in transactions.

use sharded_etcd_etcd_api::messages as pb;

use crate::{
    Suite,
    check::revision,
    request::{Txn, always, delete, get, nested, never, put, ranged, txn, value_is, version_is},
};

pub(super) fn add(suite: &mut Suite) {
    for (name, outer, inner, want) in [
        ("then-then", true, true, "then-then"),
        ("then-else", true, false, "then-else"),
        ("else-then", false, true, "else-then"),
        ("else-else", false, false, "else-else"),
    ] {
        suite.case(
            format!("txn/nested/{name}"),
            "the branch of an inner transaction is decided by its own compares",
            move |c| async move {
                let pick = |holds: bool| if holds { always(c.key("b/k")) } else { never(c.key("b/k")) };
                let inside = |of: &str| {
                    txn()
                        .when(pick(inner))
                        .then(put(c.key("b/k"), &format!("{of}-then")))
                        .or(put(c.key("b/k"), &format!("{of}-else")))
                };
                let request = txn().when(pick(outer)).then(inside("then")).or(inside("else"));
                let answer = c.txn(request).await?;
                c.same("value", c.value("b/k").await?.as_deref(), Some(want));
                let found = nested(answer.responses.first()).map(|inner| inner.succeeded);
                c.same("succeeded", (answer.succeeded, found), (outer, Some(inner)));
                c.same("revision", c.there("b/k").await?.mod_revision, revision(&answer.header));
                Ok(())
            },
        );
    }
    suite.case(
        "txn/nested/state-before",
        "all compares, nested too, are decided on the state before the transaction",
        |c| async move {
            c.put("b/1", "old").await?;
            let inner = txn()
                .when(value_is(c.key("b/1"), "new"))
                .then(put(c.key("b/2"), "new"))
                .or(put(c.key("b/2"), "old"));
            c.txn(txn().then(put(c.key("b/1"), "new")).then(inner)).await?;
            c.same("pairs", c.words(&c.range(c.all()).await?.kvs), "b/1=new b/2=old");
            Ok(())
        },
    );
    suite.case(
        "txn/nested/reads-see-writes",
        "a range of an inner transaction sees the writes before it",
        |c| async move {
            let request = txn().then(put(c.key("b/1"), "x")).then(txn().then(get(c.key("b/1"))));
            let answer = c.txn(request).await?;
            let inner = nested(answer.responses.get(1));
            let seen =
                inner.and_then(|inner| ranged(inner.responses.first())).map(|range| c.words(&range.kvs));
            c.same("pairs", seen, Some("b/1=x".to_owned()));
            Ok(())
        },
    );
    suite.case("txn/nested/one-revision", "writes at all depths have one revision", |c| async move {
        let request = txn()
            .then(put(c.key("b/1"), "x"))
            .then(txn().then(put(c.key("b/2"), "x")).then(txn().then(put(c.key("b/3"), "x"))));
        let at = revision(&c.txn(request).await?.header);
        let kvs = c.range(c.all()).await?.kvs;
        c.same("revisions", kvs.iter().map(|kv| kv.mod_revision).collect::<Vec<_>>(), vec![at; 3]);
        Ok(())
    });
    suite.case("txn/nested/deep", "ten levels run", |c| async move {
        let innermost = txn().then(put(c.key("b/1"), "deep")).then(get(c.key("b/1")));
        let request = (0..10).fold(innermost, |inner: Txn, _| txn().when(always(c.key("b/0"))).then(inner));
        let answer = c.txn(request).await?;
        let mut inner = Some(&answer);
        for _ in 0..10 {
            inner = inner.and_then(|inner| nested(inner.responses.first()));
        }
        c.same("responses", inner.map(|inner| inner.responses.len()), Some(2));
        c.same("value", c.value("b/1").await?.as_deref(), Some("deep"));
        Ok(())
    });
    suite.case(
        "txn/nested/several",
        "inner transactions beside one another have answers of their own",
        |c| async move {
            c.puts(&[("b/1", "x"), ("b/2", "y")]).await?;
            let inner = |name: &str, version| {
                txn().when(version_is(c.key(name), version)).then(delete(c.key(name))).or(get(c.key(name)))
            };
            let answer =
                c.txn(txn().then(inner("b/1", 1)).then(inner("b/2", 5)).then(inner("b/3", 0))).await?;
            let found: Vec<_> =
                answer.responses.iter().map(|op| nested(Some(op)).map(|i| i.succeeded)).collect();
            c.same("succeeded", found, [Some(true), Some(false), Some(true)]);
            let seen = nested(answer.responses.get(1)).and_then(|inner| ranged(inner.responses.first()));
            c.same("pairs", seen.map(|range| c.words(&range.kvs)), Some("b/2=y".to_owned()));
            c.same("left", c.words(&c.range(c.all()).await?.kvs), "b/2=y");
            Ok(())
        },
    );
    suite.case("txn/nested/empty", "an inner transaction may be empty", |c| async move {
        let answer = c.txn(txn().then(txn()).then(txn().when(never(c.key("b/1"))))).await?;
        let found: Vec<_> = answer
            .responses
            .iter()
            .map(|op| nested(Some(op)).map(|inner| (inner.succeeded, inner.responses.len())))
            .collect();
        c.same("inner", found, [Some((true, 0)), Some((false, 0))]);
        Ok(())
    });
    suite.case(
        "txn/nested/branches-exclude",
        "branches of an inner transaction may write the same key",
        |c| async move {
            let inner =
                txn().when(never(c.key("b/1"))).then(put(c.key("b/1"), "then")).or(put(c.key("b/1"), "else"));
            c.txn(txn().then(inner)).await?;
            c.same("value", c.value("b/1").await?.as_deref(), Some("else"));
            Ok(())
        },
    );
    suite.case(
        "txn/nested/delete-and-put",
        "a put of an inner transaction and a later inner delete of its key are one revision",
        |c| async move {
            c.put("b/1", "x").await?;
            let request =
                txn().then(txn().then(put(c.key("b/1"), "y"))).then(txn().then(delete(c.key("b/1"))));
            let answer = c.txn(request).await?;
            c.same("value", c.value("b/1").await?, None);
            let before = pb::RangeRequest { revision: revision(&answer.header) - 1, ..get(c.key("b/1")) };
            c.same("before", c.words(&c.range(before).await?.kvs), "b/1=x");
            Ok(())
        },
    );
    suite.case("txn/nested/leases", "a put of an inner transaction attaches to its lease", |c| async move {
        let lease = c.grant(0, 600).await?;
        let inner = txn()
            .when(never(c.key("b/1")))
            .then(put(c.key("b/1"), "x"))
            .or(pb::PutRequest { lease, ..put(c.key("b/1"), "y") });
        c.txn(txn().then(inner)).await?;
        c.same("lease", c.there("b/1").await?.lease, lease);
        Ok(())
    });
}
