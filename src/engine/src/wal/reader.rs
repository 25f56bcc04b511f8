//! Reading the log back.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::{
    WalError, frame,
    segment::{self, Header},
};
use crate::disk::Disk;

/// Where the log ends, so that the writer can go on there.
#[derive(Debug)]
pub struct Recovered {
    /// The sequence number of the next record.
    pub next_sequence: u64,
    /// All segments by ascending first sequence number.
    pub segments: Vec<(u64, PathBuf)>,
    /// The end of the last frame in the last segment.
    pub tail_offset: u64,
    /// Bytes of records that were replayed.
    pub replayed_bytes: u64,
}

/// Reads all records after `checkpoint_sequence` in order and hands them to `apply` with their file and offset.
///
/// A torn record at the very end is dropped. What was found may be in the caches only, left there by a process that
/// died or met an error just before its sync: so the directory is synced, and what was read from the last segment is
/// written and synced once more, before anybody can see it or write behind it.
pub fn recover<E: From<WalError>>(
    disk: &Disk,
    dir: &Path,
    cluster_id: u64,
    checkpoint_sequence: u64,
    apply: impl FnMut(Bytes, &Path, u64) -> Result<(), E>,
) -> Result<Recovered, E> {
    scan(disk, dir, cluster_id, checkpoint_sequence, true, apply)
}

/// Like [`recover`], but changes nothing on disk.
pub fn verify<E: From<WalError>>(
    disk: &Disk,
    dir: &Path,
    cluster_id: u64,
    checkpoint_sequence: u64,
    apply: impl FnMut(Bytes, &Path, u64) -> Result<(), E>,
) -> Result<Recovered, E> {
    scan(disk, dir, cluster_id, checkpoint_sequence, false, apply)
}

fn scan<E: From<WalError>>(
    disk: &Disk,
    dir: &Path,
    cluster_id: u64,
    checkpoint_sequence: u64,
    is_repair: bool,
    mut apply: impl FnMut(Bytes, &Path, u64) -> Result<(), E>,
) -> Result<Recovered, E> {
    if is_repair {
        segment::sync_dir(disk, dir)?;
    }
    let segments = segment::list(disk, dir)?;
    // Segments that the checkpoint made superfluous may still be there, some of them or under an old name, if the
    // machine stopped while they were given up: nothing is read from them.
    let given_up = segments.iter().skip(1).take_while(|(first, _)| *first <= checkpoint_sequence + 1).count();
    let mut next_sequence = checkpoint_sequence + 1;
    let mut tail_offset = segment::HEADER_BYTES as u64;
    let mut replayed_bytes = 0;
    let mut expected = None;
    for (index, (named, path)) in segments.iter().enumerate().skip(given_up) {
        // One segment at a time in memory.
        let file = Bytes::from(disk.read(path).map_err(WalError::io("read", path))?);
        let header = Header::decode(&file, path)?;
        let corrupt =
            |offset: usize, reason| WalError::Corrupt { path: path.clone(), offset: offset as u64, reason };
        if header.cluster_id != cluster_id {
            return Err(WalError::Foreign {
                path: path.clone(),
                found: header.cluster_id,
                expected: cluster_id,
            }
            .into());
        }
        if header.first_sequence != *named {
            return Err(corrupt(0, "the name and the header disagree").into());
        }
        if expected.unwrap_or(header.first_sequence) != header.first_sequence {
            return Err(corrupt(0, "records before this segment are missing").into());
        }
        let mut sequence = header.first_sequence;
        if expected.is_none() && sequence > checkpoint_sequence + 1 {
            return Err(corrupt(0, "records between the checkpoint and this segment are missing").into());
        }
        let mut offset = segment::HEADER_BYTES;
        while let Some(frame) = frame::read(&file, offset, header.salt) {
            if frame.sequence != sequence {
                return Err(corrupt(offset, "a record has the wrong sequence number").into());
            }
            if sequence > checkpoint_sequence {
                let payload = file.slice(frame.payload_start..frame.payload_start + frame.payload_len);
                replayed_bytes += frame.payload_len as u64;
                apply(payload, path, offset as u64)?;
            }
            sequence += 1;
            offset = frame.end;
        }
        if frame::any_after(&file, offset, header.salt) {
            return Err(corrupt(offset, "a record is damaged and intact ones follow").into());
        }
        let is_last = index + 1 == segments.len();
        if !is_last && segments[index + 1].0 != sequence {
            return Err(corrupt(offset, "a record is damaged and another segment follows").into());
        }
        if is_last && sequence <= checkpoint_sequence {
            return Err(corrupt(offset, "the log ends before the checkpoint does").into());
        }
        if is_last {
            if is_repair {
                rewrite(disk, path, &file, offset)?;
            }
            tail_offset = offset as u64;
        }
        expected = Some(sequence);
        next_sequence = next_sequence.max(sequence);
    }
    Ok(Recovered { next_sequence, segments, tail_offset, replayed_bytes })
}

/// Writes the intact part again, zeros behind it, and syncs both.
fn rewrite(disk: &Disk, path: &Path, file: &[u8], end: usize) -> Result<(), WalError> {
    let handle = disk.open_to_write(path).map_err(WalError::io("open", path))?;
    let end = end.min(file.len());
    handle.write_all_at(&file[..end], 0).map_err(WalError::io("write", path))?;
    if file[end..].iter().any(|byte| *byte != 0) {
        let zeros = vec![0; file.len() - end];
        handle.write_all_at(&zeros, end as u64).map_err(WalError::io("write", path))?;
    }
    handle.sync_all().map_err(WalError::io("sync", path))
}
