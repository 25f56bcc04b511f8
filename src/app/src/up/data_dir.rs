//! The data folder of `up`: one lock, one file that says what is in it, and a folder for meta and for each shard.
//!
//! ```text
//! DIR/LOCK            held by the running `up`, with its process id in it
//! DIR/topology.json   [`State`]: identity, engine, and which shard is in which folder
//! DIR/routing.json    for proxies and shard managers of their own process
//! DIR/meta            the engine's data
//! DIR/shard-3         the engine's data, first incarnation
//! DIR/shard-3-1       second incarnation: shard-3 had left, and came back empty
//! ```
//!
//! `topology.json` is written before a folder is made and before one is removed, so whatever moment the process is
//! killed at, the next start knows what each folder is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use sharded_etcd_core::records::{Record, RecordError};
use sharded_etcd_crd::routing::Engine;

use crate::files::{self, FileError};

const LOCK: &str = "LOCK";
/// How long the end of a killed process is waited for, and how often is looked.
pub(super) const LOCK_PATIENCE: Duration = Duration::from_secs(3);
pub(super) const LOCK_LOOK: Duration = Duration::from_millis(20);
const STATE: &str = "topology.json";
/// What may be in a folder that is otherwise empty: our lock, the rest of a first start, and what ext4 puts there.
const NOT_FOREIGN: &[&str] = &[LOCK, "topology.json.tmp", "lost+found"];

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another `up` runs on it.
    #[error(
        "data folder {} is in use by process {pid}: stop that one first, or give another folder with --data-dir",
        path.display()
    )]
    InUse {
        /// The folder.
        path: PathBuf,
        /// The other process, if it has said so.
        pid: String,
    },
    /// It holds something else.
    #[error(
        "{} holds {found}, but no {STATE}: it is not a data folder of sharded-etcd, give an empty or a new one with --data-dir",
        path.display()
    )]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// One thing that is in it.
        found: String,
    },
    /// It is a file.
    #[error("{} is not a folder: give another one with --data-dir", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// `topology.json` cannot be used.
    #[error("data folder {} cannot be used", path.display())]
    State {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: RecordError,
    },
}

/// Loopback ports of an etcd process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// Client port.
    pub client: u16,
    /// Peer port.
    pub peer: u16,
}

/// One engine: meta's, or a shard's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Incarnation, from 0.
    pub incarnation: u32,
    /// It is part of the topology: its folder must be there, or data are lost.
    #[serde(default)]
    pub has_data: bool,
    /// Where its etcd listens; absent for the embedded engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Ports>,
}

/// What a data folder holds: the contents of `topology.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Identity of the topology.
    pub uid: String,
    /// The cluster id that clients see.
    pub cluster_id: u64,
    /// What answers as a shard.
    pub engine: Engine,
    /// `metadata.name` of the file, once one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Shards wanted last, for a start without a file and without `--shards`.
    pub shards_wanted: u32,
    /// `spec.keyspace.delimiter`, which cannot change any more.
    pub delimiter: String,
    /// The topology is served, or was: meta and the shards have data that are nowhere else.
    pub bootstrapped: bool,
    /// Meta.
    pub meta: Member,
    /// The shards that exist, by name.
    pub shards: BTreeMap<String, Member>,
    /// The incarnation that a shard of that name gets when it is made; 0 if absent.
    #[serde(default)]
    pub next_incarnations: BTreeMap<String, u32>,
    /// Names of folders whose shards have left, to be removed.
    #[serde(default)]
    pub leftovers: BTreeSet<String>,
}

impl Record for State {
    const WHAT: &'static str = "topology.json";
}

impl State {
    /// The name of the folder of an engine.
    pub fn folder(name: &str, incarnation: u32) -> String {
        if incarnation == 0 { name.to_owned() } else { format!("{name}-{incarnation}") }
    }

    /// Notes a shard that is to exist; true if it is new.
    pub fn add_shard(&mut self, name: &str) -> bool {
        if self.shards.contains_key(name) {
            return false;
        }
        let incarnation = self.next_incarnations.get(name).copied().unwrap_or(0);
        self.shards.insert(name.to_owned(), Member { incarnation, ..Member::default() });
        true
    }

    /// Notes that a shard has left: its folder is left over, and the next shard of that name is another incarnation.
    pub fn remove_shard(&mut self, name: &str) {
        if let Some(member) = self.shards.remove(name) {
            self.leftovers.insert(Self::folder(name, member.incarnation));
            self.next_incarnations.insert(name.to_owned(), member.incarnation + 1);
        }
    }
}

/// A locked data folder.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Locks the folder, which is made if it is not there, and reads what it holds: nothing, if it is new.
    ///
    /// # Errors
    /// See [`DataDirError`]. Nothing is changed in a folder that is not ours.
    pub fn open(path: &Path) -> Result<(Self, Option<State>), DataDirError> {
        if path.exists() && !path.is_dir() {
            return Err(DataDirError::NotAFolder { path: path.to_owned() });
        }
        fs::create_dir_all(path).map_err(FileError::of("create", path))?;
        // Absolute, as children and the search for their orphans go by it.
        let path = path.canonicalize().map_err(FileError::of("find", path))?;
        refuse_foreign(&path)?;
        let lock = lock(&path)?;
        // What `up` was there a moment ago may have written it between.
        let state = read_state(&path)?;
        if state.is_none() {
            refuse_foreign(&path)?;
        }
        Ok((Self { path, _lock: lock }, state))
    }

    /// The folder, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of an engine.
    pub fn engine_path(&self, name: &str, incarnation: u32) -> PathBuf {
        self.path.join(State::folder(name, incarnation))
    }

    /// Replaces `topology.json`.
    ///
    /// # Errors
    /// If it cannot be written; the old one is still there then.
    pub fn save(&self, state: &State) -> Result<(), FileError> {
        let value: serde_json::Value =
            serde_json::from_slice(&state.encode()).expect("a record is JSON that was just written");
        let mut text = serde_json::to_string_pretty(&value).expect("plain data serialises");
        text.push('\n');
        files::replace(&self.path.join(STATE), text.as_bytes())
    }

    /// Removes the folders of shards that have left, and forgets them.
    ///
    /// # Errors
    /// If one cannot be removed; it is tried again at the next start.
    pub fn remove_leftovers(&self, state: &mut State) -> Result<(), FileError> {
        if state.leftovers.is_empty() {
            return Ok(());
        }
        for name in &state.leftovers {
            self.remove_engine_folder(name)?;
        }
        state.leftovers.clear();
        self.save(state)
    }

    /// Removes the data of one engine, by the name of its folder.
    ///
    /// # Errors
    /// If it is there and cannot be removed.
    pub fn remove_engine_folder(&self, name: &str) -> Result<(), FileError> {
        let folder = self.path.join(name);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(FileError::of("remove", &folder)(error))
            }
            _ => Ok(()),
        }
    }
}

fn refuse_foreign(path: &Path) -> Result<(), DataDirError> {
    if path.join(STATE).exists() {
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(FileError::of("read", path))? {
        let name = entry.map_err(FileError::of("read", path))?.file_name();
        if !NOT_FOREIGN.iter().any(|known| name == *known) {
            return Err(DataDirError::Foreign {
                path: path.to_owned(),
                found: name.to_string_lossy().into_owned(),
            });
        }
    }
    Ok(())
}

fn lock(path: &Path) -> Result<File, DataDirError> {
    let lock = path.join(LOCK);
    let mut file = File::options()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .open(&lock)
        .map_err(FileError::of("open", &lock))?;
    let started = Instant::now();
    let locked = loop {
        match file.try_lock() {
            // A process that was killed a moment ago holds it until the system has closed its files.
            #[allow(clippy::disallowed_methods, reason = "nothing else runs yet")]
            Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(LOCK_LOOK)
            }
            outcome => break outcome,
        }
    };
    match locked {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            let pid = if pid.trim().is_empty() { "(unknown)".to_owned() } else { pid.trim().to_owned() };
            return Err(DataDirError::InUse { path: path.to_owned(), pid });
        }
        Err(TryLockError::Error(error)) => return Err(FileError::of("lock", &lock)(error).into()),
    }
    let written = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .and_then(|()| file.flush());
    written.map_err(FileError::of("write", &lock))?;
    Ok(file)
}

fn read_state(path: &Path) -> Result<Option<State>, DataDirError> {
    let file = path.join(STATE);
    let text = match fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::of("read", &file)(error).into()),
    };
    State::decode(&text).map(Some).map_err(|source| DataDirError::State { path: path.to_owned(), source })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            uid: "u1".into(),
            cluster_id: u64::MAX,
            engine: Engine::Etcd,
            name: Some("demo".into()),
            shards_wanted: 2,
            delimiter: "/".into(),
            bootstrapped: true,
            meta: Member { ports: Some(Ports { client: 1, peer: 2 }), ..Member::default() },
            shards: BTreeMap::from([("shard-0".into(), Member::default())]),
            next_incarnations: BTreeMap::new(),
            leftovers: BTreeSet::new(),
        }
    }

    #[test]
    fn is_made_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let (dir, before) = DataDir::open(&path).unwrap();
        assert_eq!(before, None);
        dir.save(&state()).unwrap();
        drop(dir);
        assert_eq!(DataDir::open(&path).unwrap().1, Some(state()));
    }

    #[test]
    fn a_second_user_is_told_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let (_first, _) = DataDir::open(folder.path()).unwrap();
        let error = DataDir::open(folder.path()).unwrap_err();
        let expected = format!("in use by process {}", std::process::id());
        assert!(error.to_string().contains(&expected), "{error}");
    }

    #[test]
    fn a_foreign_folder_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.tex"), "x").unwrap();
        let error = DataDir::open(folder.path()).unwrap_err();
        assert!(matches!(&error, DataDirError::Foreign { found, .. } if found == "thesis.tex"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing was put into it");
    }

    #[test]
    fn a_file_is_no_folder() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("f");
        fs::write(&file, "x").unwrap();
        assert!(matches!(DataDir::open(&file), Err(DataDirError::NotAFolder { .. })));
    }

    #[test]
    fn a_newer_or_damaged_state_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(STATE);
        let newer = String::from_utf8(state().encode().to_vec()).unwrap().replace("\"v\":1", "\"v\":9");
        for (text, expected) in [(newer.as_str(), "format version 9"), ("{", "not readable")] {
            fs::write(&file, text).unwrap();
            let error = DataDir::open(folder.path()).unwrap_err();
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains(expected) && source.contains("topology.json"), "{source}");
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
    }

    #[test]
    fn a_shard_that_comes_back_is_another_incarnation() {
        let mut state = state();
        assert!(!state.add_shard("shard-0"));
        assert!(state.add_shard("shard-1"));
        state.remove_shard("shard-1");
        assert_eq!(state.leftovers, BTreeSet::from(["shard-1".into()]));
        assert!(state.add_shard("shard-1"));
        assert_eq!(state.shards["shard-1"].incarnation, 1);
        state.remove_shard("shard-1");
        assert!(state.leftovers.contains("shard-1-1"));
    }

    #[test]
    fn leftovers_are_removed_also_after_a_crash() {
        let folder = tempfile::tempdir().unwrap();
        let (dir, _) = DataDir::open(folder.path()).unwrap();
        let mut state = state();
        state.remove_shard("shard-0");
        fs::create_dir_all(dir.engine_path("shard-0", 0).join("wal")).unwrap();
        dir.save(&state).unwrap();
        drop(dir);

        let (dir, state) = DataDir::open(folder.path()).unwrap();
        let mut state = state.unwrap();
        dir.remove_leftovers(&mut state).unwrap();
        assert!(!dir.engine_path("shard-0", 0).exists());
        dir.remove_leftovers(&mut state).unwrap();
        drop(dir);
        assert!(DataDir::open(folder.path()).unwrap().1.unwrap().leftovers.is_empty());
    }
}
