//! Where a watch starts.

use sharded_etcd_etcd_api::messages as pb;

use crate::{Suite, check::revision};

pub(super) fn add(suite: &mut Suite) {
    suite.case("watch/start/now", "start revision 0 begins with the next change", |c| async move {
        c.put("b/1", "before").await?;
        let mut watching = c.watch(c.watch_all(0)).await?;
        c.put("b/1", "after").await?;
        c.same("events", watching.words(1).await?, "+b/1=after");
        Ok(())
    });
    suite.case(
        "watch/start/past",
        "a start revision in the past brings everything from it on",
        |c| async move {
            let at = c.puts(&[("a/1", "1"), ("b/1", "2"), ("c/1", "3"), ("a/1", "4")]).await?;
            for (start, want) in
                [(at[0], "+a/1=1 +b/1=2 +c/1=3 +a/1=4"), (at[1], "+b/1=2 +c/1=3 +a/1=4"), (at[3], "+a/1=4")]
            {
                let mut watching = c.watch(c.watch_all(start)).await?;
                c.same("events", watching.words(want.split(' ').count()).await?, want);
            }
            Ok(())
        },
    );
    suite.case(
        "watch/start/past-header",
        "events of the past come with the present revision in the header",
        |c| async move {
            let at = c.puts(&[("a/1", "1"), ("a/2", "2"), ("a/3", "3")]).await?;
            // Once a watcher has seen the last one, the others know of it too.
            let mut all = c.watch(c.watch_all(at[0])).await?;
            c.same("events", all.words(3).await?, "+a/1=1 +a/2=2 +a/3=3");
            let mut watching = c.watch(c.watch_key("a/1", at[0])).await?;
            let answer = watching.next().await?;
            c.same("events", answer.events.len(), 1);
            c.holds("the header has the store's revision", revision(&answer.header) >= at[2]);
            Ok(())
        },
    );
    suite.case(
        "watch/start/past-and-on",
        "after the past come the changes that follow, without a gap",
        |c| async move {
            let at = c.puts(&[("a/1", "1"), ("b/1", "2")]).await?;
            let mut watching = c.watch(c.watch_all(at[0])).await?;
            c.puts(&[("c/1", "3"), ("a/1", "4")]).await?;
            c.same("events", watching.words(4).await?, "+a/1=1 +b/1=2 +c/1=3 +a/1=4");
            Ok(())
        },
    );
    suite.case(
        "watch/start/between",
        "a start between two revisions of a key brings the later one",
        |c| async move {
            let at = c.puts(&[("b/1", "1"), ("c/1", "x"), ("b/1", "2")]).await?;
            let mut watching = c.watch(c.watch_key("b/1", at[0] + 1)).await?;
            c.same("events", watching.words(1).await?, "+b/1=2");
            Ok(())
        },
    );
    suite.case("watch/start/first", "start revision 1 brings the whole history", |c| async move {
        c.puts(&[("a/1", "1"), ("c/1", "2")]).await?;
        c.delete("a/1").await?;
        let mut watching = c.watch(c.watch_all(1)).await?;
        c.same("events", watching.words(3).await?, "+a/1=1 +c/1=2 -a/1");
        Ok(())
    });
    suite.case(
        "watch/start/list-then-watch",
        "a watch from the revision after that of a list misses nothing and repeats nothing",
        |c| async move {
            c.puts(&[("a/1", "1"), ("b/1", "2")]).await?;
            let list = c.range(c.all()).await?;
            c.puts(&[("c/1", "3"), ("b/1", "4")]).await?;
            let mut watching = c.watch(c.watch_all(revision(&list.header) + 1)).await?;
            c.same("list", c.words(&list.kvs), "a/1=1 b/1=2");
            c.same("events", watching.words(2).await?, "+c/1=3 +b/1=4");
            Ok(())
        },
    );
    suite.case(
        "watch/start/future",
        "a start revision in the future holds events back until then",
        |c| async move {
            let now = c.put("b/1", "x").await?;
            let start = now + 40;
            let mut watching = c.watch(c.watch_key("b/1", start)).await?;
            let first = c
                .until("the revision is reached", || async {
                    let at = c.put("b/1", "later").await?;
                    Ok((at >= start).then_some(at))
                })
                .await;
            let first = first?;
            let events = watching.events(1).await?;
            let got = events.first().and_then(|event| event.kv.as_ref()).map(|kv| kv.mod_revision);
            c.same("first event", got, Some(first));
            Ok(())
        },
    );
    suite.case("watch/start/next", "a start at the next revision is as good as none", |c| async move {
        let at = c.put("b/1", "x").await?;
        let mut watching = c.watch(c.watch_all(at + 1)).await?;
        c.put("c/1", "y").await?;
        c.same("events", watching.words(1).await?, "+c/1=y");
        Ok(())
    });
    suite.case("watch/start/several", "watchers of one stream may start anywhere", |c| async move {
        let at = c.puts(&[("b/1", "1"), ("b/1", "2"), ("b/1", "3")]).await?;
        let mut watching = c.watching();
        for start in [at[2], at[0], 0] {
            // Events of the past come between the answers to create requests.
            watching.send(pb::RequestUnion::CreateRequest(c.watch_key("b/1", start))).await?;
        }
        let (mut seen, mut created, mut live) = ([0, 0, 0], 0, false);
        while seen != [2, 4, 1] {
            let answer = watching.next().await?;
            created += usize::from(answer.created);
            if let Some(seen) = usize::try_from(answer.watch_id).ok().and_then(|id| seen.get_mut(id)) {
                *seen += answer.events.len();
            }
            if created == 3 && !live {
                live = true;
                c.put("b/1", "4").await?;
            }
        }
        Ok(())
    });
    suite.case(
        "watch/start/long-history",
        "a history of 300 changes over all directories is replayed in order",
        |c| async move {
            let start = c.now().await? + 1;
            let mut want = Vec::new();
            for n in 0..100 {
                let name = format!("{}/k", ["a", "b", "c"][n % 3]);
                let request = crate::request::txn()
                    .then(crate::request::put(c.key(&name), &n.to_string()))
                    .then(crate::request::put(c.key(&format!("{name}1")), "x"))
                    .then(crate::request::put(c.key(&format!("{name}2")), "x"));
                want.extend([revision(&c.txn(request).await?.header); 3]);
            }
            let mut watching = c.watch(c.watch_all(start)).await?;
            let events = watching.events(300).await?;
            let got: Vec<_> = events.iter().filter_map(|e| e.kv.as_ref()).map(|kv| kv.mod_revision).collect();
            c.same("revisions", got, want);
            Ok(())
        },
    );
}
