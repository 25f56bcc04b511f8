//! Command lines, machines and data folders that nothing can be started with.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt, path::Path};

use rustix::process::geteuid;
use sharded_etcd_e2e::Up;
use sharded_etcd_testkit::{EtcdProcess, EtcdProcessOptions, etcdctl};

use crate::{complaint, contents, folder, resource, run, run_with, text};

/// Where `up` is to listen in tests that never get so far.
const ANY_PORT: [&str; 2] = ["--listen", "127.0.0.1:0"];

/// What fails after the folder was locked leaves the lock's file, which the next start takes over, and nothing else.
#[track_caller]
fn holds_no_data(data: &Path) {
    if data.exists() {
        assert_eq!(contents(data).into_keys().collect::<Vec<_>>(), [data.join("LOCK")]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn command_lines() {
    let folder = folder();
    let data = folder.path().join("data");
    let up = |more: &[&'static str]| [&["up", "--data-dir", text(&data)], more, &ANY_PORT].concat();
    let listen = |address| vec!["up", "--data-dir", text(&data), "--listen", address];
    let cases: Vec<(Vec<&str>, i32, &[&str])> = vec![
        (vec![], 64, &["Usage"]),
        (vec!["fly"], 64, &["fly"]),
        (up(&["--wings", "2"]), 64, &["--wings"]),
        (up(&["--shards"]), 64, &["--shards"]),
        (up(&["--shards", "three"]), 64, &["three", "--shards"]),
        (up(&["--shards", "3", "-f", "x.yaml"]), 64, &["--shards", "--file", "cannot be used with"]),
        (up(&["--engine", "postgres"]), 64, &["postgres", "embedded", "etcd"]),
        (up(&["--shards", "0"]), 1, &["--shards: 0", "write 1 to 1024"]),
        (up(&["--shards", "1025"]), 1, &["--shards: 1025", "write 1 to 1024"]),
        (up(&["--shards=-1"]), 1, &["--shards: -1", "write 1 to 1024"]),
        (up(&["--etcd", "/bin/true"]), 1, &["--etcd", "add --engine etcd"]),
        (listen("2379"), 1, &["--listen", "HOST:PORT"]),
        (listen(""), 1, &["--listen", "HOST:PORT"]),
        (listen("127.0.0.1:99999"), 1, &["--listen", "HOST:PORT"]),
        (listen("https://127.0.0.1:2379"), 1, &["TLS", "not there yet"]),
        (listen("192.0.2.1:2379"), 1, &["cannot listen on 192.0.2.1:2379", "--listen"]),
        (vec!["status", "--endpoint", "nowhere"], 1, &["--endpoint", "HOST:PORT"]),
        (vec!["status", "--endpoint", "127.0.0.1:1"], 1, &["nothing answers at 127.0.0.1:1", "--endpoint"]),
        (vec!["status", "-o", "xml"], 64, &["xml", "table", "json"]),
        (vec!["plan"], 64, &["--file"]),
        (vec!["proxy", "--routing", "/nowhere/routing.json"], 1, &["/nowhere/routing.json"]),
        (vec!["shard-manager", "--routing", "/nowhere/routing.json"], 1, &["/nowhere/routing.json"]),
    ];
    let mut wrong = Vec::new();
    for (arguments, code, expected) in cases {
        let output = run(&arguments).await;
        wrong.extend(complaint(&output, code, expected).map(|why| format!("{arguments:?}: {why}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n----\n"));
    holds_no_data(&data);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use() {
    let folder = folder();
    let data = folder.path().join("data");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(&["up", "--data-dir", text(&data), "--listen", &address]).await;
    assert_eq!(complaint(&output, 1, &[&address, "in use by another program", "--listen"]), None);
    holds_no_data(&data);
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_are_no_etcd() {
    let folder = folder();
    let data = folder.path().join("data");
    let script = folder.path().join("etcd-of-sorts");
    let common = [&["up", "--data-dir", text(&data), "--engine", "etcd"][..], &ANY_PORT].concat();
    let mut wrong = Vec::new();

    let output = run_with(&common, &[("PATH", folder.path())]).await;
    wrong.extend(complaint(&output, 1, &["no etcd program found", "install etcd 3.6", "--etcd"]));
    let says = |said: &str| format!("#!/bin/sh\necho '{said}'\n");
    let scripts: [(String, u32, &[&str]); 5] = [
        (says("etcd Version: 3.4.30"), 0o755, &["3.4.30", "3.6", "--etcd"]),
        (says("hello"), 0o755, &["no etcd", "hello", "--etcd"]),
        ("#!/bin/sh\nexit 3\n".to_owned(), 0o755, &["no etcd", "--etcd"]),
        (says("etcd Version: 3.7.3"), 0o644, &["cannot run", "etcd-of-sorts", "--etcd"]),
        ("\x7fELF".to_owned(), 0o755, &["cannot run", "etcd-of-sorts", "--etcd"]),
    ];
    for (content, mode, expected) in scripts {
        fs::write(&script, &content).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(mode)).unwrap();
        let output = run(&[&common[..], &["--etcd", text(&script)]].concat()).await;
        wrong.extend(complaint(&output, 1, expected).map(|why| format!("{content}{why}")));
    }
    for path in ["/nowhere/etcd", "/tmp"] {
        let output = run(&[&common[..], &["--etcd", path]].concat()).await;
        wrong.extend(complaint(&output, 1, &["cannot run", path, "--etcd"]));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n----\n"));
    holds_no_data(&data);
}

/// A start on this folder fails, and changes nothing in it.
async fn refused(data: &Path, more: &[&str], expected: &[&str]) -> Option<String> {
    let before = contents(data);
    let output = run(&[&["up", "--data-dir", text(data)], &ANY_PORT[..], more].concat()).await;
    let changed = before != contents(data);
    let changed = changed.then(|| format!("{expected:?}: the folder was changed"));
    complaint(&output, 1, expected).or(changed)
}

#[tokio::test(flavor = "multi_thread")]
async fn data_folders() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let mut wrong = Vec::new();

    fs::create_dir_all(path("foreign")).unwrap();
    fs::write(path("foreign/thesis.tex"), "x").unwrap();
    wrong.extend(refused(&path("foreign"), &[], &["thesis.tex", "--data-dir"]).await);
    fs::create_dir_all(path("an-etcd/member/wal")).unwrap();
    wrong.extend(refused(&path("an-etcd"), &[], &["member", "--data-dir"]).await);

    let on_file = path("file");
    fs::write(&on_file, "x").unwrap();
    for data in [on_file.clone(), on_file.join("below")] {
        let output = run(&[&["up", "--data-dir", text(&data)], &ANY_PORT[..]].concat()).await;
        wrong.extend(complaint(&output, 1, &[text(&data)]));
    }
    assert_eq!(fs::read_to_string(&on_file).unwrap(), "x");

    let data = path("data");
    let mut up = Up::start(&data, &["--shards", "2"]).await.unwrap();
    etcdctl(&up.endpoint, &["put", "still", "there"]).await.unwrap().success().unwrap();
    // Its shards are at work: only the message is looked at.
    let pid = up.process.id().to_string();
    let output = run(&[&["up", "--data-dir", text(&data)], &ANY_PORT[..]].concat()).await;
    wrong.extend(complaint(&output, 1, &["in use by process", &pid, "--data-dir"]));
    up.process.stop().await.unwrap();

    let topology = data.join("topology.json");
    let good = fs::read_to_string(&topology).unwrap();
    let mut state: serde_json::Value = serde_json::from_str(&good).unwrap();
    state["v"] = 99.into();
    let newer = serde_json::to_string(&state).unwrap();
    for (content, expected) in
        [(newer.as_str(), "format version 99"), ("{", "not readable"), ("", "not readable")]
    {
        fs::write(&topology, content).unwrap();
        // The lock of the process that ended still has its id in it; whoever holds the lock writes its own.
        let output = run(&[&["up", "--data-dir", text(&data)], &ANY_PORT[..]].concat()).await;
        wrong.extend(complaint(&output, 1, &["topology.json", expected]));
        assert_eq!(fs::read_to_string(&topology).unwrap(), content);
    }
    fs::write(&topology, &good).unwrap();
    let output = run(&[&["up", "--data-dir", text(&data), "--engine", "etcd"], &ANY_PORT[..]].concat()).await;
    wrong.extend(complaint(&output, 1, &["--engine embedded", "--data-dir"]));
    let file = path("demo.yaml");
    fs::write(&file, resource("shards: 2\nkeyspace: {delimiter: ':'}")).unwrap();
    let output = run(&[&["up", "--data-dir", text(&data), "-f", text(&file)], &ANY_PORT[..]].concat()).await;
    wrong.extend(complaint(&output, 1, &["demo.yaml", "spec.keyspace.delimiter", "cannot change"]));
    for engine in ["shard-1", "meta"] {
        fs::rename(data.join(engine), path("aside")).unwrap();
        let output = run(&[&["up", "--data-dir", text(&data)], &ANY_PORT[..]].concat()).await;
        wrong.extend(complaint(&output, 1, &[engine, "is gone", "put the folder back"]));
        assert!(!data.join(engine).exists(), "an empty {engine} in the place of data would hide the loss");
        fs::rename(path("aside"), data.join(engine)).unwrap();
    }
    if !geteuid().is_root() {
        fs::set_permissions(&data, fs::Permissions::from_mode(0o000)).unwrap();
        let output = run(&[&["up", "--data-dir", text(&data)], &ANY_PORT[..]].concat()).await;
        wrong.extend(complaint(&output, 1, &["give this user access"]));
        fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n----\n"));

    up.restart().await.unwrap();
    let value =
        etcdctl(&up.endpoint, &["get", "still", "--print-value-only"]).await.unwrap().success().unwrap();
    assert_eq!(value, "there\n", "nothing of this has touched the data");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_etcd_is_no_topology() {
    let etcd = EtcdProcess::start(EtcdProcessOptions::default()).await.unwrap();
    let folder = folder();
    let file = folder.path().join("demo.yaml");
    fs::write(&file, resource("shards: 2")).unwrap();
    let endpoint = etcd.endpoint();
    for arguments in [&["status"][..], &["plan", "-f", text(&file)]] {
        let output = run(&[arguments, &["--endpoint", &endpoint]].concat()).await;
        let told = complaint(&output, 1, &["is no sharded-etcd", "--endpoint"]);
        assert_eq!(told, None, "{arguments:?}");
    }
}
