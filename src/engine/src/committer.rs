//! The one writer: applies queued requests, makes them durable, publishes and answers.
//!
//! # Expected flow
//! A batch is everything that queued up while the one before was written. Its requests are applied in order to a
//! working copy of the store, their effects go into one record of the log, and only after that is synced are they
//! published: first to readers, then to watchers, then the callers are answered.
//!
//! # Guarantees
//! Nothing is visible to anybody before it is durable. A batch whose record could not be written leaves no trace in
//! the store: the working copy is thrown away.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_serve::{Mailbox, Round, home};
use sharded_etcd_shard::{Result, ShardError, with_causes};
use tokio::sync::{mpsc, oneshot};
use tonic::Code;

use crate::{
    checkpoint,
    disk::Disk,
    entry::{Entry, Placed},
    errors, hash,
    history::Pin,
    lease::Left,
    mvcc::{Alarm, Changes, Store},
    quota,
    shared::Shared,
    txn,
    values::{Recent, ValueError},
    wal::{AppendError, Wal, WalError},
};

/// Requests in one batch at most.
const BATCH_REQUESTS_MAX: usize = 1024;
/// A batch is closed once its record is this large.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// Revisions whose history is given back in one go, between two batches.
const COLLECT_REVISIONS_MAX: usize = 256;
/// How far behind the newest revision compaction waits for watchers that are about to read.
const WATCHER_GRACE_REVISIONS: i64 = 1024;

/// Where the answer of a request goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T>>;

/// A request to the committer.
pub(crate) enum Command {
    Put(pb::PutRequest, Reply<pb::PutResponse>),
    DeleteRange(pb::DeleteRangeRequest, Reply<pb::DeleteRangeResponse>),
    Txn(pb::TxnRequest, Reply<pb::TxnResponse>),
    Compact(pb::CompactionRequest, Reply<pb::CompactionResponse>),
    Grant(pb::LeaseGrantRequest, Reply<pb::LeaseGrantResponse>),
    Revoke(i64, Reply<pb::LeaseRevokeResponse>),
    /// Writes down how much time leases have left, for a restart; see [`crate::lease`].
    Remaining(Vec<Left>, Reply<()>),
    /// Revokes a lease whose time is over.
    Expire(i64),
    Alarm(pb::AlarmRequest, Reply<pb::AlarmResponse>),
    Defragment(Reply<pb::DefragmentResponse>),
    /// Looks for compacted history that a watcher held, and for a checkpoint that is done.
    Tick,
    /// Finishes what is queued and ends.
    Shutdown,
}

/// A command, and where its answer goes first.
pub(crate) struct Queued {
    command: Command,
    /// None: straight to the task that waits.
    mailbox: Option<Arc<Mailbox>>,
}

impl Queued {
    /// A command of the current thread.
    pub(crate) fn here(command: Command) -> Self {
        Self { command, mailbox: home() }
    }
}

impl From<Command> for Queued {
    fn from(command: Command) -> Self {
        Self { command, mailbox: None }
    }
}

/// An answer that waits for its batch to be durable.
pub(crate) enum Answer {
    Put(Reply<pb::PutResponse>, Result<pb::PutResponse>),
    DeleteRange(Reply<pb::DeleteRangeResponse>, Result<pb::DeleteRangeResponse>),
    Txn(Reply<pb::TxnResponse>, Result<pb::TxnResponse>),
    Compact(Reply<pb::CompactionResponse>, Result<pb::CompactionResponse>),
    /// A compaction that is answered once its history is given back.
    CompactPhysically(Reply<pb::CompactionResponse>, pb::CompactionResponse),
    Grant(Reply<pb::LeaseGrantResponse>, Result<pb::LeaseGrantResponse>),
    Revoke(Reply<pb::LeaseRevokeResponse>, Result<pb::LeaseRevokeResponse>),
    Remaining(Reply<()>, Result<()>),
    Alarm(Reply<pb::AlarmResponse>, Result<pb::AlarmResponse>),
    Defragment(Reply<pb::DefragmentResponse>, Result<pb::DefragmentResponse>),
}

impl Answer {
    /// Sends the answer. A caller that is gone does not want it.
    pub(crate) fn send(self) {
        match self {
            Answer::Put(reply, result) => drop(reply.send(result)),
            Answer::DeleteRange(reply, result) => drop(reply.send(result)),
            Answer::Txn(reply, result) => drop(reply.send(result)),
            Answer::Compact(reply, result) => drop(reply.send(result)),
            Answer::CompactPhysically(reply, response) => drop(reply.send(Ok(response))),
            Answer::Grant(reply, result) => drop(reply.send(result)),
            Answer::Revoke(reply, result) => drop(reply.send(result)),
            Answer::Remaining(reply, result) => drop(reply.send(result)),
            Answer::Alarm(reply, result) => drop(reply.send(result)),
            Answer::Defragment(reply, result) => drop(reply.send(result)),
        }
    }

    /// Answers with an error instead: also where the request itself had failed, since it may have failed on state
    /// that never became durable.
    fn fail(self, error: ShardError) {
        match self {
            Answer::Put(reply, _) => drop(reply.send(Err(error))),
            Answer::DeleteRange(reply, _) => drop(reply.send(Err(error))),
            Answer::Txn(reply, _) => drop(reply.send(Err(error))),
            Answer::Compact(reply, _) | Answer::CompactPhysically(reply, _) => drop(reply.send(Err(error))),
            Answer::Grant(reply, _) => drop(reply.send(Err(error))),
            Answer::Revoke(reply, _) => drop(reply.send(Err(error))),
            Answer::Remaining(reply, _) => drop(reply.send(Err(error))),
            Answer::Alarm(reply, _) => drop(reply.send(Err(error))),
            Answer::Defragment(reply, _) => drop(reply.send(Err(error))),
        }
    }
}

/// What a batch will publish.
#[derive(Default)]
struct Batch {
    answers: Vec<Answer>,
    /// Where they go first, one for each.
    mailboxes: Vec<Option<Arc<Mailbox>>>,
    /// The changes of each new revision, in order.
    revisions: Vec<Changes>,
    granted: Vec<(i64, i64)>,
    revoked: Vec<i64>,
}

/// Limits of the committer.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub disk: Disk,
    pub dir: PathBuf,
    pub quota_bytes: u64,
    pub lease_ttl_seconds_min: i64,
    pub checkpoint_wal_bytes: u64,
    /// Bytes of durable values that stay in memory.
    pub recent_bytes: usize,
}

pub(crate) struct Committer {
    limits: Limits,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Queued>,
    wal: Wal,
    /// What is published plus the batch under way.
    store: Store,
    /// The record of the batch under way.
    record: Vec<u8>,
    /// Where in it values are.
    placed: Placed,
    /// Durable values that are still in memory.
    recent: Recent,
    /// Log bytes that the newest checkpoint does not hold.
    wal_bytes: u64,
    /// Size of the newest checkpoint: rewriting a large store pays off only after that much log.
    checkpoint_bytes: u64,
    checkpointing: Option<Checkpointing>,
    /// The compaction up to which history was given back.
    collected: i64,
    /// Compactions that wait for it.
    physical: Vec<Answer>,
    /// Defragmentations that wait for the checkpoint that is being written.
    defragmenting: Vec<Reply<pb::DefragmentResponse>>,
    /// Compactions of the batch under way: from where to where.
    compacted: Vec<(i64, i64)>,
}

struct Checkpointing {
    sequence: u64,
    wal_bytes: u64,
    is_done: Arc<AtomicBool>,
    thread: JoinHandle<std::result::Result<u64, WalError>>,
}

impl Committer {
    pub(crate) fn new(
        limits: Limits,
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Queued>,
        wal: Wal,
        wal_bytes: u64,
        checkpoint_bytes: u64,
    ) -> Self {
        let store = Store::clone(&shared.published.load());
        Self {
            recent: Recent::new(limits.recent_bytes),
            limits,
            shared,
            commands,
            wal,
            store,
            record: Vec::new(),
            placed: Vec::new(),
            wal_bytes,
            checkpoint_bytes,
            checkpointing: None,
            collected: -1,
            physical: Vec::new(),
            defragmenting: Vec::new(),
            compacted: Vec::new(),
        }
    }

    /// Works until [`Command::Shutdown`] or until nobody can send any more.
    pub(crate) fn run(mut self) {
        let mut received = Vec::with_capacity(BATCH_REQUESTS_MAX);
        let mut queue = VecDeque::new();
        loop {
            if queue.is_empty() && !self.receive(&mut received) {
                break;
            }
            queue.extend(received.drain(..));
            self.work(&mut queue);
        }
        self.physical.drain(..).for_each(Answer::send);
        if let Some(running) = self.checkpointing.take() {
            self.finish_checkpoint(running);
        }
        // After a failed write nothing may be written any more.
        if self.shared.failure.read().is_none()
            && let Err(error) = self.wal.seal()
        {
            tracing::warn!(error = with_causes(&error), "the log is not sealed; nothing is lost");
        }
    }

    /// One batch, and what is to be done after it.
    pub(crate) fn work<C: Into<Queued>>(&mut self, queue: &mut VecDeque<C>) {
        self.batch(queue);
        self.hash_compaction();
        self.collect();
        if self.collect_target().is_none() && !self.shared.pins.is_pinned() {
            self.physical.drain(..).for_each(Answer::send);
        }
        self.checkpoint();
        let is_waiting = self.checkpointing.is_some() || self.collected < self.store.compact_revision();
        self.shared.wants_tick.store(is_waiting, Ordering::Relaxed);
    }

    /// What readers see.
    #[cfg(test)]
    pub(crate) fn published(&self) -> Arc<Store> {
        self.shared.published.load_full()
    }

    /// Waits for requests, or only looks for some while there is history to give back. False at the end.
    fn receive(&mut self, received: &mut Vec<Queued>) -> bool {
        if self.collect_target().is_some() {
            while received.len() < BATCH_REQUESTS_MAX {
                match self.commands.try_recv() {
                    Ok(command) => received.push(command),
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Err(mpsc::error::TryRecvError::Disconnected) => return !received.is_empty(),
                }
            }
            return true;
        }
        self.commands.blocking_recv_many(received, BATCH_REQUESTS_MAX) > 0
    }

    fn batch<C: Into<Queued>>(&mut self, queue: &mut VecDeque<C>) {
        let mut batch = Batch::default();
        Wal::begin(&mut self.record);
        self.placed.clear();
        while self.record.len() < BATCH_BYTES_MAX {
            let Some(Queued { command, mailbox }) = queue.pop_front().map(Into::into) else { break };
            self.apply(command, &mut batch);
            batch.mailboxes.resize(batch.answers.len(), mailbox);
        }
        if Wal::has_payload(&self.record) {
            let begun = std::time::Instant::now();
            match self.wal.append(&mut self.record) {
                Ok(appended) => {
                    self.shared.metrics.logged(appended.bytes, begun.elapsed());
                    self.wal_bytes += appended.bytes;
                    self.publish(&mut batch);
                    for (version, at) in self.placed.drain(..) {
                        self.recent.add(version, &appended.file, appended.offset + at as u64);
                    }
                }
                Err(error) => return self.fail(batch, error),
            }
        }
        // Before the answers: who asks a watcher for its progress after a write then finds that write in it.
        self.mark_watchers(&batch.revisions);
        let physical = &mut self.physical;
        let mut round = Round::new();
        for (answer, mailbox) in batch.answers.into_iter().zip(batch.mailboxes) {
            if matches!(answer, Answer::CompactPhysically(..)) {
                physical.push(answer);
            } else {
                round.bring(mailbox.as_ref(), || answer.send());
            }
        }
        drop(round);
        // One batch of unusual size must not pin its memory.
        if self.record.capacity() > 2 * BATCH_BYTES_MAX {
            self.record = Vec::new();
        }
    }

    /// Makes a durable batch visible to readers.
    fn publish(&mut self, batch: &mut Batch) {
        self.shared.published.store(Arc::new(self.store.clone()));
        if !batch.revisions.is_empty() {
            let mut log = self.shared.log.write();
            for changes in &batch.revisions {
                log.push(changes.clone());
            }
        }
        let metrics = &self.shared.metrics;
        metrics.published(&batch.revisions);
        metrics.leases_granted.add(batch.granted.len() as u64);
        metrics.leases_revoked.add(batch.revoked.len() as u64);
        if !batch.granted.is_empty() || !batch.revoked.is_empty() {
            let mut leases = self.shared.leases.lock();
            // An id may be revoked and granted in one batch, in this order only: a grant is answered first.
            batch.revoked.iter().for_each(|id| leases.revoked(*id));
            batch.granted.iter().for_each(|(id, ttl)| leases.granted(*id, *ttl));
            drop(leases);
            self.shared.revoked.notify_waiters();
            // A lease runs from when this is noticed.
            self.shared.wake.notify_one();
        }
    }

    fn mark_watchers(&mut self, revisions: &[Changes]) {
        if !revisions.is_empty() {
            self.shared.watchers.mark(revisions, self.store.revision());
        }
    }

    /// Takes a batch back that could not be made durable.
    fn fail(&mut self, batch: Batch, error: AppendError) {
        self.store = Store::clone(&self.shared.published.load());
        self.placed.clear();
        self.compacted.clear();
        self.shared.metrics.failed.up();
        let answer = match error {
            AppendError::Untouched(error) => {
                let message = with_causes(&error);
                tracing::error!(error = message, "the log cannot grow; writes are refused until it can");
                unavailable(&message)
            }
            AppendError::Unknown(error) => {
                let message = with_causes(&error);
                tracing::error!(
                    error = message,
                    "the log cannot be written; all writes are refused from now on"
                );
                *self.shared.failure.write() = Some(message.as_str().into());
                self.shared.revoked.notify_waiters();
                ShardError::ambiguous(Code::Unavailable, format!("etcdserver: {message}"))
            }
        };
        for waiting in batch.answers {
            waiting.fail(answer.clone());
        }
    }

    fn apply(&mut self, command: Command, batch: &mut Batch) {
        let refused = self.shared.failure.read().as_deref().map(unavailable);
        match command {
            Command::Put(request, reply) => {
                let result = refused.map_or_else(|| self.put(&request, batch), Err);
                batch.answers.push(Answer::Put(reply, result));
            }
            Command::DeleteRange(request, reply) => {
                let result = refused.map_or_else(|| self.delete_range(&request, batch), Err);
                batch.answers.push(Answer::DeleteRange(reply, result));
            }
            Command::Txn(request, reply) => {
                let result = refused.map_or_else(|| self.txn(&request, batch), Err);
                batch.answers.push(Answer::Txn(reply, result));
            }
            Command::Compact(request, reply) => {
                let result = refused.map_or_else(|| self.compact(&request), Err);
                batch.answers.push(match result {
                    Ok(response) if request.physical => Answer::CompactPhysically(reply, response),
                    result => Answer::Compact(reply, result),
                });
            }
            Command::Grant(request, reply) => {
                let result = refused.map_or_else(|| self.grant(&request, batch), Err);
                batch.answers.push(Answer::Grant(reply, result));
            }
            Command::Revoke(id, reply) => {
                let result = refused.map_or_else(|| self.revoke(id, batch), Err);
                batch.answers.push(Answer::Revoke(reply, result));
            }
            Command::Remaining(leases, reply) => {
                if refused.is_none() {
                    self.remaining(&leases);
                }
                batch.answers.push(Answer::Remaining(reply, refused.map_or(Ok(()), Err)));
            }
            Command::Expire(id) => {
                // Unless a client was faster. If it fails it is tried again.
                if refused.is_none() && self.store.lease(id).is_some() && self.revoke(id, batch).is_ok() {
                    self.shared.metrics.leases_expired.up();
                }
            }
            Command::Alarm(request, reply) => {
                let result = refused.map_or_else(|| Ok(self.alarm(&request)), Err);
                batch.answers.push(Answer::Alarm(reply, result));
            }
            Command::Defragment(reply) => {
                self.store.defragment();
                self.shared.published.store(Arc::new(self.published_defragmented()));
                // A checkpoint is what shrinks the files.
                self.wal_bytes = self.wal_bytes.max(1);
                self.start_checkpoint();
                if self.checkpointing.is_some() {
                    self.defragmenting.push(reply);
                } else {
                    let error = unavailable("there is no thread for a checkpoint; try again");
                    batch.answers.push(Answer::Defragment(reply, Err(error)));
                }
            }
            Command::Tick => {}
            Command::Shutdown => self.commands.close(),
        }
    }

    fn published_defragmented(&self) -> Store {
        let mut published = Store::clone(&self.shared.published.load());
        published.defragment();
        published
    }

    fn put(&mut self, request: &pb::PutRequest, batch: &mut Batch) -> Result<pb::PutResponse> {
        self.check_alarms(|| quota::put_cost(request))?;
        let (mut response, changes) = self.shared.read(txn::put(&mut self.store, request))?;
        self.log_write(changes, batch);
        self.shared.fill(&mut response.header);
        Ok(response)
    }

    fn delete_range(
        &mut self,
        request: &pb::DeleteRangeRequest,
        batch: &mut Batch,
    ) -> Result<pb::DeleteRangeResponse> {
        self.check_corrupt()?;
        let (mut response, changes) = self.shared.read(txn::delete_range(&mut self.store, request))?;
        self.log_write(changes, batch);
        self.shared.fill(&mut response.header);
        Ok(response)
    }

    fn txn(&mut self, request: &pb::TxnRequest, batch: &mut Batch) -> Result<pb::TxnResponse> {
        self.check_alarms(|| quota::txn_cost(request))?;
        let (mut response, changes) = self.shared.read(txn::txn(&mut self.store, request))?;
        self.log_write(changes, batch);
        self.shared.fill(&mut response.header);
        Ok(response)
    }

    fn compact(&mut self, request: &pb::CompactionRequest) -> Result<pb::CompactionResponse> {
        self.check_corrupt()?;
        let before = self.store.compact_revision();
        self.store.compact(request.revision)?;
        self.compacted.push((before, request.revision));
        self.log(Entry::Compact(request.revision));
        Ok(pb::CompactionResponse { header: Some(self.shared.header(self.store.revision())) })
    }

    fn grant(
        &mut self,
        request: &pb::LeaseGrantRequest,
        batch: &mut Batch,
    ) -> Result<pb::LeaseGrantResponse> {
        self.check_alarms(|| quota::LEASE_COST_BYTES)?;
        let mut id = request.id;
        // Like etcd, only positive numbers are chosen; a collision is as good as impossible, and looked for.
        while id == 0 || (request.id == 0 && self.store.lease(id).is_some()) {
            id = rand::random::<i64>() & i64::MAX;
        }
        if request.ttl > crate::lease::TTL_SECONDS_MAX {
            return Err(errors::lease_ttl_too_large());
        }
        if self.store.lease(id).is_some() {
            return Err(errors::lease_exists());
        }
        let ttl = request.ttl.max(self.limits.lease_ttl_seconds_min);
        self.store.grant(id, ttl);
        self.log(Entry::Grant { id, ttl });
        batch.granted.push((id, ttl));
        let header = Some(self.shared.header(self.store.revision()));
        Ok(pb::LeaseGrantResponse { header, id, ttl, error: String::new() })
    }

    fn revoke(&mut self, id: i64, batch: &mut Batch) -> Result<pb::LeaseRevokeResponse> {
        self.check_corrupt()?;
        let (found, changes) = self.store.revoke(id);
        if !found {
            return Err(errors::lease_not_found());
        }
        self.log(Entry::Revoke { id, changes: changes.as_ref() });
        batch.granted.retain(|(granted, _)| *granted != id);
        batch.revoked.push(id);
        batch.revisions.extend(changes);
        Ok(pb::LeaseRevokeResponse { header: Some(self.shared.header(self.store.revision())) })
    }

    fn remaining(&mut self, leases: &[Left]) {
        let clock = self.shared.leases.lock();
        for left in leases {
            let (id, seconds) = (left.id, left.seconds);
            // It may be gone, or renewed, by now.
            if clock.is_current(*left) && self.store.set_remaining(id, seconds) {
                Entry::Remaining { id, seconds }.encode(&mut self.record);
            }
        }
    }

    fn alarm(&mut self, request: &pb::AlarmRequest) -> pb::AlarmResponse {
        let alarm = Alarm { kind: request.alarm, member_id: request.member_id };
        let show = |alarm: &Alarm| pb::AlarmMember { member_id: alarm.member_id, alarm: alarm.kind };
        let is_none = request.alarm == pb::AlarmType::None as i32;
        let alarms = match pb::alarm_request::AlarmAction::try_from(request.action) {
            Ok(pb::alarm_request::AlarmAction::Get) => self
                .store
                .alarms()
                .iter()
                .filter(|up| is_none || up.kind == request.alarm)
                .map(show)
                .collect(),
            Ok(pb::alarm_request::AlarmAction::Activate) if !is_none => {
                if self.store.raise(alarm) {
                    self.log(Entry::Raise(alarm));
                }
                vec![show(&alarm)]
            }
            Ok(pb::alarm_request::AlarmAction::Deactivate) if self.store.disarm(alarm) => {
                self.log(Entry::Disarm(alarm));
                vec![show(&alarm)]
            }
            _ => Vec::new(),
        };
        pb::AlarmResponse { header: Some(self.shared.header(self.store.revision())), alarms }
    }

    fn check_corrupt(&self) -> Result<()> {
        if self.store.has_alarm(pb::AlarmType::Corrupt) { Err(errors::corrupt()) } else { Ok(()) }
    }

    /// Refuses what the alarms and the quota forbid; raises NOSPACE when the quota is met.
    fn check_alarms(&mut self, cost: impl FnOnce() -> u64) -> Result<()> {
        self.check_corrupt()?;
        let cost = cost();
        if cost == 0 {
            return Ok(());
        }
        if self.store.has_alarm(pb::AlarmType::Nospace) {
            return Err(errors::no_space());
        }
        if self.store.size().saturating_add(cost) >= self.limits.quota_bytes {
            let alarm = Alarm { kind: pb::AlarmType::Nospace as i32, member_id: self.shared.member_id };
            tracing::warn!(
                size_bytes = self.store.size(),
                quota_bytes = self.limits.quota_bytes,
                "the quota is met: alarm NOSPACE"
            );
            if self.store.raise(alarm) {
                self.log(Entry::Raise(alarm));
            }
            return Err(errors::no_space());
        }
        Ok(())
    }

    fn log_write(&mut self, changes: Option<Changes>, batch: &mut Batch) {
        if let Some(changes) = changes {
            self.log(Entry::Write(&changes));
            batch.revisions.push(changes);
        }
    }

    fn log(&mut self, entry: Entry<'_>) {
        entry.encode_placed(&mut self.record, &mut self.placed);
    }

    /// Up to which revision history can be given back now, if there is any.
    fn collect_target(&self) -> Option<i64> {
        let compacted = self.store.compact_revision();
        if compacted <= self.collected || self.shared.pins.is_pinned() {
            return None;
        }
        // A watcher that is only a moment behind shall find what it was woken for.
        let floor = self.store.revision().saturating_sub(WATCHER_GRACE_REVISIONS);
        // One less than what it reads next, whose predecessors may be asked for as `prev_kv`.
        let held = self.shared.watchers.oldest_pending(floor).map_or(i64::MAX, |pending| pending - 1);
        let target = compacted.min(held);
        (target > self.collected && target > self.shared.log.read().first_revision().saturating_sub(1))
            .then_some(target)
    }

    /// Has what was just compacted hashed before it is given back, beside the next batches.
    fn hash_compaction(&mut self) {
        let compacted = std::mem::take(&mut self.compacted);
        // Of several at once only the last could still be asked for, and etcd does not remember those either.
        let [(before, revision)] = compacted[..] else { return };
        if !self.shared.hashes.begin() {
            return;
        }
        let (shared, pin) = (Arc::clone(&self.shared), Pin::new(&self.shared));
        let store = self.shared.published.load_full();
        let work = move || {
            hash::hash_compaction(&shared, &store, before, revision);
            drop(pin);
        };
        if let Err(error) = self.limits.disk.spawn("engine-hash", work) {
            tracing::warn!(%error, "cannot start a thread that hashes a compaction; HashKV does without");
            self.shared.hashes.end(std::time::Duration::ZERO, 0);
        }
    }

    /// Gives a slice of compacted history back.
    fn collect(&mut self) {
        let Some(target) = self.collect_target() else { return };
        let shared = Arc::clone(&self.shared);
        shared.pins.unless_pinned(|| self.collect_slice(target));
    }

    fn collect_slice(&mut self, target: i64) {
        let trimmed = self.shared.log.write().trim(target, COLLECT_REVISIONS_MAX);
        let mut garbage = Vec::new();
        for changes in &trimmed {
            garbage.extend(self.store.collect(changes.as_slice()));
        }
        let (first, at_target) = {
            let log = self.shared.log.read();
            (log.first_revision(), log.get(target).map(<[_]>::to_vec))
        };
        if first >= target {
            if let Some(changes) = at_target {
                garbage.extend(self.store.collect(&changes));
            }
            self.collected = target;
        }
        // The index may have lost keys, and the sizes changed; a batch that fails later must not bring that back.
        self.shared.published.store(Arc::new(self.store.clone()));
    }

    /// Starts a checkpoint when the log is long enough, and finishes one that is done.
    fn checkpoint(&mut self) {
        if let Some(running) = self.checkpointing.take_if(|running| running.is_done.load(Ordering::Acquire)) {
            self.finish_checkpoint(running);
        }
        if self.wal_bytes > self.limits.checkpoint_wal_bytes.max(self.checkpoint_bytes) {
            self.start_checkpoint();
        }
    }

    fn start_checkpoint(&mut self) {
        if self.checkpointing.is_some() || self.wal_bytes == 0 {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let snapshot = shared.published.load_full();
        let (disk, dir) = (self.limits.disk.clone(), self.limits.dir.clone());
        let (cluster_id, last) = (self.shared.cluster_id, self.wal.last());
        let is_done = Arc::new(AtomicBool::new(false));
        let done = Arc::clone(&is_done);
        let work = move || {
            // Before it counts as done: then nothing is read from what it makes superfluous.
            let result = checkpoint::write(&disk, &dir, cluster_id, last, &snapshot)
                .and_then(|written| written.take_values_over(&disk));
            // What the state pinned is given back here too: the writer waits for this thread once it says that it is done.
            drop(snapshot);
            done.store(true, Ordering::Release);
            shared.wake_committer();
            result
        };
        match self.limits.disk.spawn("engine-checkpoint", work) {
            Ok(thread) => {
                let wal_bytes = std::mem::take(&mut self.wal_bytes);
                self.checkpointing =
                    Some(Checkpointing { sequence: last.sequence, wal_bytes, is_done, thread });
            }
            Err(error) => {
                tracing::error!(%error, "cannot start a thread for a checkpoint; it is tried again")
            }
        }
    }

    fn finish_checkpoint(&mut self, running: Checkpointing) {
        let result = running.thread.join().unwrap_or_else(|_| {
            Err(WalError::Io {
                action: "write a checkpoint in",
                path: self.limits.dir.clone(),
                source: std::io::Error::other("its thread panicked"),
            })
        });
        let error = match result {
            Ok(bytes) => {
                self.checkpoint_bytes = bytes;
                self.recent.forget_moved();
                self.wal.release(running.sequence);
                let done = |reply: Reply<_>| drop(reply.send(Ok(pb::DefragmentResponse::default())));
                return self.defragmenting.drain(..).for_each(done);
            }
            Err(error) => error,
        };
        if let WalError::Io { source, .. } = &error
            && let Some(source) = source.get_ref()
            && matches!(source.downcast_ref(), Some(ValueError::Damaged { .. }))
        {
            self.shared.found_damage();
        }
        // The log still has everything; it only grows until a later checkpoint works.
        let message = with_causes(&error);
        tracing::error!(error = message, "a checkpoint failed; it is tried again after more writes");
        let error = ShardError::refused(Code::Unknown, format!("etcdserver: {message}"));
        self.defragmenting.drain(..).for_each(|reply| drop(reply.send(Err(error.clone()))));
        self.checkpoint_bytes = self.checkpoint_bytes.max(running.wal_bytes);
    }
}

fn unavailable(reason: &str) -> ShardError {
    ShardError::refused(Code::Unavailable, format!("etcdserver: {reason}"))
}
