//! A watch client over gRPC, and a shard that can be cut off.
#![allow(clippy::unwrap_used, dead_code, missing_docs)]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use sharded_etcd_etcd_api::{
    etcdserverpb::{watch_client::WatchClient, watch_server::WatchServer},
    messages as pb,
};
use sharded_etcd_proxy::{
    context::Context,
    hub::{Hub, HubOptions},
    services::watch::WatchService,
};
use sharded_etcd_shard::{Result, Shard, ShardError, WatchStream};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    transport::{Channel, Server, server::TcpIncoming},
};

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Serves the watch service of a proxy.
pub struct Served {
    pub ctx: Arc<Context>,
    pub hub: Arc<Hub>,
    endpoint: String,
}

impl Served {
    pub async fn start(ctx: Arc<Context>, options: HubOptions) -> Self {
        let hub = Hub::start_with(Arc::clone(&ctx), options);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let service = WatchServer::new(WatchService::new(Arc::clone(&ctx), Arc::clone(&hub)));
        let serving = Server::builder().add_service(service).serve_with_incoming_shutdown(
            TcpIncoming::from(listener),
            ctx.shutdown.clone().cancelled_owned(),
        );
        ctx.tasks.spawn(async move { serving.await.unwrap() });
        Self { ctx, hub, endpoint }
    }

    pub async fn client(&self) -> Client {
        let channel = Channel::from_shared(self.endpoint.clone()).unwrap().connect().await.unwrap();
        let (requests, receiver) = mpsc::channel(16);
        let mut client = WatchClient::new(channel).max_decoding_message_size(64 << 20);
        let answers = client.watch(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Client { requests, answers }
    }

    /// Stops it; fails if its tasks do not end.
    pub async fn stop(self) {
        self.ctx.shutdown.cancel();
        self.ctx.tasks.close();
        tokio::time::timeout(PATIENCE, self.ctx.tasks.wait()).await.expect("all tasks of the proxy end");
        self.ctx.line.close().await;
    }
}

/// One watch stream of a client.
pub struct Client {
    requests: mpsc::Sender<pb::WatchRequest>,
    answers: Streaming<pb::WatchResponse>,
}

pub fn create(key: &str, end: &[u8], start_revision: i64) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest {
        key: key.to_owned().into(),
        range_end: end.to_vec().into(),
        start_revision,
        ..Default::default()
    }
}

/// Everything, with previous key-value pairs.
pub fn everything(start_revision: i64) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { prev_kv: true, ..create("\0", b"\0", start_revision) }
}

impl Client {
    pub async fn send(&self, request: pb::RequestUnion) {
        self.requests.send(pb::WatchRequest { request_union: Some(request) }).await.unwrap();
    }

    pub async fn next(&mut self) -> pb::WatchResponse {
        tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("an answer").unwrap().unwrap()
    }

    /// How the stream ends.
    pub async fn end(&mut self) -> tonic::Status {
        loop {
            match tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("an end") {
                Ok(Some(_)) => {}
                Ok(None) => return tonic::Status::ok("ended"),
                Err(status) => return status,
            }
        }
    }

    /// Creates a watcher; its answer.
    pub async fn create(&mut self, request: pb::WatchCreateRequest) -> pb::WatchResponse {
        self.send(pb::RequestUnion::CreateRequest(request)).await;
        let answer = self.next().await;
        assert!(answer.created, "{answer:?}");
        answer
    }

    pub async fn cancel(&self, watch_id: i64) {
        self.send(pb::RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id })).await;
    }

    pub async fn ask_progress(&self) {
        self.send(pb::RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
    }

    /// The next events of a watcher that is alone on the stream, at least so many.
    pub async fn events(&mut self, at_least: usize) -> Vec<pb::Event> {
        let mut events = Vec::new();
        while events.len() < at_least {
            let answer = self.next().await;
            assert!(!answer.canceled && !answer.created, "{answer:?}");
            let last = answer.events.last().and_then(|e| e.kv.as_ref()).map_or(0, |kv| kv.mod_revision);
            assert!(answer.header.unwrap().revision >= last);
            events.extend(answer.events);
        }
        events
    }
}

/// `+key=value@mod(create,version)` or `-key@mod`, with `<` and the same of the previous pair.
pub fn words(event: &pb::Event) -> String {
    let kv = event.kv.as_ref().unwrap();
    let key = String::from_utf8_lossy(&kv.key);
    let full = |kv: &pb::KeyValue| {
        let value = String::from_utf8_lossy(&kv.value);
        format!("{value}@{}({},{})", kv.mod_revision, kv.create_revision, kv.version)
    };
    let now = match event.r#type() {
        pb::EventType::Put => format!("+{key}={}", full(kv)),
        pb::EventType::Delete => format!("-{key}@{}", kv.mod_revision),
    };
    event.prev_kv.as_ref().map_or(now.clone(), |prev| format!("{now}<{}", full(prev)))
}

pub fn all_words(events: &[pb::Event]) -> Vec<String> {
    events.iter().map(words).collect()
}

/// A shard that can be cut off: then nothing is answered, and watches break. Or one whose transactions are answered late.
pub struct Gate {
    inner: Arc<dyn Shard>,
    open: watch::Sender<bool>,
    late: watch::Sender<bool>,
    watched: Mutex<Vec<pb::WatchCreateRequest>>,
}

impl Gate {
    pub fn new(inner: Arc<dyn Shard>) -> Arc<Self> {
        let (open, late) = (watch::Sender::new(true), watch::Sender::new(false));
        Arc::new(Self { inner, open, late, watched: Mutex::default() })
    }

    pub fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }

    /// Transactions are run, and not answered until this is taken back.
    pub fn set_late(&self, late: bool) {
        self.late.send_replace(late);
    }

    /// Every watch that was asked for.
    pub fn watched(&self) -> Vec<pb::WatchCreateRequest> {
        self.watched.lock().unwrap().clone()
    }

    fn check(&self) -> Result<()> {
        if *self.open.borrow() { Ok(()) } else { Err(ShardError::not_sent("the gate is closed")) }
    }
}

macro_rules! gated {
    ($($method:ident($($arg:ident: $request:ty)?) -> $response:ty;)*) => {$(
        fn $method(&self, $($arg: $request)?) -> BoxFuture<'_, Result<$response>> {
            async move {
                self.check()?;
                self.inner.$method($($arg)?).await
            }
            .boxed()
        }
    )*};
}

impl Shard for Gate {
    gated! {
        range(request: pb::RangeRequest) -> pb::RangeResponse;
        put(request: pb::PutRequest) -> pb::PutResponse;
        compact(request: pb::CompactionRequest) -> pb::CompactionResponse;
        lease_grant(request: pb::LeaseGrantRequest) -> pb::LeaseGrantResponse;
        lease_revoke(request: pb::LeaseRevokeRequest) -> pb::LeaseRevokeResponse;
        lease_keep_alive(id: i64) -> pb::LeaseKeepAliveResponse;
        lease_time_to_live(request: pb::LeaseTimeToLiveRequest) -> pb::LeaseTimeToLiveResponse;
        lease_leases() -> pb::LeaseLeasesResponse;
        status() -> pb::StatusResponse;
        defragment() -> pb::DefragmentResponse;
        alarm(request: pb::AlarmRequest) -> pb::AlarmResponse;
    }

    fn txn(&self, request: pb::TxnRequest) -> BoxFuture<'_, Result<pb::TxnResponse>> {
        async move {
            self.check()?;
            let answer = self.inner.txn(request).await;
            // The sender lives as long as this gate.
            let _ = self.late.subscribe().wait_for(|late| !late).await;
            answer
        }
        .boxed()
    }

    fn watch(&self, request: pb::WatchCreateRequest) -> BoxFuture<'_, Result<WatchStream>> {
        async move {
            self.check()?;
            self.watched.lock().unwrap().push(request.clone());
            let events = self.inner.watch(request).await?;
            let mut open = self.open.subscribe();
            let closed = async move { drop(open.wait_for(|open| !open).await) };
            let broken = stream::iter([Err(ShardError::not_sent("the gate was closed"))]);
            Ok(events.take_until(closed.boxed()).chain(broken).boxed())
        }
        .boxed()
    }
}
