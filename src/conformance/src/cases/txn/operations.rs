//! What the operations of a transaction do and answer.

use sharded_etcd_etcd_api::messages as pb;

use crate::{
    Need, Suite,
    check::revision,
    request::{always, delete, delete_range, deleted, get, never, put, put_in, ranged, txn, version_is},
};

pub(super) fn add(suite: &mut Suite) {
    writes(suite);
    reads(suite);
    mixes(suite);
    failures(suite);
}

fn writes(suite: &mut Suite) {
    suite.case("txn/put/several", "all puts of a transaction have its revision", |c| async move {
        let request =
            txn().then(put(c.key("b/1"), "x")).then(put(c.key("b/2"), "y")).then(put(c.key("b/3"), "z"));
        let at = revision(&c.txn(request).await?.header);
        let kvs = c.range(c.all()).await?.kvs;
        c.same("pairs", c.words(&kvs), "b/1=x b/2=y b/3=z");
        c.holds("all have the header's revision", kvs.iter().all(|kv| kv.mod_revision == at));
        Ok(())
    });
    suite.case("txn/put/prev-kv", "a put in a transaction answers what it replaced", |c| async move {
        c.put("b/1", "old").await?;
        let with = |name: &str| pb::PutRequest { prev_kv: true, ..put(c.key(name), "new") };
        let answer = c.txn(txn().then(with("b/1")).then(with("b/2"))).await?;
        let before = put_in(answer.responses.first()).and_then(|put| put.prev_kv.clone());
        c.same("previous", before.map(|kv| (kv.value, kv.version)), Some(("old".into(), 1)));
        c.same("none", put_in(answer.responses.get(1)).map(|put| put.prev_kv.is_some()), Some(false));
        Ok(())
    });
    suite.case("txn/put/lease", "a put in a transaction attaches to its lease", |c| async move {
        let lease = c.grant(0, 600).await?;
        let request = txn()
            .then(pb::PutRequest { lease, ..put(c.key("b/1"), "x") })
            .then(put(c.key("b/2"), "y"))
            .then(pb::PutRequest { lease, ..put(c.key("b/3"), "z") });
        c.txn(request).await?;
        let leases: Vec<_> = c.range(c.all()).await?.kvs.iter().map(|kv| kv.lease).collect();
        c.same("leases", leases, [lease, 0, lease]);
        c.revoke(lease).await?;
        c.same("left", c.words(&c.range(c.all()).await?.kvs), "b/2=y");
        Ok(())
    });
    suite.case("txn/put/ignore", "puts in a transaction may keep value and lease", |c| async move {
        let lease = c.grant(0, 600).await?;
        c.send_put(pb::PutRequest { lease, ..put(c.key("b/1"), "x") }).await?;
        c.send_put(pb::PutRequest { lease, ..put(c.key("b/2"), "x") }).await?;
        let request = txn()
            .then(pb::PutRequest { ignore_value: true, ..put(c.key("b/1"), "") })
            .then(pb::PutRequest { ignore_lease: true, ..put(c.key("b/2"), "y") });
        c.txn(request).await?;
        let kvs = c.range(c.all()).await?.kvs;
        c.same("pairs", c.words(&kvs), "b/1=x b/2=y");
        c.same("leases", kvs.iter().map(|kv| kv.lease).collect::<Vec<_>>(), [0, lease]);
        Ok(())
    });
    suite.case(
        "txn/put/header",
        "the answer of a put in a transaction names the transaction's revision",
        |c| async move {
            let answer = c.txn(txn().then(put(c.key("b/1"), "x")).then(put(c.key("b/2"), "x"))).await?;
            for response in &answer.responses {
                let inner = put_in(Some(response)).map(|put| revision(&put.header));
                c.same("revision", inner, Some(revision(&answer.header)));
            }
            Ok(())
        },
    );
    suite.case(
        "txn/delete/counts",
        "deletes in a transaction count and show what they deleted",
        |c| async move {
            c.puts(&[("b/1", "x"), ("b/2", "y"), ("b/3", "z")]).await?;
            let request = txn()
                .then(pb::DeleteRangeRequest { prev_kv: true, ..delete_range((c.key("b/1"), c.key("b/3"))) })
                .then(delete(c.key("b/none")))
                .then(delete(c.key("b/3")));
            let answer = c.txn(request).await?;
            let counts: Vec<_> = answer
                .responses
                .iter()
                .map(|op| deleted(Some(op)).map(|d| (d.deleted, d.prev_kvs.len())))
                .collect();
            c.same("counts", counts, [Some((2, 2)), Some((0, 0)), Some((1, 0))]);
            c.same("left", c.range(c.all()).await?.count, 0);
            Ok(())
        },
    );
    suite.case(
        "txn/delete/overlapping",
        "deletes may overlap; the second finds what is left",
        |c| async move {
            c.puts(&[("b/1", "x"), ("b/2", "y"), ("b/3", "z")]).await?;
            let request = txn()
                .then(delete_range((c.key("b/1"), c.key("b/3"))))
                .then(delete_range((c.key("b/2"), c.key("b/4"))));
            let answer = c.txn(request).await?;
            let counts: Vec<_> =
                answer.responses.iter().map(|op| deleted(Some(op)).map(|d| d.deleted)).collect();
            c.same("counts", counts, [Some(2), Some(1)]);
            Ok(())
        },
    );
    suite.case("txn/delete/nothing", "a transaction that deletes nothing is no change", |c| async move {
        let before = c.put("b/1", "x").await?;
        let answer = c.txn(txn().then(delete(c.key("b/2")))).await?;
        c.same("deleted", deleted(answer.responses.first()).map(|d| d.deleted), Some(0));
        c.holds("the header is not before the last write", revision(&answer.header) >= before);
        c.same("mod revision", c.there("b/1").await?.mod_revision, before);
        Ok(())
    });
    suite
        .case(
            "txn/over-directories",
            "a transaction may write to all directories at one revision",
            |c| async move {
                let request = txn()
                    .then(put(c.key("a/1"), "x"))
                    .then(put(c.key("b/1"), "y"))
                    .then(put(c.key("c/1"), "z"));
                let at = revision(&c.txn(request).await?.header);
                let kvs = c.range(c.all()).await?.kvs;
                c.same("pairs", c.words(&kvs), "a/1=x b/1=y c/1=z");
                c.holds("all have the header's revision", kvs.iter().all(|kv| kv.mod_revision == at));
                Ok(())
            },
        )
        .needs(Need::TxnOverShards);
    suite
        .case(
            "txn/over-directories-compare",
            "a transaction may compare in one directory and write to another",
            |c| async move {
                c.put("a/1", "x").await?;
                let request = txn().when(version_is(c.key("a/1"), 1)).then(put(c.key("c/1"), "z"));
                c.same("succeeded", c.txn(request).await?.succeeded, true);
                c.same("value", c.value("c/1").await?, Some("z".to_owned()));
                Ok(())
            },
        )
        .needs(Need::TxnOverShards);
}

fn reads(suite: &mut Suite) {
    suite.case(
        "txn/range/after-put",
        "a range behind a put in the same transaction sees it, with its revision",
        |c| async move {
            c.put("b/1", "old").await?;
            let request = txn()
                .then(get(c.key("b/1")))
                .then(put(c.key("b/1"), "new"))
                .then(get(c.key("b/1")))
                .then(c.dir("b/"));
            let answer = c.txn(request).await?;
            let at = revision(&answer.header);
            let seen: Vec<_> = [0, 2, 3]
                .iter()
                .filter_map(|&n| ranged(answer.responses.get(n)))
                .map(|range| c.words(&range.kvs))
                .collect();
            c.same("pairs", seen, ["b/1=old", "b/1=new", "b/1=new"]);
            let new = ranged(answer.responses.get(2)).and_then(|range| range.kvs.first());
            c.same("revisions", new.map(|kv| (kv.mod_revision, kv.version)), Some((at, 2)));
            Ok(())
        },
    );
    suite.case(
        "txn/range/after-delete",
        "a range behind a delete in the same transaction does not see the keys",
        |c| async move {
            c.puts(&[("b/1", "x"), ("b/2", "y")]).await?;
            let answer = c.txn(txn().then(delete(c.key("b/1"))).then(c.dir("b/"))).await?;
            c.same(
                "keys",
                ranged(answer.responses.get(1)).map(|range| c.names(&range.kvs)),
                Some("b/2".to_owned()),
            );
            Ok(())
        },
    );
    suite.case("txn/range/options", "ranges in a transaction that writes have all options", |c| async move {
        c.puts(&[("b/1", "z"), ("b/2", "y"), ("b/3", "x")]).await?;
        let sorted = pb::RangeRequest {
            sort_order: pb::SortOrder::Descend.into(),
            sort_target: pb::SortTarget::Create.into(),
            limit: 2,
            ..c.dir("b/")
        };
        let request = txn()
            .then(put(c.key("b/4"), "w"))
            .then(sorted)
            .then(pb::RangeRequest { keys_only: true, limit: 1, ..c.dir("b/") })
            .then(pb::RangeRequest { count_only: true, ..c.dir("b/") })
            .then(pb::RangeRequest {
                sort_target: pb::SortTarget::Value.into(),
                sort_order: 1,
                ..c.dir("b/")
            });
        let answer = c.txn(request).await?;
        let seen: Vec<_> = answer.responses[1..]
            .iter()
            .filter_map(|op| ranged(Some(op)))
            .map(|range| (c.words(&range.kvs), range.more, range.count))
            .collect();
        let want = [
            ("b/4=w b/3=x", true, 4),
            ("b/1=", true, 4),
            ("", false, 4),
            ("b/4=w b/3=x b/2=y b/1=z", false, 4),
        ];
        c.same("answers", seen, want.map(|(words, more, count)| (words.to_owned(), more, count)).to_vec());
        Ok(())
    });
    suite.case(
        "txn/range/filters",
        "ranges in a transaction that writes may be bounded by revisions",
        |c| async move {
            let at = c.puts(&[("b/1", "z"), ("b/2", "y"), ("b/3", "x")]).await?;
            let request = txn()
                .then(put(c.key("b/4"), "w"))
                .then(pb::RangeRequest { min_mod_revision: at[1], ..c.dir("b/") })
                .then(pb::RangeRequest { max_create_revision: at[1], ..c.dir("b/") });
            let answer = c.txn(request).await?;
            let seen: Vec<_> = answer.responses[1..]
                .iter()
                .filter_map(|op| ranged(Some(op)))
                .map(|r| c.names(&r.kvs))
                .collect();
            c.same("keys", seen, ["b/2 b/3 b/4", "b/1 b/2"]);
            Ok(())
        },
    );
    suite.case(
        "txn/range/past",
        "a range at a revision in a transaction that writes shows the past",
        |c| async move {
            let at = c.puts(&[("b/1", "x"), ("b/1", "y"), ("b/2", "z")]).await?;
            let request = txn()
                .then(put(c.key("b/1"), "new"))
                .then(pb::RangeRequest { revision: at[0], ..c.dir("b/") })
                .then(pb::RangeRequest { revision: at[1], ..get(c.key("b/1")) });
            let answer = c.txn(request).await?;
            let seen: Vec<_> = answer.responses[1..]
                .iter()
                .filter_map(|op| ranged(Some(op)))
                .map(|r| c.words(&r.kvs))
                .collect();
            c.same("pairs", seen, ["b/1=x", "b/1=y"]);
            Ok(())
        },
    );
    suite.case(
        "txn/range/header",
        "the answer of a range in a transaction names the revision that it saw",
        |c| async move {
            c.put("b/1", "x").await?;
            let answer = c.txn(txn().then(put(c.key("b/1"), "y")).then(get(c.key("b/1")))).await?;
            let inner = ranged(answer.responses.get(1)).map(|range| revision(&range.header));
            c.same("revision", inner, Some(revision(&answer.header)));
            Ok(())
        },
    );
}

fn mixes(suite: &mut Suite) {
    suite.case("txn/empty", "a transaction of nothing succeeds with a header", |c| async move {
        let answer = c.txn(txn()).await?;
        c.same("answer", (answer.succeeded, answer.responses.len()), (true, 0));
        c.holds("there is a header", revision(&answer.header) > 0);
        Ok(())
    });
    suite.case("txn/order", "responses come in the order of the operations", |c| async move {
        c.puts(&[("b/1", "x"), ("b/2", "y")]).await?;
        let request = txn()
            .then(get(c.key("b/1")))
            .then(put(c.key("b/3"), "z"))
            .then(delete(c.key("b/2")))
            .then(txn().then(get(c.key("b/3"))));
        let answer = c.txn(request).await?;
        let kinds: Vec<_> = answer
            .responses
            .iter()
            .map(|op| match op.response {
                Some(pb::Response::ResponseRange(_)) => "range",
                Some(pb::Response::ResponsePut(_)) => "put",
                Some(pb::Response::ResponseDeleteRange(_)) => "delete",
                Some(pb::Response::ResponseTxn(_)) => "txn",
                None => "none",
            })
            .collect();
        c.same("kinds", kinds, ["range", "put", "delete", "txn"]);
        Ok(())
    });
    suite.case("txn/one-version", "a key put once in a transaction has one more version", |c| async move {
        c.put("b/1", "x").await?;
        c.txn(txn().then(put(c.key("b/1"), "y")).then(put(c.key("b/2"), "y"))).await?;
        let versions: Vec<_> = c.range(c.all()).await?.kvs.iter().map(|kv| kv.version).collect();
        c.same("versions", versions, [2, 1]);
        Ok(())
    });
    suite.case(
        "txn/either-branch-same-key",
        "the same key may be written in both branches",
        |c| async move {
            for (compare, want) in [(always(c.key("b/1")), "then"), (never(c.key("b/1")), "else")] {
                let request =
                    txn().when(compare).then(put(c.key("b/1"), "then")).or(put(c.key("b/1"), "else"));
                c.txn(request).await?;
                c.same("value", c.value("b/1").await?.as_deref(), Some(want));
            }
            Ok(())
        },
    );
    suite.case("txn/many-operations", "128 operations are allowed", |c| async move {
        let mut request = txn();
        for n in 0..128 {
            request = request
                .then(put(c.key(&format!("b/{n:03}")), "x"))
                .when(version_is(c.key(&format!("b/{n:03}")), 0));
        }
        let answer = c.txn(request).await?;
        c.same("answer", (answer.succeeded, answer.responses.len()), (true, 128));
        c.same("count", c.range(c.all()).await?.count, 128);
        Ok(())
    });
    suite.case(
        "txn/atomic-for-readers",
        "readers see all of a transaction's writes or none",
        |c| async move {
            let write = |n: usize| {
                let value = n.to_string();
                txn()
                    .then(put(c.key("b/1"), &value))
                    .then(put(c.key("b/2"), &value))
                    .then(put(c.key("b/3"), &value))
            };
            c.txn(write(0)).await?;
            let writer = async {
                for n in 1..=20 {
                    c.txn(write(n)).await?;
                }
                Ok::<_, crate::check::Stop>(())
            };
            let reader = async {
                for _ in 0..40 {
                    let kvs = c.range(c.all()).await?.kvs;
                    c.holds("all values are the same", kvs.iter().all(|kv| kv.value == kvs[0].value));
                    c.holds(
                        "all revisions are the same",
                        kvs.iter().all(|kv| kv.mod_revision == kvs[0].mod_revision),
                    );
                }
                Ok::<_, crate::check::Stop>(())
            };
            let (written, read) = futures::join!(writer, reader);
            written.and(read)
        },
    );
}

fn failures(suite: &mut Suite) {
    suite.case(
        "txn/failure/runs",
        "the failure branch runs, and only that, if a compare does not hold",
        |c| async move {
            c.put("b/1", "x").await?;
            let request = txn()
                .when(version_is(c.key("b/1"), 7))
                .then(put(c.key("b/then"), "x"))
                .or(put(c.key("b/else"), "x"))
                .or(get(c.key("b/1")))
                .or(delete(c.key("b/1")));
            let answer = c.txn(request).await?;
            c.same("answer", (answer.succeeded, answer.responses.len()), (false, 3));
            c.same(
                "read",
                ranged(answer.responses.get(1)).map(|range| c.words(&range.kvs)),
                Some("b/1=x".to_owned()),
            );
            c.same("pairs", c.words(&c.range(c.all()).await?.kvs), "b/else=x");
            c.same("revision", c.there("b/else").await?.mod_revision, revision(&answer.header));
            Ok(())
        },
    );
    suite.case(
        "txn/failure/empty",
        "an empty failure branch changes nothing; the header is not before the last write",
        |c| async move {
            let mut last = 0;
            for name in ["a/1", "b/1", "c/1"] {
                last = c.put(name, "x").await?;
                let request = txn().when(version_is(c.key("b/none"), 7)).then(put(c.key("b/none"), "x"));
                let answer = c.txn(request).await?;
                c.same("answer", (answer.succeeded, answer.responses.len()), (false, 0));
                c.holds("the header is not before the last write", revision(&answer.header) >= last);
            }
            let answer = c.range(pb::RangeRequest { revision: last, ..c.all() }).await?;
            c.same("keys", c.names(&answer.kvs), "a/1 b/1 c/1");
            Ok(())
        },
    );
    suite.case(
        "txn/failure/read-is-current",
        "what the failure branch reads is the state at the header's revision",
        |c| async move {
            for name in ["a/1", "b/1", "c/1", "b/1"] {
                c.put(name, name).await?;
                let request = txn().when(never(c.key("b/1"))).then(put(c.key("b/1"), "no")).or(c.dir("b/"));
                let answer = c.txn(request).await?;
                let seen =
                    ranged(answer.responses.first()).map(|range| range.kvs.clone()).unwrap_or_default();
                let at = revision(&answer.header);
                let again = c.range(pb::RangeRequest { revision: at, ..c.dir("b/") }).await?;
                c.same("pairs", seen, again.kvs);
            }
            Ok(())
        },
    );
}
