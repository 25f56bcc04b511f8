//! Files that `up` and `plan` refuse: the message names the file, the field and what to write instead, and no data folder
//! is made.

use std::{fs, os::unix::fs::symlink};

use crate::{complaint, contents, folder, resource, run, text};

/// Specs that make no sense, and what is said of each.
const SPECS: &[(&str, &[&str])] = &[
    ("{}", &["spec.shards", "missing"]),
    ("shards: 0", &["spec.shards", "write 1 to 1024"]),
    ("shards: -3", &["spec.shards", "write 1 to 1024"]),
    ("shards: 5000", &["spec.shards", "write 1 to 1024"]),
    ("shards: three", &["spec.shards", "whole number"]),
    ("shards: 2\nshards: 3", &["shards"]),
    ("shards: 2\nsharts: 3", &["spec.sharts", "unknown field", "shards"]),
    ("shards: 2\nversion: new", &["spec.version"]),
    (
        "shards: 2\nkeyspace: {pins: [{prefix: /p/, shard: 0}, {prefix: /p/, shard: 1}]}",
        &["spec.keyspace.pins[1]", "twice"],
    ),
    (
        "shards: 2\nkeyspace: {pins: [{prefix: /p/, shard: 2}]}",
        &["spec.keyspace.pins[0].shard", "no shard 2"],
    ),
    ("shards: 2\nkeyspace: {pins: [{prefix: '', shard: 1}]}", &["spec.keyspace.pins[0].prefix", "empty"]),
    ("shards: 2\nkeyspace: {pins: [{prefix: /p/x, shard: 1}]}", &["pins[0].prefix", "splittable"]),
    ("shards: 2\nkeyspace: {presplit: [/m/, /m/]}", &["spec.keyspace.presplit[1]", "twice"]),
    ("shards: 2\nkeyspace: {splittable: [/m]}", &["spec.keyspace.splittable[0]", "delimiter"]),
    ("shards: 2\netcd: {members: 2}", &["spec.etcd.members", "1, 3 or 5"]),
    ("shards: 2\netcd: {quota: plenty}", &["spec.etcd.quota"]),
    ("shards: 2\nrebalance: {mode: Sometimes}", &["spec.rebalance.mode", "Automatic"]),
    ("shards: 2\ncompaction: {retention: soon}", &["spec.compaction.retention"]),
    ("shards: 2\ntls: {}", &["spec.tls", "no TLS yet"]),
];

/// Whole files that are refused.
fn texts() -> Vec<(Vec<u8>, &'static [&'static str])> {
    let good = resource("shards: 2");
    let texts: [(String, &[&str]); 8] = [
        (String::new(), &["empty"]),
        ("shards: [1, 2".to_owned(), &["no YAML", "line"]),
        ("a:\n\t- b\n".to_owned(), &["line 2"]),
        ("just words".to_owned(), &["ShardedEtcd"]),
        (format!("{good}---\n{good}"), &["2 resources", "keep one"]),
        (good.replace("kind: ShardedEtcd", "kind: ConfigMap"), &["ConfigMap", "ShardedEtcd"]),
        (good.replace("v1alpha1", "v9"), &["v9", "shardedetcd.io/v1alpha1"]),
        (good.replace("{name: demo}", "{}"), &["metadata.name", "missing"]),
    ];
    let mut texts: Vec<(Vec<u8>, &[&str])> =
        texts.into_iter().map(|(text, expected)| (text.into_bytes(), expected)).collect();
    texts.push((b"\xff\xfe\x00nonsense".to_vec(), &["UTF-8"]));
    texts.push((b"\x7fELF\x02\x01\x01\0".to_vec(), &[]));
    texts.push((vec![b' '; (3 << 20) + 1], &["bytes", "at most"]));
    texts.extend(SPECS.iter().map(|(spec, expected)| (resource(spec).into_bytes(), *expected)));
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn are_refused_before_anything_is_made() {
    let folder = folder();
    let (file, data) = (folder.path().join("demo.yaml"), folder.path().join("data"));
    let mut wrong = Vec::new();
    for (content, expected) in texts() {
        fs::write(&file, &content).unwrap();
        let before = contents(folder.path());
        let shown = String::from_utf8_lossy(&content[..content.len().min(300)]).into_owned();
        let expected = [&["demo.yaml"], expected].concat();
        let up = run(&["up", "-f", text(&file), "--data-dir", text(&data), "--listen", "127.0.0.1:0"]).await;
        let plan = run(&["plan", "-f", text(&file), "--endpoint", "127.0.0.1:1"]).await;
        for output in [up, plan] {
            wrong.extend(complaint(&output, 1, &expected).map(|why| format!("{shown}\n{why}")));
        }
        assert_eq!(contents(folder.path()), before, "something was made or changed for:\n{shown}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n----\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn that_cannot_be_read_are_named() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("folder.yaml")).unwrap();
    // Not even root can read it.
    symlink(path("loop.yaml"), path("loop.yaml")).unwrap();
    symlink(path("nowhere"), path("dangling.yaml")).unwrap();
    let before = contents(folder.path());
    let data = path("data");
    let mut wrong = Vec::new();
    for name in ["missing.yaml", "folder.yaml", "loop.yaml", "dangling.yaml"] {
        let file = path(name);
        let up = run(&["up", "-f", text(&file), "--data-dir", text(&data), "--listen", "127.0.0.1:0"]).await;
        let plan = run(&["plan", "-f", text(&file), "--endpoint", "127.0.0.1:1"]).await;
        for output in [up, plan] {
            wrong.extend(complaint(&output, 1, &["cannot read", name]).map(|why| format!("{name}: {why}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n----\n"));
    assert_eq!(contents(folder.path()), before);
}
