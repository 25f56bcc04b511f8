//! A snapshot as the parts that `Maintenance.Snapshot` sends.

use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::ShardError;
use tokio::sync::mpsc;

use super::{Member, STORAGE_VERSION, newest};
use crate::{errors, shared::Shared, values::ValueError};

/// A part is sent once it is this large: below what gRPC clients decode by default, and few enough of them.
const PART_BYTES: usize = 128 << 10;

/// Where parts go.
pub(crate) type Parts = mpsc::Sender<Result<pb::SnapshotResponse, ShardError>>;

/// Why a snapshot is not sent to its end.
enum Stop {
    /// Nobody receives any more.
    Gone,
    Unreadable(ShardError),
}

impl From<ValueError> for Stop {
    fn from(error: ValueError) -> Self {
        Self::Unreadable(error.into())
    }
}

/// Sends the newest state, to its end or until nobody receives. Waits for the receiver: not for an async task.
pub(crate) fn stream(shared: &Arc<Shared>, member: &Member, parts: Parts) {
    let Some((revision, layout)) = newest(shared, member) else {
        // Who does not receive does not want it.
        let _ = parts.blocking_send(Err(errors::stopped()));
        return;
    };
    let bytes = layout.bytes();
    tracing::info!(revision, bytes, "sending a snapshot");
    let mut sender = Sender { parts, sum: Sha256::new(), part: Vec::new(), left: bytes };
    let sent = layout.write(|pages| sender.add(pages)).and_then(|()| sender.finish());
    match sent {
        Ok(()) => tracing::info!(revision, bytes, "a snapshot is sent"),
        Err(Stop::Unreadable(error)) => {
            let _ = sender.parts.blocking_send(shared.read(Err(error)));
        }
        Err(Stop::Gone) => tracing::warn!(revision, bytes, "a snapshot was not received to its end"),
    }
}

struct Sender {
    parts: Parts,
    sum: Sha256,
    part: Vec<u8>,
    /// Bytes of the file that were not sent.
    left: u64,
}

impl Sender {
    fn add(&mut self, mut pages: &[u8]) -> Result<(), Stop> {
        // A large value is cut: its pages may be more than a message may hold.
        while !pages.is_empty() {
            let (now, later) = pages.split_at(pages.len().min(PART_BYTES - self.part.len()));
            self.part.extend_from_slice(now);
            pages = later;
            if self.part.len() == PART_BYTES {
                self.send_part()?;
            }
        }
        Ok(())
    }

    fn send_part(&mut self) -> Result<(), Stop> {
        let part = std::mem::replace(&mut self.part, Vec::with_capacity(PART_BYTES));
        self.sum.update(&part);
        self.left = self.left.saturating_sub(part.len() as u64);
        self.send(part.into())
    }

    fn finish(&mut self) -> Result<(), Stop> {
        if !self.part.is_empty() {
            self.send_part()?;
        }
        let sum = self.sum.finalize_reset();
        self.send(Bytes::copy_from_slice(&sum))
    }

    fn send(&self, blob: Bytes) -> Result<(), Stop> {
        let version = STORAGE_VERSION.to_owned();
        let response = pb::SnapshotResponse { header: None, remaining_bytes: self.left, blob, version };
        self.parts.blocking_send(Ok(response)).map_err(|_| Stop::Gone)
    }
}
