//! The scripted API server, as a service that `kube::Client` calls.
//!
//! Each client has a [`Link`] of its own: the log of its calls, and what goes wrong with them.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

use super::{
    defaults,
    kinds::{self, Kind},
    selector::Selector,
    store::{DeleteOptions, Manager, Object, Refusal, Store, Write},
    watches,
};

/// The server, shared by its clients and the controllers.
pub struct Server {
    pub store: Mutex<Store>,
    revision: watch::Sender<u64>,
}

impl Server {
    pub fn new(store: Store) -> Arc<Self> {
        Arc::new(Self { revision: watch::Sender::new(store.revision()), store: Mutex::new(store) })
    }

    /// Changes the store and wakes the watches.
    pub fn with<T>(&self, f: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = self.store.lock();
        let answer = f(&mut store);
        let revision = store.revision();
        drop(store);
        self.revision.send_if_modified(|r| std::mem::replace(r, revision) != revision);
        answer
    }

    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }
}

/// When something happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// It has no effect.
    Before,
    /// It has its effect, and the caller does not learn of it.
    After,
}

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Never answered, and [`Link::stopped`] tells.
    Stop,
    /// 409.
    Conflict,
    /// 500.
    Internal,
    /// No answer for a minute, then 504.
    Timeout,
}

/// How a client's watches go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watching {
    /// At once and whole.
    Fresh,
    /// Each event up to 15 s late, each kind at its own pace; reads that allow for a cache are as old.
    Late(u64),
    /// Now and then events are left out for some seconds, and then the watch is told that it is too old.
    Gappy(u64),
    /// Now and then an event comes twice, and watches end early.
    Twice(u64),
}

/// One call.
#[derive(Debug, Clone)]
pub struct Call {
    pub verb: &'static str,
    pub kind: &'static Kind,
    pub namespace: String,
    pub name: String,
    pub sub: Option<&'static str>,
    pub code: u16,
    pub at: Instant,
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { verb, kind, namespace, name, sub, code, .. } = self;
        write!(f, "{verb} {} {namespace}/{name} {} -> {code}", kind.plural, sub.unwrap_or_default())
    }
}

impl Call {
    pub fn mutates(&self) -> bool {
        !matches!(self.verb, "get" | "list" | "watch")
    }

    /// Whether it is about the resources: a lease is renewed as time goes by, and events only tell.
    pub fn counts(&self) -> bool {
        self.mutates() && *self.kind != kinds::LEASES && self.kind.kind != "Event"
    }
}

type Block = Box<dyn Fn(&Call) -> Option<Fault> + Send>;

struct LinkState {
    calls: Vec<Call>,
    counted: usize,
    fault: Option<(usize, When, Fault)>,
    /// Calls that never go through.
    block: Option<Block>,
    /// The client is gone: nothing that it still sends has an effect.
    cut: bool,
}

/// A client's way to the server.
#[derive(Clone)]
pub struct Link {
    pub server: Arc<Server>,
    pub watching: Watching,
    state: Arc<Mutex<LinkState>>,
    stopped: Arc<watch::Sender<bool>>,
}

impl Link {
    pub fn new(server: Arc<Server>, watching: Watching) -> Self {
        let state = LinkState { calls: Vec::new(), counted: 0, fault: None, block: None, cut: false };
        Self {
            server,
            watching,
            state: Arc::new(Mutex::new(state)),
            stopped: Arc::new(watch::Sender::new(false)),
        }
    }

    pub fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), "default")
    }

    /// Something happens to the `n`-th call that counts, from 0.
    pub fn fault_at(&self, n: usize, when: When, fault: Fault) {
        self.state.lock().fault = Some((n, when, fault));
    }

    /// Calls for which `block` gives a fault get it, before they have an effect.
    pub fn block(&self, block: impl Fn(&Call) -> Option<Fault> + Send + 'static) {
        self.state.lock().block = Some(Box::new(block));
    }

    /// Nothing goes through any more, as when the client's machine lost its power.
    pub fn cut(&self) {
        self.state.lock().cut = true;
    }

    pub fn calls(&self) -> Vec<Call> {
        self.state.lock().calls.clone()
    }

    /// Number of calls that count so far.
    pub fn counted(&self) -> usize {
        self.state.lock().counted
    }

    /// True once a call met [`Fault::Stop`].
    pub fn stopped(&self) -> watch::Receiver<bool> {
        self.stopped.subscribe()
    }

    fn log(&self, call: Call) {
        self.state.lock().calls.push(call);
    }

    async fn handle(self, request: Request<Body>) -> Result<Response<Answer>, Infallible> {
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await.map(|b| b.to_vec()).unwrap_or_default();
        let metadata_only = parts
            .headers
            .get("accept")
            .is_some_and(|a| a.as_bytes().windows(21).any(|w| w == b"PartialObjectMetadata"));
        let text = parts.uri.path_and_query().map_or("", |p| p.as_str()).to_owned();
        let Some(target) = Target::parse(&text) else {
            return Ok(refused(&Refusal::new(404, "NotFound", format!("the server has no {text}"))));
        };
        let content = parts.headers.get("content-type").and_then(|c| c.to_str().ok()).unwrap_or_default();
        let verb = verb(&parts.method, content, &target);
        let mut call = Call {
            verb,
            kind: target.kind,
            namespace: target.namespace.clone().unwrap_or_default(),
            name: target.name.clone().unwrap_or_default(),
            sub: target.sub,
            code: 200,
            at: Instant::now(),
        };
        if call.name.is_empty() && verb == "create" {
            let sent: Value = serde_json::from_slice(&body).unwrap_or_default();
            call.name = sent["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        }
        if self.state.lock().cut {
            return std::future::pending().await;
        }
        let fault = {
            let mut state = self.state.lock();
            let blocked = state.block.as_ref().and_then(|block| block(&call)).map(|f| (When::Before, f));
            let number = state.counted;
            if call.counts() {
                state.counted += 1;
            }
            let planned = state.fault.filter(|(at, ..)| call.counts() && *at == number);
            blocked.or(planned.map(|(_, when, fault)| (when, fault)))
        };
        if let Some((When::Before, fault)) = fault {
            return Ok(self.fail(call, fault).await);
        }
        if verb == "watch" {
            self.log(call);
            return Ok(self.watch(&target, metadata_only));
        }
        let answer = match verb {
            "list" => Ok(self.list(&target)),
            _ => self.server.with(|store| one(store, verb, &target, &body)),
        };
        call.code = answer.as_ref().map_or_else(|r| r.code, |_| 200);
        if let Some((_, fault)) = fault {
            return Ok(self.fail(call, fault).await);
        }
        self.log(call);
        Ok(match answer {
            Ok(value) => json_response(200, &if metadata_only { partial(&value) } else { value }),
            Err(refusal) => refused(&refusal),
        })
    }

    async fn fail(&self, mut call: Call, fault: Fault) -> Response<Answer> {
        let refusal = match fault {
            Fault::Stop => {
                self.log(call);
                self.stopped.send_replace(true);
                return std::future::pending().await;
            }
            Fault::Conflict => Refusal::conflict(call.kind, &call.name, "as the test wants it"),
            Fault::Internal => Refusal::new(500, "InternalError", "as the test wants it"),
            Fault::Timeout => {
                tokio::time::sleep(Duration::from_secs(60)).await;
                Refusal::new(504, "Timeout", "as the test wants it")
            }
        };
        call.code = refusal.code;
        self.log(call);
        refused(&refusal)
    }

    fn list(&self, target: &Target) -> Value {
        let store = self.server.store.lock();
        let revision = match (target.param("resourceVersion"), self.watching) {
            ("0", Watching::Late(seed)) => watches::visible(&store, target.kind, seed),
            _ => store.revision(),
        };
        let selector = target.selector();
        let objects = if revision == store.revision() {
            store.list(target.kind, target.namespace.as_deref())
        } else {
            store.list_at(target.kind, target.namespace.as_deref(), revision)
        };
        let items: Vec<Object> = objects.into_iter().filter(|o| selector.matches(o)).collect();
        let limit = target.param("limit").parse().unwrap_or(usize::MAX);
        let from: usize = target.param("continue").parse().unwrap_or(0);
        let until = from.saturating_add(limit).min(items.len());
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if until < items.len() {
            metadata["continue"] = json!(until.to_string());
            metadata["remainingItemCount"] = json!(items.len() - until);
        }
        let page: Vec<&Value> = items[from.min(until)..until].iter().map(|o| &**o).collect();
        json!({
            "apiVersion": target.kind.api_version(), "kind": format!("{}List", target.kind.kind),
            "metadata": metadata, "items": page,
        })
    }

    fn watch(&self, target: &Target, metadata_only: bool) -> Response<Answer> {
        let initial = target.param("sendInitialEvents") == "true";
        let bookmarks = target.param("allowWatchBookmarks") == "true";
        let from = target.param("resourceVersion").parse().unwrap_or(0);
        let timeout = target.param("timeoutSeconds").parse().unwrap_or(290);
        let watch = watches::Request {
            kind: target.kind,
            namespace: target.namespace.clone(),
            selector: target.selector(),
            from,
            initial,
            bookmarks,
            metadata_only,
            until: Instant::now() + Duration::from_secs(timeout),
        };
        let body = watches::stream(self.clone(), watch);
        Response::builder().header("content-type", "application/json").body(body).expect("a response")
    }
}

impl tower::Service<Request<Body>> for Link {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().handle(request))
    }
}

pub type Answer = UnsyncBoxBody<Bytes, Infallible>;

fn json_response(code: u16, value: &Value) -> Response<Answer> {
    let body = Full::new(Bytes::from(value.to_string())).boxed_unsync();
    let response = Response::builder().status(code).header("content-type", "application/json");
    response.body(body).expect("a response")
}

fn refused(refusal: &Refusal) -> Response<Answer> {
    json_response(refusal.code, &refusal.body())
}

/// Only what the metadata API tells.
pub fn partial(value: &Value) -> Value {
    if let Some(items) = value["items"].as_array() {
        let items: Vec<Value> = items.iter().map(partial).collect();
        return json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
            "metadata": value["metadata"], "items": items,
        });
    }
    json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": value["metadata"]})
}

fn verb(method: &Method, content: &str, target: &Target) -> &'static str {
    match *method {
        Method::GET if target.param("watch") == "true" || target.param("watch") == "1" => "watch",
        Method::GET if target.name.is_none() => "list",
        Method::GET => "get",
        Method::POST if target.sub == Some("eviction") => "evict",
        Method::POST => "create",
        Method::PUT => "update",
        Method::DELETE if target.name.is_none() => "deletecollection",
        Method::DELETE => "delete",
        Method::PATCH if content.starts_with("application/apply-patch") => "apply",
        Method::PATCH => "patch",
        _ => "unknown",
    }
}

/// What a request is about.
pub struct Target {
    kind: &'static Kind,
    namespace: Option<String>,
    name: Option<String>,
    sub: Option<&'static str>,
    params: Vec<(String, String)>,
}

impl Target {
    fn parse(text: &str) -> Option<Self> {
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        let mut parts = path.trim_matches('/').split('/');
        let (group, version) = match parts.next()? {
            "api" => ("", parts.next()?),
            "apis" => (parts.next()?, parts.next()?),
            _ => return None,
        };
        let rest: Vec<&str> = parts.collect();
        let (namespace, rest) = match rest.as_slice() {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some((*namespace).to_owned()), rest),
            rest => (None, rest),
        };
        let kind = Kind::find(group, version, rest.first()?)?;
        let sub = match rest.get(2).copied() {
            None => None,
            Some("status") => Some("status"),
            Some("scale") => Some("scale"),
            Some("eviction") => Some("eviction"),
            Some(_) => return None,
        };
        let params = query.split('&').filter(|p| !p.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        });
        let name = rest.get(1).map(|n| decode(n));
        Some(Self { kind, namespace, name, sub, params: params.collect() })
    }

    fn param(&self, name: &str) -> &str {
        self.params.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v.as_str())
    }

    fn selector(&self) -> Selector {
        Selector::parse(self.param("labelSelector"), self.param("fieldSelector"))
    }
}

fn decode(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || bytes.next().and_then(|d| char::from(d).to_digit(16)).expect("two digits");
                let high = digit();
                u8::try_from(high * 16 + digit()).expect("a byte")
            }
            other => other,
        });
    }
    String::from_utf8(out).expect("text")
}

/// A call about one object.
fn one(store: &mut Store, verb: &str, target: &Target, body: &[u8]) -> Result<Value, Refusal> {
    let kind = target.kind;
    let namespace = target.namespace.as_deref().unwrap_or_default();
    let name = target.name.as_deref().unwrap_or_default();
    if kind.namespaced && namespace.is_empty() {
        return Err(Refusal::new(404, "NotFound", format!("{} are in namespaces", kind.plural)));
    }
    let sent = || -> Result<Value, Refusal> {
        serde_json::from_slice(body).map_err(|e| Refusal::new(400, "BadRequest", e.to_string()))
    };
    let manager = match target.param("fieldManager") {
        "" if verb == "apply" => return Err(Refusal::new(422, "Invalid", "fieldManager is required")),
        "" => "unknown",
        name => name,
    };
    let write = Write {
        manager: Manager {
            name: manager.to_owned(),
            apply: verb == "apply",
            sub: target.sub.filter(|sub| *sub == "status"),
        },
        force: target.param("force") == "true",
        dry: target.param("dryRun") == "All",
    };
    if target.sub == Some("scale") {
        return scale(store, verb, target, &sent().unwrap_or_default(), &write);
    }
    let object = match verb {
        "get" => store.get(kind, namespace, name).ok_or_else(|| Refusal::not_found(kind, name)),
        "create" => {
            let object = sent()?;
            defaults::check_fields(kind, &object)?;
            store.create(kind, namespace, object, &write)
        }
        "update" => {
            let object = sent()?;
            defaults::check_fields(kind, &object)?;
            store.replace(kind, namespace, name, object, &write)
        }
        "apply" => store.apply(kind, namespace, name, sent()?, &write),
        "patch" => store.merge_patch(kind, namespace, name, &sent()?, &write),
        "delete" => {
            let options = delete_options(&sent().unwrap_or_default(), target);
            store.delete(kind, namespace, name, &options)
        }
        "evict" => store.delete(kind, namespace, name, &DeleteOptions::default()),
        _ => return Err(Refusal::new(405, "MethodNotAllowed", format!("{verb} is not served"))),
    }?;
    Ok((*object).clone())
}

fn delete_options(sent: &Value, target: &Target) -> DeleteOptions {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    DeleteOptions {
        uid: text(&sent["preconditions"]["uid"]),
        resource_version: text(&sent["preconditions"]["resourceVersion"]),
        propagation: text(&sent["propagationPolicy"]),
        grace: sent["gracePeriodSeconds"].as_i64(),
        dry: target.param("dryRun") == "All" || sent["dryRun"][0] == "All",
    }
}

fn scale(
    store: &mut Store,
    verb: &str,
    target: &Target,
    sent: &Value,
    write: &Write,
) -> Result<Value, Refusal> {
    let (kind, namespace) = (target.kind, target.namespace.as_deref().unwrap_or_default());
    let name = target.name.as_deref().unwrap_or_default();
    let count = if *kind == kinds::SHARDED_ETCDS { "shards" } else { "replicas" };
    let mut object = store.get(kind, namespace, name).ok_or_else(|| Refusal::not_found(kind, name))?;
    if verb != "get" {
        let wanted = &sent["spec"]["replicas"];
        object = store.merge_patch(kind, namespace, name, &json!({"spec": {count: wanted}}), write)?;
    }
    Ok(json!({
        "apiVersion": "autoscaling/v1", "kind": "Scale",
        "metadata": {"name": name, "namespace": namespace, "resourceVersion": object["metadata"]["resourceVersion"]},
        "spec": {"replicas": object["spec"][count]},
        "status": {"replicas": object["status"][count], "selector": object["status"]["selector"]},
    }))
}
