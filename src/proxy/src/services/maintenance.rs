//! etcd's `Maintenance` service, over all shards.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::{future::join_all, stream::BoxStream};
use parking_lot::Mutex;
use sharded_etcd_core::keyspace::ShardIx;
use sharded_etcd_etcd_api::{etcdserverpb::maintenance_server::Maintenance, messages as pb};
use sharded_etcd_shard::{Shard, ShardError};
use tokio::time::{Instant, timeout};
use tonic::{Request, Response, Status};

use super::{CLUSTER_VERSION, ETCD_VERSION};
use crate::{context::Context, register::Registration};

/// Sizes are asked for at most this often.
const SIZES_AGE_MAX: Duration = Duration::from_secs(1);
/// A shard that takes longer is left out: one that is away must not fail the health checks of all.
const ASK_MAX: Duration = Duration::from_secs(1);

/// etcd's `Maintenance` service.
pub struct MaintenanceService {
    ctx: Arc<Context>,
    registration: Arc<Registration>,
    sizes: tokio::sync::Mutex<()>,
    newest: Mutex<Option<(Instant, Totals)>>,
}

/// What all shards together say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Totals {
    size: i64,
    in_use: i64,
    quota: i64,
    errors: Vec<String>,
}

impl Totals {
    /// Adds a shard's answer. One that gave none leaves a line in the errors.
    fn add(&mut self, name: &str, answer: Result<pb::StatusResponse, String>) {
        match answer {
            Ok(status) => {
                self.size += status.db_size;
                self.in_use += status.db_size_in_use;
                self.quota += status.db_size_quota;
                self.errors.extend(status.errors.iter().map(|error| format!("{name}: {error}")));
            }
            Err(error) => self.errors.push(error),
        }
    }
}

impl MaintenanceService {
    /// The service; the leader is one of the live registrations.
    pub fn new(ctx: Arc<Context>, registration: Arc<Registration>) -> Self {
        let (sizes, newest) = (tokio::sync::Mutex::new(()), Mutex::new(None));
        Self { ctx, registration, sizes, newest }
    }

    fn header(&self) -> Option<pb::ResponseHeader> {
        Some(self.ctx.header(self.ctx.line.cut().revision))
    }

    /// The shards that are part of the line, by name, with their connections.
    async fn shards(&self) -> Vec<(String, Result<Arc<dyn Shard>, ShardError>)> {
        let cut = self.ctx.line.cut();
        let joined = (0..cut.names.len()).filter(|&i| !cut.left[i]);
        let connecting = joined.map(|i| {
            let (ctx, shard) = (Arc::clone(&self.ctx), ShardIx(i as u32));
            let name = cut.name(shard).to_owned();
            async move {
                let late = |_| Err(ShardError::not_sent(format!("{name}: no answer within {ASK_MAX:?}")));
                let connection = timeout(ASK_MAX, ctx.shards.get(shard)).await.unwrap_or_else(late);
                (name, connection)
            }
        });
        join_all(connecting).await
    }

    /// The shards, and meta: where there may be alarms.
    async fn stores(&self) -> Vec<(String, Result<Arc<dyn Shard>, ShardError>)> {
        let mut stores = self.shards().await;
        stores.push(("meta".to_owned(), Ok(Arc::clone(self.ctx.line.meta()))));
        stores
    }

    /// The shards' sizes, not older than a second.
    async fn totals(&self) -> Totals {
        // One asks, the others wait for it.
        let _turn = self.sizes.lock().await;
        if let Some((at, totals)) = self.newest.lock().clone()
            && at.elapsed() < SIZES_AGE_MAX
        {
            return totals;
        }
        let asking = self.shards().await.into_iter().map(|(name, connection)| async move {
            let answer = match connection {
                Ok(connection) => match timeout(ASK_MAX, connection.status()).await {
                    Ok(answer) => answer.map_err(|e| named(&name, &e.message)),
                    Err(_) => Err(format!("{name}: no answer within {ASK_MAX:?}")),
                },
                Err(error) => Err(named(&name, &error.message)),
            };
            (name, answer)
        });
        let mut totals = Totals::default();
        for (name, answer) in join_all(asking).await {
            totals.add(&name, answer);
        }
        *self.newest.lock() = Some((Instant::now(), totals.clone()));
        totals
    }

    /// The kinds of alarms that are raised anywhere. What cannot be reached is passed over: its ranges say so themselves.
    async fn raised(&self, kind: i32) -> BTreeSet<i32> {
        let asking = self.stores().await.into_iter().map(|(name, store)| async move {
            let get = pb::AlarmRequest { alarm: kind, ..Default::default() };
            match timeout(ASK_MAX, async { store?.alarm(get).await }).await {
                Ok(Ok(answer)) => answer.alarms.into_iter().map(|alarm| alarm.alarm).collect(),
                Ok(Err(error)) => {
                    tracing::debug!(shard = %name, %error, "alarms were not read");
                    Vec::new()
                }
                Err(_) => Vec::new(),
            }
        });
        join_all(asking).await.into_iter().flatten().collect()
    }

    /// Disarms alarms everywhere; those that were raised.
    async fn disarm(&self, kind: i32) -> Result<BTreeSet<i32>, Status> {
        let mut disarmed = BTreeSet::new();
        for (name, store) in self.stores().await {
            let failed = |e: ShardError| Status::new(e.code, named(&name, &e.message));
            let store = store.map_err(failed)?;
            let get = pb::AlarmRequest { alarm: kind, ..Default::default() };
            for raised in store.alarm(get).await.map_err(failed)?.alarms {
                let request = pb::AlarmRequest {
                    action: pb::alarm_request::AlarmAction::Deactivate.into(),
                    member_id: raised.member_id,
                    alarm: raised.alarm,
                };
                store.alarm(request).await.map_err(failed)?;
                disarmed.insert(raised.alarm);
            }
        }
        Ok(disarmed)
    }
}

/// A message that names the shard, once.
fn named(name: &str, message: &str) -> String {
    if message.contains(name) { message.to_owned() } else { format!("{name}: {message}") }
}

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    /// Alarms of shards are shown as this member's: clients know no shards. Disarming disarms them everywhere.
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        use pb::alarm_request::AlarmAction;
        let request = request.into_inner();
        let kinds = match request.action() {
            AlarmAction::Get => self.raised(request.alarm).await,
            AlarmAction::Deactivate => self.disarm(request.alarm).await?,
            AlarmAction::Activate => {
                return Err(Status::failed_precondition(
                    "alarms are raised by the shards themselves: activate one on the shard's own endpoint",
                ));
            }
        };
        let member_id = self.ctx.identity.member_id;
        let alarms = kinds.into_iter().map(|alarm| pb::AlarmMember { member_id, alarm }).collect();
        Ok(Response::new(pb::AlarmResponse { header: self.header(), alarms }))
    }

    /// Sizes and quota are sums over the shards; the log stands for raft's; one of the live proxies is the leader.
    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let totals = self.totals().await;
        let position = u64::try_from(self.ctx.line.cut().position).unwrap_or_default();
        Ok(Response::new(pb::StatusResponse {
            header: self.header(),
            version: ETCD_VERSION.to_owned(),
            db_size: totals.size,
            leader: self.registration.leader(),
            raft_index: position,
            raft_term: self.ctx.raft_term,
            raft_applied_index: position,
            errors: totals.errors,
            db_size_in_use: totals.in_use,
            is_learner: false,
            storage_version: CLUSTER_VERSION.to_owned(),
            db_size_quota: totals.quota,
            downgrade_info: Some(pb::DowngradeInfo::default()),
        }))
    }

    /// One shard after the other, so that at most one of them pauses; of a shard with several members, the one that the
    /// connection leads to.
    async fn defragment(
        &self,
        _: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        let mut failed = Vec::new();
        for (name, connection) in self.shards().await {
            let result = match connection {
                Ok(connection) => connection.defragment().await.map(|_| ()),
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                failed.push((error.code, named(&name, &error.message)));
            }
        }
        match failed.first() {
            None => Ok(Response::new(pb::DefragmentResponse { header: self.header() })),
            Some(&(code, _)) => {
                let all: Vec<&str> = failed.iter().map(|(_, text)| text.as_str()).collect();
                Err(Status::new(code, format!("not defragmented: {}", all.join("; "))))
            }
        }
    }

    async fn hash(&self, _: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        Err(no_hash())
    }

    async fn hash_kv(&self, _: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        Err(no_hash())
    }

    type SnapshotStream = BoxStream<'static, Result<pb::SnapshotResponse, Status>>;

    async fn snapshot(
        &self,
        _: Request<pb::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(Status::unimplemented(
            "there is no snapshot of several shards in one file: take one of each shard and of meta from their own \
             endpoints (etcdctl snapshot save)",
        ))
    }

    async fn move_leader(
        &self,
        _: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        Err(Status::unimplemented(
            "the endpoint's leader is only a name: move the leader of a shard on the shard's own endpoint",
        ))
    }

    async fn downgrade(
        &self,
        _: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        Err(Status::unimplemented(
            "set the version of the shards in the spec instead: they are changed one at a time",
        ))
    }
}

fn no_hash() -> Status {
    Status::unimplemented(
        "hashes are of one member's file and differ between shards: compare the members of one shard on their own \
         endpoints",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_name_the_shard_that_is_away() {
        let mut totals = Totals::default();
        let status = pb::StatusResponse {
            db_size: 10,
            db_size_in_use: 4,
            db_size_quota: 100,
            errors: vec!["NOSPACE".into()],
            ..Default::default()
        };
        totals.add("shard-0", Ok(status.clone()));
        totals.add("shard-1", Err(named("shard-1", "connection refused")));
        totals.add("shard-2", Ok(pb::StatusResponse { errors: Vec::new(), ..status }));
        assert_eq!((totals.size, totals.in_use, totals.quota), (20, 8, 200));
        assert_eq!(totals.errors, ["shard-0: NOSPACE", "shard-1: connection refused"]);
        assert_eq!(named("shard-1", "shard-1 is quarantined"), "shard-1 is quarantined");
    }
}
