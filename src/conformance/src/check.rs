//! What a case works with.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;
use tokio::time::{Instant, sleep};
use tonic::{Code, Response, Status};

use crate::{Api, request::get, watching::Watching};

/// Why a case cannot go on.
#[derive(Debug)]
pub struct Stop(pub String);

/// What a case returns; differences that do not keep it from going on are noted in the [`Ctx`].
pub type Check<T = ()> = Result<T, Stop>;

/// How long a case waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);
/// Time between two looks at a condition.
const POLL: Duration = Duration::from_millis(50);

/// A case's clients and keys, and what it found.
#[derive(Debug, Clone)]
pub struct Ctx {
    /// The clients of the target.
    pub api: Api,
    prefix: Bytes,
    place: usize,
    found: Arc<Mutex<Vec<String>>>,
}

impl Ctx {
    pub(crate) fn new(api: Api, prefix: String, place: usize) -> Self {
        Self { api, prefix: prefix.into(), place, found: Arc::default() }
    }

    pub(crate) fn found(&self) -> Vec<String> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes a difference.
    pub fn note(&self, difference: String) {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).push(difference);
    }

    /// Requires equality.
    pub fn same<T: PartialEq<U> + Debug, U: Debug>(&self, what: &str, got: T, want: U) {
        if got != want {
            self.note(format!("{what}: got {got:?}, expected {want:?}"));
        }
    }

    /// Requires that something holds; `what` says it.
    pub fn holds(&self, what: &str, holds: bool) {
        if !holds {
            self.note(format!("does not hold: {what}"));
        }
    }

    /// Requires an error with this code and text.
    pub fn refused<T: Debug>(&self, result: Result<T, Status>, code: Code, text: &str) {
        match result {
            Ok(answer) => self.note(format!("got {}, expected {code:?}: {text}", short(&answer))),
            Err(status) => {
                self.same("error", (status.code(), status.message()), (code, text));
            }
        }
    }

    /// The key of that name under the case's prefix.
    pub fn key(&self, name: &str) -> Bytes {
        self.key_of(name.as_bytes())
    }

    /// As [`Ctx::key`], of any bytes.
    pub fn key_of(&self, name: &[u8]) -> Bytes {
        [self.prefix.as_ref(), name].concat().into()
    }

    /// The name of a key of this case; what others put is in angle brackets.
    pub fn name(&self, key: &[u8]) -> String {
        match key.strip_prefix(self.prefix.as_ref()) {
            Some(name) => String::from_utf8_lossy(name).into_owned(),
            None => format!("<{}>", String::from_utf8_lossy(key)),
        }
    }

    /// Whether the key belongs to this case.
    pub fn owns(&self, key: &[u8]) -> bool {
        key.starts_with(&self.prefix)
    }

    /// Key and range end of all keys of the case.
    pub fn everything(&self) -> (Bytes, Bytes) {
        (self.prefix.clone(), prefix_end(&self.prefix))
    }

    /// A request for all keys of the case.
    pub fn all(&self) -> pb::RangeRequest {
        let (key, range_end) = self.everything();
        pb::RangeRequest { key, range_end, ..Default::default() }
    }

    /// A request for all keys of the case below a directory.
    pub fn dir(&self, name: &str) -> pb::RangeRequest {
        let key = self.key(name);
        pb::RangeRequest { range_end: prefix_end(&key), key, ..Default::default() }
    }

    /// A lease id that only this case uses; `n` below 16.
    pub fn lease_id(&self, n: i64) -> i64 {
        0x5EA5_0000 + (self.place as i64) * 16 + n
    }

    /// Names of keys, with a space between.
    pub fn names(&self, kvs: &[pb::KeyValue]) -> String {
        kvs.iter().map(|kv| self.name(&kv.key)).collect::<Vec<_>>().join(" ")
    }

    /// `name=value`, with a space between.
    pub fn words(&self, kvs: &[pb::KeyValue]) -> String {
        let word =
            |kv: &pb::KeyValue| format!("{}={}", self.name(&kv.key), String::from_utf8_lossy(&kv.value));
        kvs.iter().map(word).collect::<Vec<_>>().join(" ")
    }

    /// Puts; the revision.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn put(&self, name: &str, value: &str) -> Check<i64> {
        let request = crate::request::put(self.key(name), value);
        Ok(revision(&self.send_put(request).await?.header))
    }

    /// Puts several keys in order; their revisions.
    ///
    /// # Errors
    /// If one is refused.
    pub async fn puts(&self, pairs: &[(&str, &str)]) -> Check<Vec<i64>> {
        let mut revisions = Vec::new();
        for (name, value) in pairs {
            revisions.push(self.put(name, value).await?);
        }
        Ok(revisions)
    }

    /// Deletes one key; the header's revision.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn delete(&self, name: &str) -> Check<i64> {
        let request = pb::DeleteRangeRequest { key: self.key(name), ..Default::default() };
        Ok(revision(&self.send_delete(request).await?.header))
    }

    /// The value of a key, if it is there.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn value(&self, name: &str) -> Check<Option<String>> {
        let kv = self.kv(name).await?;
        Ok(kv.map(|kv| String::from_utf8_lossy(&kv.value).into_owned()))
    }

    /// A key, if it is there.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn kv(&self, name: &str) -> Check<Option<pb::KeyValue>> {
        Ok(self.range(get(self.key(name))).await?.kvs.pop())
    }

    /// A key that must be there.
    ///
    /// # Errors
    /// If it is not.
    pub async fn there(&self, name: &str) -> Check<pb::KeyValue> {
        self.kv(name).await?.ok_or_else(|| Stop(format!("{name} is not there")))
    }

    /// A revision that is current or older.
    ///
    /// # Errors
    /// If nothing can be read.
    pub async fn now(&self) -> Check<i64> {
        Ok(revision(&self.range(get(self.key("none"))).await?.header))
    }

    /// Range as it is answered.
    ///
    /// # Errors
    /// As the server says.
    pub async fn try_range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        self.api.kv.clone().range(request).await.map(Response::into_inner)
    }

    /// Put as it is answered.
    ///
    /// # Errors
    /// As the server says.
    pub async fn try_put(&self, request: pb::PutRequest) -> Result<pb::PutResponse, Status> {
        self.api.kv.clone().put(request).await.map(Response::into_inner)
    }

    /// DeleteRange as it is answered.
    ///
    /// # Errors
    /// As the server says.
    pub async fn try_delete(
        &self,
        request: pb::DeleteRangeRequest,
    ) -> Result<pb::DeleteRangeResponse, Status> {
        self.api.kv.clone().delete_range(request).await.map(Response::into_inner)
    }

    /// Txn as it is answered.
    ///
    /// # Errors
    /// As the server says.
    pub async fn try_txn(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        self.api.kv.clone().txn(request).await.map(Response::into_inner)
    }

    /// Compact as it is answered.
    ///
    /// # Errors
    /// As the server says.
    pub async fn try_compact(&self, revision: i64, physical: bool) -> Result<pb::CompactionResponse, Status> {
        let request = pb::CompactionRequest { revision, physical };
        self.api.kv.clone().compact(request).await.map(Response::into_inner)
    }

    /// LeaseGrant as it is answered.
    ///
    /// # Errors
    /// As the server says.
    pub async fn try_grant(&self, id: i64, ttl: i64) -> Result<pb::LeaseGrantResponse, Status> {
        let request = pb::LeaseGrantRequest { id, ttl };
        self.api.lease.clone().lease_grant(request).await.map(Response::into_inner)
    }

    /// LeaseRevoke as it is answered.
    ///
    /// # Errors
    /// As the server says.
    pub async fn try_revoke(&self, id: i64) -> Result<pb::LeaseRevokeResponse, Status> {
        let request = pb::LeaseRevokeRequest { id };
        self.api.lease.clone().lease_revoke(request).await.map(Response::into_inner)
    }

    /// A range that must be answered.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn range(&self, request: pb::RangeRequest) -> Check<pb::RangeResponse> {
        needed("Range", self.try_range(request).await)
    }

    /// A put that must be answered.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn send_put(&self, request: pb::PutRequest) -> Check<pb::PutResponse> {
        needed("Put", self.try_put(request).await)
    }

    /// A delete that must be answered.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn send_delete(&self, request: pb::DeleteRangeRequest) -> Check<pb::DeleteRangeResponse> {
        needed("DeleteRange", self.try_delete(request).await)
    }

    /// A transaction that must be answered.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn txn(&self, request: impl Into<pb::TxnRequest>) -> Check<pb::TxnResponse> {
        needed("Txn", self.try_txn(request.into()).await)
    }

    /// Grants the case's `n`th lease for so many seconds; its id.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn grant(&self, n: i64, ttl: i64) -> Check<i64> {
        Ok(needed("LeaseGrant", self.try_grant(self.lease_id(n), ttl).await)?.id)
    }

    /// Revokes a lease.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn revoke(&self, id: i64) -> Check<i64> {
        Ok(revision(&needed("LeaseRevoke", self.try_revoke(id).await)?.header))
    }

    /// Compacts, and waits until it is done.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn compact(&self, at: i64) -> Check<pb::CompactionResponse> {
        needed("Compact", self.try_compact(at, true).await)
    }

    /// The state of a lease, with its keys, sorted: etcd tells them in any order.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn lease(&self, id: i64) -> Check<pb::LeaseTimeToLiveResponse> {
        let request = pb::LeaseTimeToLiveRequest { id, keys: true };
        let answer = self.api.lease.clone().lease_time_to_live(request).await;
        let mut answer = needed("LeaseTimeToLive", answer.map(Response::into_inner))?;
        answer.keys.sort_unstable();
        Ok(answer)
    }

    /// Keeps a lease alive once; the answer.
    ///
    /// # Errors
    /// If there is none.
    pub async fn keep_alive(&self, id: i64) -> Check<pb::LeaseKeepAliveResponse> {
        let beats = tokio_stream::iter([pb::LeaseKeepAliveRequest { id }]);
        let mut answers =
            needed("LeaseKeepAlive", self.api.lease.clone().lease_keep_alive(beats).await)?.into_inner();
        needed("LeaseKeepAlive", answers.message().await)?
            .ok_or_else(|| Stop("LeaseKeepAlive ended without an answer".to_owned()))
    }

    /// Opens a watch stream.
    pub fn watching(&self) -> Watching {
        Watching::open(self.clone())
    }

    /// Opens a watch stream with one watcher, which must be created.
    ///
    /// # Errors
    /// If it is not.
    pub async fn watch(&self, request: pb::WatchCreateRequest) -> Check<Watching> {
        let mut watching = self.watching();
        watching.create(request).await?;
        Ok(watching)
    }

    /// A watch on all keys of the case from a revision on.
    pub fn watch_all(&self, start_revision: i64) -> pb::WatchCreateRequest {
        let (key, range_end) = self.everything();
        pb::WatchCreateRequest { key, range_end, start_revision, ..Default::default() }
    }

    /// A watch on one key from a revision on.
    pub fn watch_key(&self, name: &str, start_revision: i64) -> pb::WatchCreateRequest {
        pb::WatchCreateRequest { key: self.key(name), start_revision, ..Default::default() }
    }

    /// Asks for progress until an answer covers a revision; all answers are for the whole stream.
    ///
    /// # Errors
    /// If the stream ends, or nothing comes.
    pub async fn until_progress(&self, watching: &mut Watching, at: i64) -> Check {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            watching.ask_progress().await?;
            let answer = watching.next().await?;
            self.same("answer", (answer.watch_id, answer.events.len()), (-1, 0));
            if revision(&answer.header) >= at {
                return Ok(());
            }
            sleep(POLL).await;
        }
        Err(Stop(format!("waited {PATIENCE:?} in vain until progress covers revision {at}")))
    }

    /// Waits for a condition.
    ///
    /// # Errors
    /// If it does not come about in time.
    pub async fn until<T, F>(&self, what: &str, mut look: impl FnMut() -> F) -> Check<T>
    where
        F: Future<Output = Check<Option<T>>>,
    {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = look().await? {
                return Ok(answer);
            }
            if Instant::now() >= deadline {
                return Err(Stop(format!("waited {PATIENCE:?} in vain until {what}")));
            }
            sleep(POLL).await;
        }
    }
}

/// The answer, or why the case cannot go on.
///
/// # Errors
/// If the call was refused.
pub fn needed<T>(call: &str, answer: Result<T, Status>) -> Check<T> {
    answer.map_err(|status| Stop(format!("{call}: {:?}: {}", status.code(), status.message())))
}

/// The revision of a header; 0 without one.
pub fn revision(header: &Option<pb::ResponseHeader>) -> i64 {
    header.as_ref().map_or(0, |header| header.revision)
}

/// The range end of all keys with a prefix that does not end with 0xff.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end.into()
}

fn short(value: &impl Debug) -> String {
    let text = format!("{value:?}");
    if text.len() < 300 { text } else { format!("{}…", text.chars().take(300).collect::<String>()) }
}
