//! Watches, and how they go wrong.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use bytes::Bytes;
use futures::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use sharded_etcd_testkit::Dice;
use tokio::{sync::watch, time::Instant};

use super::{
    kinds::Kind,
    selector::Selector,
    server::{Answer, Link, Watching, partial},
    store::{Change, Refusal, Store},
};

/// What a watch asks for.
pub struct Request {
    pub kind: &'static Kind,
    pub namespace: Option<String>,
    pub selector: Selector,
    pub from: u64,
    /// The objects that are there come first.
    pub initial: bool,
    pub bookmarks: bool,
    pub metadata_only: bool,
    pub until: Instant,
}

/// Between bookmarks.
const BOOKMARKS: Duration = Duration::from_secs(60);

/// How late a kind's event comes: the same for every watch of that kind, and never before an earlier one.
fn delay(seed: u64, kind: &Kind, rv: u64) -> Duration {
    // A stretch of revisions shares a delay, so that whole bursts are late.
    let stretch = rv / 16;
    let mut dice = Dice::new(seed ^ ((kind.index() as u64) << 32) ^ stretch);
    if dice.percent(50) { Duration::ZERO } else { Duration::from_millis(dice.below(15_000)) }
}

/// The newest revision that a late cache of a kind shows.
pub fn visible(store: &Store, kind: &Kind, seed: u64) -> u64 {
    let now = Instant::now();
    let mut of_kind = store.changes_after(0).iter().filter(|c| std::ptr::eq(c.key.kind(), kind));
    let hidden = of_kind.find(|c| c.at + delay(seed, kind, c.rv) > now);
    hidden.map_or(store.revision(), |c| c.rv - 1)
}

enum State {
    Open,
    /// Events are left out until then, and then the watch is told so.
    Blind(Instant),
    Ended,
}

struct Watcher {
    link: Link,
    request: Request,
    next: u64,
    ready: VecDeque<Bytes>,
    revision: watch::Receiver<u64>,
    bookmark_at: Instant,
    state: State,
    dice: Dice,
}

/// The body of a watch's answer.
pub fn stream(link: Link, request: Request) -> Answer {
    let revision = link.server.subscribe();
    let seed = match link.watching {
        Watching::Fresh => 0,
        Watching::Late(seed) | Watching::Gappy(seed) | Watching::Twice(seed) => seed,
    };
    let start = link.server.store.lock().revision();
    let mut watcher = Watcher {
        next: request.from,
        ready: VecDeque::new(),
        revision,
        bookmark_at: Instant::now() + BOOKMARKS,
        state: State::Open,
        dice: Dice::new(seed ^ ((request.kind.index() as u64) << 40) ^ start),
        link,
        request,
    };
    watcher.begin();
    let lines = stream::unfold(watcher, |mut watcher| async move {
        let line = watcher.line().await?;
        Some((Ok::<_, Infallible>(Frame::data(line)), watcher))
    });
    StreamBody::new(lines).boxed_unsync()
}

impl Watcher {
    fn begin(&mut self) {
        let server = self.link.server.clone();
        let store = server.store.lock();
        if self.request.initial || self.request.from == 0 {
            let revision = match self.link.watching {
                Watching::Late(seed) if self.request.from == 0 && !self.request.initial => {
                    visible(&store, self.request.kind, seed)
                }
                _ => store.revision(),
            };
            let objects = store.list_at(self.request.kind, self.request.namespace.as_deref(), revision);
            for object in objects.iter().filter(|o| self.request.selector.matches(o)) {
                let event = self.event("ADDED", object);
                self.ready.push_back(event);
            }
            if self.request.initial {
                let mut bookmark = self.bookmark(revision);
                bookmark["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
                self.ready.push_back(line("BOOKMARK", &bookmark));
            }
            self.next = revision;
        } else if self.request.from < store.compacted() {
            self.expire();
        }
    }

    fn expire(&mut self) {
        let gone = Refusal::new(410, "Expired", "too old resource version");
        self.ready.push_back(line("ERROR", &gone.body()));
        self.state = State::Ended;
    }

    fn bookmark(&self, revision: u64) -> Value {
        let kind = self.request.kind;
        let metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        json!({"apiVersion": kind.api_version(), "kind": kind.kind, "metadata": metadata})
    }

    fn event(&self, what: &str, object: &Value) -> Bytes {
        if self.request.metadata_only { line(what, &partial(object)) } else { line(what, object) }
    }

    /// The next line; `None` at the end.
    async fn line(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            let now = Instant::now();
            match self.state {
                State::Ended => return None,
                State::Open if now >= self.request.until => return None,
                State::Blind(until) if now >= until => {
                    self.expire();
                    continue;
                }
                _ => {}
            }
            self.revision.mark_unchanged();
            let wake = self.advance(now);
            if !self.ready.is_empty() {
                continue;
            }
            if self.request.bookmarks && now >= self.bookmark_at && matches!(self.state, State::Open) {
                self.bookmark_at = now + BOOKMARKS;
                return Some(line("BOOKMARK", &self.bookmark(self.next)));
            }
            let mut wake = wake.unwrap_or(self.request.until).min(self.request.until);
            if let State::Blind(until) = self.state {
                wake = wake.min(until);
            }
            if self.request.bookmarks {
                wake = wake.min(self.bookmark_at.max(now + Duration::from_secs(1)));
            }
            tokio::select! {
                biased;
                changed = self.revision.changed() => changed.ok()?,
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Takes in the changes that can be seen now; when the next one can, if there is one.
    fn advance(&mut self, now: Instant) -> Option<Instant> {
        let server = self.link.server.clone();
        let store = server.store.lock();
        if self.next < store.compacted() && self.next < store.revision() {
            self.expire();
            return None;
        }
        for change in store.changes_after(self.next) {
            if let Watching::Late(seed) = self.link.watching {
                let seen = change.at + delay(seed, self.request.kind, change.rv);
                if seen > now {
                    return Some(seen);
                }
            }
            self.next = change.rv;
            if !self.is_meant(change) {
                continue;
            }
            if let State::Blind(_) = self.state {
                continue;
            }
            let Some((what, object)) = self.seen(change) else { continue };
            let event = self.event(what, &object);
            match self.link.watching {
                Watching::Gappy(_) if self.dice.percent(8) => {
                    self.state = State::Blind(now + Duration::from_millis(500 + self.dice.below(20_000)));
                    continue;
                }
                Watching::Twice(_) if self.dice.percent(20) => {
                    let again = if what == "ADDED" { self.event("MODIFIED", &object) } else { event.clone() };
                    self.ready.push_back(event);
                    self.ready.push_back(again);
                }
                Watching::Twice(_) if self.dice.percent(10) => {
                    self.ready.push_back(event);
                    self.state = State::Ended;
                    return None;
                }
                _ => self.ready.push_back(event),
            }
        }
        None
    }

    fn is_meant(&self, change: &Change) -> bool {
        std::ptr::eq(change.key.kind(), self.request.kind)
            && self.request.namespace.as_ref().is_none_or(|n| *n == change.key.namespace)
    }

    fn seen(&self, change: &Change) -> Option<(&'static str, Value)> {
        let before = change.old.as_ref().is_some_and(|o| self.request.selector.matches(o));
        let after = !change.deleted && self.request.selector.matches(&change.new);
        let what = match (before, after) {
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
            (false, false) => return None,
        };
        Some((what, (*change.new).clone()))
    }
}

/// The type comes first, as the real server has it: a reader need not keep the object before it knows what it is.
fn line(what: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{{\"type\":\"{what}\",\"object\":{object}}}\n"))
}
