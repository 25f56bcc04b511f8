//! Watches and compaction.

use sharded_etcd_etcd_api::messages as pb;

use crate::Suite;

pub(super) fn add(suite: &mut Suite) {
    suite
        .case(
            "watch/compacted/below",
            "a watch from below the compaction is created, then cancelled with the compaction's \
revision",
            |c| async move {
                let at = c.puts(&[("a/1", "1"), ("b/1", "2"), ("c/1", "3")]).await?;
                c.compact(at[2]).await?;
                for start in [1, at[0], at[2] - 1] {
                    let mut watching = c.watch(c.watch_all(start)).await?;
                    let answer = watching.next().await?;
                    c.same("answer", (answer.watch_id, answer.canceled, answer.created), (0, true, false));
                    c.same("compact revision", answer.compact_revision, at[2]);
                    c.same("events", answer.events.len(), 0);
                }
                Ok(())
            },
        )
        .alone();
    suite
        .case("watch/compacted/at", "a watch from the compaction's revision on is served", |c| async move {
            let at = c.puts(&[("a/1", "1"), ("b/1", "2"), ("c/1", "3")]).await?;
            c.compact(at[1]).await?;
            let mut watching = c.watch(c.watch_all(at[1])).await?;
            c.same("events", watching.words(2).await?, "+b/1=2 +c/1=3");
            let mut watching = c.watch(c.watch_all(at[1] + 1)).await?;
            c.same("events", watching.words(1).await?, "+c/1=3");
            Ok(())
        })
        .alone();
    suite
        .case(
            "watch/compacted/prev-kv",
            "at the compaction's revision prev_kv is compacted, above it is there",
            |c| async move {
                let at = c.puts(&[("a/1", "1"), ("a/1", "2"), ("a/1", "3"), ("b/1", "4")]).await?;
                let from_on = |start| pb::WatchCreateRequest { prev_kv: true, ..c.watch_all(start) };
                c.compact(at[1]).await?;
                let mut watching = c.watch(from_on(at[1])).await?;
                c.same("events", watching.words(3).await?, "+a/1=2 +a/1=3<2 +b/1=4");
                let deleted = c.delete("b/1").await?;
                c.put("a/1", "5").await?;
                c.compact(deleted).await?;
                let mut watching = c.watch(from_on(deleted)).await?;
                c.same("events", watching.words(2).await?, "-b/1 +a/1=5<3");
                Ok(())
            },
        )
        .alone();
    suite
        .case(
            "watch/compacted/others",
            "the cancel of one watcher leaves the others of its stream",
            |c| async move {
                let at = c.puts(&[("a/1", "1"), ("b/1", "2")]).await?;
                c.compact(at[1]).await?;
                let mut watching = c.watch(c.watch_key("b/1", 0)).await?;
                watching.create(c.watch_key("b/1", at[0])).await?;
                let answer = watching.next().await?;
                c.same("answer", (answer.watch_id, answer.canceled), (1, true));
                c.put("b/1", "3").await?;
                c.same("events", watching.words(1).await?, "+b/1=3");
                Ok(())
            },
        )
        .alone();
    suite
        .case(
            "watch/compacted/live",
            "a watcher that has seen everything does not notice a compaction",
            |c| async move {
                let mut watching =
                    c.watch(pb::WatchCreateRequest { prev_kv: true, ..c.watch_all(0) }).await?;
                let at = c.puts(&[("a/1", "1"), ("b/1", "2")]).await?;
                c.same("events", watching.words(2).await?, "+a/1=1 +b/1=2");
                c.compact(at[1]).await?;
                c.put("a/1", "3").await?;
                c.same("events", watching.words(1).await?, "+a/1=3<1");
                Ok(())
            },
        )
        .alone();
}
