//! One version of one key, linked to the version before it.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use sharded_etcd_etcd_api::messages as pb;

use super::Key;
use crate::values::{IN_MEMORY_BYTES_MAX, Look, Place, Value, ValueError, ValueFile};

/// What one version costs beside its key and value, in bytes: an estimate for sizes and the quota.
pub const VERSION_OVERHEAD_BYTES: u64 = 128;

/// A value, or a tombstone, that a key had from one revision on.
///
/// What a version says never changes. But compaction cuts [`Version::previous`] off, so that a reader that walked the
/// chain has to look afterwards whether its revision was compacted meanwhile; and where the value is read from changes,
/// see [`crate::values`].
#[derive(Debug)]
pub struct Version {
    /// The key.
    pub key: Key,
    /// Revision at which the key was created; 0 for a tombstone.
    pub create_revision: i64,
    /// Revision of this version.
    pub mod_revision: i64,
    /// 1 for the put that created the key, one more for each later put; 0 for a tombstone.
    pub version: i64,
    /// The lease the key is attached to, 0 for none.
    pub lease: i64,
    /// Place among the changes of its revision, from 0.
    pub sub: u32,
    value_len: u32,
    value_checksum: u32,
    link: Mutex<Link>,
}

/// A version that many refer to. It has one count where the standard library's has two: with a million versions that is
/// 16 MB.
pub type VersionRef = triomphe::Arc<Version>;

/// What changes.
#[derive(Debug)]
struct Link {
    previous: Option<VersionRef>,
    place: Place,
}

impl Version {
    /// A put.
    pub fn put(
        key: Key,
        value: impl Into<Value>,
        lease: i64,
        revision: (i64, u32),
        live: Option<(i64, i64)>,
        previous: Option<VersionRef>,
    ) -> Self {
        let (mod_revision, sub) = revision;
        let (create_revision, version) =
            live.map_or((mod_revision, 1), |(create, version)| (create, version + 1));
        let fields =
            StoredVersion { value: value.into(), create_revision, mod_revision, version, lease, sub };
        Self::restored(key, fields, previous)
    }

    /// A tombstone.
    pub fn delete(key: Key, revision: (i64, u32), previous: Option<VersionRef>) -> Self {
        let (mod_revision, sub) = revision;
        let fields = StoredVersion {
            value: Value::EMPTY,
            create_revision: 0,
            mod_revision,
            version: 0,
            lease: 0,
            sub,
        };
        Self::restored(key, fields, previous)
    }

    /// A version as a checkpoint stored it.
    pub fn restored(key: Key, fields: StoredVersion, previous: Option<VersionRef>) -> Self {
        let Value { len, checksum, place } = fields.value;
        Self {
            key,
            create_revision: fields.create_revision,
            mod_revision: fields.mod_revision,
            version: fields.version,
            lease: fields.lease,
            sub: fields.sub,
            value_len: len,
            value_checksum: checksum,
            link: Mutex::new(Link { previous, place }),
        }
    }

    /// False for a tombstone.
    pub fn is_live(&self) -> bool {
        self.version != 0
    }

    /// The version before this one, unless compaction cut it off.
    pub fn previous(&self) -> Option<VersionRef> {
        self.link.lock().previous.clone()
    }

    /// The newest version at or below `revision` in the chain that starts at `this`.
    pub fn at(this: &VersionRef, revision: i64) -> Option<VersionRef> {
        let mut current = VersionRef::clone(this);
        while current.mod_revision > revision {
            current = current.previous()?;
        }
        Some(current)
    }

    /// Cuts off everything older and gives it back, so that the caller drops it where that harms nobody.
    pub fn cut(&self) -> Option<VersionRef> {
        self.link.lock().previous.take()
    }

    /// Estimated bytes that this version takes, without its predecessors.
    pub fn size(&self) -> u64 {
        self.key.len() as u64 + u64::from(self.value_len) + VERSION_OVERHEAD_BYTES
    }

    /// Length of the value in bytes, without reading it.
    pub fn value_len(&self) -> usize {
        self.value_len as usize
    }

    /// The value's checksum, see [`Value`].
    pub(crate) fn checksum(&self) -> u32 {
        self.value_checksum
    }

    /// Where the value is now.
    pub(crate) fn look(&self) -> Look {
        self.link.lock().place.look()
    }

    /// Whether the value would be given out without reading a file.
    pub(crate) fn is_in_memory(&self) -> bool {
        !matches!(self.link.lock().place, Place::Stored { .. })
    }

    /// Gives the value's memory back, unless that was done already: a file has it at this offset.
    pub(crate) fn settle(&self, file: &Arc<ValueFile>, offset: u64) {
        let mut link = self.link.lock();
        if matches!(link.place, Place::Memory(_)) {
            self.set_place(&mut link, file, offset);
        }
    }

    /// Has the value read from another file from now on.
    pub(crate) fn move_to(&self, file: &Arc<ValueFile>, offset: u64) {
        self.set_place(&mut self.link.lock(), file, offset);
    }

    fn set_place(&self, link: &mut Link, file: &Arc<ValueFile>, offset: u64) {
        if self.value_len() > IN_MEMORY_BYTES_MAX
            && let Some(place) = Place::stored(file, offset)
        {
            link.place = place;
        }
    }

    /// The version as the API shows it: a tombstone has its key and mod revision only. May read a file.
    ///
    /// # Errors
    /// If the value cannot be read.
    pub fn to_key_value(&self) -> Result<pb::KeyValue, ValueError> {
        self.value().map(|value| self.with_value(value))
    }

    /// The same with a value that was read already, or that is left out.
    pub fn with_value(&self, value: Bytes) -> pb::KeyValue {
        pb::KeyValue {
            key: self.key.to_bytes(),
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            value,
            lease: self.lease,
        }
    }
}

impl Drop for Version {
    /// Unlinks the chain step by step: a chain of a million versions must not recurse a million times.
    fn drop(&mut self) {
        let mut next = self.link.get_mut().previous.take();
        while let Some(version) = next {
            next = VersionRef::try_unwrap(version)
                .ok()
                .and_then(|mut owned| owned.link.get_mut().previous.take());
        }
    }
}

/// The fields of a version that a checkpoint stores beside its key.
#[derive(Debug, Clone)]
pub struct StoredVersion {
    /// See [`Version::value`].
    pub value: Value,
    /// See [`Version::create_revision`].
    pub create_revision: i64,
    /// See [`Version::mod_revision`].
    pub mod_revision: i64,
    /// See [`Version::version`].
    pub version: i64,
    /// See [`Version::lease`].
    pub lease: i64,
    /// See [`Version::sub`].
    pub sub: u32,
}
