//! How large a request may be: 1.5 MiB in etcd's own encoding (`--max-request-bytes`).

use sharded_etcd_etcd_api::messages as pb;
use tonic::{
    Code::{InvalidArgument, ResourceExhausted},
    Status,
};

use super::texts::TOO_LARGE;
use crate::{
    Suite,
    request::{Txn, put, txn},
};

/// The limit.
const REQUEST_BYTES_MAX: usize = 3 << 19;

pub(super) fn add(suite: &mut Suite) {
    suite.case("limits/put/just-fits", "a put a little below 1.5 MiB is accepted", |c| async move {
        c.put("b/1", &"v".repeat(REQUEST_BYTES_MAX - 200)).await?;
        c.same("length", c.there("b/1").await?.value.len(), REQUEST_BYTES_MAX - 200);
        Ok(())
    });
    for (name, bytes) in [("at-limit", REQUEST_BYTES_MAX), ("above", REQUEST_BYTES_MAX + 10_000)] {
        suite.case(
            format!("limits/put/{name}"),
            "a put whose value alone is the limit or more is refused and changes nothing",
            move |c| async move {
                c.refused(c.try_put(put(c.key("b/1"), &"v".repeat(bytes))).await, InvalidArgument, TOO_LARGE);
                c.same("count", c.range(c.all()).await?.count, 0);
                Ok(())
            },
        );
    }
    suite.case(
        "limits/put/far-above",
        "what is too large to be taken in at all is refused by the gRPC library",
        |c| async move {
            let refused = c.try_put(put(c.key("b/1"), &"v".repeat(9 << 20))).await;
            let status = refused.err().unwrap_or_else(|| Status::ok(""));
            c.same("code", status.code(), ResourceExhausted);
            let text = "grpc: received message larger than max (";
            c.holds("the text is grpc-go's", status.message().starts_with(text));
            c.same("count", c.range(c.all()).await?.count, 0);
            Ok(())
        },
    );
    suite.case("limits/key", "a key counts as a value does", |c| async move {
        let key = c.key(&format!("b/{}", "k".repeat(REQUEST_BYTES_MAX)));
        c.refused(c.try_put(put(key, "x")).await, InvalidArgument, TOO_LARGE);
        Ok(())
    });
    let three = |c: &crate::Ctx, bytes: usize| {
        let value = "v".repeat(bytes);
        (0..3).fold(txn(), |txn: Txn, n| txn.then(put(c.key(&format!("b/{n}")), &value)))
    };
    suite.case(
        "limits/txn/fits",
        "the operations of a transaction count together, and fit",
        move |c| async move {
            c.txn(three(&c, REQUEST_BYTES_MAX / 3 - 200)).await?;
            c.same("count", c.range(c.all()).await?.count, 3);
            Ok(())
        },
    );
    suite.case(
        "limits/txn/above",
        "the operations of a transaction count together, and do not fit",
        move |c| async move {
            let request = three(&c, REQUEST_BYTES_MAX / 3 + 100);
            c.refused(c.try_txn(request.into()).await, InvalidArgument, TOO_LARGE);
            c.same("count", c.range(c.all()).await?.count, 0);
            Ok(())
        },
    );
    suite.case("limits/txn/other-branch", "the branch that does not run counts too", |c| async move {
        let large = put(c.key("b/1"), &"v".repeat(REQUEST_BYTES_MAX));
        c.refused(c.try_txn(txn().or(large).into()).await, InvalidArgument, TOO_LARGE);
        Ok(())
    });
    suite.case("limits/answer", "an answer may be larger than a request may", |c| async move {
        for name in ["a/1", "b/1", "c/1"] {
            c.put(name, &"v".repeat(1_400_000)).await?;
        }
        let answer = c.range(c.all()).await?;
        c.same("bytes", answer.kvs.iter().map(|kv| kv.value.len()).sum::<usize>(), 4_200_000);
        let paged = c.range(pb::RangeRequest { limit: 2, ..c.all() }).await?;
        c.same("page", (paged.kvs.len(), paged.more), (2, true));
        Ok(())
    });
}
