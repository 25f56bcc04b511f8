//! `v3electionpb.Election`: who created a key below the election's name first leads; the key's value is what it
//! proclaims.

use std::pin::pin;

use bytes::Bytes;
use futures::StreamExt;
use sharded_etcd_etcd_api::{
    etcdserverpb::{kv_server::Kv, lease_server::Lease, watch_server::Watch},
    messages as pb,
    v3electionpb::{
        CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
        ProclaimResponse, ResignRequest, ResignResponse, election_server::Election,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::{
    OnDrop, Recipes, by_creation, created_at, end_of, first_of, get, key_of, op, prefix_of, put, revision,
    seen,
};

/// Answers to who observes that wait for the client at most.
const ANSWERS_MAX: usize = 16;

/// The observer is gone, or what it reads has ended: with what is told of it, if anything is.
struct Ended(Option<Status>);

impl From<Status> for Ended {
    /// As in etcd the stream just ends, whatever the reason; but clients of a server that stops are to go on elsewhere.
    fn from(status: Status) -> Self {
        Self(Some(status).filter(|status| status.code() == Code::Unavailable))
    }
}

impl<K: Kv, W: Watch, L: Lease> Recipes<K, W, L> {
    /// Puts the leader's value, if it leads still.
    async fn proclaim_as(
        &self,
        leader: &LeaderKey,
        value: Bytes,
    ) -> Result<Option<pb::ResponseHeader>, Status> {
        let request = pb::TxnRequest {
            compare: vec![created_at(&leader.key, leader.rev)],
            success: vec![put(&leader.key, value, leader.lease)],
            failure: Vec::new(),
        };
        let answer = self.txn(request).await?;
        if answer.succeeded { Ok(answer.header) } else { Err(Status::unknown("election: not leader")) }
    }

    /// Deletes the leader's key, if it is still that one.
    async fn resign_as(&self, leader: &LeaderKey) -> Result<Option<pb::ResponseHeader>, Status> {
        let delete = pb::DeleteRangeRequest { key: leader.key.clone(), ..Default::default() };
        let request = pb::TxnRequest {
            compare: vec![created_at(&leader.key, leader.rev)],
            success: vec![op(pb::Request::RequestDeleteRange(delete))],
            failure: Vec::new(),
        };
        Ok(self.txn(request).await?.header)
    }

    /// The first key of an election as it is now, with the header it was read under.
    async fn leader_of(&self, prefix: &Bytes) -> Result<LeaderResponse, Status> {
        let mut answer = self.range(by_creation(prefix, pb::SortOrder::Ascend)).await?;
        Ok(LeaderResponse { header: answer.header, kv: answer.kvs.pop() })
    }

    /// Sends each leader, and what it proclaims.
    async fn tell_leaders(
        &self,
        prefix: Bytes,
        answers: mpsc::Sender<Result<LeaderResponse, Status>>,
    ) -> Result<(), Ended> {
        loop {
            let mut leader = self.leader_of(&prefix).await?;
            let kv = match leader.kv.take() {
                Some(kv) => kv,
                None => {
                    let kv = self.first_put(&prefix, revision(&leader.header)).await?;
                    if let Some(header) = &mut leader.header {
                        header.revision = kv.mod_revision;
                    }
                    kv
                }
            };
            let create = pb::WatchCreateRequest {
                key: kv.key.clone(),
                start_revision: revision(&leader.header) + 1,
                ..Default::default()
            };
            leader.kv = Some(kv);
            answers.send(Ok(leader)).await.map_err(|_| Ended(None))?;
            let mut changes = pin!(self.watch(create).await?);
            'leads: loop {
                let change = changes.next().await.ok_or(Ended(None))?;
                let pb::WatchResponse { header, events, .. } = seen(change)?;
                for event in events {
                    if event.r#type() == pb::EventType::Delete {
                        break 'leads;
                    }
                    let answer = LeaderResponse { header, kv: event.kv };
                    answers.send(Ok(answer)).await.map_err(|_| Ended(None))?;
                }
            }
        }
    }

    /// Waits for the first put below a prefix from a revision on.
    async fn first_put(&self, prefix: &Bytes, start_revision: i64) -> Result<pb::KeyValue, Ended> {
        let create = pb::WatchCreateRequest {
            key: prefix.clone(),
            range_end: end_of(prefix),
            start_revision,
            ..Default::default()
        };
        let mut answers = pin!(self.watch(create).await?);
        loop {
            let answer = seen(answers.next().await.ok_or(Ended(None))?)?;
            let put = answer.events.into_iter().find(|event| event.r#type() == pb::EventType::Put);
            if let Some(kv) = put.and_then(|event| event.kv) {
                return Ok(kv);
            }
        }
    }
}

/// The leader that a request must name.
fn named(leader: Option<LeaderKey>) -> Result<LeaderKey, Status> {
    leader.ok_or_else(|| Status::unknown("\"leader\" field must be provided"))
}

#[tonic::async_trait]
impl<K: Kv, W: Watch, L: Lease> Election for Recipes<K, W, L> {
    type ObserveStream = ReceiverStream<Result<LeaderResponse, Status>>;

    /// Answers once the election is won. A client that does not wait so long is no candidate any more.
    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        let CampaignRequest { name, lease, value } = request.into_inner();
        let lease = self.lease(lease).await?;
        let prefix = prefix_of(&name);
        let key = key_of(&prefix, lease);
        let enter = pb::TxnRequest {
            compare: vec![created_at(&key, 0)],
            success: vec![put(&key, value.clone(), lease)],
            failure: vec![get(&key)],
        };
        let answer = self.txn(enter).await?;
        let mut leader = LeaderKey { name, key, rev: revision(&answer.header), lease };
        let there = first_of(&answer, 0).filter(|_| !answer.succeeded);
        if let Some(there) = there {
            leader.rev = there.create_revision;
        }
        let (recipes, candidate) = (self.clone(), leader.clone());
        let mut left = OnDrop::new(async move {
            // What cannot be deleted now goes with its lease.
            let _ = recipes.resign_as(&candidate).await;
        });
        if there.is_some_and(|there| there.value != value) {
            // A candidate that cannot say its value is none: it resigns as this is left.
            self.proclaim_as(&leader, value).await?;
        }
        let won = self.until_deleted(&prefix, leader.rev - 1).await;
        left.disarm();
        won?;
        Ok(Response::new(CampaignResponse { header: answer.header, leader: Some(leader) }))
    }

    async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        let ProclaimRequest { leader, value } = request.into_inner();
        let mut leader = named(leader)?;
        leader.lease = self.lease(leader.lease).await?;
        let header = self.proclaim_as(&leader, value).await?;
        Ok(Response::new(ProclaimResponse { header }))
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        let leader = self.leader_of(&prefix_of(&request.into_inner().name)).await?;
        if leader.kv.is_none() {
            return Err(Status::unknown("election: no leader"));
        }
        Ok(Response::new(leader))
    }

    async fn observe(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let prefix = prefix_of(&request.into_inner().name);
        let (answers, stream) = mpsc::channel(ANSWERS_MAX);
        let recipes = self.clone();
        tokio::spawn(async move {
            let told = answers.clone();
            tokio::select! {
                ended = recipes.tell_leaders(prefix, answers) => if let Err(Ended(Some(status))) = ended {
                    // If the client is gone nobody hears it.
                    let _ = told.send(Err(status)).await;
                },
                () = told.closed() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        let leader = named(request.into_inner().leader)?;
        let header = self.resign_as(&leader).await?;
        Ok(Response::new(ResignResponse { header }))
    }
}
