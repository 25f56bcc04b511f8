//! Appending to the log, by one thread.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
};

use sharded_etcd_shard::with_causes;

use super::{
    IoHook, IoStep, Position, Recovered, WalError, frame,
    release::{self, Released, Releasing},
    segment::{self, Header},
};
use crate::{disk::Disk, values::ValueFile};

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

/// A record that is durable.
#[derive(Debug)]
pub struct Appended {
    /// Bytes written.
    pub bytes: u64,
    /// The segment, where values stay.
    pub(crate) file: Arc<ValueFile>,
    /// Where in it the buffer begins that was written.
    pub(crate) offset: u64,
}

/// A segment of the log.
pub(super) struct Segment {
    pub(super) first_sequence: u64,
    pub(super) path: PathBuf,
    /// None for one that nothing was read from.
    pub(super) file: Option<Arc<ValueFile>>,
}

/// The open log.
pub struct Wal {
    disk: Disk,
    dir: PathBuf,
    cluster_id: u64,
    segment_bytes: u64,
    hook: Option<IoHook>,
    /// The current segment last.
    segments: VecDeque<Segment>,
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
    /// Segments that are being given up.
    releasing: Option<Releasing>,
}

struct Current {
    file: Arc<ValueFile>,
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
        let (file, path) = (self.file.file(), self.file.path());
        file.write_all_at(&mark, self.offset).map_err(WalError::io("write", path))?;
        file.sync_data().map_err(WalError::io("sync", path))
    }
}

impl Wal {
    /// Goes on where recovery ended.
    pub fn open(
        disk: &Disk,
        dir: &Path,
        cluster_id: u64,
        segment_bytes: u64,
        mut recovered: Recovered,
        hook: Option<IoHook>,
    ) -> Result<Self, WalError> {
        remove_spares(disk, dir)?;
        let segments = recovered.segments.into_iter().map(|(first_sequence, path)| {
            let file = recovered.files.remove(&first_sequence);
            Segment { first_sequence, path, file }
        });
        let mut wal = Self {
            disk: disk.clone(),
            dir: dir.to_owned(),
            cluster_id,
            segment_bytes: segment_bytes.max(2 * segment::HEADER_BYTES as u64),
            hook,
            segments: segments.collect(),
            current: None,
            must_roll: false,
            last: recovered.last,
            is_sealed: recovered.is_sealed,
            spares: Vec::new(),
            spare_number: 0,
            preparing: None,
            releasing: None,
        };
        if let Some(Segment { first_sequence, path, file: Some(file) }) = wal.segments.back() {
            let mut block = vec![0; segment::HEADER_BYTES];
            file.file().read_exact_at(&mut block, 0).map_err(WalError::io("read", path))?;
            let capacity = file.file().len().map_err(WalError::io("inspect", path))?;
            let salt = Header::decode(&block, path)?.salt;
            let is_empty = *first_sequence == wal.last.sequence + 1;
            wal.current = Some(Current {
                file: Arc::clone(file),
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
        self.current.as_ref().map_or(&self.dir, |current| current.file.path())
    }

    /// Empties a buffer for a record; the caller appends the payload.
    pub fn begin(buffer: &mut Vec<u8>) {
        frame::begin(buffer);
    }

    /// Whether the buffer has a payload.
    pub fn has_payload(buffer: &[u8]) -> bool {
        frame::has_payload(buffer)
    }

    /// Writes one record and syncs it.
    pub fn append(&mut self, buffer: &mut Vec<u8>) -> Result<Appended, AppendError> {
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
                path: current.file.path().to_owned(),
                source: std::io::ErrorKind::FileTooLarge.into(),
            }));
        };
        let hook = self.hook.as_ref();
        let step = |step| hook.map_or(Ok(()), |hook| hook(step));
        step(IoStep::Write)
            .and_then(|()| current.file.file().write_all_at(buffer, current.offset))
            .map_err(|error| AppendError::Unknown(WalError::io("write", current.file.path())(error)))?;
        step(IoStep::Sync)
            .and_then(|()| current.file.file().sync_data())
            .map_err(|error| AppendError::Unknown(WalError::io("sync", current.file.path())(error)))?;
        let appended =
            Appended { bytes: frame_bytes, file: Arc::clone(&current.file), offset: current.offset };
        current.offset += frame_bytes;
        current.is_empty = false;
        self.last = Position { sequence, checksum: Some(checksum) };
        self.is_sealed = is_seal;
        if current.offset > current.capacity / 2 {
            self.prepare_spare();
        }
        Ok(appended)
    }

    /// Starts a new segment.
    fn roll(&mut self) -> Result<(), WalError> {
        self.must_roll = true;
        self.look_after_released();
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
        let (file, capacity) = segment::take_into_use(&self.disk, &self.dir, &spare, header)?;
        // Not before: a segment that says so and has no successor is refused.
        if let Some(full) = &self.current {
            full.mark_going_on()?;
        }
        self.must_roll = false;
        self.segments.push_back(Segment {
            first_sequence: header.first_sequence,
            path: file.path().to_owned(),
            file: Some(Arc::clone(&file)),
        });
        self.current = Some(Current {
            file,
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
        self.look_after_released();
        if !self.spares.is_empty() || self.preparing.is_some() {
            return;
        }
        let (path, bytes) = (self.next_spare_path(), self.next_segment_bytes());
        let disk = self.disk.clone();
        let work = move || segment::preallocate(&disk, &path, bytes).map(|()| path);
        // Without a thread the segment is made when it is needed.
        self.preparing = self.disk.spawn("engine-segment", work).ok();
    }

    /// Gives up the segments whose records are all at or below `sequence`, which a checkpoint holds. One that somebody still
    /// reads values from loses its name only.
    ///
    /// A thread does it: removing large files, and making that durable, can take longer than a write should wait. What cannot
    /// be removed is tried again the next time.
    pub fn release(&mut self, sequence: u64) {
        // The last time is long over; if it is not, there must not be more and more of them.
        self.wait_for_released();
        let mut segments = Vec::new();
        while self.segments.len() > 1 && self.segments[1].first_sequence <= sequence + 1 {
            let Some(segment) = self.segments.pop_front() else { break };
            segments.push(segment);
        }
        if segments.is_empty() {
            return;
        }
        let spares = (self.spares.len()..SPARES_MAX).map(|_| self.next_spare_path()).collect();
        match release::start(&self.disk, &self.dir, self.segment_bytes, segments, spares) {
            Ok(releasing) => self.releasing = Some(releasing),
            Err(released) => self.take_over(released),
        }
    }

    /// Looks whether the segments that were given up last are gone.
    fn look_after_released(&mut self) {
        if self.releasing.as_ref().is_some_and(Releasing::is_done) {
            self.wait_for_released();
        }
    }

    fn wait_for_released(&mut self) {
        if let Some(releasing) = self.releasing.take() {
            self.take_over(releasing.wait());
        }
    }

    fn take_over(&mut self, released: Released) {
        if let Some(error) = &released.error {
            let error = with_causes(error);
            tracing::error!(error, "old log segments are still there; they are removed with the next ones");
        }
        self.spares.extend(released.spares);
        for segment in released.left.into_iter().rev() {
            self.segments.push_front(segment);
        }
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        if let Some(preparing) = self.preparing.take() {
            // Its result is of no use any more; the file is removed at the next start.
            let _ = preparing.join();
        }
        self.wait_for_released();
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
