//! Load on an embedded engine in process: `load [WRITERS] [SECONDS] [WATCHERS] [DIR]` prints writes and reads a second
//! and the CPU time of each. Build it with `--release`.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, future::join_all};
use sharded_etcd_engine::{Engine, EngineConfig};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::Shard;

const KEYS: u64 = 100_000;
const VALUE_BYTES: usize = 256;

/// User and system time of this process so far, in clock ticks of 10 ms.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<u64> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse().unwrap())
        .collect();
    Duration::from_millis(10 * (fields[0] + fields[1]))
}

fn report(what: &str, count: u64, elapsed: Duration, used: Duration, mut latencies: Vec<u32>) {
    latencies.sort_unstable();
    let at = |percent: usize| latencies.get(latencies.len() * percent / 100).copied().unwrap_or(0);
    println!(
        "{what}: {:.0}/s, {:.2} us CPU each, p50 {} us, p99 {} us",
        count as f64 / elapsed.as_secs_f64(),
        used.as_secs_f64() * 1e6 / count.max(1) as f64,
        at(50),
        at(99),
    );
}

fn put(key: u64) -> pb::PutRequest {
    pb::PutRequest {
        key: format!("/registry/pods/default/pod-{key:012}").into(),
        value: vec![b'v'; VALUE_BYTES].into(),
        ..Default::default()
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u64| arguments.next().map_or(default, |text| text.parse().unwrap());
    let (writers, seconds, watchers) = (number(100), number(5), number(0));
    let temporary = tempfile::tempdir().unwrap();
    let dir = arguments.next().map_or(temporary.path().to_owned(), Into::into);
    let mut config = EngineConfig::new(dir, "load");
    config.quota_bytes = 64 << 30;
    let engine = Engine::open(config).await.unwrap();

    let seen = Arc::new(AtomicU64::new(0));
    for _ in 0..watchers {
        let everything =
            pb::WatchCreateRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
        let mut stream = engine.watch(everything).await.unwrap();
        let seen = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Some(Ok(response)) = stream.next().await {
                seen.fetch_add(response.events.len() as u64, Ordering::Relaxed);
            }
        });
    }

    let stop = Arc::new(AtomicBool::new(false));
    let (started, before) = (Instant::now(), cpu());
    let tasks = (0..writers).map(|writer| {
        let (engine, stop) = (Arc::clone(&engine), Arc::clone(&stop));
        tokio::spawn(async move {
            let mut latencies = Vec::new();
            let mut key = writer * 7919;
            while !stop.load(Ordering::Relaxed) {
                key = (key * 6_364_136_223 + 1_442_695) % KEYS;
                let begin = Instant::now();
                engine.put(put(key)).await.unwrap();
                latencies.push(begin.elapsed().as_micros() as u32);
            }
            latencies
        })
    });
    let tasks: Vec<_> = tasks.collect();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    stop.store(true, Ordering::Relaxed);
    let latencies: Vec<u32> = join_all(tasks).await.into_iter().flat_map(Result::unwrap).collect();
    let count = latencies.len() as u64;
    report(&format!("put, {writers} writers"), count, started.elapsed(), cpu() - before, latencies);
    if watchers > 0 {
        println!("{watchers} watchers saw {} of {} events", seen.load(Ordering::Relaxed), count * watchers);
    }

    let (started, before) = (Instant::now(), cpu());
    let mut count = 0;
    while started.elapsed() < Duration::from_secs(1) {
        for _ in 0..1000 {
            count += 1;
            let key = put(count * 7919 % KEYS).key;
            let request = pb::RangeRequest { key, ..Default::default() };
            engine.range(request).now_or_never().unwrap().unwrap();
        }
    }
    report("get, one thread", count, started.elapsed(), cpu() - before, Vec::new());

    let everything =
        pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
    let started = Instant::now();
    let all = engine.range(everything.clone()).await.unwrap().count;
    println!("range of {all} keys: {:?}", started.elapsed());
    let started = Instant::now();
    engine.range(pb::RangeRequest { limit: 500, ..everything }).await.unwrap();
    println!("first page of 500: {:?}", started.elapsed());
    let started = Instant::now();
    let revision = engine.snapshot().revision();
    engine.compact(pb::CompactionRequest { revision, physical: true }).await.unwrap();
    println!("compaction of {revision} revisions: {:?}", started.elapsed());
    engine.close().await;
}
