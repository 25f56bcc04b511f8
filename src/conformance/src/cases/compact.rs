//! Compact, and what it takes away. These cases run alone.

use sharded_etcd_etcd_api::messages as pb;
use tonic::Code::OutOfRange;

use super::texts::{COMPACTED, FAR, FUTURE};
use crate::{
    Suite,
    check::{Check, Ctx, needed, revision},
    request::{delete, get, put, txn},
};

async fn at(c: &Ctx, revision: i64) -> Result<pb::RangeResponse, tonic::Status> {
    c.try_range(pb::RangeRequest { revision, ..c.all() }).await
}

/// Three revisions of keys over all directories, compacted at the second.
async fn compacted(c: &Ctx) -> Check<Vec<i64>> {
    let at = c.puts(&[("a/1", "1"), ("b/1", "2"), ("c/1", "3")]).await?;
    c.compact(at[1]).await?;
    Ok(at)
}

pub(super) fn add(suite: &mut Suite) {
    calls(suite);
    reads(suite);
    contents(suite);
}

fn calls(suite: &mut Suite) {
    for physical in [false, true] {
        let kind = if physical { "physical" } else { "logical" };
        suite
            .case(
                format!("compact/{kind}"),
                format!("a {kind} compaction is answered, and reads below it are refused from then on"),
                move |c| async move {
                    let at = c.puts(&[("b/1", "1"), ("b/1", "2"), ("b/1", "3")]).await?;
                    let answer = needed("Compact", c.try_compact(at[1], physical).await)?;
                    c.holds("the header is not before the last write", revision(&answer.header) >= at[2]);
                    c.refused(self::at(&c, at[0]).await, OutOfRange, COMPACTED);
                    let kept = needed("Range", self::at(&c, at[1]).await)?;
                    c.same("pairs", c.words(&kept.kvs), "b/1=2");
                    Ok(())
                },
            )
            .alone();
        suite
            .case(
                format!("compact/again-{kind}"),
                "a compaction at the same revision or below is refused as compacted",
                move |c| async move {
                    let at = compacted(&c).await?;
                    for revision in [at[1], at[0], 1] {
                        c.refused(c.try_compact(revision, physical).await, OutOfRange, COMPACTED);
                    }
                    Ok(())
                },
            )
            .alone();
        suite
            .case(
                format!("compact/future-{kind}"),
                "a compaction at a revision that does not exist yet is refused",
                move |c| async move {
                    let now = c.put("b/1", "x").await?;
                    c.refused(c.try_compact(now + FAR, physical).await, OutOfRange, FUTURE);
                    c.refused(c.try_compact(i64::MAX, physical).await, OutOfRange, FUTURE);
                    c.same("pairs", c.words(&needed("Range", at(&c, now).await)?.kvs), "b/1=x");
                    Ok(())
                },
            )
            .alone();
    }
    for revision in [0, -1, i64::MIN] {
        suite
            .case(
                format!(
                    "compact/nothing-{}",
                    match revision {
                        0 => "zero",
                        -1 => "negative",
                        _ => "lowest",
                    }
                ),
                "a compaction at 0 or below is refused as compacted",
                move |c| async move {
                    compacted(&c).await?;
                    c.refused(c.try_compact(revision, false).await, OutOfRange, COMPACTED);
                    Ok(())
                },
            )
            .alone();
    }
    suite
        .case(
            "compact/current",
            "the current revision can be compacted, and stays readable",
            |c| async move {
                c.puts(&[("a/1", "1"), ("c/1", "2")]).await?;
                let now = revision(&c.range(c.all()).await?.header);
                c.compact(now).await?;
                c.same("pairs", c.words(&needed("Range", at(&c, now).await)?.kvs), "a/1=1 c/1=2");
                c.same("now", c.words(&c.range(c.all()).await?.kvs), "a/1=1 c/1=2");
                Ok(())
            },
        )
        .alone();
    suite
        .case("compact/no-revision", "a compaction is no change", |c| async move {
            let now = c.put("b/1", "x").await?;
            c.compact(now).await?;
            c.same("revision", c.put("b/1", "y").await?, now + 1);
            Ok(())
        })
        .alone()
        .needs(crate::Need::ConsecutiveRevisions);
}

fn reads(suite: &mut Suite) {
    type Change = fn(pb::RangeRequest) -> pb::RangeRequest;
    let options: [(&str, Change); 6] = [
        ("plain", |r| r),
        ("serializable", |r| pb::RangeRequest { serializable: true, ..r }),
        ("count-only", |r| pb::RangeRequest { count_only: true, ..r }),
        ("keys-only", |r| pb::RangeRequest { keys_only: true, ..r }),
        ("limit", |r| pb::RangeRequest { limit: 1, ..r }),
        ("sorted", |r| pb::RangeRequest { sort_order: 2, sort_target: 3, ..r }),
    ];
    for (name, option) in options {
        let range = suite
            .case(
                format!("compact/range-{name}"),
                format!("below the compaction a range is refused, at and above it is served ({name})"),
                move |c| async move {
                    let at = compacted(&c).await?;
                    for (revision, served) in
                        [(1, false), (at[0], false), (at[1] - 1, false), (at[1], true), (at[2], true)]
                    {
                        for request in [c.all(), get(c.key("b/1"))] {
                            let answer = c.try_range(option(pb::RangeRequest { revision, ..request })).await;
                            if served {
                                needed("Range", answer)?;
                            } else {
                                c.refused(answer, OutOfRange, COMPACTED);
                            }
                        }
                    }
                    Ok(())
                },
            )
            .alone();
        if name == "serializable" {
            // Another member may not know of the compaction yet.
            range.needs(crate::Need::OneMember);
        }
    }
    suite
        .case(
            "compact/txn",
            "a range below the compaction makes its transaction fail, whole, if its branch runs",
            |c| async move {
                let at = compacted(&c).await?;
                let past = || pb::RangeRequest { revision: at[0], ..c.dir("b/") };
                let request = txn().then(put(c.key("b/new"), "x")).then(past());
                c.refused(c.try_txn(request.into()).await, OutOfRange, COMPACTED);
                c.refused(c.try_txn(txn().then(past()).into()).await, OutOfRange, COMPACTED);
                c.same("value", c.value("b/new").await?, None);
                let request =
                    txn().when(crate::request::never(c.key("b/1"))).then(past()).or(put(c.key("b/new"), "x"));
                c.txn(request).await?;
                c.same("value", c.value("b/new").await?.as_deref(), Some("x"));
                Ok(())
            },
        )
        .alone();
    suite
        .case("compact/range-stream", "a stream below the compaction is refused", |c| async move {
            let at = compacted(&c).await?;
            let request = pb::RangeRequest { revision: at[0], ..c.all() };
            let answer = match c.api.kv.clone().range_stream(request).await {
                Ok(answer) => answer.into_inner().message().await,
                Err(status) => Err(status),
            };
            c.refused(answer, OutOfRange, COMPACTED);
            Ok(())
        })
        .alone();
    suite
        .case(
            "compact/pages",
            "pages at a revision that is compacted meanwhile are refused from then on",
            |c| async move {
                c.puts(&[("a/1", "1"), ("b/1", "2"), ("c/1", "3")]).await?;
                let first = c.range(pb::RangeRequest { limit: 1, ..c.all() }).await?;
                let page = pb::RangeRequest {
                    revision: revision(&first.header),
                    key: c.key("a/1\0"),
                    limit: 1,
                    ..c.all()
                };
                c.same("second page", c.words(&c.range(page.clone()).await?.kvs), "b/1=2");
                let now = c.put("a/1", "x").await?;
                c.compact(now).await?;
                c.refused(c.try_range(page).await, OutOfRange, COMPACTED);
                Ok(())
            },
        )
        .alone();
}

fn contents(suite: &mut Suite) {
    suite
        .case(
            "compact/keeps-live",
            "a compaction keeps the newest of every key with all its revisions",
            |c| async move {
                let lease = c.grant(0, 600).await?;
                c.puts(&[("a/1", "1"), ("b/1", "2"), ("b/1", "3"), ("c/1", "4")]).await?;
                c.send_put(pb::PutRequest { lease, ..put(c.key("c/2"), "5") }).await?;
                let before = c.range(c.all()).await?;
                c.compact(revision(&before.header)).await?;
                let after = c.range(c.all()).await?;
                c.same("pairs", after.kvs, before.kvs);
                c.same("keys of the lease", c.lease(lease).await?.keys, vec![c.key("c/2")]);
                Ok(())
            },
        )
        .alone();
    suite
        .case("compact/deleted", "a key whose delete is compacted is gone, and begins anew", |c| async move {
            c.puts(&[("b/1", "1"), ("b/1", "2"), ("b/2", "x")]).await?;
            let gone = revision(&c.send_delete(delete(c.key("b/1"))).await?.header);
            c.compact(gone).await?;
            c.same("keys", c.names(&needed("Range", at(&c, gone).await)?.kvs), "b/2");
            let put = c.put("b/1", "3").await?;
            let kv = c.there("b/1").await?;
            c.same("revisions", (kv.create_revision, kv.mod_revision, kv.version), (put, put, 1));
            Ok(())
        })
        .alone();
    suite
        .case("compact/above-stays", "history above the compaction stays as it was", |c| async move {
            let at = c.puts(&[("b/1", "1"), ("c/1", "2"), ("b/1", "3"), ("a/1", "4"), ("b/1", "5")]).await?;
            c.compact(at[1]).await?;
            for (revision, want) in [
                (at[1], "b/1=1 c/1=2"),
                (at[2], "b/1=3 c/1=2"),
                (at[3], "a/1=4 b/1=3 c/1=2"),
                (at[4], "a/1=4 b/1=5 c/1=2"),
            ] {
                c.same("pairs", c.words(&needed("Range", self::at(&c, revision).await)?.kvs).as_str(), want);
            }
            Ok(())
        })
        .alone();
    suite
        .case("compact/versions", "versions and create revisions go on after a compaction", |c| async move {
            let at = c.puts(&[("b/1", "1"), ("b/1", "2"), ("b/1", "3")]).await?;
            c.compact(at[2]).await?;
            let last = c.put("b/1", "4").await?;
            let kv = c.there("b/1").await?;
            c.same("revisions", (kv.create_revision, kv.mod_revision, kv.version), (at[0], last, 4));
            let request = txn()
                .when(crate::request::version_is(c.key("b/1"), 4))
                .when(crate::request::compare(
                    c.key("b/1"),
                    pb::TargetUnion::CreateRevision(at[0]),
                    crate::request::Equal,
                ))
                .when(crate::request::compare(
                    c.key("b/1"),
                    pb::TargetUnion::ModRevision(at[2]),
                    crate::request::Greater,
                ));
            c.same("succeeded", c.txn(request).await?.succeeded, true);
            Ok(())
        })
        .alone();
    suite
        .case("compact/several", "later compactions take away more", |c| async move {
            let at = c.puts(&[("a/1", "1"), ("b/1", "2"), ("c/1", "3"), ("a/1", "4")]).await?;
            for n in 0..3 {
                c.compact(at[n]).await?;
                if n > 0 {
                    c.refused(self::at(&c, at[n - 1]).await, OutOfRange, COMPACTED);
                }
                needed("Range", self::at(&c, at[n]).await)?;
            }
            c.same("pairs", c.words(&c.range(c.all()).await?.kvs), "a/1=4 b/1=2 c/1=3");
            Ok(())
        })
        .alone();
}
