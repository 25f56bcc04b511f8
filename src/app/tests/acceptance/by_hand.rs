//! `move`, `split`, `merge`, `abort` and `approve`, as a person types them.

use std::time::Duration;

use serde_json::Value;
use sharded_etcd_testkit::wait_until;

use crate::harness::{Ended, Engine, Up, run};

/// How long a change may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

impl Up {
    fn by_hand(&self, arguments: &[&str]) -> Ended {
        let endpoint = self.endpoint();
        run(&[arguments, &["--endpoint", &endpoint]].concat())
    }

    #[track_caller]
    fn does(&self, arguments: &[&str]) -> String {
        let ended = self.by_hand(arguments);
        assert_eq!(ended.code, Some(0), "{arguments:?}: {}{}", ended.stdout, ended.stderr);
        ended.stdout
    }

    #[track_caller]
    fn refuses(&self, arguments: &[&str], words: &str) {
        let ended = self.by_hand(arguments);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(words), "{arguments:?}: {:?} lacks {words:?}", ended.stderr);
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.does(&["status", "-o", "json"])).unwrap()
    }

    /// Each range's start and shard.
    fn ranges(&self) -> Vec<(String, String)> {
        let status = self.status();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let ranges = status["rangeMap"]["ranges"].as_array().unwrap();
        ranges.iter().map(|r| (text(&r["start"]), text(&r["shard"]))).collect()
    }
}

fn owned(ranges: &[(&str, &str)]) -> Vec<(String, String)> {
    ranges.iter().map(|(start, shard)| ((*start).to_owned(), (*shard).to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_go_where_they_are_told_to() {
    let up = Up::file(Engine::Embedded, "shards: 2\nrebalance: {mode: Manual}").await;
    for directory in ["a", "b", "c"] {
        for n in 0..5 {
            up.ctl(&["put", &format!("/{directory}/{n}"), "v"]).await;
        }
    }
    let revisions = up.ctl(&["get", "", "--prefix", "-w", "json"]).await;
    up.does(&["split", "/b/"]);
    let said = up.does(&["move", "--prefix", "/b/", "--to", "shard-1"]);
    assert!(said.contains("done"), "{said}");
    assert_eq!(up.ranges(), owned(&[("", "shard-0"), ("/b/", "shard-1"), ("/b0", "shard-0")]));
    let json: Value =
        serde_json::from_str(&up.does(&["move", "/a/", "/b0", "--to", "shard-1", "-o", "json"])).unwrap();
    assert_eq!(json["state"], "done");
    up.does(&["merge", "/b/"]);
    let ranges = up.ranges();
    assert_eq!(ranges, owned(&[("", "shard-0"), ("/a/", "shard-1"), ("/b0", "shard-0")]), "{ranges:?}");
    let kvs = |text: &str| serde_json::from_str::<Value>(text).unwrap()["kvs"].clone();
    let after = up.ctl(&["get", "", "--prefix", "-w", "json"]).await;
    assert_eq!(kvs(&after), kvs(&revisions), "values and revisions are as before");

    up.refuses(&["move", "/a/x", "/c/", "--to", "shard-0"], "would part the keys of the directory \"/a/\"");
    up.refuses(&["move", "", "", "--to", "shard-2"], "write one of shard-0, shard-1");
    up.refuses(&["merge", "/zzz/"], "no range begins at");
    up.refuses(&["abort", "", ""], "nothing of");
    up.refuses(&["approve", "12345678"], "nothing is planned");
    up.refuses(&["split", "\\xZZ"], "two digits");
    assert_eq!(up.by_hand(&["move", "/a/", "--to", "shard-0"]).code, Some(64), "no end, and no --prefix");
    // Nobody waits for it, and it is done.
    let said = up.does(&["split", "/c/", "--wait", "0s"]);
    assert!(said.contains("asked for"), "{said}");
    let split = wait_until("the split that nobody waits for", LIMIT, || async {
        up.ranges().iter().any(|range| range.0 == "/c/").then_some(())
    });
    split.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_in_mode_manual_is_carried_out_once_approved() {
    let up = Up::file(Engine::Embedded, "shards: 2\nrebalance: {mode: Manual}").await;
    for part in 0..4 {
        // No compares, the puts if they hold, nothing else; at most 128 puts at once, as in etcd.
        let puts: String = (0..100).map(|n| format!("put /{}/{part}-{n} v\n", n % 10)).collect();
        up.ctl_with_input(&["txn"], &format!("\n{puts}\n\n")).await;
    }
    let condition = |status: &Value| -> String {
        let conditions = status["conditions"].as_array().unwrap();
        let balanced = conditions.iter().find(|c| c["type"] == "Balanced").unwrap();
        balanced["message"].as_str().unwrap().to_owned()
    };
    let id = wait_until("a plan that waits", LIMIT, || async {
        let said = condition(&up.status());
        said.split_once("sharded-etcd approve ").map(|(_, rest)| rest[..8].to_owned())
    });
    let id = id.await.unwrap();
    assert_eq!(up.ranges().len(), 1, "nothing is done before");
    up.refuses(&["approve", "00000000"], &format!("look at plan {id}"));
    up.does(&["approve", &id]);
    assert!(up.ranges().iter().any(|range| range.1 == "shard-1"), "{:?}", up.ranges());
}
