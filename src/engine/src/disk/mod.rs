//! The one way to the files: the operating system's, and in tests a simulated disk that fails and loses power.
//!
//! An enum instead of a trait object: outside tests it has one variant, so a call costs what the system call costs.

#[cfg(test)]
pub mod sim;

use std::{
    fs::{File, OpenOptions},
    io::{self, IoSliceMut, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    thread::JoinHandle,
};

use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// Where files are.
#[derive(Debug, Clone, Default)]
pub enum Disk {
    /// The operating system's file systems.
    #[default]
    Real,
    /// A simulated one.
    #[cfg(test)]
    Sim(std::sync::Arc<sim::SimDisk>),
}

/// An open file.
#[derive(Debug)]
pub enum DiskFile {
    Real(File),
    #[cfg(test)]
    Sim(sim::SimFile),
}

impl Disk {
    /// Makes a directory and those above it; their names are durable when it returns.
    pub fn make_dir(&self, dir: &Path) -> io::Result<()> {
        match self {
            Self::Real => {
                if dir.is_dir() {
                    return Ok(());
                }
                let parent = match dir.parent() {
                    Some(parent) if !parent.as_os_str().is_empty() => parent,
                    _ => Path::new("."),
                };
                self.make_dir(parent)?;
                match std::fs::create_dir(dir) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                    _ => {}
                }
                self.sync_dir(parent)
            }
            #[cfg(test)]
            Self::Sim(_) => Ok(()),
        }
    }

    /// All of a file.
    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        match self {
            Self::Real => std::fs::read(path),
            #[cfg(test)]
            Self::Sim(sim) => sim.read(path),
        }
    }

    /// Opens a file for reading.
    pub fn open(&self, path: &Path) -> io::Result<DiskFile> {
        match self {
            Self::Real => File::open(path).map(DiskFile::Real),
            #[cfg(test)]
            Self::Sim(sim) => sim.open(path).map(DiskFile::Sim),
        }
    }

    /// Opens a file that is there for reading and writing.
    pub fn open_to_write(&self, path: &Path) -> io::Result<DiskFile> {
        match self {
            Self::Real => OpenOptions::new().read(true).write(true).open(path).map(DiskFile::Real),
            #[cfg(test)]
            Self::Sim(sim) => sim.open(path).map(DiskFile::Sim),
        }
    }

    /// Makes an empty file, or empties the one that is there.
    pub fn create(&self, path: &Path) -> io::Result<DiskFile> {
        match self {
            Self::Real => File::create(path).map(DiskFile::Real),
            #[cfg(test)]
            Self::Sim(sim) => sim.create(path).map(DiskFile::Sim),
        }
    }

    /// Gives a file another name in its directory; a file that had that name is gone.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        match self {
            Self::Real => std::fs::rename(from, to),
            #[cfg(test)]
            Self::Sim(sim) => sim.rename(from, to),
        }
    }

    /// Removes a file.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        match self {
            Self::Real => std::fs::remove_file(path),
            #[cfg(test)]
            Self::Sim(sim) => sim.remove(path),
        }
    }

    /// Everything in a directory, in no order.
    pub fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        match self {
            Self::Real => std::fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path())).collect(),
            #[cfg(test)]
            Self::Sim(sim) => sim.list(dir),
        }
    }

    /// The length of a file in bytes.
    pub fn len(&self, path: &Path) -> io::Result<u64> {
        match self {
            Self::Real => std::fs::metadata(path).map(|metadata| metadata.len()),
            #[cfg(test)]
            Self::Sim(sim) => sim.read(path).map(|bytes| bytes.len() as u64),
        }
    }

    /// Makes names in a directory durable.
    pub fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        match self {
            Self::Real => File::open(dir).and_then(|handle| handle.sync_all()),
            #[cfg(test)]
            Self::Sim(sim) => sim.sync_dir(),
        }
    }

    /// Does work in a thread of its own. On a simulated disk it is done when this returns, by this thread: a seed then
    /// always means the same order of steps.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        let builder = std::thread::Builder::new().name(name.to_owned());
        match self {
            Self::Real => builder.spawn(work),
            #[cfg(test)]
            Self::Sim(_) => {
                let done = work();
                builder.spawn(|| done)
            }
        }
    }
}

impl DiskFile {
    /// Writes all bytes at an offset.
    pub fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self {
            Self::Real(file) => file.write_all_at(bytes, offset),
            #[cfg(test)]
            Self::Sim(file) => file.write_at(bytes, offset),
        }
    }

    /// Fills the buffer from an offset.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::Real(file) => file.read_exact_at(buffer, offset),
            #[cfg(test)]
            Self::Sim(file) => file.read_exact_at(buffer, offset),
        }
    }

    /// Fills the buffer from an offset without waiting for the disk. False if that cannot be done, as not everything is in the
    /// page cache; what is in the buffer then means nothing. Where the file system cannot tell it waits.
    pub fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> bool {
        match self {
            Self::Real(file) => {
                let slices = &mut [IoSliceMut::new(buffer)];
                match preadv2(file, slices, offset, ReadWriteFlags::NOWAIT) {
                    Ok(read) => read == buffer.len(),
                    Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                        file.read_exact_at(buffer, offset).is_ok()
                    }
                    Err(_) => false,
                }
            }
            #[cfg(test)]
            Self::Sim(_) => false,
        }
    }

    /// Makes the contents durable, and the length if it changed.
    pub fn sync_data(&self) -> io::Result<()> {
        match self {
            Self::Real(file) => file.sync_data(),
            #[cfg(test)]
            Self::Sim(file) => file.sync(),
        }
    }

    /// Makes contents and metadata durable.
    pub fn sync_all(&self) -> io::Result<()> {
        match self {
            Self::Real(file) => file.sync_all(),
            #[cfg(test)]
            Self::Sim(file) => file.sync(),
        }
    }

    /// The length in bytes.
    pub fn len(&self) -> io::Result<u64> {
        match self {
            Self::Real(file) => file.metadata().map(|metadata| metadata.len()),
            #[cfg(test)]
            Self::Sim(file) => Ok(file.len()),
        }
    }
}

impl Read for DiskFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Real(file) => file.read(buffer),
            #[cfg(test)]
            Self::Sim(file) => file.read_next(buffer),
        }
    }
}

impl Write for DiskFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Real(file) => file.write(bytes),
            #[cfg(test)]
            Self::Sim(file) => file.write_next(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
