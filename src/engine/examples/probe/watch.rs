//! How long it takes until every watcher has an event.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sharded_etcd_etcd_api::{etcdserverpb::watch_client::WatchClient, messages as pb};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use crate::clients::{Clients, Measured, value};

/// Watchers on one stream, as etcd's benchmark tool has them.
const PER_STREAM: u64 = 100;
const KEY: &str = "/watched";
const EVENT_MAX: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Seen {
    created: AtomicU64,
    events: AtomicU64,
    changed: Notify,
}

impl Seen {
    async fn wait(&self, count: &AtomicU64, wanted: u64) {
        let all = async {
            while count.load(Ordering::Acquire) < wanted {
                self.changed.notified().await;
            }
        };
        tokio::time::timeout(EVENT_MAX, all).await.expect("an event is missing");
    }
}

pub async fn run(clients: &Clients, watchers: u64, puts: u64) {
    let seen = Arc::new(Seen::default());
    let streams = watchers.div_ceil(PER_STREAM);
    let mut open = Vec::new();
    for stream in 0..streams {
        let mine = PER_STREAM.min(watchers - stream * PER_STREAM);
        let (requests, received) = mpsc::channel(PER_STREAM as usize);
        for _ in 0..mine {
            let create = pb::WatchCreateRequest { key: KEY.into(), ..Default::default() };
            let union = pb::RequestUnion::CreateRequest(create);
            requests.send(pb::WatchRequest { request_union: Some(union) }).await.unwrap();
        }
        let mut client = WatchClient::new(clients.channel(stream));
        let mut responses = client.watch(ReceiverStream::new(received)).await.unwrap().into_inner();
        let seen = Arc::clone(&seen);
        open.push((
            requests,
            tokio::spawn(async move {
                while let Ok(Some(response)) = responses.message().await {
                    let count = if response.created { &seen.created } else { &seen.events };
                    count.fetch_add(response.events.len().max(1) as u64, Ordering::AcqRel);
                    seen.changed.notify_one();
                }
            }),
        ));
    }
    seen.wait(&seen.created, watchers).await;

    let mut kv = clients.kv(0);
    let value = value(256);
    let mut latencies = Vec::new();
    let (begin, cpu) = (Instant::now(), clients.cpu());
    for put in 1..=puts {
        let begin = Instant::now();
        let request = pb::PutRequest { key: KEY.into(), value: value.clone(), ..Default::default() };
        kv.put(request).await.unwrap();
        seen.wait(&seen.events, put * watchers).await;
        latencies.push(begin.elapsed());
    }
    let (elapsed, cpu) = (begin.elapsed(), clients.cpu() - cpu);
    Measured { elapsed, cpu, latencies, weight: watchers }
        .print(&format!("events to {watchers} watchers, ms until the last has it"));
}
