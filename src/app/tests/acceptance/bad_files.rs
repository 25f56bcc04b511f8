//! Acceptance 5, files: each problem is told with its field and what to write instead, and the running topology goes on
//! with the last good file.

use crate::harness::{Engine, Up, folder, resource, run};

const GOOD: &str = "shards: 2\nkeyspace: {presplit: [/m/], pins: [{prefix: /p/, shard: 1}]}";

/// Specs that make no sense, and what is said of each.
const SPECS: &[(&str, &[&str])] = &[
    ("shards: 0", &["spec.shards", "1 to 1024"]),
    ("shards: -3", &["spec.shards", "1 to 1024"]),
    ("shards: 5000", &["spec.shards", "1 to 1024"]),
    ("shards: three", &["spec.shards", "whole number"]),
    ("version: 3.7.3", &["spec.shards", "missing"]),
    ("shards: 2\nsharts: 3", &["spec.sharts", "unknown field", "shards"]),
    ("shards: 2\nversion: new", &["spec.version"]),
    (
        "shards: 2\nkeyspace: {pins: [{prefix: /p/, shard: 0}, {prefix: /p/, shard: 1}]}",
        &["pins[1]", "twice"],
    ),
    ("shards: 2\nkeyspace: {pins: [{prefix: /p/, shard: 2}]}", &["pins[0].shard", "no shard 2"]),
    ("shards: 2\nkeyspace: {pins: [{prefix: '', shard: 1}]}", &["pins[0].prefix", "empty"]),
    ("shards: 2\nkeyspace: {pins: [{prefix: /p/x, shard: 1}]}", &["pins[0].prefix", "splittable"]),
    ("shards: 2\nkeyspace: {presplit: [/m/x]}", &["presplit[0]", "directory"]),
    ("shards: 2\nkeyspace: {presplit: [/m/, /m/]}", &["presplit[1]", "twice"]),
    ("shards: 2\nkeyspace: {splittable: [/m]}", &["splittable[0]", "delimiter"]),
    ("shards: 2\nkeyspace: {delimiter: ':'}", &["spec.keyspace.delimiter", "cannot change"]),
    ("shards: 2\netcd: {members: 2}", &["spec.etcd.members", "1, 3 or 5"]),
    ("shards: 2\netcd: {quota: plenty}", &["spec.etcd.quota"]),
    ("shards: 2\netcd: {extraArgs: {data-dir: /x}}", &["spec.etcd.extraArgs", "remove"]),
    ("shards: 2\nrebalance: {mode: Sometimes}", &["spec.rebalance.mode", "Automatic"]),
    ("shards: 2\nrebalance: {maxConcurrentMoves: 0}", &["spec.rebalance.maxConcurrentMoves", "Paused"]),
    ("shards: 2\ncompaction: {retention: soon}", &["spec.compaction.retention"]),
    ("shards: 2\ntls: {}", &["spec.tls", "no TLS yet"]),
];

/// Whole texts that make no sense.
fn texts() -> Vec<(String, &'static [&'static str])> {
    let good = resource(GOOD);
    let mut texts: Vec<(String, &[&str])> = vec![
        (String::new(), &["empty"]),
        ("shards: [1, 2".to_owned(), &["no YAML", "line"]),
        ("just words".to_owned(), &["ShardedEtcd"]),
        (format!("{good}---\n{good}"), &["2 resources"]),
        (good.replace("kind: ShardedEtcd", "kind: ConfigMap"), &["ConfigMap", "ShardedEtcd"]),
        (good.replace("v1alpha1", "v9"), &["v9", "shardedetcd.io/v1alpha1"]),
        (good.replace("{name: demo}", "{}"), &["metadata.name", "missing"]),
        (good.replace("{name: demo}", "{name: Demo!}"), &["metadata.name", "Demo!"]),
        (good.replace("{name: demo}", "{name: other}"), &["metadata.name", "demo", "--data-dir"]),
    ];
    texts.extend(SPECS.iter().map(|(spec, expected)| (resource(spec), *expected)));
    texts
}

/// What needs data to be wrong about.
fn needs_data(expected: &[&str]) -> bool {
    expected.contains(&"cannot change") || expected.contains(&"--data-dir")
}

#[test]
fn at_the_start() {
    let folder = folder();
    let (file, data) = (folder.path().join("demo.yaml"), folder.path().join("data"));
    for (text, expected) in texts().into_iter().filter(|(_, expected)| !needs_data(expected)) {
        std::fs::write(&file, &text).unwrap();
        let arguments = [
            "up",
            "-f",
            file.to_str().unwrap(),
            "--data-dir",
            data.to_str().unwrap(),
            "--listen",
            "127.0.0.1:0",
        ];
        let ended = run(&arguments);
        assert_eq!(ended.code, Some(1), "{text}");
        for part in expected.iter().chain(&["demo.yaml"]) {
            assert!(ended.stderr.contains(part), "{part:?} is missing for\n{text}\nin: {}", ended.stderr);
        }
        assert!(!data.exists(), "nothing is made for a file that makes no sense");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_runs() {
    let up = Up::file(Engine::Embedded, GOOD).await;
    up.ctl(&["put", "/a/k", "v"]).await;
    for (told, (text, expected)) in texts().into_iter().enumerate() {
        up.save_text(&text);
        let refusals = || up_log_of(&up).matches("running on with its last good text").count();
        let seen =
            sharded_etcd_testkit::wait_until("the refusal", std::time::Duration::from_secs(20), || {
                std::future::ready((refusals() > told).then_some(()))
            });
        seen.await.unwrap_or_else(|error| panic!("{error} of\n{text}\n{}", up_log_of(&up)));
        let log = up_log_of(&up);
        let (_, last) = log.rsplit_once("demo.yaml:").unwrap();
        for part in expected {
            assert!(last.contains(part), "{part:?} is missing for\n{text}\nin: {last}");
        }
    }
    std::fs::remove_file(up.data().parent().unwrap().join("demo.yaml")).unwrap();
    up.wait_log("cannot read").await;
    // The topology never noticed.
    assert_eq!(up.ctl(&["get", "/a/k", "--print-value-only"]).await, "v\n");
    assert!(!up.data().join("shard-2").exists());
    // And a good file is taken again.
    up.save(&GOOD.replace("shards: 2", "shards: 3"));
    up.wait_log("running the new topology").await;
    assert!(up.data().join("shard-2").exists());
}

fn up_log_of(up: &Up) -> String {
    std::fs::read_to_string(up.data().parent().unwrap().join("log")).unwrap()
}
