//! Opening, closing and asking an engine.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::Mutex;
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Result, ShardError};
use tokio::{
    sync::{mpsc, oneshot},
    task::AbortHandle,
    time::Instant,
};
use tonic::Code;

use crate::{
    EngineConfig, check,
    checkpoint::{self, Loaded},
    committer::{Command, Committer, Limits, Queued, Reply},
    entry::{self, ReplayError},
    errors, identity,
    lease::{Left, Renewal},
    metrics,
    mvcc::{Key, RangeScan, Step, Store},
    shared::{RAFT_TERM, Shared},
    txn,
    wal::{self, Wal, WalError},
};

/// An expired lease whose revocation did not happen is tried again after this time, as in etcd.
const EXPIRE_AGAIN: Duration = Duration::from_secs(3);
/// A lock that is taken is tried this often, with [`LOCK_PAUSE`] in between: for one second.
const LOCK_TRIES_MAX: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// Keys that a Range looks at before others have their turn: well below a millisecond.
const SCAN_KEYS_MAX: usize = 2000;
/// Leases that are revoked in one tick at most, as in etcd.
const EXPIRE_LEASES_MAX: usize = 500;
/// Leases in one record that says what they have left, as in etcd.
const WRITE_LEASES_MAX: usize = 1000;

/// A Range that is answered, or one that goes on with this snapshot.
pub(crate) enum RangeProgress {
    Done(pb::RangeResponse),
    More(Arc<Store>, RangeScan),
}

/// Why an engine cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The log or a checkpoint cannot be used; the message names the file.
    #[error(transparent)]
    Files(#[from] WalError),
    /// A record of the log does not fit the state before it.
    #[error("{} cannot be replayed at byte {offset}; restore the data directory from a copy", path.display())]
    Replay {
        /// The segment.
        path: PathBuf,
        /// Where the record starts.
        offset: u64,
        /// What is wrong.
        #[source]
        source: ReplayError,
    },
    /// Another process has the directory open.
    #[error("{} is in use by another process; stop it or choose another directory", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory has files but no identity: it belongs to something else.
    #[error("{} is not empty and no data directory of this program (it has {file}); choose another one", dir.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
        /// One of the files in it.
        file: String,
    },
    /// The directory was used, but its log is gone.
    #[error("{} has lost its log; restore it from a copy, or remove the directory to begin anew", dir.display())]
    LogMissing {
        /// The directory.
        dir: PathBuf,
    },
    /// The identity file cannot be read.
    #[error("{} is damaged", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// The writer thread cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

/// An open store. See the [crate] for what it guarantees.
///
/// Dropping it without [`Engine::close`] loses nothing that was acknowledged.
pub struct Engine {
    pub(crate) shared: Arc<Shared>,
    pub(crate) config: EngineConfig,
    /// None only while it is dropped.
    commands: Option<mpsc::Sender<Queued>>,
    committer: Mutex<Option<JoinHandle<()>>>,
    expirer: AbortHandle,
}

impl Engine {
    /// Opens the data directory, makes it if it is not there, and replays its log.
    ///
    /// # Errors
    /// See [`EngineError`]; nothing on disk is changed then but a torn last record.
    pub async fn open(config: EngineConfig) -> std::result::Result<Arc<Self>, EngineError> {
        let mut tries = 1;
        let opened = loop {
            let loading = config.clone();
            let opened = tokio::task::spawn_blocking(move || Opened::open(&loading)).await;
            match opened.map_err(|error| EngineError::Thread(std::io::Error::other(error)))? {
                // A process that was just killed may not be gone yet, and a child that another thread of ours is about
                // to start holds all our files until it runs its own program.
                Err(EngineError::Locked { .. }) if tries < LOCK_TRIES_MAX => {
                    tries += 1;
                    tokio::time::sleep(LOCK_PAUSE).await;
                }
                opened => break opened?,
            }
        };
        let Opened { lock, shared, wal, wal_bytes, checkpoint_bytes } = opened;

        let (commands, received) = mpsc::channel(config.queue_requests_max.max(1));
        let limits = Limits {
            disk: config.disk.clone(),
            dir: config.dir.clone(),
            quota_bytes: config.quota_limit(),
            lease_ttl_seconds_min: config.lease_ttl_seconds_min,
            checkpoint_wal_bytes: config.checkpoint_wal_bytes,
            recent_bytes: config.recent_bytes,
        };
        {
            let mut clock = shared.leases.lock();
            let deadlines = clock.at(Instant::now());
            for (id, lease) in shared.published.load().leases() {
                match lease.remaining {
                    0 => deadlines.start(id, lease.ttl, Instant::now()),
                    seconds => deadlines.resume(id, seconds, Instant::now()),
                }
            }
        }
        let committer =
            Committer::new(limits, Arc::clone(&shared), received, wal, wal_bytes, checkpoint_bytes);
        let ended = Ended(Arc::clone(&shared));
        let work = move || {
            // In this order also if it panics: the directory is free only when nobody writes any more.
            let _lock = lock;
            let _ended = ended;
            committer.run();
        };
        let thread = std::thread::Builder::new()
            .name(format!("engine-{}", config.name))
            .spawn(work)
            .map_err(EngineError::Thread)?;
        let expirer =
            tokio::spawn(expire(Arc::clone(&shared), commands.downgrade(), config.clone())).abort_handle();
        Ok(Arc::new(Self {
            shared,
            config,
            commands: Some(commands),
            committer: Mutex::new(Some(thread)),
            expirer,
        }))
    }

    /// Finishes what is queued, syncs it and gives the directory free. Later writes are refused, watches end, reads
    /// still answer, until another engine that opens the directory writes over a file that is no longer needed: then a value
    /// may be refused as damaged. A second call does nothing.
    pub async fn close(&self) {
        self.expirer.abort();
        self.write_leases_down().await;
        if let Some(commands) = &self.commands {
            // If it cannot be sent, the writer has ended already.
            let _ = commands.send(Command::Shutdown.into()).await;
        }
        let thread = self.committer.lock().take();
        if let Some(thread) = thread {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!(engine = self.config.name, "the writer thread did not end cleanly");
            }
        }
        self.shared.close();
    }

    /// Writes down what all leases have left, so that they go on from there.
    async fn write_leases_down(&self) {
        let leases = time_left(&self.shared, 1);
        for some in leases.chunks(WRITE_LEASES_MAX) {
            if let Err(error) = self.call(|reply| Command::Remaining(some.to_vec(), reply)).await {
                // They run longer then.
                tracing::warn!(%error, "cannot write down how much time leases have left");
                return;
            }
        }
    }

    /// The cluster id in all headers.
    pub fn cluster_id(&self) -> u64 {
        self.shared.cluster_id
    }

    /// The member id in all headers.
    pub fn member_id(&self) -> u64 {
        self.shared.member_id
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        &self.config.dir
    }

    /// The name from the configuration.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// The newest durable state: a snapshot that never changes.
    pub fn snapshot(&self) -> Arc<Store> {
        self.shared.published.load_full()
    }

    /// What the engine counts, under etcd's names, in the OpenMetrics text format.
    pub fn metrics(&self) -> String {
        metrics::encode(&self.shared, &self.config)
    }

    /// Deletes a range, etcd's `KV.DeleteRange`.
    pub async fn delete_range(&self, request: pb::DeleteRangeRequest) -> Result<pb::DeleteRangeResponse> {
        check::delete_range(&request)?;
        check::size(&request, self.config.max_request_bytes)?;
        self.call(|reply| Command::DeleteRange(request, reply)).await
    }

    /// Queues a command and waits for its answer.
    pub(crate) async fn call<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T> {
        self.call_within(self.config.request_timeout, command).await
    }

    /// Like [`Self::call`], for what may take long.
    pub(crate) async fn call_within<T>(
        &self,
        limit: Duration,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T> {
        let commands = self.commands.as_ref().ok_or_else(errors::stopped)?;
        let (reply, answer) = oneshot::channel();
        // Mostly there is room, and waiting for it would need a timer of its own.
        match commands.try_send(Queued::here(command(reply))) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(command)) => {
                match tokio::time::timeout(limit, commands.reserve()).await {
                    Ok(Ok(place)) => place.send(command),
                    Ok(Err(_)) => return Err(errors::stopped()),
                    Err(_) => return Err(errors::too_many_requests()),
                }
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(errors::stopped()),
        }
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(ShardError::ambiguous(
                Code::Unavailable,
                "etcdserver: server stopped while the request was under way",
            )),
            Err(_) => Err(ShardError::ambiguous(Code::Unavailable, "etcdserver: request timed out")),
        }
    }

    /// Begins a Range on the newest snapshot and finishes it if it is small, so that most need no second poll.
    pub(crate) fn begin_range(&self, request: pb::RangeRequest) -> Result<RangeProgress> {
        check::range(&request)?;
        let store = self.shared.published.load();
        let mut scan = RangeScan::new(&store, request, store.revision())?;
        if self.shared.read(scan.step_cached(&store, SCAN_KEYS_MAX))? == Step::Done {
            return self.finish_range(&store, scan).map(RangeProgress::Done);
        }
        Ok(RangeProgress::More(Arc::clone(&store), scan))
    }

    /// Finishes a large Range in slices on the same snapshot, so that other tasks of this thread have their turn. What is to be
    /// read from the disk is read by a thread that may wait.
    pub(crate) async fn finish_large_range(
        &self,
        store: Arc<Store>,
        mut scan: RangeScan,
    ) -> Result<pb::RangeResponse> {
        loop {
            tokio::task::yield_now().await;
            let is_done = match self.shared.read(scan.step_cached(&store, SCAN_KEYS_MAX))? {
                Step::OnDisk => {
                    let read = move || {
                        let is_done = scan.read_on();
                        (scan, is_done)
                    };
                    let (read, is_done) =
                        tokio::task::spawn_blocking(read).await.map_err(|_| errors::stopped())?;
                    scan = read;
                    self.shared.read(is_done)?
                }
                step => step == Step::Done,
            };
            if is_done {
                return self.finish_range(&store, scan);
            }
        }
    }

    /// Refuses an answer from history that compaction cut off while it was read; see [`Self::read`].
    fn finish_range(&self, store: &Store, scan: RangeScan) -> Result<pb::RangeResponse> {
        let revision = scan.revision();
        let mut response = scan.finish();
        if revision < store.revision() && revision < self.shared.published.load().compact_revision() {
            return Err(errors::compacted());
        }
        self.shared.fill(&mut response.header);
        Ok(response)
    }

    pub(crate) fn read_only_txn_now(&self, request: &pb::TxnRequest) -> Result<pb::TxnResponse> {
        let mut revisions = Vec::new();
        explicit_revisions(request, &mut revisions);
        let mut response = self.read(&revisions, |store| txn::read_only_txn(store, request))?;
        self.shared.fill(&mut response.header);
        Ok(response)
    }

    /// Reads a snapshot, again if compaction took history away meanwhile that the answer may rest on.
    ///
    /// `revisions` are those that may be read. Compaction publishes its revision before it cuts anything off, so a
    /// reader that met a cut sees it here. The second time the snapshot knows the compaction, and refuses what it
    /// hides. At a snapshot's own newest revision no history is read, so that is always there.
    fn read<T>(&self, revisions: &[i64], evaluate: impl Fn(&Store) -> Result<T>) -> Result<T> {
        loop {
            let store = self.shared.published.load();
            let answer = self.shared.read(evaluate(&store));
            let mut history =
                revisions.iter().filter(|at| (store.compact_revision()..store.revision()).contains(at));
            // Mostly there is none, and the state need not be looked up again.
            let Some(first) = history.next() else { return answer };
            let compacted = self.shared.published.load().compact_revision();
            if history.chain([first]).all(|at| *at >= compacted) {
                return answer;
            }
        }
    }

    pub(crate) async fn keep_alive(&self, id: i64) -> Result<pb::LeaseKeepAliveResponse> {
        // The header before the renewal, as etcd does: a lease revoked at revision 3 must not be seen kept alive at 4.
        let header = Some(self.shared.current_header());
        let gone = pb::LeaseKeepAliveResponse { header, id, ttl: 0 };
        loop {
            let revoked = self.shared.revoked.notified();
            tokio::pin!(revoked);
            revoked.as_mut().enable();
            if let Some(reason) = self.shared.failure.read().as_deref() {
                return Err(ShardError::refused(Code::Unavailable, format!("etcdserver: {reason}")));
            }
            let Some(ttl) = self.shared.published.load().lease(id).map(|lease| lease.ttl) else {
                return Ok(gone);
            };
            if self.shared.is_closed() {
                return Err(errors::stopped());
            }
            let now = Instant::now();
            let renewal = {
                let mut clock = self.shared.leases.lock();
                let deadlines = clock.at(now);
                deadlines.start(id, ttl, now);
                deadlines.renew(id, ttl, now)
            };
            match renewal {
                Renewal::Renewed { to_write_down } => {
                    self.shared.metrics.leases_renewed.up();
                    if let Some(full) = to_write_down {
                        self.call(|reply| Command::Remaining(vec![full], reply)).await?;
                        self.shared.leases.lock().at(Instant::now()).written(full);
                    }
                    return Ok(pb::LeaseKeepAliveResponse { ttl, ..gone });
                }
                // Its revocation is under way: the answer waits for it.
                Renewal::Expired => revoked.await,
            }
        }
    }

    pub(crate) fn time_to_live_now(
        &self,
        request: &pb::LeaseTimeToLiveRequest,
    ) -> pb::LeaseTimeToLiveResponse {
        let store = self.shared.published.load();
        let header = Some(self.shared.header(store.revision()));
        let Some(lease) = store.lease(request.id) else {
            return pb::LeaseTimeToLiveResponse { header, id: request.id, ttl: -1, ..Default::default() };
        };
        let now = Instant::now();
        let remaining = {
            let mut clock = self.shared.leases.lock();
            let deadlines = clock.at(now);
            deadlines.start(request.id, lease.ttl, now);
            deadlines.remaining(request.id, now).unwrap_or_default()
        };
        let keys = if request.keys { lease.keys.iter().map(Key::to_bytes).collect() } else { Vec::new() };
        // Rounded down as etcd's (v3_server.go, `leaseTimeToLive`), where some of it is over whenever it is asked for.
        let begun = remaining.saturating_sub(Duration::from_nanos(1));
        let ttl = i64::try_from(begun.as_secs()).unwrap_or(i64::MAX).min(lease.ttl);
        pb::LeaseTimeToLiveResponse { header, id: request.id, ttl, granted_ttl: lease.ttl, keys }
    }

    pub(crate) fn leases_now(&self) -> pb::LeaseLeasesResponse {
        let store = self.shared.published.load();
        let now = Instant::now();
        let mut leases: Vec<(Duration, i64)> = {
            let mut clock = self.shared.leases.lock();
            let deadlines = clock.at(now);
            store
                .leases()
                .map(|(id, _)| (deadlines.remaining(id, now).unwrap_or(Duration::MAX), id))
                .collect()
        };
        // etcd lists them by the time they have left.
        leases.sort_unstable();
        let leases = leases.into_iter().map(|(_, id)| pb::LeaseStatus { id }).collect();
        pb::LeaseLeasesResponse { header: Some(self.shared.header(store.revision())), leases }
    }

    pub(crate) fn status_now(&self) -> pb::StatusResponse {
        let store = self.shared.published.load();
        let alarms = store.alarms().iter().map(|alarm| {
            let kind = pb::AlarmType::try_from(alarm.kind).map_or("UNKNOWN", |kind| kind.as_str_name());
            format!("memberID:{} alarm:{kind}", alarm.member_id)
        });
        let failure = self.shared.failure.read();
        pb::StatusResponse {
            header: Some(self.shared.header(store.revision())),
            version: crate::ETCD_VERSION.to_owned(),
            db_size: i64::try_from(store.size()).unwrap_or(i64::MAX),
            db_size_in_use: i64::try_from(store.size_in_use()).unwrap_or(i64::MAX),
            db_size_quota: self.config.quota(),
            leader: self.shared.member_id,
            raft_index: store.applied(),
            raft_applied_index: store.applied(),
            raft_term: RAFT_TERM,
            errors: alarms.chain(failure.as_deref().map(str::to_owned)).collect(),
            is_learner: false,
            storage_version: "3.7.0".to_owned(),
            downgrade_info: Some(pb::DowngradeInfo::default()),
        }
    }

    pub(crate) fn alarms_now(&self, kind: i32) -> pb::AlarmResponse {
        let store = self.shared.published.load();
        let alarms = store
            .alarms()
            .iter()
            .filter(|alarm| kind == pb::AlarmType::None as i32 || alarm.kind == kind)
            .map(|alarm| pb::AlarmMember { member_id: alarm.member_id, alarm: alarm.kind })
            .collect();
        pb::AlarmResponse { header: Some(self.shared.header(store.revision())), alarms }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.expirer.abort();
        self.commands = None;
        if let Some(thread) = self.committer.get_mut().take() {
            // Short: at most the batch under way. The directory is free afterwards.
            let _ = thread.join();
        }
    }
}

/// The explicit revisions that any branch of a transaction reads at.
fn explicit_revisions(request: &pb::TxnRequest, found: &mut Vec<i64>) {
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(pb::Request::RequestRange(range)) if range.revision > 0 => found.push(range.revision),
            Some(pb::Request::RequestTxn(inner)) => explicit_revisions(inner, found),
            _ => {}
        }
    }
}

/// Ends watchers and waiting callers when the writer ends, however it ends.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("the writer thread panicked; nothing can be written until the next start");
        }
        self.0.close();
    }
}

/// What opening a directory gives.
pub(crate) struct Opened {
    lock: Option<File>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) wal: Wal,
    pub(crate) wal_bytes: u64,
    pub(crate) checkpoint_bytes: u64,
}

impl Opened {
    pub(crate) fn open(config: &EngineConfig) -> std::result::Result<Self, EngineError> {
        let disk = &config.disk;
        let dir = config.dir.as_path();
        let lock = identity::lock(disk, dir)?;
        let identity = identity::load_or_create(disk, dir, &config.name, config.cluster_id)?;
        let Loaded { last, file_bytes, mut store, mut log } =
            checkpoint::load(disk, dir, identity.cluster_id)?;
        let recovered = wal::recover(disk, dir, identity.cluster_id, last, |record, file, offset| {
            entry::replay_from(record, Some((file, offset)), &mut store, |changes| log.push(changes))
                .map_err(|source| EngineError::Replay { path: file.path().to_owned(), offset, source })
        })?;
        if recovered.segments.is_empty() && (identity.has_log || last.sequence > 0) {
            return Err(EngineError::LogMissing { dir: dir.to_owned() });
        }
        let wal_bytes = recovered.replayed_bytes;
        let wal = Wal::open(
            disk,
            dir,
            identity.cluster_id,
            config.segment_bytes,
            recovered,
            config.io_hook.clone(),
        )?;
        tracing::info!(
            engine = config.name,
            dir = %dir.display(),
            revision = store.revision(),
            compact_revision = store.compact_revision(),
            bytes = store.size_in_use(),
            replayed_bytes = wal_bytes,
            "the store is open"
        );
        let shared = Arc::new(Shared::new(identity.cluster_id, identity.member_id, store, log));
        if !identity.has_log {
            identity::set_has_log(disk, dir, identity)?;
        }
        Ok(Self { lock, shared, wal, wal_bytes, checkpoint_bytes: file_bytes })
    }
}

/// What leases have left that have at least that many seconds less than is written down.
fn time_left(shared: &Shared, seconds_min: i64) -> Vec<Left> {
    let store = shared.published.load();
    let now = Instant::now();
    shared.leases.lock().at(now).to_write_down(store.leases(), seconds_min, now)
}

/// Revokes leases whose time is over, and wakes the committer when it has something to look at.
pub(crate) async fn expire(shared: Arc<Shared>, commands: mpsc::WeakSender<Queued>, config: EngineConfig) {
    let tick = config.lease_tick;
    let mut at = Instant::now();
    let mut write_down_at = at + config.lease_checkpoint_interval;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(at) => {}
            () = shared.wake.notified() => {}
        }
        let now = Instant::now();
        let (expired, next) = {
            let mut clock = shared.leases.lock();
            let deadlines = clock.at(now);
            (deadlines.take_expired(now, EXPIRE_AGAIN, EXPIRE_LEASES_MAX), deadlines.next())
        };
        // No later than the next deadline, so that a lease ends on time; the tick is for everything else.
        at = next.map_or(now + tick, |next| next.min(now + tick));
        let Some(commands) = commands.upgrade() else { return };
        for id in expired {
            if commands.send(Command::Expire(id).into()).await.is_err() {
                return;
            }
        }
        if shared.take_damaged() {
            let (reply, _) = oneshot::channel();
            let request = pb::AlarmRequest {
                action: pb::alarm_request::AlarmAction::Activate as i32,
                member_id: shared.member_id,
                alarm: pb::AlarmType::Corrupt as i32,
            };
            if commands.send(Command::Alarm(request, reply).into()).await.is_err() {
                return;
            }
        }
        if now >= write_down_at {
            write_down_at = now + config.lease_checkpoint_interval;
            let seconds = i64::try_from(config.lease_checkpoint_interval.as_secs()).unwrap_or(i64::MAX);
            for some in time_left(&shared, seconds.max(1)).chunks(WRITE_LEASES_MAX) {
                let (reply, _) = oneshot::channel();
                if commands.send(Command::Remaining(some.to_vec(), reply).into()).await.is_err() {
                    return;
                }
            }
        }
        if shared.wants_tick.load(Ordering::Relaxed) {
            // When the queue is full the committer is awake anyway.
            let _ = commands.try_send(Command::Tick.into());
        }
    }
}
