//! A data directory from a snapshot, an engine's or an etcd's.
//!
//! # Guarantees
//! The snapshot is read and checked to its end before anything is written. The identity, without which a directory is
//! refused, is written last: a restore that was interrupted never looks complete.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use prost::Message;
use sha2::{Digest, Sha256};
use sharded_etcd_etcd_api::messages as pb;

use super::{
    SECTOR_BYTES, SHA256_BYTES,
    records::{self, LeaseRecord},
};
use crate::{
    bolt::{BoltError, Reader},
    checkpoint,
    disk::Disk,
    engine::EngineError,
    identity,
    mvcc::{Alarm, Restore, Store, StoredVersion},
    wal::WalError,
};

/// What to restore, and where to.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// The directory; made if it is not there, refused if there is anything in it.
    pub data_dir: PathBuf,
    /// Name of the member.
    pub name: String,
    /// Take a file that has no checksum behind it: a copy of the database of an etcd that does not run.
    pub skip_hash_check: bool,
    /// How many revisions the store goes on after the newest one of the snapshot, all of them compacted, so that
    /// clients that saw later ones than the snapshot has never see a revision twice; 0 to go on where it ends.
    pub bump_revision: u64,
}

/// What was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// The newest revision.
    pub revision: i64,
    /// The revision of the compaction, -1 for none.
    pub compact_revision: i64,
    /// Keys that have a version which is kept, deleted ones included.
    pub keys: usize,
    /// Leases.
    pub leases: usize,
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The snapshot cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The snapshot.
        path: PathBuf,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// There is no checksum behind the database.
    #[error(
        "{} has no checksum; if it is a copy of the database of an etcd that does not run, add --skip-hash-check",
        path.display()
    )]
    NoChecksum {
        /// The snapshot.
        path: PathBuf,
    },
    /// The checksum is wrong.
    #[error("{} is damaged: its SHA-256 is wrong; take another snapshot", path.display())]
    Checksum {
        /// The snapshot.
        path: PathBuf,
    },
    /// The database is damaged, or none.
    #[error(transparent)]
    Database(#[from] BoltError),
    /// The database has something that makes no sense.
    #[error("{} cannot be restored: {reason}", path.display())]
    Contents {
        /// The snapshot.
        path: PathBuf,
        /// What it is.
        reason: String,
    },
    /// The directory cannot be written, or has something in it.
    #[error(transparent)]
    Directory(#[from] EngineError),
    /// A file of the directory cannot be written.
    #[error(transparent)]
    Files(#[from] WalError),
}

/// Makes a data directory from a snapshot.
///
/// Cluster and member get new ids, as with etcd's own restore. Users and roles are refused, since the engine has none.
///
/// # Errors
/// See [`RestoreError`]. If the directory was begun by then, what is in it is refused by everything but its removal.
pub fn restore(snapshot: &Path, options: &RestoreOptions) -> Result<Restored, RestoreError> {
    // Beforehand, as reading may take long; and again with the lock in hand.
    if options.data_dir.exists() {
        identity::require_empty(&Disk::Real, &options.data_dir)?;
    }
    let bytes = database_bytes(snapshot, options.skip_hash_check)?;
    let contents = Contents::read(snapshot, bytes)?;
    let store = contents.store(options.bump_revision).map_err(|reason| unusable(snapshot, reason))?;
    write(&store, options)?;
    Ok(Restored {
        revision: store.revision(),
        compact_revision: store.compact_revision(),
        keys: store.chains().count(),
        leases: store.leases().count(),
    })
}

fn unusable(path: &Path, reason: impl Into<String>) -> RestoreError {
    RestoreError::Contents { path: path.to_owned(), reason: reason.into() }
}

/// The length of the database, once the checksum behind it was checked.
fn database_bytes(path: &Path, skip_hash_check: bool) -> Result<u64, RestoreError> {
    let read = |source| RestoreError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(read)?;
    let bytes = file.metadata().map_err(read)?.len();
    if bytes % SECTOR_BYTES != SHA256_BYTES {
        return if skip_hash_check {
            Ok(bytes)
        } else {
            Err(RestoreError::NoChecksum { path: path.to_owned() })
        };
    }
    let bytes = bytes - SHA256_BYTES;
    if skip_hash_check {
        return Ok(bytes);
    }
    let mut sum = Sha256::new();
    io::copy(&mut (&mut file).take(bytes), &mut sum).map_err(read)?;
    let mut expected = [0; SHA256_BYTES as usize];
    file.read_exact(&mut expected).map_err(read)?;
    if sum.finalize().as_slice() == expected {
        Ok(bytes)
    } else {
        Err(RestoreError::Checksum { path: path.to_owned() })
    }
}

/// What a database holds, as far as the engine has it.
#[derive(Debug, Default)]
struct Contents {
    /// By revision, with the key of each.
    versions: Vec<(Bytes, StoredVersion)>,
    /// The revision of a record without a version, which etcd's restore leaves where it bumps revisions.
    bumped: i64,
    leases: Vec<LeaseRecord>,
    alarms: BTreeSet<Alarm>,
    /// The latest compaction, also one that was not finished; -1 for none.
    compacted: Option<i64>,
    applied: u64,
}

impl Contents {
    fn read(path: &Path, bytes: u64) -> Result<Self, RestoreError> {
        let mut reader = Reader::open(path, bytes)?;
        let mut contents = Self::default();
        let mut has_keys = false;
        let (mut auth_enabled, mut has_users) = (false, false);
        for bucket in reader.buckets()? {
            let name = bucket.name.clone();
            reader.pairs(&bucket, |key, value| {
                match name.as_slice() {
                    b"key" => contents.version(key, value)?,
                    b"meta" => contents.meta(key, value)?,
                    b"lease" => contents.lease(key, value)?,
                    b"alarm" => contents.alarm(key)?,
                    b"auth" if key == records::AUTH_ENABLED => auth_enabled = value == [1],
                    b"authUsers" | b"authRoles" => has_users = true,
                    // The members and the state of a cluster that is not restored.
                    _ => {}
                }
                Ok(())
            })?;
            has_keys |= name == b"key";
        }
        if !has_keys {
            return Err(unusable(path, "it has no keys: it is a database of something else"));
        }
        if auth_enabled || has_users {
            let reason = "it has users or roles, which the engine has not: its data would be open to everybody; \
                          remove them before the snapshot is taken";
            return Err(unusable(path, reason));
        }
        Ok(contents)
    }

    fn version(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let (revision, is_tombstone) = match key.len() {
            18 if key[17] == b't' => (&key[..17], true),
            17 => (key, false),
            _ => return Err("a revision is malformed"),
        };
        let mod_revision = records::main_revision(revision).ok_or("a revision is malformed")?;
        let sub = revision[9..].try_into().map_or(0, u64::from_be_bytes);
        let sub = u32::try_from(sub).map_err(|_| "a revision has too many changes")?;
        if value.is_empty() {
            self.bumped = mod_revision;
            return Ok(());
        }
        let pair = pb::KeyValue::decode(value).map_err(|_| "a version of a key is malformed")?;
        let is_sound = if is_tombstone {
            pair.mod_revision == 0 && pair.version == 0
        } else {
            pair.mod_revision == mod_revision
                && pair.version > 0
                && pair.create_revision > 0
                && pair.create_revision <= mod_revision
        };
        if pair.key.is_empty() || !is_sound {
            return Err("a version of a key contradicts its revision");
        }
        let version = StoredVersion {
            value: pair.value.into(),
            create_revision: pair.create_revision,
            mod_revision,
            version: pair.version,
            lease: pair.lease,
            sub,
        };
        self.versions.push((pair.key, version));
        Ok(())
    }

    fn meta(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        match key {
            records::CONSISTENT_INDEX => {
                self.applied = value
                    .try_into()
                    .map(u64::from_be_bytes)
                    .map_err(|_| "the consistent index is malformed")?;
            }
            records::SCHEDULED_COMPACTION | records::FINISHED_COMPACTION => {
                let revision = records::main_revision(value).ok_or("the compaction is malformed")?;
                self.compacted = self.compacted.max(Some(revision));
            }
            _ => {}
        }
        Ok(())
    }

    fn lease(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let lease = LeaseRecord::decode(value).map_err(|_| "a lease is malformed")?;
        if key != lease.id.to_be_bytes() || lease.id == 0 {
            return Err("a lease contradicts its id");
        }
        if !(0..=crate::lease::TTL_SECONDS_MAX).contains(&lease.ttl) || lease.remaining_ttl < 0 {
            return Err("a lease has an impossible time to live");
        }
        self.leases.push(lease);
        Ok(())
    }

    fn alarm(&mut self, key: &[u8]) -> Result<(), &'static str> {
        let alarm = pb::AlarmMember::decode(key).map_err(|_| "an alarm is malformed")?;
        self.alarms.insert(Alarm { kind: alarm.alarm, member_id: alarm.member_id });
        Ok(())
    }

    fn store(self, bump_revision: u64) -> Result<Store, String> {
        let compacted = self.compacted.unwrap_or(-1);
        let last = self.versions.last().map_or(1, |(_, version)| version.mod_revision);
        let newest = last.max(self.bumped).max(compacted).max(1);
        self.require_all_revisions(compacted, newest)?;
        let (newest, compacted) = match bump_revision {
            0 => (newest, compacted),
            more => {
                let bumped = i64::try_from(more).ok().and_then(|more| newest.checked_add(more));
                let bumped = bumped.ok_or("--bump-revision is larger than a revision can be")?;
                (bumped, bumped)
            }
        };
        let mut restore = Restore::new(newest, compacted, self.applied, self.alarms);
        for lease in &self.leases {
            restore.lease(lease.id, lease.ttl);
            restore.remaining(lease.id, lease.remaining_ttl);
        }
        // etcd gives the space of a compaction back some time after it.
        let kept: HashMap<Bytes, usize> = self
            .versions
            .iter()
            .enumerate()
            .filter(|(_, (_, version))| version.mod_revision <= compacted)
            .map(|(at, (key, _))| (key.clone(), at))
            .collect();
        for (at, (key, version)) in self.versions.into_iter().enumerate() {
            let is_kept = version.mod_revision > compacted
                || (kept.get(&key) == Some(&at)
                    && (version.version > 0 || version.mod_revision == compacted));
            if is_kept {
                restore.chain(&key, vec![version]);
            }
        }
        Ok(restore.finish().0)
    }

    /// Every revision after the compaction changed something: one that is missing is damage, and a history of
    /// revisions that never were has no end.
    fn require_all_revisions(&self, compacted: i64, newest: i64) -> Result<(), String> {
        let mut last = compacted.max(1);
        for (_, version) in &self.versions {
            if version.mod_revision > last + 1 {
                return Err(format!("revision {} is missing", last + 1));
            }
            last = last.max(version.mod_revision);
        }
        if newest > last { Err(format!("revision {} is missing", last + 1)) } else { Ok(()) }
    }
}

fn write(store: &Store, options: &RestoreOptions) -> Result<(), RestoreError> {
    let (disk, dir) = (&Disk::Real, options.data_dir.as_path());
    let _lock = identity::lock(disk, dir)?;
    identity::require_empty(disk, dir)?;
    let identity = identity::Identity::chosen(&options.name, None);
    // Before the first record of a log, which begins when the engine is first opened.
    checkpoint::write(disk, dir, identity.cluster_id, 0, store)?;
    identity::save(disk, dir, &identity)?;
    Ok(())
}
