//! Progress of the moves that this process executes, for people and for metrics.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::Mutex;
use serde::Serialize;
use sharded_etcd_core::{
    keyspace::{KeyRange, Rid, ShardIx},
    moves::Observation,
    records::{ClaimState, CursorStage, MovePhase},
};
use tokio::sync::watch;

use crate::{error::Result, metrics::MoveCounters, mover::Outcome};

/// Finished moves that are remembered.
const HISTORY_MAX: usize = 100;

/// One move under way, as its executor sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MoveProgress {
    /// Its id.
    pub id: String,
    /// The ownership that ends.
    pub rid: Rid,
    /// The keys.
    pub range: KeyRange,
    /// Join number of the source.
    pub from: ShardIx,
    /// Join number of the destination.
    pub to: ShardIx,
    /// `open`, `copy`, `tail`, `close`, `seal`, `flip`, `purge`, `abort`.
    pub phase: &'static str,
    /// Keys copied, and events applied after that.
    pub keys_done: u64,
    /// Keys to copy.
    pub keys_total: u64,
    /// Bytes imported by this executor.
    pub bytes_done: u64,
    /// How long its writers waited, in milliseconds; `None` before the flip.
    pub stall_ms: Option<u64>,
    /// Why it moves.
    pub reason: String,
    /// What it waits for, or what went wrong last; empty for nothing.
    pub message: String,
}

impl MoveProgress {
    /// Copied part in percent; 100 only when writers have been switched over.
    pub fn percent(&self) -> u64 {
        match self.phase {
            "purge" => 100,
            "open" => 0,
            "copy" => (self.keys_done * 95).checked_div(self.keys_total).unwrap_or(0).min(95),
            _ => 97,
        }
    }
}

/// A move that is over.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FinishedMove {
    /// As it was last seen.
    #[serde(flatten)]
    pub last: MoveProgress,
    /// `None` if it succeeded.
    pub failure: Option<String>,
}

/// Progress of all moves; see [`Progress::subscribe`].
#[derive(Debug, Default)]
pub struct Progress {
    /// Counters for metrics.
    pub counters: MoveCounters,
    moves: Mutex<BTreeMap<Rid, MoveProgress>>,
    finished: Mutex<Vec<FinishedMove>>,
    changed: watch::Sender<u64>,
}

impl Progress {
    /// Sees every change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Moves under way.
    pub fn moves(&self) -> Vec<MoveProgress> {
        self.moves.lock().values().cloned().collect()
    }

    /// The last moves that are over, oldest first, at most 100.
    pub fn finished(&self) -> Vec<FinishedMove> {
        self.finished.lock().clone()
    }

    pub(crate) fn seen(&self, seen: &Observation) {
        let Some(record) = seen.record.as_ref().map(|r| &r.value) else { return };
        let cursor = seen.destination.as_ref().and_then(|d| d.cursor.as_ref()).map(|c| &c.value.stage);
        let claim = seen.source.as_ref().and_then(|s| s.claims.value.of(&record.rid));
        let closed = claim.is_some_and(|c| matches!(c.state, ClaimState::Closed(_)));
        let phase = match (record.phase, cursor) {
            (MovePhase::Aborting, _) => "abort",
            (MovePhase::Flipped, _) => "purge",
            (MovePhase::Copying, None) => "open",
            (MovePhase::Copying, Some(CursorStage::Copy { .. })) => "copy",
            (MovePhase::Copying, Some(CursorStage::Sealed { .. })) => "flip",
            (MovePhase::Copying, Some(_)) if closed => "close",
            (MovePhase::Copying, Some(_)) => "tail",
        };
        let mut moves = self.moves.lock();
        let progress = moves.entry(record.rid.clone()).or_insert_with(|| MoveProgress {
            id: record.id.clone(),
            rid: record.rid.clone(),
            range: record.range.clone(),
            from: record.from,
            to: record.to,
            phase,
            keys_done: 0,
            keys_total: 0,
            bytes_done: 0,
            stall_ms: None,
            reason: record.reason.clone(),
            message: String::new(),
        });
        if progress.phase != phase {
            progress.phase = phase;
            progress.message.clear();
        }
        drop(moves);
        self.notify();
    }

    pub(crate) fn update(&self, rid: &Rid, change: impl FnOnce(&mut MoveProgress)) {
        if let Some(progress) = self.moves.lock().get_mut(rid) {
            let (bytes, keys) = (progress.bytes_done, progress.keys_done);
            change(progress);
            self.counters.bytes.inc_by(progress.bytes_done.saturating_sub(bytes));
            self.counters.keys.inc_by(progress.keys_done.saturating_sub(keys));
        }
        self.notify();
    }

    pub(crate) fn stalled(&self, rid: &Rid, stall: Duration) {
        self.counters.stalled(stall);
        self.update(rid, |p| p.stall_ms = Some(u64::try_from(stall.as_millis()).unwrap_or(u64::MAX)));
    }

    pub(crate) fn end(&self, rid: &Rid, outcome: &Result<Outcome>, phase: Option<MovePhase>) {
        let failure = match outcome {
            Ok(Outcome::Moved) => {
                self.counters.moved.inc();
                None
            }
            Ok(Outcome::Aborted(reason)) => {
                self.counters.aborted.inc();
                Some(reason.clone())
            }
            Ok(Outcome::NotFound) => {
                self.moves.lock().remove(rid);
                return;
            }
            Err(error) => {
                self.counters.retried.inc();
                tracing::warn!(%rid, ?phase, %error, "move is interrupted; it goes on later");
                self.update(rid, |p| p.message = error.to_string());
                return;
            }
        };
        let last = self.moves.lock().remove(rid);
        if let Some(last) = last {
            tracing::info!(%rid, range = %last.range, ?failure, stall_ms = ?last.stall_ms, "move is over");
            let mut finished = self.finished.lock();
            if finished.len() == HISTORY_MAX {
                finished.remove(0);
            }
            finished.push(FinishedMove { last, failure });
        }
        self.notify();
    }

    fn notify(&self) {
        let phases: Vec<&'static str> = self.moves.lock().values().map(|m| m.phase).collect();
        self.counters.phases(&phases);
        self.changed.send_modify(|n| *n += 1);
    }
}
