//! Checked connections to the shards of the line.
//!
//! A connection is used only once it has shown that it leads to the etcd cluster that joined, with all the history that
//! the line knows of; every later answer must carry the same cluster id. A shard that has lost history is quarantined:
//! it would give revisions out again that the line has numbered already.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture};
use parking_lot::Mutex;
use sharded_etcd_core::keyspace::ShardIx;
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Result, Shard, ShardDirectory, ShardError, WatchStream};
use tonic::Code;

use crate::Line;

/// The shards of a line, by join number, behind checked connections.
pub struct Shards {
    line: Arc<Line>,
    directory: ShardDirectory,
    state: Mutex<HashMap<ShardIx, Entry>>,
}

enum Entry {
    Checked { connection: Arc<dyn Shard>, checked: Arc<CheckedShard> },
    Quarantined { connection: Arc<dyn Shard>, why: String },
}

impl Shards {
    /// The shards of `line` as `directory` reaches them.
    pub fn new(line: Arc<Line>, directory: ShardDirectory) -> Arc<Self> {
        Arc::new(Self { line, directory, state: Mutex::new(HashMap::new()) })
    }

    /// Where the connections come from.
    pub fn directory(&self) -> &ShardDirectory {
        &self.directory
    }

    /// The checked connection to a shard.
    ///
    /// # Errors
    /// Unavailable, naming the shard: it is not known here, cannot be reached, or is quarantined. Nothing was sent.
    pub async fn get(&self, shard: ShardIx) -> Result<Arc<dyn Shard>> {
        let known = self.line.with_fold(|f| f.shard(shard).map(|s| (s.name.clone(), s.etcd_cluster_id, s.v)));
        let Some((name, cluster_id, v)) = known else {
            return Err(ShardError::not_sent(format!("shard number {} never joined", shard.0)));
        };
        let Some(connection) = self.directory.get(&name) else {
            return Err(ShardError::not_sent(format!("{name}: no connection to it in this process")));
        };
        match self.state.lock().get(&shard) {
            Some(Entry::Checked { connection: c, checked }) if Arc::ptr_eq(c, &connection) => {
                return Ok(Arc::clone(checked) as Arc<dyn Shard>);
            }
            Some(Entry::Quarantined { connection: c, why }) if Arc::ptr_eq(c, &connection) => {
                return Err(ShardError::not_sent(format!("{name} is quarantined: {why}")));
            }
            _ => {}
        }
        let checked =
            Arc::new(CheckedShard { inner: Arc::clone(&connection), name: name.clone(), cluster_id });
        match checked.check(v).await {
            Ok(()) => {
                let out = Arc::clone(&checked) as Arc<dyn Shard>;
                self.state.lock().insert(shard, Entry::Checked { connection, checked });
                Ok(out)
            }
            Err(Check::Unreachable(error)) => {
                Err(ShardError::not_sent(format!("{name} cannot be reached: {error}")))
            }
            Err(Check::Wrong(why)) => Err(self.quarantine_connection(shard, &name, connection, why)),
        }
    }

    /// Called when a shard answered ErrFutureRev for a revision that the line has: confirmed by a linearizable read, it
    /// is quarantined. Returns the error to answer with if so.
    pub async fn suspect(&self, shard: ShardIx) -> Option<ShardError> {
        let (name, cluster_id, v) =
            self.line.with_fold(|f| f.shard(shard).map(|s| (s.name.clone(), s.etcd_cluster_id, s.v)))?;
        let connection = self.directory.get(&name)?;
        let checked = CheckedShard { inner: Arc::clone(&connection), name: name.clone(), cluster_id };
        match checked.check(v).await {
            Err(Check::Wrong(why)) => Some(self.quarantine_connection(shard, &name, connection, why)),
            _ => None,
        }
    }

    /// The shards in quarantine, with the reason.
    pub fn quarantined(&self) -> Vec<(ShardIx, String)> {
        let state = self.state.lock();
        let mut list: Vec<_> = state
            .iter()
            .filter_map(|(ix, entry)| match entry {
                Entry::Quarantined { why, .. } => Some((*ix, why.clone())),
                Entry::Checked { .. } => None,
            })
            .collect();
        list.sort_unstable();
        list
    }

    fn quarantine_connection(
        &self,
        shard: ShardIx,
        name: &str,
        connection: Arc<dyn Shard>,
        why: String,
    ) -> ShardError {
        tracing::error!(shard = name, reason = %why, "shard quarantined; its ranges are not served");
        let error = ShardError::not_sent(format!("{name} is quarantined: {why}"));
        self.state.lock().insert(shard, Entry::Quarantined { connection, why });
        error
    }
}

enum Check {
    Unreachable(ShardError),
    Wrong(String),
}

/// A connection whose every answer is checked for the cluster id that joined.
struct CheckedShard {
    inner: Arc<dyn Shard>,
    name: String,
    cluster_id: u64,
}

impl CheckedShard {
    /// One linearizable read: right cluster, and a revision of at least `v`.
    async fn check(&self, v: i64) -> std::result::Result<(), Check> {
        let get = pb::RangeRequest { key: Bytes::from_static(b"\0"), count_only: true, ..Default::default() };
        let header = self.inner.range(get).await.map_err(Check::Unreachable)?.header.unwrap_or_default();
        if header.cluster_id != self.cluster_id {
            return Err(Check::Wrong(self.foreign(header.cluster_id)));
        }
        if header.revision < v {
            return Err(Check::Wrong(format!(
                "it is at local revision {}, the line knows {v}: it was restored or has lost data",
                header.revision
            )));
        }
        Ok(())
    }

    fn foreign(&self, found: u64) -> String {
        format!("it answers as etcd cluster {found:016x}, but {:016x} joined", self.cluster_id)
    }

    fn verify<T>(&self, answer: T, header: impl Fn(&T) -> Option<&pb::ResponseHeader>) -> Result<T> {
        match header(&answer) {
            Some(h) if h.cluster_id != self.cluster_id => Err(ShardError::ambiguous(
                Code::Unavailable,
                format!("{}: {}", self.name, self.foreign(h.cluster_id)),
            )),
            _ => Ok(answer),
        }
    }

    fn name_it(&self, mut error: ShardError) -> ShardError {
        // etcd's own answers keep their text: clients compare it. What we say of the connection names the shard.
        if error.certainty != sharded_etcd_shard::Certainty::Refused
            && !error.message.starts_with("etcdserver:")
        {
            error.message = format!("{}: {}", self.name, error.message);
        }
        error
    }
}

macro_rules! checked {
    ($($method:ident($($arg:ident: $request:ty)?) -> $response:ty;)*) => {$(
        fn $method(&self, $($arg: $request)?) -> BoxFuture<'_, Result<$response>> {
            async move {
                let answer = self.inner.$method($($arg)?).await.map_err(|e| self.name_it(e))?;
                self.verify(answer, |a| a.header.as_ref())
            }
            .boxed()
        }
    )*};
}

impl Shard for CheckedShard {
    checked! {
        range(request: pb::RangeRequest) -> pb::RangeResponse;
        put(request: pb::PutRequest) -> pb::PutResponse;
        txn(request: pb::TxnRequest) -> pb::TxnResponse;
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

    fn members(&self) -> BoxFuture<'_, Vec<sharded_etcd_shard::Member>> {
        self.inner.members()
    }

    fn watch(&self, request: pb::WatchCreateRequest) -> BoxFuture<'_, Result<WatchStream>> {
        async move {
            let events = self.inner.watch(request).await.map_err(|e| self.name_it(e))?;
            let (name, cluster_id) = (self.name.clone(), self.cluster_id);
            let check = move |response: Result<pb::WatchResponse>| {
                let response = response?;
                match &response.header {
                    Some(h) if h.cluster_id != cluster_id => Err(ShardError::ambiguous(
                        Code::Unavailable,
                        format!("{name}: another etcd cluster ({:016x}) answers", h.cluster_id),
                    )),
                    _ => Ok(response),
                }
            };
            Ok(events.map(check).boxed())
        }
        .boxed()
    }
}
