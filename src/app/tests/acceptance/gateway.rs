//! The JSON gateway: what a client without gRPC is answered by one etcd, by an engine and by a topology.

use std::time::Duration;

use serde_json::{Value, json};
use sharded_etcd_testkit::{EtcdProcess, EtcdProcessOptions, Process, free_port, wait_until};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use crate::harness::{Engine, Up, folder, program};

const PATIENCE: Duration = Duration::from_secs(30);

/// Sends a request; the connection, once the headers have come, and the status.
async fn send(endpoint: &str, method: &str, path: &str, body: &str) -> (u16, BufReader<TcpStream>) {
    let mut connection = TcpStream::connect(endpoint.trim_start_matches("http://")).await.unwrap();
    let length = body.len();
    let request = format!("{method} {path} HTTP/1.0\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = BufReader::new(connection);
    let mut line = String::new();
    answer.read_line(&mut line).await.unwrap();
    let status = line.split(' ').nth(1).unwrap().parse().unwrap();
    while line.trim() != "" {
        line.clear();
        answer.read_line(&mut line).await.unwrap();
    }
    (status, answer)
}

async fn post(endpoint: &str, path: &str, body: &str) -> (u16, Value) {
    let (status, mut rest) = send(endpoint, "POST", path, body).await;
    let mut text = String::new();
    tokio::time::timeout(PATIENCE, rest.read_to_string(&mut text)).await.unwrap().unwrap();
    // One value, or one a line.
    let values: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(&text).into_iter().collect();
    let mut values = values.unwrap_or_else(|error| panic!("{path}: {error}: {text}"));
    (status, if values.len() == 1 { values.remove(0) } else { Value::Array(values) })
}

/// The first answers of a call that goes on.
async fn first_lines(endpoint: &str, path: &str, body: &str, count: usize) -> Vec<Value> {
    let (status, rest) = send(endpoint, "POST", path, body).await;
    assert_eq!(status, 200);
    let mut lines = rest.lines();
    let mut values = Vec::new();
    while values.len() < count {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
        values.push(serde_json::from_str(&line).unwrap());
    }
    values
}

/// Without what is of one server; for a topology also without revisions, which have gaps there.
fn comparable(value: &mut Value, with_revisions: bool) {
    match value {
        Value::Object(fields) => {
            for name in ["cluster_id", "member_id", "raft_term"] {
                fields.remove(name);
            }
            if !with_revisions {
                fields.retain(|name, _| !name.contains("revision"));
            }
            fields.values_mut().for_each(|field| comparable(field, with_revisions));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| comparable(item, with_revisions)),
        _ => {}
    }
}

/// Paths and bodies, in this order. `YQ==` is a, `Yg==` b, `eg==` z.
const CALLS: &[(&str, &str)] = &[
    ("/v3/kv/put", r#"{"key": "YQ==", "value": "MQ=="}"#),
    ("/v3/kv/put", r#"{"key": "YQ==", "value": "Mg==", "prev_kv": true}"#),
    ("/v3/kv/put", r#"{"key": "eg==", "value": "Mw==", "prevKv": true, "nobody knows this": [1]}"#),
    ("/v3/kv/range", r#"{"key": "YQ=="}"#),
    ("/v3/kv/range", r#"{"key": "YQ==", "range_end": "AA==", "sort_order": "DESCEND", "limit": "1"}"#),
    ("/v3/kv/range", r#"{"key": "YQ==", "range_end": "AA==", "count_only": true, "limit": 1}"#),
    ("/v3/kv/range", r#"{"key": "YQ==", "range_end": "AA==", "keys_only": true, "sort_order": 1}"#),
    ("/v3/kv/range", r#"{"key": "YQ==", "revision": "100000"}"#),
    ("/v3/kv/range", r#"{"key": "eHh4"}"#),
    ("/v3/kv/range", ""),
    ("/v3/kv/range", "{}"),
    (
        "/v3/kv/txn",
        r#"{"compare": [{"target": "VALUE", "key": "YQ==", "value": "Mg=="}],
            "success": [{"request_put": {"key": "YQ==", "value": "NA=="}}, {"requestRange": {"key": "YQ=="}}],
            "failure": [{"request_range": {"key": "YQ=="}}]}"#,
    ),
    (
        "/v3/kv/txn",
        r#"{"compare": [{"target": "VERSION", "result": "GREATER", "key": "YQ==", "version": "99"}],
            "failure": [{"request_delete_range": {"key": "YQ==", "prev_kv": true}}]}"#,
    ),
    ("/v3/lease/grant", r#"{"TTL": "60", "ID": "4711"}"#),
    ("/v3/lease/grant", r#"{"TTL": 60, "ID": 4711}"#),
    ("/v3/kv/put", r#"{"key": "Yg==", "value": "MQ==", "lease": "4711"}"#),
    ("/v3/kv/put", r#"{"key": "Yg==", "value": "MQ==", "lease": "1"}"#),
    ("/v3/lease/keepalive", r#"{"ID": "4711"}"#),
    ("/v3/lease/keepalive", r#"{"ID": 1}{"ID": 4711}"#),
    ("/v3/lease/leases", ""),
    ("/v3/kv/lease/leases", "{}"),
    ("/v3/lease/revoke", r#"{"ID": "4711"}"#),
    ("/v3/kv/lease/revoke", r#"{"ID": "4711"}"#),
    ("/v3/kv/lease/timetolive", r#"{"ID": "4711", "keys": true}"#),
    ("/v3/kv/deleterange", r#"{"key": "YQ==", "range_end": "AA==", "prev_kv": true}"#),
    ("/v3/kv/deleterange", r#"{"key": "YQ=="}"#),
    ("/v3/kv/compaction", r#"{"revision": "100000"}"#),
    ("/v3/maintenance/alarm", r#"{"action": "GET"}"#),
    ("/v3/auth/status", "{}"),
    ("/v3/auth/authenticate", r#"{"name": "root", "password": "x"}"#),
    ("/v3/lock/unlock", r#"{"key": "YQ=="}"#),
    ("/v3/election/leader", r#"{"name": "YQ=="}"#),
];

/// Whose answer is an error with a text of another library: only its status is compared.
const BAD: &[(&str, &str)] = &[
    ("/v3/kv/put", "{"),
    ("/v3/kv/put", "[]"),
    ("/v3/kv/put", r#"{"key": 1}"#),
    ("/v3/kv/put", r#"{"key": "%"}"#),
    ("/v3/kv/put", r#"{"key": "YQ==", "lease": "many"}"#),
    ("/v3/kv/range", r#"{"key": "YQ==", "sort_order": "UPWARDS"}"#),
    ("/v3/kv/none", "{}"),
    ("/v3/kv", "{}"),
    ("/v3/kv/range/more", "{}"),
];

async fn check(endpoint: &str, etcd: &str, with_revisions: bool) {
    for (path, body) in CALLS {
        let (mut expected, mut found) = (post(etcd, path, body).await, post(endpoint, path, body).await);
        comparable(&mut expected.1, with_revisions);
        comparable(&mut found.1, with_revisions);
        assert_eq!(found, expected, "{path} {body}");
    }
    for (path, body) in BAD {
        let (expected, found) = (post(etcd, path, body).await, post(endpoint, path, body).await);
        assert_eq!(
            (found.0, &found.1["code"]),
            (expected.0, &expected.1["code"]),
            "{path} {body}: {}",
            found.1
        );
    }
    for path in ["/v3/kv/range", "/v3/none"] {
        let (expected, found) = (send(etcd, "GET", path, "").await, send(endpoint, "GET", path, "").await);
        assert_eq!(found.0, expected.0, "GET {path}");
    }
    let mut watched = Vec::new();
    for target in [etcd, endpoint] {
        let (_, answer) = post(target, "/v3/kv/put", r#"{"key": "d2F0Y2hlZA==", "value": "MQ=="}"#).await;
        let since = answer["header"]["revision"].as_str().unwrap().to_owned();
        post(target, "/v3/kv/deleterange", r#"{"key": "d2F0Y2hlZA=="}"#).await;
        let body =
            json!({"create_request": {"key": "d2F0Y2hlZA==", "start_revision": since, "prev_kv": true}});
        let lines = first_lines(target, "/v3/watch", &body.to_string(), 2).await;
        assert_eq!(lines[0]["result"]["created"], json!(true), "{lines:?}");
        let mut events = lines[1]["result"]["events"].clone();
        comparable(&mut events, with_revisions);
        watched.push(events);
        // A watcher stays after the request that made it has ended, for what comes then.
        let body = json!({"create_request": {"key": "bGF0ZXI="}}).to_string();
        let (_, rest) = send(target, "POST", "/v3/watch", &body).await;
        let mut lines = rest.lines();
        assert!(lines.next_line().await.unwrap().unwrap().contains("\"created\""));
        post(target, "/v3/kv/put", r#"{"key": "bGF0ZXI="}"#).await;
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
        let said: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(said["result"]["events"][0]["kv"]["key"], json!("bGF0ZXI="), "{line}");
    }
    assert_eq!(watched[1], watched[0]);
}

#[tokio::test]
async fn an_engine_answers_json_as_etcd_does() {
    let etcd = EtcdProcess::start(EtcdProcessOptions::default()).await.unwrap();
    let (folder, port) = (folder(), free_port().unwrap());
    let url = format!("127.0.0.1:{port}");
    let data = folder.path().join("data").display().to_string();
    let mut command = program();
    command.args(["engine", "--data-dir", &data, "--listen", &url]);
    let mut process = Process::start("engine", &mut command, &folder.path().join("log")).unwrap();
    wait_until("the engine serves", Duration::from_secs(60), || {
        process.check_running().unwrap();
        async { TcpStream::connect(&url).await.ok() }
    })
    .await
    .unwrap();
    check(&url, &etcd.endpoint(), true).await;
}

#[tokio::test]
async fn a_topology_answers_json_as_etcd_does() {
    let etcd = EtcdProcess::start(EtcdProcessOptions::default()).await.unwrap();
    let up = Up::file(Engine::Embedded, "{shards: 2, keyspace: {presplit: [\"m\"]}}").await;
    check(&up.endpoint(), &etcd.endpoint(), false).await;
}
