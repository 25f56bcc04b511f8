//! A disk in memory that fails as disks and kernels do: short writes, EIO, ENOSPC, a disk that is full, and a loss of
//! power after which each sector and each name that was not synced is the old one or the new one.
//!
//! What a failed sync leaves behind differs by file system (Rebello et al., "Can Applications Recover from fsync
//! Failures?", USENIX ATC 2020), and the disk does any of it: the pages count as clean although some never reached the
//! platter, so that the next sync says nothing of them; and readers see either what was written, or what was there before.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use sharded_etcd_testkit::Dice;

/// What is written as a whole or not at all.
const SECTOR_BYTES: usize = 512;

#[derive(Debug)]
pub struct SimDisk(Mutex<State>);

#[derive(Debug)]
struct State {
    dice: Dice,
    /// One step in so many fails; 0 for none.
    error_one_in: u64,
    /// Steps until the process is dead.
    steps_left: u64,
    /// Bytes that all files together may have.
    capacity: u64,
    names: BTreeMap<PathBuf, u64>,
    stable_names: BTreeMap<PathBuf, u64>,
    /// Changes of names that were not synced.
    pending: Vec<NameChange>,
    files: BTreeMap<u64, Contents>,
    /// How many handles a file has: it is there for them also under no name.
    handles: BTreeMap<u64, usize>,
    next_file: u64,
}

#[derive(Debug, Clone)]
enum NameChange {
    Make(PathBuf, u64),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf, u64),
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            Self::Make(path, file) => drop(names.insert(path.clone(), *file)),
            Self::Remove(path) => drop(names.remove(path)),
            Self::Rename(from, to, file) => {
                if names.get(from) == Some(file) {
                    names.remove(from);
                }
                names.insert(to.clone(), *file);
            }
        }
    }
}

#[derive(Debug, Default)]
struct Contents {
    /// What readers see.
    cache: Vec<u8>,
    /// What is on the platter.
    stable: Vec<u8>,
    /// Sectors that the next sync writes.
    dirty: BTreeSet<usize>,
}

impl Contents {
    fn persist(&mut self, sector: usize) {
        let start = sector * SECTOR_BYTES;
        let end = (start + SECTOR_BYTES).min(self.cache.len());
        if start < end {
            self.stable.resize(self.stable.len().max(end), 0);
            self.stable[start..end].copy_from_slice(&self.cache[start..end]);
        }
    }

    /// Writes some of the dirty sectors; the others are forgotten.
    fn persist_some(&mut self, dice: &mut Dice) {
        // Often all or nothing, as most real crashes are.
        let mode = dice.below(4);
        for sector in std::mem::take(&mut self.dirty) {
            if mode == 0 || (mode > 1 && dice.one_in(2)) {
                self.persist(sector);
            }
        }
        if self.stable.len() != self.cache.len() && dice.one_in(2) {
            self.stable.resize(self.cache.len(), 0);
        }
    }
}

impl State {
    /// A step that changes something: dead, failing, or fine.
    fn step(&mut self) -> io::Result<()> {
        if self.steps_left == 0 {
            return Err(io::Error::other("the process is dead"));
        }
        self.steps_left -= 1;
        if self.steps_left == 0 {
            return Err(io::Error::other("the process died"));
        }
        if self.error_one_in > 0 && self.dice.one_in(self.error_one_in) {
            let kind = if self.dice.one_in(2) { io::ErrorKind::StorageFull } else { io::ErrorKind::Other };
            return Err(kind.into());
        }
        Ok(())
    }

    /// A step that only reads; it fails more seldom.
    fn read_step(&mut self) -> io::Result<()> {
        if self.error_one_in > 0 && self.dice.one_in(self.error_one_in.saturating_mul(4)) {
            return Err(io::Error::other("a sector cannot be read"));
        }
        Ok(())
    }

    /// Bytes that new parts of files may take.
    fn room(&self) -> u64 {
        let used: usize =
            self.names.values().filter_map(|file| self.files.get(file)).map(|file| file.cache.len()).sum();
        self.capacity.saturating_sub(used as u64)
    }

    /// Forgets files that have no name any more, now and after a loss of power.
    fn forget_removed(&mut self) {
        let Self { files, names, stable_names, pending, handles, .. } = self;
        if pending.is_empty() && files.len() > names.len() {
            let named: BTreeSet<u64> = names.values().chain(stable_names.values()).copied().collect();
            files.retain(|file, _| named.contains(file) || handles.contains_key(file));
        }
    }

    fn file(&self, path: &Path) -> io::Result<u64> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn contents(&mut self, file: u64) -> &mut Contents {
        self.files.entry(file).or_default()
    }
}

impl SimDisk {
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            dice: Dice::new(seed),
            error_one_in: 0,
            steps_left: u64::MAX,
            capacity: u64::MAX,
            names: BTreeMap::new(),
            stable_names: BTreeMap::new(),
            pending: Vec::new(),
            files: BTreeMap::new(),
            handles: BTreeMap::new(),
            next_file: 0,
        })))
    }

    /// How it behaves from now on: one step in `error_one_in` fails (0: none), and after `steps` steps nothing works.
    pub fn set(&self, error_one_in: u64, steps: u64) {
        let mut state = self.0.lock();
        state.error_one_in = error_one_in;
        state.steps_left = steps;
    }

    /// Leaves room for so many bytes in new parts of files, from now on.
    pub fn set_room(&self, bytes: u64) {
        let mut state = self.0.lock();
        state.capacity = u64::MAX;
        state.capacity = (u64::MAX - state.room()).saturating_add(bytes);
    }

    /// Takes the power away: what was not synced is there or not, sector by sector and name by name.
    pub fn lose_power(&self) {
        let mut state = self.0.lock();
        let State { dice, files, pending, names, stable_names, .. } = &mut *state;
        for contents in files.values_mut() {
            contents.persist_some(dice);
            contents.cache = contents.stable.clone();
        }
        // A journal keeps the order; not every file system has one.
        let changes = std::mem::take(pending);
        let in_order = dice.one_in(2);
        let kept = dice.below(changes.len() as u64 + 1) as usize;
        for (index, change) in changes.iter().enumerate() {
            if if in_order { index < kept } else { dice.one_in(2) } {
                change.apply(stable_names);
            }
        }
        *names = stable_names.clone();
        state.forget_removed();
    }

    /// All files, as readers see them.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let state = self.0.lock();
        state.names.iter().map(|(path, file)| (path.clone(), state.files[file].cache.clone())).collect()
    }

    /// A healthy disk with these files.
    pub fn with_files(seed: u64, files: BTreeMap<PathBuf, Vec<u8>>) -> Arc<Self> {
        let disk = Self::new(seed);
        {
            let mut state = disk.0.lock();
            for (path, bytes) in files {
                let file = state.next_file;
                state.next_file += 1;
                state.names.insert(path.clone(), file);
                state.stable_names.insert(path, file);
                let contents = Contents { cache: bytes.clone(), stable: bytes, dirty: BTreeSet::new() };
                state.files.insert(file, contents);
            }
        }
        disk
    }

    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut state = self.0.lock();
        state.read_step()?;
        let file = state.file(path)?;
        Ok(state.contents(file).cache.clone())
    }

    pub fn open(self: &Arc<Self>, path: &Path) -> io::Result<SimFile> {
        let file = self.0.lock().file(path)?;
        Ok(self.handle(file))
    }

    pub fn create(self: &Arc<Self>, path: &Path) -> io::Result<SimFile> {
        let mut state = self.0.lock();
        state.step()?;
        let file = match state.file(path) {
            Ok(file) => {
                let contents = state.contents(file);
                contents.cache.clear();
                contents.dirty.clear();
                file
            }
            Err(_) => {
                let file = state.next_file;
                state.next_file += 1;
                state.files.insert(file, Contents::default());
                let change = NameChange::Make(path.to_owned(), file);
                change.apply(&mut state.names);
                state.pending.push(change);
                file
            }
        };
        drop(state);
        Ok(self.handle(file))
    }

    fn handle(self: &Arc<Self>, file: u64) -> SimFile {
        *self.0.lock().handles.entry(file).or_default() += 1;
        SimFile { disk: Arc::clone(self), file, position: 0 }
    }

    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.step()?;
        let change = NameChange::Rename(from.to_owned(), to.to_owned(), state.file(from)?);
        change.apply(&mut state.names);
        state.pending.push(change);
        Ok(())
    }

    pub fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.file(path)?;
        state.step()?;
        let change = NameChange::Remove(path.to_owned());
        change.apply(&mut state.names);
        state.pending.push(change);
        Ok(())
    }

    pub fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let state = self.0.lock();
        Ok(state.names.keys().filter(|path| path.parent() == Some(dir)).cloned().collect())
    }

    pub fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        state.step()?;
        for change in std::mem::take(&mut state.pending) {
            change.apply(&mut state.stable_names);
        }
        state.forget_removed();
        Ok(())
    }
}

#[derive(Debug)]
pub struct SimFile {
    disk: Arc<SimDisk>,
    file: u64,
    position: usize,
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut state = self.disk.0.lock();
        if let Some(count) = state.handles.get_mut(&self.file) {
            *count -= 1;
            if *count == 0 {
                state.handles.remove(&self.file);
            }
        }
    }
}

impl SimFile {
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        let is_dead = state.steps_left == 0;
        let mut result = state.step();
        let start = offset as usize;
        let len = match &result {
            Ok(()) => {
                let end = start + bytes.len();
                let grows = end.saturating_sub(state.contents(self.file).cache.len());
                let lacking = if grows == 0 { 0 } else { (grows as u64).saturating_sub(state.room()) };
                if lacking > 0 {
                    result = Err(io::ErrorKind::StorageFull.into());
                }
                bytes.len().saturating_sub(lacking as usize)
            }
            // A process that is dead writes nothing; one that is just killed has written some of it, as has one whose
            // write fails.
            Err(_) if is_dead => 0,
            Err(_) => state.dice.below(bytes.len() as u64 + 1) as usize,
        };
        let contents = state.contents(self.file);
        contents.cache.resize(contents.cache.len().max(start + len), 0);
        contents.cache[start..start + len].copy_from_slice(&bytes[..len]);
        if len > 0 {
            contents.dirty.extend(start / SECTOR_BYTES..=(start + len - 1) / SECTOR_BYTES);
        }
        // The kernel writes in the background too, in any order.
        let State { dice, files, .. } = &mut *state;
        if let Some(contents) = files.get_mut(&self.file)
            && !contents.dirty.is_empty()
            && dice.one_in(8)
        {
            let nth = dice.below(contents.dirty.len() as u64) as usize;
            if let Some(sector) = contents.dirty.iter().nth(nth).copied() {
                contents.dirty.remove(&sector);
                contents.persist(sector);
            }
        }
        result
    }

    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        state.read_step()?;
        let start = offset as usize;
        let found = state.contents(self.file).cache.get(start..start + buffer.len());
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    pub fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        let result = state.step();
        let State { dice, files, steps_left, .. } = &mut *state;
        let contents = files.entry(self.file).or_default();
        match &result {
            Ok(()) => {
                for sector in std::mem::take(&mut contents.dirty) {
                    contents.persist(sector);
                }
                let len = contents.cache.len();
                contents.stable.resize(len, 0);
            }
            Err(_) if *steps_left == 0 => {}
            Err(_) => {
                contents.persist_some(dice);
                if dice.one_in(3) {
                    let len = contents.cache.len();
                    contents.cache.clone_from(&contents.stable);
                    contents.cache.resize(len, 0);
                }
            }
        }
        result
    }

    pub fn len(&self) -> u64 {
        self.disk.0.lock().contents(self.file).cache.len() as u64
    }

    pub fn read_next(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.disk.0.lock();
        state.read_step()?;
        let rest = state.contents(self.file).cache.get(self.position..).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        self.position += len;
        Ok(len)
    }

    pub fn write_next(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Sometimes less than asked for, and no error.
        let len = {
            let mut state = self.disk.0.lock();
            if state.dice.one_in(8) { 1 + state.dice.below(bytes.len() as u64) as usize } else { bytes.len() }
        };
        let len = len.min(bytes.len());
        self.write_at(&bytes[..len], self.position as u64)?;
        self.position += len;
        Ok(len)
    }
}
