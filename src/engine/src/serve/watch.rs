//! `etcdserverpb.Watch`: many watchers on one gRPC stream.
//!
//! One task owns a stream and all its watchers, so the order of what it sends is the order in which it decides: a
//! progress answer comes after all events that it covers. A server that stops ends it with an error, never just so:
//! clientv3 takes that for the end of its watches, and an error for a reason to begin them anew.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};

use futures::{
    FutureExt, StreamExt,
    future::ready,
    stream::{self, AbortHandle, BoxStream, SelectAll},
};
use sharded_etcd_etcd_api::{etcdserverpb::watch_server::Watch, messages as pb};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Service, status};
use crate::{
    Engine, errors,
    metrics::{InFlight, Method},
    shard::refusal,
    shared::Shared,
    watch::Probe,
};

/// Responses that wait for the client at most; the watchers behind them wait in the history.
const RESPONSES_MAX: usize = 16;
/// How often a progress request looks whether all watchers are in sync before it is dropped, as etcd drops it.
const PROGRESS_ROUNDS_MAX: usize = 100;
/// The id of answers that concern no watcher, or all of them.
const NO_WATCHER: i64 = -1;

#[tonic::async_trait]
impl Watch for Service {
    type WatchStream = BoxStream<'static, Result<pb::WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (responses, receiver) = mpsc::channel(RESPONSES_MAX);
        let session = Session {
            engine: Arc::clone(&self.engine),
            responses,
            watchers: HashMap::new(),
            streams: SelectAll::new(),
            next_id: 0,
        };
        let stream = OpenStream::new(&self.engine.shared);
        let shutdown = self.shutdown.clone();
        let requests = request.into_inner();
        let (tell, told) = oneshot::channel();
        tokio::spawn(async move {
            let _stream = stream;
            tokio::select! {
                () = session.run(requests) => {}
                () = shutdown.cancelled() => {
                    // If the client is gone nobody hears it.
                    let _ = tell.send(status(errors::stopped()));
                }
            }
        });
        let told = stream::once(told).filter_map(|told| ready(told.ok().map(Err)));
        Ok(Response::new(ReceiverStream::new(receiver).chain(told).boxed()))
    }
}

/// A stream while it is open.
struct OpenStream {
    shared: Arc<Shared>,
    _call: InFlight,
}

impl OpenStream {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.metrics.watch_streams.fetch_add(1, Ordering::Relaxed);
        Self { shared: Arc::clone(shared), _call: InFlight::new(shared, Method::Watch) }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.shared.metrics.watch_streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The client is gone.
struct Gone;

/// One gRPC stream.
struct Session {
    engine: Arc<Engine>,
    responses: mpsc::Sender<Result<pb::WatchResponse, Status>>,
    watchers: HashMap<i64, Running>,
    streams: SelectAll<BoxStream<'static, sharded_etcd_shard::Result<pb::WatchResponse>>>,
    next_id: i64,
}

struct Running {
    abort: AbortHandle,
    probe: Probe,
}

impl Session {
    async fn run(mut self, mut requests: Streaming<pb::WatchRequest>) {
        // A client that has said all it wants may still listen.
        let mut is_open = true;
        loop {
            let result = tokio::select! {
                request = requests.message(), if is_open => match request {
                    Ok(Some(request)) => self.handle(request).await,
                    Ok(None) => {
                        is_open = false;
                        Ok(())
                    }
                    Err(_) => return,
                },
                Some(response) = self.streams.next(), if !self.streams.is_empty() => self.forward(response).await,
                () = self.responses.closed() => return,
                else => return,
            };
            if result.is_err() || (!is_open && self.watchers.is_empty()) {
                return;
            }
        }
    }

    async fn send(&mut self, response: pb::WatchResponse) -> Result<(), Gone> {
        self.engine.shared.metrics.watch_events.add(response.events.len() as u64);
        self.responses.send(Ok(response)).await.map_err(|_| Gone)
    }

    async fn forward(&mut self, response: sharded_etcd_shard::Result<pb::WatchResponse>) -> Result<(), Gone> {
        match response {
            Ok(response) => {
                if response.canceled {
                    self.watchers.remove(&response.watch_id);
                }
                self.send(response).await
            }
            Err(error) => self.responses.send(Err(status(error))).await.map_err(|_| Gone),
        }
    }

    async fn handle(&mut self, request: pb::WatchRequest) -> Result<(), Gone> {
        match request.request_union {
            Some(pb::RequestUnion::CreateRequest(create)) => self.create(create).await,
            Some(pb::RequestUnion::CancelRequest(cancel)) => {
                let Some(running) = self.watchers.remove(&cancel.watch_id) else { return Ok(()) };
                running.abort.abort();
                self.send(pb::WatchResponse {
                    header: Some(self.engine.shared.current_header()),
                    watch_id: cancel.watch_id,
                    canceled: true,
                    ..Default::default()
                })
                .await
            }
            Some(pb::RequestUnion::ProgressRequest(_)) => self.progress().await,
            None => Ok(()),
        }
    }

    async fn create(&mut self, mut create: pb::WatchCreateRequest) -> Result<(), Gone> {
        let chosen = create.watch_id != 0;
        // etcd looks at the rest of the request before the id, and takes a free id only for a watcher that it makes.
        if chosen && self.watchers.contains_key(&create.watch_id) && refusal(&create).is_none() {
            return self
                .send(pb::WatchResponse {
                    header: Some(self.engine.shared.current_header()),
                    watch_id: NO_WATCHER,
                    created: true,
                    canceled: true,
                    cancel_reason: "mvcc: duplicate watch ID provided on the WatchStream".to_owned(),
                    ..Default::default()
                })
                .await;
        }
        if !chosen {
            while self.watchers.contains_key(&self.next_id) {
                self.next_id += 1;
            }
            create.watch_id = self.next_id;
        }
        let watch_id = create.watch_id;
        let (responses, probe) = self.engine.watch_probed(create);
        let (mut responses, abort) = stream::abortable(responses);
        // The first response says that the watcher is there; it goes out before anything else about it.
        if let Some(first) = responses.next().await {
            self.forward(first).await?;
        }
        if let Some(probe) = probe {
            self.next_id += i64::from(!chosen);
            self.watchers.insert(watch_id, Running { abort, probe });
            self.streams.push(responses.boxed());
        }
        Ok(())
    }

    /// Answers how far all watchers of the stream are, once they are all in sync.
    async fn progress(&mut self) -> Result<(), Gone> {
        for _ in 0..PROGRESS_ROUNDS_MAX {
            // First everything that is ready, so that the answer is behind the events it covers.
            while let Some(Some(response)) = self.streams.next().now_or_never() {
                self.forward(response).await?;
            }
            let probes = self.watchers.values().map(|running| &running.probe);
            if let Some(revision) = self.engine.shared.watchers.seen_by(probes) {
                let header = Some(self.engine.shared.header(revision));
                return self
                    .send(pb::WatchResponse { header, watch_id: NO_WATCHER, ..Default::default() })
                    .await;
            }
        }
        Ok(())
    }
}
