//! All leases as meta's watch shows them: what has expired is noticed here, and keep-alives need no read.

use std::{
    collections::{BTreeSet, HashMap},
    ops::ControlFlow,
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use parking_lot::RwLock;
use rand::Rng;
use sharded_etcd_core::{
    keyspace::KeyRange,
    records::{LEASE_PREFIX, LeaseRecord, LeaseState, Record, lease_id_of_key},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::latest;
use sharded_etcd_shard::ShardError;
use tokio::time::Instant;
use tonic::Code;

use super::{Leases, all::read_all};

/// Proxies that see a lease expire begin within this time, at random: one of them does the work.
const JITTER_MAX: Duration = Duration::from_millis(100);

/// One lease.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) record: LeaseRecord,
    /// Create revision of the record.
    pub(super) epoch: i64,
    /// Mod revision of the record.
    pub(super) modified: i64,
    /// When this proxy first saw the record at this mod revision.
    pub(super) since: Instant,
    /// When this proxy first saw it uncertain.
    pub(super) uncertain_since: Option<Instant>,
    alive: bool,
}

impl Seen {
    /// Somebody should look at it.
    pub(super) fn needs_help(&self) -> bool {
        self.record.state != LeaseState::Live || !self.alive
    }
}

/// The leases as of some moment not long ago.
#[derive(Default)]
pub(super) struct View {
    leases: RwLock<HashMap<i64, Seen>>,
    /// Raised with each change.
    changes: latest::Sender<u64>,
}

impl View {
    pub(super) fn get(&self, id: i64) -> Option<Seen> {
        self.leases.read().get(&id).cloned()
    }

    pub(super) fn contains(&self, id: i64) -> bool {
        self.leases.read().contains_key(&id)
    }

    /// The mod revision of a lease's record if it has been that for at least `most`.
    pub(super) fn unchanged_for(&self, id: i64, most: Duration) -> Option<i64> {
        self.leases.read().get(&id).filter(|seen| seen.since.elapsed() >= most).map(|seen| seen.modified)
    }

    /// The leases that `pick` chooses, in order.
    pub(super) fn select(&self, pick: impl Fn(&Seen) -> bool) -> BTreeSet<i64> {
        self.leases.read().iter().filter(|(_, seen)| pick(seen)).map(|(&id, _)| id).collect()
    }

    /// Waits until a lease's record is no longer the one of mod revision `modified`, but not longer than `most`.
    pub(super) async fn changed(&self, id: i64, modified: i64, most: Duration) {
        let mut changes = self.changes.subscribe();
        let other = || self.leases.read().get(&id).is_none_or(|seen| seen.modified > modified);
        // Whether it changed or the time is over: the caller reads it again.
        let _ = tokio::time::timeout(most, changes.wait_for(|_| other())).await;
    }

    /// Takes in what one key is at, or that it is gone; the lease it belongs to.
    fn apply(&self, leases: &mut HashMap<i64, Seen>, kv: &pb::KeyValue, deleted: bool) -> Option<i64> {
        let (id, rest) = lease_id_of_key(&kv.key)?;
        match (rest, deleted) {
            ("", true) => _ = leases.remove(&id),
            ("", false) => match LeaseRecord::decode(&kv.value) {
                Ok(record) => {
                    let before = leases.get(&id).filter(|seen| seen.epoch == kv.create_revision);
                    let uncertain_since = before.and_then(|seen| seen.uncertain_since);
                    let seen = Seen {
                        since: Instant::now(),
                        uncertain_since: uncertain_since.or_else(|| record.uncertain.then(Instant::now)),
                        record,
                        epoch: kv.create_revision,
                        modified: kv.mod_revision,
                        // Keys come in order, and `alive` sorts behind the record: it follows at once.
                        alive: before.is_some_and(|seen| seen.alive),
                    };
                    leases.insert(id, seen);
                }
                Err(error) => {
                    tracing::error!(lease = format_args!("{id:016x}"), %error, "a lease is left alone")
                }
            },
            ("alive", deleted) => {
                if let Some(seen) = leases.get_mut(&id) {
                    // Written once, together with the record.
                    seen.alive = !deleted && kv.create_revision == seen.epoch;
                }
            }
            _ => return None,
        }
        Some(id)
    }
}

impl Leases {
    /// Follows meta's leases until shutdown.
    pub(super) async fn follow(self: Arc<Self>) {
        let mut pause = Duration::from_millis(10);
        loop {
            let result = tokio::select! {
                biased;
                () = self.ctx.shutdown.cancelled() => return,
                result = self.follow_once(&mut pause) => result,
            };
            if let Err(error) = result {
                tracing::warn!(%error, "following the leases in meta again");
            }
            tokio::select! {
                biased;
                () = self.ctx.shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(1)),
            }
        }
    }

    async fn follow_once(&self, pause: &mut Duration) -> Result<(), ShardError> {
        let mut revision = self.load().await?;
        loop {
            match self.watch_from(revision + 1, pause).await? {
                // A watch that just ended goes on where it was; nothing has to be read again.
                ControlFlow::Continue(seen) => revision = seen.max(revision),
                ControlFlow::Break(()) => return Ok(()),
            }
        }
    }

    /// Reads all leases at one revision, which it returns.
    async fn load(&self) -> Result<i64, ShardError> {
        let mut leases = HashMap::new();
        let take = |kv: &pb::KeyValue| _ = self.view.apply(&mut leases, kv, false);
        let revision = read_all(self.meta().as_ref(), take).await?;
        let due: BTreeSet<i64> =
            leases.iter().filter(|(_, seen)| seen.needs_help()).map(|(&id, _)| id).collect();
        {
            let mut known = self.view.leases.write();
            for (id, seen) in &mut leases {
                let Some(before) = known.get(id).filter(|before| before.epoch == seen.epoch) else {
                    continue;
                };
                seen.uncertain_since = before.uncertain_since.or(seen.uncertain_since);
                if before.modified == seen.modified {
                    seen.since = before.since;
                }
            }
            *known = leases;
        }
        self.publish();
        for id in due {
            self.look_soon(id);
        }
        Ok(revision)
    }

    /// Takes in what the watch brings; the last revision seen if it ended, or a break if everything is to be read.
    async fn watch_from(&self, from: i64, pause: &mut Duration) -> Result<ControlFlow<(), i64>, ShardError> {
        let range = KeyRange::prefix(LEASE_PREFIX);
        let request = pb::WatchCreateRequest {
            key: range.request_key(),
            range_end: range.request_end(),
            start_revision: from,
            ..Default::default()
        };
        let mut events = self.meta().watch(request).await?;
        let mut seen = from - 1;
        while let Some(response) = events.next().await {
            let response = response?;
            if response.compact_revision > 0 {
                return Ok(ControlFlow::Break(()));
            }
            if response.canceled {
                let reason = format!("meta cancelled the watch on the leases: {}", response.cancel_reason);
                return Err(ShardError::refused(Code::Unavailable, reason));
            }
            if response.events.is_empty() {
                continue;
            }
            *pause = Duration::from_millis(10);
            seen = seen.max(
                response
                    .events
                    .iter()
                    .filter_map(|e| e.kv.as_ref())
                    .map(|kv| kv.mod_revision)
                    .max()
                    .unwrap_or(0),
            );
            self.take(&response.events);
        }
        Ok(ControlFlow::Continue(seen))
    }

    fn take(&self, events: &[pb::Event]) {
        let mut due = Vec::new();
        {
            let mut leases = self.view.leases.write();
            let mut touched = Vec::with_capacity(events.len());
            for event in events {
                let deleted = event.r#type == i32::from(pb::EventType::Delete);
                let Some(kv) = &event.kv else { continue };
                touched.extend(self.view.apply(&mut leases, kv, deleted));
            }
            // Looked at when the whole answer is in: a record comes a moment before its `alive`.
            touched.dedup();
            let expired = |id: &i64| {
                leases.get(id).is_some_and(|seen| seen.record.state == LeaseState::Live && !seen.alive)
            };
            due.extend(touched.into_iter().filter(expired));
        }
        self.publish();
        for id in due {
            self.look_soon(id);
        }
    }

    fn publish(&self) {
        self.ctx.metrics.leases.set(self.view.leases.read().len() as f64);
        self.view.changes.send_modify(|n| *n += 1);
    }

    /// Puts a lease on the agenda, a little later than others may.
    pub(super) fn look_soon(&self, id: i64) {
        let jitter = JITTER_MAX.mul_f64(sharded_etcd_line::random::rng().random_range(0.0..1.0));
        self.agenda.add(id, Instant::now() + jitter);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use sharded_etcd_core::records::{lease_alive_key, lease_key};

    use super::*;

    fn kv(key: Bytes, revision: i64) -> pb::KeyValue {
        let record =
            LeaseRecord { ttl: 5, state: LeaseState::Live, chosen: false, helper: None, uncertain: false };
        pb::KeyValue {
            key,
            value: record.encode(),
            create_revision: revision,
            mod_revision: revision,
            ..Default::default()
        }
    }

    #[test]
    fn an_expired_lease_needs_help_and_the_next_of_its_id_does_not() {
        let view = View::default();
        let mut leases = HashMap::new();
        view.apply(&mut leases, &kv(lease_key(1), 10), false);
        assert!(leases[&1].needs_help(), "no alive yet");
        view.apply(&mut leases, &kv(lease_alive_key(1), 10), false);
        assert!(!leases[&1].needs_help());
        view.apply(&mut leases, &kv(lease_alive_key(1), 10), true);
        assert!(leases[&1].needs_help());
        view.apply(&mut leases, &kv(lease_key(1), 20), false);
        view.apply(&mut leases, &kv(lease_alive_key(1), 20), false);
        assert!(!leases[&1].needs_help());
        assert_eq!(leases[&1].epoch, 20);
        view.apply(&mut leases, &kv(lease_key(1), 20), true);
        assert!(leases.is_empty());
    }
}
