//! Looking at a data directory without changing it: every checksum, and what the files hold.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use sharded_etcd_shard::with_causes;

use crate::{
    EngineError, checkpoint,
    disk::Disk,
    entry, identity,
    values::ValueFile,
    wal::{self, WalError},
};

/// What an intact data directory holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// The cluster id in all headers.
    pub cluster_id: u64,
    /// The member id in all headers.
    pub member_id: u64,
    /// The newest revision.
    pub revision: i64,
    /// The revision of the newest compaction; -1 if there was none.
    pub compact_revision: i64,
    /// Keys that have a version which is kept, deleted ones included.
    pub keys: usize,
    /// Leases.
    pub leases: usize,
    /// Bytes of all versions that are kept, an estimate.
    pub bytes: u64,
    /// The last log record that the checkpoint holds; 0 without a checkpoint.
    pub checkpoint_sequence: u64,
    /// Size of the checkpoint.
    pub checkpoint_bytes: u64,
    /// The last record of the log.
    pub last_sequence: u64,
    /// The files of the log.
    pub segments: Vec<PathBuf>,
}

/// Reads all files of a data directory that no process has open, and checks every checksum.
///
/// A record that was being written when the machine stopped is not damage, and is not counted.
///
/// # Errors
/// What is wrong, a line for each file that is: of the identity, the checkpoint and the log each the first damage.
pub fn verify(dir: &Path) -> Result<Contents, Vec<String>> {
    if !dir.is_dir() {
        return Err(vec![format!("{} is no directory", dir.display())]);
    }
    verify_on(&Disk::Real, dir)
}

pub(crate) fn verify_on(disk: &Disk, dir: &Path) -> Result<Contents, Vec<String>> {
    let one = |error: EngineError| vec![with_causes(&error)];
    let identity = identity::load(disk, dir).map_err(one)?;
    let _lock = identity::lock(disk, dir).map_err(one)?;
    let mut loaded = match checkpoint::read(disk, dir, identity.cluster_id) {
        Ok(loaded) => loaded,
        Err(error) => {
            // Without its state the records cannot be applied; their checksums can be looked at all the same.
            let mut trouble = vec![with_causes(&error)];
            let ignore = |_: &[u8], _: &Arc<ValueFile>, _: u64| Ok(());
            // The newest segment may end anywhere after a checkpoint that cannot be read.
            if let Err(error) = first_sequence(disk, dir).and_then(|first| {
                wal::verify(disk, dir, identity.cluster_id, first.saturating_sub(1).into(), ignore).map(drop)
            }) {
                trouble.push(with_causes(&error));
            }
            return Err(trouble);
        }
    };
    let recovered = wal::verify(
        disk,
        dir,
        identity.cluster_id,
        loaded.last,
        |record: &[u8], file: &Arc<ValueFile>, offset| {
            let origin = Some((file, offset));
            entry::replay_from(record, origin, &mut loaded.store, |changes| loaded.log.push(changes))
                .map_err(|source| EngineError::Replay { path: file.path().to_owned(), offset, source })
        },
    )
    .map_err(one)?;
    if recovered.segments.is_empty() && (identity.has_log || loaded.last.sequence > 0) {
        return Err(one(EngineError::LogMissing { dir: dir.to_owned() }));
    }
    let store = loaded.store;
    Ok(Contents {
        cluster_id: identity.cluster_id,
        member_id: identity.member_id,
        revision: store.revision(),
        compact_revision: store.compact_revision(),
        keys: store.chains().count(),
        leases: store.leases().count(),
        bytes: store.size_in_use(),
        checkpoint_sequence: loaded.last.sequence,
        checkpoint_bytes: loaded.file_bytes,
        last_sequence: recovered.last.sequence,
        segments: recovered.segments.into_iter().map(|(_, path)| path).collect(),
    })
}

/// What the first segment begins with.
fn first_sequence(disk: &Disk, dir: &Path) -> Result<u64, WalError> {
    Ok(wal::list(disk, dir)?.first().map_or(1, |(first, _)| *first))
}
