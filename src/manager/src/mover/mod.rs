//! The executor of one move: asks [`decide`] what is next, does it, and tells what came of it.
//!
//! # Guarantees
//! - Whatever is stored is stored by a Txn of [`sharded_etcd_core::moves`], so an executor may be stopped anywhere, may
//!   run beside another one, and may be followed by another one.
//! - From the close of the source to the flip it takes at most [`MoverOptions::stall_max`], or the move is given up.

pub(crate) mod copy;
pub(crate) mod failpoint;
mod leases;
pub(crate) mod observe;
mod purge;
pub(crate) mod read;
mod tail;
pub(crate) mod throttle;
mod verify;

use std::{sync::Arc, time::Duration};

use sharded_etcd_core::{
    keyspace::{Rid, ShardIx},
    moves::{Effect, Observation, Place, Session, Step, Work, decide},
    records::{MovePhase, MoveRecord},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::{Line, Shards};
use sharded_etcd_shard::{Shard, ShardError};
use tokio::time::Instant;

use crate::{
    ManagerError,
    error::Result,
    progress::{MoveProgress, Progress},
};
use failpoint::Failpoints;
use throttle::Throttle;

/// Guards that may fail one after the other before the move is given up.
const MISSES_MAX: u32 = 50;

/// Bounds on one move.
#[derive(Debug, Clone)]
pub struct MoverOptions {
    /// Longest time from the close of the source to the flip; then the move is given up. Default 500 ms.
    pub stall_max: Duration,
    /// Longest time that a move waits for something in its way, before it is given up. Default 60 s.
    pub wait_max: Duration,
    /// Keys changed since the last comparison up to which the source may be closed. Default 200.
    pub changed_keys_max: usize,
    /// Failed comparisons after which a move is given up. Default 3.
    pub verify_tries_max: u32,
}

impl Default for MoverOptions {
    fn default() -> Self {
        Self {
            stall_max: Duration::from_millis(500),
            wait_max: Duration::from_secs(60),
            changed_keys_max: 200,
            verify_tries_max: 3,
        }
    }
}

/// What all moves of a process share.
#[derive(Clone)]
pub struct MoverContext {
    /// The line.
    pub line: Arc<Line>,
    /// The shards.
    pub shards: Arc<Shards>,
    /// Bounds.
    pub options: MoverOptions,
    /// Bytes a second over all moves.
    pub throttle: Arc<Throttle>,
    /// Where progress is told.
    pub progress: Arc<Progress>,
    /// For tests.
    pub failpoints: Failpoints,
}

/// How a move ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The destination owns the range, and the source's copy is gone.
    Moved,
    /// It did not happen, for this reason; everything is as before.
    Aborted(String),
    /// There was no such move when the executor looked.
    NotFound,
}

/// Executes the move of the ownership `rid` from wherever it is to its end.
///
/// `give_up` is a reason to abort it if that is still possible.
///
/// # Errors
/// If a shard, meta or the line failed. Nothing is lost: calling it again goes on.
pub async fn run_move(context: &MoverContext, rid: &Rid, give_up: Option<String>) -> Result<Outcome> {
    let mut mover = Mover {
        context,
        meta: Arc::clone(context.line.meta()),
        rid,
        give_up,
        phase: None,
        tail: None,
        shadows: leases::Shadows::default(),
        stall: None,
        waiting_since: None,
        verify_failures: 0,
        unreachable: None,
        misses: 0,
    };
    let outcome = mover.run().await;
    context.progress.end(rid, &outcome, mover.phase);
    outcome
}

/// Why a piece of work ended before its end.
pub(crate) enum Interrupt {
    /// A guard did not match: another executor, or an abort. Look again.
    Lost,
    /// The move cannot go on.
    GiveUp(String),
    /// Something failed.
    Failed(ManagerError),
}

impl<E: Into<ManagerError>> From<E> for Interrupt {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

pub(crate) struct Mover<'a> {
    context: &'a MoverContext,
    meta: Arc<dyn Shard>,
    rid: &'a Rid,
    give_up: Option<String>,
    /// The last decided phase that was seen, as the record is gone at the end.
    phase: Option<MovePhase>,
    /// The watch on the source, from the first tail on.
    tail: Option<tail::Tail>,
    shadows: leases::Shadows,
    /// When the source was closed by this executor.
    stall: Option<Instant>,
    waiting_since: Option<Instant>,
    verify_failures: u32,
    /// Why a shard could not be looked at.
    unreachable: Option<ManagerError>,
    /// Guards that did not match, one after the other.
    misses: u32,
}

impl Mover<'_> {
    async fn run(&mut self) -> Result<Outcome> {
        // What this executor knew when it looked last, and what it saw then.
        let mut before: Option<(Session, Observation)> = None;
        loop {
            let looked = self.look_again(before.as_ref().map(|(session, _)| session)).await?;
            let Some(mut seen) = looked else { continue };
            let unchanged = before.as_ref().is_some_and(|(_, before)| seen.continues(before));
            let mut session = before.take().map_or_else(Session::default, |(session, _)| session);
            if !unchanged {
                session = session.forgotten();
                self.tail = None;
            }
            session.give_up.clone_from(&self.give_up);
            loop {
                session.copy_at = seen.record.as_ref().map_or(0, |r| self.context.line.cut().v(r.value.from));
                self.note(&seen);
                let done = match decide(&seen, &session) {
                    Step::Done => return Ok(self.outcome()),
                    Step::GiveUp(reason) => Err(Interrupt::GiveUp(reason)),
                    Step::Wait(reason) => {
                        self.wait(&seen, reason).await;
                        // Meanwhile the source has gone on.
                        session.ready_to_close = false;
                        break;
                    }
                    Step::Unreachable(_) => Err(self.cannot_reach()),
                    Step::Do(effect) => self.effect(&effect, &mut seen, &mut session).await,
                    Step::Work(work) => self.work(work, &mut seen, &mut session).await,
                };
                match done.map_err(|interrupt| self.in_favour_of_writers(interrupt)) {
                    Ok(()) => self.misses = 0,
                    Err(Interrupt::Lost) => {
                        self.missed().await?;
                        break;
                    }
                    Err(Interrupt::GiveUp(reason)) => {
                        tracing::warn!(rid = %self.rid, %reason, "move is given up");
                        self.give_up = Some(reason);
                        break;
                    }
                    Err(Interrupt::Failed(error)) => return Err(error),
                }
            }
            before = Some((session, seen));
        }
    }

    /// Reads what is stored of the move; `None` if that took longer than writers may wait, and the move is given up now.
    async fn look_again(&mut self, session: Option<&Session>) -> Result<Option<Observation>> {
        let given_up = Session { give_up: self.give_up.clone(), ..session.cloned().unwrap_or_default() };
        if self.stall.is_none() || self.give_up.is_some() {
            return self.observe(&given_up).await.map(Some);
        }
        let most = self.stall_left();
        let why = match tokio::time::timeout(most, self.observe(&given_up)).await {
            Ok(Ok(seen)) => return Ok(Some(seen)),
            Ok(Err(error @ ManagerError::Failpoint(_))) => return Err(error),
            Ok(Err(error)) => format!("while writers waited: {error}"),
            Err(_) => {
                format!("not flipped within {} ms of the close", self.context.options.stall_max.as_millis())
            }
        };
        tracing::warn!(rid = %self.rid, reason = %why, "move is given up");
        self.give_up = Some(why);
        Ok(None)
    }

    /// While the source is closed, whatever goes wrong ends the move: what is stored decides, an abort if it still can.
    fn in_favour_of_writers(&self, interrupt: Interrupt) -> Interrupt {
        match interrupt {
            Interrupt::Failed(error @ ManagerError::Failpoint(_)) => Interrupt::Failed(error),
            Interrupt::Failed(error) if self.stall.is_some() && self.give_up.is_none() => {
                Interrupt::GiveUp(format!("while writers waited: {error}"))
            }
            other => other,
        }
    }

    fn cannot_reach(&mut self) -> Interrupt {
        // Without a failure it was not looked at: the decision to abort needs no shard, what follows from it does.
        self.unreachable.take().map_or(Interrupt::Lost, Interrupt::Failed)
    }

    /// After a guard that did not match: another executor is at work, or something is as it never should be.
    async fn missed(&mut self) -> Result<()> {
        self.misses += 1;
        if self.misses > MISSES_MAX {
            self.misses = 0;
            if self.phase == Some(MovePhase::Copying) && self.give_up.is_none() {
                self.give_up =
                    Some("its guards never match: the destination holds keys of the range already".into());
                return Ok(());
            }
            return Err(ManagerError::Slow { what: "getting past a guard", ms: 0 });
        }
        if self.stall.is_none() {
            tokio::time::sleep(Duration::from_millis(10) * self.misses).await;
        }
        Ok(())
    }

    fn outcome(&self) -> Outcome {
        match self.phase {
            None => Outcome::NotFound,
            Some(MovePhase::Flipped) => Outcome::Moved,
            Some(_) => Outcome::Aborted(
                self.give_up.clone().unwrap_or_else(|| "it was given up by an earlier executor".to_owned()),
            ),
        }
    }

    fn note(&mut self, seen: &Observation) {
        if let Some(record) = &seen.record {
            self.phase = Some(record.value.phase);
            self.context.progress.seen(seen);
        }
    }

    async fn wait(&mut self, seen: &Observation, reason: String) {
        self.context.progress.update(self.rid, |p| p.message.clone_from(&reason));
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let copying = seen.record.as_ref().is_some_and(|r| r.value.phase == MovePhase::Copying);
        if copying && since.elapsed() > self.context.options.wait_max {
            self.give_up = Some(format!("waited {} s: {reason}", since.elapsed().as_secs()));
        } else {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Sends one effect; then it is in `seen`.
    async fn effect(
        &mut self,
        effect: &Effect,
        seen: &mut Observation,
        session: &mut Session,
    ) -> std::result::Result<(), Interrupt> {
        let Some(txn) = effect.txn(seen) else { return Err(Interrupt::Lost) };
        let Some(record) = seen.record.as_ref().map(|r| r.value.clone()) else { return Err(Interrupt::Lost) };
        self.context.failpoints.before(effect.name()).await?;
        if *effect == Effect::Close {
            self.stall = Some(Instant::now());
        }
        let answer = self.send(effect.place(), &record, txn).await?;
        if !answer.succeeded {
            if *effect == Effect::Close {
                self.stall = None;
            }
            tracing::debug!(rid = %self.rid, step = effect.name(), "guard did not match; looking again");
            return Err(Interrupt::Lost);
        }
        let revision = answer.header.map_or(0, |h| h.revision);
        tracing::info!(rid = %self.rid, step = effect.name(), revision, "move");
        seen.after(effect, session, revision);
        self.decided(effect, &record, revision).await?;
        self.context.failpoints.after(effect.name()).await?;
        Ok(())
    }

    /// What follows from a decision in meta.
    async fn decided(&mut self, effect: &Effect, record: &MoveRecord, revision: i64) -> Result<()> {
        match effect {
            Effect::Flip { .. } => {
                self.waiting_since = None;
                if let Some(stall) = self.stall.take().map(|since| since.elapsed()) {
                    self.context.progress.stalled(self.rid, stall);
                }
                self.context.line.at_position(revision).await?;
            }
            Effect::Release => {
                if let Some(stall) = self.stall.take().map(|since| since.elapsed()) {
                    self.context.progress.stalled(self.rid, stall);
                }
            }
            // The close must be part of the line before its events can be read as numbers.
            Effect::Close => {
                self.context.line.observe(record.from, revision);
            }
            _ => {}
        }
        Ok(())
    }

    async fn work(
        &mut self,
        work: Work,
        seen: &mut Observation,
        session: &mut Session,
    ) -> std::result::Result<(), Interrupt> {
        match work {
            Work::Copy => self.copy(seen).await,
            Work::Tail => self.tail(seen, session).await,
            Work::Drain { upto } => {
                let left = self.stall_left();
                match tokio::time::timeout(left, self.drain(upto, seen, session)).await {
                    Ok(done) => done,
                    Err(_) => Err(Interrupt::GiveUp(format!(
                        "the destination did not catch up within {} ms of the close",
                        self.context.options.stall_max.as_millis()
                    ))),
                }
            }
            Work::Purge(place) => self.purge(place, seen, session).await,
        }
    }

    fn stall_left(&self) -> Duration {
        self.stall.map_or(self.context.options.stall_max, |since| {
            self.context.options.stall_max.saturating_sub(since.elapsed())
        })
    }

    /// Sends a Txn to one of the move's places; while the source is closed, within what is left of the stall's bound.
    async fn send(&self, place: Place, record: &MoveRecord, txn: pb::TxnRequest) -> Result<pb::TxnResponse> {
        let call = async {
            match place {
                Place::Meta => self.meta.txn(txn).await.map_err(ManagerError::Meta),
                Place::Source => Ok(self.shard(record.from).await?.txn(txn).await?),
                Place::Destination => Ok(self.shard(record.to).await?.txn(txn).await?),
            }
        };
        if self.stall.is_some() && self.give_up.is_none() {
            let left = self.stall_left();
            return tokio::time::timeout(left, call)
                .await
                .map_err(|_| ManagerError::Slow { what: "a step of a move", ms: left.as_millis() })?;
        }
        call.await
    }

    pub(crate) async fn shard(&self, ix: ShardIx) -> std::result::Result<Arc<dyn Shard>, ShardError> {
        self.context.shards.get(ix).await
    }

    pub(crate) fn progress(&self, change: impl FnOnce(&mut MoveProgress)) {
        self.context.progress.update(self.rid, change);
    }
}
