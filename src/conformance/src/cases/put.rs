//! Put.

use sharded_etcd_etcd_api::messages as pb;
use tonic::Code::{InvalidArgument, NotFound};

use super::texts::{KEY_NOT_FOUND, LEASE_PROVIDED, NO_KEY, NO_LEASE, UNKNOWN_LEASE, VALUE_PROVIDED};
use crate::{
    Suite,
    check::revision,
    request::{get, put},
};

pub(super) fn add(suite: &mut Suite) {
    plain(suite);
    previous(suite);
    leases(suite);
    ignoring(suite);
    errors(suite);
}

fn plain(suite: &mut Suite) {
    suite.case(
        "put/create",
        "the first put creates the key, with version 1 at the header's revision",
        |c| async move {
            let at = c.put("b/1", "x").await?;
            let kv = c.there("b/1").await?;
            c.same("revisions", (kv.create_revision, kv.mod_revision, kv.version, kv.lease), (at, at, 1, 0));
            Ok(())
        },
    );
    suite.case(
        "put/update",
        "a further put keeps the create revision and counts the version up",
        |c| async move {
            let at = c.puts(&[("b/1", "x"), ("b/1", "y"), ("b/1", "z")]).await?;
            let kv = c.there("b/1").await?;
            c.same("revisions", (kv.create_revision, kv.mod_revision, kv.version), (at[0], at[2], 3));
            Ok(())
        },
    );
    suite.case("put/create-again", "a put after a delete creates the key anew", |c| async move {
        c.puts(&[("b/1", "x"), ("b/1", "y")]).await?;
        c.delete("b/1").await?;
        let at = c.put("b/1", "z").await?;
        let kv = c.there("b/1").await?;
        c.same("revisions", (kv.create_revision, kv.mod_revision, kv.version), (at, at, 1));
        Ok(())
    });
    suite.case(
        "put/same-value",
        "a put of the value that is there is a change like any other",
        |c| async move {
            let at = c.puts(&[("b/1", "x"), ("b/1", "x")]).await?;
            let kv = c.there("b/1").await?;
            c.same("revisions", (kv.mod_revision, kv.version), (at[1], 2));
            Ok(())
        },
    );
    suite.case(
        "put/revisions-grow",
        "every put has a higher revision than the one before, wherever it is",
        |c| async move {
            let names = ["a/1", "b/1", "c/1", "c/2", "a/1", "b/9"];
            let at = c.puts(&names.map(|name| (name, "x"))).await?;
            c.holds("revisions grow", at.is_sorted_by(|a, b| a < b));
            Ok(())
        },
    );
    suite
        .case(
            "put/revisions-consecutive",
            "puts while nothing else is written have consecutive revisions",
            |c| async move {
                let at = c.puts(&[("a/1", "x"), ("b/1", "x"), ("c/1", "x")]).await?;
                c.same("revisions", (at[1], at[2]), (at[0] + 1, at[0] + 2));
                Ok(())
            },
        )
        .alone()
        .needs(crate::Need::ConsecutiveRevisions);
    suite.case("put/empty-value", "an empty value is a value", |c| async move {
        c.put("b/1", "").await?;
        let answer = c.range(get(c.key("b/1"))).await?;
        c.same("answer", (c.words(&answer.kvs).as_str(), answer.count), ("b/1=", 1));
        Ok(())
    });
    suite.case("put/binary-value", "a value is any bytes", |c| async move {
        let value: Vec<u8> = (0..=255).chain([0, 0xff]).collect();
        let request = pb::PutRequest { key: c.key("b/1"), value: value.clone().into(), ..Default::default() };
        c.send_put(request).await?;
        c.same("value", c.there("b/1").await?.value.to_vec(), value);
        Ok(())
    });
    suite.case("put/large-value", "a value of 1 MiB is kept", |c| async move {
        let value = "v".repeat(1 << 20);
        c.put("b/1", &value).await?;
        c.holds("the value is the same", c.there("b/1").await?.value == value);
        Ok(())
    });
    suite
        .case("put/header", "the header names cluster, member and term as a read's does", |c| async move {
            let put = c.send_put(put(c.key("b/1"), "x")).await?.header.unwrap_or_default();
            let read = c.range(get(c.key("b/1"))).await?.header.unwrap_or_default();
            c.same(
                "identity",
                (put.cluster_id, put.member_id, put.raft_term),
                (read.cluster_id, read.member_id, read.raft_term),
            );
            Ok(())
        })
        .needs(crate::Need::OneMember);
    suite.case(
        "put/at-once",
        "puts at the same time all count, each with a revision of its own",
        |c| async move {
            let puts = (0..30).map(|n| {
                let (c, name) = (c.clone(), ["a/1", "b/1", "c/1"][n % 3]);
                async move { c.put(name, &n.to_string()).await }
            });
            let mut at: Vec<i64> =
                futures::future::join_all(puts).await.into_iter().collect::<Result<_, _>>()?;
            at.sort_unstable();
            at.dedup();
            c.same("revisions", at.len(), 30);
            let kvs = c.range(c.all()).await?.kvs;
            c.same("versions", kvs.iter().map(|kv| kv.version).collect::<Vec<_>>(), [10, 10, 10]);
            Ok(())
        },
    );
}

fn previous(suite: &mut Suite) {
    let with = |request| pb::PutRequest { prev_kv: true, ..request };
    suite.case("put/prev-kv/none", "prev_kv of a new key is empty", move |c| async move {
        let answer = c.send_put(with(put(c.key("b/1"), "x"))).await?;
        c.same("previous", answer.prev_kv, None);
        Ok(())
    });
    suite.case("put/prev-kv/update", "prev_kv is the whole pair as it was before", move |c| async move {
        let lease = c.grant(0, 600).await?;
        let first = c.put("b/1", "x").await?;
        let leased = pb::PutRequest { lease, ..put(c.key("b/1"), "y") };
        let second = revision(&c.send_put(leased).await?.header);
        let answer = c.send_put(with(put(c.key("b/1"), "z"))).await?;
        let want = pb::KeyValue {
            key: c.key("b/1"),
            value: "y".into(),
            create_revision: first,
            mod_revision: second,
            version: 2,
            lease,
        };
        c.same("previous", answer.prev_kv, Some(want));
        Ok(())
    });
    suite.case("put/prev-kv/deleted", "prev_kv of a key that was deleted is empty", move |c| async move {
        c.put("b/1", "x").await?;
        c.delete("b/1").await?;
        let answer = c.send_put(with(put(c.key("b/1"), "z"))).await?;
        c.same("previous", answer.prev_kv, None);
        Ok(())
    });
    suite.case("put/prev-kv/not-asked", "there is no prev_kv unless asked for", |c| async move {
        c.put("b/1", "x").await?;
        c.same("previous", c.send_put(put(c.key("b/1"), "y")).await?.prev_kv, None);
        Ok(())
    });
}

fn leases(suite: &mut Suite) {
    suite.case("put/lease/attach", "a put with a lease attaches the key to it", |c| async move {
        let lease = c.grant(0, 600).await?;
        for name in ["a/1", "b/1", "c/1"] {
            c.send_put(pb::PutRequest { lease, ..put(c.key(name), "x") }).await?;
            c.same("lease", c.there(name).await?.lease, lease);
        }
        Ok(())
    });
    suite.case("put/lease/detach", "a put without a lease detaches the key", |c| async move {
        let lease = c.grant(0, 600).await?;
        c.send_put(pb::PutRequest { lease, ..put(c.key("b/1"), "x") }).await?;
        c.put("b/1", "y").await?;
        c.same("lease", c.there("b/1").await?.lease, 0);
        c.revoke(lease).await?;
        c.same("value after the lease is gone", c.value("b/1").await?, Some("y".to_owned()));
        Ok(())
    });
    suite.case("put/lease/other", "a put with another lease moves the key to that", |c| async move {
        let (first, second) = (c.grant(0, 600).await?, c.grant(1, 600).await?);
        for lease in [first, second] {
            c.send_put(pb::PutRequest { lease, ..put(c.key("b/1"), "x") }).await?;
        }
        c.same("lease", c.there("b/1").await?.lease, second);
        c.revoke(first).await?;
        c.same("value", c.value("b/1").await?, Some("x".to_owned()));
        c.revoke(second).await?;
        c.same("value", c.value("b/1").await?, None);
        Ok(())
    });
    suite.case(
        "put/lease/unknown",
        "a put with a lease that does not exist is refused and changes nothing",
        |c| async move {
            c.put("b/1", "x").await?;
            for name in ["a/1", "b/1"] {
                let request = pb::PutRequest { lease: UNKNOWN_LEASE, ..put(c.key(name), "y") };
                c.refused(c.try_put(request).await, NotFound, NO_LEASE);
            }
            c.same("pairs", c.words(&c.range(c.all()).await?.kvs), "b/1=x");
            c.same("version", c.there("b/1").await?.version, 1);
            Ok(())
        },
    );
    suite.case("put/lease/revoked", "a put with a lease that was revoked is refused", |c| async move {
        let lease = c.grant(0, 600).await?;
        c.send_put(pb::PutRequest { lease, ..put(c.key("b/1"), "y") }).await?;
        c.revoke(lease).await?;
        for name in ["a/1", "b/1"] {
            let request = pb::PutRequest { lease, ..put(c.key(name), "y") };
            c.refused(c.try_put(request).await, NotFound, NO_LEASE);
        }
        Ok(())
    });
    suite.case(
        "put/lease/negative",
        "a put with a negative lease is refused as one that does not exist",
        |c| async move {
            let request = pb::PutRequest { lease: -5, ..put(c.key("b/1"), "y") };
            c.refused(c.try_put(request).await, NotFound, NO_LEASE);
            Ok(())
        },
    );
}

fn ignoring(suite: &mut Suite) {
    suite.case("put/ignore-value/kept", "ignore_value keeps the value and is a change", |c| async move {
        let lease = c.grant(0, 600).await?;
        c.put("b/1", "x").await?;
        let request = pb::PutRequest { key: c.key("b/1"), ignore_value: true, lease, ..Default::default() };
        let at = revision(&c.send_put(request).await?.header);
        let kv = c.there("b/1").await?;
        c.same("value", kv.value.as_ref(), b"x".as_slice());
        c.same("rest", (kv.mod_revision, kv.version, kv.lease), (at, 2, lease));
        Ok(())
    });
    suite.case(
        "put/ignore-value/detaches",
        "ignore_value without a lease detaches the key",
        |c| async move {
            let lease = c.grant(0, 600).await?;
            c.send_put(pb::PutRequest { lease, ..put(c.key("b/1"), "x") }).await?;
            c.send_put(pb::PutRequest { key: c.key("b/1"), ignore_value: true, ..Default::default() })
                .await?;
            let kv = c.there("b/1").await?;
            c.same("pair", (kv.value.as_ref(), kv.lease), (b"x".as_slice(), 0));
            Ok(())
        },
    );
    suite.case("put/ignore-value/prev-kv", "ignore_value goes with prev_kv", |c| async move {
        c.put("b/1", "x").await?;
        let request =
            pb::PutRequest { key: c.key("b/1"), ignore_value: true, prev_kv: true, ..Default::default() };
        let before = c.send_put(request).await?.prev_kv.unwrap_or_default();
        c.same("previous", (before.value.as_ref(), before.version), (b"x".as_slice(), 1));
        Ok(())
    });
    suite.case("put/ignore-lease/kept", "ignore_lease keeps the lease", |c| async move {
        let lease = c.grant(0, 600).await?;
        c.send_put(pb::PutRequest { lease, ..put(c.key("b/1"), "x") }).await?;
        c.send_put(pb::PutRequest { ignore_lease: true, ..put(c.key("b/1"), "y") }).await?;
        let kv = c.there("b/1").await?;
        c.same("pair", (kv.value.as_ref(), kv.lease, kv.version), (b"y".as_slice(), lease, 2));
        c.revoke(lease).await?;
        c.same("value after the revoke", c.value("b/1").await?, None);
        Ok(())
    });
    suite.case(
        "put/ignore-lease/none",
        "ignore_lease on a key without a lease leaves it without",
        |c| async move {
            c.put("b/1", "x").await?;
            c.send_put(pb::PutRequest { ignore_lease: true, ..put(c.key("b/1"), "y") }).await?;
            c.same("lease", c.there("b/1").await?.lease, 0);
            Ok(())
        },
    );
    suite.case(
        "put/ignore-both",
        "ignore_value and ignore_lease together only touch the key",
        |c| async move {
            let lease = c.grant(0, 600).await?;
            c.send_put(pb::PutRequest { lease, ..put(c.key("b/1"), "x") }).await?;
            let request = pb::PutRequest {
                key: c.key("b/1"),
                ignore_value: true,
                ignore_lease: true,
                ..Default::default()
            };
            c.send_put(request).await?;
            let kv = c.there("b/1").await?;
            c.same("pair", (kv.value.as_ref(), kv.lease, kv.version), (b"x".as_slice(), lease, 2));
            Ok(())
        },
    );
    for (name, ignore_value, ignore_lease) in
        [("value", true, false), ("lease", false, true), ("both", true, true)]
    {
        suite.case(
            format!("put/ignore/missing-key-{name}"),
            format!(
                "ignoring the {name} of a key that does not exist is refused \
(server/etcdserver/txn/put.go)"
            ),
            move |c| async move {
                let request =
                    pb::PutRequest { key: c.key("b/1"), ignore_value, ignore_lease, ..Default::default() };
                c.refused(c.try_put(request.clone()).await, InvalidArgument, KEY_NOT_FOUND);
                c.put("b/1", "x").await?;
                c.delete("b/1").await?;
                c.refused(c.try_put(request).await, InvalidArgument, KEY_NOT_FOUND);
                Ok(())
            },
        );
    }
}

fn errors(suite: &mut Suite) {
    suite.case("put/errors/empty-key", "a put without a key is refused", |c| async move {
        c.refused(c.try_put(put("".into(), "x")).await, InvalidArgument, NO_KEY);
        Ok(())
    });
    suite.case(
        "put/errors/empty-key-first",
        "the missing key is told before other mistakes",
        |c| async move {
            let request = pb::PutRequest { ignore_value: true, lease: UNKNOWN_LEASE, ..put("".into(), "x") };
            c.refused(c.try_put(request).await, InvalidArgument, NO_KEY);
            Ok(())
        },
    );
    suite.case("put/errors/value-provided", "ignore_value with a value is refused", |c| async move {
        c.put("b/1", "x").await?;
        let request = pb::PutRequest { ignore_value: true, ..put(c.key("b/1"), "y") };
        c.refused(c.try_put(request).await, InvalidArgument, VALUE_PROVIDED);
        c.same("value", c.value("b/1").await?, Some("x".to_owned()));
        Ok(())
    });
    suite.case("put/errors/lease-provided", "ignore_lease with a lease is refused", |c| async move {
        c.put("b/1", "x").await?;
        let request = pb::PutRequest { ignore_lease: true, lease: UNKNOWN_LEASE, ..put(c.key("b/1"), "y") };
        c.refused(c.try_put(request).await, InvalidArgument, LEASE_PROVIDED);
        Ok(())
    });
    suite.case(
        "put/errors/both-provided",
        "of a value and a lease beside their flags, the value is told",
        |c| async move {
            let request = pb::PutRequest {
                ignore_lease: true,
                ignore_value: true,
                lease: UNKNOWN_LEASE,
                ..put(c.key("b/1"), "y")
            };
            c.refused(c.try_put(request).await, InvalidArgument, VALUE_PROVIDED);
            Ok(())
        },
    );
    suite.case(
        "put/errors/missing-key-and-lease",
        "with ignore_value, an unknown lease is told before a missing key",
        |c| async move {
            let request = pb::PutRequest {
                key: c.key("b/1"),
                ignore_value: true,
                lease: UNKNOWN_LEASE,
                ..Default::default()
            };
            c.refused(c.try_put(request).await, NotFound, NO_LEASE);
            Ok(())
        },
    );
    suite
        .case("put/highest-keys", "keys may begin with any bytes", |c| async move {
            let key = [&[0xff; 4], c.key("x").as_ref()].concat();
            c.send_put(put(key.clone().into(), "x")).await?;
            c.same("count", c.range(get(key.into())).await?.count, 1);
            Ok(())
        })
        .needs(crate::Need::HighestKeys);
}
