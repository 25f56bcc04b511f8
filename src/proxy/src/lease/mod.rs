//! Leases of clients, over meta and all shards. What is stored where, and why it holds: [`sharded_etcd_core::lease`].
//!
//! # Guarantees
//! - A lease never ends before its TTL since the last answered keep-alive; a failure anywhere only makes it later.
//! - After a revoke was answered, none of its keys is there and nothing attaches to it, on any proxy.
//! - A helper that stops anywhere, for ever or for a while, does no harm; another one goes on.

mod agenda;
mod all;
mod attach;
mod end;
mod grant;
mod query;
mod sweep;
mod view;

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use sharded_etcd_core::{
    keyspace::ShardIx,
    lease::{LeaseFacts, read_txn},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Shard, ShardError};
use tokio::sync::Semaphore;
use tonic::{Code, Status};

use crate::{
    context::{Context, status_of},
    kv::AttachLeases,
};

pub use attach::Attach;
pub use sharded_etcd_core::lease::NEVER_GRANTED;

/// Leases that clients revoke at once on one proxy; more of them wait.
const REVOKES_MAX: usize = 256;

/// How leases are looked after.
#[derive(Debug, Clone)]
pub struct LeaseOptions {
    /// How long one attempt to end a lease may take before it is given back. 5 s.
    pub attempt_max: Duration,
    /// A helper that leaves a lease's record unchanged for so long is taken over; more than `attempt_max`. 8 s.
    pub silence_max: Duration,
    /// How often this proxy looks for what was left behind, with jitter. 30 s.
    pub sweep_interval: Duration,
    /// How long an id that a client chose rests when a `LeaseRevoke` of it may still be on its way: longer than any
    /// connection keeps a request. 60 s.
    pub rest: Duration,
}

impl Default for LeaseOptions {
    fn default() -> Self {
        Self {
            attempt_max: Duration::from_secs(5),
            silence_max: Duration::from_secs(8),
            sweep_interval: Duration::from_secs(30),
            rest: Duration::from_secs(60),
        }
    }
}

/// The leases of one proxy's clients, and its help with those of all.
pub struct Leases {
    ctx: Arc<Context>,
    options: LeaseOptions,
    view: view::View,
    attached: attach::Attached,
    agenda: agenda::Agenda,
    revokes: Arc<Semaphore>,
}

impl Leases {
    /// Follows the leases in meta, ends those that expire and sweeps, until the context shuts down.
    pub fn start(ctx: Arc<Context>) -> Arc<Self> {
        Self::start_with(ctx, LeaseOptions::default())
    }

    /// [`Leases::start`] with other timings.
    pub fn start_with(ctx: Arc<Context>, options: LeaseOptions) -> Arc<Self> {
        let leases = Arc::new(Self {
            view: view::View::default(),
            attached: attach::Attached::default(),
            agenda: agenda::Agenda::default(),
            revokes: Arc::new(Semaphore::new(REVOKES_MAX)),
            options,
            ctx,
        });
        let tasks = &leases.ctx.tasks;
        tasks.spawn(Arc::clone(&leases).follow());
        tasks.spawn(Arc::clone(&leases).help_loop());
        tasks.spawn(Arc::clone(&leases).sweep_loop());
        leases
    }

    fn meta(&self) -> &Arc<dyn Shard> {
        self.ctx.line.meta()
    }

    /// What meta says about a lease now.
    async fn read(&self, id: i64) -> Result<LeaseFacts, Status> {
        let answer = self.meta().txn(read_txn(id)).await.map_err(meta_status)?;
        LeaseFacts::from_answer(id, answer).map_err(unreadable)
    }

    /// Runs a transaction that reads the facts behind what it does: whether it matched, and the facts after it.
    async fn change(&self, id: i64, txn: pb::TxnRequest) -> Result<(bool, LeaseFacts), Status> {
        let answer = self.meta().txn(txn).await.map_err(meta_status)?;
        let succeeded = answer.succeeded;
        Ok((succeeded, LeaseFacts::from_answer(id, answer).map_err(unreadable)?))
    }

    fn header(&self) -> Option<pb::ResponseHeader> {
        Some(self.ctx.header(self.ctx.line.cut().revision))
    }

    /// A shard's error as a client sees it, naming the shard.
    fn shard_status(&self, shard: ShardIx, error: ShardError) -> Status {
        let cut = self.ctx.line.cut();
        let name = cut.name(shard);
        if error.message.contains(name) {
            status_of(error)
        } else {
            Status::new(error.code, format!("{name}: {}", error.message))
        }
    }
}

impl AttachLeases for Leases {
    fn attach(&self, id: i64, shard: ShardIx) -> BoxFuture<'_, Result<Option<i64>, Status>> {
        async move {
            Ok(match self.attach_on(id, shard).await? {
                Attach::Live { epoch } => Some(epoch),
                Attach::NotFound => None,
            })
        }
        .boxed()
    }

    fn forget(&self, id: i64, shard: ShardIx) {
        self.attached.forget(id, shard);
    }
}

/// etcd's `ErrLeaseNotFound`.
fn not_found() -> Status {
    Status::new(Code::NotFound, sharded_etcd_shard::ERR_LEASE_NOT_FOUND)
}

/// etcd's `ErrLeaseExist`.
fn exists() -> Status {
    Status::new(Code::FailedPrecondition, sharded_etcd_shard::ERR_LEASE_EXIST)
}

fn meta_status(error: ShardError) -> Status {
    Status::new(error.code, format!("meta: {}", error.message))
}

fn unreadable(error: sharded_etcd_core::records::RecordError) -> Status {
    Status::new(Code::FailedPrecondition, error.to_string())
}
