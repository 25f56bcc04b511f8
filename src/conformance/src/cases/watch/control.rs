//! Creating and cancelling watchers.

use sharded_etcd_etcd_api::messages as pb;

use crate::{
    Suite,
    cases::texts::COMPACTED,
    check::revision,
    request::{put, txn},
};

/// The id of answers to requests that made no watcher (clientv3's `InvalidWatchID`).
const NO_WATCHER: i64 = -1;

pub(super) fn add(suite: &mut Suite) {
    ids(suite);
    refusals(suite);
    order_of_mistakes(suite);
    cancels(suite);
    streams(suite);
    bounds(suite);
}

fn ids(suite: &mut Suite) {
    suite.case(
        "watch/create/answer",
        "a watcher is answered as created, with id 0 for the first and the current revision",
        |c| async move {
            let at = c.put("b/1", "x").await?;
            let answer = c.watching().create(c.watch_key("b/1", 0)).await?;
            c.same("answer", (answer.watch_id, answer.canceled, answer.compact_revision), (0, false, 0));
            c.holds("the header is not before the last write", revision(&answer.header) >= at);
            Ok(())
        },
    );
    suite.case("watch/create/ids-count-up", "watchers without an id get the next free one", |c| async move {
        let mut watching = c.watching();
        let mut ids = Vec::new();
        for name in ["a/1", "b/1", "c/1"] {
            ids.push(watching.create(c.watch_key(name, 0)).await?.watch_id);
        }
        c.same("ids", ids, [0, 1, 2]);
        Ok(())
    });
    suite.case(
        "watch/create/own-id",
        "a watcher may have an id of the client's choice, also negative",
        |c| async move {
            let mut watching = c.watching();
            for id in [77, 5, -9, i64::MAX] {
                let request = pb::WatchCreateRequest { watch_id: id, ..c.watch_key("b/1", 0) };
                c.same("id", watching.create(request).await?.watch_id, id);
            }
            Ok(())
        },
    );
    suite.case(
        "watch/create/ids-skip-taken",
        "an id that a client chose is not given to another watcher",
        |c| async move {
            let mut watching = c.watching();
            let mut ids = Vec::new();
            for id in [1, 0, 0, 0] {
                let request = pb::WatchCreateRequest { watch_id: id, ..c.watch_key("b/1", 0) };
                ids.push(watching.create(request).await?.watch_id);
            }
            c.same("ids", ids, [1, 0, 2, 3]);
            Ok(())
        },
    );
    suite.case("watch/create/ids-per-stream", "ids belong to their stream", |c| async move {
        let (mut one, mut two) = (c.watching(), c.watching());
        let request = || pb::WatchCreateRequest { watch_id: 6, ..c.watch_key("b/1", 0) };
        c.same("ids", (one.create(request()).await?.watch_id, two.create(request()).await?.watch_id), (6, 6));
        c.put("b/1", "x").await?;
        c.same("events", (one.words(1).await?.as_str(), two.words(1).await?.as_str()), ("+b/1=x", "+b/1=x"));
        Ok(())
    });
    suite.case(
        "watch/create/duplicate-id",
        "an id that is in use on the stream is refused; the watcher that has it goes on",
        |c| async move {
            let mut watching = c.watching();
            let request = || pb::WatchCreateRequest { watch_id: 4, ..c.watch_key("b/1", 0) };
            watching.create(request()).await?;
            let answer = watching.try_create(request()).await?;
            c.same("answer", (answer.watch_id, answer.created, answer.canceled), (NO_WATCHER, true, true));
            c.same("reason", answer.cancel_reason, "mvcc: duplicate watch ID provided on the WatchStream");
            c.put("b/1", "x").await?;
            c.same("events", watching.words(1).await?, "+b/1=x");
            Ok(())
        },
    );
    suite.case(
        "watch/create/id-again",
        "an id may be used again after its watcher was cancelled",
        |c| async move {
            let mut watching = c.watching();
            let request = || pb::WatchCreateRequest { watch_id: 4, ..c.watch_key("b/1", 0) };
            watching.create(request()).await?;
            watching.cancel(4).await?;
            c.same("canceled", watching.next().await?.canceled, true);
            c.same("id", watching.create(request()).await?.watch_id, 4);
            c.put("b/1", "x").await?;
            c.same("events", watching.words(1).await?, "+b/1=x");
            Ok(())
        },
    );
}

fn refusals(suite: &mut Suite) {
    let reason = "mvcc: watcher range is empty";
    let tables = [("empty", "b/1", "b/1"), ("inverted", "c/", "b/")];
    for (name, from, to) in tables {
        suite.case(
            format!("watch/create/{name}-range"),
            "a watch on a range that ends where or before it begins is refused; the stream goes \
on",
            move |c| async move {
                let mut watching = c.watching();
                let request = pb::WatchCreateRequest { range_end: c.key(to), ..c.watch_key(from, 0) };
                let answer = watching.try_create(request).await?;
                c.same(
                    "answer",
                    (answer.watch_id, answer.created, answer.canceled),
                    (NO_WATCHER, true, true),
                );
                c.same("reason", answer.cancel_reason.as_str(), reason);
                c.same("id of the next", watching.create(c.watch_key("b/1", 0)).await?.watch_id, 0);
                Ok(())
            },
        );
    }
    suite.case(
        "watch/create/negative-start",
        "a negative start revision is refused as compacted",
        |c| async move {
            let mut watching = c.watching();
            let answer = watching.try_create(c.watch_key("b/1", -1)).await?;
            c.same("answer", (answer.watch_id, answer.created, answer.canceled), (NO_WATCHER, true, true));
            c.same("reason", answer.cancel_reason.as_str(), COMPACTED);
            c.same("compact revision", answer.compact_revision, 0);
            watching.create(c.watch_key("b/1", 0)).await?;
            Ok(())
        },
    );
    suite.case("watch/empty-request", "a request that says nothing is passed over", |c| async move {
        let mut watching = c.watching();
        watching.send_nothing().await?;
        watching.create(c.watch_key("b/1", 0)).await?;
        Ok(())
    });
}

fn order_of_mistakes(suite: &mut Suite) {
    suite.case(
        "watch/create/duplicate-id-and-empty-range",
        "of an empty range and an id in use, the range is told",
        |c| async move {
            let mut watching = c.watching();
            let request = pb::WatchCreateRequest { watch_id: 4, ..c.watch_key("b/1", 0) };
            watching.create(request.clone()).await?;
            let answer =
                watching.try_create(pb::WatchCreateRequest { range_end: c.key("b/1"), ..request }).await?;
            c.same("answer", (answer.watch_id, answer.canceled), (NO_WATCHER, true));
            c.same("reason", answer.cancel_reason.as_str(), "mvcc: watcher range is empty");
            Ok(())
        },
    );
}

fn cancels(suite: &mut Suite) {
    suite.case(
        "watch/cancel/answer",
        "a cancel is answered, without a reason, and no event comes after it",
        |c| async move {
            let mut watching = c.watching();
            for name in ["b/1", "b/2"] {
                watching.create(c.watch_key(name, 0)).await?;
            }
            watching.cancel(0).await?;
            let answer = watching.next().await?;
            c.same("answer", (answer.watch_id, answer.created, answer.canceled), (0, false, true));
            c.same("reason", (answer.cancel_reason.as_str(), answer.compact_revision), ("", 0));
            c.txn(txn().then(put(c.key("b/1"), "x")).then(put(c.key("b/2"), "y"))).await?;
            let next = watching.answers(1).await?;
            c.same("ids", next.iter().map(|answer| answer.watch_id).collect::<Vec<_>>(), [1]);
            Ok(())
        },
    );
    suite.case("watch/cancel/unknown", "cancelling what is not there is passed over", |c| async move {
        let mut watching = c.watching();
        watching.cancel(9).await?;
        watching.create(c.watch_key("b/1", 0)).await?;
        watching.cancel(0).await?;
        watching.cancel(0).await?;
        c.same("canceled", watching.next().await?.canceled, true);
        c.same("created", watching.create(c.watch_key("b/1", 0)).await?.created, true);
        Ok(())
    });
}

fn streams(suite: &mut Suite) {
    suite.case(
        "watch/stream/no-more-requests",
        "a client that says that no more requests follow goes on getting events",
        |c| async move {
            let mut watching = c.watch(c.watch_all(0)).await?;
            watching.finish();
            c.puts(&[("a/1", "x"), ("c/1", "y")]).await?;
            c.same("events", watching.words(2).await?, "+a/1=x +c/1=y");
            Ok(())
        },
    );
    suite.case(
        "watch/stream/empty-key",
        "a watch without a key and range end is on the key \\0",
        |c| async move {
            let mut watching = c.watching();
            watching.create(pb::WatchCreateRequest::default()).await?;
            watching.create(c.watch_key("b/1", 0)).await?;
            c.put("b/1", "x").await?;
            let answer = watching.next().await?;
            c.same("id", answer.watch_id, 1);
            Ok(())
        },
    );
    suite.case(
        "watch/stream/dropped",
        "a stream that its client drops leaves others as they are",
        |c| async move {
            let dropped = c.watch(c.watch_all(0)).await?;
            let mut watching = c.watch(c.watch_all(0)).await?;
            c.put("b/1", "x").await?;
            drop(dropped);
            c.put("b/1", "y").await?;
            c.same("events", watching.words(2).await?, "+b/1=x +b/1=y");
            Ok(())
        },
    );
}

fn bounds(suite: &mut Suite) {
    let tables: [(&str, &str, &str, &str, &str); 6] = [
        ("key", "b/1", "", "+b/1=x", "a watch on a key sees that key"),
        ("range", "a/2", "b/2", "+a/2=x +b/1=x +b/12=x", "a watch on a range sees its keys and not its end"),
        ("directory", "b/", "b0", "+b/1=x +b/12=x +b/2=x", "a watch on a prefix sees the keys below"),
        (
            "all",
            "a",
            "d",
            "+a/1=x +a/2=x +b/1=x +b/12=x +b/2=x +c/1=x",
            "a watch over all directories sees all keys in order of revisions",
        ),
        ("one-key-range", "b/1", "b/1\0", "+b/1=x", "key and key + \\0 bound one key"),
        ("between-keys", "a/11", "b/11", "+a/2=x +b/1=x", "bounds need not be keys"),
    ];
    for (name, from, to, want, requires) in tables {
        suite.case(format!("watch/range/{name}"), requires, move |c| async move {
            let mut request = c.watch_key(from, 0);
            if !to.is_empty() {
                request.range_end = c.key(to);
            }
            let mut watching = c.watch(request).await?;
            for name in ["a/1", "a/2", "b/1", "b/12", "b/2", "c/1"] {
                c.put(name, "x").await?;
            }
            c.same("events", watching.words(want.split(' ').count()).await?, want);
            Ok(())
        });
    }
    suite.case("watch/range/from-key", "range end \\0 watches from the key on", |c| async move {
        let mut request = c.watch_key("b/2", 0);
        request.range_end = vec![0].into();
        let mut watching = c.watch(request).await?;
        c.puts(&[("b/1", "x"), ("b/2", "x"), ("c/1", "x")]).await?;
        let mut seen = Vec::new();
        while seen.len() < 2 {
            let events = watching.events(1).await?;
            let own = events.iter().filter(|event| event.kv.as_ref().is_some_and(|kv| c.owns(&kv.key)));
            seen.extend(own.map(|event| watching.word(event)));
        }
        c.same("events", seen, ["+b/2=x", "+c/1=x"]);
        Ok(())
    });
    suite.case(
        "watch/range/whole-store",
        "an empty key with range end \\0 watches everything",
        |c| async move {
            let request = pb::WatchCreateRequest { range_end: vec![0].into(), ..Default::default() };
            let mut watching = c.watch(request).await?;
            c.puts(&[("a/1", "x"), ("c/1", "x")]).await?;
            let mut seen = Vec::new();
            while seen.len() < 2 {
                let events = watching.events(1).await?;
                let own = events.iter().filter(|event| event.kv.as_ref().is_some_and(|kv| c.owns(&kv.key)));
                seen.extend(own.map(|event| watching.word(event)));
            }
            c.same("events", seen, ["+a/1=x", "+c/1=x"]);
            Ok(())
        },
    );
}
