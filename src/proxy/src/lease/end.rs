//! Ending a lease: by a client's revoke, or as it has expired.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use futures::future::join_all;
use rand::Rng;
use sharded_etcd_core::{
    keyspace::{RangeMap, ShardIx},
    lease::{
        Asked, LeaseFacts, Marker, MarkerStep, MarkerView, Over, Step, after_revoking, delete_txn, end_txn,
        gone_txn, held_by_imports, marker_txn, next_step, plan_deletes, record_txn, visible_keys,
    },
    records::{Claims, LeaseRecord, LeaseState, Record, claims_key},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::Cut;
use sharded_etcd_shard::{Certainty, Shard, ShardError};
use tokio::{
    sync::{Semaphore, oneshot},
    time::Instant,
};
use tonic::Status;

use super::{Leases, meta_status, not_found, unreadable, view::Seen};
use crate::context::line_status;

/// Leases that this proxy helps at once.
const HELP_MAX: usize = 16;
/// Pause before fences that were closed are tried again, unless the map changes; doubled each time, up to `PAUSE_MAX`.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// Times that a marker is written anew as somebody else was faster.
const MARKER_TRIES_MAX: u32 = 8;

/// What became of the keys of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cleared {
    /// They are gone, and it was this helper's client who revoked.
    Revoked,
    /// They are gone, or there is no such lease.
    Before,
    /// The lease lives.
    Alive,
    /// Another helper is at it.
    Busy,
}

/// What became of the shadows of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dropped {
    /// Nothing of the lease is left.
    All,
    /// An import holds copies: later.
    Held,
    /// The id rests.
    Resting,
    /// It still has keys.
    NotGone,
    /// Another helper is at it.
    Busy,
}

/// One attempt of this proxy at one lease.
struct Attempt {
    id: i64,
    /// Its number in the record.
    me: u64,
    asked: Asked,
    /// It was this attempt that ended the life of the lease.
    began: bool,
    /// The real lease is known to be gone.
    real_gone: bool,
    /// A `LeaseRevoke` of this attempt may still be on its way.
    uncertain: bool,
}

impl Attempt {
    fn new(id: i64, asked: Asked) -> Self {
        Self {
            id,
            me: sharded_etcd_line::random::rng().random(),
            asked,
            began: false,
            real_gone: false,
            uncertain: false,
        }
    }
}

impl Leases {
    /// etcd's `Lease.LeaseRevoke`: answered when all keys of the lease are gone, which the header's revision covers.
    ///
    /// # Errors
    /// `ErrLeaseNotFound`; Unavailable if a shard with keys of the lease cannot be reached. The lease ends then anyway,
    /// as soon as it can.
    pub async fn revoke(self: &Arc<Self>, id: i64) -> Result<pb::LeaseRevokeResponse, Status> {
        let permit = Arc::clone(&self.revokes).acquire_owned().await.map_err(|_| not_found())?;
        let (answer, cleared) = oneshot::channel();
        let this = Arc::clone(self);
        // Goes on if the client gives up.
        let revoking = async move {
            let _permit = permit;
            let mut attempt = Attempt::new(id, Asked::Revoke);
            let result = this.clear(&mut attempt).await;
            let go_on = match &result {
                Ok(cleared) => *cleared == Cleared::Revoked,
                Err(_) => {
                    this.agenda.retry(id);
                    false
                }
            };
            // The client may have given up.
            let _ = answer.send(result);
            if go_on {
                this.finish(&mut attempt).await;
            }
        };
        self.ctx.tasks.spawn_on(revoking, &self.ctx.runtime);
        match cleared.await {
            Ok(Ok(Cleared::Revoked)) => Ok(pb::LeaseRevokeResponse { header: self.header() }),
            Ok(Ok(Cleared::Before | Cleared::Alive | Cleared::Busy)) => Err(not_found()),
            Ok(Err(status)) => Err(Status::new(
                status.code(),
                format!(
                    "lease {id:016x} is being revoked, its keys are not all gone yet: {}",
                    status.message()
                ),
            )),
            Err(_) => Err(Status::unavailable("the proxy is shutting down")),
        }
    }

    /// Helps the leases on the agenda until shutdown.
    pub(super) async fn help_loop(self: Arc<Self>) {
        let permits = Arc::new(Semaphore::new(HELP_MAX));
        loop {
            let next = async {
                let permit = Arc::clone(&permits).acquire_owned().await;
                (permit, self.agenda.next().await)
            };
            let (permit, id) = tokio::select! {
                biased;
                () = self.ctx.shutdown.cancelled() => return,
                next = next => next,
            };
            let this = Arc::clone(&self);
            self.ctx.tasks.spawn(async move {
                let _permit = permit;
                tokio::select! {
                    biased;
                    () = this.ctx.shutdown.cancelled() => {}
                    () = this.help(id) => {}
                }
            });
        }
    }

    /// Brings one lease as far as it goes now.
    async fn help(&self, id: i64) {
        let Some(seen) = self.view.get(id).filter(Seen::needs_help) else {
            return self.agenda.succeeded(id);
        };
        if seen.record.helper.is_some() && seen.since.elapsed() < self.options.silence_max {
            return self.look_when_silent(id);
        }
        let mut attempt = Attempt::new(id, Asked::Help);
        match self.clear(&mut attempt).await {
            Ok(Cleared::Alive) => self.agenda.succeeded(id),
            Ok(Cleared::Busy) => self.look_when_silent(id),
            Ok(Cleared::Revoked | Cleared::Before) => self.finish(&mut attempt).await,
            Err(status) => {
                let lease = format_args!("{id:016x}");
                tracing::warn!(lease, error = status.message(), "a lease that ended still has keys");
                self.agenda.retry(id);
            }
        }
    }

    /// Looks again when the helper that is at it should have been heard of.
    fn look_when_silent(&self, id: i64) {
        let since = self.view.get(id).map_or_else(Instant::now, |seen| seen.since);
        let jitter = sharded_etcd_line::random::rng().random_range(1.0..1.2);
        self.agenda.add(id, since + self.options.silence_max.mul_f64(jitter));
    }

    /// Drops the shadows of a lease whose keys are gone; plans another attempt if that is not possible now.
    async fn finish(&self, attempt: &mut Attempt) {
        let id = attempt.id;
        match self.drop_shadows(attempt).await {
            Ok(Dropped::All) => {
                self.ctx.metrics.leases_ended.inc();
                self.agenda.succeeded(id);
            }
            Ok(Dropped::Resting) => {
                let since =
                    self.view.get(id).and_then(|seen| seen.uncertain_since).unwrap_or_else(Instant::now);
                self.agenda.add(id, since + self.options.rest);
            }
            Ok(Dropped::Busy) => self.look_when_silent(id),
            Ok(Dropped::Held | Dropped::NotGone) => self.agenda.retry(id),
            Err(status) => {
                tracing::debug!(
                    lease = format_args!("{id:016x}"),
                    error = status.message(),
                    "shadows stay for now"
                );
                self.agenda.retry(id);
            }
        }
    }

    /// Until no client sees a key of the lease any more, but not longer than one attempt may take.
    async fn clear(&self, attempt: &mut Attempt) -> Result<Cleared, Status> {
        let result = match tokio::time::timeout(self.options.attempt_max, self.try_clear(attempt)).await {
            Ok(result) => result,
            Err(_) => Err(Status::unavailable("it takes longer than usual and goes on in the background")),
        };
        if result.is_err() {
            self.release(attempt).await;
        }
        result
    }

    async fn try_clear(&self, attempt: &mut Attempt) -> Result<Cleared, Status> {
        let id = attempt.id;
        let mut facts = self.read(id).await?;
        let mut pause = PAUSE_MIN;
        let done = |attempt: &Attempt| Ok(if attempt.began { Cleared::Revoked } else { Cleared::Before });
        loop {
            let Some(record) = facts.record.clone() else { return done(attempt) };
            if record.state == LeaseState::Gone {
                return done(attempt);
            }
            let stale = self.view.unchanged_for(id, self.options.silence_max);
            match next_step(&facts, attempt.me, attempt.asked, stale) {
                Step::Ended | Step::Drop => return done(attempt),
                Step::Alive => return Ok(Cleared::Alive),
                Step::Wait if attempt.asked == Asked::Help => return Ok(Cleared::Busy),
                Step::Wait => {
                    self.view.changed(id, facts.modified, self.options.silence_max / 8).await;
                    facts = self.read(id).await?;
                }
                Step::Claim { record: claimed, if_expired } => {
                    let (mine, after) = self.change(id, record_txn(&facts, &claimed, if_expired)).await?;
                    if mine && record.state == LeaseState::Live {
                        attempt.began = attempt.asked == Asked::Revoke;
                        attempt.real_gone = if_expired;
                    }
                    facts = after;
                }
                Step::Clear => {
                    if !attempt.real_gone {
                        self.end_real(attempt).await?;
                    }
                    let cut = self.ctx.line.at_position(facts.position).await.map_err(line_status)?;
                    if self.clear_shards(&facts, &cut).await? {
                        let uncertain = record.uncertain || attempt.uncertain;
                        let gone = LeaseRecord { state: LeaseState::Gone, uncertain, ..record };
                        let no_rest = !(gone.chosen && gone.uncertain);
                        let txn = if facts.shadows.is_empty() && no_rest {
                            end_txn(&facts)
                        } else {
                            gone_txn(&facts, &gone)
                        };
                        facts = self.change(id, txn).await?.1;
                    } else {
                        self.wait_for_map(&cut.map, pause).await;
                        pause = (pause * 2).min(PAUSE_MAX);
                        facts = self.read(id).await?;
                    }
                }
            }
        }
    }

    /// Revokes the real lease, so that keep-alives no longer find it.
    async fn end_real(&self, attempt: &mut Attempt) -> Result<(), Status> {
        match revoke_once(self.meta().as_ref(), attempt).await {
            Ok(_) => {
                attempt.real_gone = true;
                Ok(())
            }
            Err(error) => Err(meta_status(error)),
        }
    }

    /// Deletes the lease's keys on all shards; false if a range is closed for a move. What can be done is done, also if a
    /// shard cannot be reached.
    async fn clear_shards(&self, facts: &LeaseFacts, cut: &Cut) -> Result<bool, Status> {
        let work = shards_of(facts, cut).map(|shard| self.clear_shard(facts, cut, shard));
        let mut all = true;
        for result in join_all(work).await {
            all &= result?;
        }
        Ok(all)
    }

    async fn clear_shard(&self, facts: &LeaseFacts, cut: &Cut, shard: ShardIx) -> Result<bool, Status> {
        let named = |e| self.shard_status(shard, e);
        let connection = self.ctx.shards.get(shard).await.map_err(named)?;
        if !self.put_revoking(connection.as_ref(), shard, facts).await? {
            return Ok(false);
        }
        let request = pb::LeaseTimeToLiveRequest { id: facts.id, keys: true };
        let keys = connection.lease_time_to_live(request).await.map_err(named)?.keys;
        let mut deleted_at = 0;
        for batch in plan_deletes(&keys, &cut.map, shard) {
            let txn = delete_txn(facts.id, facts.epoch, &batch, cut.v(shard));
            match connection.txn(txn).await {
                Ok(answer) if answer.succeeded => {
                    deleted_at = answer.header.map_or(0, |h| h.revision);
                    self.ctx.line.observe(shard, deleted_at);
                }
                Ok(_) => return Ok(false),
                // The history that it was to confirm is compacted: with a newer cut.
                Err(error) if error.is_compacted() => return Ok(false),
                Err(error) => {
                    let worse =
                        if error.is_future_rev() { self.ctx.shards.suspect(shard).await } else { None };
                    return Err(named(worse.unwrap_or(error)));
                }
            }
        }
        if deleted_at == 0 {
            // Another helper may have deleted them a moment ago, and died before the line covered that.
            deleted_at = self.newest_local(connection.as_ref(), shard, facts.id).await?;
        }
        self.ctx.line.cover(shard, deleted_at).await.map_err(line_status)?;
        Ok(true)
    }

    /// Puts the marker `revoking`; false if the lease has moved on.
    async fn put_revoking(
        &self,
        connection: &dyn Shard,
        shard: ShardIx,
        facts: &LeaseFacts,
    ) -> Result<bool, Status> {
        let mut over = Over::Marker(Marker::Live(facts.epoch));
        for _ in 0..MARKER_TRIES_MAX {
            let txn = marker_txn(facts.id, Marker::Revoking(facts.epoch), over, None);
            let answer = connection.txn(txn).await.map_err(|e| self.shard_status(shard, e))?;
            if answer.succeeded {
                self.ctx.line.observe(shard, answer.header.map_or(0, |h| h.revision));
                return Ok(true);
            }
            let found = MarkerView::from_answer(&answer);
            match after_revoking(found.marker, facts.epoch) {
                MarkerStep::Done => return Ok(true),
                MarkerStep::Outdated => return Ok(false),
                MarkerStep::Replace => over = Over::Revision(found.modified),
            }
        }
        Ok(false)
    }

    /// Until the range map is another one, or for `pause`.
    async fn wait_for_map(&self, map: &RangeMap, pause: Duration) {
        let mut cuts = self.ctx.line.subscribe();
        let changed = cuts.wait_for(|cut| cut.map.generation != map.generation);
        // Either way the next round looks at everything again.
        let _ = tokio::time::timeout(pause, changed).await;
    }

    /// Drops the shadows of a lease whose keys are gone, and then the lease.
    async fn drop_shadows(&self, attempt: &mut Attempt) -> Result<Dropped, Status> {
        let result = match tokio::time::timeout(self.options.attempt_max, self.try_drop(attempt)).await {
            Ok(result) => result,
            Err(_) => Err(Status::unavailable("it takes longer than usual")),
        };
        if !matches!(result, Ok(Dropped::All)) {
            self.release(attempt).await;
        }
        result
    }

    async fn try_drop(&self, attempt: &mut Attempt) -> Result<Dropped, Status> {
        let id = attempt.id;
        let mut facts = self.read(id).await?;
        loop {
            let Some(record) = facts.record.clone() else { return Ok(Dropped::All) };
            if record.state != LeaseState::Gone {
                return Ok(if record.state == LeaseState::Live { Dropped::All } else { Dropped::NotGone });
            }
            let stale = self.view.unchanged_for(id, self.options.silence_max);
            match next_step(&facts, attempt.me, Asked::Help, stale) {
                Step::Claim { record: claimed, if_expired } => {
                    facts = self.change(id, record_txn(&facts, &claimed, if_expired)).await?.1;
                }
                Step::Drop => {
                    if let ControlFlow::Break(dropped) = self.drop_all(attempt, &facts).await? {
                        return Ok(dropped);
                    }
                    let (ended, after) = self.change(id, end_txn(&facts)).await?;
                    if ended {
                        return Ok(Dropped::All);
                    }
                    facts = after;
                }
                Step::Wait => return Ok(Dropped::Busy),
                Step::Ended | Step::Alive | Step::Clear => return Ok(Dropped::NotGone),
            }
        }
    }

    /// Drops all shadows; a break if the lease cannot end now.
    async fn drop_all(
        &self,
        attempt: &mut Attempt,
        facts: &LeaseFacts,
    ) -> Result<ControlFlow<Dropped>, Status> {
        let cut = self.ctx.line.at_position(facts.position).await.map_err(line_status)?;
        let mut held = false;
        let mut failed = None;
        for shard in shards_of(facts, &cut) {
            match self.drop_on(attempt, facts, &cut, shard).await {
                Ok(dropped) => held |= !dropped,
                Err(status) => failed = Some(status),
            }
        }
        if let Some(status) = failed {
            return Err(status);
        }
        if held {
            return Ok(ControlFlow::Break(Dropped::Held));
        }
        let uncertain = attempt.uncertain || facts.record.as_ref().is_some_and(|r| r.uncertain);
        let chosen = facts.record.as_ref().is_some_and(|r| r.chosen);
        let rested = |since: Instant| since.elapsed() >= self.options.rest;
        let rests = uncertain
            && chosen
            && !self.view.get(facts.id).and_then(|seen| seen.uncertain_since).is_some_and(rested);
        Ok(if rests || attempt.uncertain && chosen {
            ControlFlow::Break(Dropped::Resting)
        } else {
            ControlFlow::Continue(())
        })
    }

    /// Drops the shadow on one shard; false if it is needed for now.
    async fn drop_on(
        &self,
        attempt: &mut Attempt,
        facts: &LeaseFacts,
        cut: &Cut,
        shard: ShardIx,
    ) -> Result<bool, Status> {
        let named = |e| self.shard_status(shard, e);
        let connection = self.ctx.shards.get(shard).await.map_err(named)?;
        if !self.put_revoking(connection.as_ref(), shard, facts).await? {
            return Ok(false);
        }
        let request = pb::LeaseTimeToLiveRequest { id: facts.id, keys: true };
        let shadow = connection.lease_time_to_live(request).await.map_err(named)?;
        if shadow.ttl < 0 {
            return Ok(true);
        }
        if !visible_keys(&shadow.keys, &cut.map, shard).is_empty()
            && !self.clear_shard(facts, cut, shard).await?
        {
            return Ok(false);
        }
        if !shadow.keys.is_empty() {
            let request = pb::RangeRequest { key: claims_key(), ..Default::default() };
            let answer = connection.range(request).await.map_err(named)?;
            let claims =
                answer.kvs.first().map(|kv| Claims::decode(&kv.value)).transpose().map_err(unreadable)?;
            if claims.is_some_and(|claims| held_by_imports(&shadow.keys, &claims)) {
                return Ok(false);
            }
        }
        let revision = revoke_once(connection.as_ref(), attempt).await.map_err(named)?;
        self.ctx.line.observe(shard, revision);
        Ok(true)
    }

    /// Gives the lease back, if it is this attempt's, so that others need not wait.
    async fn release(&self, attempt: &Attempt) {
        let give_back = async {
            let facts = self.read(attempt.id).await?;
            match &facts.record {
                Some(record) if record.helper == Some(attempt.me) => {
                    let uncertain = record.uncertain || attempt.uncertain;
                    let free = LeaseRecord { helper: None, uncertain, ..record.clone() };
                    self.change(attempt.id, record_txn(&facts, &free, false)).await.map(|_| ())
                }
                _ => Ok(()),
            }
        };
        let result = tokio::time::timeout(self.options.attempt_max, give_back).await;
        if !matches!(result, Ok(Ok(()))) {
            tracing::debug!(
                lease = format_args!("{:016x}", attempt.id),
                "a lease was not given back; others take it over"
            );
        }
    }
}

/// The registered shards that are still part of the line.
fn shards_of<'a>(facts: &'a LeaseFacts, cut: &'a Cut) -> impl Iterator<Item = ShardIx> + 'a {
    facts.shadows.iter().copied().filter(|s| !cut.left.get(s.index()).copied().unwrap_or(false))
}

/// Sends one `LeaseRevoke` and notes in the attempt if it may still be on its way: before it is sent, so that an attempt
/// that is cut off knows too. Returns the revision of the answer, 0 if there was no such lease.
async fn revoke_once(shard: &dyn Shard, attempt: &mut Attempt) -> Result<i64, ShardError> {
    let before = std::mem::replace(&mut attempt.uncertain, true);
    let result = shard.lease_revoke(pb::LeaseRevokeRequest { id: attempt.id }).await;
    match result {
        Ok(answer) => {
            attempt.uncertain = before;
            Ok(answer.header.map_or(0, |h| h.revision))
        }
        Err(error) => {
            if error.certainty != Certainty::Ambiguous {
                attempt.uncertain = before;
            }
            if error.is_lease_not_found() { Ok(0) } else { Err(error) }
        }
    }
}
