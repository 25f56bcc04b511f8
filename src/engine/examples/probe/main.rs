//! Measures what etcd's own benchmark tool cannot, on any etcd v3 server: `e2e/bench/engine.sh` runs it.
//!
//! `probe ENDPOINT PID CASE [ARGUMENT...]`; PID is the server's, for its CPU time. A case prints lines of tab separated
//! fields: name, operations per second, p50, p99 and maximum in ms, CPU of the server in µs per operation.
//!
//! - `fill KEYS VALUE_BYTES CLIENTS`: puts keys in order.
//! - `range KEYS TOTAL CLIENTS`: ranges of so many keys of a store that `fill` filled.
//! - `watch WATCHERS PUTS`: puts on one key, each followed until every watcher has its event.
//! - `stall SECONDS DIR KEYS`: puts on so many keys while nothing else happens, during a compaction, a defragmentation (of the
//!   engine: a checkpoint) and a snapshot, at least so long each; and what an fdatasync in DIR takes at the same time. The
//!   name has behind semicolons: stalls of more than 50 ms, the longest fdatasync in ms, and how many took more than 50 ms.
//! - `await`: prints how long it takes until the server answers a read, in ms.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod clients;
mod stall;
mod watch;

use std::time::{Duration, Instant};

use clients::{Clients, Measured, measure};
use sharded_etcd_etcd_api::messages as pb;

/// How long `await` tries.
const AWAIT_MAX: Duration = Duration::from_secs(120);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [endpoint, pid, case, rest @ ..] = arguments.as_slice() else {
        panic!("usage: probe ENDPOINT PID fill|range|watch|stall|await [ARGUMENT...]");
    };
    let number = |at: usize| rest[at].parse::<u64>().unwrap();
    if case == "await" {
        return println!("{:.0}", wait_for(endpoint).await.as_secs_f64() * 1e3);
    }
    let clients = Clients::connect(endpoint, pid).await;
    match case.as_str() {
        "fill" => fill(&clients, number(0), number(1), number(2)).await,
        "range" => range(&clients, number(0), number(1), number(2)).await,
        "watch" => watch::run(&clients, number(0), number(1)).await,
        "stall" => stall::run(&clients, number(0), &rest[1], number(2)).await,
        _ => panic!("no such case: {case}"),
    }
}

async fn wait_for(endpoint: &str) -> Duration {
    let begin = Instant::now();
    while begin.elapsed() < AWAIT_MAX {
        if let Some(clients) = Clients::try_connect(endpoint, "self").await {
            let request = pb::RangeRequest { key: "await".into(), ..Default::default() };
            if clients.kv(0).range(request).await.is_ok() {
                return begin.elapsed();
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("nothing serves at {endpoint}");
}

async fn fill(clients: &Clients, keys: u64, value_bytes: u64, tasks: u64) {
    let value = clients::value(value_bytes);
    let measured = measure(clients, keys, tasks, |client, number| {
        let (mut kv, value) = (clients.kv(client), value.clone());
        async move {
            let key = clients::key(number).into();
            kv.put(pb::PutRequest { key, value, ..Default::default() }).await.unwrap();
        }
    });
    measured.await.print(&format!("put in order, {keys} keys"));
}

async fn range(clients: &Clients, keys: u64, total: u64, tasks: u64) {
    let everything = pb::RangeRequest {
        key: clients::key(0).into(),
        range_end: clients::key(u64::MAX).into(),
        count_only: true,
        ..Default::default()
    };
    let filled = clients.kv(0).range(everything).await.unwrap().into_inner().count as u64;
    assert!(filled >= keys, "there are {filled} keys only; run fill first");
    let measured: Measured = measure(clients, total, tasks, |client, number| {
        let mut kv = clients.kv(client);
        async move {
            let first = number.wrapping_mul(7_919) % (filled - keys + 1);
            let range_end = if keys == 1 { Vec::new() } else { clients::key(first + keys) };
            let request = pb::RangeRequest {
                key: clients::key(first).into(),
                range_end: range_end.into(),
                ..Default::default()
            };
            let found = kv.range(request).await.unwrap().into_inner().kvs.len() as u64;
            assert_eq!(found, keys);
        }
    })
    .await;
    measured.print(&format!("range of {keys}, {tasks} clients"));
}
