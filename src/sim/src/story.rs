//! What happens in a run: who is there, what goes wrong, and how it ends.

use std::{sync::Arc, time::Duration};

use sharded_etcd_etcd_api::messages as pb;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    actors::{Client, Watcher},
    chaos,
    managing::{self, Managing},
    process::Process,
    scaling, trace,
    world::World,
};

/// How long everything may take to come to rest once nothing goes wrong any more.
const REST_MAX: Duration = Duration::from_secs(120);

/// In so many of a hundred stories with managers shards join and leave.
const SCALING_PERCENT: u64 = 15;

/// What a seed makes of a run.
#[derive(Debug, Clone)]
pub struct Story {
    /// Shards.
    pub shards: usize,
    /// Proxies.
    pub proxies: usize,
    /// Shard managers.
    pub managers: usize,
    /// Moves, splits and merges.
    pub orders: u64,
    /// Where ranges end.
    pub boundaries: Vec<&'static str>,
    /// Writers, readers, watchers, clients with leases.
    pub clients: [u64; 4],
    /// Calls of each client.
    pub calls: u64,
    /// How long things go wrong.
    pub chaos: Duration,
    /// A client compacts.
    pub compacts: bool,
    /// How many shards are wanted, one after the other, each with the milliseconds that pass before.
    pub scales: Vec<(u64, u32)>,
}

impl Story {
    /// The story of a seed.
    pub fn of(rng: &crate::rng::Rng) -> Self {
        let shards = rng.between(1, 3) as usize;
        let all = ["/a/2", "/g/", "/g/3", "/m/", "/m/1", "/t/"];
        let mut boundaries: Vec<&'static str> = all.into_iter().filter(|_| rng.chance(50)).collect();
        if boundaries.is_empty() {
            boundaries.push("/m/");
        }
        let leases = if rng.chance(35) { 1 } else { 0 };
        let managers = if rng.chance(70) { rng.between(1, 2) as usize } else { 0 };
        let mut story = Self {
            shards,
            managers,
            orders: if managers > 0 && shards > 1 { rng.below(8) } else { 0 },
            proxies: rng.between(1, 3) as usize,
            boundaries,
            clients: [rng.between(1, 3), rng.between(1, 2), rng.between(1, 2), leases],
            calls: rng.between(5, 20),
            chaos: Duration::from_millis(if rng.chance(80) { rng.between(200, 3000) } else { 0 }),
            compacts: rng.chance(40),
            scales: Vec::new(),
        };
        // Behind all that was there before, so that most seeds go on telling what they told.
        if managers > 0 && rng.chance(SCALING_PERCENT) {
            story.scale(rng);
        }
        story
    }

    /// Shards join and leave.
    fn scale(&mut self, rng: &crate::rng::Rng) {
        let mut now = self.shards as u64;
        for _ in 0..rng.between(1, 4) {
            let other = rng.between(1, 3);
            now = if other >= now { other + 1 } else { other };
            // Some changes come while the one before is under way.
            let pause = if rng.chance(35) { rng.between(10, 400) } else { rng.between(500, 3500) };
            self.scales.push((pause, now as u32));
        }
        self.orders = rng.between(3, 10);
        self.calls += 10;
        let calm = rng.chance(20);
        self.chaos = if calm { Duration::ZERO } else { Duration::from_millis(rng.between(500, self.span())) };
    }

    /// For how many milliseconds clients are to be busy.
    fn span(&self) -> u64 {
        let scaling: u64 = self.scales.iter().map(|(pause, _)| pause + 700).sum();
        scaling.max(self.chaos.as_millis() as u64)
    }
}

/// Lets a story happen.
///
/// # Errors
/// What went wrong.
pub async fn tell(world: &Arc<World>, story: &Story) -> Result<(), String> {
    trace!(world, "{story:?}");
    world.bootstrap(&story.boundaries).await?;
    tokio::select! {
        biased;
        () = world.until_failed() => {}
        told = chapters(world, story) => told?,
    }
    match world.failed() {
        Some(why) => Err(why),
        None => Ok(()),
    }
}

async fn chapters(world: &Arc<World>, story: &Story) -> Result<(), String> {
    if !story.scales.is_empty() {
        world.routing.send_modify(|routing| routing.generation = 1);
        tokio::spawn(scaling::keep_operating(Arc::clone(world)));
    }
    for place in 0..story.proxies {
        let world = Arc::clone(world);
        tokio::spawn(async move { Process::start(&world, place).await });
    }
    for place in 0..story.managers {
        let world = Arc::clone(world);
        tokio::spawn(async move { Managing::start(&world, place).await });
    }
    let stop = CancellationToken::new();
    let end = CancellationToken::new();
    let [writers, readers, watchers, leases] = story.clients;
    let client = |kind: &str, n| Client::new(world, format!("{kind}{n}"), &stop);
    let mut busy = JoinSet::new();
    let mut watching = JoinSet::new();
    let pause = 4 + story.span() / story.calls;
    for n in 0..writers {
        busy.spawn(client("writer", n).write(story.calls, pause));
    }
    for n in 0..readers {
        busy.spawn(client("reader", n).read(story.calls, pause));
    }
    for n in 0..leases {
        busy.spawn(client("leaser", n).lease(2));
    }
    if let Some(each) = story.span().checked_div(story.orders) {
        let each = 50 + each;
        let (world, rng) = (Arc::clone(world), world.rng.fork());
        busy.spawn(managing::order(world, rng, stop.clone(), story.orders, each));
    }
    if !story.scales.is_empty() {
        let (of, rng) = (Arc::clone(world), world.rng.fork());
        busy.spawn(scaling::scale(of, rng, stop.clone(), story.scales.clone()));
    }
    if story.compacts {
        busy.spawn(client("compactor", 0).compact(story.calls / 3, pause * 3));
    }
    for n in 0..watchers {
        watching.spawn(Watcher::new(client("watcher", n), &end).run());
    }
    let chaos = tokio::time::timeout(story.chaos, chaos::run(Arc::clone(world), story.clone())).await;
    drop(chaos);
    let healed = tokio::time::timeout(REST_MAX, heal(world)).await;
    healed.map_err(|_| "not everything could be started again".to_owned())?;
    // What was under way when things went wrong is over then.
    let settled = Duration::from_secs(10);
    let calm = Arc::clone(world);
    tokio::spawn(async move {
        tokio::time::sleep(settled).await;
        calm.set_calm();
    });
    let rested = tokio::time::timeout(REST_MAX, async {
        while busy.join_next().await.is_some() {}
        expired(world).await;
        covered(world).await;
        while !managing::are_over(world) && story.managers > 0 {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        while !scaling::is_done(world) && story.managers > 0 {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        if !story.scales.is_empty() {
            // One that was started a moment ago may not have heard of the last change.
            tokio::time::sleep(Duration::from_millis(scaling::TAKE_UP_MAX_MS)).await;
        }
        end.cancel();
        while watching.join_next().await.is_some() {}
    });
    rested.await.map_err(|_| "things did not come to rest".to_owned())?;
    stop.cancel();
    compare(world).await?;
    // Splits and merges may be left to be finished, too.
    let mut tries = 0;
    loop {
        tries += 1;
        match managing::require_clean(world) {
            Err(why) if tries > 60 => return Err(why),
            Err(_) if story.managers > 0 => tokio::time::sleep(Duration::from_millis(500)).await,
            done => return done,
        }
    }
}

/// Everything runs again.
async fn heal(world: &Arc<World>) {
    trace!(world, "heal");
    world.net.heal();
    for etcd in world.etcds() {
        etcd.pause(false);
        etcd.fill(false);
    }
    let places = world.proxies.lock().len();
    let managers = world.managers.lock().len();
    while world.running().len() < places || world.managers.lock().iter().flatten().count() < managers {
        // At once, where something runs or is being started already.
        for place in 0..managers {
            Managing::start(world, place).await;
        }
        for place in 0..places {
            Process::start(world, place).await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Until nothing of leases whose time is over is left.
async fn expired(world: &Arc<World>) {
    loop {
        let left = {
            let truth = world.truth.lock();
            let keys = truth.keys.range(b"\0", b"\0", truth.revision);
            keys.into_iter().find(|kv| kv.lease != 0)
        };
        if left.is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Until all that was written is part of the line, also what nobody was told of.
async fn covered(world: &Arc<World>) {
    loop {
        let shards = world.truth.lock().shards_there();
        if shards.iter().all(|(_, etcd, v)| etcd.revision() <= *v) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// All proxies show the same, and that is what is true.
async fn compare(world: &Arc<World>) -> Result<(), String> {
    for process in world.running() {
        let asked = world.history.ask();
        let request = pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
        let answer = process.proxy.kv().range(request.clone()).await;
        let answer = answer.map_err(|e| format!("{} cannot read at rest: {e:?}", process.name))?;
        let truth = world.truth.lock();
        world.history.read(&truth, asked, &request, &answer)?;
        world.history.cut(&truth, &process)?;
    }
    Ok(())
}
