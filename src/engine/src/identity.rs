//! Who owns a data directory: its lock, and the ids that never change.

use std::{
    fs::{File, TryLockError},
    io::{ErrorKind, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::{
    disk::Disk,
    engine::EngineError,
    wal::{WalError, sync_dir},
};

/// Version of the directory's format; a newer one is refused.
const FORMAT: u32 = 2;
/// The one without a checksum.
const FORMAT_BARE: u32 = 1;
const FILE: &str = "identity.json";
const LOCK: &str = "LOCK";

/// The ids of a store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Identity {
    format: u32,
    /// Name of the member that made the directory.
    name: String,
    pub(crate) cluster_id: u64,
    pub(crate) member_id: u64,
    /// Whether the log was made: from then on a directory without one has lost its data.
    pub(crate) has_log: bool,
    /// CRC-32 of the others, from format 2 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    checksum: Option<u32>,
}

impl Identity {
    /// A new one: ids that are not given are chosen at random.
    pub(crate) fn chosen(name: &str, cluster_id: Option<u64>) -> Self {
        let nonzero = || rand::random_range(1..=u64::MAX);
        Self {
            format: FORMAT,
            name: name.to_owned(),
            cluster_id: cluster_id.unwrap_or_else(nonzero),
            member_id: nonzero(),
            has_log: false,
            checksum: None,
        }
    }

    fn checksum(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(self.name.as_bytes());
        hasher.update(&self.cluster_id.to_le_bytes());
        hasher.update(&self.member_id.to_le_bytes());
        hasher.update(&[u8::from(self.has_log)]);
        hasher.finalize()
    }
}

/// Makes the directory if needed and takes its lock, which lives as long as the file handle.
/// A simulated disk has none.
pub(crate) fn lock(disk: &Disk, dir: &Path) -> Result<Option<File>, EngineError> {
    disk.make_dir(dir).map_err(WalError::io("make", dir))?;
    #[cfg(test)]
    if let Disk::Sim(_) = disk {
        return Ok(None);
    }
    let path = dir.join(LOCK);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(WalError::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(EngineError::Locked { dir: dir.to_owned() }),
        Err(TryLockError::Error(error)) => Err(WalError::io("lock", &path)(error).into()),
    }
}

/// Reads the identity of a directory that has one.
pub(crate) fn load(disk: &Disk, dir: &Path) -> Result<Identity, EngineError> {
    let path = dir.join(FILE);
    let text = disk.read(&path).map_err(WalError::io("read", &path))?;
    check(&path, &text, None)
}

/// Reads the directory's identity, or gives an empty directory one.
pub(crate) fn load_or_create(
    disk: &Disk,
    dir: &Path,
    name: &str,
    cluster_id: Option<u64>,
) -> Result<Identity, EngineError> {
    let path = dir.join(FILE);
    match disk.read(&path) {
        Ok(text) => check(&path, &text, cluster_id),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            refuse_orphans(disk, dir, &path)?;
            create(disk, dir, &path, name, cluster_id)
        }
        Err(error) => Err(WalError::io("read", &path)(error).into()),
    }
}

fn check(path: &Path, text: &[u8], cluster_id: Option<u64>) -> Result<Identity, EngineError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let malformed = |source| EngineError::Identity { path: path.to_owned(), source };
    // The format first: a newer file may have other fields.
    let Format { format } = serde_json::from_slice(text).map_err(malformed)?;
    if format > FORMAT {
        return Err(WalError::Newer { path: path.to_owned(), found: format }.into());
    }
    let identity: Identity = serde_json::from_slice(text).map_err(malformed)?;
    let intact = match identity.format {
        FORMAT_BARE => identity.checksum.is_none(),
        FORMAT => identity.checksum == Some(identity.checksum()),
        _ => false,
    };
    if !intact {
        let reason = "its checksum is wrong";
        return Err(WalError::Corrupt { path: path.to_owned(), offset: 0, reason }.into());
    }
    match cluster_id {
        Some(expected) if expected != identity.cluster_id => {
            Err(WalError::Foreign { path: path.to_owned(), found: identity.cluster_id, expected }.into())
        }
        _ => Ok(identity),
    }
}

fn create(
    disk: &Disk,
    dir: &Path,
    path: &Path,
    name: &str,
    cluster_id: Option<u64>,
) -> Result<Identity, EngineError> {
    require_empty(disk, dir)?;
    let identity = Identity::chosen(name, cluster_id);
    store(disk, dir, path, &identity)?;
    Ok(identity)
}

/// Refuses a directory with anything in it that a new data directory has not.
pub(crate) fn require_empty(disk: &Disk, dir: &Path) -> Result<(), EngineError> {
    for entry in disk.list(dir).map_err(WalError::io("list", dir))? {
        let file = entry.file_name().unwrap_or_default();
        // A half-written identity from a start that was interrupted, our lock, and what mkfs leaves behind.
        if file != LOCK && file != "lost+found" && file != "identity.tmp" {
            return Err(EngineError::NotEmpty {
                dir: dir.to_owned(),
                file: file.to_string_lossy().into_owned(),
            });
        }
    }
    Ok(())
}

/// Writes the identity of a directory that was made by other means than opening it.
pub(crate) fn save(disk: &Disk, dir: &Path, identity: &Identity) -> Result<(), EngineError> {
    store(disk, dir, &dir.join(FILE), identity)
}

/// Notes that the log was made.
pub(crate) fn set_has_log(disk: &Disk, dir: &Path, mut identity: Identity) -> Result<(), EngineError> {
    identity.has_log = true;
    store(disk, dir, &dir.join(FILE), &identity)
}

fn store(disk: &Disk, dir: &Path, path: &Path, identity: &Identity) -> Result<(), EngineError> {
    let identity = Identity { format: FORMAT, checksum: Some(identity.checksum()), ..identity.clone() };
    let text = serde_json::to_vec_pretty(&identity)
        .map_err(|source| EngineError::Identity { path: path.to_owned(), source })?;
    let temporary = dir.join("identity.tmp");
    disk.create(&temporary)
        .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
        .map_err(WalError::io("write", &temporary))?;
    disk.rename(&temporary, path).map_err(WalError::io("rename", &temporary))?;
    sync_dir(disk, dir)?;
    Ok(())
}

/// Refuses a directory that has our data, and has lost the file that says whose they are.
fn refuse_orphans(disk: &Disk, dir: &Path, path: &Path) -> Result<(), EngineError> {
    let is_ours = |name: &str| {
        (name.starts_with("wal-") && name.ends_with(".log"))
            || (name.starts_with("checkpoint-") && name.ends_with(".db"))
    };
    let files = disk.list(dir).map_err(WalError::io("list", dir))?;
    if files.iter().any(|file| file.file_name().is_some_and(|name| is_ours(&name.to_string_lossy()))) {
        let reason = "it is missing, and the directory has data";
        return Err(WalError::Corrupt { path: path.to_owned(), offset: 0, reason }.into());
    }
    Ok(())
}
