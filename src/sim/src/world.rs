//! Everything that a run consists of.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use sharded_etcd_core::{
    keyspace::{KeyRange, RangeEntry, Rid, ShardIx},
    records::{CUT_LATEST, TopologyId},
};
use sharded_etcd_line::{
    bootstrap::{NewShard, bootstrap},
    latest,
};

use crate::{
    check::History,
    etcd::Etcd,
    managing::Managers,
    net::{Link, Net},
    process::Process,
    rng::Rng,
    scaling::{Doom, Routing},
    trace,
    trace::Trace,
    truth::Truth,
};

/// A run's parts; shared by all that happens in it.
pub struct World {
    /// What happened.
    pub trace: Trace,
    /// For the story; network and actors have sequences of their own.
    pub rng: Rng,
    /// The network.
    pub net: Net,
    /// Meta.
    pub meta: Arc<Etcd>,
    /// The shards, also those that have not joined yet or have left.
    shards: Mutex<Vec<Arc<Etcd>>>,
    /// What processes are told of the shards.
    pub routing: latest::Sender<Routing>,
    /// Where managers die.
    pub dooms: Mutex<Vec<Doom>>,
    /// For what happens to processes.
    pub processes: Rng,
    /// What is true.
    pub truth: Mutex<Truth>,
    /// What clients asked and were told.
    pub history: History,
    /// The proxies; `None` while one is not running.
    pub proxies: Mutex<Vec<Option<Arc<Process>>>>,
    /// The shard managers.
    pub managers: Managers,
    /// The places where something is being started; managers' come behind those of proxies.
    pub starting: Mutex<BTreeSet<usize>>,
    calm: AtomicBool,
    meta_seen: Mutex<i64>,
    failure: latest::Sender<Option<String>>,
}

impl World {
    /// Empty etcds and a calm network.
    pub fn new(seed: u64, shards: usize, (proxies, managers): (usize, usize), print: bool) -> Arc<Self> {
        let rng = Rng::new(seed);
        let shard = |i| Etcd::new(&format!("shard-{i}"), 100 + i as u64);
        let shards: Vec<Arc<Etcd>> = (0..shards).map(shard).collect();
        let routing = Routing {
            generation: 0,
            wanted: u32::try_from(shards.len()).unwrap_or(u32::MAX),
            shards: shards.iter().map(|etcd| (etcd.name.clone(), Arc::clone(etcd))).collect(),
        };
        Arc::new(Self {
            trace: Trace::new(print),
            net: Net::new(rng.fork()),
            rng,
            meta: Etcd::new("meta", 99),
            shards: Mutex::new(shards),
            routing: latest::Sender::new(routing),
            dooms: Mutex::default(),
            processes: Rng::new(!seed),
            truth: Mutex::default(),
            history: History::default(),
            proxies: Mutex::new(vec![None; proxies]),
            managers: Mutex::new(vec![None; managers]),
            starting: Mutex::default(),
            calm: AtomicBool::new(false),
            meta_seen: Mutex::new(1),
            failure: latest::Sender::new(None),
        })
    }

    /// Starts the etcds' clocks and the topology: ranges that begin at the empty key and at `boundaries`, dealt out in turn.
    ///
    /// # Errors
    /// If the topology cannot be started, which is a bug.
    pub async fn bootstrap(self: &Arc<Self>, boundaries: &[&'static str]) -> Result<(), String> {
        for etcd in self.etcds() {
            tokio::spawn(etcd.expire());
        }
        let shards = self.shards();
        let starts: Vec<&'static str> = std::iter::once("").chain(boundaries.iter().copied()).collect();
        let ranges: Vec<RangeEntry> = starts
            .iter()
            .enumerate()
            .map(|(i, start)| RangeEntry {
                range: KeyRange::new(*start, *starts.get(i + 1).unwrap_or(&"")),
                rid: Rid::new(format!("b-{i}")),
                shard: ShardIx((i % shards.len()) as u32),
                imported_at: 0,
            })
            .collect();
        let living = latest::Sender::new(false);
        let alive = living.subscribe();
        let meta = Link::new(self, "start", &self.meta, alive.clone());
        let links: Vec<_> = shards.iter().map(|e| Link::new(self, "start", e, alive.clone())).collect();
        let new: Vec<NewShard<'_>> = shards
            .iter()
            .zip(&links)
            .map(|(etcd, link)| NewShard { name: &etcd.name, incarnation: 0, shard: link.as_ref() })
            .collect();
        let id = TopologyId { uid: "sim".into(), cluster_id: 7 };
        bootstrap(meta.as_ref(), &id, &new, &ranges).await.map_err(|e| e.to_string())?;
        Ok(())
    }

    /// All shards that ever were, in the order in which they were made.
    pub fn shards(&self) -> Vec<Arc<Etcd>> {
        self.shards.lock().clone()
    }

    /// The shards that were not removed.
    pub fn shards_there(&self) -> Vec<Arc<Etcd>> {
        self.shards.lock().iter().filter(|etcd| !etcd.is_gone()).cloned().collect()
    }

    /// One more.
    pub fn add_shard(&self, etcd: &Arc<Etcd>) {
        self.shards.lock().push(Arc::clone(etcd));
    }

    /// Meta and all shards that were not removed.
    pub fn etcds(&self) -> Vec<Arc<Etcd>> {
        std::iter::once(Arc::clone(&self.meta)).chain(self.shards_there()).collect()
    }

    /// Called after each effect on an etcd: new entries of the log are folded, and what they bring is checked.
    pub fn after_effect(&self, etcd: &Arc<Etcd>) {
        if !Arc::ptr_eq(etcd, &self.meta) {
            return;
        }
        let mut seen = self.meta_seen.lock();
        let newest = self.meta.revision();
        for revision in *seen + 1..=newest {
            let Some((events, _)) = self.meta.events_of(revision) else { continue };
            for kv in events.iter().filter_map(|e| e.kv.as_ref()).filter(|kv| kv.key.as_ref() == CUT_LATEST) {
                let mut truth = self.truth.lock();
                let checked = truth.take(revision, &kv.value, &self.shards()).and_then(|new| {
                    trace!(self, "line {new:?} compacted {} {:?}", truth.compacted, truth.vector());
                    new.into_iter().try_for_each(|r| self.history.happened(self, &truth, r))
                });
                drop(truth);
                self.require(checked);
            }
        }
        *seen = newest;
    }

    /// The run has failed if this is an error.
    pub fn require(&self, checked: Result<(), String>) {
        if let Err(why) = checked {
            self.fail(why);
        }
    }

    /// The run has failed; the first reason counts.
    pub fn fail(&self, why: String) {
        trace!(self, "FAILED: {why}");
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            if first {
                *failure = Some(why);
            }
            first
        });
    }

    /// Why the run has failed, if it has.
    pub fn failed(&self) -> Option<String> {
        self.failure.borrow().clone()
    }

    /// Until the run has failed.
    pub async fn until_failed(&self) {
        // The sender is here.
        let _ = self.failure.subscribe().wait_for(Option::is_some).await;
    }

    /// Nothing goes wrong from now on.
    pub fn set_calm(&self) {
        self.calm.store(true, Relaxed);
    }

    /// True if nothing goes wrong any more.
    pub fn is_calm(&self) -> bool {
        self.calm.load(Relaxed)
    }

    /// The running proxies.
    pub fn running(&self) -> Vec<Arc<Process>> {
        self.proxies.lock().iter().flatten().cloned().collect()
    }
}
