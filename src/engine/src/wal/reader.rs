//! Reading the log back.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Position, WalError, frame,
    segment::{self, Header},
};
use crate::{disk::Disk, values::ValueFile};

/// Where the log ends, so that the writer can go on there.
#[derive(Debug)]
pub struct Recovered {
    /// The last record.
    pub last: Position,
    /// Whether the last record is a seal, so that nothing before it can be taken for a torn one.
    pub is_sealed: bool,
    /// All segments by ascending first sequence number.
    pub segments: Vec<(u64, PathBuf)>,
    /// Those that were read, by the same number: values stay in them. The last one is open for writing too.
    pub(crate) files: BTreeMap<u64, Arc<ValueFile>>,
    /// The end of the last frame in the last segment.
    pub tail_offset: u64,
    /// Bytes of records that were replayed.
    pub replayed_bytes: u64,
}

/// Reads all records after a checkpoint in order and hands them to `apply` with their file and where in it the payload
/// begins.
///
/// A torn record at the very end is dropped. What was found may be in the caches only, left there by a process that
/// died or met an error just before its sync: so the directory is synced, and what was read from the last segment is
/// written and synced once more, before anybody can see it or write behind it.
pub fn recover<E: From<WalError>>(
    disk: &Disk,
    dir: &Path,
    cluster_id: u64,
    checkpoint: Position,
    apply: impl FnMut(&[u8], &Arc<ValueFile>, u64) -> Result<(), E>,
) -> Result<Recovered, E> {
    scan(disk, dir, cluster_id, checkpoint, true, apply)
}

/// Like [`recover`], but changes nothing on disk.
pub fn verify<E: From<WalError>>(
    disk: &Disk,
    dir: &Path,
    cluster_id: u64,
    checkpoint: Position,
    apply: impl FnMut(&[u8], &Arc<ValueFile>, u64) -> Result<(), E>,
) -> Result<Recovered, E> {
    scan(disk, dir, cluster_id, checkpoint, false, apply)
}

fn scan<E: From<WalError>>(
    disk: &Disk,
    dir: &Path,
    cluster_id: u64,
    checkpoint: Position,
    is_repair: bool,
    mut apply: impl FnMut(&[u8], &Arc<ValueFile>, u64) -> Result<(), E>,
) -> Result<Recovered, E> {
    if is_repair {
        segment::sync_dir(disk, dir)?;
    }
    let segments = segment::list(disk, dir)?;
    // Segments that the checkpoint made superfluous may still be there, some of them or under an old name, if the
    // machine stopped while they were given up: nothing is read from them.
    let given_up = segments.iter().skip(1).take_while(|(first, _)| *first <= checkpoint.sequence + 1).count();
    let mut last = checkpoint;
    let mut is_sealed = false;
    let mut tail_offset = segment::HEADER_BYTES as u64;
    let mut replayed_bytes = 0;
    let mut previous: Option<Position> = None;
    let mut files = BTreeMap::new();
    // One segment at a time is in memory, all of them in the same place.
    let mut file = Vec::new();
    for (index, (named, path)) in segments.iter().enumerate().skip(given_up) {
        let is_last = index + 1 == segments.len();
        let opened = if is_last && is_repair { disk.open_to_write(path) } else { disk.open(path) };
        let source = ValueFile::new(opened.map_err(WalError::io("open", path))?, path.clone());
        read_whole(&source, &mut file)?;
        files.insert(*named, Arc::clone(&source));
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
        if (file.len() as u64) < header.capacity {
            return Err(corrupt(file.len(), "the file has lost its end").into());
        }
        let before = header.before();
        match previous {
            Some(previous) if previous.sequence != before.sequence => {
                return Err(corrupt(0, "records before this segment are missing").into());
            }
            None if before.sequence > checkpoint.sequence => {
                return Err(corrupt(0, "records between the checkpoint and this segment are missing").into());
            }
            _ => {}
        }
        let of_others = "this file and those before it are of different histories";
        if previous.is_some_and(|previous| !previous.agrees(before))
            || (before.sequence == checkpoint.sequence && !checkpoint.agrees(before))
        {
            return Err(corrupt(0, of_others).into());
        }
        let mut end = before;
        let mut offset = segment::HEADER_BYTES;
        let mut goes_on = false;
        while !goes_on && let Some(frame) = frame::read(&file, offset, header.salt) {
            if frame.sequence == frame::GOES_ON {
                goes_on = true;
                offset = frame.end;
                continue;
            }
            if frame.sequence != end.sequence + 1 {
                return Err(corrupt(offset, "a record has the wrong sequence number").into());
            }
            end = Position { sequence: frame.sequence, checksum: Some(frame.checksum) };
            if end.sequence == checkpoint.sequence && !checkpoint.agrees(end) {
                return Err(corrupt(offset, "the checkpoint and this log are of different histories").into());
            }
            is_sealed = frame.payload_len == 0;
            if end.sequence > checkpoint.sequence && !is_sealed {
                let payload = &file[frame.payload_start..frame.payload_start + frame.payload_len];
                replayed_bytes += frame.payload_len as u64;
                apply(payload, &source, frame.payload_start as u64)?;
            }
            offset = frame.end;
        }
        if frame::any_after(&file, offset, header.salt) {
            return Err(corrupt(offset, "a record is damaged and intact ones follow").into());
        }
        if !is_last && segments[index + 1].0 != end.sequence + 1 {
            return Err(corrupt(offset, "a record is damaged and another segment follows").into());
        }
        if is_last && goes_on {
            return Err(corrupt(offset, "the segment after this one is missing").into());
        }
        if is_last && end.sequence < checkpoint.sequence {
            return Err(corrupt(offset, "the log ends before the checkpoint does").into());
        }
        if is_last {
            if is_repair {
                rewrite(&source, &file, offset)?;
            }
            tail_offset = offset as u64;
        }
        previous = Some(end);
        last = end;
    }
    Ok(Recovered { last, is_sealed, segments, files, tail_offset, replayed_bytes })
}

fn read_whole(source: &ValueFile, bytes: &mut Vec<u8>) -> Result<(), WalError> {
    let len = source.file().len().map_err(WalError::io("inspect", source.path()))?;
    bytes.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
    source.file().read_exact_at(bytes, 0).map_err(WalError::io("read", source.path()))
}

/// Writes the intact part again, zeros behind it, and syncs both.
fn rewrite(source: &ValueFile, file: &[u8], end: usize) -> Result<(), WalError> {
    let (handle, path) = (source.file(), source.path());
    let end = end.min(file.len());
    handle.write_all_at(&file[..end], 0).map_err(WalError::io("write", path))?;
    if file[end..].iter().any(|byte| *byte != 0) {
        let zeros = vec![0; file.len() - end];
        handle.write_all_at(&zeros, end as u64).map_err(WalError::io("write", path))?;
    }
    handle.sync_all().map_err(WalError::io("sync", path))
}
