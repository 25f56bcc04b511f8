//! The write-ahead log: preallocated segment files of checksummed, numbered records.
//!
//! A segment is `wal-<first sequence number, 16 hex digits>.log`: a header block of 4 KiB, then frames. It is filled
//! with zeros (or is an old segment used again) before it becomes part of the log, so that a record overwrites
//! allocated blocks and `fdatasync` has no metadata to write. Each segment has a random salt that goes into the
//! checksum of its frames, so frames left over from an earlier use never count.
//!
//! # Guarantees
//! - A record is there after a crash if [`Wal::append`] returned; it may be there if `append` failed.
//! - Opening tells a torn last record, which is dropped, from damage before intact records, which is an error that
//!   names file and offset.
//! - What was there when the log was opened or closed is never taken for a torn record: a seal, a record without
//!   payload, stands behind it.
//! - A segment that has a successor says so: a missing file is missed, also the last one.
//! - Segments carry the checksum of the record before them, as checkpoints do of their last one: files of one cluster
//!   that do not belong together are refused.

mod frame;
mod reader;
mod release;
mod segment;

mod writer;

#[cfg(test)]
mod tests;

pub use reader::{Recovered, recover, verify};
pub use segment::{list, sync_dir};
pub use writer::{AppendError, Appended, Wal};

use std::{io, path::PathBuf, sync::Arc};

/// Version of the segment format; a newer one is refused. Format 1 has neither the segment's size nor the checksum of
/// the record before it.
pub const FORMAT: u32 = 2;

/// A place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// The number of a record; 0 before the first one.
    pub sequence: u64,
    /// That record's checksum, if it is known. Two logs of one cluster that went different ways, as a copy and the
    /// original do, have different ones under the same number.
    pub checksum: Option<u32>,
}

impl From<u64> for Position {
    fn from(sequence: u64) -> Self {
        Self { sequence, checksum: None }
    }
}

impl Position {
    /// Whether both can be the same place in the same log.
    fn agrees(self, other: Self) -> bool {
        self.sequence == other.sequence
            && (self.checksum.is_none() || other.checksum.is_none() || self.checksum == other.checksum)
    }
}

/// A place where the log touches the disk, for fault injection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoStep {
    /// A new segment is made or taken into use.
    Roll,
    /// A record is written.
    Write,
    /// Written records are synced.
    Sync,
}

/// Called before each step; an error it returns is treated as the disk's.
pub type IoHook = Arc<dyn Fn(IoStep) -> io::Result<()> + Send + Sync>;

/// What is wrong with a log file.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The operating system failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Intact records follow a damaged one, or records are missing.
    #[error("{} is damaged at byte {offset}: {reason}; restore the data directory from a copy", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong there.
        reason: &'static str,
    },
    /// The file was written by a newer program.
    #[error("{} has format {found}, this program knows up to {FORMAT}; use a newer program", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The file belongs to other data.
    #[error("{} belongs to cluster {found:016x}, not {expected:016x}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The cluster id in the file.
        found: u64,
        /// The cluster id of the directory.
        expected: u64,
    },
}

impl WalError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| WalError::Io { action, path, source }
    }
}
