//! One watch stream of a client.

use std::time::Duration;

use sharded_etcd_etcd_api::messages as pb;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use crate::check::{Check, Ctx, Stop, needed, revision};

/// How long a case waits for an answer that must come.
const PATIENCE: Duration = Duration::from_secs(20);
/// Requests that wait to be sent at most.
const REQUESTS_MAX: usize = 64;

/// A watch stream; its answers are taken in order.
#[derive(Debug)]
pub struct Watching {
    ctx: Ctx,
    requests: Option<mpsc::Sender<pb::WatchRequest>>,
    answers: Answers,
}

/// etcd sends no headers before its first answer, so the stream is opened beside what else goes on.
#[derive(Debug)]
enum Answers {
    Opening(JoinHandle<Result<Response<Streaming<pb::WatchResponse>>, Status>>),
    Open(Box<Streaming<pb::WatchResponse>>),
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Answers::Opening(opening) = &self.answers {
            opening.abort();
        }
    }
}

impl Watching {
    pub(crate) fn open(ctx: Ctx) -> Self {
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let mut client = ctx.api.watch.clone();
        let opening = tokio::spawn(async move { client.watch(ReceiverStream::new(receiver)).await });
        Self { ctx, requests: Some(requests), answers: Answers::Opening(opening) }
    }

    async fn message(&mut self) -> Check<Result<Option<pb::WatchResponse>, Status>> {
        if let Answers::Opening(opening) = &mut self.answers {
            let opened = opening.await.map_err(|error| Stop(format!("Watch: {error}")))?;
            self.answers = Answers::Open(Box::new(needed("Watch", opened)?.into_inner()));
        }
        match &mut self.answers {
            Answers::Open(answers) => Ok(answers.message().await),
            Answers::Opening(_) => Err(Stop("the watch stream does not open".to_owned())),
        }
    }

    /// Sends a request.
    ///
    /// # Errors
    /// If the stream has ended.
    pub async fn send(&self, request: pb::RequestUnion) -> Check {
        self.send_message(pb::WatchRequest { request_union: Some(request) }).await
    }

    async fn send_message(&self, message: pb::WatchRequest) -> Check {
        let ended = || Stop("the watch stream has ended".to_owned());
        self.requests.as_ref().ok_or_else(ended)?.send(message).await.map_err(|_| ended())
    }

    /// Says that no more requests follow.
    pub fn finish(&mut self) {
        self.requests = None;
    }

    /// Sends a message without a request.
    ///
    /// # Errors
    /// If the stream has ended.
    pub async fn send_nothing(&self) -> Check {
        self.send_message(pb::WatchRequest { request_union: None }).await
    }

    /// Sends a create request and returns the answer to it, with whatever it says.
    ///
    /// # Errors
    /// If there is none.
    pub async fn try_create(&mut self, request: pb::WatchCreateRequest) -> Check<pb::WatchResponse> {
        self.send(pb::RequestUnion::CreateRequest(request)).await?;
        let answer = self.next().await?;
        self.ctx.holds("the answer to a create request says created", answer.created);
        Ok(answer)
    }

    /// Creates a watcher; the answer.
    ///
    /// # Errors
    /// If it is not created.
    pub async fn create(&mut self, request: pb::WatchCreateRequest) -> Check<pb::WatchResponse> {
        let answer = self.try_create(request).await?;
        if answer.canceled || !answer.created {
            return Err(Stop(format!("the watcher is not created: {answer:?}")));
        }
        self.ctx.holds("the answer to a create request has no events", answer.events.is_empty());
        Ok(answer)
    }

    /// Sends a cancel request.
    ///
    /// # Errors
    /// If the stream has ended.
    pub async fn cancel(&self, watch_id: i64) -> Check {
        self.send(pb::RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id })).await
    }

    /// Asks for progress.
    ///
    /// # Errors
    /// If the stream has ended.
    pub async fn ask_progress(&self) -> Check {
        self.send(pb::RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await
    }

    /// The next answer.
    ///
    /// # Errors
    /// If none comes in time, or the stream ends.
    pub async fn next(&mut self) -> Check<pb::WatchResponse> {
        match timeout(PATIENCE, self.message()).await {
            Ok(Err(stop)) => Err(stop),
            Ok(Ok(Ok(Some(answer)))) => Ok(answer),
            Ok(Ok(Ok(None))) => Err(Stop("the watch stream ended".to_owned())),
            Ok(Ok(Err(status))) => {
                Err(Stop(format!("the watch stream ended: {:?}: {}", status.code(), status.message())))
            }
            Err(_) => Err(Stop(format!("no answer on the watch stream within {PATIENCE:?}"))),
        }
    }

    /// The next answers with at least so many events in all; each must have a header that covers its events.
    ///
    /// # Errors
    /// If they do not come, or something else does.
    pub async fn answers(&mut self, events: usize) -> Check<Vec<pb::WatchResponse>> {
        let (mut answers, mut seen) = (Vec::new(), 0);
        while seen < events {
            let answer = self.next().await?;
            if answer.created || answer.canceled {
                return Err(Stop(format!("expected events, got {answer:?}")));
            }
            let last = answer.events.last().and_then(|event| event.kv.as_ref());
            let last = last.map_or(0, |kv| kv.mod_revision);
            self.ctx.holds("the header covers the events", revision(&answer.header) >= last);
            seen += answer.events.len();
            answers.push(answer);
        }
        Ok(answers)
    }

    /// The next events, at least so many, as words: `+name=value` for a put, `-name` for a delete, with `<value`
    /// of the pair before if there is one.
    ///
    /// # Errors
    /// As [`Watching::answers`].
    pub async fn words(&mut self, events: usize) -> Check<String> {
        let answers = self.answers(events).await?;
        let words: Vec<_> = answers.iter().flat_map(|answer| &answer.events).map(|e| self.word(e)).collect();
        Ok(words.join(" "))
    }

    /// The next events, at least so many.
    ///
    /// # Errors
    /// As [`Watching::answers`].
    pub async fn events(&mut self, events: usize) -> Check<Vec<pb::Event>> {
        Ok(self.answers(events).await?.into_iter().flat_map(|answer| answer.events).collect())
    }

    /// An event as a word, see [`Watching::words`].
    pub fn word(&self, event: &pb::Event) -> String {
        let text = |kv: &pb::KeyValue| String::from_utf8_lossy(&kv.value).into_owned();
        let kv = event.kv.clone().unwrap_or_default();
        let name = self.ctx.name(&kv.key);
        let word = match event.r#type() {
            pb::EventType::Put => format!("+{name}={}", text(&kv)),
            pb::EventType::Delete => format!("-{name}"),
        };
        event.prev_kv.as_ref().map_or(word.clone(), |before| format!("{word}<{}", text(before)))
    }
}
