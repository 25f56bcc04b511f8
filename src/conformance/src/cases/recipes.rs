//! What clients build of the calls: counters, locks, queues (client/v3/concurrency, client/v3/experimental/recipes).

use futures::future::join_all;
use sharded_etcd_etcd_api::messages as pb;

use crate::{
    Suite,
    check::{Check, Ctx, revision},
    request::{Equal, compare, delete, get, put, ranged, txn, version_is},
};

/// Adds one to a number, as clientv3's STM does: read, then write if nothing changed.
async fn add_one(c: &Ctx, name: &str) -> Check {
    let mut now = c.kv(name).await?;
    // Of n writers each loses at most to the n - 1 others' writes.
    for _ in 0..1_000 {
        let (at, value) = now.map_or((0, 0), |kv| {
            let text = String::from_utf8_lossy(&kv.value).into_owned();
            (kv.mod_revision, text.parse::<u32>().unwrap_or_default())
        });
        let request = txn()
            .when(compare(c.key(name), pb::TargetUnion::ModRevision(at), Equal))
            .then(put(c.key(name), &(value + 1).to_string()))
            .or(get(c.key(name)));
        let answer = c.txn(request).await?;
        if answer.succeeded {
            return Ok(());
        }
        now = ranged(answer.responses.first()).and_then(|range| range.kvs.first().cloned());
    }
    Err(crate::Stop(format!("{name} could not be written in 1,000 tries")))
}

pub(super) fn add(suite: &mut Suite) {
    suite.case(
        "recipes/counter",
        "increments by compare-and-swap of writers at the same time all count, once",
        |c| async move {
            let writers = (0..8).map(|_| {
                let c = c.clone();
                async move {
                    for name in ["a/n", "b/n", "c/n", "a/n"] {
                        add_one(&c, name).await?;
                    }
                    Ok(())
                }
            });
            join_all(writers).await.into_iter().collect::<Check<Vec<()>>>()?;
            c.same("pairs", c.words(&c.range(c.all()).await?.kvs), "a/n=16 b/n=8 c/n=8");
            Ok(())
        },
    );
    suite.case(
        "recipes/mutex",
        "the waiter with the lowest create revision holds the lock; each sees the one ahead, \
and the end of a lease passes it on",
        |c| async move {
            let mut waiters = Vec::new();
            for n in 0..3 {
                let lease = c.grant(n, 600).await?;
                let key = c.key(&format!("b/lock/{n}"));
                let request = txn()
                    .when(compare(key.clone(), pb::TargetUnion::CreateRevision(0), Equal))
                    .then(pb::PutRequest { lease, ..put(key.clone(), "") })
                    .then(first(&c))
                    .or(get(key))
                    .or(first(&c));
                let answer = c.txn(request).await?;
                let holder = ranged(answer.responses.get(1)).map(|range| c.names(&range.kvs));
                c.same("holder", holder.as_deref(), Some("b/lock/0"));
                waiters.push((lease, revision(&answer.header)));
            }
            for (n, (lease, mine)) in waiters.iter().enumerate().rev() {
                let ahead = pb::RangeRequest {
                    max_create_revision: mine - 1,
                    sort_order: pb::SortOrder::Descend.into(),
                    sort_target: pb::SortTarget::Create.into(),
                    limit: 1,
                    ..c.dir("b/lock/")
                };
                let want = n.checked_sub(1).map_or(String::new(), |ahead| format!("b/lock/{ahead}"));
                c.same("ahead", c.names(&c.range(ahead).await?.kvs), want);
                c.same("still there", c.lease(*lease).await?.keys.len(), 1);
            }
            c.revoke(waiters[0].0).await?;
            c.same("next holder", c.names(&c.range(first(&c)).await?.kvs), "b/lock/1");
            Ok(())
        },
    );
    suite.case(
        "recipes/queue",
        "of takers at the same time each gets another item, in the order in which they were \
put",
        |c| async move {
            for n in 0..8 {
                c.put(&format!("b/q{n}"), &n.to_string()).await?;
            }
            let takers = (0..4).map(|_| {
                let c = c.clone();
                async move {
                    let mut taken = Vec::new();
                    while taken.len() < 2 {
                        let request = pb::RangeRequest { limit: 1, ..c.dir("b/q") };
                        let Some(kv) = c.range(request).await?.kvs.pop() else { break };
                        let unchanged =
                            compare(kv.key.clone(), pb::TargetUnion::ModRevision(kv.mod_revision), Equal);
                        if c.txn(txn().when(unchanged).then(delete(kv.key.clone()))).await?.succeeded {
                            taken.push(c.name(&kv.key));
                        }
                    }
                    c.holds("items come in order", taken.is_sorted());
                    Ok(taken)
                }
            });
            let mut all: Vec<String> =
                join_all(takers).await.into_iter().collect::<Check<Vec<_>>>()?.concat();
            all.sort_unstable();
            c.same("items", all.join(" "), "b/q0 b/q1 b/q2 b/q3 b/q4 b/q5 b/q6 b/q7");
            Ok(())
        },
    );
    suite.case(
        "recipes/create-or-get",
        "a put if absent gives the creator its revision and all others what is there",
        |c| async move {
            let tries = (0..8).map(|n| {
                let c = c.clone();
                async move {
                    let request = txn()
                        .when(version_is(c.key("b/k"), 0))
                        .then(put(c.key("b/k"), &n.to_string()))
                        .or(get(c.key("b/k")));
                    c.txn(request).await
                }
            });
            let answers = join_all(tries).await.into_iter().collect::<Check<Vec<_>>>()?;
            let kv = c.there("b/k").await?;
            let (won, lost): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.succeeded);
            c.same("winners", won.iter().map(|a| revision(&a.header)).collect::<Vec<_>>(), [kv.mod_revision]);
            let seen = lost.iter().filter_map(|a| ranged(a.responses.first()));
            c.holds("all others see it", seen.map(|range| range.kvs.clone()).all(|kvs| kvs == [kv.clone()]));
            Ok(())
        },
    );
}

/// The key of the lock that was created first.
fn first(c: &Ctx) -> pb::RangeRequest {
    pb::RangeRequest {
        sort_order: pb::SortOrder::Ascend.into(),
        sort_target: pb::SortTarget::Create.into(),
        limit: 1,
        ..c.dir("b/lock/")
    }
}
