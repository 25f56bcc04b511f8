//! etcd's lock and election services, which other languages' clients use: made of the calls that every etcd has, so
//! that one implementation serves an engine and a proxy.
//!
//! Follows server/etcdserver/api/{v3lock,v3election}, which runs clientv3's `concurrency` package in the server.

mod election;
mod lock;

use std::{pin::pin, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use http_body_util::Full;
use prost::Message as _;
use sharded_etcd_etcd_api::{
    etcdserverpb::{kv_server::Kv, lease_server::Lease, watch_server::Watch},
    messages as pb,
    v3electionpb::election_server::ElectionServer,
    v3lockpb::lock_server::LockServer,
};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstDecoder;

/// Seconds that a lease has which is granted as the request names none. (clientv3: `defaultSessionTTL`.)
const LEASE_TTL: i64 = 60;

/// The services over the calls of one server.
#[derive(Debug)]
pub struct Recipes<K, W, L> {
    kv: Arc<K>,
    watch: Arc<W>,
    lease: Arc<L>,
}

impl<K, W, L> Clone for Recipes<K, W, L> {
    fn clone(&self) -> Self {
        Self { kv: Arc::clone(&self.kv), watch: Arc::clone(&self.watch), lease: Arc::clone(&self.lease) }
    }
}

impl<K: Kv, W: Watch, L: Lease> Recipes<K, W, L> {
    /// The services over these calls.
    pub fn new(kv: Arc<K>, watch: Arc<W>, lease: Arc<L>) -> Self {
        Self { kv, watch, lease }
    }

    /// `v3lockpb.Lock`.
    pub fn lock_server(&self) -> LockServer<Self> {
        LockServer::new(self.clone())
    }

    /// `v3electionpb.Election`.
    pub fn election_server(&self) -> ElectionServer<Self> {
        ElectionServer::new(self.clone())
    }

    async fn range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        self.kv.range(Request::new(request)).await.map(Response::into_inner).map_err(as_etcd)
    }

    async fn txn(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        self.kv.txn(Request::new(request)).await.map(Response::into_inner).map_err(as_etcd)
    }

    async fn delete(&self, key: Bytes) -> Result<pb::DeleteRangeResponse, Status> {
        let request = pb::DeleteRangeRequest { key, ..Default::default() };
        self.kv.delete_range(Request::new(request)).await.map(Response::into_inner).map_err(as_etcd)
    }

    async fn watch(&self, create: pb::WatchCreateRequest) -> Result<W::WatchStream, Status> {
        let answers = self.watch.watch(Request::new(one_request(create))).await;
        answers.map(Response::into_inner).map_err(as_etcd)
    }

    /// The lease, or a new one if it is 0. Nobody renews it: that is up to the client.
    async fn lease(&self, id: i64) -> Result<i64, Status> {
        if id != 0 {
            return Ok(id);
        }
        let grant = Request::new(pb::LeaseGrantRequest { ttl: LEASE_TTL, id: 0 });
        self.lease.lease_grant(grant).await.map(|granted| granted.into_inner().id).map_err(as_etcd)
    }

    /// Waits until no key of the prefix is left that was created at that revision or before.
    async fn until_deleted(&self, prefix: &Bytes, max_create_revision: i64) -> Result<(), Status> {
        loop {
            let youngest =
                pb::RangeRequest { max_create_revision, ..by_creation(prefix, pb::SortOrder::Descend) };
            let mut answer = self.range(youngest).await?;
            let Some(kv) = answer.kvs.pop() else { return Ok(()) };
            self.until_gone(kv.key, revision(&answer.header)).await?;
        }
    }

    /// Waits until a key that was there at a revision is deleted.
    async fn until_gone(&self, key: Bytes, start_revision: i64) -> Result<(), Status> {
        let create = pb::WatchCreateRequest { key, start_revision, ..Default::default() };
        let mut answers = pin!(self.watch(create).await?);
        while let Some(answer) = answers.next().await {
            let answer = seen(answer)?;
            if answer.events.iter().any(|event| event.r#type() == pb::EventType::Delete) {
                return Ok(());
            }
        }
        Err(Status::unknown("lost watcher waiting for delete"))
    }
}

/// An error of a call as etcd's services pass it on: with its text, and no code. That of a server that cannot be reached
/// or stops keeps its code, so that clients go on elsewhere.
fn as_etcd(status: Status) -> Status {
    match status.code() {
        Code::Unavailable => status,
        _ => Status::unknown(status.message()),
    }
}

/// The answer of a watcher that has not ended.
fn seen(answer: Result<pb::WatchResponse, Status>) -> Result<pb::WatchResponse, Status> {
    let answer = answer.map_err(as_etcd)?;
    if answer.compact_revision > 0 {
        return Err(Status::unknown("etcdserver: mvcc: required revision has been compacted"));
    }
    if answer.canceled {
        return Err(Status::unknown(answer.cancel_reason));
    }
    Ok(answer)
}

/// A watch stream's requests: one that makes a watcher, and no more.
fn one_request(create: pb::WatchCreateRequest) -> Streaming<pb::WatchRequest> {
    let request = pb::WatchRequest { request_union: Some(pb::RequestUnion::CreateRequest(create)) };
    let message = request.encode_to_vec();
    // A frame of gRPC: not compressed, its length, the message.
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(&message);
    Streaming::new_request(ProstDecoder::default(), Full::new(frame.freeze()), None, None)
}

/// A request for the one key of a prefix that was created first or last.
fn by_creation(prefix: &Bytes, order: pb::SortOrder) -> pb::RangeRequest {
    pb::RangeRequest {
        key: prefix.clone(),
        range_end: end_of(prefix),
        limit: 1,
        sort_order: order.into(),
        sort_target: pb::SortTarget::Create.into(),
        ..Default::default()
    }
}

/// Where the keys are of those who want the same: below its name.
fn prefix_of(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

/// The end of the keys with a prefix of [`prefix_of`].
fn end_of(prefix: &[u8]) -> Bytes {
    let name = prefix.strip_suffix(b"/").unwrap_or(prefix);
    [name, b"0"].concat().into()
}

/// The key of who has this lease.
fn key_of(prefix: &[u8], lease: i64) -> Bytes {
    [prefix, format!("{lease:x}").as_bytes()].concat().into()
}

/// True if the key was created at that revision; 0 if it is not there.
fn created_at(key: &Bytes, revision: i64) -> pb::Compare {
    pb::Compare {
        result: pb::CompareResult::Equal.into(),
        target: pb::CompareTarget::Create.into(),
        key: key.clone(),
        target_union: Some(pb::TargetUnion::CreateRevision(revision)),
        ..Default::default()
    }
}

fn op(request: pb::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn get(key: &Bytes) -> pb::RequestOp {
    op(pb::Request::RequestRange(pb::RangeRequest { key: key.clone(), ..Default::default() }))
}

fn put(key: &Bytes, value: Bytes, lease: i64) -> pb::RequestOp {
    op(pb::Request::RequestPut(pb::PutRequest { key: key.clone(), value, lease, ..Default::default() }))
}

/// The first key that the `at`th operation of a transaction read.
fn first_of(answer: &pb::TxnResponse, at: usize) -> Option<&pb::KeyValue> {
    match answer.responses.get(at)?.response.as_ref()? {
        pb::Response::ResponseRange(range) => range.kvs.first(),
        _ => None,
    }
}

fn revision(header: &Option<pb::ResponseHeader>) -> i64 {
    header.as_ref().map_or(0, |header| header.revision)
}

/// What is done when whoever waits gives up: a client that goes has its call dropped.
struct OnDrop(Option<Box<dyn FnOnce() + Send>>);

impl OnDrop {
    fn new(clean_up: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Some(Box::new(move || {
            // Without a runtime the process ends, and the lease does the rest.
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(clean_up);
            }
        })))
    }

    /// Nothing is to be done any more.
    fn disarm(&mut self) {
        self.0 = None;
    }
}

impl Drop for OnDrop {
    fn drop(&mut self) {
        if let Some(clean_up) = self.0.take() {
            clean_up();
        }
    }
}
