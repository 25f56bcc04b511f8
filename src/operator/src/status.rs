//! Step 5: the resource's status, and the Events that its changes are worth. Pure.

use jiff::Timestamp;
use sharded_etcd_crd::status::ShardedEtcdStatus;

use crate::{
    model::{Applied, Observed},
    validate::{Problem, Validated},
};

/// The resource's status after a reconcile. Equal to the resource's present one if nothing is to be written.
///
/// - `validated`: what [`validate`](crate::validate::validate) said.
/// - `applied`: what became of the objects; empty if validate failed.
/// - `counts_due`: whether small changes of counts (keys, bytes, revisions) may be written; the shell says so at most
///   once in [`Pace::counts`](crate::settings::Pace::counts).
pub fn status(
    observed: &Observed,
    validated: Result<&Validated, &[Problem]>,
    applied: &Applied,
    counts_due: bool,
    now: Timestamp,
) -> ShardedEtcdStatus {
    let _ = (validated, applied, counts_due, now);
    observed.resource.status.clone().unwrap_or_default()
}

/// An Event to publish about the resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventDraft {
    /// Warning, or Normal.
    pub warning: bool,
    /// One word, in CamelCase.
    pub reason: String,
    /// What happened, at most 1024 bytes.
    pub note: String,
}

/// What changed from one status to the next and is worth an Event; at most a fixed number.
pub fn events(previous: &ShardedEtcdStatus, next: &ShardedEtcdStatus) -> Vec<EventDraft> {
    let _ = (previous, next);
    Vec::new()
}
