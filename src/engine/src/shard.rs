//! The engine as a [`Shard`].

use std::{collections::VecDeque, future::ready, sync::Arc};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use prost::Message;
use rand::Rng;
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{ERR_COMPACTED, Result, Shard, WatchStream};
use tokio::time::{Instant, sleep_until};

use crate::{
    Engine, check,
    committer::Command,
    engine::RangeProgress,
    mvcc::KeyRange,
    shared::Shared,
    txn,
    watch::{Batch, Probe, Settings, Watcher},
};

/// etcd adds this to the request limit where it fragments watch responses (`grpcOverheadBytes`).
const GRPC_OVERHEAD_BYTES: usize = 512 * 1024;
/// The id of a watcher that was not created.
const INVALID_WATCH_ID: i64 = -1;

impl Shard for Engine {
    fn range(&self, request: pb::RangeRequest) -> BoxFuture<'_, Result<pb::RangeResponse>> {
        match self.begin_range(request) {
            Ok(RangeProgress::Done(response)) => ready(Ok(response)).boxed(),
            Ok(RangeProgress::More(store, scan)) => self.finish_large_range(store, scan).boxed(),
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    fn put(&self, request: pb::PutRequest) -> BoxFuture<'_, Result<pb::PutResponse>> {
        let checked =
            check::put(&request).and_then(|()| check::size(&request, self.config.max_request_bytes));
        match checked {
            Ok(()) => self.call(|reply| Command::Put(request, reply)).boxed(),
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    fn txn(&self, request: pb::TxnRequest) -> BoxFuture<'_, Result<pb::TxnResponse>> {
        if let Err(error) = check::txn(&request, self.config.max_txn_ops) {
            return ready(Err(error)).boxed();
        }
        if txn::is_read_only(&request) {
            return ready(self.read_only_txn_now(&request)).boxed();
        }
        match check::size(&request, self.config.max_request_bytes) {
            Ok(()) => self.call(|reply| Command::Txn(request, reply)).boxed(),
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    fn compact(&self, request: pb::CompactionRequest) -> BoxFuture<'_, Result<pb::CompactionResponse>> {
        let limit =
            if request.physical { self.config.maintenance_timeout } else { self.config.request_timeout };
        self.call_within(limit, move |reply| Command::Compact(request, reply)).boxed()
    }

    fn watch(&self, request: pb::WatchCreateRequest) -> BoxFuture<'_, Result<WatchStream>> {
        ready(Ok(self.watch_probed(request).0)).boxed()
    }

    fn lease_grant(&self, request: pb::LeaseGrantRequest) -> BoxFuture<'_, Result<pb::LeaseGrantResponse>> {
        self.call(move |reply| Command::Grant(request, reply)).boxed()
    }

    fn lease_revoke(
        &self,
        request: pb::LeaseRevokeRequest,
    ) -> BoxFuture<'_, Result<pb::LeaseRevokeResponse>> {
        self.call(move |reply| Command::Revoke(request.id, reply)).boxed()
    }

    fn lease_keep_alive(&self, id: i64) -> BoxFuture<'_, Result<pb::LeaseKeepAliveResponse>> {
        self.keep_alive(id).boxed()
    }

    fn lease_time_to_live(
        &self,
        request: pb::LeaseTimeToLiveRequest,
    ) -> BoxFuture<'_, Result<pb::LeaseTimeToLiveResponse>> {
        ready(Ok(self.time_to_live_now(&request))).boxed()
    }

    fn lease_leases(&self) -> BoxFuture<'_, Result<pb::LeaseLeasesResponse>> {
        ready(Ok(self.leases_now())).boxed()
    }

    fn status(&self) -> BoxFuture<'_, Result<pb::StatusResponse>> {
        ready(Ok(self.status_now())).boxed()
    }

    fn defragment(&self) -> BoxFuture<'_, Result<pb::DefragmentResponse>> {
        self.call_within(self.config.maintenance_timeout, Command::Defragment).boxed()
    }

    fn alarm(&self, request: pb::AlarmRequest) -> BoxFuture<'_, Result<pb::AlarmResponse>> {
        if request.action == pb::alarm_request::AlarmAction::Get as i32 {
            return ready(Ok(self.alarms_now(request.alarm))).boxed();
        }
        self.call(move |reply| Command::Alarm(request, reply)).boxed()
    }
}

impl Engine {
    /// Opens a watcher, with a probe if it was created.
    pub(crate) fn watch_probed(&self, request: pb::WatchCreateRequest) -> (WatchStream, Option<Probe>) {
        let shared = Arc::clone(&self.shared);
        match create(&shared, &request) {
            Err(reason) => {
                let refused = pb::WatchResponse {
                    header: Some(shared.current_header()),
                    watch_id: INVALID_WATCH_ID,
                    created: true,
                    canceled: true,
                    cancel_reason: reason.to_owned(),
                    ..Default::default()
                };
                (stream::iter([Ok(refused)]).boxed(), None)
            }
            Ok((watcher, revision)) => {
                let created = pb::WatchResponse {
                    header: Some(shared.header(revision)),
                    watch_id: request.watch_id,
                    created: true,
                    ..Default::default()
                };
                let probe = watcher.probe();
                let ready = VecDeque::from([created]);
                let interval = self.config.progress_interval;
                let streaming = Streaming {
                    shared,
                    watcher: Some(watcher),
                    watch_id: request.watch_id,
                    ready,
                    fragment_bytes: request
                        .fragment
                        .then_some(self.config.max_request_bytes + GRPC_OVERHEAD_BYTES),
                    // Jitter, so that watchers that began together do not all speak at once.
                    progress: request.progress_notify.then(|| {
                        let jitter = interval.mul_f64(rand::rng().random_range(0.0..0.1));
                        Progress { interval: interval + jitter, at: Instant::now() + interval + jitter }
                    }),
                };
                let responses = stream::unfold(streaming, |mut streaming| async move {
                    let response = streaming.next().await?;
                    Some((Ok(response), streaming))
                });
                (responses.boxed(), Some(probe))
            }
        }
    }
}

/// Registers the watcher that a request describes; returns it with the revision at that moment, or why not.
pub(crate) fn create(
    shared: &Arc<Shared>,
    request: &pb::WatchCreateRequest,
) -> std::result::Result<(Watcher, i64), &'static str> {
    if let Some(reason) = refusal(request) {
        return Err(reason);
    }
    let settings = Settings {
        no_put: request.filters.contains(&(pb::FilterType::Noput as i32)),
        no_delete: request.filters.contains(&(pb::FilterType::Nodelete as i32)),
        prev_kv: request.prev_kv,
    };
    Ok(Watcher::new(Arc::clone(shared), watched(request), request.start_revision, settings))
}

/// Why no watcher is made for a request, whatever the state of the store.
pub(crate) fn refusal(request: &pb::WatchCreateRequest) -> Option<&'static str> {
    if request.start_revision < 0 {
        Some(ERR_COMPACTED)
    } else if watched(request).is_empty() {
        Some("mvcc: watcher range is empty")
    } else {
        None
    }
}

/// The keys of a watch; an empty key is the smallest one.
fn watched(request: &pb::WatchCreateRequest) -> KeyRange {
    let key = if request.key.is_empty() { bytes::Bytes::from_static(&[0]) } else { request.key.clone() };
    KeyRange::new(key, request.range_end.clone())
}

/// A watcher as the stream of responses that one watch id gets.
struct Streaming {
    shared: Arc<Shared>,
    /// None once the watcher was cancelled.
    watcher: Option<Watcher>,
    watch_id: i64,
    /// Responses to give out before anything else.
    ready: VecDeque<pb::WatchResponse>,
    fragment_bytes: Option<usize>,
    progress: Option<Progress>,
}

struct Progress {
    interval: std::time::Duration,
    at: Instant,
}

impl Streaming {
    async fn next(&mut self) -> Option<pb::WatchResponse> {
        loop {
            if let Some(response) = self.ready.pop_front() {
                return Some(response);
            }
            let watcher = self.watcher.as_mut()?;
            let batch = match &self.progress {
                None => watcher.next().await?,
                Some(progress) => {
                    tokio::select! {
                        biased;
                        batch = watcher.next() => batch?,
                        () = sleep_until(progress.at) => {
                            self.ready.extend(self.progress_response());
                            self.restart_progress();
                            continue;
                        }
                    }
                }
            };
            match batch {
                Batch::Events { events, revision } => {
                    // Events say as much as a progress notification would.
                    self.restart_progress();
                    let response = pb::WatchResponse {
                        header: Some(self.shared.header(revision)),
                        watch_id: self.watch_id,
                        events,
                        ..Default::default()
                    };
                    match self.fragment_bytes {
                        Some(limit) => self.ready.extend(fragments(response, limit)),
                        None => return Some(response),
                    }
                }
                Batch::Unreadable { error } => {
                    self.watcher = None;
                    return Some(pb::WatchResponse {
                        header: Some(self.shared.current_header()),
                        watch_id: self.watch_id,
                        canceled: true,
                        cancel_reason: error.message,
                        ..Default::default()
                    });
                }
                Batch::Compacted { compact_revision } => {
                    self.watcher = None;
                    return Some(compacted(&self.shared, self.watch_id, compact_revision));
                }
            }
        }
    }

    fn progress_response(&self) -> Option<pb::WatchResponse> {
        let revision = self.watcher.as_ref()?.progress()?;
        let header = Some(self.shared.header(revision));
        Some(pb::WatchResponse { header, watch_id: self.watch_id, ..Default::default() })
    }

    fn restart_progress(&mut self) {
        if let Some(progress) = &mut self.progress {
            progress.at = Instant::now() + progress.interval;
        }
    }
}

/// The response that ends a watcher which compaction has overtaken. Its header has no revision, as in etcd.
pub(crate) fn compacted(shared: &Shared, watch_id: i64, compact_revision: i64) -> pb::WatchResponse {
    pb::WatchResponse {
        header: Some(shared.header(0)),
        watch_id,
        canceled: true,
        compact_revision,
        ..Default::default()
    }
}

/// Splits a response that is larger than `limit` into marked fragments, at least one event in each.
pub(crate) fn fragments(response: pb::WatchResponse, limit: usize) -> Vec<pb::WatchResponse> {
    if response.encoded_len() < limit || response.events.len() < 2 {
        return vec![response];
    }
    let pb::WatchResponse { header, watch_id, events, .. } = response;
    let empty = pb::WatchResponse { header, watch_id, fragment: true, ..Default::default() };
    let (mut parts, mut part, mut bytes) = (Vec::new(), empty.clone(), empty.encoded_len());
    for event in events {
        let len = event.encoded_len();
        let framed = len + prost::length_delimiter_len(len) + 1;
        if !part.events.is_empty() && bytes + framed >= limit {
            parts.push(std::mem::replace(&mut part, empty.clone()));
            bytes = empty.encoded_len();
        }
        bytes += framed;
        part.events.push(event);
    }
    part.fragment = false;
    parts.push(part);
    parts
}
