//! Shard managers, and somebody who orders moves, splits and merges.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use sharded_etcd_core::{
    keyspace::{KeyRange, Rid, ShardIx},
    moves::plan_txn,
    records::{self, MovePhase, MoveRecord},
    topology::{Draft, RebalanceMode, Topology, validate},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::{Line, latest};
use sharded_etcd_manager::{
    Failpoints, HistoryOptions, Manager, ManagerOptions, MoverContext, MoverOptions, Progress, Reshaper,
    Throttle, run_move,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    net::Link,
    process::Parts,
    rng::Rng,
    scaling::{self, Routing},
    trace,
    world::World,
};

/// A running shard manager.
pub struct Managing {
    line: Arc<Line>,
    /// Executes moves beside the manager, as a second one would.
    context: MoverContext,
    reshaper: Reshaper,
    manager: Arc<Manager>,
    killed: CancellationToken,
    dead: latest::Sender<bool>,
}

/// The places of managers; `None` while one is not running.
pub type Managers = Mutex<Vec<Option<Arc<Managing>>>>;

/// What managers are told is wanted: where shards stay as they are nothing is begun on its own, and what was begun is
/// finished; else shards that are not wanted have to be emptied.
fn wanted(routing: &Routing) -> Option<Arc<Topology>> {
    let mut draft = Draft::new("sim", routing.wanted);
    if routing.generation == 0 {
        draft.mode = RebalanceMode::Paused;
    }
    draft.moves_max = 2;
    let mut topology = validate(draft).ok()?;
    topology.generation = routing.generation;
    Some(Arc::new(topology))
}

impl Managing {
    /// Starts the manager of a place, and puts it there, unless there is one.
    pub async fn start(world: &Arc<World>, place: usize) {
        if world.managers.lock()[place].is_some() || !world.starting.lock().insert(1000 + place) {
            return;
        }
        if let Some(managing) = Self::begin(world, place).await {
            trace!(world, "manager-{place} runs");
            world.managers.lock()[place] = Some(Arc::new(managing));
        }
        world.starting.lock().remove(&(1000 + place));
    }

    async fn begin(world: &Arc<World>, place: usize) -> Option<Self> {
        let name = format!("manager-{place}");
        let dead = latest::Sender::new(false);
        let mut routings = world.routing.subscribe();
        let routing = routings.borrow_and_update().clone();
        let is_dead = dead.subscribe();
        let Parts { line, shards } = Parts::connect(world, &name, &is_dead, &routing).await?;
        let topology = watch::Sender::new(wanted(&routing)?);
        let received = topology.subscribe();
        let (directory, link) = (shards.directory().clone(), Link::maker(world, &name, &is_dead));
        scaling::follow(world, &name, routings, is_dead, move |routing| {
            routing.apply(&directory, &link);
            if let Some(wanted) = wanted(routing) {
                topology.send_replace(wanted);
            }
        });
        let history = HistoryOptions {
            checkpoint_entries: 4,
            checkpoint_interval: Duration::from_millis(200),
            compact_interval: Duration::from_millis(300),
            lag_max: Duration::from_millis(500),
            segments_max: 2,
        };
        let options = ManagerOptions {
            interval: Duration::from_millis(150),
            history,
            drain_history_max: Duration::from_secs(2),
            ..ManagerOptions::new(Arc::clone(&line), Arc::clone(&shards), received, name)
        };
        let context = MoverContext {
            line: Arc::clone(&line),
            shards: Arc::clone(&shards),
            options: MoverOptions::default(),
            throttle: Arc::new(Throttle::new(None)),
            progress: Arc::new(Progress::default()),
            failpoints: Failpoints::default(),
        };
        let reshaper = Reshaper { line: Arc::clone(&line), shards, failpoints: Failpoints::default() };
        let manager = Manager::start(options);
        let killed = CancellationToken::new();
        Some(Self { line, context, reshaper, manager, killed, dead })
    }

    /// Kills it.
    pub fn kill(self: Arc<Self>) {
        self.dead.send_modify(|dead| *dead = true);
        self.killed.cancel();
        tokio::spawn(async move {
            tokio::join!(self.manager.close(), self.line.close());
        });
    }
}

/// Orders moves, splits and merges, at most so many.
pub async fn order(world: Arc<World>, rng: Rng, stop: CancellationToken, most: u64, pause_ms: u64) {
    for n in 0..most {
        tokio::time::sleep(Duration::from_millis(rng.between(5, pause_ms))).await;
        if stop.is_cancelled() {
            return;
        }
        let running: Vec<Arc<Managing>> = world.managers.lock().iter().flatten().cloned().collect();
        if running.is_empty() {
            continue;
        }
        let managing = Arc::clone(rng.pick(&running));
        let id = format!("{n:x}-{:x}", rng.below(1 << 16));
        let what = rng.below(10);
        let order = async {
            match what {
                0 | 1 => split(&world, &rng, &managing, &id).await,
                2 => merge(&world, &rng, &managing, &id).await,
                _ => begin_move(&world, &rng, &managing, &id).await,
            }
        };
        tokio::select! {
            biased;
            () = managing.killed.cancelled() => {}
            _ = tokio::time::timeout(Duration::from_secs(20), order) => {}
        }
    }
}

async fn split(world: &World, rng: &Rng, managing: &Managing, id: &str) {
    let cut = managing.line.cut();
    let entry = rng.pick(cut.map.entries());
    let at: Bytes = format!("{}{}", rng.pick(&crate::actors::DIRECTORIES), rng.below(5)).into();
    if entry.range.contains(&at) && entry.range.start != at {
        let done = managing.reshaper.split(&entry.rid, &at, id).await;
        trace!(world, "split {} at {at:?} -> {:?}", entry.range, done.map_err(|e| e.to_string()));
    }
}

async fn merge(world: &World, rng: &Rng, managing: &Managing, id: &str) {
    let cut = managing.line.cut();
    let pairs: Vec<_> = cut.map.entries().windows(2).filter(|w| w[0].shard == w[1].shard).collect();
    if !pairs.is_empty() {
        let pair = rng.pick(&pairs);
        let done = managing.reshaper.merge(&pair[0].rid, &pair[1].rid, id).await;
        trace!(world, "merge {} -> {:?}", pair[0].range, done.map_err(|e| e.to_string()));
    }
}

/// Writes a move down, as a plan does; the leading manager finds it there, and perhaps somebody else begins it too.
async fn begin_move(world: &World, rng: &Rng, managing: &Managing, id: &str) {
    let joined = managing.line.cut().names.len() as u64;
    let newest = world.routing.borrow().generation > 0 && rng.chance(40);
    let to = ShardIx(if newest { joined - 1 } else { rng.below(joined) } as u32);
    let meta = managing.line.meta();
    let get = pb::RangeRequest { key: Bytes::from_static(records::MAP), ..Default::default() };
    let Ok(map) = meta.range(get).await else { return };
    let modified = map.kvs.first().map_or(0, |kv| kv.mod_revision);
    let Ok(cut) = managing.line.at_position(modified).await else { return };
    let entry = rng.pick(cut.map.entries());
    if entry.shard == to || cut.left[to.index()] {
        return;
    }
    let record = MoveRecord {
        id: id.to_owned(),
        rid: entry.rid.clone(),
        new_rid: Rid::new(format!("m-{id}")),
        range: entry.range.clone(),
        from: entry.shard,
        to,
        phase: MovePhase::Copying,
        reason: "the story wants it".to_owned(),
    };
    let begun = meta.txn(plan_txn(&record, modified)).await;
    let begun = begun.map(|answer| answer.succeeded).map_err(|e| e.to_string());
    trace!(world, "move {} from {:?} to {to:?} -> {begun:?}", record.range, record.from);
    if begun == Ok(true) && rng.chance(50) {
        let give_up = rng.chance(15).then(|| "the story wants it".to_owned());
        let done = run_move(&managing.context, &record.rid, give_up).await;
        trace!(world, "moved {} -> {:?}", record.range, done.map_err(|e| e.to_string()));
    }
}

/// True if no move is written down.
pub fn are_over(world: &World) -> bool {
    let range = KeyRange::prefix(records::MOVES_PREFIX);
    let request = pb::RangeRequest {
        key: range.request_key(),
        range_end: range.request_end(),
        count_only: true,
        ..Default::default()
    };
    world.meta.range(&request, 0).is_ok_and(|answer| answer.count == 0)
}

/// What moves, splits and merges leave behind at rest: one open fence for each ownership, and each key once.
///
/// # Errors
/// If something else is there.
pub fn require_clean(world: &World) -> Result<(), String> {
    let truth = world.truth.lock();
    let mut stored = 0;
    for (ix, etcd, revision) in truth.shards_there() {
        // As far as it is part of the line: a write whose outcome nobody knows may never be.
        let list = |key: Vec<u8>, end: Vec<u8>| {
            let (key, range_end) = (key.into(), end.into());
            let request = pb::RangeRequest { key, range_end, revision, ..Default::default() };
            etcd.range(&request, 0).map(|answer| answer.kvs).map_err(|e| e.to_string())
        };
        let hidden = |kind: &str| {
            let range = KeyRange::prefix(&[records_prefix(), kind.as_bytes()].concat());
            list(range.start.to_vec(), range.end.to_vec())
        };
        for kind in ["M/", "P/"] {
            if let Some(kv) = hidden(kind)?.first() {
                return Err(format!("{} still has {:?}", etcd.name, kv.key));
            }
        }
        let mut fences: Vec<Bytes> = hidden("F/")?.into_iter().map(|kv| kv.key).collect();
        let owned = truth.owners().iter().filter(|o| o.2 == ix);
        let mut expected: Vec<Bytes> = owned.map(|o| records::fence_key(&o.1)).collect();
        fences.sort();
        expected.sort();
        if fences != expected {
            return Err(format!("{} has the fences {fences:?}, not {expected:?}", etcd.name));
        }
        stored += list(vec![0], records_prefix().to_vec())?.len();
    }
    let visible = truth.keys.range(b"\0", b"\0", truth.revision).len();
    if stored == visible { Ok(()) } else { Err(format!("{stored} keys are stored, {visible} are visible")) }
}

fn records_prefix() -> &'static [u8] {
    sharded_etcd_core::keyspace::RESERVED
}
