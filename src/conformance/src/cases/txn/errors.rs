//! Transactions that are refused, which then change nothing.

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;
use tonic::Code::{self, InvalidArgument, NotFound, OutOfRange};

use crate::{
    Need, Suite,
    cases::texts::{
        DUPLICATE_KEY, FAR, FUTURE, KEY_NOT_FOUND, LEASE_PROVIDED, NO_KEY, NO_LEASE, SORT_OPTION,
        TOO_MANY_OPS, UNKNOWN_LEASE, VALUE_PROVIDED,
    },
    check::Ctx,
    request::{Txn, always, delete, delete_range, get, never, put, txn, version_is},
};

type Build = fn(&Ctx) -> Txn;

/// Adds a case per row: the transaction is refused with this error, and a put beside it is not applied.
fn refused(
    suite: &mut Suite,
    kind: &str,
    code: Code,
    text: &'static str,
    requires: &str,
    rows: &[(&str, Build)],
) {
    for (name, build) in rows {
        let build = *build;
        suite.case(format!("txn/{kind}/{name}"), format!("{requires} ({name})"), move |c| async move {
            c.put("b/kept", "x").await?;
            let request = build(&c).then(put(c.key("b/beside"), "x"));
            c.refused(c.try_txn(request.into()).await, code, text);
            c.same("pairs", c.words(&c.range(c.all()).await?.kvs), "b/kept=x");
            Ok(())
        });
    }
}

/// Adds a case per row: the transaction is accepted.
fn accepted(suite: &mut Suite, requires: &str, rows: &[(&str, Build)]) {
    for (name, build) in rows {
        let build = *build;
        suite.case(
            format!("txn/duplicate/fine-{name}"),
            format!("{requires} ({name})"),
            move |c| async move {
                c.txn(build(&c)).await?;
                Ok(())
            },
        );
    }
}

const NONE: Bytes = Bytes::new();

pub(super) fn add(suite: &mut Suite) {
    refused(
        suite,
        "duplicate",
        InvalidArgument,
        DUPLICATE_KEY,
        "a key may be put only once, and not be deleted too, by operations that can run \
together (v3rpc/key.go, checkIntervals)",
        &[
            ("put-put", |c| txn().then(put(c.key("b/1"), "x")).then(put(c.key("b/1"), "y"))),
            ("put-delete", |c| txn().then(put(c.key("b/1"), "x")).then(delete(c.key("b/1")))),
            ("delete-put", |c| txn().then(delete(c.key("b/1"))).then(put(c.key("b/1"), "x"))),
            ("range-delete", |c| {
                txn().then(put(c.key("b/1"), "x")).then(delete_range((c.key("b/0"), c.key("b/2"))))
            }),
            ("failure-branch", |c| {
                txn().when(always(c.key("b/0"))).or(put(c.key("b/1"), "x")).or(put(c.key("b/1"), "y"))
            }),
            ("nested-put", |c| txn().then(put(c.key("b/1"), "x")).then(txn().then(put(c.key("b/1"), "y")))),
            ("nested-else-put", |c| {
                txn().then(put(c.key("b/1"), "x")).then(txn().or(put(c.key("b/1"), "y")))
            }),
            ("nested-put-outer-delete", |c| {
                txn().then(txn().then(put(c.key("b/1"), "y"))).then(delete(c.key("b/1")))
            }),
            ("nested-delete-outer-put", |c| {
                txn().then(txn().then(delete(c.key("b/1")))).then(put(c.key("b/1"), "y"))
            }),
            ("siblings", |c| {
                txn().then(txn().then(put(c.key("b/1"), "x"))).then(txn().then(put(c.key("b/1"), "y")))
            }),
            ("sibling-branches", |c| {
                txn().then(txn().then(put(c.key("b/1"), "x"))).then(txn().or(put(c.key("b/1"), "y")))
            }),
            ("two-levels", |c| {
                txn().then(put(c.key("b/1"), "x")).then(txn().then(txn().then(put(c.key("b/1"), "y"))))
            }),
            ("same-value", |c| txn().then(put(c.key("b/1"), "x")).then(put(c.key("b/1"), "x"))),
        ],
    );
    accepted(
        suite,
        "operations that cannot clash pass",
        &[
            ("deletes", |c| txn().then(delete(c.key("b/1"))).then(delete(c.key("b/1")))),
            ("delete-beside", |c| {
                txn().then(put(c.key("b/2"), "x")).then(delete_range((c.key("b/0"), c.key("b/2"))))
            }),
            ("both-branches", |c| txn().then(put(c.key("b/1"), "x")).or(put(c.key("b/1"), "y"))),
            ("inner-branches", |c| txn().then(txn().then(put(c.key("b/1"), "x")).or(put(c.key("b/1"), "y")))),
            ("range-and-put", |c| txn().then(get(c.key("b/1"))).then(put(c.key("b/1"), "x"))),
            ("inner-put-then-sibling-delete", |c| {
                txn().then(txn().then(put(c.key("b/1"), "x"))).then(txn().then(delete(c.key("b/1"))))
            }),
            ("inverted-delete", |c| {
                txn().then(put(c.key("b/1"), "x")).then(delete_range((c.key("b/2"), c.key("b/0"))))
            }),
        ],
    );
    suite
        .case(
            "txn/duplicate/fine-delete-from-key",
            "a delete of everything from a key on, range end \\0, clashes with no put: etcd's check takes its \
             bounds as they are",
            |c| async move {
                let everything = || delete_range((c.key("b/0"), vec![0].into()));
                let request =
                    txn().when(always(c.key("b/1"))).or(put(c.key("b/1"), "x")).or(everything());
                c.txn(request).await?;
                let inner = txn().then(put(c.key("b/1"), "x"));
                c.txn(txn().when(always(c.key("b/1"))).or(inner).or(everything())).await?;
                Ok(())
            },
        )
        .needs(Need::UnboundedDeleteBesidePut);
    refused(
        suite,
        "empty-key",
        InvalidArgument,
        NO_KEY,
        "an operation or compare without a key is refused",
        &[
            ("compare", |_| txn().when(version_is(NONE, 0))),
            ("range", |_| txn().then(get(NONE))),
            ("put", |_| txn().then(put(NONE, "x"))),
            ("delete", |_| txn().then(delete(NONE))),
            ("failure-branch", |_| txn().or(get(NONE))),
            ("nested", |_| txn().then(txn().then(put(NONE, "x")))),
            ("nested-compare", |_| txn().or(txn().when(version_is(NONE, 0)))),
        ],
    );
    refused(
        suite,
        "errors",
        InvalidArgument,
        KEY_NOT_FOUND,
        "an operation without a request, or one that keeps what is not there, is refused",
        &[
            ("empty-operation", |_| txn().then(pb::RequestOp::default())),
            ("empty-operation-else", |_| txn().or(pb::RequestOp::default())),
            ("empty-operation-nested", |_| txn().then(txn().then(pb::RequestOp::default()))),
            ("ignore-value-missing", |c| {
                txn().then(pb::PutRequest { ignore_value: true, ..put(c.key("b/none"), "") })
            }),
            ("ignore-lease-missing", |c| {
                txn().then(pb::PutRequest { ignore_lease: true, ..put(c.key("b/none"), "x") })
            }),
        ],
    );
    refused(
        suite,
        "errors",
        InvalidArgument,
        VALUE_PROVIDED,
        "a put that ignores its value and has one is refused in either branch",
        &[
            ("value-provided", |c| {
                txn().then(pb::PutRequest { ignore_value: true, ..put(c.key("b/kept"), "y") })
            }),
            ("value-provided-else", |c| {
                txn().or(pb::PutRequest { ignore_value: true, ..put(c.key("b/kept"), "y") })
            }),
        ],
    );
    refused(
        suite,
        "errors",
        InvalidArgument,
        LEASE_PROVIDED,
        "a put that ignores its lease and has one is refused",
        &[("lease-provided", |c| {
            txn().then(pb::PutRequest { ignore_lease: true, lease: 7, ..put(c.key("b/kept"), "y") })
        })],
    );
    refused(
        suite,
        "errors",
        InvalidArgument,
        SORT_OPTION,
        "a range with an unknown sort option is refused",
        &[("sort-option", |c| txn().then(pb::RangeRequest { sort_target: 8, ..c.dir("b/") }))],
    );
    refused(
        suite,
        "errors",
        NotFound,
        NO_LEASE,
        "a put with a lease that does not exist is refused if its branch runs",
        &[
            ("unknown-lease", |c| {
                txn().then(pb::PutRequest { lease: UNKNOWN_LEASE, ..put(c.key("b/1"), "y") })
            }),
            ("unknown-lease-nested", |c| {
                txn().then(txn().then(pb::PutRequest { lease: UNKNOWN_LEASE, ..put(c.key("b/1"), "y") }))
            }),
        ],
    );
    refused(
        suite,
        "errors",
        OutOfRange,
        FUTURE,
        "a range at a future revision is refused if its branch runs",
        &[
            ("future", |c| txn().then(pb::RangeRequest { revision: FAR, ..get(c.key("b/1")) })),
            ("future-nested", |c| {
                txn().then(txn().then(pb::RangeRequest { revision: FAR, ..get(c.key("b/1")) }))
            }),
        ],
    );
    other_branch(suite);
    limits(suite);
}

fn other_branch(suite: &mut Suite) {
    let rows: [(&str, Build); 4] = [
        ("lease", |c| {
            txn()
                .when(never(c.key("b/0")))
                .then(pb::PutRequest { lease: UNKNOWN_LEASE, ..put(c.key("b/1"), "y") })
        }),
        ("future", |c| {
            txn().when(never(c.key("b/0"))).then(pb::RangeRequest { revision: FAR, ..get(c.key("b/1")) })
        }),
        ("ignore-value", |c| {
            txn()
                .when(never(c.key("b/0")))
                .then(pb::PutRequest { ignore_value: true, ..put(c.key("b/none"), "") })
        }),
        ("nested-lease", |c| {
            txn()
                .when(never(c.key("b/0")))
                .then(txn().then(pb::PutRequest { lease: UNKNOWN_LEASE, ..put(c.key("b/1"), "y") }))
        }),
    ];
    for (name, build) in rows {
        suite.case(
            format!("txn/other-branch/{name}"),
            format!("what the store would refuse does not matter in a branch that does not run ({name})"),
            move |c| async move {
                let answer = c.txn(build(&c).or(put(c.key("b/ran"), "x"))).await?;
                c.same("succeeded", answer.succeeded, false);
                c.same("pairs", c.words(&c.range(c.all()).await?.kvs), "b/ran=x");
                Ok(())
            },
        );
    }
}

fn limits(suite: &mut Suite) {
    let gets = |c: &Ctx, n: usize| (0..n).fold(txn(), |txn, k| txn.then(get(c.key(&format!("b/{k}")))));
    suite.case("txn/limit/success", "129 operations for success are too many", move |c| async move {
        c.refused(c.try_txn(gets(&c, 129).into()).await, InvalidArgument, TOO_MANY_OPS);
        c.txn(gets(&c, 128)).await?;
        Ok(())
    });
    suite.case("txn/limit/failure", "129 operations for failure are too many", |c| async move {
        let or = |n: usize| (0..n).fold(txn(), |txn, k| txn.or(put(c.key(&format!("b/{k}")), "x")));
        c.refused(c.try_txn(or(129).into()).await, InvalidArgument, TOO_MANY_OPS);
        c.txn(or(128)).await?;
        Ok(())
    });
    suite.case("txn/limit/compares", "129 compares are too many", |c| async move {
        let when = |n: usize| (0..n).fold(txn(), |txn, k| txn.when(version_is(c.key(&format!("b/{k}")), 0)));
        c.refused(c.try_txn(when(129).into()).await, InvalidArgument, TOO_MANY_OPS);
        c.same("succeeded", c.txn(when(128)).await?.succeeded, true);
        Ok(())
    });
    suite.case(
        "txn/limit/each",
        "128 compares and 128 operations for each branch are allowed together",
        |c| async move {
            let mut request = txn();
            for n in 0..128 {
                let key = c.key(&format!("b/{n}"));
                request =
                    request.when(version_is(key.clone(), 0)).then(put(key.clone(), "x")).or(delete(key));
            }
            c.same("succeeded", c.txn(request).await?.succeeded, true);
            Ok(())
        },
    );
    suite.case(
        "txn/limit/nested",
        "inner operations may use what the outer ones leave of the limit",
        move |c| async move {
            // One outer operation leaves 127.
            c.txn(txn().then(gets(&c, 127))).await?;
            c.refused(c.try_txn(txn().then(gets(&c, 128)).into()).await, InvalidArgument, TOO_MANY_OPS);
            Ok(())
        },
    );
    suite.case(
        "txn/limit/nested-else",
        "the widest of compares and branches counts for the inner ones",
        |c| async move {
            let inner = |n: usize| (0..n).fold(txn(), |txn, k| txn.or(get(c.key(&format!("b/{k}")))));
            let request = |n| {
                txn()
                    .when(always(c.key("b/1")))
                    .when(always(c.key("b/2")))
                    .when(always(c.key("b/3")))
                    .then(inner(n))
            };
            c.txn(request(125)).await?;
            c.refused(c.try_txn(request(126).into()).await, InvalidArgument, TOO_MANY_OPS);
            Ok(())
        },
    );
    suite.case(
        "txn/limit/before-keys",
        "too many operations are told before what is wrong with one",
        |c| async move {
            let request = (0..129).fold(txn(), |txn, _| txn.then(get(NONE)));
            c.refused(c.try_txn(request.into()).await, InvalidArgument, TOO_MANY_OPS);
            Ok(())
        },
    );
}
