//! What events say.

use pb::FilterType::{Nodelete, Noput};
use sharded_etcd_etcd_api::messages as pb;

use crate::{
    Suite,
    check::revision,
    request::{delete, delete_range, put, txn},
};

pub(super) fn add(suite: &mut Suite) {
    contents(suite);
    previous(suite);
    filters(suite);
    transactions(suite);
    several(suite);
    fragments(suite);
}

fn contents(suite: &mut Suite) {
    suite.case(
        "watch/event/put",
        "the event of a put has the whole pair, and the header its revision or a later one",
        |c| async move {
            let lease = c.grant(0, 600).await?;
            let mut watching = c.watch(c.watch_all(0)).await?;
            let first = c.put("b/1", "x").await?;
            let second =
                revision(&c.send_put(pb::PutRequest { lease, ..put(c.key("b/1"), "y") }).await?.header);
            let events = watching.events(2).await?;
            let kv = |value: &str, mod_revision, version, lease| pb::KeyValue {
                key: c.key("b/1"),
                value: value.to_owned().into(),
                create_revision: first,
                mod_revision,
                version,
                lease,
            };
            let want = [kv("x", first, 1, 0), kv("y", second, 2, lease)];
            c.same("pairs", events.iter().filter_map(|e| e.kv.clone()).collect::<Vec<_>>(), want);
            c.holds(
                "they are puts without a pair before",
                events.iter().all(|e| e.r#type == 0 && e.prev_kv.is_none()),
            );
            Ok(())
        },
    );
    suite.case(
        "watch/event/delete",
        "the event of a delete has the key and its revision, and nothing else",
        |c| async move {
            c.put("b/1", "x").await?;
            let mut watching = c.watch(c.watch_all(0)).await?;
            let at = c.delete("b/1").await?;
            let events = watching.events(1).await?;
            let want = pb::KeyValue { key: c.key("b/1"), mod_revision: at, ..Default::default() };
            c.same("pairs", events.iter().filter_map(|e| e.kv.clone()).collect::<Vec<_>>(), [want]);
            c.same("kind", events[0].r#type(), pb::EventType::Delete);
            Ok(())
        },
    );
    suite.case(
        "watch/event/create-again",
        "a key that is put after its delete is created anew",
        |c| async move {
            let mut watching = c.watch(c.watch_all(0)).await?;
            c.put("b/1", "x").await?;
            c.delete("b/1").await?;
            let at = c.put("b/1", "y").await?;
            let events = watching.events(3).await?;
            let last = events[2].kv.clone().unwrap_or_default();
            c.same("revisions", (last.create_revision, last.mod_revision, last.version), (at, at, 1));
            Ok(())
        },
    );
    suite.case("watch/event/nothing-deleted", "a delete of nothing is no event", |c| async move {
        let mut watching = c.watch(c.watch_all(0)).await?;
        c.delete("b/1").await?;
        c.send_delete(delete_range(c.everything())).await?;
        c.put("b/2", "x").await?;
        c.same("events", watching.words(1).await?, "+b/2=x");
        Ok(())
    });
    suite.case("watch/event/same-value", "a put of the value that is there is an event", |c| async move {
        let mut watching = c.watch(c.watch_all(0)).await?;
        c.puts(&[("b/1", "x"), ("b/1", "x")]).await?;
        c.same("events", watching.words(2).await?, "+b/1=x +b/1=x");
        Ok(())
    });
    suite.case(
        "watch/event/order",
        "events over all directories come in the order of their revisions, each once",
        |c| async move {
            let mut watching = c.watch(c.watch_all(0)).await?;
            let mut want = Vec::new();
            for n in 0..30 {
                want.push(c.put(["a/1", "c/1", "b/1", "b/2"][n % 4], &n.to_string()).await?);
            }
            let events = watching.events(30).await?;
            let got: Vec<_> = events.iter().filter_map(|e| e.kv.as_ref()).map(|kv| kv.mod_revision).collect();
            c.same("revisions", got, want);
            Ok(())
        },
    );
    suite.case(
        "watch/event/at-once",
        "events of writers at the same time come in the order of revisions, each once",
        |c| async move {
            let mut watching = c.watch(c.watch_all(0)).await?;
            let puts = (0..30).map(|n| {
                let (c, name) = (c.clone(), ["a/1", "b/1", "c/1"][n % 3]);
                async move { c.put(name, &n.to_string()).await }
            });
            let mut want: Vec<i64> =
                futures::future::join_all(puts).await.into_iter().collect::<Result<_, _>>()?;
            want.sort_unstable();
            let events = watching.events(30).await?;
            let got: Vec<_> = events.iter().filter_map(|e| e.kv.as_ref()).map(|kv| kv.mod_revision).collect();
            c.same("revisions", got, want);
            Ok(())
        },
    );
}

fn previous(suite: &mut Suite) {
    suite.case(
        "watch/prev-kv/kinds",
        "prev_kv shows the pair before an update and a delete, and none for a create",
        |c| async move {
            let mut watching = c.watch(pb::WatchCreateRequest { prev_kv: true, ..c.watch_all(0) }).await?;
            c.puts(&[("b/1", "x"), ("b/1", "y")]).await?;
            c.delete("b/1").await?;
            c.put("b/1", "z").await?;
            c.same("events", watching.words(4).await?, "+b/1=x +b/1=y<x -b/1<y +b/1=z");
            Ok(())
        },
    );
    suite.case("watch/prev-kv/whole", "prev_kv is the whole pair", |c| async move {
        let lease = c.grant(0, 600).await?;
        let first = c.put("b/1", "x").await?;
        let second = revision(&c.send_put(pb::PutRequest { lease, ..put(c.key("b/1"), "y") }).await?.header);
        let mut watching =
            c.watch(pb::WatchCreateRequest { prev_kv: true, ..c.watch_all(second + 1) }).await?;
        c.put("b/1", "z").await?;
        let want = pb::KeyValue {
            key: c.key("b/1"),
            value: "y".into(),
            create_revision: first,
            mod_revision: second,
            version: 2,
            lease,
        };
        c.same("previous", watching.events(1).await?[0].prev_kv.clone(), Some(want));
        Ok(())
    });
    suite.case("watch/prev-kv/past", "prev_kv is there for events of the past too", |c| async move {
        let at = c.puts(&[("b/1", "x"), ("c/1", "y"), ("b/1", "z")]).await?;
        c.delete("c/1").await?;
        let mut watching = c.watch(pb::WatchCreateRequest { prev_kv: true, ..c.watch_all(at[0]) }).await?;
        c.same("events", watching.words(4).await?, "+b/1=x +c/1=y +b/1=z<x -c/1<y");
        Ok(())
    });
    suite.case(
        "watch/prev-kv/range-delete",
        "each event of a deleted range has its pair before",
        |c| async move {
            c.puts(&[("a/1", "1"), ("b/1", "2"), ("c/1", "3")]).await?;
            let mut watching = c.watch(pb::WatchCreateRequest { prev_kv: true, ..c.watch_all(0) }).await?;
            c.send_delete(delete_range(c.everything())).await?;
            c.same("events", watching.words(3).await?, "-a/1<1 -b/1<2 -c/1<3");
            Ok(())
        },
    );
    suite.case(
        "watch/prev-kv/only-asked",
        "of two watchers, only the one that asked gets prev_kv",
        |c| async move {
            c.put("b/1", "x").await?;
            let mut with = c.watch(pb::WatchCreateRequest { prev_kv: true, ..c.watch_all(0) }).await?;
            let mut without = c.watch(c.watch_all(0)).await?;
            c.put("b/1", "y").await?;
            c.same("with", with.words(1).await?, "+b/1=y<x");
            c.same("without", without.words(1).await?, "+b/1=y");
            Ok(())
        },
    );
}

fn filters(suite: &mut Suite) {
    let tables: [(&str, &[pb::FilterType], &str); 3] = [
        ("no-put", &[Noput], "-b/1"),
        ("no-delete", &[Nodelete], "+b/1=x +b/1=y +c/1=z"),
        ("no-put-twice", &[Noput, Noput], "-b/1"),
    ];
    for (name, filters, want) in tables {
        for (when, past) in [("live", false), ("past", true)] {
            suite.case(
                format!("watch/filter/{name}-{when}"),
                format!("filters leave out events of their kind ({name}, {when})"),
                move |c| async move {
                    let start = c.now().await? + 1;
                    let request = pb::WatchCreateRequest {
                        filters: filters.iter().map(|filter| *filter as i32).collect(),
                        ..c.watch_all(if past { start } else { 0 })
                    };
                    let mut watching = c.watching();
                    if !past {
                        watching.create(request.clone()).await?;
                    }
                    c.puts(&[("b/1", "x"), ("b/1", "y")]).await?;
                    c.delete("b/1").await?;
                    c.put("c/1", "z").await?;
                    if past {
                        watching.create(request).await?;
                    }
                    c.same("events", watching.words(want.split(' ').count()).await?, want);
                    Ok(())
                },
            );
        }
    }
    suite.case("watch/filter/both", "both filters leave out everything", |c| async move {
        let request =
            pb::WatchCreateRequest { filters: vec![Noput.into(), Nodelete.into()], ..c.watch_all(0) };
        let mut watching = c.watch(request).await?;
        watching.create(c.watch_key("c/1", 0)).await?;
        c.put("b/1", "x").await?;
        c.delete("b/1").await?;
        c.put("c/1", "end").await?;
        let answer = watching.next().await?;
        c.same("id", answer.watch_id, 1);
        Ok(())
    });
    suite.case("watch/filter/prev-kv", "a filtered watch has prev_kv", |c| async move {
        let request = pb::WatchCreateRequest { filters: vec![Noput.into()], prev_kv: true, ..c.watch_all(0) };
        let mut watching = c.watch(request).await?;
        c.put("b/1", "x").await?;
        c.delete("b/1").await?;
        c.same("events", watching.words(1).await?, "-b/1<x");
        Ok(())
    });
    suite.case("watch/filter/unknown", "an unknown filter is passed over", |c| async move {
        let mut watching = c.watch(pb::WatchCreateRequest { filters: vec![9], ..c.watch_all(0) }).await?;
        c.put("b/1", "x").await?;
        c.delete("b/1").await?;
        c.same("events", watching.words(2).await?, "+b/1=x -b/1");
        Ok(())
    });
}

fn transactions(suite: &mut Suite) {
    for (when, past) in [("live", false), ("past", true)] {
        suite.case(
            format!("watch/txn/one-answer-{when}"),
            format!("all events of a transaction come in one answer, with one revision ({when})"),
            move |c| async move {
                let start = c.put("b/0", "x").await? + 1;
                let mut watching = c.watching();
                if !past {
                    watching.create(c.watch_all(start)).await?;
                }
                let request = (1..=20).fold(txn(), |txn, n| txn.then(put(c.key(&format!("b/{n:02}")), "x")));
                let at = revision(&c.txn(request.then(delete(c.key("b/0")))).await?.header);
                if past {
                    watching.create(c.watch_all(start)).await?;
                }
                let answer = watching.next().await?;
                c.same("events", answer.events.len(), 21);
                let revisions = answer.events.iter().filter_map(|e| e.kv.as_ref()).map(|kv| kv.mod_revision);
                c.holds(
                    "all have the transaction's revision",
                    revisions.into_iter().all(|revision| revision == at),
                );
                Ok(())
            },
        );
    }
    suite.case(
        "watch/txn/order",
        "the events of a transaction come in the order of its operations",
        |c| async move {
            c.put("b/5", "x").await?;
            let mut watching = c.watch(c.watch_all(0)).await?;
            c.txn(txn().then(put(c.key("b/9"), "1")).then(delete(c.key("b/5"))).then(put(c.key("b/1"), "2")))
                .await?;
            c.same("events", watching.words(3).await?, "+b/9=1 -b/5 +b/1=2");
            Ok(())
        },
    );
    suite.case(
        "watch/txn/part",
        "a watcher sees the part of a transaction that it watches",
        |c| async move {
            let mut watching = c.watch(c.watch_key("b/2", 0)).await?;
            c.txn(
                txn().then(put(c.key("b/1"), "1")).then(put(c.key("b/2"), "2")).then(put(c.key("b/3"), "3")),
            )
            .await?;
            c.same("events", watching.words(1).await?, "+b/2=2");
            Ok(())
        },
    );
    suite.case(
        "watch/txn/put-and-delete",
        "a put and a delete of one key in one transaction are two events of one revision",
        |c| async move {
            let mut watching = c.watch(c.watch_all(0)).await?;
            let request =
                txn().then(txn().then(put(c.key("b/1"), "x"))).then(txn().then(delete(c.key("b/1"))));
            let at = revision(&c.txn(request).await?.header);
            let answer = watching.next().await?;
            let words: Vec<_> = answer.events.iter().map(|event| watching.word(event)).collect();
            c.same("events", words, ["+b/1=x", "-b/1"]);
            let revisions: Vec<_> =
                answer.events.iter().filter_map(|e| e.kv.as_ref()).map(|kv| kv.mod_revision).collect();
            c.same("revisions", revisions, [at, at]);
            Ok(())
        },
    );
    suite.case(
        "watch/txn/prev-kv",
        "prev_kv of a transaction's events is the state before the transaction",
        |c| async move {
            c.puts(&[("b/1", "x"), ("b/2", "y")]).await?;
            let mut watching = c.watch(pb::WatchCreateRequest { prev_kv: true, ..c.watch_all(0) }).await?;
            c.txn(txn().then(put(c.key("b/1"), "1")).then(delete(c.key("b/2"))).then(put(c.key("b/3"), "3")))
                .await?;
            c.same("events", watching.words(3).await?, "+b/1=1<x -b/2<y +b/3=3");
            Ok(())
        },
    );
    suite.case("watch/txn/read-only", "a transaction that changes nothing is no event", |c| async move {
        let mut watching = c.watch(c.watch_all(0)).await?;
        c.txn(txn().then(c.dir("b/"))).await?;
        c.txn(txn().when(crate::request::never(c.key("b/1"))).then(put(c.key("b/1"), "x"))).await?;
        c.put("b/2", "y").await?;
        c.same("events", watching.words(1).await?, "+b/2=y");
        Ok(())
    });
}

fn several(suite: &mut Suite) {
    suite.case(
        "watch/several/own-events",
        "watchers of one stream get what they watch, under their ids",
        |c| async move {
            let mut watching = c.watching();
            for name in ["a/1", "b/1", "c/1"] {
                watching.create(c.watch_key(name, 0)).await?;
            }
            for name in ["c/1", "a/1", "b/1"] {
                c.put(name, "x").await?;
            }
            let mut seen = Vec::new();
            for answer in watching.answers(3).await? {
                seen.extend(
                    answer.events.iter().map(|event| format!("{} {}", answer.watch_id, watching.word(event))),
                );
            }
            seen.sort_unstable();
            c.same("events", seen, ["0 +a/1=x", "1 +b/1=x", "2 +c/1=x"]);
            Ok(())
        },
    );
    suite.case(
        "watch/several/same-key",
        "watchers of one key on one stream get its events each",
        |c| async move {
            let mut watching = c.watching();
            for prev_kv in [false, true] {
                watching.create(pb::WatchCreateRequest { prev_kv, ..c.watch_key("b/1", 0) }).await?;
            }
            c.puts(&[("b/1", "x"), ("b/1", "y")]).await?;
            let mut seen = [Vec::new(), Vec::new()];
            for answer in watching.answers(4).await? {
                let of = usize::try_from(answer.watch_id).unwrap_or_default().min(1);
                seen[of].extend(answer.events.iter().map(|event| watching.word(event)));
            }
            c.same("events", seen.map(|words| words.join(" ")), ["+b/1=x +b/1=y", "+b/1=x +b/1=y<x"]);
            Ok(())
        },
    );
    suite.case("watch/several/many", "a hundred watchers on one stream all see their key", |c| async move {
        let mut watching = c.watching();
        for n in 0..100 {
            watching.create(c.watch_key(&format!("{}/{n}", ["a", "b", "c"][n % 3]), 0)).await?;
        }
        for n in [3, 50, 98, 99] {
            c.put(&format!("{}/{n}", ["a", "b", "c"][n % 3]), "x").await?;
        }
        let mut ids: Vec<_> = watching.answers(4).await?.iter().map(|answer| answer.watch_id).collect();
        ids.sort_unstable();
        c.same("ids", ids, [3, 50, 98, 99]);
        Ok(())
    });
}

fn fragments(suite: &mut Suite) {
    suite.case(
        "watch/fragment/large",
        "events of one revision that are larger than a request come in marked fragments",
        |c| async move {
            // Five events in all, each of half the largest request; the history has them apart.
            let start = c.now().await? + 1;
            let value = "v".repeat(700_000);
            for n in 0..5 {
                c.put(&format!("b/{n}"), &value).await?;
            }
            // etcd may read what is past before it has noted that the watcher wants fragments (`recvLoop` in its
            // v3rpc/watch.go begins the watch first).
            let answers = c
                .until("no answer is larger than three events", || async {
                    let request = pb::WatchCreateRequest { fragment: true, ..c.watch_all(start) };
                    let answers = c.watch(request).await?.answers(5).await?;
                    Ok(answers.iter().all(|answer| answer.events.len() <= 3).then_some(answers))
                })
                .await?;
            let keys: Vec<_> = answers
                .iter()
                .flat_map(|a| &a.events)
                .filter_map(|e| e.kv.as_ref())
                .map(|kv| c.name(&kv.key))
                .collect();
            c.same("keys", keys.join(" "), "b/0 b/1 b/2 b/3 b/4");
            c.same("the last is not marked", answers.last().map(|answer| answer.fragment), Some(false));
            Ok(())
        },
    );
    suite.case(
        "watch/fragment/one-revision",
        "a revision of many large keys is one revision in several fragments, of which all \
but the last are marked",
        |c| async move {
            let value = "v".repeat(300_000);
            for n in 0..10 {
                c.put(&format!("b/{n}"), &value).await?;
            }
            let request = pb::WatchCreateRequest { fragment: true, prev_kv: true, ..c.watch_all(0) };
            let mut watching = c.watch(request).await?;
            let at = revision(&c.send_delete(delete_range((c.key("b/"), c.key("b0")))).await?.header);
            let answers = watching.answers(10).await?;
            c.holds("there are several fragments", answers.len() > 1);
            let marks: Vec<_> = answers.iter().map(|answer| answer.fragment).collect();
            c.holds(
                "all but the last are marked",
                marks.split_last().is_some_and(|(last, rest)| !last && rest.iter().all(|m| *m)),
            );
            let revisions = answers
                .iter()
                .flat_map(|a| &a.events)
                .filter_map(|e| e.kv.as_ref())
                .map(|kv| kv.mod_revision);
            c.holds("all have the delete's revision", revisions.into_iter().all(|revision| revision == at));
            Ok(())
        },
    );
    suite.case("watch/fragment/small", "what fits is not marked as a fragment", |c| async move {
        let mut watching = c.watch(pb::WatchCreateRequest { fragment: true, ..c.watch_all(0) }).await?;
        c.txn(txn().then(put(c.key("b/1"), "x")).then(put(c.key("b/2"), "y"))).await?;
        let answer = watching.next().await?;
        c.same("answer", (answer.fragment, answer.events.len()), (false, 2));
        Ok(())
    });
    suite.case(
        "watch/fragment/not-asked",
        "without being asked, a large revision comes whole",
        |c| async move {
            let value = "v".repeat(300_000);
            for n in 0..8 {
                c.put(&format!("b/{n}"), &value).await?;
            }
            let mut watching = c.watch(pb::WatchCreateRequest { prev_kv: true, ..c.watch_all(0) }).await?;
            c.send_delete(delete_range((c.key("b/"), c.key("b0")))).await?;
            let answer = watching.next().await?;
            c.same("answer", (answer.fragment, answer.events.len()), (false, 8));
            Ok(())
        },
    );
}
