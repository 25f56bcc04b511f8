//! The etcd `Watch` service.
//!
//! Follows etcd's server (server/etcdserver/api/v3rpc/watch.go) in what a client can see: ids, the order of answers,
//! errors as cancelled watchers, fragments, progress notifications.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream, FuturesUnordered},
};
use prost::Message as _;
use rand::Rng;
use sharded_etcd_core::{keyspace::KeyRange, sabotage::Sabotage};
use sharded_etcd_etcd_api::{etcdserverpb::watch_server::Watch, messages as pb};
use sharded_etcd_line::{Line, LineError};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    context::{Context, PROGRESS_INTERVAL_MIN},
    hub::{Delivery, Hub, HubEvent, HubStopped, HubStream, WatchSpec, WatcherId},
};

/// Answers of one stream that are on their way into its connection.
const ANSWERS_MAX: usize = 4;

/// Requests of one stream that are looked at together.
const REQUESTS_MAX: usize = 64;

/// Progress requests of one stream that wait for the line's end at once; further ones share one more.
const PROGRESS_MAX: usize = 8;

/// Until the line's end is asked for again when it could not be read.
const PROGRESS_PAUSE: Duration = Duration::from_millis(100);

/// Id in answers for no watcher, or for all of the stream. (clientv3: `InvalidWatchID`.)
const NO_WATCHER: i64 = -1;

const ERR_EMPTY_RANGE: &str = "mvcc: watcher range is empty";
const ERR_DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";

/// The etcd `Watch` service, on the hub.
#[derive(Clone)]
pub struct WatchService {
    ctx: Arc<Context>,
    hub: Arc<Hub>,
}

impl WatchService {
    /// The service on this hub.
    pub fn new(ctx: Arc<Context>, hub: Arc<Hub>) -> Self {
        Self { ctx, hub }
    }
}

#[tonic::async_trait]
impl Watch for WatchService {
    type WatchStream = BoxStream<'static, Result<pb::WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let require_leader = request.metadata().get("hasleader").is_some_and(|v| v == "true");
        let hub = self.hub.open().await.map_err(stopped)?;
        let (answers, receiver) = mpsc::channel(ANSWERS_MAX);
        let (end, status) = oneshot::channel();
        let client = ClientStream {
            ctx: Arc::clone(&self.ctx),
            hub,
            answers,
            ids: HashMap::new(),
            watchers: HashMap::new(),
            next_id: 0,
            youngest: 0,
            require_leader,
        };
        self.ctx.tasks.spawn(client.run(request.into_inner(), end));
        // Never just an end: clientv3 takes that for the end of its watches, and an error for a reason to go on elsewhere.
        let status = async { Err(status.await.unwrap_or_else(|_| stopped(HubStopped))) };
        Ok(Response::new(ReceiverStream::new(receiver).map(Ok).chain(stream::once(status)).boxed()))
    }
}

/// One stream of a client.
struct ClientStream {
    ctx: Arc<Context>,
    hub: HubStream,
    answers: mpsc::Sender<pb::WatchResponse>,
    /// The client's ids.
    ids: HashMap<i64, WatcherId>,
    watchers: HashMap<WatcherId, Watcher>,
    next_id: i64,
    /// The last watcher that was created.
    youngest: WatcherId,
    /// The client would rather hear that there is no leader than wait (clientv3: `WithRequireLeader`).
    require_leader: bool,
}

struct Watcher {
    /// The client's id for it.
    id: i64,
    prev_kv: bool,
    fragment: bool,
    progress_notify: bool,
    /// Nothing was sent to it since the last time that notifications were due.
    idle: bool,
}

/// Why a stream ends.
enum End {
    /// The client is gone.
    Gone,
    /// The client is told this.
    Told(Status),
}

impl From<HubStopped> for End {
    fn from(error: HubStopped) -> Self {
        Self::Told(stopped(error))
    }
}

/// Reads of the line's end for progress requests.
#[derive(Default)]
struct LineEnds {
    under_way: FuturesUnordered<BoxFuture<'static, Result<i64, LineError>>>,
    /// More were asked for than may be under way: one that begins later will do for all of these.
    again: bool,
}

impl LineEnds {
    /// Reads the line's end as it is now or later.
    fn ask(&mut self, line: &Arc<Line>) {
        if self.under_way.len() < PROGRESS_MAX {
            self.under_way.push(line_end(Arc::clone(line)).boxed());
        } else {
            self.again = true;
        }
    }

    /// Reads the line's end after a pause, as it could not be read now.
    fn ask_later(&mut self, line: &Arc<Line>) {
        let line = Arc::clone(line);
        let later = async move {
            tokio::time::sleep(PROGRESS_PAUSE).await;
            line_end(line).await
        };
        self.under_way.push(later.boxed());
    }

    /// The next answer; never ready without one under way.
    async fn next(&mut self, line: &Arc<Line>) -> Result<i64, LineError> {
        let Some(end) = self.under_way.next().await else { return std::future::pending().await };
        if std::mem::take(&mut self.again) {
            self.ask(line);
        }
        end
    }
}

impl ClientStream {
    async fn run(mut self, requests: Streaming<pb::WatchRequest>, told: oneshot::Sender<Status>) {
        let shutdown = self.ctx.shutdown.clone();
        let gone = self.answers.clone();
        let end = tokio::select! {
            biased;
            end = self.serve(requests) => end.unwrap_or_else(|end| end),
            () = gone.closed() => End::Gone,
            () = shutdown.cancelled() => End::Told(stopped(HubStopped)),
        };
        self.hub.close().await;
        if let End::Told(status) = end {
            // After the answers that are on their way. If the client is gone nobody hears it.
            let _ = told.send(status);
        }
    }

    async fn serve(&mut self, mut requests: Streaming<pb::WatchRequest>) -> Result<End, End> {
        let mut open = true;
        let mut progress = LineEnds::default();
        let mut notify = tokio::time::interval(self.notify_interval());
        notify.reset();
        loop {
            tokio::select! {
                biased;
                // What is rare comes first; a client that never stops asking keeps only itself from being served.
                _ = notify.tick() => self.notify().await?,
                revision = progress.next(&self.ctx.line) => match revision {
                    Ok(revision) => self.hub.progress(revision).await?,
                    Err(error) => {
                        self.no_line(&error)?;
                        // Whoever asked waits for what was acknowledged before: not less, but later.
                        progress.ask_later(&self.ctx.line);
                    }
                },
                request = requests.message(), if open => match request {
                    Ok(Some(first)) => {
                        let mut batch = vec![first];
                        while batch.len() < REQUESTS_MAX
                            && let Some(Ok(Some(next))) = requests.message().now_or_never()
                        {
                            batch.push(next);
                        }
                        self.take(batch, &mut progress).await?;
                    }
                    // As in etcd, a client that sends no more requests is still sent events.
                    Ok(None) => open = false,
                    Err(status) => return Ok(End::Told(status)),
                },
                delivery = self.hub.next() => {
                    let delivery = delivery?;
                    self.deliver(delivery).await?;
                }
            }
        }
    }

    /// etcd's interval with its jitter of a tenth, so that streams that began together are not notified together.
    fn notify_interval(&self) -> Duration {
        let interval = self.ctx.limits.progress_interval.max(PROGRESS_INTERVAL_MIN);
        interval + interval.mul_f64(sharded_etcd_line::random::rng().random_range(0.0..0.1))
    }

    async fn take(&mut self, batch: Vec<pb::WatchRequest>, progress: &mut LineEnds) -> Result<(), End> {
        let mut fresh = false;
        for request in batch {
            match request.request_union {
                Some(pb::RequestUnion::CreateRequest(create)) => {
                    if !fresh {
                        // One read of the log's end for all of the batch: what was acknowledged before is in the
                        // answer's revision, and "from now" means after it.
                        self.freshen().await?;
                        fresh = true;
                    }
                    self.create(create).await?;
                }
                Some(pb::RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id).await?,
                Some(pb::RequestUnion::ProgressRequest(_)) => progress.ask(&self.ctx.line),
                // As etcd: ignored, as it would have to be from a newer client.
                None => {}
            }
        }
        Ok(())
    }

    async fn freshen(&mut self) -> Result<(), End> {
        match self.ctx.line.refresh().await {
            Ok(_) => Ok(()),
            Err(error) => self.no_line(&error),
        }
    }

    /// Without meta the line stands still. A watcher may still be opened, as on an etcd member without a leader.
    fn no_line(&self, error: &LineError) -> Result<(), End> {
        if self.require_leader {
            return Err(End::Told(Status::unavailable("etcdserver: no leader")));
        }
        tracing::debug!(%error, "watch request answered without the line's end");
        Ok(())
    }

    async fn create(&mut self, create: pb::WatchCreateRequest) -> Result<(), End> {
        let refused = match check(&create) {
            Ok(()) if create.watch_id != 0 && self.ids.contains_key(&create.watch_id) => {
                Some(ERR_DUPLICATE_ID)
            }
            Ok(()) => None,
            Err(reason) => Some(reason),
        };
        if let Some(reason) = refused {
            let answer = pb::WatchResponse {
                watch_id: NO_WATCHER,
                created: true,
                canceled: true,
                cancel_reason: reason.to_owned(),
                ..self.answer(self.ctx.line.cut().revision)
            };
            return self.send(answer).await;
        }
        let id = if create.watch_id != 0 { create.watch_id } else { self.auto_id() };
        let (watcher, revision) = self.hub.watch(spec_of(&create)).await?;
        self.youngest = watcher;
        self.ids.insert(id, watcher);
        self.watchers.insert(
            watcher,
            Watcher {
                id,
                prev_kv: create.prev_kv,
                fragment: create.fragment,
                progress_notify: create.progress_notify,
                idle: true,
            },
        );
        self.send(pb::WatchResponse { watch_id: id, created: true, ..self.answer(revision) }).await
    }

    fn auto_id(&mut self) -> i64 {
        while self.ids.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    async fn cancel(&mut self, id: i64) -> Result<(), End> {
        // As etcd: an unknown id gets no answer.
        let Some(watcher) = self.ids.remove(&id) else { return Ok(()) };
        self.watchers.remove(&watcher);
        self.hub.cancel(watcher).await?;
        self.send(pb::WatchResponse {
            watch_id: id,
            canceled: true,
            ..self.answer(self.ctx.line.cut().revision)
        })
        .await
    }

    async fn deliver(&mut self, delivery: Delivery) -> Result<(), End> {
        let mut room = 0;
        match delivery {
            Delivery::Events { watcher, header, events, no_prev_upto, bytes, .. } => {
                room = bytes;
                // Cancelled meanwhile: what was under way is dropped.
                if let Some(to) = self.watchers.get_mut(&watcher) {
                    to.idle = false;
                    let (id, fragment) = (to.id, to.fragment);
                    let with_prev = |e: &HubEvent| to.prev_kv && e.revision() > no_prev_upto;
                    let answer = pb::WatchResponse {
                        watch_id: id,
                        events: events.iter().map(|e| e.message(with_prev(e))).collect(),
                        ..self.answer(header)
                    };
                    self.ctx.metrics.load.sent(events.iter().map(|e| e.key()));
                    drop(events);
                    let size_max = self.ctx.limits.fragment_bytes;
                    if fragment {
                        for part in fragments(answer, size_max) {
                            self.send(part).await?;
                        }
                    } else {
                        self.send(answer).await?;
                    }
                }
            }
            Delivery::ProgressOfAll { youngest, revision } => {
                if youngest == self.youngest {
                    self.send(pb::WatchResponse { watch_id: NO_WATCHER, ..self.answer(revision) }).await?;
                } else {
                    // A client takes it for all watchers that it knows, and one has been created since.
                    self.hub.progress(revision).await?;
                }
            }
            Delivery::Progress { watcher, revision } => {
                if let Some(to) = self.watchers.get(&watcher) {
                    self.send(pb::WatchResponse { watch_id: to.id, ..self.answer(revision) }).await?;
                }
            }
            Delivery::Ended { watcher, compact_revision, reason } => {
                if let Some(to) = self.watchers.remove(&watcher) {
                    self.ids.remove(&to.id);
                    let answer = pb::WatchResponse {
                        watch_id: to.id,
                        canceled: true,
                        compact_revision,
                        cancel_reason: reason,
                        ..self.answer(self.ctx.line.cut().revision)
                    };
                    self.send(answer).await?;
                }
            }
        }
        Ok(self.hub.sent(room).await?)
    }

    /// Progress for watchers that asked for it and were sent nothing since the last time.
    async fn notify(&mut self) -> Result<(), End> {
        let mut due = BTreeSet::new();
        for (&watcher, to) in self.watchers.iter_mut().filter(|(_, to)| to.progress_notify) {
            if std::mem::replace(&mut to.idle, true) {
                due.insert(watcher);
            }
        }
        for watcher in due {
            self.hub.notify(watcher).await?;
        }
        Ok(())
    }

    fn answer(&self, revision: i64) -> pb::WatchResponse {
        pb::WatchResponse { header: Some(self.ctx.header(revision)), ..Default::default() }
    }

    async fn send(&self, answer: pb::WatchResponse) -> Result<(), End> {
        self.answers.send(answer).await.map_err(|_| End::Gone)
    }
}

async fn line_end(line: Arc<Line>) -> Result<i64, LineError> {
    line.refresh().await.map(|cut| cut.revision)
}

fn stopped(_: HubStopped) -> Status {
    // etcd's ErrGRPCStopped; clientv3 goes to another endpoint.
    Status::unavailable("etcdserver: server stopped")
}

/// Why a watcher cannot be created, in etcd's words.
fn check(create: &pb::WatchCreateRequest) -> Result<(), &'static str> {
    if create.start_revision < 0 {
        return Err(sharded_etcd_shard::ERR_COMPACTED);
    }
    let end = create.range_end.as_ref();
    if !end.is_empty() && end != [0] && key_of(create).as_ref() >= end {
        return Err(ERR_EMPTY_RANGE);
    }
    Ok(())
}

/// The key; an empty one means the smallest.
fn key_of(create: &pb::WatchCreateRequest) -> Bytes {
    if create.key.is_empty() { Bytes::from_static(&[0]) } else { create.key.clone() }
}

fn spec_of(create: &pb::WatchCreateRequest) -> WatchSpec {
    let filters = |filter: pb::FilterType| create.filters.contains(&i32::from(filter));
    WatchSpec {
        range: KeyRange::of_request(&key_of(create), &create.range_end),
        start: create.start_revision,
        prev_kv: create.prev_kv,
        no_put: filters(pb::FilterType::Noput),
        no_delete: filters(pb::FilterType::Nodelete),
    }
}

/// Parts an answer so that each part is below `size_max` bytes, or has one event; all but the last are marked.
fn fragments(answer: pb::WatchResponse, size_max: usize) -> Vec<pb::WatchResponse> {
    if answer.events.len() < 2 || answer.encoded_len() < size_max {
        return vec![answer];
    }
    let head = pb::WatchResponse { events: Vec::new(), ..answer.clone() };
    let size_head = head.encoded_len() + 2; // the mark
    let mut parts = Vec::new();
    let mut size = 0;
    for event in answer.events {
        // Tag and length before the event itself: at most 1 + 5 bytes.
        let more = event.encoded_len() + 6;
        match parts.last_mut() {
            Some(pb::WatchResponse { events, .. }) if size + more < size_max => {
                events.push(event);
                size += more;
            }
            _ => {
                parts.push(pb::WatchResponse { events: vec![event], fragment: true, ..head.clone() });
                size = size_head + more;
            }
        }
    }
    if let Some(last) = parts.last_mut() {
        last.fragment = false;
    }
    if Sabotage::LoseFragment.is_on() {
        parts.remove(0);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(key: &'static [u8], end: &'static [u8]) -> pb::WatchCreateRequest {
        pb::WatchCreateRequest {
            key: Bytes::from_static(key),
            range_end: Bytes::from_static(end),
            ..Default::default()
        }
    }

    #[test]
    fn key_forms_are_those_of_etcd() {
        assert_eq!(spec_of(&create(b"", b"")).range, KeyRange::key(b"\0"));
        assert!(spec_of(&create(b"", b"\0")).range.contains(b"a"));
        assert!(spec_of(&create(b"a", b"\0")).range.contains(b"z"));
        assert!(check(&create(b"a", b"\0")).is_ok());
        assert_eq!(check(&create(b"b", b"b")), Err(ERR_EMPTY_RANGE));
        assert_eq!(check(&create(b"b", b"a")), Err(ERR_EMPTY_RANGE));
        let negative = pb::WatchCreateRequest { start_revision: -1, ..create(b"a", b"") };
        assert_eq!(check(&negative), Err("etcdserver: mvcc: required revision has been compacted"));
        // The hidden space may be watched, and nothing is there.
        let hidden = create(b"\xff\xff\xff\xffF/", b"\0");
        assert!(check(&hidden).is_ok() && spec_of(&hidden).range.is_empty());
    }

    #[test]
    fn fragments_are_whole_events_and_marked_but_the_last() {
        let event = |n: usize| {
            let kv = pb::KeyValue { key: "k".into(), value: vec![0; n].into(), ..Default::default() };
            pb::Event { kv: Some(kv), ..Default::default() }
        };
        let sizes = [10, 400, 400, 400, 2_000, 10, 10];
        let answer = pb::WatchResponse {
            header: Some(pb::ResponseHeader { revision: 7, ..Default::default() }),
            watch_id: 3,
            events: sizes.iter().map(|&n| event(n)).collect(),
            ..Default::default()
        };
        let parts = fragments(answer.clone(), 1_000);
        let marks: Vec<_> = parts.iter().map(|p| (p.events.len(), p.fragment)).collect();
        assert_eq!(marks, [(3, true), (1, true), (1, true), (2, false)]);
        assert!(parts.iter().all(|p| p.watch_id == 3 && (p.events.len() == 1 || p.encoded_len() < 1_000)));
        let together: Vec<_> = parts.into_iter().flat_map(|p| p.events).collect();
        assert_eq!(together, answer.events);
        assert_eq!(fragments(answer.clone(), 1 << 20), [answer]);
    }
}
