//! `engine`: etcd's flags and variables, metrics, and a snapshot that another one goes on from.

use std::{path::Path, process::Command, time::Duration};

use sharded_etcd_testkit::{Process, etcdctl, free_port, wait_until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::{folder, program, run};

struct Running {
    process: Process,
    port: u16,
}

impl Running {
    /// With flags that say all but the port.
    async fn start(change: impl FnOnce(&mut Command, &str), log: &Path) -> Self {
        let port = free_port().unwrap();
        let mut command = program();
        command.arg("engine");
        change(&mut command, &format!("http://127.0.0.1:{port}"));
        let mut running = Self { process: Process::start("engine", &mut command, log).unwrap(), port };
        wait_until("the engine serves", Duration::from_secs(60), || {
            running.process.check_running().unwrap();
            async move { http(port, "/readyz").await.filter(|answer| answer.starts_with("HTTP/1.0 200")) }
        })
        .await
        .unwrap();
        running
    }

    async fn ctl(&self, arguments: &[&str]) -> String {
        etcdctl(&format!("127.0.0.1:{}", self.port), arguments).await.unwrap().success().unwrap()
    }
}

async fn http(port: u16, path: &str) -> Option<String> {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    connection.write_all(format!("GET {path} HTTP/1.0\r\nHost: a\r\n\r\n").as_bytes()).await.ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn an_engine_goes_on_from_the_snapshot_of_another_one() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    // The first one as etcd's images run it: by variables only.
    let first = Running::start(
        |command, url| {
            command
                .env("ETCD_NAME", "first")
                .env("ETCD_DATA_DIR", path("first"))
                .env("ETCD_LISTEN_CLIENT_URLS", url)
                .env("ETCD_ADVERTISE_CLIENT_URLS", url)
                .env("ETCD_QUOTA_BACKEND_BYTES", "4194304")
                .env("ETCD_MAX_TXN_OPS", "2")
                .env("ETCD_SERVICE_HOST", "10.0.0.1");
        },
        &path("first.log"),
    )
    .await;
    first.ctl(&["put", "a", "one"]).await;
    first.ctl(&["put", "a", "two"]).await;
    assert!(first.ctl(&["member", "list"]).await.contains("first"));
    let metrics = http(first.port, "/metrics").await.unwrap();
    for part in [
        "content-type: text/plain; version=0.0.4",
        "\n# TYPE etcd_mvcc_put_total counter\netcd_mvcc_put_total 2\n",
        "\netcd_server_has_leader 1\n",
        "\netcd_server_quota_backend_bytes 4194304\n",
        "\netcd_debugging_mvcc_current_revision 3\n",
        "grpc_code=\"OK\",grpc_method=\"Put\"",
    ] {
        assert!(metrics.contains(part), "{part:?} is not in\n{metrics}");
    }
    let gateway = http(first.port, "/v3/kv/range").await.unwrap();
    assert!(gateway.starts_with("HTTP/1.0 404"), "there is no JSON gateway: {gateway}");
    first.ctl(&["snapshot", "save", text(&path("snapshot"))]).await;

    let restore =
        || run(&["engine", "restore", text(&path("snapshot")), "--data-dir", text(&path("second"))]);
    let restored = restore();
    assert_eq!(restored.code, Some(0), "{}", restored.stderr);
    assert!(restored.stdout.contains("revision    3\n") && restored.stdout.contains("keys        1\n"));
    let again = restore();
    assert!(again.code == Some(1) && again.stderr.contains("is not empty"), "{}", again.stderr);
    let checked = run(&["engine", "check", text(&path("second"))]);
    assert_eq!(checked.code, Some(0), "{}", checked.stderr);

    // Two addresses, by etcd's flags.
    let other = free_port().unwrap();
    let second = Running::start(
        |command, url| {
            command.args(["--name", "second", "--data-dir", text(&path("second"))]);
            command.arg(format!("--listen-client-urls={url},http://127.0.0.1:{other}"));
        },
        &path("second.log"),
    )
    .await;
    assert_eq!(second.ctl(&["get", "a", "--rev=2", "--print-value-only"]).await.trim(), "one");
    assert_eq!(second.ctl(&["get", "a", "--print-value-only"]).await.trim(), "two");
    assert!(http(other, "/health").await.unwrap().contains("\"health\":\"true\""));
}

#[test]
fn flags_of_etcd_that_mean_nothing_here_are_refused() {
    let refused = run(&["engine", "--snapshot-count", "1000"]);
    assert_eq!(refused.code, Some(64));
    assert!(refused.stderr.contains("--snapshot-count is a flag of etcd"), "{}", refused.stderr);
    let output = program().arg("engine").env("ETCD_CERT_FILE", "x").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(64) && stderr.contains("ETCD_CERT_FILE"), "{stderr}");
}
