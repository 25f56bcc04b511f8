//! Snapshots of the whole store, so that a start does not replay the log from the beginning.
//!
//! A checkpoint is `checkpoint-<sequence number, 16 hex digits>.db`: a header, then blocks of length, CRC-32 and
//! payload. It is written beside its final name, synced and renamed, so a file with that name is complete; one that
//! does not check out is damaged and refused by name.

use std::{
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use crate::{
    codec::{Decoder, Encoder, Malformed},
    disk::{Disk, DiskFile},
    mvcc::{Alarm, EventLog, FIRST_EVENT_REVISION, Restore, Store, StoredVersion, VersionRef},
    values::{self, Moved, Value, ValueFile},
    wal::{Position, WalError},
};

/// Version of the checkpoint format; a newer one is refused. Format 1 has no checksum of the log's record.
pub const FORMAT: u32 = 2;

const MAGIC: &[u8; 8] = b"SETCDCKP";
const FORMAT_BARE: u32 = 1;
/// Magic, format, cluster id and sequence number; in format 1 their checksum follows.
const HEADER_BYTES_BARE: usize = 8 + 4 + 8 + 8;
/// Also whether the record's checksum is known, and the checksum.
const HEADER_BYTES: usize = HEADER_BYTES_BARE + 4 + 4;
/// The file is synced each time this much was written: a large sync makes those of the log wait. With 8 MiB the longest put
/// during a checkpoint took 60 to 85 ms where it takes 42 to 63, and the checkpoint was hardly faster.
const SYNC_BYTES: u64 = 1 << 20;
/// A block is closed once it has this many bytes.
const BLOCK_BYTES: usize = 256 * 1024;
/// No block is larger: one key and one value of the largest size, with room.
const BLOCK_BYTES_MAX: usize = 1 << 30;
/// Length and checksum before a block's payload.
const BLOCK_HEAD_BYTES: u64 = 4 + 4;
/// What a version takes beside its value, at most.
const VERSION_BYTES: usize = 8 + 4 + 8 + 10 + 8 + 10;

const BLOCK_META: u8 = 1;
const BLOCK_KEYS: u8 = 2;
const BLOCK_END: u8 = 3;

fn path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("checkpoint-{sequence:016x}.db"))
}

fn list(disk: &Disk, dir: &Path) -> Result<Vec<(u64, PathBuf)>, WalError> {
    let mut found = Vec::new();
    for path in disk.list(dir).map_err(WalError::io("list", dir))? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_prefix("checkpoint-").and_then(|rest| rest.strip_suffix(".db"));
        if let Some(sequence) = number.and_then(|digits| u64::from_str_radix(digits, 16).ok()) {
            found.push((sequence, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// A checkpoint that was written.
#[derive(Debug)]
pub struct Written {
    /// Size of the file.
    pub bytes: u64,
    path: PathBuf,
    moved: Moved,
}

impl Written {
    /// Has the values of the store read from the checkpoint from now on, so that the log before it can be given up.
    pub fn take_values_over(self, disk: &Disk) -> Result<u64, WalError> {
        self.moved.apply(&ValueFile::open(disk, &self.path)?);
        Ok(self.bytes)
    }
}

/// Writes the store as it was after record `last` of the log and removes older checkpoints.
pub fn write(
    disk: &Disk,
    dir: &Path,
    cluster_id: u64,
    last: impl Into<Position>,
    store: &Store,
) -> Result<Written, WalError> {
    let last = last.into();
    let sequence = last.sequence;
    let temporary = dir.join("checkpoint.tmp");
    let (bytes, moved) = write_file(disk, &temporary, cluster_id, last, store).map_err(|error| {
        let _ = disk.remove(&temporary);
        WalError::io("write", &temporary)(error)
    })?;
    let path = path(dir, sequence);
    disk.rename(&temporary, &path).map_err(WalError::io("rename", &temporary))?;
    crate::wal::sync_dir(disk, dir)?;
    for (older, path) in list(disk, dir)? {
        if older < sequence {
            disk.remove(&path).map_err(WalError::io("remove", &path))?;
        }
    }
    Ok(Written { bytes, path, moved })
}

fn write_file(
    disk: &Disk,
    path: &Path,
    cluster_id: u64,
    last: Position,
    store: &Store,
) -> io::Result<(u64, Moved)> {
    let mut out =
        Blocks { file: BufWriter::with_capacity(1 << 20, disk.create(path)?), written: 0, synced: 0 };
    let mut header = Vec::new();
    header.put_raw(MAGIC);
    header.put_u32(FORMAT);
    header.put_u64(cluster_id);
    header.put_u64(last.sequence);
    header.put_u32(u32::from(last.checksum.is_some()));
    header.put_u32(last.checksum.unwrap_or_default());
    let crc = crc32fast::hash(&header);
    header.put_u32(crc);
    out.raw(&header)?;

    let mut block = vec![BLOCK_META];
    block.put_i64(store.revision());
    block.put_i64(store.compact_revision());
    block.put_u64(store.applied());
    block.put_varint(store.alarms().len() as u64);
    for alarm in store.alarms() {
        block.put_i64(i64::from(alarm.kind));
        block.put_u64(alarm.member_id);
    }
    block.put_varint(store.leases().count() as u64);
    for (id, lease) in store.leases() {
        block.put_i64(id);
        block.put_i64(lease.ttl);
    }
    // Programs before this ignore what is behind the leases, and let all of them run their full time.
    let remaining = || store.leases().filter(|(_, lease)| lease.remaining != 0);
    block.put_varint(remaining().count() as u64);
    for (id, lease) in remaining() {
        block.put_i64(id);
        block.put_i64(lease.remaining);
    }
    out.block(&block)?;

    block.clear();
    block.put_u8(BLOCK_KEYS);
    let mut keys = Keys { out, block, parts: 0, moved: Moved::default() };
    let mut versions: Vec<VersionRef> = Vec::new();
    for (_, head) in store.chains() {
        let begin = versions.len();
        let mut next = Some(VersionRef::clone(head));
        while let Some(version) = next {
            next = version.previous();
            versions.push(version);
        }
        versions[begin..].reverse();
        // Values are read in large pieces, and not all at once.
        while values::window(&versions) < versions.len() {
            let rest = versions.split_off(values::window(&versions));
            keys.add(&versions)?;
            versions = rest;
        }
    }
    keys.add(&versions)?;
    let Keys { mut out, mut block, parts, moved } = keys;
    out.block(&block)?;

    block.clear();
    block.put_u8(BLOCK_END);
    block.put_u64(parts);
    out.block(&block)?;
    let file = out.file.into_inner().map_err(|error| error.into_error())?;
    file.sync_all()?;
    Ok((out.written, moved))
}

/// The blocks of the keys.
struct Keys {
    out: Blocks,
    block: Vec<u8>,
    parts: u64,
    moved: Moved,
}

impl Keys {
    /// Adds versions, those of one key behind each other and oldest first.
    fn add(&mut self, versions: &[VersionRef]) -> io::Result<()> {
        let values = values::read_all(versions.iter().map(|version| &**version)).map_err(io::Error::other)?;
        let mut all = versions.iter().zip(values).peekable();
        while let Some((first, _)) = all.peek() {
            // A long history goes on in the next block, under the same key.
            let key = first.key.clone();
            self.block.put_bytes(&key);
            let mut room = BLOCK_BYTES.saturating_sub(self.block.len());
            let part: Vec<_> = std::iter::from_fn(|| {
                let next = all.next_if(|(version, _)| room > 0 && version.key == key)?;
                room = room.saturating_sub(next.1.len() + VERSION_BYTES);
                Some(next)
            })
            .collect();
            self.part(&part);
            self.parts += 1;
            if self.block.len() >= BLOCK_BYTES {
                self.out.block(&self.block)?;
                self.block.clear();
                self.block.put_u8(BLOCK_KEYS);
            }
        }
        Ok(())
    }

    fn part(&mut self, part: &[(&VersionRef, Bytes)]) {
        self.block.put_varint(part.len() as u64);
        for (version, value) in part {
            self.block.put_i64(version.mod_revision);
            self.block.put_u32(version.sub);
            self.block.put_i64(version.create_revision);
            self.block.put_varint(version.version as u64);
            self.block.put_i64(version.lease);
            self.block.put_bytes(value);
            let at = self.block.len() - value.len();
            self.moved.add(version, self.out.written + BLOCK_HEAD_BYTES + at as u64);
        }
    }
}

struct Blocks {
    file: BufWriter<DiskFile>,
    written: u64,
    synced: u64,
}

impl Blocks {
    fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    fn block(&mut self, payload: &[u8]) -> io::Result<()> {
        let len = u32::try_from(payload.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        self.raw(&len.to_le_bytes())?;
        self.raw(&crc32fast::hash(payload).to_le_bytes())?;
        self.raw(payload)?;
        if self.written - self.synced >= SYNC_BYTES {
            self.synced = self.written;
            self.file.flush()?;
            self.file.get_ref().sync_data()?;
        }
        Ok(())
    }
}

/// What a checkpoint held.
#[derive(Debug)]
pub struct Loaded {
    /// The last log record that is part of it; number 0 without a checkpoint.
    pub last: Position,
    /// Its size in bytes.
    pub file_bytes: u64,
    /// The store.
    pub store: Store,
    /// The history from the compaction on.
    pub log: EventLog,
}

/// Reads the newest checkpoint, or gives an empty store if there is none.
pub fn load(disk: &Disk, dir: &Path, cluster_id: u64) -> Result<Loaded, WalError> {
    let temporary = dir.join("checkpoint.tmp");
    match disk.remove(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(WalError::io("remove", &temporary)(error));
        }
        _ => {}
    }
    read(disk, dir, cluster_id)
}

/// Like [`load`], but changes nothing on disk.
pub fn read(disk: &Disk, dir: &Path, cluster_id: u64) -> Result<Loaded, WalError> {
    let Some((sequence, path)) = list(disk, dir)?.pop() else {
        return Ok(Loaded {
            last: Position::default(),
            file_bytes: 0,
            store: Store::default(),
            log: EventLog::new(FIRST_EVENT_REVISION),
        });
    };
    // A handle of its own for values, as this one has a position.
    let values = ValueFile::open(disk, &path)?;
    let mut reader = Reader::open(disk, &path)?;
    let last = reader.header(cluster_id, sequence)?;
    let (store, log) = reader.store(&values)?;
    Ok(Loaded { last, file_bytes: reader.offset, store, log })
}

/// Reads a checkpoint block by block.
struct Reader<'a> {
    path: &'a Path,
    file: BufReader<DiskFile>,
    /// Where the next block starts.
    offset: u64,
}

impl<'a> Reader<'a> {
    fn open(disk: &Disk, path: &'a Path) -> Result<Self, WalError> {
        let file = disk.open(path).map_err(WalError::io("open", path))?;
        let len = file.len().map_err(WalError::io("inspect", path))?;
        Ok(Self { path, file: BufReader::with_capacity(len.min(1 << 20) as usize, file), offset: 0 })
    }

    fn corrupt(&self, reason: &'static str) -> WalError {
        WalError::Corrupt { path: self.path.to_owned(), offset: self.offset, reason }
    }

    /// The next `len` bytes; the offset stays where the block begins.
    fn bytes(&mut self, len: usize) -> Result<Vec<u8>, WalError> {
        let mut bytes = Vec::new();
        let read = (&mut self.file)
            .take(len as u64)
            .read_to_end(&mut bytes)
            .map_err(WalError::io("read", self.path))?;
        if read == len { Ok(bytes) } else { Err(self.corrupt("the file ends too early")) }
    }

    fn header(&mut self, cluster_id: u64, sequence: u64) -> Result<Position, WalError> {
        let mut bytes = self.bytes(HEADER_BYTES_BARE + 4)?;
        if !bytes.starts_with(MAGIC) {
            return Err(self.corrupt("this is no checkpoint"));
        }
        let too_short = |_: Malformed| self.corrupt("the header is too short");
        let format = Decoder::new(&bytes[MAGIC.len()..]).u32().map_err(too_short)?;
        if format > FORMAT {
            return Err(WalError::Newer { path: self.path.to_owned(), found: format });
        }
        if format > FORMAT_BARE {
            bytes.extend(self.bytes(HEADER_BYTES - HEADER_BYTES_BARE)?);
        }
        let checked = bytes.len() - 4;
        let mut input = Decoder::new(&bytes[MAGIC.len() + 4..]);
        let mut read = || -> Result<(u64, u64, Option<u32>, u32), Malformed> {
            let (cluster_id, sequence) = (input.u64()?, input.u64()?);
            let mut checksum = None;
            if format > FORMAT_BARE {
                let (is_known, found) = (input.u32()?, input.u32()?);
                checksum = (is_known != 0).then_some(found);
            }
            Ok((cluster_id, sequence, checksum, input.u32()?))
        };
        let (found, found_sequence, checksum, crc) =
            read().map_err(|_| self.corrupt("the header is too short"))?;
        if crc != crc32fast::hash(&bytes[..checked]) {
            return Err(self.corrupt("the header's checksum is wrong"));
        }
        if found != cluster_id {
            return Err(WalError::Foreign { path: self.path.to_owned(), found, expected: cluster_id });
        }
        if found_sequence != sequence {
            return Err(self.corrupt("the name and the header disagree"));
        }
        self.offset += bytes.len() as u64;
        Ok(Position { sequence, checksum })
    }

    fn block(&mut self) -> Result<Vec<u8>, WalError> {
        let head = self.bytes(8)?;
        let mut input = Decoder::new(&head);
        let mut read = || -> Result<(u32, u32), Malformed> { Ok((input.u32()?, input.u32()?)) };
        let (len, crc) = read().map_err(|_| self.corrupt("the file ends too early"))?;
        // A damaged length must not become an allocation of that size.
        if len as usize > BLOCK_BYTES_MAX {
            return Err(self.corrupt("a block's length is impossible"));
        }
        let block = self.bytes(len as usize)?;
        if crc32fast::hash(&block) == crc {
            Ok(block)
        } else {
            Err(self.corrupt("a block's checksum is wrong"))
        }
    }

    fn store(&mut self, values: &Arc<ValueFile>) -> Result<(Store, EventLog), WalError> {
        let mut restore: Option<Restore> = None;
        let mut revision = 0;
        let mut parts = 0u64;
        loop {
            let block = self.block()?;
            let mut input = Decoder::new(&block);
            let malformed = |_: Malformed| self.corrupt("a block is malformed");
            match (input.u8().map_err(malformed)?, restore.as_mut()) {
                (BLOCK_META, None) => {
                    let (newest, begun) = read_meta(&mut input).map_err(malformed)?;
                    (revision, restore) = (newest, Some(begun));
                }
                (BLOCK_KEYS, Some(restore)) => {
                    parts += read_keys(&block, revision, restore, values, self.offset + BLOCK_HEAD_BYTES)
                        .map_err(malformed)?;
                }
                (BLOCK_END, Some(_)) => {
                    if input.u64().map_err(malformed)? != parts {
                        return Err(self.corrupt("keys are missing"));
                    }
                    self.offset += 8 + block.len() as u64;
                    break;
                }
                _ => return Err(self.corrupt("a block is unknown or at the wrong place")),
            }
            self.offset += 8 + block.len() as u64;
        }
        restore.map(Restore::finish).ok_or_else(|| self.corrupt("the checkpoint is empty"))
    }
}

/// The newest revision, and a store with the numbers, alarms and leases.
fn read_meta(input: &mut Decoder<'_>) -> Result<(i64, Restore), Malformed> {
    let (revision, compact_revision, applied) = (input.i64()?, input.i64()?, input.u64()?);
    if revision < 1 || revision == i64::MAX || !(-1..=revision).contains(&compact_revision) {
        return Err(Malformed);
    }
    let mut alarms = std::collections::BTreeSet::new();
    for _ in 0..input.varint()? {
        let kind = i32::try_from(input.i64()?).map_err(|_| Malformed)?;
        alarms.insert(Alarm { kind, member_id: input.u64()? });
    }
    let mut restore = Restore::new(revision, compact_revision, applied, alarms);
    for _ in 0..input.varint()? {
        let id = input.i64()?;
        restore.lease(id, input.i64()?);
    }
    if !input.is_empty() {
        for _ in 0..input.varint()? {
            let id = input.i64()?;
            restore.remaining(id, input.i64()?);
        }
    }
    Ok((revision, restore))
}

/// A block that begins at byte `begin` of the file, where its values stay.
fn read_keys(
    block: &[u8],
    revision: i64,
    restore: &mut Restore,
    file: &Arc<ValueFile>,
    begin: u64,
) -> Result<u64, Malformed> {
    let mut input = Decoder::new(block);
    let _tag = input.u8()?;
    let mut parts = 0;
    while !input.is_empty() {
        let key = input.bytes()?;
        let count = input.varint()?;
        let mut versions: Vec<StoredVersion> = Vec::new();
        for _ in 0..count {
            let (mod_revision, sub, create_revision) = (input.i64()?, input.u32()?, input.i64()?);
            let number = i64::try_from(input.varint()?).map_err(|_| Malformed)?;
            let (lease, value) = (input.i64()?, input.bytes()?);
            let at = (block.len() - input.left() - value.len()) as u64;
            let value = Value::stored(value, file, begin + at);
            let version = StoredVersion { value, create_revision, mod_revision, version: number, lease, sub };
            let is_newer = versions
                .last()
                .is_none_or(|older| (older.mod_revision, older.sub) < (version.mod_revision, version.sub));
            let is_possible = (FIRST_EVENT_REVISION..=revision).contains(&version.mod_revision)
                && (0..=version.mod_revision).contains(&version.create_revision)
                && version.version >= 0;
            if !is_newer || !is_possible {
                return Err(Malformed);
            }
            versions.push(version);
        }
        restore.chain(key, versions);
        parts += 1;
    }
    Ok(parts)
}
