//! The longest wait of a put while maintenance goes on.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesUnordered};
use sharded_etcd_etcd_api::{etcdserverpb::maintenance_client::MaintenanceClient, messages as pb};

use crate::clients::{Clients, Measured, key, value};

const WRITERS: u64 = 10;
/// What takes longer is a stall.
const STALL: Duration = Duration::from_millis(50);
const BLOCK_BYTES: usize = 4096;
const DISK_PAUSE: Duration = Duration::from_millis(5);

pub async fn run(clients: &Clients, seconds: u64, dir: &str, keys: u64) {
    for what in ["nothing", "compaction", "defragmentation", "snapshot"] {
        let disk = Disk::start(dir);
        let (measured, took) = puts_during(clients, what, Duration::from_secs(seconds), keys).await;
        let (disk_ms, disk_stalls) = disk.stop();
        let took = took.map_or(String::new(), |took| format!(" ({:.1} s)", took.as_secs_f64()));
        // All writers wait for the same one, so it is counted once.
        let stalls = measured.latencies.iter().filter(|latency| **latency > STALL).count() as u64 / WRITERS;
        measured.print(&format!("{what}{took}; {stalls}; {disk_ms:.1}; {disk_stalls}"));
    }
}

async fn puts_during(
    clients: &Clients,
    what: &str,
    time: Duration,
    keys: u64,
) -> (Measured, Option<Duration>) {
    let value = value(256);
    let (begin, cpu) = (Instant::now(), clients.cpu());
    let is_over = AtomicBool::new(false);
    let writers: FuturesUnordered<_> = (0..WRITERS)
        .map(|writer| {
            let (mut kv, is_over, value) = (clients.kv(writer), &is_over, &value);
            async move {
                let (mut latencies, mut number) = (Vec::new(), writer);
                while begin.elapsed() < time || !is_over.load(Ordering::Acquire) {
                    number = (number * 6_364_136_223 + 1_442_695) % keys;
                    let request = pb::PutRequest {
                        key: key(number).into(),
                        value: value.clone(),
                        ..Default::default()
                    };
                    let begin = Instant::now();
                    kv.put(request).await.unwrap();
                    latencies.push(begin.elapsed());
                }
                latencies
            }
        })
        .collect();
    let maintenance = async {
        tokio::time::sleep(time / 4).await;
        let begin = Instant::now();
        maintain(clients, what).await;
        is_over.store(true, Ordering::Release);
        (what != "nothing").then(|| begin.elapsed())
    };
    let (latencies, took) = futures::join!(writers.collect::<Vec<_>>(), maintenance);
    let latencies = latencies.into_iter().flatten().collect();
    (Measured { elapsed: begin.elapsed(), cpu: clients.cpu() - cpu, latencies, weight: 1 }, took)
}

async fn maintain(clients: &Clients, what: &str) {
    let mut maintenance = MaintenanceClient::new(clients.channel(0)).max_decoding_message_size(usize::MAX);
    match what {
        "compaction" => {
            let mut kv = clients.kv(0);
            let current = kv.range(pb::RangeRequest { key: "x".into(), ..Default::default() }).await.unwrap();
            let revision = current.into_inner().header.unwrap().revision;
            kv.compact(pb::CompactionRequest { revision, physical: true }).await.unwrap();
        }
        "defragmentation" => {
            maintenance.defragment(pb::DefragmentRequest {}).await.unwrap();
        }
        "snapshot" => {
            // A server that has none says so.
            let Ok(parts) = maintenance.snapshot(pb::SnapshotRequest {}).await else { return };
            let mut parts = parts.into_inner();
            while parts.message().await.unwrap().is_some() {}
        }
        _ => {}
    }
}

/// Overwrites and syncs a block again and again, as a log does.
struct Disk {
    is_over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<(f64, u64)>,
}

impl Disk {
    fn start(dir: &str) -> Self {
        let is_over = Arc::<AtomicBool>::default();
        let over = Arc::clone(&is_over);
        let path = std::path::Path::new(dir).join("probe.tmp");
        let thread = std::thread::spawn(move || {
            let file = File::create(&path).unwrap();
            let block = [1; BLOCK_BYTES];
            file.write_all_at(&block, 0).unwrap();
            file.sync_all().unwrap();
            let (mut longest, mut stalls) = (Duration::ZERO, 0);
            while !over.load(Ordering::Acquire) {
                let begin = Instant::now();
                file.write_all_at(&block, 0).unwrap();
                file.sync_data().unwrap();
                longest = longest.max(begin.elapsed());
                stalls += u64::from(begin.elapsed() > STALL);
                // A thread of its own, and the pause is part of the load.
                #[allow(clippy::disallowed_methods)]
                std::thread::sleep(DISK_PAUSE);
            }
            std::fs::remove_file(&path).unwrap();
            (longest.as_secs_f64() * 1e3, stalls)
        });
        Self { is_over, thread }
    }

    /// The longest time in ms, and how many were stalls.
    fn stop(self) -> (f64, u64) {
        self.is_over.store(true, Ordering::Release);
        self.thread.join().unwrap()
    }
}
