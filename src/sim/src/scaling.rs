//! An operator: how many shards there are to be changes, etcds for new ones are started, those that have left are removed,
//! and every process is told in its own time.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use sharded_etcd_core::topology::shard_name;
use sharded_etcd_line::latest;
use sharded_etcd_shard::ShardDirectory;
use tokio_util::sync::CancellationToken;

use crate::{etcd::Etcd, managing, net::Link, rng::Rng, trace, world::World};

/// How often the operator looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// A process takes up what it is told within this.
pub const TAKE_UP_MAX_MS: u64 = 400;

/// What every process is told.
#[derive(Clone, Default)]
pub struct Routing {
    /// Counts changes of what is wanted; 0 in a topology whose shards stay as they are.
    pub generation: i64,
    /// How many shards there are to be.
    pub wanted: u32,
    /// The etcds to be reached, by name.
    pub shards: BTreeMap<String, Arc<Etcd>>,
}

impl Routing {
    /// The generation that a process says it has taken up; none where nothing ever changes.
    pub fn known(&self) -> Option<i64> {
        (self.generation > 0).then_some(self.generation)
    }

    /// Makes a process's directory the same; what is new is reached through `link`.
    pub fn apply(&self, directory: &ShardDirectory, link: impl Fn(&Arc<Etcd>) -> Arc<Link>) {
        for name in directory.names().iter().filter(|name| !self.shards.contains_key(*name)) {
            directory.remove(name);
        }
        for (name, etcd) in &self.shards {
            if directory.incarnation(name) != Some(etcd.incarnation) {
                directory.insert_incarnation(name.clone(), etcd.incarnation, link(etcd));
            }
        }
    }
}

/// Tells a process of each change, with a delay of its own, until it is dead.
pub fn follow(
    world: &Arc<World>,
    process: &str,
    mut routing: latest::Receiver<Routing>,
    mut dead: latest::Receiver<bool>,
    take_up: impl Fn(&Routing) + Send + 'static,
) {
    if routing.borrow().generation == 0 {
        return;
    }
    let rng = world.processes.fork();
    let (world, process) = (Arc::clone(world), process.to_owned());
    tokio::spawn(async move {
        loop {
            tokio::select! {
                biased;
                _ = dead.wait_for(|dead| *dead) => return,
                changed = routing.changed() => if changed.is_err() { return },
            }
            tokio::time::sleep(Duration::from_millis(rng.below(TAKE_UP_MAX_MS))).await;
            if *dead.borrow() {
                return;
            }
            let newest = routing.borrow_and_update().clone();
            trace!(
                world,
                "{process} takes up generation {} with {} shards",
                newest.generation,
                newest.shards.len()
            );
            take_up(&newest);
        }
    });
}

/// Where a manager dies: at one of its writes.
#[derive(Debug, Clone)]
pub struct Doom {
    process: String,
    /// Only writes to this etcd count, if there is one.
    etcd: Option<u64>,
    /// So many of them are let pass.
    after: u64,
    /// The write at which it dies is still sent.
    sent: bool,
}

/// Whether a process dies at this call, and if so whether the call is still sent.
pub fn doomed(world: &World, process: &str, etcd: &Etcd, call: &str) -> Option<bool> {
    if !matches!(call, "txn" | "put") {
        return None;
    }
    let mut dooms = world.dooms.lock();
    let of = |doom: &&mut Doom| doom.process == process && doom.etcd.is_none_or(|id| id == etcd.cluster_id);
    let doom = dooms.iter_mut().find(of)?;
    if doom.after > 0 {
        doom.after -= 1;
        return None;
    }
    let sent = doom.sent;
    dooms.retain(|doom| doom.process != process);
    Some(sent)
}

/// Changes how many shards are wanted, again and again.
pub async fn scale(world: Arc<World>, rng: Rng, stop: CancellationToken, scales: Vec<(u64, u32)>) {
    for (pause, wanted) in scales {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        if stop.is_cancelled() {
            return;
        }
        trace!(world, "the operator wants {wanted} shards");
        world.routing.send_modify(|routing| {
            routing.wanted = wanted;
            routing.generation += 1;
        });
        operate(&world);
        doom_managers(&world, &rng);
    }
}

fn doom_managers(world: &World, rng: &Rng) {
    let newest = world.shards().last().map(|etcd| etcd.cluster_id);
    for place in 0..world.managers.lock().len() {
        if rng.chance(40) {
            let to_newest = rng.chance(40);
            world.dooms.lock().push(Doom {
                process: format!("manager-{place}"),
                etcd: newest.filter(|_| to_newest),
                after: rng.below(if to_newest { 2 } else { 12 }),
                sent: rng.chance(50),
            });
        }
    }
}

/// Looks again and again, for as long as the runtime lives.
pub async fn keep_operating(world: Arc<World>) {
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        operate(&world);
    }
}

/// What an operator does in one look: removes what has left, makes what is missing, and tells everybody.
fn operate(world: &Arc<World>) {
    let left = world.truth.lock().left();
    let mut shards = world.shards();
    let mut told = world.routing.borrow().clone();
    for etcd in shards.iter().filter(|etcd| left.contains(&etcd.cluster_id) && !etcd.is_gone()) {
        // First nobody is told of it any more, and then it goes, whoever has not heard yet.
        let routed = told.shards.get(&etcd.name).is_some_and(|now| Arc::ptr_eq(now, etcd));
        if !routed {
            trace!(world, "the operator removes {} incarnation {}", etcd.name, etcd.incarnation);
            etcd.remove();
        }
    }
    for name in (0..told.wanted).map(shard_name) {
        let newest = shards.iter().filter(|etcd| etcd.name == name).max_by_key(|etcd| etcd.incarnation);
        let incarnation = match newest {
            None => 0,
            Some(newest) if newest.is_gone() => newest.incarnation + 1,
            Some(_) => continue,
        };
        let etcd = Etcd::with_incarnation(&name, 100 + shards.len() as u64, incarnation);
        trace!(world, "the operator makes {name} incarnation {incarnation}");
        tokio::spawn(Arc::clone(&etcd).expire());
        world.add_shard(&etcd);
        shards.push(etcd);
    }
    let there = shards.into_iter().filter(|etcd| !etcd.is_gone() && !left.contains(&etcd.cluster_id));
    told.shards = there.map(|etcd| (etcd.name.clone(), etcd)).collect();
    world.routing.send_if_modified(|routing| {
        let ids = |of: &Routing| of.shards.values().map(|etcd| etcd.cluster_id).collect::<Vec<_>>();
        let changed = ids(routing) != ids(&told);
        routing.shards = told.shards;
        changed
    });
}

/// True once exactly the wanted shards are in the line, and those that have left are removed.
pub fn is_done(world: &World) -> bool {
    let left = world.truth.lock().left();
    let wanted: Vec<String> = (0..world.routing.borrow().wanted).map(shard_name).collect();
    let mut present = world.truth.lock().present();
    present.sort_by_key(|name| sharded_etcd_core::topology::shard_index(name));
    present == wanted && world.shards_there().iter().all(|etcd| !left.contains(&etcd.cluster_id))
}

/// A manager dies, and is started again a little later.
pub fn strike(world: &Arc<World>, process: &str) {
    let place = process.strip_prefix("manager-").and_then(|place| place.parse::<usize>().ok());
    let Some(place) = place else { return };
    let managing = world.managers.lock().get_mut(place).and_then(Option::take);
    let Some(managing) = managing else { return };
    trace!(world, "{process} dies at a write");
    managing.kill();
    let world = Arc::clone(world);
    tokio::spawn(async move {
        let pause = world.processes.below(1000);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        managing::Managing::start(&world, place).await;
    });
}
