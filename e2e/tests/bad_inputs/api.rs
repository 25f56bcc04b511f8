//! Every service of one endpoint, and how requests to it end, as texts that can be compared.

use std::{fmt::Debug, time::Duration};

use bytes::Bytes;
use sharded_etcd_etcd_api::{
    etcdserverpb::{
        auth_client::AuthClient, cluster_client::ClusterClient, kv_client::KvClient,
        lease_client::LeaseClient, maintenance_client::MaintenanceClient, watch_client::WatchClient,
    },
    messages as pb,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, transport::Channel};

/// How long a call may take until it counts as hanging.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// A request to one of the services.
#[derive(Debug, Clone)]
pub enum Ask {
    Range(pb::RangeRequest),
    RangeStream(pb::RangeRequest),
    Put(pb::PutRequest),
    Delete(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(i64),
    Grant {
        id: i64,
        ttl: i64,
    },
    Revoke(i64),
    TimeToLive(i64),
    KeepAlive(i64),
    /// Watch requests on one stream, and the number of answers to look at.
    Watch(Vec<pb::RequestUnion>, usize),
    Authenticate(pb::AuthenticateRequest),
}

/// Clients of one endpoint.
#[derive(Clone)]
pub struct Api {
    pub kv: KvClient<Channel>,
    pub watch: WatchClient<Channel>,
    pub lease: LeaseClient<Channel>,
    pub cluster: ClusterClient<Channel>,
    pub maintenance: MaintenanceClient<Channel>,
    pub auth: AuthClient<Channel>,
}

impl Api {
    /// Connects to `HOST:PORT`, with or without a scheme.
    pub async fn connect(endpoint: &str) -> Self {
        let address = endpoint.trim_start_matches("http://");
        let endpoint = Channel::from_shared(format!("http://{address}")).unwrap().timeout(ANSWER_LIMIT);
        let channel = endpoint.connect().await.unwrap();
        Self {
            kv: KvClient::new(channel.clone()),
            watch: WatchClient::new(channel.clone()),
            lease: LeaseClient::new(channel.clone()),
            cluster: ClusterClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel.clone()),
            auth: AuthClient::new(channel),
        }
    }

    /// What a refused request must not change: all keys, the revision and the leases.
    pub async fn state(&mut self) -> (Vec<pb::KeyValue>, i64, Vec<i64>) {
        let all = pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
        let answer = self.kv.range(all).await.unwrap().into_inner();
        let leases = self.lease.lease_leases(pb::LeaseLeasesRequest {}).await.unwrap().into_inner();
        let mut leases: Vec<_> = leases.leases.iter().map(|lease| lease.id).collect();
        leases.sort_unstable();
        (answer.kvs, answer.header.unwrap().revision, leases)
    }

    /// Sends a request; `Code: text` if it is refused, `ok` and what matters of the answer if not.
    pub async fn ask(&mut self, ask: Ask) -> String {
        match ask {
            Ask::Range(r) => told(self.kv.range(r).await, |a| format!("ok {} keys", a.kvs.len())),
            Ask::RangeStream(r) => match self.kv.range_stream(r).await {
                Ok(stream) => {
                    told(stream.into_inner().message().await.map(Response::new), |_| "ok".to_owned())
                }
                Err(status) => refusal(&status),
            },
            Ask::Put(r) => told(self.kv.put(r).await, |_| "ok".to_owned()),
            Ask::Delete(r) => told(self.kv.delete_range(r).await, |a| format!("ok {} deleted", a.deleted)),
            Ask::Txn(r) => told(self.kv.txn(r).await, |a| format!("ok succeeded {}", a.succeeded)),
            Ask::Compact(revision) => {
                let request = pb::CompactionRequest { revision, physical: true };
                told(self.kv.compact(request).await, |_| "ok".to_owned())
            }
            Ask::Grant { id, ttl } => {
                let request = pb::LeaseGrantRequest { id, ttl };
                // The shortest time is etcd's election timeout and a half, which tests make shorter.
                told(self.lease.lease_grant(request).await, |a| format!("ok ttl raised {}", a.ttl > ttl))
            }
            Ask::Revoke(id) => {
                told(self.lease.lease_revoke(pb::LeaseRevokeRequest { id }).await, |_| "ok".to_owned())
            }
            Ask::TimeToLive(id) => {
                let request = pb::LeaseTimeToLiveRequest { id, keys: true };
                told(self.lease.lease_time_to_live(request).await, |a| {
                    format!("ok id {} ttl {} granted {} keys {}", a.id, a.ttl, a.granted_ttl, a.keys.len())
                })
            }
            Ask::KeepAlive(id) => {
                let beats = tokio_stream::iter([pb::LeaseKeepAliveRequest { id }]);
                match self.lease.lease_keep_alive(beats).await {
                    Ok(stream) => {
                        let answer = stream.into_inner().message().await.map(|a| Response::new(a.unwrap()));
                        told(answer, |a| format!("ok id {} ttl {}", a.id, a.ttl))
                    }
                    Err(status) => refusal(&status),
                }
            }
            Ask::Watch(requests, answers) => self.watch(requests, answers).await,
            Ask::Authenticate(r) => told(self.auth.authenticate(r).await, |_| "ok".to_owned()),
        }
    }

    async fn watch(&mut self, requests: Vec<pb::RequestUnion>, answers: usize) -> String {
        let (sender, receiver) = tokio::sync::mpsc::channel(requests.len());
        for request in requests {
            sender.send(pb::WatchRequest { request_union: Some(request) }).await.unwrap();
        }
        let mut stream = match self.watch.watch(ReceiverStream::new(receiver)).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => return refusal(&status),
        };
        let mut seen = Vec::new();
        while seen.len() < answers {
            let next = tokio::time::timeout(ANSWER_LIMIT, stream.message()).await;
            match next.unwrap_or_else(|_| panic!("only {seen:?} came")) {
                Ok(Some(answer)) => seen.push(watch_answer(&answer)),
                Ok(None) => seen.push("end".to_owned()),
                Err(status) => seen.push(refusal(&status)),
            }
            if seen.last().is_some_and(|last| last == "end") {
                break;
            }
        }
        // Held until here: a client that sends no more is no bad input.
        drop(sender);
        seen.join("; ")
    }
}

fn watch_answer(answer: &pb::WatchResponse) -> String {
    let mut text = format!("id {}", answer.watch_id);
    for (flag, name) in [(answer.created, " created"), (answer.canceled, " canceled")] {
        text.push_str(if flag { name } else { "" });
    }
    if answer.compact_revision != 0 {
        text.push_str(" compacted");
    }
    if !answer.cancel_reason.is_empty() {
        text.push_str(&format!(" ({})", answer.cancel_reason));
    }
    text
}

/// A status as the tables write it.
pub fn refusal(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

fn told<T: Debug>(answer: Result<Response<T>, Status>, ok: impl FnOnce(&T) -> String) -> String {
    match answer {
        Ok(answer) => ok(answer.get_ref()),
        Err(status) => refusal(&status),
    }
}

pub fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: bytes(key), value: bytes(value), ..Default::default() }
}

pub fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: bytes(key), ..Default::default() }
}

/// All keys, on every shard.
pub fn get_all() -> pb::RangeRequest {
    pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() }
}

pub fn delete(key: &str) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: bytes(key), ..Default::default() }
}

pub fn op(request: pb::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

pub fn put_op(key: &str) -> pb::RequestOp {
    op(pb::Request::RequestPut(put(key, "x")))
}

pub fn get_op(request: pb::RangeRequest) -> pb::RequestOp {
    op(pb::Request::RequestRange(request))
}

pub fn txn(success: Vec<pb::RequestOp>) -> pb::TxnRequest {
    pb::TxnRequest { success, ..Default::default() }
}

/// True if the key exists.
pub fn exists(key: &str) -> pb::Compare {
    pb::Compare {
        result: pb::CompareResult::Greater.into(),
        target: pb::CompareTarget::Version.into(),
        key: bytes(key),
        target_union: Some(pb::TargetUnion::Version(0)),
        ..Default::default()
    }
}

/// A transaction in a transaction, so many times.
pub fn nested(depth: usize, innermost: Vec<pb::RequestOp>) -> pb::TxnRequest {
    (0..depth).fold(txn(innermost), |inner, _| txn(vec![op(pb::Request::RequestTxn(inner))]))
}
