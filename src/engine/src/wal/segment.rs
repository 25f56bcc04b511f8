//! Segment files: names, header block, preallocation.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{FORMAT, Position, WalError};
use crate::{
    codec::{Decoder, Encoder},
    disk::Disk,
    values::ValueFile,
};

/// The header block, so that frames start at a page.
pub const HEADER_BYTES: usize = 4096;

const MAGIC: &[u8; 8] = b"SETCDWAL";
const CHECKED_BYTES_BARE: usize = 8 + 4 + 8 + 8 + 8;
const CHECKED_BYTES: usize = CHECKED_BYTES_BARE + 8 + 4 + 4;
/// The format without size and previous record.
const FORMAT_BARE: u32 = 1;
/// The previous record's checksum is not known.
const UNKNOWN: u32 = 0;
const KNOWN: u32 = 1;

/// What a segment says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The cluster the records belong to.
    pub cluster_id: u64,
    /// Sequence number of the first frame.
    pub first_sequence: u64,
    /// Goes into the checksum of each frame.
    pub salt: u64,
    /// Length of the file when it became a segment: one that is shorter has lost its end. 0 if it is not known.
    pub capacity: u64,
    /// Checksum of the last record before this segment, if it is known.
    pub previous: Option<u32>,
}

impl Header {
    /// The end of the log before this segment.
    pub fn before(&self) -> Position {
        Position { sequence: self.first_sequence.saturating_sub(1), checksum: self.previous }
    }

    /// The whole header block.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.put_raw(MAGIC);
        out.put_u32(FORMAT);
        out.put_u64(self.cluster_id);
        out.put_u64(self.first_sequence);
        out.put_u64(self.salt);
        out.put_u64(self.capacity);
        out.put_u32(if self.previous.is_some() { KNOWN } else { UNKNOWN });
        out.put_u32(self.previous.unwrap_or_default());
        let crc = crc32fast::hash(&out);
        out.put_u32(crc);
        out.resize(HEADER_BYTES, 0);
        out
    }

    /// Reads the header block of the file at `path`.
    pub fn decode(file: &[u8], path: &Path) -> Result<Self, WalError> {
        let corrupt = |reason| WalError::Corrupt { path: path.to_owned(), offset: 0, reason };
        if !file.starts_with(MAGIC) {
            return Err(corrupt("this is no log segment"));
        }
        let mut input = Decoder::new(&file[MAGIC.len()..]);
        let format = input.u32().map_err(|_| corrupt("the header is too short"))?;
        if format > FORMAT {
            return Err(WalError::Newer { path: path.to_owned(), found: format });
        }
        let mut read = || -> Result<(Self, u32), crate::codec::Malformed> {
            let (cluster_id, first_sequence, salt) = (input.u64()?, input.u64()?, input.u64()?);
            let (mut capacity, mut previous) = (0, None);
            if format > FORMAT_BARE {
                capacity = input.u64()?;
                let (is_known, checksum) = (input.u32()?, input.u32()?);
                previous = (is_known == KNOWN).then_some(checksum);
            }
            Ok((Self { cluster_id, first_sequence, salt, capacity, previous }, input.u32()?))
        };
        let (header, crc) = read().map_err(|_| corrupt("the header is too short"))?;
        let checked_bytes = if format > FORMAT_BARE { CHECKED_BYTES } else { CHECKED_BYTES_BARE };
        if crc != crc32fast::hash(&file[..checked_bytes]) {
            return Err(corrupt("the header's checksum is wrong"));
        }
        Ok(header)
    }
}

/// The path of the segment that starts with a sequence number.
pub fn path(dir: &Path, first_sequence: u64) -> PathBuf {
    dir.join(format!("wal-{first_sequence:016x}.log"))
}

/// All segments of a directory by ascending first sequence number, as their names say.
pub fn list(disk: &Disk, dir: &Path) -> Result<Vec<(u64, PathBuf)>, WalError> {
    let entries = disk.list(dir).map_err(WalError::io("list", dir))?;
    let mut found = Vec::new();
    for path in entries {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_prefix("wal-").and_then(|rest| rest.strip_suffix(".log"));
        if let Some(first) = number.and_then(|digits| u64::from_str_radix(digits, 16).ok()) {
            found.push((first, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Makes a file of `bytes` zeros, synced, that can become a segment.
pub fn preallocate(disk: &Disk, path: &Path, bytes: u64) -> Result<(), WalError> {
    let fill = || -> io::Result<()> {
        let mut file = disk.create(path)?;
        let zeros = vec![0u8; bytes.min(1 << 20) as usize];
        let mut left = bytes;
        while left > 0 {
            let chunk = left.min(zeros.len() as u64);
            file.write_all(&zeros[..chunk as usize])?;
            left -= chunk;
        }
        file.sync_all()
    };
    fill().map_err(|error| {
        // A half-made file would only take space.
        let _ = disk.remove(path);
        WalError::io("preallocate", path)(error)
    })
}

/// Turns a preallocated or used file into the segment with this header, but for its capacity, which is what the file has:
/// durable, name included, when it returns.
pub fn take_into_use(
    disk: &Disk,
    dir: &Path,
    spare: &Path,
    mut header: Header,
) -> Result<(Arc<ValueFile>, u64), WalError> {
    let file = disk.open_to_write(spare).map_err(WalError::io("open", spare))?;
    header.capacity = file.len().map_err(WalError::io("inspect", spare))?;
    file.write_all_at(&header.encode(), 0).map_err(WalError::io("write", spare))?;
    file.sync_data().map_err(WalError::io("sync", spare))?;
    let path = path(dir, header.first_sequence);
    disk.rename(spare, &path).map_err(WalError::io("rename", spare))?;
    sync_dir(disk, dir)?;
    Ok((ValueFile::new(file, path), header.capacity))
}

/// Makes names in a directory durable.
pub fn sync_dir(disk: &Disk, dir: &Path) -> Result<(), WalError> {
    disk.sync_dir(dir).map_err(WalError::io("sync", dir))
}
