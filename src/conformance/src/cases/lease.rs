//! Leases.

use std::time::Duration;

use sharded_etcd_etcd_api::messages as pb;
use tokio::time::Instant;
use tonic::{
    Code::{FailedPrecondition, NotFound, OutOfRange},
    Response,
};

use super::texts::{LEASE_EXISTS, NO_LEASE, TTL_TOO_LARGE, UNKNOWN_LEASE};
use crate::{
    Need, Suite,
    check::{Check, Ctx, needed, revision},
    request::{delete_range, put, txn},
};

/// etcd's longest time to live, in seconds (server/lease/lessor.go).
const TTL_MAX: i64 = 9_000_000_000;

async fn attach(c: &Ctx, lease: i64, names: &[&str]) -> Check {
    for name in names {
        c.send_put(pb::PutRequest { lease, ..put(c.key(name), "x") }).await?;
    }
    Ok(())
}

async fn ids(c: &Ctx) -> Check<Vec<i64>> {
    let answer = c.api.lease.clone().lease_leases(pb::LeaseLeasesRequest {}).await;
    Ok(needed("LeaseLeases", answer)?.into_inner().leases.iter().map(|lease| lease.id).collect())
}

pub(super) fn add(suite: &mut Suite) {
    granting(suite);
    revoking(suite);
    keeping(suite);
    asking(suite);
    expiring(suite);
}

fn granting(suite: &mut Suite) {
    suite.case("lease/grant/id", "a lease has the id and the time that were asked for", |c| async move {
        let answer = needed("LeaseGrant", c.try_grant(c.lease_id(0), 600).await)?;
        c.same("answer", (answer.id, answer.ttl, answer.error.as_str()), (c.lease_id(0), 600, ""));
        c.holds("there is a header", revision(&answer.header) > 0);
        Ok(())
    });
    suite.case("lease/grant/no-id", "a lease without an id gets a positive one of its own", |c| async move {
        let (mut first, mut second) = (0, 0);
        for id in [&mut first, &mut second] {
            *id = needed("LeaseGrant", c.try_grant(0, 600).await)?.id;
        }
        c.holds("the ids are positive and differ", first > 0 && second > 0 && first != second);
        c.revoke(first).await?;
        c.revoke(second).await?;
        Ok(())
    });
    suite.case("lease/grant/exists", "an id that is in use is refused", |c| async move {
        c.grant(0, 600).await?;
        c.refused(c.try_grant(c.lease_id(0), 300).await, FailedPrecondition, LEASE_EXISTS);
        c.same("time", c.lease(c.lease_id(0)).await?.granted_ttl, 600);
        Ok(())
    });
    suite.case("lease/grant/again", "an id may be granted again after it was revoked", |c| async move {
        c.grant(0, 600).await?;
        attach(&c, c.lease_id(0), &["a/1", "b/1"]).await?;
        c.revoke(c.lease_id(0)).await?;
        let id = c.grant(0, 300).await?;
        c.same("time", c.lease(id).await?.granted_ttl, 300);
        c.same("keys", c.lease(id).await?.keys.len(), 0);
        attach(&c, id, &["b/1", "c/1"]).await?;
        c.same("keys", c.lease(id).await?.keys, vec![c.key("b/1"), c.key("c/1")]);
        c.revoke(id).await?;
        c.same("left", c.range(c.all()).await?.count, 0);
        Ok(())
    });
    suite.case("lease/grant/negative-id", "a negative id is an id like any other", |c| async move {
        let id = -c.lease_id(0);
        let answer = needed("LeaseGrant", c.try_grant(id, 600).await)?;
        c.same("id", answer.id, id);
        attach(&c, id, &["b/1"]).await?;
        c.same("lease", c.there("b/1").await?.lease, id);
        c.revoke(id).await?;
        c.same("value", c.value("b/1").await?, None);
        Ok(())
    });
    suite
        .case("lease/grant/highest-id", "the id 2^63 - 1 is an id like any other", |c| async move {
            let answer = needed("LeaseGrant", c.try_grant(i64::MAX, 600).await)?;
            attach(&c, answer.id, &["b/1"]).await?;
            c.revoke(i64::MAX).await?;
            c.same("value", c.value("b/1").await?, None);
            Ok(())
        })
        .needs(Need::HighestLeaseId);
    for (name, ttl) in [("one", TTL_MAX + 1), ("largest", i64::MAX)] {
        suite.case(
            format!("lease/grant/too-long-{name}"),
            "a time above 9,000,000,000 seconds is refused",
            move |c| async move {
                c.refused(c.try_grant(c.lease_id(0), ttl).await, OutOfRange, TTL_TOO_LARGE);
                c.same("time", c.lease(c.lease_id(0)).await?.ttl, -1);
                Ok(())
            },
        );
    }
    suite.case("lease/grant/longest", "9,000,000,000 seconds are granted", |c| async move {
        let answer = needed("LeaseGrant", c.try_grant(c.lease_id(0), TTL_MAX).await)?;
        c.same("time", answer.ttl, TTL_MAX);
        c.revoke(answer.id).await?;
        Ok(())
    });
    for (name, ttl) in [("zero", 0), ("negative", -1), ("lowest", i64::MIN), ("short", 1)] {
        suite.case(
            format!("lease/grant/{name}-ttl"),
            "a short or negative time is raised to the least that the server keeps, and told so",
            move |c| async move {
                let answer = needed("LeaseGrant", c.try_grant(c.lease_id(0), ttl).await)?;
                c.holds("the time is positive and a few seconds", (1..=5).contains(&answer.ttl));
                Ok(())
            },
        );
    }
    suite
        .case("lease/grant/no-revision", "granting and keeping alive are no changes", |c| async move {
            let before = c.put("b/1", "x").await?;
            let id = c.grant(0, 600).await?;
            c.keep_alive(id).await?;
            let after = c.put("b/1", "x").await?;
            c.same("revision", after, before + 1);
            Ok(())
        })
        .alone()
        .needs(Need::ConsecutiveRevisions);
}

fn revoking(suite: &mut Suite) {
    suite.case(
        "lease/revoke/deletes",
        "a revoke deletes the keys of the lease in all directories, and no others",
        |c| async move {
            let (id, other) = (c.grant(0, 600).await?, c.grant(1, 600).await?);
            attach(&c, id, &["a/1", "a/2", "b/1", "c/1"]).await?;
            attach(&c, other, &["b/2"]).await?;
            c.put("c/2", "x").await?;
            let at = c.revoke(id).await?;
            let answer = c.range(c.all()).await?;
            c.same("left", c.names(&answer.kvs), "b/2 c/2");
            c.holds("the answer is not before the deletes", {
                let then = c.range(pb::RangeRequest { revision: at, ..c.all() }).await?;
                c.names(&then.kvs) == "b/2 c/2"
            });
            Ok(())
        },
    );
    suite.case("lease/revoke/no-keys", "a lease without keys can be revoked", |c| async move {
        let id = c.grant(0, 600).await?;
        c.revoke(id).await?;
        c.same("time", c.lease(id).await?.ttl, -1);
        Ok(())
    });
    for (name, id) in [("unknown", UNKNOWN_LEASE), ("zero", 0), ("negative", -77)] {
        suite.case(
            format!("lease/revoke/{name}"),
            "revoking a lease that does not exist is refused",
            move |c| async move {
                c.refused(c.try_revoke(id).await, NotFound, NO_LEASE);
                Ok(())
            },
        );
    }
    suite.case("lease/revoke/twice", "a second revoke is refused", |c| async move {
        let id = c.grant(0, 600).await?;
        c.revoke(id).await?;
        c.refused(c.try_revoke(id).await, NotFound, NO_LEASE);
        Ok(())
    });
    suite.case("lease/revoke/gone", "a revoked lease is neither listed nor kept alive", |c| async move {
        let id = c.grant(0, 600).await?;
        attach(&c, id, &["b/1"]).await?;
        c.revoke(id).await?;
        c.holds("it is not listed", !ids(&c).await?.contains(&id));
        c.same("keep-alive", c.keep_alive(id).await?.ttl, 0);
        Ok(())
    });
    suite.case("lease/revoke/watched", "watchers see the deletes of a revoke", |c| async move {
        let id = c.grant(0, 600).await?;
        attach(&c, id, &["a/1", "b/1"]).await?;
        let now = c.now().await?;
        let mut watching = c.watch(pb::WatchCreateRequest { prev_kv: true, ..c.watch_all(now + 1) }).await?;
        c.revoke(id).await?;
        let mut words: Vec<_> = watching.events(2).await?.iter().map(|e| watching.word(e)).collect();
        words.sort_unstable();
        c.same("events", words, ["-a/1<x", "-b/1<x"]);
        Ok(())
    });
    suite.case(
        "lease/revoke/one-revision",
        "a revoke deletes the keys of one directory at one revision",
        |c| async move {
            let id = c.grant(0, 600).await?;
            attach(&c, id, &["b/1", "b/2", "b/3"]).await?;
            let mut watching = c.watch(c.watch_all(c.now().await? + 1)).await?;
            c.revoke(id).await?;
            let mut at: Vec<_> = watching
                .events(3)
                .await?
                .into_iter()
                .filter_map(|e| e.kv)
                .map(|kv| kv.mod_revision)
                .collect();
            at.dedup();
            c.same("revisions", at.len(), 1);
            Ok(())
        },
    );
    suite
        .case(
            "lease/revoke/one-revision-over-all",
            "a revoke deletes the keys of all directories at one revision",
            |c| async move {
                let id = c.grant(0, 600).await?;
                attach(&c, id, &["a/1", "b/1", "c/1"]).await?;
                let mut watching = c.watch(c.watch_all(c.now().await? + 1)).await?;
                c.revoke(id).await?;
                let mut at: Vec<_> = watching
                    .events(3)
                    .await?
                    .into_iter()
                    .filter_map(|e| e.kv)
                    .map(|kv| kv.mod_revision)
                    .collect();
                at.dedup();
                c.same("revisions", at.len(), 1);
                Ok(())
            },
        )
        .needs(Need::OneRevisionOverShards);
    suite.case("lease/revoke/many-keys", "a lease of 150 keys is revoked with all of them", |c| async move {
        let lease = c.grant(0, 600).await?;
        for dir in ["a", "b", "c"] {
            let puts = (0..50).fold(txn(), |txn, n| {
                txn.then(pb::PutRequest { lease, ..put(c.key(&format!("{dir}/{n}")), "x") })
            });
            c.txn(puts).await?;
        }
        c.same("keys", c.lease(lease).await?.keys.len(), 150);
        c.revoke(lease).await?;
        c.same("left", c.range(c.all()).await?.count, 0);
        Ok(())
    });
}

fn keeping(suite: &mut Suite) {
    suite.case("lease/keep-alive/answer", "a keep-alive answers id and full time", |c| async move {
        let id = c.grant(0, 600).await?;
        let answer = c.keep_alive(id).await?;
        c.same("answer", (answer.id, answer.ttl), (id, 600));
        c.holds("there is a header", revision(&answer.header) > 0);
        Ok(())
    });
    for (name, id) in [("unknown", UNKNOWN_LEASE), ("zero", 0), ("negative", -77)] {
        suite.case(
            format!("lease/keep-alive/{name}"),
            "the keep-alive of a lease that does not exist answers time 0 and is no error",
            move |c| async move {
                let answer = c.keep_alive(id).await?;
                c.same("answer", (answer.id, answer.ttl), (id, 0));
                Ok(())
            },
        );
    }
    suite.case(
        "lease/keep-alive/several",
        "one stream keeps several leases alive, and answers in order",
        |c| async move {
            let (first, second) = (c.grant(0, 600).await?, c.grant(1, 300).await?);
            let beats = [first, second, UNKNOWN_LEASE, first].map(|id| pb::LeaseKeepAliveRequest { id });
            let stream = c.api.lease.clone().lease_keep_alive(tokio_stream::iter(beats)).await;
            let mut stream = needed("LeaseKeepAlive", stream)?.into_inner();
            let mut answers = Vec::new();
            while let Some(answer) = needed("LeaseKeepAlive", stream.message().await)? {
                answers.push((answer.id, answer.ttl));
            }
            c.same("answers", answers, [(first, 600), (second, 300), (UNKNOWN_LEASE, 0), (first, 600)]);
            Ok(())
        },
    );
    suite.case(
        "lease/keep-alive/keeps",
        "a lease that is kept alive outlives its time, with its keys",
        |c| async move {
            let answer = needed("LeaseGrant", c.try_grant(c.lease_id(0), 4).await)?;
            attach(&c, answer.id, &["a/1", "c/1"]).await?;
            let end = Instant::now() + Duration::from_secs(2 * answer.ttl as u64);
            while Instant::now() < end {
                c.same("time", c.keep_alive(answer.id).await?.ttl, answer.ttl);
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            c.same("keys", c.names(&c.range(c.all()).await?.kvs), "a/1 c/1");
            Ok(())
        },
    );
}

fn asking(suite: &mut Suite) {
    suite.case("lease/time-to-live/answer", "the time left is below the time granted", |c| async move {
        let id = c.grant(0, 600).await?;
        let answer = c.lease(id).await?;
        c.same("answer", (answer.id, answer.granted_ttl, answer.keys.len()), (id, 600, 0));
        c.holds("the time left is right", (500..600).contains(&answer.ttl));
        Ok(())
    });
    suite.case("lease/time-to-live/keys", "keys of all directories are told if asked for", |c| async move {
        let id = c.grant(0, 600).await?;
        attach(&c, id, &["c/1", "a/2", "b/1", "a/1"]).await?;
        c.same(
            "keys",
            c.lease(id).await?.keys,
            ["a/1", "a/2", "b/1", "c/1"].map(|name| c.key(name)).to_vec(),
        );
        let request = pb::LeaseTimeToLiveRequest { id, keys: false };
        let answer = c.api.lease.clone().lease_time_to_live(request).await.map(Response::into_inner);
        c.same("unasked", needed("LeaseTimeToLive", answer)?.keys.len(), 0);
        Ok(())
    });
    suite.case(
        "lease/time-to-live/detached",
        "keys that were deleted or put without the lease are not told",
        |c| async move {
            let (id, other) = (c.grant(0, 600).await?, c.grant(1, 600).await?);
            attach(&c, id, &["a/1", "a/2", "b/1", "c/1", "c/2"]).await?;
            c.put("a/1", "without").await?;
            c.delete("b/1").await?;
            attach(&c, other, &["c/1"]).await?;
            c.same("keys", c.lease(id).await?.keys, vec![c.key("a/2"), c.key("c/2")]);
            c.same("keys of the other", c.lease(other).await?.keys, vec![c.key("c/1")]);
            c.send_delete(delete_range(c.everything())).await?;
            c.same("keys", c.lease(id).await?.keys.len(), 0);
            Ok(())
        },
    );
    for (name, id) in [("unknown", UNKNOWN_LEASE), ("zero", 0), ("negative", -77)] {
        suite.case(
            format!("lease/time-to-live/{name}"),
            "a lease that does not exist has time -1, and that is no error",
            move |c| async move {
                let answer = c.lease(id).await?;
                c.same("answer", (answer.id, answer.ttl, answer.granted_ttl), (id, -1, 0));
                Ok(())
            },
        );
    }
    suite.case("lease/leases/listed", "all leases are listed until they end", |c| async move {
        let (first, second) = (c.grant(0, 600).await?, c.grant(1, 600).await?);
        let listed = ids(&c).await?;
        c.holds("both are listed", listed.contains(&first) && listed.contains(&second));
        c.revoke(first).await?;
        let listed = ids(&c).await?;
        c.holds("one is listed", !listed.contains(&first) && listed.contains(&second));
        Ok(())
    });
    suite.case("lease/leases/order", "those with the least time left are listed first", |c| async move {
        let mut granted = Vec::new();
        for (n, ttl) in [(0, 900), (1, 300), (2, 600), (3, 7_000_000)] {
            granted.push(c.grant(n, ttl).await?);
        }
        let want = [1, 2, 0, 3].map(|n| granted[n]);
        let listed: Vec<i64> = ids(&c).await?.into_iter().filter(|id| granted.contains(id)).collect();
        c.same("order", listed, want);
        Ok(())
    });
    suite.case("lease/leases/once", "each lease is listed once, wherever its keys are", |c| async move {
        let id = c.grant(0, 600).await?;
        attach(&c, id, &["a/1", "b/1", "c/1"]).await?;
        c.same("times", ids(&c).await?.iter().filter(|listed| **listed == id).count(), 1);
        Ok(())
    });
}

fn expiring(suite: &mut Suite) {
    suite.case(
        "lease/expire/deletes",
        "a lease that is not kept alive ends after its time, not before, and its keys go",
        |c| async move {
            let before = Instant::now();
            let answer = needed("LeaseGrant", c.try_grant(c.lease_id(0), 3).await)?;
            attach(&c, answer.id, &["a/1", "b/1", "c/1"]).await?;
            c.put("b/2", "x").await?;
            c.until("the keys are gone", || async {
                Ok((c.names(&c.range(c.all()).await?.kvs) == "b/2").then_some(()))
            })
            .await?;
            c.holds("not before its time", before.elapsed() >= Duration::from_secs(answer.ttl as u64));
            c.until("the lease is gone", || async {
                Ok((c.lease(answer.id).await?.ttl == -1).then_some(()))
            })
            .await?;
            c.same("keep-alive", c.keep_alive(answer.id).await?.ttl, 0);
            let request = pb::PutRequest { lease: answer.id, ..put(c.key("b/3"), "x") };
            c.refused(c.try_put(request).await, NotFound, NO_LEASE);
            c.refused(c.try_revoke(answer.id).await, NotFound, NO_LEASE);
            Ok(())
        },
    );
    suite.case("lease/expire/watched", "watchers see the deletes of an expiry", |c| async move {
        let answer = needed("LeaseGrant", c.try_grant(c.lease_id(0), 3).await)?;
        attach(&c, answer.id, &["b/1"]).await?;
        let mut watching = c.watch(pb::WatchCreateRequest { prev_kv: true, ..c.watch_all(1) }).await?;
        c.same("events", watching.words(2).await?, "+b/1=x -b/1<x");
        Ok(())
    });
    suite.case("lease/expire/detached", "a key that left its lease stays when that ends", |c| async move {
        let answer = needed("LeaseGrant", c.try_grant(c.lease_id(0), 3).await)?;
        attach(&c, answer.id, &["a/1", "b/1"]).await?;
        c.put("a/1", "stays").await?;
        c.until("the other key is gone", || async { Ok(c.value("b/1").await?.is_none().then_some(())) })
            .await?;
        c.same("pairs", c.words(&c.range(c.all()).await?.kvs), "a/1=stays");
        Ok(())
    });
    suite.case(
        "lease/expire/re-attached",
        "a key that moved to another lease stays when the first ends",
        |c| async move {
            let answer = needed("LeaseGrant", c.try_grant(c.lease_id(0), 3).await)?;
            let other = c.grant(1, 600).await?;
            attach(&c, answer.id, &["a/1", "b/1"]).await?;
            attach(&c, other, &["a/1"]).await?;
            c.until("the other key is gone", || async { Ok(c.value("b/1").await?.is_none().then_some(())) })
                .await?;
            c.same("lease", c.there("a/1").await?.lease, other);
            Ok(())
        },
    );
}
