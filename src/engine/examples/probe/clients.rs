//! Connections, load from many tasks, and what it cost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::join_all;
use sharded_etcd_etcd_api::etcdserverpb::kv_client::KvClient;
use tonic::transport::{Channel, Endpoint};

/// Connections, as etcd's guide to its benchmark tool has them for a hundred clients.
const CONNECTIONS: usize = 10;

pub struct Clients {
    channels: Vec<Channel>,
    pid: String,
}

impl Clients {
    pub async fn connect(endpoint: &str, pid: &str) -> Self {
        Self::try_connect(endpoint, pid).await.unwrap_or_else(|| panic!("nothing serves at {endpoint}"))
    }

    pub async fn try_connect(endpoint: &str, pid: &str) -> Option<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{endpoint}")).unwrap().tcp_nodelay(true);
        let mut channels = Vec::new();
        for _ in 0..CONNECTIONS {
            channels.push(endpoint.connect().await.ok()?);
        }
        Some(Self { channels, pid: pid.to_owned() })
    }

    pub fn channel(&self, number: u64) -> Channel {
        self.channels[number as usize % self.channels.len()].clone()
    }

    pub fn kv(&self, number: u64) -> KvClient<Channel> {
        KvClient::new(self.channel(number)).max_decoding_message_size(usize::MAX)
    }

    /// User and system time of the server so far; the system counts in ticks of 10 ms.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let ticks: u64 =
            fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
        Duration::from_millis(10 * ticks)
    }
}

/// A key as Kubernetes has them.
pub fn key(number: u64) -> Vec<u8> {
    format!("/registry/pods/default/pod-{number:012}").into_bytes()
}

/// Bytes that do not compress, all values the same.
pub fn value(bytes: u64) -> Bytes {
    let mut state = 1u64;
    let step = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..bytes).map(step).collect()
}

pub struct Measured {
    pub elapsed: Duration,
    pub cpu: Duration,
    pub latencies: Vec<Duration>,
    /// Operations in one latency.
    pub weight: u64,
}

impl Measured {
    pub fn print(mut self, name: &str) {
        self.latencies.sort_unstable();
        let count = self.latencies.len();
        let at =
            |per_mille: usize| self.latencies[(count * per_mille / 1000).min(count - 1)].as_secs_f64() * 1e3;
        let operations = (count as u64 * self.weight) as f64;
        println!(
            "{name}\t{:.0}\t{:.2}\t{:.2}\t{:.1}\t{:.1}",
            operations / self.elapsed.as_secs_f64(),
            at(500),
            at(990),
            at(1000),
            self.cpu.as_secs_f64() * 1e6 / operations,
        );
    }
}

/// Runs `total` operations from `tasks` tasks; each gets its task's number and its own.
pub async fn measure<F: Future<Output = ()>>(
    clients: &Clients,
    total: u64,
    tasks: u64,
    operation: impl Fn(u64, u64) -> F,
) -> Measured {
    let next = Arc::new(AtomicU64::new(0));
    let (begin, cpu) = (Instant::now(), clients.cpu());
    let work = (0..tasks).map(|task| {
        let (next, operation) = (Arc::clone(&next), &operation);
        async move {
            let mut latencies = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= total {
                    return latencies;
                }
                let begin = Instant::now();
                operation(task, number).await;
                latencies.push(begin.elapsed());
            }
        }
    });
    let latencies = join_all(work).await.into_iter().flatten().collect();
    Measured { elapsed: begin.elapsed(), cpu: clients.cpu() - cpu, latencies, weight: 1 }
}
