//! Bad texts saved into the file of a running topology: told with a remedy, and the last good one goes on.

use std::{fs, path::Path, time::Duration};

use sharded_etcd_e2e::Up;
use sharded_etcd_testkit::{etcdctl, wait_until};

use crate::{contents, folder, resource, text};

const GOOD: &str = "shards: 2\nkeyspace: {presplit: [/m/], pins: [{prefix: /p/, shard: 1}]}";
const REFUSED: &str = "running on with its last good text";
/// How long the program may take to notice a saved file.
const NOTICE_LIMIT: Duration = Duration::from_secs(20);

/// Replaces a file as editors do.
fn save(file: &Path, text: &str) {
    let beside = file.with_extension("swp");
    fs::write(&beside, text).unwrap();
    fs::rename(&beside, file).unwrap();
}

/// The end of the log, once `text` has been logged so many times.
async fn logged(up: &Up, text: &str, times: usize) -> String {
    let log = || fs::read_to_string(up.process.log_path()).unwrap();
    let seen = wait_until(text, NOTICE_LIMIT, || {
        std::future::ready((log().matches(text).count() >= times).then_some(()))
    });
    seen.await.unwrap_or_else(|error| panic!("{error}:\n{}", log()));
    log()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_topology_goes_on_with_the_last_good_text() {
    let folder = folder();
    let (file, data) = (folder.path().join("demo.yaml"), folder.path().join("data"));
    let good = resource(GOOD);
    fs::write(&file, &good).unwrap();
    let mut up = Up::start(&data, &["-f", text(&file)]).await.unwrap();
    etcdctl(&up.endpoint, &["put", "/a/k", "v"]).await.unwrap().success().unwrap();
    let topology = || fs::read(data.join("topology.json")).unwrap();
    let before = (topology(), fs::read_dir(&data).unwrap().count());

    let bad: [(String, &[&str]); 9] = [
        (String::new(), &["empty"]),
        ("\0\u{1}nonsense: [".to_owned(), &[]),
        (good.replace("shards: 2", "shards: 0"), &["spec.shards", "write 1 to 1024"]),
        (good.replace("shards: 2", "shards: 2\n  sharts: 3"), &["spec.sharts", "unknown field"]),
        (good.replace("shards: 2", "shards: 1"), &["spec.keyspace.pins[0].shard", "no shard 1"]),
        (
            resource("shards: 2\nkeyspace: {delimiter: ':'}"),
            &["spec.keyspace.delimiter", "cannot change", "--data-dir"],
        ),
        (good.replace("name: demo", "name: other"), &["metadata.name", "write demo", "--data-dir"]),
        (format!("{good}---\n{good}"), &["2 resources", "keep one"]),
        (good.replace("ShardedEtcd", "Secret"), &["Secret", "ShardedEtcd"]),
    ];
    for (times, (content, expected)) in bad.iter().enumerate() {
        save(&file, content);
        let log = logged(&up, REFUSED, times + 1).await;
        let (_, last) = log.rsplit_once("demo.yaml:").unwrap();
        for part in *expected {
            assert!(last.contains(part), "{part:?} is missing for\n{content}\nin: {last}");
        }
    }
    fs::remove_file(&file).unwrap();
    logged(&up, "cannot read", 1).await;

    assert_eq!((topology(), fs::read_dir(&data).unwrap().count()), before, "nothing is half applied");
    let value =
        etcdctl(&up.endpoint, &["get", "/a/k", "--print-value-only"]).await.unwrap().success().unwrap();
    assert_eq!(value, "v\n");
    etcdctl(&up.endpoint, &["put", "/p/k", "v"]).await.unwrap().success().unwrap();

    save(&file, &good.replace("shards: 2", "shards: 3"));
    let log = logged(&up, "running the new topology", 1).await;
    assert!(data.join("shard-2").exists(), "{:?}", contents(&data).keys());
    assert!(!log.contains("panicked"), "{log}");
    up.process.check_running().unwrap();
}
