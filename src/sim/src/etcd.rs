//! A small etcd in memory: one history of keys, transactions, watches and leases. Nothing here is fast; it is meant to be
//! right at a glance. Every call takes effect at once; what delays, loses and repeats is the [network](crate::net).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use sharded_etcd_core::translate::finish_range;
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::latest;
use sharded_etcd_shard::{
    ERR_COMPACTED, ERR_FUTURE_REV, ERR_LEASE_EXIST, ERR_LEASE_NOT_FOUND, Result, ShardError,
};
use tokio::time::Instant;
use tonic::Code;

use crate::state::{Keys, holds, in_range};

/// How often etcd looks for expired leases (lessor: 500 ms).
const EXPIRE_INTERVAL: Duration = Duration::from_millis(500);
/// The shortest time to live that etcd grants with its default election timeout, in seconds.
const TTL_SECONDS_MIN: i64 = 2;

/// etcd's text for a write that there is no space for.
pub const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";

/// One etcd cluster. See the module.
pub struct Etcd {
    /// Its name (`meta`, `shard-0`, …).
    pub name: String,
    /// What its answers carry.
    pub cluster_id: u64,
    /// Which one of that name it is.
    pub incarnation: u32,
    /// It was removed with all its data.
    gone: AtomicBool,
    state: Mutex<State>,
    /// Raised with each change, for watchers.
    changed: latest::Sender<u64>,
    /// Stopped by SIGSTOP: answers nothing, and its clock does nothing.
    paused: latest::Sender<bool>,
    /// Raised by a restart: connections end.
    restarts: latest::Sender<u64>,
}

struct State {
    keys: Keys,
    compacted: i64,
    /// The events of revision `i + 2`, and when it was written.
    log: Vec<(Vec<pb::Event>, Instant)>,
    leases: BTreeMap<i64, Lease>,
    next_lease: i64,
    /// There is an alarm: nothing is taken that needs space.
    full: bool,
}

struct Lease {
    ttl: i64,
    deadline: Instant,
    keys: BTreeSet<Bytes>,
}

fn refused(code: Code, message: &str) -> ShardError {
    ShardError::refused(code, message)
}

impl Etcd {
    /// An empty one.
    pub fn new(name: &str, cluster_id: u64) -> Arc<Self> {
        Self::with_incarnation(name, cluster_id, 0)
    }

    /// An empty one, after others of that name.
    pub fn with_incarnation(name: &str, cluster_id: u64, incarnation: u32) -> Arc<Self> {
        let state = State {
            keys: Keys::default(),
            compacted: -1,
            log: Vec::new(),
            leases: BTreeMap::new(),
            // Ids that it chooses are positive, and unlike those of others.
            next_lease: (cluster_id << 32) as i64 & i64::MAX,
            full: false,
        };
        Arc::new(Self {
            name: name.to_owned(),
            cluster_id,
            incarnation,
            gone: AtomicBool::new(false),
            state: Mutex::new(state),
            changed: latest::Sender::new(0),
            paused: latest::Sender::new(false),
            restarts: latest::Sender::new(0),
        })
    }

    /// Revokes leases that have expired, for as long as the runtime lives.
    pub async fn expire(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(EXPIRE_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.awake().await;
            let now = Instant::now();
            let expired: Vec<i64> = {
                let state = self.state.lock();
                state.leases.iter().filter(|(_, l)| l.deadline <= now).map(|(&id, _)| id).collect()
            };
            for id in expired {
                let _ = self.lease_revoke(id);
            }
        }
    }

    /// Stops or continues it, as SIGSTOP and SIGCONT do.
    pub fn pause(&self, paused: bool) {
        self.paused.send_modify(|now| *now = paused);
    }

    /// Until it is not paused.
    pub async fn awake(&self) {
        // The sender is here, so it is not closed.
        let _ = self.paused.subscribe().wait_for(|paused| !paused).await;
    }

    /// Restarts it: connections end, and leases run their full time again.
    pub fn restart(&self) {
        let now = Instant::now();
        for lease in self.state.lock().leases.values_mut() {
            lease.deadline = now + seconds(lease.ttl);
        }
        self.restarts.send_modify(|n| *n += 1);
    }

    /// Removes it: nobody reaches it any more.
    pub fn remove(&self) {
        self.gone.store(true, Relaxed);
        self.restarts.send_modify(|n| *n += 1);
    }

    /// True if it was removed.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Relaxed)
    }

    /// Raises the alarm NOSPACE, or disarms it.
    pub fn fill(&self, full: bool) {
        self.state.lock().full = full;
    }

    /// Counts restarts.
    pub fn restarts(&self) -> latest::Receiver<u64> {
        self.restarts.subscribe()
    }

    /// The newest revision.
    pub fn revision(&self) -> i64 {
        self.state.lock().keys.revision()
    }

    /// The events of one revision, and when it was written.
    pub fn events_of(&self, revision: i64) -> Option<(Vec<pb::Event>, Instant)> {
        self.state.lock().log.get(usize::try_from(revision - 2).ok()?).cloned()
    }

    /// Ids of the leases that are there.
    pub fn lease_ids(&self) -> Vec<i64> {
        self.state.lock().leases.keys().copied().collect()
    }

    fn header(&self, revision: i64) -> Option<pb::ResponseHeader> {
        Some(pb::ResponseHeader { cluster_id: self.cluster_id, member_id: 1, revision, raft_term: 2 })
    }

    /// `KV.Range` as a member answers that is `lag` revisions behind.
    pub fn range(&self, request: &pb::RangeRequest, lag: i64) -> Result<pb::RangeResponse> {
        let state = self.state.lock();
        let newest = (state.keys.revision() - lag).max(1);
        let mut answer = state.range(request, newest)?;
        answer.header = self.header(newest);
        Ok(answer)
    }

    /// `KV.Put`.
    pub fn put(&self, request: pb::PutRequest) -> Result<pb::PutResponse> {
        let op = pb::RequestOp { request: Some(pb::Request::RequestPut(request)) };
        let answer = self.txn(&pb::TxnRequest { success: vec![op], ..Default::default() })?;
        match answer.responses.into_iter().next().and_then(|op| op.response) {
            Some(pb::Response::ResponsePut(put)) => Ok(pb::PutResponse { header: answer.header, ..put }),
            _ => Err(refused(Code::Internal, "a put was answered with something else")),
        }
    }

    /// `KV.Txn`.
    pub fn txn(&self, request: &pb::TxnRequest) -> Result<pb::TxnResponse> {
        let (answer, wrote) = {
            let mut state = self.state.lock();
            if state.full && needs_space(request) {
                return Err(no_space());
            }
            let before = state.keys.revision();
            // First all compares, then the checks, then the operations, as etcd does.
            let mut path = Vec::new();
            state.decide(request, &mut path);
            state.check(request, &mut path.iter())?;
            let mut writes = Writes { revision: before + 1, events: Vec::new() };
            let mut answer = state.execute(request, &mut path.iter(), &mut writes)?;
            let wrote = state.commit(writes);
            answer.header = self.header(state.keys.revision());
            (answer, wrote)
        };
        self.tell(wrote);
        Ok(answer)
    }

    /// `KV.Compact`.
    pub fn compact(&self, revision: i64) -> Result<pb::CompactionResponse> {
        {
            let mut state = self.state.lock();
            if revision <= state.compacted {
                return Err(refused(Code::OutOfRange, ERR_COMPACTED));
            }
            if revision > state.keys.revision() {
                return Err(refused(Code::OutOfRange, ERR_FUTURE_REV));
            }
            state.compacted = revision;
        }
        self.tell(true);
        Ok(pb::CompactionResponse { header: self.header(self.revision()) })
    }

    /// `Lease.LeaseGrant`.
    pub fn lease_grant(&self, request: &pb::LeaseGrantRequest) -> Result<pb::LeaseGrantResponse> {
        let mut state = self.state.lock();
        if state.full {
            return Err(no_space());
        }
        let id = if request.id == 0 {
            state.next_lease += 1;
            state.next_lease
        } else {
            request.id
        };
        if state.leases.contains_key(&id) {
            return Err(refused(Code::FailedPrecondition, ERR_LEASE_EXIST));
        }
        let ttl = request.ttl.max(TTL_SECONDS_MIN);
        let lease = Lease { ttl, deadline: Instant::now() + seconds(ttl), keys: BTreeSet::new() };
        state.leases.insert(id, lease);
        let header = self.header(state.keys.revision());
        Ok(pb::LeaseGrantResponse { header, id, ttl, error: String::new() })
    }

    /// `Lease.LeaseRevoke`.
    pub fn lease_revoke(&self, id: i64) -> Result<pb::LeaseRevokeResponse> {
        let wrote = {
            let mut state = self.state.lock();
            let Some(lease) = state.leases.remove(&id) else {
                return Err(refused(Code::NotFound, ERR_LEASE_NOT_FOUND));
            };
            let mut writes = Writes { revision: state.keys.revision() + 1, events: Vec::new() };
            for key in &lease.keys {
                state.delete(key, &mut writes);
            }
            state.commit(writes)
        };
        self.tell(wrote);
        Ok(pb::LeaseRevokeResponse { header: self.header(self.revision()) })
    }

    /// One round of `Lease.LeaseKeepAlive`.
    pub fn lease_keep_alive(&self, id: i64) -> pb::LeaseKeepAliveResponse {
        let mut state = self.state.lock();
        let header = self.header(state.keys.revision());
        let now = Instant::now();
        let ttl = match state.leases.get_mut(&id) {
            Some(lease) if lease.deadline > now => {
                lease.deadline = now + seconds(lease.ttl);
                lease.ttl
            }
            // One that has expired cannot come back.
            _ => 0,
        };
        pb::LeaseKeepAliveResponse { header, id, ttl }
    }

    /// `Lease.LeaseTimeToLive`.
    pub fn lease_time_to_live(&self, request: &pb::LeaseTimeToLiveRequest) -> pb::LeaseTimeToLiveResponse {
        let state = self.state.lock();
        let header = self.header(state.keys.revision());
        let Some(lease) = state.leases.get(&request.id) else {
            return pb::LeaseTimeToLiveResponse { header, id: request.id, ttl: -1, ..Default::default() };
        };
        let left = lease.deadline.saturating_duration_since(Instant::now());
        let keys = if request.keys { lease.keys.iter().cloned().collect() } else { Vec::new() };
        let ttl = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
        pb::LeaseTimeToLiveResponse { header, id: request.id, ttl, granted_ttl: lease.ttl, keys }
    }

    /// `Lease.LeaseLeases`.
    pub fn lease_leases(&self) -> pb::LeaseLeasesResponse {
        let state = self.state.lock();
        let leases = state.leases.keys().map(|&id| pb::LeaseStatus { id }).collect();
        pb::LeaseLeasesResponse { header: self.header(state.keys.revision()), leases }
    }

    /// `Maintenance.Status`.
    pub fn status(&self) -> pb::StatusResponse {
        pb::StatusResponse {
            header: self.header(self.revision()),
            version: "3.7.3".to_owned(),
            db_size: 1 << 20,
            db_size_in_use: 1 << 20,
            leader: 1,
            raft_term: 2,
            ..Default::default()
        }
    }

    /// A watcher; see [`Watcher::next`].
    pub fn watch(self: &Arc<Self>, request: pb::WatchCreateRequest) -> Watcher {
        let current = self.revision();
        let next = if request.start_revision > 0 { request.start_revision } else { current + 1 };
        let changed = self.changed.subscribe();
        Watcher { etcd: Arc::clone(self), request, next, changed, created: Some(current) }
    }

    fn tell(&self, wrote: bool) {
        if wrote {
            self.changed.send_modify(|n| *n += 1);
        }
    }
}

/// One watcher of an [`Etcd`].
pub struct Watcher {
    etcd: Arc<Etcd>,
    request: pb::WatchCreateRequest,
    next: i64,
    changed: latest::Receiver<u64>,
    created: Option<i64>,
}

impl Watcher {
    /// The next answer; one with `canceled` is the last.
    pub async fn next(&mut self) -> pb::WatchResponse {
        let watch_id = self.request.watch_id;
        if let Some(revision) = self.created.take() {
            let header = self.etcd.header(revision);
            return pb::WatchResponse { header, watch_id, created: true, ..Default::default() };
        }
        loop {
            drop(self.changed.borrow_and_update());
            if let Some(answer) = self.step() {
                return answer;
            }
            // The etcd holds the sender, and this holds the etcd.
            let _ = self.changed.changed().await;
        }
    }

    fn step(&mut self) -> Option<pb::WatchResponse> {
        let state = self.etcd.state.lock();
        let watch_id = self.request.watch_id;
        let newest = state.keys.revision();
        if self.next <= newest && self.next < state.compacted {
            let header = self.etcd.header(0);
            let compact_revision = state.compacted;
            return Some(pb::WatchResponse {
                header,
                watch_id,
                canceled: true,
                compact_revision,
                ..Default::default()
            });
        }
        let mut events = Vec::new();
        while self.next <= newest {
            let of = &state.log.get((self.next - 2).max(0) as usize)?.0;
            if self.next >= 2 {
                let wanted = of.iter().filter(|e| {
                    e.kv.as_ref()
                        .is_some_and(|kv| in_range(&kv.key, &self.request.key, &self.request.range_end))
                });
                events.extend(wanted.map(|e| pb::Event {
                    prev_kv: e.prev_kv.clone().filter(|_| self.request.prev_kv),
                    ..e.clone()
                }));
            }
            self.next += 1;
        }
        if events.is_empty() {
            return None;
        }
        let header = self.etcd.header(self.next - 1);
        Some(pb::WatchResponse { header, watch_id, events, ..Default::default() })
    }
}

/// What a transaction has written so far.
struct Writes {
    revision: i64,
    events: Vec<pb::Event>,
}

impl State {
    fn range(&self, request: &pb::RangeRequest, newest: i64) -> Result<pb::RangeResponse> {
        if request.revision > newest {
            return Err(refused(Code::OutOfRange, ERR_FUTURE_REV));
        }
        let at = if request.revision > 0 { request.revision } else { newest };
        if at < self.compacted {
            return Err(refused(Code::OutOfRange, ERR_COMPACTED));
        }
        let kvs = self.keys.range(&request.key, &request.range_end, at);
        let count = kvs.len() as i64;
        if request.count_only {
            return Ok(pb::RangeResponse { count, ..Default::default() });
        }
        let (mut kvs, more) = finish_range(request, kvs);
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        Ok(pb::RangeResponse { header: None, kvs, more, count })
    }

    fn decide(&self, request: &pb::TxnRequest, path: &mut Vec<bool>) {
        let now = self.keys.revision();
        let holds = request.compare.iter().all(|c| holds(c, &self.keys.range(&c.key, &c.range_end, now)));
        path.push(holds);
        for op in branch(request, holds) {
            if let Some(pb::Request::RequestTxn(inner)) = &op.request {
                self.decide(inner, path);
            }
        }
    }

    fn check(&self, request: &pb::TxnRequest, path: &mut std::slice::Iter<'_, bool>) -> Result<()> {
        let succeeded = path.next().copied().unwrap_or(false);
        for op in branch(request, succeeded) {
            match &op.request {
                Some(pb::Request::RequestRange(range)) if range.revision > 0 => {
                    if range.revision > self.keys.revision() {
                        return Err(refused(Code::OutOfRange, ERR_FUTURE_REV));
                    }
                    if range.revision < self.compacted {
                        return Err(refused(Code::OutOfRange, ERR_COMPACTED));
                    }
                }
                Some(pb::Request::RequestPut(put)) => {
                    if put.lease != 0 && !self.leases.contains_key(&put.lease) {
                        return Err(refused(Code::NotFound, ERR_LEASE_NOT_FOUND));
                    }
                    if (put.ignore_value || put.ignore_lease)
                        && self.keys.live(&put.key, self.keys.revision()).is_none()
                    {
                        return Err(refused(Code::InvalidArgument, "etcdserver: key not found"));
                    }
                }
                Some(pb::Request::RequestTxn(inner)) => self.check(inner, path)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn execute(
        &mut self,
        request: &pb::TxnRequest,
        path: &mut std::slice::Iter<'_, bool>,
        writes: &mut Writes,
    ) -> Result<pb::TxnResponse> {
        let succeeded = path.next().copied().unwrap_or(false);
        let mut responses = Vec::new();
        for op in branch(request, succeeded) {
            let seen = if writes.events.is_empty() { writes.revision - 1 } else { writes.revision };
            let header = Some(pb::ResponseHeader { revision: seen, ..Default::default() });
            let wrote = Some(pb::ResponseHeader { revision: writes.revision, ..Default::default() });
            let response = match &op.request {
                Some(pb::Request::RequestRange(range)) => {
                    pb::Response::ResponseRange(pb::RangeResponse { header, ..self.range(range, seen)? })
                }
                Some(pb::Request::RequestPut(put)) => {
                    let prev = self.put(put, writes);
                    let prev_kv = prev.filter(|_| put.prev_kv);
                    pb::Response::ResponsePut(pb::PutResponse { header: wrote, prev_kv })
                }
                Some(pb::Request::RequestDeleteRange(delete)) => {
                    let found = self.keys.range(&delete.key, &delete.range_end, i64::MAX);
                    for kv in &found {
                        self.delete(&kv.key, writes);
                    }
                    let deleted = found.len() as i64;
                    let header = if found.is_empty() { header } else { wrote };
                    let prev_kvs = if delete.prev_kv { found } else { Vec::new() };
                    pb::Response::ResponseDeleteRange(pb::DeleteRangeResponse { header, deleted, prev_kvs })
                }
                Some(pb::Request::RequestTxn(inner)) => {
                    pb::Response::ResponseTxn(self.execute(inner, path, writes)?)
                }
                None => continue,
            };
            responses.push(pb::ResponseOp { response: Some(response) });
        }
        Ok(pb::TxnResponse { header: Some(pb::ResponseHeader::default()), succeeded, responses })
    }

    fn put(&mut self, put: &pb::PutRequest, writes: &mut Writes) -> Option<pb::KeyValue> {
        let before = self.keys.live(&put.key, i64::MAX);
        let value = match &before {
            Some(kv) if put.ignore_value => kv.value.clone(),
            _ => put.value.clone(),
        };
        let lease = match &before {
            Some(kv) if put.ignore_lease => kv.lease,
            _ => put.lease,
        };
        self.attach(before.as_ref().map_or(0, |kv| kv.lease), lease, &put.key);
        let event = self.keys.put(&put.key, value, lease, writes.revision);
        writes.events.push(event);
        before
    }

    fn delete(&mut self, key: &Bytes, writes: &mut Writes) {
        let Some(kv) = self.keys.live(key, i64::MAX) else { return };
        self.attach(kv.lease, 0, key);
        writes.events.extend(self.keys.delete(key, writes.revision));
    }

    fn attach(&mut self, before: i64, now: i64, key: &Bytes) {
        if let Some(lease) = self.leases.get_mut(&before) {
            lease.keys.remove(key);
        }
        if let Some(lease) = self.leases.get_mut(&now) {
            lease.keys.insert(key.clone());
        }
    }

    fn commit(&mut self, writes: Writes) -> bool {
        let wrote = !writes.events.is_empty();
        if wrote {
            self.keys.set_revision(writes.revision);
            self.log.push((writes.events, Instant::now()));
        }
        wrote
    }
}

fn branch(request: &pb::TxnRequest, succeeded: bool) -> &[pb::RequestOp] {
    if succeeded { &request.success } else { &request.failure }
}

/// True if etcd refuses it while the alarm NOSPACE is raised: a put in any branch, but not in a transaction inside
/// (`costTxn` in etcd's quota).
fn needs_space(request: &pb::TxnRequest) -> bool {
    let mut ops = request.success.iter().chain(&request.failure);
    ops.any(|op| matches!(op.request, Some(pb::Request::RequestPut(_))))
}

fn no_space() -> ShardError {
    refused(Code::ResourceExhausted, NO_SPACE)
}

fn seconds(ttl: i64) -> Duration {
    // Shadow leases run for centuries, which is more than the clock can say.
    Duration::from_secs(ttl.clamp(0, 1 << 32).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(etcd: &Etcd, key: &'static str, value: &'static str, lease: i64) -> i64 {
        let put = pb::PutRequest { key: key.into(), value: value.into(), lease, ..Default::default() };
        etcd.put(put).unwrap().header.unwrap().revision
    }

    #[tokio::test]
    async fn history_watches_and_compaction() {
        let etcd = Etcd::new("e", 5);
        assert_eq!((put(&etcd, "a", "1", 0), put(&etcd, "b", "2", 0), put(&etcd, "a", "3", 0)), (2, 3, 4));
        let get = |revision| pb::RangeRequest { key: "a".into(), revision, ..Default::default() };
        assert_eq!(etcd.range(&get(2), 0).unwrap().kvs[0].value, "1");
        let newest = etcd.range(&get(0), 0).unwrap();
        let kv = &newest.kvs[0];
        assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 4, 2));
        assert!(etcd.range(&get(4), 1).unwrap_err().is_future_rev());
        let all = pb::WatchCreateRequest {
            key: "a".into(),
            range_end: "z".into(),
            start_revision: 2,
            prev_kv: true,
            ..Default::default()
        };
        let mut watcher = etcd.watch(all.clone());
        assert!(watcher.next().await.created);
        let events = watcher.next().await.events;
        assert_eq!(events.len(), 3);
        assert_eq!(events[2].prev_kv.as_ref().unwrap().value, "1");
        etcd.compact(4).unwrap();
        assert!(etcd.range(&get(3), 0).unwrap_err().is_compacted());
        let mut late = etcd.watch(all);
        late.next().await;
        assert_eq!(late.next().await.compact_revision, 4);
        put(&etcd, "a", "5", 0);
        assert_eq!(watcher.next().await.events.len(), 1);
    }

    #[tokio::test]
    async fn a_full_one_takes_deletions_only() {
        let etcd = Etcd::new("e", 5);
        put(&etcd, "k", "1", 0);
        etcd.fill(true);
        let request = || pb::PutRequest { key: "k".into(), ..Default::default() };
        assert_eq!(etcd.put(request()).unwrap_err().message, NO_SPACE);
        assert_eq!(
            etcd.lease_grant(&pb::LeaseGrantRequest { id: 7, ttl: 60 }).unwrap_err().message,
            NO_SPACE
        );
        let op = |request| pb::RequestOp { request: Some(request) };
        let delete = op(pb::Request::RequestDeleteRange(pb::DeleteRangeRequest {
            key: "k".into(),
            ..Default::default()
        }));
        let failure = vec![op(pb::Request::RequestPut(request()))];
        let mut txn = pb::TxnRequest { success: vec![delete], failure, ..Default::default() };
        assert_eq!(etcd.txn(&txn).unwrap_err().message, NO_SPACE, "also in the branch that is not taken");
        txn.failure.clear();
        assert_eq!(etcd.txn(&txn).unwrap().header.unwrap().revision, 3);
        etcd.fill(false);
        put(&etcd, "k", "2", 0);
    }

    #[tokio::test]
    async fn transactions_and_leases() {
        let etcd = Etcd::new("e", 5);
        etcd.lease_grant(&pb::LeaseGrantRequest { id: 7, ttl: 60 }).unwrap();
        put(&etcd, "k", "1", 7);
        let op = |request| pb::RequestOp { request: Some(request) };
        let delete = pb::DeleteRangeRequest { key: "k".into(), prev_kv: true, ..Default::default() };
        let get = pb::RangeRequest { key: "k".into(), ..Default::default() };
        let compare = pb::Compare {
            result: pb::CompareResult::Equal.into(),
            target: pb::CompareTarget::Mod.into(),
            key: "k".into(),
            target_union: Some(pb::TargetUnion::ModRevision(3)),
            ..Default::default()
        };
        let txn = pb::TxnRequest {
            compare: vec![compare],
            success: vec![op(pb::Request::RequestDeleteRange(delete))],
            failure: vec![op(pb::Request::RequestRange(get))],
        };
        let answer = etcd.txn(&txn).unwrap();
        assert!(!answer.succeeded);
        assert_eq!(answer.header.unwrap().revision, 2);
        put(&etcd, "k", "2", 7);
        let answer = etcd.txn(&txn).unwrap();
        assert!(answer.succeeded);
        assert_eq!(answer.header.unwrap().revision, 4);
        assert_eq!(etcd.events_of(4).unwrap().0[0].r#type, i32::from(pb::EventType::Delete));
        put(&etcd, "k", "3", 7);
        etcd.lease_revoke(7).unwrap();
        assert_eq!(
            etcd.range(&pb::RangeRequest { key: "k".into(), ..Default::default() }, 0).unwrap().count,
            0
        );
        assert!(etcd.lease_revoke(7).unwrap_err().is_lease_not_found());
    }
}
