//! Compares on every target with every result (server/etcdserver/txn/txn.go, `applyCompare`).

use std::cmp::Ordering;

use pb::{CompareResult, TargetUnion};
use sharded_etcd_etcd_api::messages as pb;

use crate::{
    Suite,
    check::{Check, Ctx, revision},
    request::{Equal, Greater, Less, NotEqual, always, compare, never, put, txn},
};

const RESULTS: [(CompareResult, &str); 4] =
    [(Equal, "equal"), (NotEqual, "not-equal"), (Greater, "greater"), (Less, "less")];
const TARGETS: [&str; 5] = ["version", "create", "mod", "value", "lease"];
/// What the store has, compared with the operand.
const SIDES: [(Ordering, &str); 3] =
    [(Ordering::Less, "below"), (Ordering::Equal, "same"), (Ordering::Greater, "above")];

fn holds(result: CompareResult, found: Ordering) -> bool {
    match result {
        Equal => found.is_eq(),
        NotEqual => found.is_ne(),
        Greater => found.is_gt(),
        Less => found.is_lt(),
    }
}

/// An operand to which what the store has, `kv`, stands like that.
fn operand(target: &str, kv: &pb::KeyValue, found: Ordering) -> TargetUnion {
    let near = |n: i64| match found {
        Ordering::Less => n + 1,
        Ordering::Equal => n,
        Ordering::Greater => n - 1,
    };
    match target {
        "version" => TargetUnion::Version(near(kv.version)),
        "create" => TargetUnion::CreateRevision(near(kv.create_revision)),
        "mod" => TargetUnion::ModRevision(near(kv.mod_revision)),
        "lease" => TargetUnion::Lease(near(kv.lease)),
        _ => TargetUnion::Value(match found {
            Ordering::Less => [kv.value.as_ref(), b"+"].concat().into(),
            Ordering::Equal => kv.value.clone(),
            Ordering::Greater => kv.value.slice(..kv.value.len().saturating_sub(1)),
        }),
    }
}

/// Whether a transaction with this compare takes the success branch; the branch taken also leaves its mark.
async fn succeeds(c: &Ctx, compare: pb::Compare) -> Check<bool> {
    let request = txn().when(compare).then(put(c.key("b/mark"), "yes")).or(put(c.key("b/mark"), "no"));
    let answer = c.txn(request).await?;
    let mark = c.value("b/mark").await?;
    c.same("mark", mark.as_deref(), Some(if answer.succeeded { "yes" } else { "no" }));
    c.same("responses", answer.responses.len(), 1);
    Ok(answer.succeeded)
}

/// A key with history, a lease and a value.
async fn key(c: &Ctx) -> Check<pb::KeyValue> {
    let lease = c.grant(0, 600).await?;
    c.puts(&[("b/k", "first"), ("b/k", "second"), ("a/x", "x"), ("c/x", "x")]).await?;
    c.send_put(pb::PutRequest { lease, ..put(c.key("b/k"), "value") }).await?;
    c.puts(&[("c/x", "y"), ("a/x", "y")]).await?;
    c.there("b/k").await
}

pub(super) fn add(suite: &mut Suite) {
    existing(suite);
    missing(suite);
    ranges(suite);
    several(suite);
    odd(suite);
}

fn existing(suite: &mut Suite) {
    for target in TARGETS {
        for (result, result_name) in RESULTS {
            for (found, side) in SIDES {
                suite.case(
                    format!("txn/compare/{target}-{result_name}-{side}"),
                    format!(
                        "{target} {result_name} an operand that the key's {target} is {} decides the branch",
                        if found.is_eq() { "equal to" } else { side }
                    ),
                    move |c| async move {
                        let kv = key(&c).await?;
                        let compare = compare(c.key("b/k"), operand(target, &kv, found), result);
                        c.same("succeeded", succeeds(&c, compare).await?, holds(result, found));
                        Ok(())
                    },
                );
            }
        }
    }
    suite.case(
        "txn/compare/value-empty",
        "an empty value is less than any other and equal to itself",
        |c| async move {
            c.put("b/k", "").await?;
            let with = |result| compare(c.key("b/k"), TargetUnion::Value("".into()), result);
            c.same("equal", succeeds(&c, with(Equal)).await?, true);
            c.same("greater", succeeds(&c, with(Greater)).await?, false);
            let other = compare(c.key("b/k"), TargetUnion::Value("a".into()), Less);
            c.same("less", succeeds(&c, other).await?, true);
            Ok(())
        },
    );
    suite.case(
        "txn/compare/elsewhere",
        "revisions of keys in other directories are on the same line",
        |c| async move {
            let at = c.puts(&[("a/1", "x"), ("b/1", "x"), ("c/1", "x"), ("b/2", "x")]).await?;
            for (operand, result, want) in [
                (at[0], Greater, true),
                (at[0], Equal, false),
                (at[0], Less, false),
                (at[2], Greater, false),
                (at[2], Less, true),
                (at[2], NotEqual, true),
                (at[3], Less, true),
            ] {
                let compare = compare(c.key("b/1"), TargetUnion::ModRevision(operand), result);
                c.same("succeeded", succeeds(&c, compare).await?, want);
            }
            Ok(())
        },
    );
    suite.case(
        "txn/compare/future",
        "a revision of the future is greater than any that a key has",
        |c| async move {
            c.put("b/1", "x").await?;
            for operand in [c.now().await? + (1 << 40), i64::MAX] {
                for (result, want) in [(Less, true), (Equal, false), (Greater, false), (NotEqual, true)] {
                    let compare = compare(c.key("b/1"), TargetUnion::ModRevision(operand), result);
                    c.same("succeeded", succeeds(&c, compare).await?, want);
                }
            }
            Ok(())
        },
    );
    suite.case("txn/compare/negative", "operands may be negative", |c| async move {
        c.put("b/1", "x").await?;
        for operand in [TargetUnion::ModRevision(-3), TargetUnion::Version(-1), TargetUnion::Lease(i64::MIN)]
        {
            c.same("greater", succeeds(&c, compare(c.key("b/1"), operand.clone(), Greater)).await?, true);
            c.same("less", succeeds(&c, compare(c.key("b/1"), operand, Less)).await?, false);
        }
        Ok(())
    });
}

fn missing(suite: &mut Suite) {
    for target in TARGETS {
        for (result, result_name) in RESULTS {
            suite.case(
                format!("txn/compare/missing-{target}-{result_name}"),
                if target == "value" {
                    format!("value {result_name} never holds for a key that does not exist")
                } else {
                    format!("a key that does not exist has {target} 0 in a compare ({result_name})")
                },
                move |c| async move {
                    c.put("b/other", "x").await?;
                    let nothing = pb::KeyValue::default();
                    for (found, _) in SIDES {
                        let compare = compare(c.key("b/k"), operand(target, &nothing, found), result);
                        let want = target != "value" && holds(result, found);
                        c.same(&format!("succeeded, {found:?}"), succeeds(&c, compare).await?, want);
                    }
                    Ok(())
                },
            );
        }
    }
    suite.case("txn/compare/deleted", "a deleted key compares as one that does not exist", |c| async move {
        c.puts(&[("b/k", "x"), ("b/k", "y")]).await?;
        c.delete("b/k").await?;
        for (operand, want) in [
            (TargetUnion::Version(0), true),
            (TargetUnion::CreateRevision(0), true),
            (TargetUnion::ModRevision(0), true),
            (TargetUnion::Lease(0), true),
            (TargetUnion::Value("y".into()), false),
        ] {
            c.same("succeeded", succeeds(&c, compare(c.key("b/k"), operand, Equal)).await?, want);
        }
        Ok(())
    });
}

fn ranges(suite: &mut Suite) {
    let over = |c: &Ctx, from: &str, to: &str, operand, result| pb::Compare {
        range_end: c.key(to),
        ..compare(c.key(from), operand, result)
    };
    for (target, operand_of) in [
        ("version", (|_| TargetUnion::Version(1)) as fn(i64) -> TargetUnion),
        ("create", |at| TargetUnion::CreateRevision(at)),
        ("mod", |at| TargetUnion::ModRevision(at)),
        ("value", |_| TargetUnion::Value("x".into())),
        ("lease", |_| TargetUnion::Lease(0)),
    ] {
        for (result, result_name) in RESULTS {
            suite.case(
                format!("txn/compare/range-{target}-{result_name}"),
                format!(
                    "a compare over a range holds if it holds for every key of it ({target} \
{result_name})"
                ),
                move |c| async move {
                    let lease = c.grant(0, 600).await?;
                    let at = c.puts(&[("b/1", "x"), ("b/2", "x"), ("b/3", "w"), ("b/3", "y")]).await?;
                    c.send_put(pb::PutRequest { lease, ..put(c.key("b/4"), "x") }).await?;
                    let kvs = c.range(c.dir("b/")).await?.kvs;
                    let operand = operand_of(at[1]);
                    for (from, to, covered) in
                        [("b/1", "b/3", 0..2), ("b/1", "b/5", 0..4), ("b/3", "b/4", 2..3)]
                    {
                        let want = kvs[covered].iter().all(|kv| {
                            let found = match &operand {
                                TargetUnion::Version(v) => kv.version.cmp(v),
                                TargetUnion::CreateRevision(r) => kv.create_revision.cmp(r),
                                TargetUnion::ModRevision(r) => kv.mod_revision.cmp(r),
                                TargetUnion::Value(v) => kv.value.cmp(v),
                                TargetUnion::Lease(l) => kv.lease.cmp(l),
                            };
                            holds(result, found)
                        });
                        let request = txn().when(over(&c, from, to, operand.clone(), result));
                        c.same(&format!("{from} to {to}"), c.txn(request).await?.succeeded, want);
                    }
                    Ok(())
                },
            );
        }
    }
    suite.case(
        "txn/compare/range-none",
        "a compare over a range without keys compares with 0, and with a value never holds",
        move |c| async move {
            c.puts(&[("b/1", "x"), ("b/9", "x")]).await?;
            for (operand, result, want) in [
                (TargetUnion::Version(0), Equal, true),
                (TargetUnion::Version(0), Greater, false),
                (TargetUnion::CreateRevision(1), Less, true),
                (TargetUnion::ModRevision(0), NotEqual, false),
                (TargetUnion::Lease(0), Equal, true),
                (TargetUnion::Value("".into()), Equal, false),
                (TargetUnion::Value("".into()), NotEqual, false),
            ] {
                let compare = over(&c, "b/2", "b/3", operand, result);
                c.same("succeeded", succeeds(&c, compare).await?, want);
            }
            Ok(())
        },
    );
    suite.case(
        "txn/compare/range-inverted",
        "a compare over a range that ends before it begins covers no keys",
        move |c| async move {
            c.puts(&[("b/1", "x"), ("b/2", "x")]).await?;
            let compare = over(&c, "b/3", "b/1", TargetUnion::Version(0), Equal);
            c.same("succeeded", c.txn(txn().when(compare)).await?.succeeded, true);
            Ok(())
        },
    );
    suite.case(
        "txn/compare/range-create-if-absent",
        "a prefix without keys is claimed by one of many (client/v3/concurrency)",
        move |c| async move {
            let claims = (0..12).map(|n| {
                let c = c.clone();
                async move {
                    let absent = over(&c, "b/", "b0", TargetUnion::CreateRevision(0), Equal);
                    let request = txn().when(absent).then(put(c.key(&format!("b/{n}")), "mine"));
                    Ok::<bool, crate::check::Stop>(c.txn(request).await?.succeeded)
                }
            });
            let won = futures::future::join_all(claims).await.into_iter().collect::<Result<Vec<_>, _>>()?;
            c.same("winners", won.iter().filter(|won| **won).count(), 1);
            c.same("keys", c.range(c.dir("b/")).await?.count, 1);
            Ok(())
        },
    );
}

fn several(suite: &mut Suite) {
    for (name, first, second, want) in [
        ("both", true, true, true),
        ("first-fails", false, true, false),
        ("second-fails", true, false, false),
        ("neither", false, false, false),
    ] {
        suite.case(
            format!("txn/compare/several-{name}"),
            "a transaction succeeds if all of its compares hold",
            move |c| async move {
                let pick = |holds: bool| if holds { always(c.key("b/1")) } else { never(c.key("b/1")) };
                let request = txn().when(pick(first)).when(pick(second));
                c.same("succeeded", c.txn(request).await?.succeeded, want);
                Ok(())
            },
        );
    }
    suite.case("txn/compare/none", "a transaction without compares succeeds", |c| async move {
        let answer = c.txn(txn().then(put(c.key("b/1"), "x")).or(put(c.key("b/1"), "y"))).await?;
        c.same("succeeded", answer.succeeded, true);
        c.same("value", c.value("b/1").await?, Some("x".to_owned()));
        Ok(())
    });
    suite.case("txn/compare/same-key", "compares on one key may be several", |c| async move {
        let at = c.put("b/1", "x").await?;
        let on = |operand, result| compare(c.key("b/1"), operand, result);
        let request = txn()
            .when(on(TargetUnion::Version(1), Equal))
            .when(on(TargetUnion::ModRevision(at), Equal))
            .when(on(TargetUnion::Value("x".into()), Equal))
            .when(on(TargetUnion::Lease(0), Equal));
        c.same("succeeded", c.txn(request).await?.succeeded, true);
        Ok(())
    });
    suite.case("txn/compare/swap", "of many compare-and-swaps on one revision, one wins", |c| async move {
        let at = c.put("b/1", "x").await?;
        let swaps = (0..12).map(|n| {
            let c = c.clone();
            async move {
                let request = txn()
                    .when(compare(c.key("b/1"), TargetUnion::ModRevision(at), Equal))
                    .then(put(c.key("b/1"), &n.to_string()));
                let answer = c.txn(request).await?;
                Ok::<_, crate::check::Stop>((answer.succeeded, revision(&answer.header)))
            }
        });
        let all = futures::future::join_all(swaps).await.into_iter().collect::<Result<Vec<_>, _>>()?;
        let won: Vec<i64> = all.iter().filter(|(won, _)| *won).map(|(_, at)| *at).collect();
        let kv = c.there("b/1").await?;
        c.same("winners", won, vec![kv.mod_revision]);
        c.same("version", kv.version, 2);
        c.holds("no answer is before the winner's write", all.iter().all(|(_, at)| *at >= kv.mod_revision));
        Ok(())
    });
}

fn odd(suite: &mut Suite) {
    suite.case(
        "txn/compare/no-operand",
        "a compare without an operand compares with 0 or nothing",
        |c| async move {
            c.put("b/1", "").await?;
            for (target, result, want) in [
                (pb::CompareTarget::Version, Greater, true),
                (pb::CompareTarget::Lease, Equal, true),
                (pb::CompareTarget::Value, Equal, true),
            ] {
                let compare = pb::Compare {
                    target: target.into(),
                    result: result.into(),
                    key: c.key("b/1"),
                    ..Default::default()
                };
                c.same("succeeded", c.txn(txn().when(compare)).await?.succeeded, want);
            }
            Ok(())
        },
    );
    suite.case(
        "txn/compare/other-operand",
        "an operand of another kind than the target counts as 0",
        |c| async move {
            let at = c.put("b/1", "x").await?;
            for (result, want) in [(Equal, false), (Greater, true)] {
                let compare = pb::Compare {
                    target: pb::CompareTarget::Version.into(),
                    ..compare(c.key("b/1"), TargetUnion::ModRevision(at), result)
                };
                c.same("succeeded", c.txn(txn().when(compare)).await?.succeeded, want);
            }
            Ok(())
        },
    );
    suite.case("txn/compare/unknown-target", "an unknown target compares equal", |c| async move {
        c.put("b/1", "x").await?;
        for (result, want) in [(Equal, true), (NotEqual, false)] {
            let compare = pb::Compare { target: 9, ..compare(c.key("b/1"), TargetUnion::Version(7), result) };
            c.same("succeeded", c.txn(txn().when(compare)).await?.succeeded, want);
        }
        Ok(())
    });
    suite.case("txn/compare/unknown-result", "an unknown kind of compare holds", |c| async move {
        c.put("b/1", "x").await?;
        let compare = pb::Compare { result: 9, ..compare(c.key("b/1"), TargetUnion::Version(7), Equal) };
        c.same("succeeded", c.txn(txn().when(compare)).await?.succeeded, true);
        Ok(())
    });
}
