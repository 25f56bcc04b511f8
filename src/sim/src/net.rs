//! The network between processes and etcds: it delays, loses, reorders and parts, as its seed says.
//!
//! A call that was sent takes effect on its own, whether its caller still waits or is dead; a caller whose answer is lost
//! learns that the outcome is unknown.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture};
use parking_lot::Mutex;
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::latest;
use sharded_etcd_shard::{Result, Shard, ShardError, WatchStream};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::{etcd::Etcd, rng::Rng, scaling, trace, world::World};

/// How long a call without an answer is waited for; that of the client of real etcd.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(7);
/// A watch stream over a cut connection ends after this.
const STREAM_TIMEOUT: Duration = Duration::from_secs(3);
/// Watch answers under way on one stream.
const STREAM_MAX: usize = 64;

/// What goes wrong, in percent of calls, and how long things take.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// Microseconds one way, at most, of a usual message.
    pub delay_us_max: u64,
    /// Percent of messages that take ten times as long.
    pub slow: u64,
    /// Percent of requests that are lost before their effect.
    pub lost_requests: u64,
    /// Percent of answers that are lost after the effect.
    pub lost_answers: u64,
    /// Percent of serializable reads that a member answers which is behind.
    pub lagging: u64,
}

impl Weather {
    /// Nothing goes wrong.
    pub const CALM: Self = Self { delay_us_max: 800, slow: 0, lost_requests: 0, lost_answers: 0, lagging: 0 };
}

/// The network.
pub struct Net {
    rng: Rng,
    weather: Mutex<Weather>,
    /// (process, etcd) that cannot talk.
    cut: Mutex<BTreeSet<(String, String)>>,
    changed: latest::Sender<u64>,
    /// Calls so far, by name; for reports.
    pub calls: Mutex<BTreeMap<&'static str, u64>>,
}

impl Net {
    /// A calm network.
    pub fn new(rng: Rng) -> Self {
        Self {
            rng,
            weather: Mutex::new(Weather::CALM),
            cut: Mutex::default(),
            changed: latest::Sender::new(0),
            calls: Mutex::default(),
        }
    }

    /// Changes the weather.
    pub fn set_weather(&self, weather: Weather) {
        *self.weather.lock() = weather;
    }

    /// Parts a process from an etcd, or joins them again.
    pub fn part(&self, process: &str, etcd: &str, parted: bool) {
        let pair = (process.to_owned(), etcd.to_owned());
        if parted {
            self.cut.lock().insert(pair);
        } else {
            self.cut.lock().remove(&pair);
        }
        self.changed.send_modify(|n| *n += 1);
    }

    /// Joins all that were parted, and calms the weather.
    pub fn heal(&self) {
        self.cut.lock().clear();
        self.set_weather(Weather::CALM);
        self.changed.send_modify(|n| *n += 1);
    }

    fn is_cut(&self, process: &str, etcd: &str) -> bool {
        let cut = self.cut.lock();
        !cut.is_empty() && cut.contains(&(process.to_owned(), etcd.to_owned()))
    }

    fn delay(&self) -> Duration {
        let weather = *self.weather.lock();
        let us = self.rng.between(50, weather.delay_us_max.max(50));
        Duration::from_micros(if self.rng.chance(weather.slow) { us * 10 } else { us })
    }
}

/// One process's connection to one etcd.
pub struct Link {
    world: Arc<World>,
    process: Arc<str>,
    etcd: Arc<Etcd>,
    /// The process was killed: it hears nothing any more, and what it says now is never sent.
    dead: latest::Receiver<bool>,
}

fn is_cut(world: &World, process: &str, etcd: &Etcd) -> bool {
    etcd.is_gone() || world.net.is_cut(process, &etcd.name)
}

/// What becomes of one call.
struct Fate {
    there: Duration,
    back: Duration,
    lose_request: bool,
    lose_answer: bool,
}

impl Link {
    /// A connection of a process that is dead once `dead` says so.
    pub fn new(
        world: &Arc<World>,
        process: &str,
        etcd: &Arc<Etcd>,
        dead: latest::Receiver<bool>,
    ) -> Arc<Self> {
        Arc::new(Self { world: Arc::clone(world), process: process.into(), etcd: Arc::clone(etcd), dead })
    }

    /// Connects the same process to others.
    pub fn maker(
        world: &Arc<World>,
        process: &str,
        dead: &latest::Receiver<bool>,
    ) -> impl Fn(&Arc<Etcd>) -> Arc<Self> + Send + use<> {
        let (world, process, dead) = (Arc::clone(world), process.to_owned(), dead.clone());
        move |etcd| Self::new(&world, &process, etcd, dead.clone())
    }

    fn fate(&self) -> Fate {
        let net = &self.world.net;
        let weather = *net.weather.lock();
        Fate {
            there: net.delay(),
            back: net.delay(),
            lose_request: net.rng.chance(weather.lost_requests),
            lose_answer: net.rng.chance(weather.lost_answers),
        }
    }

    fn is_cut(&self) -> bool {
        is_cut(&self.world, &self.process, &self.etcd)
    }

    /// Sends a call: `effect` is done at the etcd if it gets there.
    async fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        effect: impl FnOnce(&Etcd) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if *self.dead.borrow() {
            return std::future::pending().await;
        }
        *self.world.net.calls.lock().entry(what).or_default() += 1;
        // Half of the connections are known to be broken, the other half is found out by waiting.
        if self.is_cut() && self.world.net.rng.chance(50) {
            tokio::time::sleep(Duration::from_millis(1)).await;
            return Err(ShardError::not_sent("connection refused"));
        }
        let doomed = scaling::doomed(&self.world, &self.process, &self.etcd, what);
        if doomed == Some(false) {
            scaling::strike(&self.world, &self.process);
            return std::future::pending().await;
        }
        let fate = self.fate();
        let (answer, answered) = oneshot::channel();
        let (world, process, etcd) =
            (Arc::clone(&self.world), Arc::clone(&self.process), Arc::clone(&self.etcd));
        tokio::spawn(async move {
            tokio::time::sleep(fate.there).await;
            if fate.lose_request || is_cut(&world, &process, &etcd) {
                return;
            }
            let restarts = *etcd.restarts().borrow();
            etcd.awake().await;
            if etcd.is_gone() {
                return;
            }
            let result = effect(&etcd);
            trace!(world, "{process} {what} {} -> {}", etcd.name, outcome(&result));
            world.after_effect(&etcd);
            tokio::time::sleep(fate.back).await;
            let lost =
                fate.lose_answer || is_cut(&world, &process, &etcd) || *etcd.restarts().borrow() != restarts;
            if !lost {
                // The caller may have given up.
                let _ = answer.send(result);
            }
        });
        if doomed == Some(true) {
            scaling::strike(&self.world, &self.process);
        }
        let waited = tokio::time::timeout(REQUEST_TIMEOUT, answered).await;
        if *self.dead.borrow() {
            return std::future::pending().await;
        }
        match waited {
            Ok(Ok(result)) => result,
            // Half of the lost answers show at once, as a broken connection.
            Ok(Err(_)) if self.world.net.rng.chance(50) => {
                Err(ShardError::ambiguous(Code::Unavailable, "connection reset"))
            }
            Ok(Err(_)) | Err(_) => {
                tokio::time::sleep(REQUEST_TIMEOUT / 7).await;
                Err(ShardError::ambiguous(Code::DeadlineExceeded, "no answer in time"))
            }
        }
    }

    async fn open_watch(&self, request: pb::WatchCreateRequest) -> Result<WatchStream> {
        self.call("watch", |_| Ok(())).await?;
        let (to, stream) = mpsc::channel(STREAM_MAX);
        let (world, process, etcd) =
            (Arc::clone(&self.world), Arc::clone(&self.process), Arc::clone(&self.etcd));
        let mut dead = self.dead.clone();
        let mut watcher = etcd.watch(request);
        let mut restarts = etcd.restarts();
        let mut changed = world.net.changed.subscribe();
        tokio::spawn(async move {
            let broken = |why| Err(ShardError::ambiguous(Code::Unavailable, why));
            loop {
                let next = tokio::select! {
                    biased;
                    () = async { _ = dead.wait_for(|dead| *dead).await } => return,
                    () = to.closed() => return,
                    _ = restarts.changed() => {
                        let _ = to.send(broken("the etcd restarted")).await;
                        return;
                    }
                    _ = changed.changed() => {
                        if is_cut(&world, &process, &etcd) {
                            // Silence; the stream ends when the keep-alive of the connection finds out.
                            tokio::time::sleep(STREAM_TIMEOUT).await;
                            let _ = to.send(broken("the connection is dead")).await;
                            return;
                        }
                        continue;
                    }
                    next = watcher.next() => next,
                };
                etcd.awake().await;
                tokio::time::sleep(world.net.delay()).await;
                let last = next.canceled;
                if to.send(Ok(next)).await.is_err() || last {
                    return;
                }
            }
        });
        Ok(ReceiverStream::new(stream).boxed())
    }
}

fn outcome<T>(result: &Result<T>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.message.clone(),
    }
}

macro_rules! calls {
    ($($method:ident($arg:ident: $request:ty) -> $response:ty = $effect:expr;)*) => {$(
        fn $method(&self, $arg: $request) -> BoxFuture<'_, Result<$response>> {
            #[allow(clippy::redundant_closure_call)]
            self.call(stringify!($method), move |etcd| ($effect)(etcd, $arg)).boxed()
        }
    )*};
}

impl Shard for Link {
    fn range(&self, request: pb::RangeRequest) -> BoxFuture<'_, Result<pb::RangeResponse>> {
        let net = &self.world.net;
        let lag = if request.serializable && net.rng.chance(net.weather.lock().lagging) {
            net.rng.between(1, 5) as i64
        } else {
            0
        };
        self.call("range", move |etcd| etcd.range(&request, lag)).boxed()
    }

    calls! {
        put(request: pb::PutRequest) -> pb::PutResponse = |etcd: &Etcd, request| etcd.put(request);
        txn(request: pb::TxnRequest) -> pb::TxnResponse = |etcd: &Etcd, request| etcd.txn(&request);
        lease_grant(request: pb::LeaseGrantRequest) -> pb::LeaseGrantResponse =
            |etcd: &Etcd, request| etcd.lease_grant(&request);
        lease_revoke(request: pb::LeaseRevokeRequest) -> pb::LeaseRevokeResponse =
            |etcd: &Etcd, request: pb::LeaseRevokeRequest| etcd.lease_revoke(request.id);
        lease_keep_alive(id: i64) -> pb::LeaseKeepAliveResponse =
            |etcd: &Etcd, id| Ok(etcd.lease_keep_alive(id));
        lease_time_to_live(request: pb::LeaseTimeToLiveRequest) -> pb::LeaseTimeToLiveResponse =
            |etcd: &Etcd, request| Ok(etcd.lease_time_to_live(&request));
        alarm(request: pb::AlarmRequest) -> pb::AlarmResponse =
            |etcd: &Etcd, _: pb::AlarmRequest| Ok(pb::AlarmResponse { header: etcd.status().header, ..Default::default() });
    }

    fn compact(&self, request: pb::CompactionRequest) -> BoxFuture<'_, Result<pb::CompactionResponse>> {
        let world = Arc::clone(&self.world);
        self.call("compact", move |etcd| {
            trace!(world, "compacting {} to {} of {}", etcd.name, request.revision, etcd.revision());
            etcd.compact(request.revision)
        })
        .boxed()
    }

    fn lease_leases(&self) -> BoxFuture<'_, Result<pb::LeaseLeasesResponse>> {
        self.call("lease_leases", |etcd| Ok(etcd.lease_leases())).boxed()
    }

    fn status(&self) -> BoxFuture<'_, Result<pb::StatusResponse>> {
        self.call("status", |etcd| Ok(etcd.status())).boxed()
    }

    fn defragment(&self) -> BoxFuture<'_, Result<pb::DefragmentResponse>> {
        self.call("defragment", |_| Ok(pb::DefragmentResponse::default())).boxed()
    }

    fn watch(&self, request: pb::WatchCreateRequest) -> BoxFuture<'_, Result<WatchStream>> {
        self.open_watch(request).boxed()
    }
}
