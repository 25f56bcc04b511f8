//! The shell around the merge: one task that takes messages, lets the merge go on, and does what it asks for.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream};
use sharded_etcd_core::{keyspace::ShardIx, line::Fold};
use sharded_etcd_serve::{Mailbox, Round};
use sharded_etcd_shard::Result;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    HubOptions, Stats,
    event::{Delivery, HubEvent, Revision, StreamId, WatcherId},
    history,
    merge::{Effect, FetchOutcome, Merge, ReplayId, ReplayOutcome, WatchSpec},
    read::{BaseStream, Reading},
    room::Room,
    translate::{PrevOf, READS_MAX, read_prev},
};

/// Messages taken before the merge goes on.
const MESSAGES_MAX: usize = 64;

/// How often counters are published, and what failed is tried again.
const TICK: Duration = Duration::from_millis(250);

/// Counts the times that the hub fell asleep or woke up; what base streams of an earlier phase still say is not heard.
pub(crate) type Phase = u64;

/// What the hub's task is told.
pub(crate) enum Message {
    Ready { phase: Phase, shard: ShardIx, revisions: Vec<Arc<Revision>>, upto: i64 },
    Gap { phase: Phase, shard: ShardIx, upto: i64 },
    GraceOver { shard: ShardIx, ready: i64 },
    Open { stream: StreamId, room: Arc<Room>, deliveries: Deliveries },
    Close { stream: StreamId },
    Watch { stream: StreamId, id: WatcherId, spec: Arc<WatchSpec>, reply: oneshot::Sender<i64> },
    Cancel { id: WatcherId, reply: oneshot::Sender<()> },
    Progress { stream: StreamId, at_least: i64 },
    Notify { id: WatcherId },
    Room { stream: StreamId },
    Fetched { id: WatcherId, outcome: FetchOutcome },
    Replayed { replay: ReplayId, revisions: Vec<Arc<Revision>>, upto: i64, reply: oneshot::Sender<bool> },
    ReplayEnded { replay: ReplayId, outcome: ReplayOutcome },
}

/// The way to a client stream.
pub(crate) struct Deliveries {
    pub(crate) to: mpsc::Sender<Delivery>,
    /// The mailbox of the stream's thread.
    pub(crate) mailbox: Option<Arc<Mailbox>>,
}

/// Whether anybody watches.
#[derive(Debug, Clone, Copy)]
enum Idle {
    No,
    Since(Instant),
    Asleep,
}

/// The hub's task.
pub(crate) struct Actor {
    reading: Reading,
    options: HubOptions,
    merge: Merge,
    inbox: mpsc::Receiver<Message>,
    streams: BTreeMap<StreamId, Deliveries>,
    /// Watchers that want previous key-value pairs, as they are in the readers' index.
    wanted: HashMap<WatcherId, Arc<WatchSpec>>,
    /// Ends the base stream of each shard that has one.
    bases: BTreeMap<ShardIx, CancellationToken>,
    phase: Phase,
    /// Since when there has been no watcher; while asleep, base streams read only the topology's own records.
    idle: Idle,
    stats: Arc<Stats>,
    events_counted: u64,
}

impl Actor {
    pub(crate) fn new(
        reading: Reading,
        options: HubOptions,
        inbox: mpsc::Receiver<Message>,
        stats: Arc<Stats>,
    ) -> Self {
        let merge = reading.ctx.line.with_fold(|fold| Merge::new(fold, options.window()));
        let mut actor = Self {
            reading,
            options,
            merge,
            inbox,
            streams: BTreeMap::new(),
            wanted: HashMap::new(),
            bases: BTreeMap::new(),
            phase: 0,
            idle: Idle::Asleep,
            stats,
            events_counted: 0,
        };
        actor.begin_phase(Idle::Asleep);
        actor.publish();
        actor
    }

    pub(crate) async fn run(mut self) {
        let line = Arc::clone(&self.reading.ctx.line);
        let shutdown = self.reading.ctx.shutdown.clone();
        let mut cuts = line.subscribe();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut more = true;
        while !shutdown.is_cancelled() {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                // What is rare comes first, as there may be messages at all times.
                _ = tick.tick() => {
                    self.merge.retry();
                    self.look_whether_idle();
                    self.publish();
                }
                changed = cuts.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    self.stop_those_that_left();
                }
                message = self.inbox.recv() => {
                    let Some(message) = message else { break };
                    self.take(message);
                }
                () = std::future::ready(()), if more => {}
            }
            for _ in 0..MESSAGES_MAX {
                let Ok(message) = self.inbox.try_recv() else { break };
                self.take(message);
            }
            let merge = &mut self.merge;
            let joined;
            (joined, more) = line.with_fold(|fold| (merge.take_in_joined(fold), merge.advance(fold)));
            for (shard, l0) in joined {
                self.start_base(shard, l0);
            }
            self.carry_out();
        }
        for stop in self.bases.values() {
            stop.cancel();
        }
    }

    fn take(&mut self, message: Message) {
        let line = Arc::clone(&self.reading.ctx.line);
        match message {
            Message::Ready { phase, .. } | Message::Gap { phase, .. } if phase != self.phase => {}
            Message::Ready { shard, revisions, upto, .. } => {
                line.with_fold(|fold| self.merge.ready(fold, shard, revisions, upto));
            }
            Message::Gap { shard, upto, .. } => line.with_fold(|fold| self.merge.gap(fold, shard, upto)),
            Message::GraceOver { shard, ready } => self.merge.grace_over(shard, ready),
            Message::Open { stream, room, deliveries } => {
                self.streams.insert(stream, deliveries);
                self.merge.open(stream, room);
            }
            Message::Close { stream } => self.close(stream),
            Message::Watch { stream, id, spec, reply } => {
                if matches!(self.idle, Idle::Asleep) {
                    self.begin_phase(Idle::No);
                }
                self.idle = Idle::No;
                // First, so that events read from now on come with what it wants.
                if spec.prev_kv {
                    self.reading.wanted.write().insert(&spec.range, id);
                    self.wanted.insert(id, Arc::clone(&spec));
                }
                match line.with_fold(|fold| self.merge.watch(fold, id, stream, spec)) {
                    // Whoever asked may be gone; then the stream is closed too.
                    Some(revision) => drop(reply.send(revision)),
                    None => self.no_longer_wanted(id),
                }
            }
            Message::Cancel { id, reply } => {
                self.merge.cancel(id);
                self.no_longer_wanted(id);
                let _ = reply.send(());
            }
            Message::Progress { stream, at_least } => self.merge.progress(stream, at_least),
            Message::Notify { id } => self.merge.notify(id),
            Message::Room { stream } => self.merge.room(stream),
            Message::Fetched { id, outcome } => line.with_fold(|fold| self.merge.fetched(fold, id, outcome)),
            Message::Replayed { replay, revisions, upto, reply } => {
                let wanted = line.with_fold(|fold| self.merge.replayed(fold, replay, &revisions, upto));
                let _ = reply.send(wanted);
            }
            Message::ReplayEnded { replay, outcome } => {
                line.with_fold(|fold| self.merge.replay_ended(fold, replay, outcome));
            }
        }
    }

    fn carry_out(&mut self) {
        let mut round = Round::new();
        for effect in self.merge.take_effects() {
            match effect {
                Effect::Deliver(stream, delivery) => {
                    if let Delivery::Ended { watcher, .. } = delivery {
                        self.no_longer_wanted(watcher);
                    }
                    match self.streams.get(&stream) {
                        Some(deliveries) if deliveries.to.is_closed() => self.close(stream),
                        Some(Deliveries { to, mailbox }) => {
                            let to = to.clone();
                            round.bring(mailbox.as_ref(), move || {
                                // Room was taken for it, so it fails only if the stream has just ended.
                                let _ = to.try_send(delivery);
                            });
                        }
                        None => {}
                    }
                }
                Effect::Grace(shard, ready) => {
                    let (inbox, grace) = (self.reading.inbox.clone(), self.options.grace);
                    self.spawn(async move {
                        tokio::time::sleep(grace).await;
                        let _ = inbox.send(Message::GraceOver { shard, ready }).await;
                    });
                }
                Effect::FetchPrev(id, events) => {
                    let reading = self.reading.clone();
                    self.spawn(async move {
                        let outcome = fetch_all(&reading, &events).await;
                        let _ = reading.inbox.send(Message::Fetched { id, outcome }).await;
                    });
                }
                Effect::Replay { replay, shards, upto } => {
                    self.spawn(history::replay(self.reading.clone(), replay, shards, upto));
                }
            }
        }
    }

    /// No base streams any more for shards that left, and nobody waits for them.
    fn stop_those_that_left(&mut self) {
        let left = Arc::clone(&self.reading.ctx.line.cut().left);
        let gone = |shard: &ShardIx| left.get(shard.index()).copied().unwrap_or(false);
        for (shard, stop) in self.bases.extract_if(.., |shard, _| gone(shard)) {
            stop.cancel();
            self.reading.ctx.line.with_fold(|fold| self.merge.left(fold, shard));
        }
    }

    /// Falls asleep or wakes up: all shards are read in another way, from the line's revision on.
    fn begin_phase(&mut self, idle: Idle) {
        self.idle = idle;
        self.phase += 1;
        self.stats.asleep.store(matches!(idle, Idle::Asleep), Ordering::Relaxed);
        for stop in std::mem::take(&mut self.bases).into_values() {
            stop.cancel();
        }
        let merge = &mut self.merge;
        let begin = |fold: &Fold| {
            merge.begin_again(fold);
            let shards = fold.shards().iter().enumerate().filter(|(_, s)| !s.left);
            shards.map(|(i, s)| (ShardIx(i as u32), s.v)).collect::<Vec<_>>()
        };
        for (shard, local) in self.reading.ctx.line.with_fold(begin) {
            self.start_base(shard, local);
        }
    }

    fn start_base(&mut self, shard: ShardIx, local: i64) {
        let stop = self.reading.ctx.shutdown.child_token();
        self.bases.insert(shard, stop.clone());
        let asleep = matches!(self.idle, Idle::Asleep);
        let base = BaseStream::behind(self.reading.clone(), shard, local, self.phase, asleep);
        self.reading.ctx.tasks.spawn(base.run(stop));
    }

    /// Falls asleep once nobody has watched for a while.
    fn look_whether_idle(&mut self) {
        match (self.merge.counts().0, self.idle) {
            (0, Idle::No) => self.idle = Idle::Since(Instant::now()),
            (0, Idle::Since(since)) if since.elapsed() >= self.options.sleep_after => {
                self.begin_phase(Idle::Asleep);
            }
            _ => {}
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.reading.ctx.shutdown.clone();
        self.reading.ctx.tasks.spawn(async move { shutdown.run_until_cancelled_owned(task).await });
    }

    fn close(&mut self, stream: StreamId) {
        self.streams.remove(&stream);
        for (id, _) in self.merge.close(stream) {
            self.no_longer_wanted(id);
        }
    }

    fn no_longer_wanted(&mut self, id: WatcherId) {
        if let Some(spec) = self.wanted.remove(&id) {
            self.reading.wanted.write().remove(&spec.range, id);
        }
    }

    fn publish(&mut self) {
        let gone: Vec<_> = self
            .streams
            .iter()
            .filter(|(_, deliveries)| deliveries.to.is_closed())
            .map(|(&id, _)| id)
            .collect();
        for stream in gone {
            self.close(stream);
        }
        let (watchers, behind) = self.merge.counts();
        let head = self.merge.head();
        let lag = (self.reading.ctx.line.cut().revision - head).max(0);
        self.stats.passed.store(self.merge.passed(), Ordering::Relaxed);
        let metrics = &self.reading.ctx.metrics;
        metrics.watchers.set(watchers as i64);
        metrics.watchers_slow.set(behind as i64);
        metrics.watch_lag_revisions.set(lag);
        metrics.watch_events.inc_by(self.merge.events_sent - self.events_counted);
        self.events_counted = self.merge.events_sent;
    }
}

async fn fetch_all(reading: &Reading, events: &[Arc<HubEvent>]) -> FetchOutcome {
    let compacted = reading.ctx.line.cut().compacted;
    match fetch(reading, events).await {
        Ok(()) => FetchOutcome::Done,
        Err(error) if reading.is_gone(&error, compacted).await => FetchOutcome::Compacted,
        Err(error) => {
            tracing::debug!(%error, "previous key-value pairs cannot be read yet");
            FetchOutcome::Failed
        }
    }
}

/// Looks up the previous key-value pairs of events; each once, however many watchers ask for it at a time.
async fn fetch(reading: &Reading, events: &[Arc<HubEvent>]) -> Result<()> {
    let reads: Vec<BoxFuture<'_, Result<()>>> =
        events.iter().map(|event| fetch_one(reading, event).boxed()).collect();
    stream::iter(reads).buffer_unordered(READS_MAX).try_collect().await
}

async fn fetch_one(reading: &Reading, event: &HubEvent) -> Result<()> {
    let read = || async {
        let connection = reading.ctx.shards.get(event.shard).await?;
        let Some(kv) = &event.event.kv else { return Ok(None) };
        let of = PrevOf {
            shard: event.shard,
            key: kv.key.clone(),
            local: event.local,
            global: kv.mod_revision,
            imported_at: event.imported_at,
        };
        read_prev(&reading.ctx, connection.as_ref(), &reading.overrides, of, None).await
    };
    event.prev.get_or_try_init(read).await.map(|_| ())
}
