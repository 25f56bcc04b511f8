//! The admin service: what `status` and `plan` ask. It works in every process that has a line and shards.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use sharded_etcd_admin_api::v1::{
    OrderRequest, OrderResponse, OrderStateRequest, OrderStateResponse, PlanRequest, PlanResponse,
    StatusRequest, StatusResponse, admin_server::Admin,
};
use sharded_etcd_core::{
    keyspace::{KeyRange, Rid, ShardIx},
    line::Joined,
    moves::ops,
    placement::{Limits, plan},
    records::{MovePhase, MoveRecord, Record},
    topology::Topology,
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::{Cut, Line, Shards};
use sharded_etcd_shard::{Member, with_causes};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::{
    error::Result,
    history::read_moves,
    mover::observe::get,
    orders::{self, OrderError},
    report::{
        Condition, LeftShard, MoveStatus, RANGES_LISTED_MAX, RangeMapStatus, RangeStatus, ShardStatus,
        TopologyStatus,
    },
    sizes::Sizes,
    status::Report,
};

/// How long one shard may take to be counted before it is reported as unreachable.
const SHARD_WAIT: Duration = Duration::from_secs(3);
/// A status that is not older than this is given again: many may ask.
const STATUS_AGE_MAX: Duration = Duration::from_millis(500);

/// Reads a resource: from JSON (apiVersion, kind, metadata, spec) to a topology, or what is wrong with it.
pub type ReadResource = Arc<dyn Fn(&str) -> std::result::Result<Topology, String> + Send + Sync>;

/// The admin service.
pub struct AdminService {
    line: Arc<Line>,
    shards: Arc<Shards>,
    /// Sizes that are kept up to date by a manager of the same process; else they are read when a plan is asked for.
    sizes: Arc<Sizes>,
    read_resource: ReadResource,
    endpoint: Option<String>,
    last: Mutex<Option<(Instant, String)>>,
    /// One plan at a time: it may have to read all data.
    planning: tokio::sync::Mutex<()>,
}

impl AdminService {
    /// The service. `sizes` are those of the manager in the same process ([`Manager::sizes`](crate::Manager::sizes)), or
    /// new ones. `endpoint` is what clients connect to, if known.
    pub fn new(
        line: Arc<Line>,
        shards: Arc<Shards>,
        sizes: Arc<Sizes>,
        read_resource: ReadResource,
        endpoint: Option<String>,
    ) -> Self {
        Self {
            line,
            shards,
            sizes,
            read_resource,
            endpoint,
            last: Mutex::default(),
            planning: tokio::sync::Mutex::default(),
        }
    }

    async fn read_status(&self) -> Result<TopologyStatus> {
        let cut = self.line.refresh().await?;
        let moves = read_moves(&self.line).await?;
        let report = self.read_report().await;
        let sizes: HashMap<&Rid, (u64, u64)> =
            report.iter().flat_map(|r| &r.sizes).map(|(rid, keys, bytes)| (rid, (*keys, *bytes))).collect();
        let joined = (0..cut.names.len()).filter(|&i| !cut.left[i]);
        let counted = joined.map(|i| {
            let counting = self.count(ShardIx(u32::try_from(i).unwrap_or(u32::MAX)), &cut);
            futures::future::join(counting, self.members(&cut.names[i]))
        });
        let counted = futures::future::join_all(counted).await;
        let waiting = report.iter().flat_map(|r| &r.shards).filter(|r| r.phase == "Joining");
        let waiting = waiting.map(|reported| async move { (reported, self.members(&reported.name).await) });
        let waiting = futures::future::join_all(waiting).await;
        let mut ranges = Vec::new();
        let mut topology = Vec::new();
        for (shard, members) in counted {
            let reported = report.iter().flat_map(|r| &r.shards).find(|r| r.name == shard.name);
            let mut total = (0, 0);
            for (entry, keys) in shard.ranges {
                let bytes = sizes.get(&entry.rid).map(|(k, b)| scaled(*b, *k, keys));
                total = (total.0 + keys.unwrap_or(0), total.1 + bytes.unwrap_or(0));
                ranges.push((entry, keys, bytes));
            }
            let phase = match (&shard.failure, reported) {
                (Some(why), _) if why.contains("quarantined") => "Quarantined",
                (Some(_), _) => "Unreachable",
                (None, Some(r)) => r.phase.as_str(),
                (None, None) => "Serving",
            };
            let told = reported.map(|r| r.message.clone()).filter(|m| !m.is_empty());
            topology.push(ShardStatus {
                incarnation: self.line.with_fold(|f| f.shard(shard.ix).map(|s| i64::from(s.incarnation))),
                phase: phase.to_owned(),
                members: count_of(&members),
                ready: count_of(members.iter().filter(|m| m.ready)),
                leader: leader_of(&members),
                db_size: shard.db_size,
                keys: signed(total.0),
                bytes: signed(total.1),
                ranges: i64::try_from(cut.map.entries().iter().filter(|e| e.shard == shard.ix).count())
                    .unwrap_or(0),
                message: shard.failure.or(told),
                shard: shard.name,
            });
        }
        for (reported, members) in waiting {
            topology.push(ShardStatus {
                shard: reported.name.clone(),
                incarnation: self.shards.directory().incarnation(&reported.name).map(i64::from),
                phase: reported.phase.clone(),
                members: count_of(&members),
                ready: count_of(members.iter().filter(|m| m.ready)),
                leader: leader_of(&members),
                db_size: 0,
                keys: 0,
                bytes: 0,
                ranges: 0,
                message: Some(reported.message.clone()).filter(|m| !m.is_empty()),
            });
        }
        ranges.sort_by(|a, b| a.0.range.start.cmp(&b.0.range.start));
        let text = |key: &[u8]| key.escape_ascii().to_string();
        let listed = ranges.iter().take(RANGES_LISTED_MAX).map(|(entry, keys, bytes)| RangeStatus {
            start: text(&entry.range.start),
            end: text(&entry.range.end),
            shard: cut.name(entry.shard).to_owned(),
            keys: keys.map(signed),
            bytes: bytes.map(signed),
            rid: entry.rid.to_string(),
        });
        Ok(TopologyStatus {
            observed_generation: report.as_ref().map(|r| r.generation).filter(|generation| *generation > 0),
            left: self.line.with_fold(|fold| left(fold.shards())),
            endpoint: self.endpoint.clone(),
            shards: i64::try_from(topology.len()).unwrap_or(i64::MAX),
            keys: topology.iter().map(|s| s.keys).sum(),
            bytes: topology.iter().map(|s| s.bytes).sum(),
            revision: cut.revision,
            compact_revision: cut.compacted,
            conditions: conditions(&topology, &moves, report.as_ref()),
            range_map: RangeMapStatus {
                generation: i64::try_from(cut.map.generation).unwrap_or(i64::MAX),
                total: i64::try_from(cut.map.entries().len()).unwrap_or(i64::MAX),
                ranges: listed.collect(),
            },
            moves: moves.iter().map(|record| move_status(record, &cut, report.as_ref())).collect(),
            load: report.as_ref().and_then(|r| r.load.clone()),
            topology,
        })
    }

    /// The members of a shard; none if this process knows no way to it.
    async fn members(&self, name: &str) -> Vec<Member> {
        let Some(connection) = self.shards.directory().get(name) else { return Vec::new() };
        tokio::time::timeout(SHARD_WAIT, connection.members()).await.unwrap_or_default()
    }

    async fn read_report(&self) -> Option<Report> {
        let answer = self.line.meta().range(get(Report::key())).await.ok()?;
        Report::decode(&answer.kvs.first()?.value).ok()
    }

    /// Counts the keys of a shard's ranges at the cut.
    async fn count(&self, ix: ShardIx, cut: &Cut) -> Counted {
        let entries = cut.map.entries().iter().filter(|e| e.shard == ix);
        let mut counted = Counted {
            ix,
            name: cut.name(ix).to_owned(),
            db_size: 0,
            ranges: entries.map(|e| (e.clone(), None)).collect(),
            failure: None,
        };
        let ranges: Vec<KeyRange> = counted.ranges.iter().map(|(e, _)| e.range.clamped()).collect();
        let revision = cut.v(ix);
        let all = async {
            let shard = self.shards.get(ix).await?;
            let size = shard.status().await?.db_size;
            let mut counts = Vec::with_capacity(ranges.len());
            for range in &ranges {
                let request = pb::RangeRequest {
                    count_only: true,
                    revision,
                    serializable: true,
                    ..ops::range_request(range)
                };
                counts.push(u64::try_from(shard.range(request).await?.count).unwrap_or(0));
            }
            Ok::<_, sharded_etcd_shard::ShardError>((size, counts))
        };
        match tokio::time::timeout(SHARD_WAIT, all).await {
            Ok(Ok((size, counts))) => {
                counted.db_size = size;
                for ((_, keys), count) in counted.ranges.iter_mut().zip(counts) {
                    *keys = Some(count);
                }
            }
            Ok(Err(error)) => counted.failure = Some(error.to_string()),
            Err(_) => {
                counted.failure = Some(format!("no answer within {} s", SHARD_WAIT.as_secs()));
            }
        }
        counted
    }
}

struct Counted {
    ix: ShardIx,
    name: String,
    db_size: i64,
    ranges: Vec<(sharded_etcd_core::keyspace::RangeEntry, Option<u64>)>,
    failure: Option<String>,
}

fn count_of<T>(members: impl IntoIterator<Item = T>) -> i64 {
    i64::try_from(members.into_iter().count()).unwrap_or(i64::MAX)
}

fn leader_of(members: &[Member]) -> Option<String> {
    members.iter().find(|m| m.leads).map(|m| m.name.clone())
}

/// The newest incarnation of each shard that has left.
fn left(shards: &[Joined]) -> Vec<LeftShard> {
    let mut newest = BTreeMap::new();
    for shard in shards.iter().filter(|s| s.left) {
        let incarnation = newest.entry(&shard.name).or_insert(shard.incarnation);
        *incarnation = shard.incarnation.max(*incarnation);
    }
    newest.into_iter().map(|(shard, incarnation)| LeftShard { shard: shard.clone(), incarnation }).collect()
}

/// Bytes of a range with `keys` now, of which `known_keys` had `known_bytes`.
fn scaled(known_bytes: u64, known_keys: u64, keys: Option<u64>) -> u64 {
    match (known_keys, keys) {
        (0, _) | (_, None) => known_bytes,
        (known, Some(keys)) => {
            u64::try_from(u128::from(known_bytes) * u128::from(keys) / u128::from(known)).unwrap_or(u64::MAX)
        }
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn move_status(record: &MoveRecord, cut: &Cut, report: Option<&Report>) -> MoveStatus {
    let told = report.into_iter().flat_map(|r| &r.moves).find(|m| m.id == record.id);
    let phase = match (record.phase, told) {
        (_, Some(told)) => told.phase.clone(),
        (MovePhase::Copying, None) => "copy".to_owned(),
        (MovePhase::Flipped, None) => "purge".to_owned(),
        (MovePhase::Aborting, None) => "abort".to_owned(),
    };
    let message = told.map(|t| t.message.as_str()).filter(|m| !m.is_empty());
    MoveStatus {
        range: record.range.to_string(),
        from: cut.name(record.from).to_owned(),
        to: cut.name(record.to).to_owned(),
        phase,
        progress: told.map_or(0, |t| signed(t.percent)),
        stall_ms: told.and_then(|t| t.stall_ms).map(signed),
        reason: match message {
            Some(message) => format!("{} ({message})", record.reason),
            None => record.reason.clone(),
        },
    }
}

fn conditions(shards: &[ShardStatus], moves: &[MoveRecord], report: Option<&Report>) -> Vec<Condition> {
    let bad: Vec<String> = shards
        .iter()
        .filter(|s| matches!(s.phase.as_str(), "Unreachable" | "Quarantined"))
        .map(|s| format!("{}: {}", s.shard, s.message.clone().unwrap_or_default()))
        .collect();
    let ready = match bad.as_slice() {
        [] => Condition::new("Ready", Some(true), "Serving", "all shards serve".to_owned()),
        bad => Condition::new("Ready", Some(false), "ShardsUnavailable", bad.join("; ")),
    };
    let Some(report) = report else {
        let why = "no shard manager leads; nothing is moved".to_owned();
        return vec![ready, Condition::new("Balanced", None, "NoShardManager", why)];
    };
    let waits: Vec<String> = report.waits.iter().map(|(what, reason)| format!("{what}: {reason}")).collect();
    let failures: Vec<String> = report
        .failures
        .iter()
        .map(|(range, why)| format!("the last move of {range} failed: {why}"))
        .collect();
    let reconciling = if report.settled && moves.is_empty() {
        Condition::new("Reconciling", Some(false), "Settled", "nothing is to be done".to_owned())
    } else if let Some(held) = report.held.as_ref().filter(|held| held.alone && moves.is_empty()) {
        // Nothing gets on by itself: for who waits for the end of what was applied, this is it.
        Condition::new("Reconciling", Some(false), held.reason(), held.message())
    } else {
        let doing = format!("{} moves under way, {} steps planned", moves.len(), report.steps.len());
        let message = [vec![doing], waits.clone()].concat().join("; ");
        Condition::new("Reconciling", Some(true), "Rebalancing", message)
    };
    let balanced = if report.balanced {
        Condition::new("Balanced", Some(true), "Balanced", "no shard is above its share".to_owned())
    } else {
        let message = [report.steps.clone(), waits, failures].concat().join("; ");
        Condition::new("Balanced", Some(false), "Unbalanced", message)
    };
    let awaiting = match report.held.as_ref().filter(|held| held.plan.is_some()) {
        Some(held) => Condition::new("AwaitingApproval", Some(true), "PlanWaits", held.message()),
        None => {
            let why = "no plan waits for an approval".to_owned();
            Condition::new("AwaitingApproval", Some(false), "NothingWaits", why)
        }
    };
    vec![ready, reconciling, balanced, awaiting]
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(
        &self,
        _: Request<StatusRequest>,
    ) -> std::result::Result<Response<StatusResponse>, Status> {
        let last = self.last.lock().clone().filter(|(at, _)| at.elapsed() < STATUS_AGE_MAX);
        if let Some((_, status_json)) = last {
            return Ok(Response::new(StatusResponse { status_json }));
        }
        let status = self.read_status().await.map_err(|e| Status::unavailable(with_causes(&e)))?;
        let status_json = serde_json::to_string(&status).map_err(|e| Status::internal(e.to_string()))?;
        *self.last.lock() = Some((Instant::now(), status_json.clone()));
        Ok(Response::new(StatusResponse { status_json }))
    }

    async fn plan(
        &self,
        request: Request<PlanRequest>,
    ) -> std::result::Result<Response<PlanResponse>, Status> {
        let topology =
            (self.read_resource)(&request.into_inner().resource_json).map_err(Status::invalid_argument)?;
        let _one = self.planning.lock().await;
        self.line.refresh().await.map_err(|e| Status::unavailable(with_causes(&e)))?;
        // Cut points depend on the wanted boundaries: what a manager of this process knows stays as it is.
        let sizes = Sizes::new(Arc::clone(&self.line), Arc::clone(&self.shards));
        sizes.adopt(&self.sizes);
        sizes.refresh(&topology).await;
        let moves = read_moves(&self.line).await.map_err(|e| Status::unavailable(with_causes(&e)))?;
        let moving =
            moves.iter().filter(|m| m.phase != MovePhase::Flipped).map(|m| (m.rid.clone(), m.to)).collect();
        let observation = sizes.observation_as_joined(&topology, &moving);
        let plan = plan(&observation, &topology, &Limits::default());
        let plan_json = serde_json::to_string(&plan).map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(PlanResponse { plan_json }))
    }

    async fn order(
        &self,
        request: Request<OrderRequest>,
    ) -> std::result::Result<Response<OrderResponse>, Status> {
        let json = request.into_inner().order_json;
        let order = serde_json::from_str(&json).map_err(|e| {
            Status::invalid_argument(format!("the order is not readable by this release: {e}"))
        })?;
        match orders::give(&self.line, order).await {
            Ok(id) => Ok(Response::new(OrderResponse { id })),
            Err(error @ OrderError::TooMany) => Err(Status::resource_exhausted(error.to_string())),
            Err(OrderError::Manager(error)) => Err(Status::unavailable(with_causes(&error))),
        }
    }

    async fn order_state(
        &self,
        request: Request<OrderStateRequest>,
    ) -> std::result::Result<Response<OrderStateResponse>, Status> {
        let id = request.into_inner().id;
        let record = orders::look(&self.line, &id).await.map_err(|e| Status::unavailable(with_causes(&e)))?;
        let Some(record) = record else {
            return Err(Status::not_found(format!("no order {id}, or it has been over for ten minutes")));
        };
        let order_json = serde_json::to_string(&record).map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(OrderStateResponse { order_json }))
    }
}
