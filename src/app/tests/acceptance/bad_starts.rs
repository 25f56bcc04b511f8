//! Acceptance 5, at the start: what the command line, the data folder and the machine can be wrong about. Each is told
//! in one error with a remedy, with a stable exit code, and changes nothing.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt, path::Path};

use crate::harness::{Ended, Engine, Up, folder, program, resource, run};

/// The start fails, and says so.
#[track_caller]
fn fails(ended: &Ended, code: i32, expected: &[&str]) {
    assert_eq!(ended.code, Some(code), "{}", ended.stderr);
    assert_eq!(ended.stdout, "", "nothing is served");
    for text in expected {
        assert!(ended.stderr.contains(text), "{text:?} is missing in: {}", ended.stderr);
    }
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn command_lines() {
    let folder = folder();
    let data = folder.path().join("data");
    let up =
        |more: &[&str]| run(&[&["up", "--data-dir", path(&data), "--listen", "127.0.0.1:0"], more].concat());
    fails(&run(&["fly"]), 64, &["fly"]);
    fails(&up(&["--wings", "2"]), 64, &["--wings"]);
    fails(&up(&["--shards", "three"]), 64, &["three", "--shards"]);
    fails(&up(&["--shards", "3", "-f", "x.yaml"]), 64, &["--shards", "--file"]);
    fails(&up(&["--engine", "postgres"]), 64, &["postgres", "embedded", "etcd"]);
    fails(&up(&["--shards", "0"]), 1, &["--shards: 0", "1 to 1024"]);
    fails(&up(&["--shards", "1025"]), 1, &["--shards: 1025", "1 to 1024"]);
    fails(&up(&["--shards=-1"]), 1, &["--shards: -1"]);
    fails(&up(&["-f", "/nowhere/x.yaml"]), 1, &["cannot read /nowhere/x.yaml"]);
    fails(&up(&["--etcd", "/bin/true"]), 1, &["--etcd", "--engine etcd"]);
    let listen = |address| run(&["up", "--data-dir", path(&data), "--listen", address]);
    fails(&listen("2379"), 1, &["--listen", "HOST:PORT"]);
    fails(&listen("https://127.0.0.1:2379"), 1, &["TLS", "not there yet"]);
    fails(&listen("192.0.2.1:2379"), 1, &["cannot listen on 192.0.2.1:2379"]);
    fails(&run(&["status", "--endpoint", "nowhere"]), 1, &["--endpoint", "HOST:PORT"]);
    fails(
        &run(&["status", "--endpoint", "127.0.0.1:1"]),
        1,
        &["nothing answers at 127.0.0.1:1", "--endpoint"],
    );
    fails(&run(&["plan", "-f", "/nowhere/x.yaml"]), 1, &["cannot read /nowhere/x.yaml"]);
    let file = folder.path().join("x.yaml");
    fs::write(&file, resource("shards: 0")).unwrap();
    fails(&run(&["plan", "-f", path(&file)]), 1, &["spec.shards", "1 to 1024"]);
}

#[test]
fn a_port_in_use() {
    let folder = folder();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ended = run(&["up", "--data-dir", path(&folder.path().join("data")), "--listen", &address]);
    fails(&ended, 1, &[&address, "in use by another program", "--listen"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn data_folders() {
    let folder = folder();
    let up = |data: &Path| run(&["up", "--data-dir", path(data), "--listen", "127.0.0.1:0"]);

    let foreign = folder.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.tex"), "x").unwrap();
    fails(&up(&foreign), 1, &["thesis.tex", "--data-dir"]);
    assert_eq!(fs::read_dir(&foreign).unwrap().count(), 1, "nothing is put into it");

    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    fails(&up(&file), 1, &["is not a folder"]);

    let newer = folder.path().join("newer");
    fs::create_dir(&newer).unwrap();
    fs::write(newer.join("topology.json"), r#"{"v": 99, "everything": "new"}"#).unwrap();
    fails(&up(&newer), 1, &["topology.json", "format version 99"]);
    fs::write(newer.join("topology.json"), "{").unwrap();
    fails(&up(&newer), 1, &["topology.json", "not readable"]);

    let mut running = Up::shards(Engine::Embedded, 2).await;
    let pid = running.process().id().to_string();
    fails(&up(&running.data()), 1, &["in use by process", &pid]);
    running.ctl(&["put", "still", "there"]).await;
    running.kill();

    let data = running.data();
    let other = run(&["up", "--data-dir", path(&data), "--listen", "127.0.0.1:0", "--engine", "etcd"]);
    fails(&other, 1, &["--engine embedded", "--data-dir"]);
    fs::rename(data.join("shard-1"), folder.path().join("shard-1")).unwrap();
    fails(&up(&data), 1, &["shard-1", "is gone", "put the folder back"]);
    fs::rename(folder.path().join("shard-1"), data.join("shard-1")).unwrap();
    fs::rename(data.join("meta"), folder.path().join("meta")).unwrap();
    fails(&up(&data), 1, &["meta", "is gone", "put the folder back"]);
    fs::rename(folder.path().join("meta"), data.join("meta")).unwrap();
    running.again().await;
    assert_eq!(running.ctl(&["get", "still", "--print-value-only"]).await, "there\n");
}

#[test]
fn full_disks() {
    let folder = folder();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    // The file that is written first, on a device that is always full.
    std::os::unix::fs::symlink("/dev/full", data.join("topology.json.tmp")).unwrap();
    let ended = run(&["up", "--data-dir", path(&data), "--listen", "127.0.0.1:0"]);
    fails(&ended, 1, &["cannot write", "the disk is full", "free some space"]);
    assert!(!data.join("topology.json").exists(), "nothing is half applied");
}

#[test]
fn programs_that_are_no_etcd() {
    let folder = folder();
    let data = folder.path().join("data");
    let common = ["up", "--data-dir", path(&data), "--listen", "127.0.0.1:0", "--engine", "etcd"];
    let up = |etcd: &str| run(&[&common[..], &["--etcd", etcd]].concat());
    let output = program().args(common).env("PATH", folder.path()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && stderr.contains("no etcd program found"), "{stderr}");
    assert!(stderr.contains("3.6") && stderr.contains("--etcd"), "{stderr}");
    fails(&up("/nowhere/etcd"), 1, &["cannot run /nowhere/etcd"]);
    let script = folder.path().join("old");
    for (says, expected) in [("etcd Version: 3.4.30", "3.4.30"), ("hello", "no etcd")] {
        fs::write(&script, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        fails(&up(path(&script)), 1, &[expected, "--etcd"]);
    }
    // It says that it is one, and does not run.
    fs::write(
        &script,
        "#!/bin/sh\n[ $1 = --version ] && echo 'etcd Version: 3.7.3' && exit\necho 'no way'; exit 5\n",
    )
    .unwrap();
    fails(&up(path(&script)), 1, &["meta", "exit status: 5", "no way", "meta.log"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn routing_files() {
    let folder = folder();
    let file = folder.path().join("routing.json");
    let proxy = |file: &Path| run(&["proxy", "--routing", path(file), "--listen", "127.0.0.1:0"]);
    fails(&proxy(&file), 1, &["cannot read the routing file"]);
    fs::write(&file, "nonsense").unwrap();
    fails(&proxy(&file), 1, &["routing.json", "not readable"]);
    fs::write(&file, r#"{"v": 99}"#).unwrap();
    fails(&proxy(&file), 1, &["format version 99"]);
    let up = Up::shards(Engine::Embedded, 1).await;
    fails(&proxy(&up.data().join("routing.json")), 1, &["embedded engine", "--engine etcd"]);
}
