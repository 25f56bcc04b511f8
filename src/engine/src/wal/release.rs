//! Giving up segments that a checkpoint covers, beside the writer.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use parking_lot::Mutex;

use super::{WalError, segment::sync_dir, writer::Segment};
use crate::disk::Disk;

/// What became of segments.
#[derive(Default)]
pub(super) struct Released {
    /// Files that may be used again.
    pub(super) spares: Vec<PathBuf>,
    /// Segments that are still there, oldest first, because of the error.
    pub(super) left: Vec<Segment>,
    pub(super) error: Option<WalError>,
}

/// Segments on their way out.
pub(super) struct Releasing {
    is_done: Arc<AtomicBool>,
    thread: JoinHandle<Released>,
}

impl Releasing {
    pub(super) fn is_done(&self) -> bool {
        self.is_done.load(Ordering::Acquire)
    }

    pub(super) fn wait(self) -> Released {
        // A panic leaves files that the next start removes.
        self.thread.join().unwrap_or_default()
    }
}

/// Removes segments in a thread, oldest first. Those of `regular_bytes` that nobody reads from any more get the names of spares
/// instead, as long as there are some.
///
/// # Errors
/// If there is no thread to be had; all segments are left then.
pub(super) fn start(
    disk: &Disk,
    dir: &Path,
    regular_bytes: u64,
    segments: Vec<Segment>,
    spares: Vec<PathBuf>,
) -> Result<Releasing, Released> {
    let segments = Arc::new(Mutex::new(segments));
    let is_done = Arc::new(AtomicBool::new(false));
    let work = {
        let (disk, dir) = (disk.clone(), dir.to_owned());
        let (segments, is_done) = (Arc::clone(&segments), Arc::clone(&is_done));
        move || {
            let segments = std::mem::take(&mut *segments.lock());
            let released = give_up(&disk, &dir, regular_bytes, segments, spares);
            is_done.store(true, Ordering::Release);
            released
        }
    };
    match disk.spawn("engine-release", work) {
        Ok(thread) => Ok(Releasing { is_done, thread }),
        Err(error) => Err(Released {
            left: std::mem::take(&mut *segments.lock()),
            error: Some(WalError::io("start a thread to remove segments in", dir)(error)),
            ..Released::default()
        }),
    }
}

fn give_up(
    disk: &Disk,
    dir: &Path,
    regular_bytes: u64,
    segments: Vec<Segment>,
    spares: Vec<PathBuf>,
) -> Released {
    let mut released = Released::default();
    let mut spares = spares.into_iter().peekable();
    let mut segments = segments.into_iter();
    for segment in segments.by_ref() {
        let Segment { first_sequence, path, mut file } = segment;
        let is_regular = disk.len(&path).is_ok_and(|bytes| bytes == regular_bytes);
        let wants_spare = is_regular && spares.peek().is_some();
        if wants_spare {
            file = file.and_then(|file| Arc::try_unwrap(file).err());
        }
        // Nobody reads values from it any more, so that it may be written to.
        let is_unread = wants_spare && file.is_none();
        let done = match spares.next_if(|_| is_unread) {
            Some(spare) => disk
                .rename(&path, &spare)
                .map_err(WalError::io("rename", &path))
                .map(|()| released.spares.push(spare)),
            None => disk.remove(&path).map_err(WalError::io("remove", &path)),
        };
        if let Err(error) = done {
            released.error = Some(error);
            released.left.push(Segment { first_sequence, path, file });
            break;
        }
    }
    released.left.extend(segments);
    // As long as a file may come back under its old name, nothing may be written to it.
    if let Err(error) = sync_dir(disk, dir) {
        released.spares.clear();
        released.error.get_or_insert(error);
    }
    released
}
