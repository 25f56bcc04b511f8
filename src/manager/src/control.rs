//! The leader's loop: observe → plan → write down → execute, again and again.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rand::Rng;
use sharded_etcd_core::{
    keyspace::{Rid, ShardIx},
    moves::{ops, plan_txn},
    orders::StepKey,
    placement::{Action, Plan, Step, Wait, plan_approved},
    records::{MovePhase, MoveRecord, Record},
    topology::Topology,
};
use sharded_etcd_line::{Line, Shards};
use sharded_etcd_shard::with_causes;
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    ManagerError, ManagerOptions,
    attend::is_ordered,
    error::Result,
    held::Held,
    history::{History, read_moves},
    leader::Term,
    members::{Members, Waiting},
    mover::{MoverContext, Outcome, observe::read_map, run_move, throttle::Throttle},
    orders::{Orders, approved},
    progress::Progress,
    reshape::Reshaper,
    resting::Resting,
    sizes::Sizes,
    status::{ManagerStatus, Report, ShardReport},
};

/// First and longest pause after a failed execution.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How long a move whose shards fail is tried before it is given up, if it still can be.
const PATIENCE: Duration = Duration::from_secs(60);

/// One term of a leader.
pub(crate) struct Control {
    options: Arc<ManagerOptions>,
    pub(crate) line: Arc<Line>,
    pub(crate) shards: Arc<Shards>,
    pub(crate) sizes: Arc<Sizes>,
    pub(crate) progress: Arc<Progress>,
    throttle: Arc<Throttle>,
    status: watch::Sender<Arc<ManagerStatus>>,
    members: Members,
    history: Arc<History>,
    pub(crate) orders: Orders,
    reshaper: Reshaper,
    token: CancellationToken,
    tasks: TaskTracker,
    running: Arc<Mutex<HashSet<Rid>>>,
    pub(crate) resting: Arc<Resting>,
    /// Ranges that were moved lately.
    settled: Arc<Mutex<HashMap<Rid, Instant>>>,
    lease: i64,
    reported: Option<Report>,
    /// What the leader before remembered is known.
    recalled: bool,
}

impl Control {
    pub(crate) fn new(
        options: Arc<ManagerOptions>,
        sizes: Arc<Sizes>,
        progress: Arc<Progress>,
        status: watch::Sender<Arc<ManagerStatus>>,
        term: Term,
    ) -> Self {
        let (line, shards) = (Arc::clone(&options.line), Arc::clone(&options.shards));
        let Term { token, lease, .. } = term.clone();
        Self {
            members: Members::new(Arc::clone(&line), Arc::clone(&shards), options.drain_history_max, term),
            orders: Orders::new(Arc::clone(&line)),
            history: Arc::new(History::new(Arc::clone(&line), Arc::clone(&shards), options.history.clone())),
            reshaper: Reshaper {
                line: Arc::clone(&line),
                shards: Arc::clone(&shards),
                failpoints: options.failpoints.clone(),
            },
            throttle: Arc::new(Throttle::new(None)),
            tasks: TaskTracker::new(),
            running: Arc::default(),
            resting: Arc::default(),
            settled: Arc::default(),
            reported: None,
            recalled: false,
            options,
            line,
            shards,
            sizes,
            progress,
            status,
            token,
            lease,
        }
    }

    /// Works until the term ends; waits for what is under way to stop.
    pub(crate) async fn run(mut self) {
        let mut topology = self.options.topology.clone();
        let history = self.spawn_history();
        let token = self.token.clone();
        while !self.token.is_cancelled() {
            let wanted = topology.borrow_and_update().clone();
            let again = tokio::select! {
                biased;
                () = token.cancelled() => break,
                again = self.tick(&wanted) => again,
            };
            let pause = match again {
                Ok(true) => Duration::ZERO,
                Ok(false) => self.options.interval,
                Err(error) => {
                    tracing::warn!(error = %with_causes(&error), "shard manager could not do its round");
                    self.status.send_modify(|status| {
                        let mut next = ManagerStatus::clone(status);
                        next.error = Some(with_causes(&error));
                        *status = Arc::new(next);
                    });
                    self.options.interval
                }
            };
            tokio::select! {
                biased;
                () = self.token.cancelled() => {}
                _ = topology.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.tasks.close();
        self.tasks.wait().await;
        let _ = history.await;
        self.status.send_replace(Arc::default());
        self.progress.counters.plans.clear();
    }

    /// Compaction and checkpoints go on whatever the moves do.
    fn spawn_history(&self) -> tokio::task::JoinHandle<()> {
        let (history, token) = (Arc::clone(&self.history), self.token.clone());
        let (topology, interval) = (self.options.topology.clone(), self.options.interval);
        tokio::spawn(async move {
            loop {
                let retention = topology.borrow().compaction_retention;
                tokio::select! {
                    biased;
                    () = token.cancelled() => return,
                    done = history.tick(retention) => {
                        if let Err(error) = done {
                            tracing::warn!(error = %with_causes(&error), "cannot cut history off");
                        }
                    }
                }
                tokio::select! {
                    biased;
                    () = token.cancelled() => return,
                    () = tokio::time::sleep(interval) => {}
                }
            }
        })
    }

    /// One round; true if the next one should follow at once.
    async fn tick(&mut self, topology: &Topology) -> Result<bool> {
        self.throttle.set(topology.rebalance.bytes_per_second_max);
        if !self.recalled {
            let aborted = self.sizes.loads().recall().await?;
            self.resting.recall(&aborted, Instant::now());
            self.recalled = true;
        }
        let joins = self.members.join(topology).await;
        let moves = read_moves(&self.line).await?;
        for record in &moves {
            self.execute(record.rid.clone());
        }
        let mut failures = self.finish_reshapes().await;
        self.sizes.refresh(topology).await;
        // A map that changed since is seen by the guards, or by the next round.
        let moving = moves
            .iter()
            .filter(|m| m.phase != MovePhase::Flipped)
            .map(|m| (m.rid.clone(), m.to))
            .collect::<HashMap<Rid, ShardIx>>();
        if let Err(error) = self.tell().await {
            tracing::debug!(error = %with_causes(&error), "the next leader is told later what to remember");
        }
        let settle = self.options.settle;
        let settled = Arc::clone(&self.settled);
        settled.lock().retain(|_, at| at.elapsed() < settle);
        let observation = self.sizes.observation(topology, &moving, |e| settled.lock().contains_key(&e.rid));
        let open = self.orders.open().await?;
        let approved = approved(&open);
        let plan = plan_approved(&observation, topology, &self.options.limits, &approved);
        let mut acted = self.attend(&open, topology, &plan, &moves, &mut failures).await;
        acted |= self.approve_by_spec(&open, topology, &plan).await.unwrap_or_else(|error| {
            failures.push(Wait { what: "rebalance.approvedPlan".to_owned(), reason: with_causes(&error) });
            false
        });
        // What was begun by hand is not in the plan: it is made anew in the next round, which follows at once.
        if !acted && (self.sizes.complete() || !self.sizes.unreachable().is_empty()) {
            for step in plan.ready().filter(|step| !is_ordered(&open, step)) {
                match self.carry_out(step).await {
                    Ok(done) => acted |= done,
                    Err(error) => failures.push(Wait { what: step.to_string(), reason: with_causes(&error) }),
                }
            }
        }
        let leaves = self.members.leave(topology, &moves).await;
        acted |= leaves.iter().any(|(_, waiting)| waiting.is_none());
        self.publish(topology, (&plan, &approved), &joins, &leaves, failures, &moves).await;
        Ok(acted)
    }

    /// Tells the next leader what it has to remember.
    ///
    /// # Errors
    /// If meta does not take it.
    pub(crate) async fn tell(&self) -> Result<()> {
        self.sizes.loads().tell(self.resting.told(Instant::now())).await
    }

    /// Splits and merges that somebody began are finished before anything is planned on them.
    async fn finish_reshapes(&self) -> Vec<Wait> {
        let cut = self.line.cut();
        let unreachable = self.sizes.unreachable();
        let mut failures = Vec::new();
        for (i, left) in cut.left.iter().enumerate() {
            let ix = ShardIx(u32::try_from(i).unwrap_or(u32::MAX));
            if *left || unreachable.contains_key(&ix) {
                continue;
            }
            if let Err(error) = self.reshaper.finish_pending(ix).await {
                failures.push(Wait { what: cut.name(ix).to_owned(), reason: with_causes(&error) });
            }
        }
        failures
    }

    /// Begins one step of the plan; false if it cannot be begun now.
    pub(crate) async fn carry_out(&self, step: &Step) -> Result<bool> {
        let id = format!("{:016x}", sharded_etcd_line::random::rng().random::<u64>());
        match &step.action {
            Action::Split { rid, at, .. } => {
                let Some((left, right)) = self.reshaper.split(rid, at, &id).await? else { return Ok(false) };
                self.sizes.split(rid, at, &left, &right);
                self.progress.counters.splits.inc();
                Ok(true)
            }
            Action::Merge { left, right, .. } => {
                let done = self.reshaper.merge(left, right, &id).await?.is_some();
                self.progress.counters.merges.inc_by(u64::from(done));
                Ok(done)
            }
            Action::Move { rid, range, to } => {
                if self.resting.rests(range, Instant::now()) {
                    return Ok(false);
                }
                let Some(to) = self.line.with_fold(|fold| fold.shard_named(to)) else { return Ok(false) };
                let begun = self.begin_move(rid, to, &id, &step.reason).await?;
                if begun {
                    self.execute(rid.clone());
                }
                Ok(begun)
            }
        }
    }

    /// Writes a move down.
    async fn begin_move(&self, rid: &Rid, to: ShardIx, id: &str, reason: &str) -> Result<bool> {
        let meta = self.line.meta();
        let Some(map) = read_map(meta.as_ref()).await.map_err(ManagerError::Meta)? else { return Ok(false) };
        let cut = self.line.at_position(map.mod_revision).await?;
        let Some(entry) = cut.map.by_rid(rid) else { return Ok(false) };
        // Who wanted this may have been looking at an older line: a shard that left meanwhile is soon deleted.
        if entry.shard == to || cut.left.get(to.index()).copied().unwrap_or(true) {
            return Ok(false);
        }
        let record = MoveRecord {
            id: id.to_owned(),
            rid: rid.clone(),
            new_rid: Rid::new(format!("m-{id}")),
            range: entry.range.clone(),
            from: entry.shard,
            to,
            phase: MovePhase::Copying,
            reason: reason.to_owned(),
        };
        let answer = meta.txn(plan_txn(&record, map.mod_revision)).await.map_err(ManagerError::Meta)?;
        if answer.succeeded {
            tracing::info!(%rid, range = %record.range, from = cut.name(record.from), to = cut.name(to), reason, "move begins");
        }
        Ok(answer.succeeded)
    }

    /// Executes a move in a task of its own, unless this process does so already.
    fn execute(&self, rid: Rid) {
        if !self.running.lock().insert(rid.clone()) {
            return;
        }
        let context = MoverContext {
            line: Arc::clone(&self.line),
            shards: Arc::clone(&self.shards),
            options: self.options.mover.clone(),
            throttle: Arc::clone(&self.throttle),
            progress: Arc::clone(&self.progress),
            failpoints: self.options.failpoints.clone(),
        };
        let executor = Executor {
            context,
            sizes: Arc::clone(&self.sizes),
            resting: Arc::clone(&self.resting),
            settled: Arc::clone(&self.settled),
        };
        let (token, running) = (self.token.clone(), Arc::clone(&self.running));
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = token.cancelled() => {}
                () = executor.run(&rid) => {}
            }
            running.lock().remove(&rid);
        });
    }

    async fn publish(
        &mut self,
        topology: &Topology,
        (plan, approved): (&Plan, &[StepKey]),
        joins: &[(String, String)],
        leaves: &[(String, Waiting)],
        failures: Vec<Wait>,
        moves: &[MoveRecord],
    ) {
        let wait = |(what, reason): &(String, String)| Wait { what: what.clone(), reason: reason.clone() };
        let mut waits = plan.waits.clone();
        waits.extend(joins.iter().map(wait));
        waits.extend(
            leaves
                .iter()
                .filter_map(|(what, waiting)| Some(Wait { what: what.clone(), reason: waiting.clone()? })),
        );
        waits.extend(self.resting.waits(Instant::now()));
        waits.extend(failures);
        self.progress.counters.plans.show(plan, waits.len());
        let moving = self.progress.moves();
        let (complete, shards) = (self.sizes.complete(), self.shard_reports(topology, joins, leaves));
        // An empty shard that leaves waits for a compaction, which comes by itself.
        let goes = shards.iter().any(|shard| shard.phase == "Draining" && shard.ranges == 0);
        let busy = !moves.is_empty() || !joins.is_empty() || goes;
        let status = ManagerStatus {
            leading: true,
            complete,
            balanced: plan.balanced,
            settled: plan.steps.is_empty() && moves.is_empty() && joins.is_empty() && leaves.is_empty(),
            held: Held::of(topology.rebalance.mode, plan, approved, busy).filter(|_| complete),
            moves: moving,
            finished: self.progress.finished(),
            load: self.sizes.loads().status(&self.line.cut()),
            steps: plan.steps.iter().map(ToString::to_string).collect(),
            waits,
            shards,
            generation: plan.parent_generation,
            spec_generation: topology.generation,
            error: None,
        };
        let map = Arc::clone(&self.line.cut().map);
        let sizes = map.entries().iter().filter_map(|e| {
            let size = self.sizes.of(&e.rid)?;
            Some((e.rid.clone(), size.keys, size.bytes))
        });
        let report = Report::new(&self.options.name, &status, sizes.collect());
        self.status.send_replace(Arc::new(status));
        if self.reported.as_ref() != Some(&report) {
            let put = ops::put_leased(Report::key(), report.encode(), self.lease);
            // Lost leadership, or meta is away: both are noticed elsewhere.
            if self.line.meta().txn(ops::txn(Vec::new(), vec![put])).await.is_ok() {
                self.reported = Some(report);
            }
        }
    }

    fn shard_reports(
        &self,
        topology: &Topology,
        joins: &[(String, String)],
        leaves: &[(String, Waiting)],
    ) -> Vec<ShardReport> {
        let cut = self.line.cut();
        let (unreachable, quarantined) = (self.sizes.unreachable(), self.shards.quarantined());
        let joined = cut.names.iter().enumerate().filter(|(i, _)| !cut.left[*i]).map(|(i, name)| {
            let ix = ShardIx(u32::try_from(i).unwrap_or(u32::MAX));
            let bad = quarantined.iter().find(|q| q.0 == ix).map(|q| ("Quarantined", q.1.clone()));
            let away = unreachable.get(&ix).map(|why| ("Unreachable", why.clone()));
            let leaving = leaves.iter().find(|l| *l.0 == **name);
            let leaving = leaving.map(|l| ("Draining", l.1.clone().unwrap_or_default()));
            let (phase, mut message) = bad.or(away).or(leaving).unwrap_or(("Serving", String::new()));
            let (keys, bytes) = self.sizes.of_shard(&cut.map, ix);
            let ranges = cut.map.entries().iter().filter(|e| e.shard == ix).count() as u64;
            if phase == "Draining" && ranges > 0 {
                let plural = if ranges == 1 { "" } else { "s" };
                message = format!("{keys} keys in {ranges} range{plural} are still to be moved away");
            }
            ShardReport { name: name.to_string(), phase: phase.to_owned(), keys, bytes, ranges, message }
        });
        let mut reports: Vec<ShardReport> = joined.collect();
        for index in 0..topology.shards {
            let name = sharded_etcd_core::topology::shard_name(index);
            if !reports.iter().any(|r| r.name == name) {
                let phase = "Joining".to_owned();
                reports.push(ShardReport {
                    phase,
                    keys: 0,
                    bytes: 0,
                    ranges: 0,
                    message: joins.iter().find(|j| j.0 == name).map_or(String::new(), |j| j.1.clone()),
                    name,
                });
            }
        }
        reports
    }
}

/// Executes one move until it is over, whatever fails on the way.
struct Executor {
    context: MoverContext,
    sizes: Arc<Sizes>,
    resting: Arc<Resting>,
    settled: Arc<Mutex<HashMap<Rid, Instant>>>,
}

impl Executor {
    async fn run(&self, rid: &Rid) {
        let mut pause = BACKOFF.0;
        let mut failing_since: Option<Instant> = None;
        loop {
            let known = self.context.progress.moves().into_iter().find(|m| m.rid == *rid);
            let give_up = failing_since.filter(|since| since.elapsed() > PATIENCE).map(|since| {
                format!(
                    "it failed for {} s: {}",
                    since.elapsed().as_secs(),
                    known.map_or(String::new(), |m| m.message)
                )
            });
            let begun = Instant::now();
            match run_move(&self.context, rid, give_up).await {
                Ok(outcome) => return self.end(rid, &outcome),
                Err(_) => {
                    // A long run that fails at last has got on: patience begins anew.
                    if begun.elapsed() > BACKOFF.1 {
                        (pause, failing_since) = (BACKOFF.0, None);
                    }
                    failing_since.get_or_insert_with(Instant::now);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(BACKOFF.1);
                }
            }
        }
    }

    fn end(&self, rid: &Rid, outcome: &Outcome) {
        let finished = self.context.progress.finished();
        let Some(last) = finished.iter().rev().map(|f| &f.last).find(|m| m.rid == *rid) else { return };
        match outcome {
            Outcome::Moved => {
                let new = Rid::new(format!("m-{}", last.id));
                self.sizes.moved(rid, &new);
                self.sizes.loads().moved(&last.range);
                self.settled.lock().insert(new, Instant::now());
                self.resting.clear(&last.range);
            }
            Outcome::Aborted(_) => self.resting.aborted(&last.range, Instant::now()),
            Outcome::NotFound => {}
        }
    }
}
