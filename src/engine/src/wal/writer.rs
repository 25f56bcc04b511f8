//! Appending to the log, by one thread.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    thread::JoinHandle,
};

use super::{
    IoHook, IoStep, Position, Recovered, WalError, frame,
    segment::{self, Header},
};
use crate::disk::{Disk, DiskFile};

/// Size of the first segment of a new log.
const FIRST_SEGMENT_BYTES: u64 = 1 << 20;
/// Old segments that are kept for use again.
const SPARES_MAX: usize = 2;

/// How an append failed.
#[derive(Debug)]
pub enum AppendError {
    /// Nothing was written: no space for a new segment, for instance. The log is as it was; try again later.
    Untouched(WalError),
    /// The record may or may not be there after a restart. Nothing may be appended any more.
    Unknown(WalError),
}

/// The open log.
pub struct Wal {
    disk: Disk,
    dir: PathBuf,
    cluster_id: u64,
    segment_bytes: u64,
    hook: Option<IoHook>,
    /// First sequence numbers and paths, the current segment last.
    segments: VecDeque<(u64, PathBuf)>,
    current: Option<Current>,
    /// A new segment was begun in vain. Its name may be on disk, so that nothing may be added to the one before.
    must_roll: bool,
    /// The newest record.
    last: Position,
    /// Whether the newest record is a seal.
    is_sealed: bool,
    spares: Vec<PathBuf>,
    spare_number: u64,
    preparing: Option<JoinHandle<Result<PathBuf, WalError>>>,
}

struct Current {
    file: DiskFile,
    path: PathBuf,
    salt: u64,
    offset: u64,
    capacity: u64,
    is_empty: bool,
}

impl Current {
    /// Where records end at the latest: behind them there is room for the mark that the log goes on.
    fn room_end(&self) -> u64 {
        self.capacity.saturating_sub(frame::HEADER_BYTES as u64)
    }

    /// Says in this segment that there is another one after it; durable when it returns.
    fn mark_going_on(&self) -> Result<(), WalError> {
        let mut mark = Vec::new();
        frame::begin(&mut mark);
        let _ = frame::finish(&mut mark, self.salt, frame::GOES_ON);
        self.file.write_all_at(&mark, self.offset).map_err(WalError::io("write", &self.path))?;
        self.file.sync_data().map_err(WalError::io("sync", &self.path))
    }
}

impl Wal {
    /// Goes on where recovery ended.
    pub fn open(
        disk: &Disk,
        dir: &Path,
        cluster_id: u64,
        segment_bytes: u64,
        recovered: Recovered,
        hook: Option<IoHook>,
    ) -> Result<Self, WalError> {
        remove_spares(disk, dir)?;
        let mut wal = Self {
            disk: disk.clone(),
            dir: dir.to_owned(),
            cluster_id,
            segment_bytes: segment_bytes.max(2 * segment::HEADER_BYTES as u64),
            hook,
            segments: recovered.segments.into(),
            current: None,
            must_roll: false,
            last: recovered.last,
            is_sealed: recovered.is_sealed,
            spares: Vec::new(),
            spare_number: 0,
            preparing: None,
        };
        if let Some((first_sequence, path)) = wal.segments.back() {
            let file = disk.open_to_write(path).map_err(WalError::io("open", path))?;
            let mut block = vec![0; segment::HEADER_BYTES];
            file.read_exact_at(&mut block, 0).map_err(WalError::io("read", path))?;
            let capacity = file.len().map_err(WalError::io("inspect", path))?;
            let salt = Header::decode(&block, path)?.salt;
            let is_empty = *first_sequence == wal.last.sequence + 1;
            wal.current = Some(Current {
                file,
                path: path.clone(),
                salt,
                offset: recovered.tail_offset,
                capacity,
                is_empty,
            });
        } else {
            wal.roll()?;
        }
        wal.seal()?;
        Ok(wal)
    }

    /// Marks all records as complete, so that damage to the last of them is not taken for a write that was cut off. Does
    /// nothing if there is no record since the last seal. A segment that has no room for a seal gets a successor instead,
    /// which says the same; where there is no room for that either, it is made later: not worth a failure.
    ///
    /// # Errors
    /// If the seal cannot be written; nothing may be appended any more then.
    pub fn seal(&mut self) -> Result<(), WalError> {
        let Some(current) = self.current.as_ref().filter(|current| !current.is_empty) else { return Ok(()) };
        if self.is_sealed || self.must_roll {
            return Ok(());
        }
        if current.offset + frame::HEADER_BYTES as u64 > current.room_end() {
            if let Err(error) = self.roll() {
                tracing::warn!(%error, "the end of the log is not marked as complete");
            }
            return Ok(());
        }
        let mut record = Vec::new();
        Self::begin(&mut record);
        match self.append(&mut record) {
            Ok(_) => Ok(()),
            Err(AppendError::Untouched(error) | AppendError::Unknown(error)) => Err(error),
        }
    }

    /// The newest record.
    pub fn last(&self) -> Position {
        self.last
    }

    /// The sequence number of the newest record, 0 when there never was one.
    pub fn last_sequence(&self) -> u64 {
        self.last.sequence
    }

    /// The file that is written now.
    pub fn current_path(&self) -> &Path {
        self.current.as_ref().map_or(&self.dir, |current| &current.path)
    }

    /// Empties a buffer for a record; the caller appends the payload.
    pub fn begin(buffer: &mut Vec<u8>) {
        frame::begin(buffer);
    }

    /// Whether the buffer has a payload.
    pub fn has_payload(buffer: &[u8]) -> bool {
        frame::has_payload(buffer)
    }

    /// Writes one record and syncs it. Returns the bytes written.
    pub fn append(&mut self, buffer: &mut Vec<u8>) -> Result<u64, AppendError> {
        let frame_bytes = (buffer.len() as u64).next_multiple_of(frame::ALIGN_BYTES as u64);
        let fits = self
            .current
            .as_ref()
            .is_some_and(|current| current.is_empty || current.offset + frame_bytes <= current.room_end());
        if !fits || self.must_roll {
            self.roll().map_err(AppendError::Untouched)?;
        }
        let Some(current) = self.current.as_mut() else {
            return Err(AppendError::Untouched(WalError::Corrupt {
                path: self.dir.clone(),
                offset: 0,
                reason: "no segment is open",
            }));
        };
        let sequence = self.last.sequence + 1;
        let is_seal = !frame::has_payload(buffer);
        let Some(checksum) = frame::finish(buffer, current.salt, sequence) else {
            return Err(AppendError::Untouched(WalError::Io {
                action: "write a record of more than 4 GiB to",
                path: current.path.clone(),
                source: std::io::ErrorKind::FileTooLarge.into(),
            }));
        };
        let hook = self.hook.as_ref();
        let step = |step| hook.map_or(Ok(()), |hook| hook(step));
        step(IoStep::Write)
            .and_then(|()| current.file.write_all_at(buffer, current.offset))
            .map_err(|error| AppendError::Unknown(WalError::io("write", &current.path)(error)))?;
        step(IoStep::Sync)
            .and_then(|()| current.file.sync_data())
            .map_err(|error| AppendError::Unknown(WalError::io("sync", &current.path)(error)))?;
        current.offset += frame_bytes;
        current.is_empty = false;
        self.last = Position { sequence, checksum: Some(checksum) };
        self.is_sealed = is_seal;
        if current.offset > current.capacity / 2 {
            self.prepare_spare();
        }
        Ok(frame_bytes)
    }

    /// Starts a new segment.
    fn roll(&mut self) -> Result<(), WalError> {
        self.must_roll = true;
        if let Some(hook) = &self.hook {
            hook(IoStep::Roll).map_err(WalError::io("make a segment in", &self.dir))?;
        }
        if self.spares.is_empty()
            && let Some(preparing) = self.preparing.take()
        {
            // The helper is about as fast as this thread would be, so waiting for it costs no more than doing it.
            if let Ok(Ok(path)) = preparing.join() {
                self.spares.push(path);
            }
        }
        let spare = match self.spares.pop() {
            Some(spare) => spare,
            None => {
                let path = self.next_spare_path();
                segment::preallocate(&self.disk, &path, self.next_segment_bytes())?;
                path
            }
        };
        let header = Header {
            cluster_id: self.cluster_id,
            first_sequence: self.last.sequence + 1,
            salt: rand::random(),
            capacity: 0,
            previous: self.last.checksum,
        };
        let (file, path, capacity) = segment::take_into_use(&self.disk, &self.dir, &spare, header)?;
        // Not before: a segment that says so and has no successor is refused.
        if let Some(full) = &self.current {
            full.mark_going_on()?;
        }
        self.must_roll = false;
        self.segments.push_back((header.first_sequence, path.clone()));
        self.current = Some(Current {
            file,
            path,
            salt: header.salt,
            offset: segment::HEADER_BYTES as u64,
            capacity,
            is_empty: true,
        });
        Ok(())
    }

    fn next_spare_path(&mut self) -> PathBuf {
        self.spare_number += 1;
        self.dir.join(format!("spare-{}.tmp", self.spare_number))
    }

    /// Segments grow from 1 MiB to their full size, so that a store that is hardly written stays small on disk.
    fn next_segment_bytes(&self) -> u64 {
        let grown = self.current.as_ref().map_or(FIRST_SEGMENT_BYTES, |current| current.capacity * 2);
        grown.min(self.segment_bytes)
    }

    /// Has the next segment made in the background, so that rolling does not wait for zeros.
    fn prepare_spare(&mut self) {
        if !self.spares.is_empty() || self.preparing.is_some() {
            return;
        }
        let (path, bytes) = (self.next_spare_path(), self.next_segment_bytes());
        let disk = self.disk.clone();
        let work = move || segment::preallocate(&disk, &path, bytes).map(|()| path);
        // Without a thread the segment is made when it is needed.
        self.preparing = self.disk.spawn("engine-segment", work).ok();
    }

    /// Gives up the segments whose records are all at or below `sequence`, which a checkpoint holds.
    pub fn release(&mut self, sequence: u64) -> Result<(), WalError> {
        let mut reusable = Vec::new();
        while self.segments.len() > 1 && self.segments[1].0 <= sequence + 1 {
            let Some((_, path)) = self.segments.pop_front() else { break };
            let is_regular = self.disk.len(&path).is_ok_and(|bytes| bytes == self.segment_bytes);
            if is_regular && self.spares.len() + reusable.len() < SPARES_MAX {
                let spare = self.next_spare_path();
                self.disk.rename(&path, &spare).map_err(WalError::io("rename", &path))?;
                reusable.push(spare);
            } else {
                self.disk.remove(&path).map_err(WalError::io("remove", &path))?;
            }
        }
        segment::sync_dir(&self.disk, &self.dir)?;
        // Only now: as long as a file may come back under its old name, nothing may be written to it.
        self.spares.append(&mut reusable);
        Ok(())
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        if let Some(preparing) = self.preparing.take() {
            // Its result is of no use any more; the file is removed at the next start.
            let _ = preparing.join();
        }
    }
}

fn remove_spares(disk: &Disk, dir: &Path) -> Result<(), WalError> {
    for path in disk.list(dir).map_err(WalError::io("list", dir))? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("spare-") && name.ends_with(".tmp") {
            disk.remove(&path).map_err(WalError::io("remove", &path))?;
        }
    }
    Ok(())
}
