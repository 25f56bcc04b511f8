//! Progress.

use sharded_etcd_etcd_api::messages as pb;

use crate::{Suite, check::revision};

pub(super) fn add(suite: &mut Suite) {
    suite.case(
        "watch/progress/asked",
        "a progress request is answered for the whole stream, with a revision that is not \
before the last write",
        |c| async move {
            let mut watching = c.watch(c.watch_key("b/none", 0)).await?;
            let at = c.puts(&[("a/1", "x"), ("c/1", "x")]).await?[1];
            // etcd answers what its watchers have passed, which may be behind for a moment.
            c.until_progress(&mut watching, at).await
        },
    );
    suite.case(
        "watch/progress/after-events",
        "a progress answer comes after the events that it covers",
        |c| async move {
            let mut watching = c.watch(c.watch_all(0)).await?;
            let at = c.puts(&[("a/1", "x"), ("b/1", "y"), ("c/1", "z")]).await?[2];
            let mut seen = 0;
            loop {
                watching.ask_progress().await?;
                let answer = watching.next().await?;
                seen += answer.events.len();
                if answer.events.is_empty() && revision(&answer.header) >= at {
                    break;
                }
            }
            c.same("events before it", seen, 3);
            Ok(())
        },
    );
    suite.case(
        "watch/progress/id",
        "the answer to a progress request has watch id -1 and nothing else",
        |c| async move {
            let mut watching = c.watch(c.watch_key("b/1", 0)).await?;
            watching.ask_progress().await?;
            let answer = watching.next().await?;
            c.same(
                "answer",
                (answer.watch_id, answer.created, answer.canceled, answer.events.len()),
                (-1, false, false, 0),
            );
            Ok(())
        },
    );
    suite.case("watch/progress/several", "one answer covers all watchers of the stream", |c| async move {
        let mut watching = c.watching();
        for name in ["a/1", "b/1", "c/1"] {
            watching.create(c.watch_key(name, 0)).await?;
        }
        let at = c.put("b/9", "x").await?;
        c.until_progress(&mut watching, at).await
    });
    suite.case(
        "watch/progress/notify",
        "a watcher that asked for it is told its progress from time to time",
        |c| async move {
            let at = c.puts(&[("a/1", "x"), ("c/1", "x")]).await?[1];
            let mut watching =
                c.watch(pb::WatchCreateRequest { progress_notify: true, ..c.watch_all(0) }).await?;
            loop {
                let answer = watching.next().await?;
                c.same("answer", (answer.watch_id, answer.events.len(), answer.canceled), (0, 0, false));
                if revision(&answer.header) >= at || !c.found().is_empty() {
                    return Ok(());
                }
            }
        },
    );
    suite.case("watch/progress/notify-and-events", "progress comes in order with events", |c| async move {
        let mut watching =
            c.watch(pb::WatchCreateRequest { progress_notify: true, ..c.watch_all(0) }).await?;
        let at = c.put("b/1", "x").await?;
        let (mut seen, mut notified) = (0, false);
        while !notified {
            let answer = watching.next().await?;
            seen += answer.events.len();
            notified = answer.events.is_empty() && revision(&answer.header) >= at;
        }
        c.same("events before the progress that covers them", seen, 1);
        c.put("b/1", "y").await?;
        while seen < 2 {
            seen += watching.next().await?.events.len();
        }
        Ok(())
    });
}
