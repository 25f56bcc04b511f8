//! Reads of the past.

use sharded_etcd_etcd_api::messages as pb;
use tonic::Code;

use crate::{
    Need, Suite,
    cases::texts::{FAR, FUTURE},
    check::revision,
    request::get,
};

type WithOption = fn(pb::RangeRequest) -> pb::RangeRequest;

pub(super) fn add(suite: &mut Suite) {
    suite.case("range/revision/history", "every revision of a key stays readable", |c| async move {
        let at = c.puts(&[("b/1", "one"), ("b/1", "two"), ("b/1", "three")]).await?;
        for (n, revision) in at.iter().enumerate() {
            let answer = c.range(pb::RangeRequest { revision: *revision, ..get(c.key("b/1")) }).await?;
            let want = pb::KeyValue {
                key: c.key("b/1"),
                value: ["one", "two", "three"][n].into(),
                create_revision: at[0],
                mod_revision: *revision,
                version: n as i64 + 1,
                lease: 0,
            };
            c.same("pairs", answer.kvs, vec![want]);
        }
        Ok(())
    });
    suite.case(
        "range/revision/before-creation",
        "a key is not there at a revision before its creation",
        |c| async move {
            let before = c.put("a/other", "x").await?;
            c.put("b/1", "x").await?;
            let answer = c.range(pb::RangeRequest { revision: before, ..get(c.key("b/1")) }).await?;
            c.same("count", answer.count, 0);
            let answer = c.range(pb::RangeRequest { revision: before, ..c.all() }).await?;
            c.same("keys", c.names(&answer.kvs), "a/other");
            Ok(())
        },
    );
    suite.case(
        "range/revision/deleted",
        "a key is there until the revision of its delete, and not at it",
        |c| async move {
            let put = c.put("b/1", "x").await?;
            let deleted = c.delete("b/1").await?;
            c.put("b/1", "again").await?;
            for (revision, want) in [(put, "b/1=x"), (deleted - 1, "b/1=x"), (deleted, "")] {
                let answer = c.range(pb::RangeRequest { revision, ..get(c.key("b/1")) }).await?;
                c.same("pairs", c.words(&answer.kvs), want);
            }
            Ok(())
        },
    );
    suite.case(
        "range/revision/over-directories",
        "a range over all directories shows one moment",
        |c| async move {
            let at = c.puts(&[("a/1", "1"), ("b/1", "1"), ("c/1", "1"), ("b/1", "2"), ("a/1", "2")]).await?;
            let wants =
                ["a/1=1", "a/1=1 b/1=1", "a/1=1 b/1=1 c/1=1", "a/1=1 b/1=2 c/1=1", "a/1=2 b/1=2 c/1=1"];
            for (revision, want) in at.iter().zip(wants) {
                let answer = c.range(pb::RangeRequest { revision: *revision, ..c.all() }).await?;
                c.same("pairs", c.words(&answer.kvs).as_str(), want);
                c.same("count", answer.count, answer.kvs.len() as i64);
            }
            Ok(())
        },
    );
    suite.case(
        "range/revision/header",
        "the header of a read of the past has the current revision",
        |c| async move {
            let at = c.puts(&[("a/1", "1"), ("b/1", "1"), ("c/1", "1")]).await?;
            let answer = c.range(pb::RangeRequest { revision: at[0], ..get(c.key("a/1")) }).await?;
            c.holds("the header is not before the last write", revision(&answer.header) >= at[2]);
            Ok(())
        },
    );
    suite.case("range/revision/current", "the revision of the header can be read at", |c| async move {
        c.puts(&[("a/1", "1"), ("b/1", "1")]).await?;
        let now = revision(&c.range(c.all()).await?.header);
        let answer = c.range(pb::RangeRequest { revision: now, ..c.all() }).await?;
        c.same("pairs", c.words(&answer.kvs), "a/1=1 b/1=1");
        Ok(())
    });
    for revision in [-1, i64::MIN] {
        suite.case(
            format!("range/revision/negative-{}", if revision == -1 { "one" } else { "lowest" }),
            "a negative revision reads the current state",
            move |c| async move {
                c.put("b/1", "x").await?;
                let answer = c.range(pb::RangeRequest { revision, ..c.all() }).await?;
                c.same("pairs", c.words(&answer.kvs), "b/1=x");
                Ok(())
            },
        );
    }
    suite.case("range/revision/first", "revision 1 is the empty store", |c| async move {
        c.put("b/1", "x").await?;
        let answer = c.range(pb::RangeRequest { revision: 1, ..c.all() }).await?;
        c.same("count", answer.count, 0);
        Ok(())
    });
    let options: [(&str, WithOption); 6] = [
        ("plain", |r| r),
        ("serializable", |r| pb::RangeRequest { serializable: true, ..r }),
        ("keys-only", |r| pb::RangeRequest { keys_only: true, ..r }),
        ("count-only", |r| pb::RangeRequest { count_only: true, ..r }),
        ("limit", |r| pb::RangeRequest { limit: 2, ..r }),
        ("sorted", |r| pb::RangeRequest { sort_order: 2, sort_target: 4, ..r }),
    ];
    for (name, option) in options {
        suite.case(
            format!("range/revision/future-{name}"),
            format!("a range at a revision that does not exist yet is refused ({name})"),
            move |c| async move {
                c.put("b/1", "x").await?;
                for revision in [c.now().await? + FAR, i64::MAX] {
                    for request in [get(c.key("b/1")), c.all(), get(c.key("none"))] {
                        let request = option(pb::RangeRequest { revision, ..request });
                        c.refused(c.try_range(request).await, Code::OutOfRange, FUTURE);
                    }
                }
                Ok(())
            },
        );
        let past = suite.case(
            format!("range/revision/past-{name}"),
            format!("a range of the past answers what the same range answered then ({name})"),
            move |c| async move {
                c.puts(&[("a/1", "1"), ("b/1", "2"), ("c/1", "3"), ("c/2", "4")]).await?;
                let then = c.range(option(c.all())).await?;
                let revision = revision(&c.range(c.all()).await?.header);
                c.puts(&[("a/1", "9"), ("b/2", "9")]).await?;
                c.delete("c/1").await?;
                let now = c.range(option(pb::RangeRequest { revision, ..c.all() })).await?;
                c.same("answer", (now.kvs, now.more, now.count), (then.kvs, then.more, then.count));
                Ok(())
            },
        );
        if name == "serializable" {
            // Another member may not have come so far.
            past.needs(Need::OneMember);
        }
    }
}
