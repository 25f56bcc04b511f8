//! Adapter for real etcd: the [`Shard`] port over gRPC.
//!
//! # Certainty
//!
//! A caller must know whether a failed write may have been applied. A connection is therefore opened before a request
//! is handed to it: what fails until then, and what the connection hands back unsent, is [`Certainty::NotSent`]. What
//! etcd itself refuses is [`Certainty::Refused`]; everything else is [`Certainty::Ambiguous`] and is never sent again.
//!
//! # Members
//!
//! Requests go round robin over the members. A member that cannot be connected to is passed over at once; one that does
//! not answer, or answers that it has no leader, is passed over for [`SUSPENSION`] while there is another.
//!
//! [`Certainty::NotSent`]: crate::Certainty::NotSent
//! [`Certainty::Refused`]: crate::Certainty::Refused
//! [`Certainty::Ambiguous`]: crate::Certainty::Ambiguous

mod connection;
mod endpoint;
mod failure;
mod pool;
mod unary;
mod watch;

use std::{future::Future, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use prost::Message;
use sharded_etcd_etcd_api::{
    etcdserverpb::{lease_client::LeaseClient, watch_client::WatchClient},
    messages as pb,
};
use tonic::{Code, Status};

use crate::{Member, Result, Shard, ShardError, WatchStream, error::ERR_REQUEST_TOO_LARGE};
use endpoint::Endpoint;
use pool::Pool;
use unary::method;

pub use pool::SUSPENSION;

/// How long one member may take to say how it is.
const MEMBER_ANSWER_MAX: Duration = Duration::from_secs(1);

/// How to talk to the members of one etcd cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdOptions {
    /// How long a call waits for its answer, connecting included. Default 7 s: what etcd itself gives a request (5 s
    /// and two elections of 1 s; server/config `ReqTimeout`).
    pub request_timeout: Duration,
    /// How long `defragment` and a physical `compact` wait: they work through the whole file. Default 10 min.
    pub maintenance_timeout: Duration,
    /// How long one TCP connection attempt may take. Default 2 s.
    pub connect_timeout: Duration,
    /// Largest message in both directions, in bytes. Default 64 MiB; tonic's own limit for answers is 4 MiB.
    pub message_bytes_max: usize,
    /// HTTP/2 connections to each member for calls, at least 1. Default 2. Watches have one more of their own, so that
    /// a watch whose reader is slow cannot use up the flow-control window of calls.
    pub connections: usize,
    /// Time without a sign of life after which a ping is sent while an answer or a watch is open. Default 10 s; etcd
    /// closes connections that ping more often than every 5 s (`--grpc-keepalive-min-time`).
    pub keepalive_interval: Duration,
    /// How long a ping's answer may take before the connection is given up. Default 5 s.
    pub keepalive_timeout: Duration,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        Self {
            request_timeout: Duration::from_secs(7),
            maintenance_timeout: Duration::from_secs(600),
            connect_timeout: Duration::from_secs(2),
            message_bytes_max: 64 << 20,
            connections: 2,
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(5),
        }
    }
}

/// A real etcd cluster, reached over gRPC.
///
/// Connections are opened by the first request that needs them and opened again after they broke. Cloning is cheap and
/// shares them. They close when the last clone and the last stream are dropped.
#[derive(Debug, Clone)]
pub struct EtcdShard {
    calls: Pool,
    watches: Pool,
    /// A connection to each member of its own, for questions that are about the member; opened only by those.
    each: Arc<[(String, Pool)]>,
    origin: http::Uri,
    options: Arc<EtcdOptions>,
}

impl EtcdShard {
    /// A shard with these members (`http://HOST:PORT`, or `HOST:PORT`), without connecting yet.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` when there is no endpoint, or one is not a plain HTTP endpoint.
    pub fn connect_lazy(endpoints: Vec<String>, options: EtcdOptions) -> Result<Self> {
        let members = endpoints.iter().map(|text| text.parse()).collect::<Result<Vec<Endpoint>>>()?;
        let Some(first) = members.first() else {
            return Err(endpoint::invalid("an etcd shard needs at least one endpoint"));
        };
        // etcd routes by path alone; the authority only has to be there.
        let origin = first.origin();
        let options = Arc::new(options);
        Ok(Self {
            calls: Pool::new(&members, options.connections.max(1), &options),
            watches: Pool::new(&members, 1, &options),
            each: members
                .iter()
                .map(|member| (member.name(), Pool::new(std::slice::from_ref(member), 1, &options)))
                .collect(),
            origin,
            options,
        })
    }

    fn lease(&self) -> LeaseClient<Pool> {
        let limit = self.options.message_bytes_max;
        LeaseClient::with_origin(self.calls.clone(), self.origin.clone()).max_decoding_message_size(limit)
    }

    fn watch_client(&self) -> WatchClient<Pool> {
        let limit = self.options.message_bytes_max;
        WatchClient::with_origin(self.watches.clone(), self.origin.clone()).max_decoding_message_size(limit)
    }

    /// Refuses a request over the limit as etcd does. tonic's own check would break off the stream in the middle.
    fn check_size(&self, request: &impl Message) -> Result<()> {
        if request.encoded_len() > self.options.message_bytes_max {
            return Err(ShardError::refused(Code::InvalidArgument, ERR_REQUEST_TOO_LARGE));
        }
        Ok(())
    }

    /// Asks one member, and waits no longer than the request timeout.
    async fn ask<A: Message + Default>(&self, method: &'static str, request: impl Message) -> Result<A> {
        self.bounded(self.call(&self.calls, method, &request)).await
    }

    async fn call<A: Message + Default>(
        &self,
        pool: &Pool,
        method: &'static str,
        request: &impl Message,
    ) -> std::result::Result<A, Status> {
        unary::call(pool, &self.origin, method, request, self.options.message_bytes_max).await
    }

    /// Waits for an answer, but not longer than the request timeout.
    async fn bounded<T>(&self, answer: impl Future<Output = std::result::Result<T, Status>>) -> Result<T> {
        self.bounded_by(self.options.request_timeout, answer).await
    }

    async fn bounded_by<T>(
        &self,
        limit: Duration,
        answer: impl Future<Output = std::result::Result<T, Status>>,
    ) -> Result<T> {
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) => Err(failure::shard_error(&status)),
            Err(_) => Err(ShardError::ambiguous(
                Code::Unavailable,
                format!("no answer from etcd at {} within {limit:?}", self.calls.names()),
            )),
        }
    }
}

impl Shard for EtcdShard {
    fn range(&self, request: pb::RangeRequest) -> BoxFuture<'_, Result<pb::RangeResponse>> {
        Box::pin(self.ask(method::RANGE, request))
    }

    fn put(&self, request: pb::PutRequest) -> BoxFuture<'_, Result<pb::PutResponse>> {
        Box::pin(async move {
            self.check_size(&request)?;
            self.ask(method::PUT, request).await
        })
    }

    fn txn(&self, request: pb::TxnRequest) -> BoxFuture<'_, Result<pb::TxnResponse>> {
        Box::pin(async move {
            self.check_size(&request)?;
            self.ask(method::TXN, request).await
        })
    }

    fn compact(&self, request: pb::CompactionRequest) -> BoxFuture<'_, Result<pb::CompactionResponse>> {
        Box::pin(async move {
            let limit = if request.physical {
                self.options.maintenance_timeout
            } else {
                self.options.request_timeout
            };
            self.bounded_by(limit, self.call(&self.calls, method::COMPACT, &request)).await
        })
    }

    fn watch(&self, request: pb::WatchCreateRequest) -> BoxFuture<'_, Result<WatchStream>> {
        Box::pin(watch::open(self, request))
    }

    fn lease_grant(&self, request: pb::LeaseGrantRequest) -> BoxFuture<'_, Result<pb::LeaseGrantResponse>> {
        Box::pin(self.ask(method::GRANT, request))
    }

    fn lease_revoke(
        &self,
        request: pb::LeaseRevokeRequest,
    ) -> BoxFuture<'_, Result<pb::LeaseRevokeResponse>> {
        Box::pin(self.ask(method::REVOKE, request))
    }

    fn lease_keep_alive(&self, id: i64) -> BoxFuture<'_, Result<pb::LeaseKeepAliveResponse>> {
        Box::pin(async move {
            let mut client = self.lease();
            let request = futures::stream::iter([pb::LeaseKeepAliveRequest { id }]);
            self.bounded(async move {
                let mut answers = client.lease_keep_alive(request).await?.into_inner();
                let answer = answers.message().await?;
                answer.ok_or_else(|| Status::unavailable("etcd ended a keep-alive without an answer"))
            })
            .await
        })
    }

    fn lease_time_to_live(
        &self,
        request: pb::LeaseTimeToLiveRequest,
    ) -> BoxFuture<'_, Result<pb::LeaseTimeToLiveResponse>> {
        Box::pin(self.ask(method::TIME_TO_LIVE, request))
    }

    fn lease_leases(&self) -> BoxFuture<'_, Result<pb::LeaseLeasesResponse>> {
        Box::pin(self.ask(method::LEASES, pb::LeaseLeasesRequest {}))
    }

    fn status(&self) -> BoxFuture<'_, Result<pb::StatusResponse>> {
        Box::pin(self.ask(method::STATUS, pb::StatusRequest {}))
    }

    fn defragment(&self) -> BoxFuture<'_, Result<pb::DefragmentResponse>> {
        Box::pin(async move {
            let request = pb::DefragmentRequest {};
            let answer = self.call(&self.calls, method::DEFRAGMENT, &request);
            self.bounded_by(self.options.maintenance_timeout, answer).await
        })
    }

    fn members(&self) -> BoxFuture<'_, Vec<Member>> {
        Box::pin(futures::future::join_all(self.each.iter().map(|(name, pool)| async move {
            let answer = self.call(pool, method::STATUS, &pb::StatusRequest {});
            let answer: Result<pb::StatusResponse> = self.bounded_by(MEMBER_ANSWER_MAX, answer).await;
            let status = answer.unwrap_or_default();
            let id = status.header.as_ref().map_or(0, |header| header.member_id);
            let ready = id != 0 && status.leader != 0;
            Member { name: name.clone(), ready, leads: ready && status.leader == id }
        })))
    }

    fn alarm(&self, request: pb::AlarmRequest) -> BoxFuture<'_, Result<pb::AlarmResponse>> {
        Box::pin(self.ask(method::ALARM, request))
    }
}
