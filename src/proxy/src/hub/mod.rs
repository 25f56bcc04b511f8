//! The watch hub: all watchers of this proxy, served from one merged stream over all shards.
//!
//! One base stream follows each shard in whole, hidden space included. Its events are translated as soon as they are
//! part of the line: kept if the shard owned the key at the event's revision, so copies that a move makes and what a
//! purge deletes never show. The [`merge`] then hands them to watchers in the line's order.
//!
//! While nobody watches the hub sleeps: base streams read the topology's own records only, and begin again at the line's
//! revision when a watcher comes. What it wants of the past is read as history.

mod actor;
mod event;
mod history;
mod index;
mod merge;
mod overrides;
mod read;
mod room;
mod stream;
mod translate;
mod window;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use sharded_etcd_core::keyspace::ShardIx;
use sharded_etcd_serve::home;
use tokio::sync::{broadcast, mpsc};

use crate::context::Context;
use actor::{Actor, Deliveries, Message};
use read::Reading;
use room::Room;

pub(crate) use event::{Delivery, HubEvent, WatcherId};
pub(crate) use merge::WatchSpec;
pub(crate) use stream::{HubStopped, HubStream};

/// How the hub behaves.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// Bytes of recent events kept, over all shards. Watchers that start in them read no history. 64 MiB.
    pub window_bytes_max: usize,
    /// Recent revisions kept, over all shards. 50,000.
    pub window_revisions_max: usize,
    /// How long watchers wait for events of a shard that do not concern them, before they go on without. 200 ms.
    pub grace: Duration,
    /// After how long without any watcher shards are no longer read, but for the topology's own records. 30 s.
    pub sleep_after: Duration,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self {
            window_bytes_max: 64 << 20,
            window_revisions_max: 50_000,
            grace: Duration::from_millis(200),
            sleep_after: Duration::from_secs(30),
        }
    }
}

impl HubOptions {
    fn window(&self) -> merge::WindowLimits {
        merge::WindowLimits { bytes_max: self.window_bytes_max, revisions_max: self.window_revisions_max }
    }
}

/// What others want to know of the hub.
#[derive(Debug, Default)]
struct Stats {
    passed: AtomicI64,
    asleep: AtomicBool,
}

/// The watch hub of a proxy. See the module's documentation.
pub struct Hub {
    inbox: mpsc::Sender<Message>,
    ids: Arc<AtomicU64>,
    stats: Arc<Stats>,
    fences: broadcast::Sender<ShardIx>,
}

/// Messages to the hub under way, at most; the largest have about a mebibyte of events.
const INBOX_MAX: usize = 256;

/// Fence changes that a slow receiver may miss the details of.
const FENCES_MAX: usize = 256;

impl Hub {
    /// Starts the hub: base streams of all shards, from the fold's revision on.
    pub fn start(ctx: Arc<Context>) -> Arc<Self> {
        Self::start_with(ctx, HubOptions::default())
    }

    /// Like [`Hub::start`], with other options.
    pub fn start_with(ctx: Arc<Context>, options: HubOptions) -> Arc<Self> {
        let (inbox, messages) = mpsc::channel(INBOX_MAX);
        let fences = broadcast::Sender::new(FENCES_MAX);
        let stats = Arc::new(Stats::default());
        let tasks = ctx.tasks.clone();
        let reading = Reading {
            ctx,
            overrides: Arc::default(),
            wanted: Arc::default(),
            inbox: inbox.clone(),
            fences: fences.clone(),
        };
        tasks.spawn(Actor::new(reading, options, messages, Arc::clone(&stats)).run());
        Arc::new(Self { inbox, ids: Arc::new(AtomicU64::new(1)), stats, fences })
    }

    /// The revision up to which all watchers have been sent everything; for the proxy's registration. It may be a
    /// quarter of a second old, and does not go back below what watchers need except for one that starts in the past.
    pub fn passed(&self) -> i64 {
        self.stats.passed.load(Ordering::Relaxed)
    }

    /// True while nobody watches and shards are not read.
    pub fn is_asleep(&self) -> bool {
        self.stats.asleep.load(Ordering::Relaxed)
    }

    /// Tells whenever a fence of a shard was written, as soon as the shard's stream says so; also before the line covers
    /// it. A receiver that lags should look at all fences that it waits for.
    pub fn fence_events(&self) -> broadcast::Receiver<ShardIx> {
        self.fences.subscribe()
    }

    /// Begins a client stream.
    pub(crate) async fn open(&self) -> Result<HubStream, HubStopped> {
        let stream = self.ids.fetch_add(1, Ordering::Relaxed);
        let (to, deliveries) = mpsc::channel(room::DELIVERIES_MAX);
        let room = Arc::new(Room::default());
        let deliveries_to = Deliveries { to, mailbox: home() };
        let message = Message::Open { stream, room: Arc::clone(&room), deliveries: deliveries_to };
        self.inbox.send(message).await.map_err(|_| HubStopped)?;
        Ok(HubStream { stream, ids: Arc::clone(&self.ids), hub: self.inbox.clone(), room, deliveries })
    }
}
