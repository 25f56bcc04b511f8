//! Which keys a range covers.

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;

use crate::{
    Suite,
    check::{Ctx, prefix_end},
    request::get,
};

fn between(c: &Ctx, from: &str, to: &str) -> pb::RangeRequest {
    pb::RangeRequest { range_end: c.key(to), ..get(c.key(from)) }
}

const FIVE: [(&str, &str); 5] = [("a/1", "1"), ("a/2", "2"), ("b/1", "3"), ("b/2", "4"), ("c/1", "5")];

pub(super) fn add(suite: &mut Suite) {
    // Name, first key, range end, keys found; the ends are names of keys of the case.
    let tables = [
        ("half-open", "a/2", "b/2", "a/2 b/1", "the range end does not belong to the range"),
        (
            "one-of-two",
            "a/1",
            "a/2",
            "a/1",
            "the range end does not belong to the range, in one directory too",
        ),
        ("next-key", "a/1", "a/1\0", "a/1", "key and key + \\0 bound exactly one key"),
        ("between-keys", "a/11", "b/11", "a/2 b/1", "bounds need not be keys"),
        ("all", "a", "d", "a/1 a/2 b/1 b/2 c/1", "a range over all directories finds all keys in order"),
        ("middle", "b/", "b0", "b/1 b/2", "a directory is found by its prefix"),
        ("two-directories", "b/", "c0", "b/1 b/2 c/1", "two neighbouring directories are found together"),
        ("nothing-there", "b/3", "c/", "", "a range without keys is empty"),
        ("empty", "a/2", "a/2", "", "a range that ends where it begins is empty"),
        ("inverted", "c/", "a/", "", "a range that ends before it begins is empty"),
    ];
    for (name, from, to, want, requires) in tables {
        suite.case(format!("range/bounds/{name}"), requires, move |c| async move {
            c.puts(&FIVE).await?;
            let answer = c.range(between(&c, from, to)).await?;
            c.same("keys", c.names(&answer.kvs), want);
            c.same("count", answer.count, answer.kvs.len() as i64);
            c.same("more", answer.more, false);
            let counted = c.range(pb::RangeRequest { count_only: true, ..between(&c, from, to) }).await?;
            c.same("count alone", counted.count, answer.count);
            Ok(())
        });
    }
    suite.case("range/bounds/key", "a key without range end is one key", |c| async move {
        let at = c.puts(&[("a/1", "x"), ("a/12", "y"), ("a/1", "z")]).await?;
        let answer = c.range(get(c.key("a/1"))).await?;
        let want = pb::KeyValue {
            key: c.key("a/1"),
            value: "z".into(),
            create_revision: at[0],
            mod_revision: at[2],
            version: 2,
            lease: 0,
        };
        c.same("pairs", answer.kvs, vec![want]);
        c.same("count", answer.count, 1);
        Ok(())
    });
    suite.case("range/bounds/missing-key", "a key that does not exist is an empty answer", |c| async move {
        c.put("a/12", "y").await?;
        let answer = c.range(get(c.key("a/1"))).await?;
        c.same("answer", (answer.kvs.len(), answer.count, answer.more), (0, 0, false));
        c.holds("there is a header", answer.header.is_some_and(|header| header.revision > 0));
        Ok(())
    });
    suite.case("range/bounds/from-key", "range end \\0 reads from the key on", |c| async move {
        c.puts(&FIVE).await?;
        let request = pb::RangeRequest { range_end: Bytes::from_static(&[0]), ..get(c.key("b/1")) };
        let answer = c.range(request).await?;
        let own: Vec<_> = answer.kvs.iter().filter(|kv| c.owns(&kv.key)).cloned().collect();
        c.same("own keys", c.names(&own), "b/1 b/2 c/1");
        c.holds("no key is below the first", answer.kvs.iter().all(|kv| kv.key >= c.key("b/1")));
        c.same("count", answer.count, answer.kvs.len() as i64);
        Ok(())
    });
    suite.case("range/bounds/whole-store", "key \\0 with range end \\0 reads everything", |c| async move {
        c.puts(&FIVE).await?;
        let request = pb::RangeRequest { range_end: vec![0].into(), ..get(vec![0].into()) };
        let answer = c.range(request).await?;
        let own: Vec<_> = answer.kvs.iter().filter(|kv| c.owns(&kv.key)).cloned().collect();
        c.same("own keys", c.names(&own), "a/1 a/2 b/1 b/2 c/1");
        c.holds("keys ascend", answer.kvs.is_sorted_by(|a, b| a.key < b.key));
        c.same("count", answer.count, answer.kvs.len() as i64);
        Ok(())
    });
    suite.case(
        "range/bounds/highest-end",
        "a range end of 0xff bytes is a bound like any other",
        |c| async move {
            c.puts(&FIVE).await?;
            let request =
                pb::RangeRequest { range_end: c.key_of(&[0xff, 0xff, 0xff, 0xff]), ..get(c.key("b/2")) };
            c.same("keys", c.names(&c.range(request).await?.kvs), "b/2 c/1");
            Ok(())
        },
    );
    suite.case(
        "range/bounds/prefix-of-another",
        "a prefix finds the key that it is, and those that it begins",
        |c| async move {
            c.puts(&[("b/x", "1"), ("b/xy", "2"), ("b/xyz", "3"), ("b/y", "4")]).await?;
            c.same("keys", c.names(&c.range(c.dir("b/x")).await?.kvs), "b/x b/xy b/xyz");
            Ok(())
        },
    );
    suite.case(
        "range/bounds/binary-keys",
        "keys are bytes, compared as bytes, and need not be text",
        |c| async move {
            let names: [&[u8]; 5] = [b"b/\0", b"b/\0\xff", b"b/\x7f", b"b/\x80\xfe", b"b/\xff"];
            for name in names.iter().rev() {
                let request = pb::PutRequest { key: c.key_of(name), ..Default::default() };
                c.send_put(request).await?;
            }
            let answer = c.range(c.dir("b/")).await?;
            let want: Vec<_> = names.iter().map(|name| c.key_of(name)).collect();
            c.same("keys", answer.kvs.into_iter().map(|kv| kv.key).collect::<Vec<_>>(), want);
            Ok(())
        },
    );
    suite.case("range/bounds/long-key", "a key of 10,000 bytes is found", |c| async move {
        let name = format!("b/{}", "k".repeat(10_000));
        c.put(&name, "x").await?;
        c.same("value", c.value(&name).await?, Some("x".to_owned()));
        let key = c.key(&name);
        let request = pb::RangeRequest { range_end: prefix_end(&key), ..get(key) };
        c.same("count", c.range(request).await?.count, 1);
        Ok(())
    });
    suite.case("range/bounds/case-matters", "keys differ by case and by trailing slash", |c| async move {
        c.puts(&[("b/k", "1"), ("b/K", "2"), ("b/k/", "3")]).await?;
        c.same("pairs", c.words(&c.range(c.dir("b/")).await?.kvs), "b/K=2 b/k=1 b/k/=3");
        Ok(())
    });
}
