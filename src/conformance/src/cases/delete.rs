//! DeleteRange.

use sharded_etcd_etcd_api::messages as pb;
use tonic::Code::InvalidArgument;

use super::texts::NO_KEY;
use crate::{
    Need, Suite,
    check::revision,
    request::{delete, delete_range, get, put},
};

const FIVE: [(&str, &str); 5] = [("a/1", "1"), ("a/2", "2"), ("b/1", "3"), ("b/2", "4"), ("c/1", "5")];

pub(super) fn add(suite: &mut Suite) {
    one(suite);
    many(suite);
    previous(suite);
    for (name, range_end) in [("empty-key", ""), ("empty-key-with-end", "z"), ("empty-key-to-the-end", "\0")]
    {
        suite.case(
            format!("delete/errors/{name}"),
            "a delete without a key is refused",
            move |c| async move {
                c.put("b/1", "x").await?;
                let request = delete_range(("".into(), range_end.into()));
                c.refused(c.try_delete(request).await, InvalidArgument, NO_KEY);
                c.same("value", c.value("b/1").await?, Some("x".to_owned()));
                Ok(())
            },
        );
    }
}

fn one(suite: &mut Suite) {
    suite.case("delete/key", "a deleted key is gone, and one is counted", |c| async move {
        c.puts(&[("b/1", "x"), ("b/12", "y")]).await?;
        let answer = c.send_delete(delete(c.key("b/1"))).await?;
        c.same("deleted", answer.deleted, 1);
        c.same("pairs", c.words(&c.range(c.all()).await?.kvs), "b/12=y");
        Ok(())
    });
    suite.case("delete/missing-key", "deleting nothing counts 0 and is not a change", |c| async move {
        let before = c.put("b/1", "x").await?;
        let answer = c.send_delete(delete(c.key("b/2"))).await?;
        c.same("answer", (answer.deleted, answer.prev_kvs.len()), (0, 0));
        c.holds("the header is not before the last write", revision(&answer.header) >= before);
        Ok(())
    });
    suite
        .case("delete/missing-key-revision", "deleting nothing takes no revision", |c| async move {
            let before = c.put("b/1", "x").await?;
            let answer = c.send_delete(delete(c.key("b/2"))).await?;
            c.same("header", revision(&answer.header), before);
            c.same("revision of the next put", c.put("b/1", "y").await?, before + 1);
            Ok(())
        })
        .alone()
        .needs(Need::ConsecutiveRevisions);
    suite.case("delete/twice", "a second delete finds nothing", |c| async move {
        c.put("b/1", "x").await?;
        let first = c.send_delete(delete(c.key("b/1"))).await?;
        let second = c.send_delete(delete(c.key("b/1"))).await?;
        c.same("deleted", (first.deleted, second.deleted), (1, 0));
        Ok(())
    });
    suite.case(
        "delete/revision",
        "the header's revision is the first at which the key is gone",
        |c| async move {
            let put = c.put("b/1", "x").await?;
            let at = c.delete("b/1").await?;
            c.holds("the delete is after the put", at > put);
            for (revision, want) in [(at - 1, 1), (at, 0)] {
                let answer = c.range(pb::RangeRequest { revision, ..get(c.key("b/1")) }).await?;
                c.same("count", answer.count, want);
            }
            Ok(())
        },
    );
    suite.case("delete/detaches", "a deleted key leaves its lease", |c| async move {
        let lease = c.grant(0, 600).await?;
        for name in ["b/1", "b/2"] {
            c.send_put(pb::PutRequest { lease, ..put(c.key(name), "x") }).await?;
        }
        c.delete("b/1").await?;
        let keys = c.lease(lease).await?.keys;
        c.same("keys", keys, vec![c.key("b/2")]);
        c.put("b/1", "new").await?;
        c.revoke(lease).await?;
        c.same("pairs", c.words(&c.range(c.all()).await?.kvs), "b/1=new");
        Ok(())
    });
}

fn many(suite: &mut Suite) {
    let tables = [
        ("range", "a/2", "b/2", 2, "a/1 b/2 c/1", "a range is deleted without its end"),
        ("directory", "b/", "b0", 2, "a/1 a/2 c/1", "a prefix is deleted"),
        ("all", "a", "d", 5, "", "a range over all directories is deleted"),
        ("nothing-there", "b/3", "c/", 0, "a/1 a/2 b/1 b/2 c/1", "a range without keys is nothing to delete"),
        (
            "empty",
            "b/1",
            "b/1",
            0,
            "a/1 a/2 b/1 b/2 c/1",
            "a range that ends where it begins is nothing to delete",
        ),
        (
            "inverted",
            "c/",
            "a/",
            0,
            "a/1 a/2 b/1 b/2 c/1",
            "a range that ends before it begins is nothing to delete",
        ),
        ("next-key", "b/1", "b/1\0", 1, "a/1 a/2 b/2 c/1", "key and key + \\0 bound one key"),
        ("between-keys", "a/11", "b/11", 2, "a/1 b/2 c/1", "bounds need not be keys"),
    ];
    for (name, from, to, count, left, requires) in tables {
        suite.case(format!("delete/range/{name}"), requires, move |c| async move {
            let before = c.puts(&FIVE).await?[4];
            let answer = c.send_delete(delete_range((c.key(from), c.key(to)))).await?;
            c.same("answer", (answer.deleted, answer.prev_kvs.len()), (count, 0));
            let read = c.range(c.all()).await?;
            c.same("keys", c.names(&read.kvs), left);
            c.holds("the header is not before the puts", revision(&answer.header) >= before);
            c.holds("no read is before the delete", revision(&read.header) >= revision(&answer.header));
            let then = c.range(pb::RangeRequest { revision: before, ..c.all() }).await?;
            c.same("keys before", then.count, 5);
            Ok(())
        });
    }
    suite.case(
        "delete/range/one-revision",
        "all keys of a range are deleted at one revision",
        |c| async move {
            let names = ["b/1", "b/2", "b/3", "b/4"];
            let before = c.puts(&names.map(|name| (name, "x"))).await?[3];
            let mut watching = c.watch(c.watch_all(before + 1)).await?;
            let at = revision(&c.send_delete(delete_range((c.key("b/"), c.key("b0")))).await?.header);
            let events = watching.events(4).await?;
            let revisions: Vec<_> =
                events.iter().filter_map(|e| e.kv.as_ref()).map(|kv| kv.mod_revision).collect();
            c.same("revisions", revisions, vec![at; 4]);
            Ok(())
        },
    );
    suite
        .case(
            "delete/range/one-revision-over-all",
            "keys of all directories are deleted at one revision",
            |c| async move {
                let before = c.puts(&FIVE).await?[4];
                let mut watching = c.watch(c.watch_all(before + 1)).await?;
                let at = revision(&c.send_delete(delete_range(c.everything())).await?.header);
                let events = watching.events(5).await?;
                let revisions: Vec<_> =
                    events.iter().filter_map(|e| e.kv.as_ref()).map(|kv| kv.mod_revision).collect();
                c.same("revisions", revisions, vec![at; 5]);
                Ok(())
            },
        )
        .needs(Need::OneRevisionOverShards);
    suite
        .case("delete/range/from-key", "range end \\0 deletes everything from the key on", |c| async move {
            c.puts(&FIVE).await?;
            c.send_delete(delete_range((c.key("b/1"), vec![0].into()))).await?;
            c.same("keys", c.names(&c.range(c.all()).await?.kvs), "a/1 a/2");
            Ok(())
        })
        .alone();
    suite
        .case("delete/range/whole-store", "key \\0 with range end \\0 deletes everything", |c| async move {
            c.puts(&FIVE).await?;
            let whole = pb::RangeRequest { range_end: vec![0].into(), ..get(vec![0].into()) };
            let count = c.range(whole.clone()).await?.count;
            let answer = c.send_delete(delete_range((vec![0].into(), vec![0].into()))).await?;
            c.same("deleted", answer.deleted, count);
            c.same("left", c.range(whole).await?.count, 0);
            Ok(())
        })
        .alone();
    suite.case("delete/range/many-keys", "200 keys are deleted and counted", |c| async move {
        for dir in ["a", "c"] {
            let mut puts = crate::request::txn();
            for n in 0..100 {
                puts = puts.then(put(c.key(&format!("{dir}/{n}")), "x"));
            }
            c.txn(puts).await?;
        }
        c.same("deleted", c.send_delete(delete_range(c.everything())).await?.deleted, 200);
        c.same("left", c.range(c.all()).await?.count, 0);
        Ok(())
    });
}

fn previous(suite: &mut Suite) {
    suite.case("delete/prev-kv/key", "prev_kv gives the whole pair that was deleted", |c| async move {
        let at = c.puts(&[("b/1", "x"), ("b/1", "y")]).await?;
        let answer = c.send_delete(pb::DeleteRangeRequest { prev_kv: true, ..delete(c.key("b/1")) }).await?;
        let want = pb::KeyValue {
            key: c.key("b/1"),
            value: "y".into(),
            create_revision: at[0],
            mod_revision: at[1],
            version: 2,
            lease: 0,
        };
        c.same("previous", answer.prev_kvs, vec![want]);
        Ok(())
    });
    suite.case(
        "delete/prev-kv/range",
        "prev_kv gives all pairs of all directories in order",
        |c| async move {
            c.puts(&FIVE).await?;
            let request =
                pb::DeleteRangeRequest { prev_kv: true, ..delete_range((c.key("a/2"), c.key("d"))) };
            let answer = c.send_delete(request).await?;
            c.same("previous", c.words(&answer.prev_kvs), "a/2=2 b/1=3 b/2=4 c/1=5");
            c.same("deleted", answer.deleted, 4);
            Ok(())
        },
    );
    suite.case("delete/prev-kv/none", "prev_kv of nothing is nothing", |c| async move {
        let request = pb::DeleteRangeRequest { prev_kv: true, ..delete_range(c.everything()) };
        let answer = c.send_delete(request).await?;
        c.same("answer", (answer.deleted, answer.prev_kvs.len()), (0, 0));
        Ok(())
    });
}
