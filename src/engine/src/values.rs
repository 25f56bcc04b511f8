//! Where the bytes of values are: in memory while they are small or new, else in the file that has them durably.
//!
//! A value that is longer than [`IN_MEMORY_BYTES_MAX`] stays in memory until its record is synced and for as long as it is
//! among the newest (see [`Recent`]); then only its place in the log is kept, and a reader reads it from there. A
//! checkpoint that has the value too becomes its place, so that the log can be given up.
//!
//! # Guarantees
//! - A checksum of each value is kept in memory, taken when the value arrived or when the file was read with all its
//!   checksums at the start: what was damaged since is an error that names file and byte, never data.
//! - A file stays open, and is not written to again, for as long as any version refers to it, also under no name.

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use crate::{
    disk::{Disk, DiskFile},
    mvcc::{Version, VersionRef},
    wal::WalError,
};

/// Values up to this length stay in memory: a place in a file would take as much.
pub(crate) const IN_MEMORY_BYTES_MAX: usize = 64;
/// Bytes of new values that stay in memory although they are in a file: watchers and readers ask for those most.
pub(crate) const RECENT_BYTES_MAX: usize = 4 << 20;
/// What a recent value takes beside its bytes, about.
const RECENT_OVERHEAD_BYTES: usize = 128;
/// Values that are no further apart in a file are read in one go: skipping as many bytes costs less than a system call.
const GAP_BYTES_MAX: u64 = 4096;
/// Bytes that are read in one go at most, unless one value is larger.
const RUN_BYTES_MAX: u64 = 256 << 10;
/// Values, and bytes of values, that are in memory at a time where all are gone through.
const WINDOW_VALUES_MAX: usize = 4096;
const WINDOW_BYTES_MAX: usize = 1 << 20;

/// A value cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ValueError {
    /// The file does not have it any more.
    #[error(
        "{} is damaged at byte {offset}: a value's checksum is wrong; restore the data directory from a copy",
        path.display()
    )]
    Damaged {
        /// The file, under the name that it had last.
        path: PathBuf,
        /// Where the value begins.
        offset: u64,
    },
    /// The operating system failed.
    #[error("cannot read {} at byte {offset}", path.display())]
    Io {
        /// The file, under the name that it had last.
        path: PathBuf,
        /// Where the value begins.
        offset: u64,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// A log segment or a checkpoint that versions refer to.
#[derive(Debug)]
pub struct ValueFile {
    file: DiskFile,
    path: PathBuf,
}

impl ValueFile {
    pub(crate) fn new(file: DiskFile, path: PathBuf) -> Arc<Self> {
        Arc::new(Self { file, path })
    }

    /// Opens a file that is only read.
    pub(crate) fn open(disk: &Disk, path: &Path) -> Result<Arc<Self>, WalError> {
        let file = disk.open(path).map_err(WalError::io("open", path))?;
        Ok(Self::new(file, path.to_owned()))
    }

    /// The open file.
    pub(crate) fn file(&self) -> &DiskFile {
        &self.file
    }

    /// Its name when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn read(&self, offset: u64, len: usize) -> Result<Bytes, ValueError> {
        let mut buffer = vec![0; len];
        match self.file.read_exact_at(&mut buffer, offset) {
            Ok(()) => Ok(buffer.into()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(self.damaged(offset)),
            Err(source) => Err(ValueError::Io { path: self.path.clone(), offset, source }),
        }
    }

    /// None if that would have to wait for the disk, or fails.
    fn read_cached(&self, offset: u64, len: usize) -> Option<Bytes> {
        let mut buffer = vec![0; len];
        self.file.read_cached_at(&mut buffer, offset).then(|| buffer.into())
    }

    fn damaged(&self, offset: u64) -> ValueError {
        ValueError::Damaged { path: self.path.clone(), offset }
    }
}

/// A value for a new version.
#[derive(Debug, Clone)]
pub struct Value {
    pub(crate) len: u32,
    /// CRC-32; 0 for one that never leaves memory.
    pub(crate) checksum: u32,
    pub(crate) place: Place,
}

impl Value {
    /// None, as tombstones have it.
    pub const EMPTY: Self = Self { len: 0, checksum: 0, place: Place::Empty };

    /// One in memory.
    pub fn in_memory(bytes: Bytes) -> Self {
        let Ok(len) = u32::try_from(bytes.len()) else {
            // No record can hold it, so it is never kept.
            return Self { len: u32::MAX, checksum: 0, place: Place::Memory(Box::new(bytes)) };
        };
        if len == 0 {
            return Self::EMPTY;
        }
        Self { len, checksum: checksum(&bytes), place: Place::Memory(Box::new(bytes)) }
    }

    /// One that begins at `offset` of a file, where it was just read from and found intact.
    pub(crate) fn stored(bytes: &[u8], file: &Arc<ValueFile>, offset: u64) -> Self {
        match (u32::try_from(bytes.len()), Place::stored(file, offset)) {
            (Ok(len), Some(place)) if bytes.len() > IN_MEMORY_BYTES_MAX => {
                Self { len, checksum: checksum(bytes), place }
            }
            _ => Self::in_memory(Bytes::copy_from_slice(bytes)),
        }
    }
}

impl From<Bytes> for Value {
    fn from(bytes: Bytes) -> Self {
        Self::in_memory(bytes)
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    if bytes.len() > IN_MEMORY_BYTES_MAX { crc32fast::hash(bytes) } else { 0 }
}

/// Where the bytes of a value are: 16 bytes, since there is one for each version.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    Empty,
    Memory(Box<Bytes>),
    /// The offset has 48 bits.
    Stored {
        offset_high: u16,
        offset_low: u32,
        file: Arc<ValueFile>,
    },
}

impl Place {
    /// None for an offset that no file of ours has.
    pub(crate) fn stored(file: &Arc<ValueFile>, offset: u64) -> Option<Self> {
        let offset_high = u16::try_from(offset >> 32).ok()?;
        Some(Self::Stored { offset_high, offset_low: offset as u32, file: Arc::clone(file) })
    }

    /// The bytes, or where to read them.
    pub(crate) fn look(&self) -> Look {
        match self {
            Self::Empty => Look::Here(Bytes::new()),
            Self::Memory(bytes) => Look::Here(Bytes::clone(bytes)),
            Self::Stored { offset_high, offset_low, file } => {
                let offset = u64::from(*offset_high) << 32 | u64::from(*offset_low);
                Look::There(Arc::clone(file), offset)
            }
        }
    }
}

/// What a look at a [`Place`] gave.
pub(crate) enum Look {
    Here(Bytes),
    There(Arc<ValueFile>, u64),
}

impl Version {
    /// The value; empty for a tombstone. May read a file.
    ///
    /// # Errors
    /// See [`ValueError`].
    pub fn value(&self) -> Result<Bytes, ValueError> {
        match self.look() {
            Look::Here(bytes) => Ok(bytes),
            Look::There(file, offset) => {
                let bytes = file.read(offset, self.value_len())?;
                if checksum(&bytes) == self.checksum() { Ok(bytes) } else { Err(file.damaged(offset)) }
            }
        }
    }
}

/// A value to read.
struct Job<'a> {
    /// Place in the answer.
    at: usize,
    version: &'a Version,
    file: Arc<ValueFile>,
    offset: u64,
}

impl Job<'_> {
    fn end(&self) -> u64 {
        self.offset + self.version.value_len() as u64
    }

    fn follows(&self, begin: &Job<'_>, end: u64) -> bool {
        Arc::ptr_eq(&self.file, &begin.file)
            && self.offset >= begin.offset
            && self.offset <= end.saturating_add(GAP_BYTES_MAX)
            && self.end() - begin.offset <= RUN_BYTES_MAX
    }
}

/// The values of many versions, in their order. Those that are near each other in a file are read in one go.
///
/// # Errors
/// See [`ValueError`]: nothing is given out if one cannot be read.
pub(crate) fn read_all<'a>(
    versions: impl ExactSizeIterator<Item = &'a Version>,
) -> Result<Vec<Bytes>, ValueError> {
    read_runs(versions, |file, offset, len| file.read(offset, len).map(Some)).map(Option::unwrap_or_default)
}

/// Like [`read_all`], but without waiting for the disk: None if not all of them are in memory or in the page cache, or
/// cannot be read.
///
/// # Errors
/// If one is damaged.
pub(crate) fn read_all_cached<'a>(
    versions: impl ExactSizeIterator<Item = &'a Version>,
) -> Result<Option<Vec<Bytes>>, ValueError> {
    read_runs(versions, |file, offset, len| Ok(file.read_cached(offset, len)))
}

/// None as soon as `read` gives none.
fn read_runs<'a>(
    versions: impl ExactSizeIterator<Item = &'a Version>,
    read: impl Fn(&ValueFile, u64, usize) -> Result<Option<Bytes>, ValueError>,
) -> Result<Option<Vec<Bytes>>, ValueError> {
    let mut values = Vec::with_capacity(versions.len());
    let mut jobs = Vec::new();
    for (at, version) in versions.enumerate() {
        values.push(match version.look() {
            Look::Here(bytes) => bytes,
            Look::There(file, offset) => {
                jobs.push(Job { at, version, file, offset });
                Bytes::new()
            }
        });
    }
    let order = |job: &Job<'_>| (Arc::as_ptr(&job.file), job.offset);
    if !jobs.is_sorted_by_key(order) {
        jobs.sort_unstable_by_key(order);
    }
    let mut rest = jobs.as_slice();
    while let Some(begin) = rest.first() {
        let mut end = begin.end();
        let mut count = 1;
        while let Some(next) = rest.get(count).filter(|next| next.follows(begin, end)) {
            end = end.max(next.end());
            count += 1;
        }
        let (run, later) = rest.split_at(count);
        rest = later;
        let Some(bytes) = read(&begin.file, begin.offset, (end - begin.offset) as usize)? else {
            return Ok(None);
        };
        for job in run {
            let from = (job.offset - begin.offset) as usize;
            let value = bytes.slice(from..from + job.version.value_len());
            if checksum(&value) != job.version.checksum() {
                return Err(job.file.damaged(job.offset));
            }
            values[job.at] = value;
        }
    }
    Ok(Some(values))
}

/// How many of these versions to read at a time where all are gone through; at least one.
pub(crate) fn window(versions: &[VersionRef]) -> usize {
    let mut bytes = 0;
    let count = versions.iter().take(WINDOW_VALUES_MAX).take_while(|version| {
        let fits = bytes <= WINDOW_BYTES_MAX;
        bytes += version.value_len();
        fits
    });
    count.count()
}

/// Values that are in a file, and stay in memory for a while all the same: the newest few MiB.
#[derive(Debug)]
pub(crate) struct Recent {
    /// Oldest first, each with where it is durable.
    values: VecDeque<(VersionRef, Arc<ValueFile>, u64)>,
    bytes: usize,
    bytes_max: usize,
}

impl Recent {
    /// None yet; they will take so many bytes at most.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { values: VecDeque::new(), bytes: 0, bytes_max }
    }

    fn weight(version: &Version) -> usize {
        version.value_len() + RECENT_OVERHEAD_BYTES
    }

    /// Adds one that is durable now, and takes older ones out of memory.
    pub(crate) fn add(&mut self, version: VersionRef, file: &Arc<ValueFile>, offset: u64) {
        self.bytes += Self::weight(&version);
        self.values.push_back((version, Arc::clone(file), offset));
        while self.bytes > self.bytes_max
            && let Some((version, file, offset)) = self.values.pop_front()
        {
            self.bytes -= Self::weight(&version);
            version.settle(&file, offset);
        }
    }

    /// Forgets those that a checkpoint has taken out of memory, so that their segments can be used again.
    pub(crate) fn forget_moved(&mut self) {
        self.values.retain(|(version, _, _)| version.is_in_memory());
        self.bytes = self.values.iter().map(|(version, _, _)| Self::weight(version)).sum();
    }
}

/// Versions in one piece of [`Moved`]: pieces of ordinary size are used again by the allocator, one of many MiB is not.
const MOVED_PIECE: usize = 1024;

/// Versions and where a new file has their values, to be said once that file is durable.
#[derive(Debug, Default)]
pub(crate) struct Moved(Vec<Vec<(VersionRef, u64)>>);

impl Moved {
    /// Remembers where a value begins; small ones stay in memory.
    pub(crate) fn add(&mut self, version: &VersionRef, offset: u64) {
        if version.value_len() <= IN_MEMORY_BYTES_MAX {
            return;
        }
        match self.0.last_mut().filter(|piece| piece.len() < MOVED_PIECE) {
            Some(piece) => piece.push((VersionRef::clone(version), offset)),
            None => {
                let mut piece = Vec::with_capacity(MOVED_PIECE);
                piece.push((VersionRef::clone(version), offset));
                self.0.push(piece);
            }
        }
    }

    /// From now on the values are read from this file. Readers wait for one version at a time at most.
    pub(crate) fn apply(self, file: &Arc<ValueFile>) {
        for (version, offset) in self.0.into_iter().flatten() {
            version.move_to(file, offset);
        }
    }
}
