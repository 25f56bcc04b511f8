//! keys_only, count_only, serializable, and headers.

use sharded_etcd_etcd_api::messages as pb;

use crate::{Suite, check::revision, request::get};

pub(super) fn add(suite: &mut Suite) {
    suite.case(
        "range/keys-only/metadata",
        "keys_only leaves out the value, and nothing else that a client may rely on (etcd \
3.7 leaves out the lease too, unless sorted by value)",
        |c| async move {
            let lease = c.grant(0, 600).await?;
            let request = pb::PutRequest { lease, ..crate::request::put(c.key("b/1"), "x") };
            let at = revision(&c.send_put(request).await?.header);
            let mut answer = c.range(pb::RangeRequest { keys_only: true, ..c.all() }).await?;
            let want = pb::KeyValue {
                key: c.key("b/1"),
                create_revision: at,
                mod_revision: at,
                version: 1,
                ..Default::default()
            };
            answer.kvs.iter_mut().for_each(|kv| kv.lease = 0);
            c.same("pairs", answer.kvs, vec![want]);
            Ok(())
        },
    );
    suite.case("range/keys-only/one-key", "keys_only on a single key leaves its value out", |c| async move {
        c.put("b/1", "x").await?;
        let answer = c.range(pb::RangeRequest { keys_only: true, ..get(c.key("b/1")) }).await?;
        c.same("pairs", c.words(&answer.kvs), "b/1=");
        Ok(())
    });
    suite.case("range/count-only/range", "count_only counts and returns no keys", |c| async move {
        c.puts(&[("a/1", ""), ("b/1", ""), ("c/1", ""), ("c/1", "")]).await?;
        let answer = c.range(pb::RangeRequest { count_only: true, ..c.all() }).await?;
        c.same("answer", (answer.kvs.len(), answer.count, answer.more), (0, 3, false));
        Ok(())
    });
    suite.case("range/count-only/one-key", "count_only on a key is 1 or 0", |c| async move {
        c.put("b/1", "x").await?;
        for (name, want) in [("b/1", 1), ("b/2", 0)] {
            let answer = c.range(pb::RangeRequest { count_only: true, ..get(c.key(name)) }).await?;
            c.same("answer", (answer.kvs.len(), answer.count), (0, want));
        }
        Ok(())
    });
    suite.case("range/count-only/deletes", "deleted keys are not counted", |c| async move {
        c.puts(&[("a/1", ""), ("b/1", ""), ("c/1", "")]).await?;
        c.delete("b/1").await?;
        let answer = c.range(pb::RangeRequest { count_only: true, ..c.all() }).await?;
        c.same("count", answer.count, 2);
        Ok(())
    });
    suite.case(
        "range/count-only/keys-only",
        "count_only wins over keys_only and sort options",
        |c| async move {
            c.puts(&[("a/1", ""), ("b/1", "")]).await?;
            let request = pb::RangeRequest {
                count_only: true,
                keys_only: true,
                sort_order: 2,
                sort_target: 3,
                ..c.all()
            };
            let answer = c.range(request).await?;
            c.same("answer", (answer.kvs.len(), answer.count), (0, 2));
            Ok(())
        },
    );
    suite.case(
        "range/serializable/catches-up",
        "a serializable read needs no agreement, may be late, and shows a write after a \
while",
        |c| async move {
            c.puts(&[("a/1", "x"), ("c/1", "y")]).await?;
            c.until("a serializable read shows the writes", || async {
                let answer = c.range(pb::RangeRequest { serializable: true, ..c.all() }).await?;
                Ok((c.words(&answer.kvs) == "a/1=x c/1=y").then_some(()))
            })
            .await
        },
    );
    suite.case(
        "range/serializable/options",
        "a serializable read at a revision has all the options of another",
        |c| async move {
            let at = c.puts(&[("a/1", "x"), ("b/1", "z"), ("c/1", "y")]).await?;
            let request = pb::RangeRequest {
                serializable: true,
                revision: at[2],
                sort_order: pb::SortOrder::Descend.into(),
                sort_target: pb::SortTarget::Value.into(),
                limit: 2,
                ..c.all()
            };
            let answer = c.range(request).await?;
            c.same("pairs", c.words(&answer.kvs), "b/1=z c/1=y");
            c.same("rest", (answer.more, answer.count), (true, 3));
            Ok(())
        },
    );
    suite.case("range/linearizable/own-write", "a read after an answered write shows it", |c| async move {
        for n in 0..20 {
            let name = ["a/1", "b/1", "c/1"][n % 3];
            let at = c.put(name, &n.to_string()).await?;
            let answer = c.range(get(c.key(name))).await?;
            c.same("value", c.words(&answer.kvs), format!("{name}={n}"));
            c.holds("the header is not before the write", revision(&answer.header) >= at);
        }
        Ok(())
    });
    suite.case(
        "range/header/idle-key",
        "the header of a read of a key that never existed is not before a write elsewhere \
(how a client learns the revision)",
        |c| async move {
            for name in ["a/1", "b/1", "c/1", "a/1"] {
                let at = c.put(name, "x").await?;
                for idle in ["a/none", "b/none", "c/none"] {
                    let now = revision(&c.range(get(c.key(idle))).await?.header);
                    c.holds(
                        &format!("the header of a read of {idle} is not before a put of {name}"),
                        now >= at,
                    );
                }
            }
            Ok(())
        },
    );
    suite
        .case(
            "range/header/identity",
            "headers name one cluster and a member, and a raft term",
            |c| async move {
                c.put("a/1", "x").await?;
                let first = c.range(get(c.key("a/1"))).await?.header.unwrap_or_default();
                let second = c.range(get(c.key("c/1"))).await?.header.unwrap_or_default();
                c.holds("the cluster id is not 0", first.cluster_id != 0);
                c.holds("the member id is not 0", first.member_id != 0);
                c.holds("the raft term is not 0", first.raft_term > 0);
                c.same("cluster", second.cluster_id, first.cluster_id);
                c.same("member", second.member_id, first.member_id);
                Ok(())
            },
        )
        .needs(crate::Need::OneMember);
    suite.case(
        "range/header/require-leader",
        "requests that ask for a leader (metadata hasleader, clientv3's WithRequireLeader) are served",
        |c| async move {
            c.put("b/1", "x").await?;
            let mut request = tonic::Request::new(c.all());
            request.metadata_mut().insert("hasleader", tonic::metadata::MetadataValue::from_static("true"));
            let answer = crate::check::needed("Range", c.api.kv.clone().range(request).await)?;
            c.same("pairs", c.words(&answer.get_ref().kvs), "b/1=x");
            Ok(())
        },
    );
}
