//! Ranges that move, split and merge without pause, where clients are at work.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use sharded_etcd_conformance::Api;
use sharded_etcd_core::{
    keyspace::{KeyRange, RangeMap},
    moves::ops,
    orders::{ORDERS_PREFIX, Order, OrderRecord, order_key},
    records::Record,
    topology::{Draft, RebalanceMode, Topology, shard_name, validate},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::{Line, LineOptions, Shards};
use sharded_etcd_manager::{Manager, ManagerOptions};
use sharded_etcd_shard::{Shard, ShardDirectory};
use sharded_etcd_testkit::Dice;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// Orders that are open at the same time: as many moves as may be under way, and some splits and merges.
const OPEN_MAX: usize = 8;
/// The keys written last, one of which is in the next range to change.
const NEWEST: i64 = 40;
/// Pause between two looks at the orders.
const PAUSE: Duration = Duration::from_millis(10);

/// What moves the ranges, until it is told to stop.
pub struct Moving {
    seed: u64,
    stop: CancellationToken,
    task: JoinHandle<()>,
    manager: Arc<Manager>,
    _wanted: watch::Sender<Arc<Topology>>,
}

impl Moving {
    /// A shard manager that does what it is told, and somebody who tells it to change ranges that are written to.
    pub async fn start(meta: &Arc<dyn Shard>, directory: &ShardDirectory, endpoint: &str) -> Self {
        let seed = match std::env::var("MOVING_SEED") {
            Ok(seed) => seed.parse().expect("MOVING_SEED is a number"),
            Err(_) => std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
        };
        println!("MOVING_SEED={seed}");
        let line = Line::start(Arc::clone(meta), LineOptions::default()).await.unwrap();
        let shards = Shards::new(Arc::clone(&line), directory.clone());
        let count = line.cut().names.len() as u32;
        let mut draft = Draft::new("conformance", count);
        (draft.mode, draft.moves_max) = (RebalanceMode::Manual, 6);
        let wanted = watch::Sender::new(Arc::new(validate(draft).unwrap()));
        let manager = Manager::start(ManagerOptions {
            interval: Duration::from_millis(20),
            ..ManagerOptions::new(Arc::clone(&line), shards, wanted.subscribe(), "moving")
        });
        let api = Api::connect(endpoint).await.unwrap();
        let stop = CancellationToken::new();
        let driver = Driver { line, api, dice: Dice::new(seed), shards: count, given: 0 };
        let task = tokio::spawn(driver.run(stop.clone()));
        Self { seed, stop, task, manager, _wanted: wanted }
    }

    /// Stops; there has to have been enough of everything.
    pub async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
        let status = self.manager.status().borrow().clone();
        self.manager.close().await;
        for over in self.manager.progress().finished().iter().filter_map(|m| m.failure.as_ref()) {
            println!("aborted: {over}");
        }
        let counters = &self.manager.progress().counters;
        let (moved, aborted) = (counters.moved.get(), counters.aborted.get());
        let (splits, merges) = (counters.splits.get(), counters.merges.get());
        println!(
            "{moved} moves, {aborted} aborted, {splits} splits, {merges} merges; MOVING_SEED={}",
            self.seed
        );
        assert!(moved >= 20 && splits >= 5 && merges >= 5, "little happened: {status:#?}");
    }
}

struct Driver {
    line: Arc<Line>,
    api: Api,
    dice: Dice,
    shards: u32,
    given: u64,
}

impl Driver {
    async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            if self.open().await < OPEN_MAX
                && let Some(key) = self.busy_key().await
                && let Some(order) = self.choose(&key)
            {
                self.give(order).await;
            } else {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Orders that are not over; the others are deleted.
    async fn open(&self) -> usize {
        let orders = ops::range_request(&KeyRange::prefix(ORDERS_PREFIX));
        let mut open = 0;
        for kv in self.line.meta().range(orders).await.unwrap().kvs {
            if OrderRecord::decode(&kv.value).unwrap().is_over() {
                let delete = ops::txn(Vec::new(), vec![ops::delete(kv.key)]);
                self.line.meta().txn(delete).await.unwrap();
            } else {
                open += 1;
            }
        }
        open
    }

    async fn give(&mut self, order: Order) {
        self.given += 1;
        let key = order_key(&format!("{:016x}", self.given));
        let put = pb::PutRequest { key, value: OrderRecord::new(order).encode(), ..Default::default() };
        self.line.meta().put(put).await.unwrap();
    }

    /// One of the keys written last, as clients see them.
    async fn busy_key(&mut self) -> Option<Bytes> {
        let newest = pb::RangeRequest {
            limit: NEWEST,
            keys_only: true,
            sort_target: pb::SortTarget::Mod.into(),
            sort_order: pb::SortOrder::Descend.into(),
            ..ops::range_request(&KeyRange::prefix(b"/c"))
        };
        let mut kvs = self.api.kv.range(newest).await.ok()?.into_inner().kvs;
        let at = self.dice.below(kvs.len() as u64) as usize;
        (at < kvs.len()).then(|| kvs.swap_remove(at).key)
    }

    fn choose(&mut self, key: &[u8]) -> Option<Order> {
        let map = Arc::clone(&self.line.cut().map);
        let owner = map.owner(key);
        let at = map.entries().iter().position(|e| e.rid == owner.rid)?;
        let to = u64::from(owner.shard.0) + 1 + self.dice.below(u64::from(self.shards) - 1);
        let to = shard_name((to % u64::from(self.shards)) as u32);
        let directory = directory(key);
        match self.dice.below(10) {
            0..=3 => Some(Order::Move { range: owner.range.clone(), to }),
            4..=5 => Some(Order::Move { range: KeyRange::prefix(directory), to }),
            6 => Some(Order::Split { at: Bytes::copy_from_slice(directory) }),
            _ => merge_near(&map, at),
        }
    }
}

/// The keys up to the last delimiter: no boundary may lie in them.
fn directory(key: &[u8]) -> &[u8] {
    &key[..key.iter().rposition(|&b| b == b'/').map_or(0, |i| i + 1)]
}

/// Merges the range at that place, or the next one for which that can be done, with its neighbour on the left.
fn merge_near(map: &RangeMap, at: usize) -> Option<Order> {
    let pairs: Vec<_> = map.entries().windows(2).collect();
    let from = at.min(pairs.len().saturating_sub(1));
    let mut near = pairs[from..].iter().chain(&pairs[..from]);
    let [_, right] = near.find(|pair| pair[0].shard == pair[1].shard)? else { return None };
    Some(Order::Merge { at: right.range.start.clone() })
}
