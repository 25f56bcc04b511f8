//! One version of one key, linked to the version before it.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use sharded_etcd_etcd_api::messages as pb;

use super::Key;

/// What one version costs beside its key and value, in bytes: an estimate for sizes and the quota.
pub const VERSION_OVERHEAD_BYTES: u64 = 128;

/// A value, or a tombstone, that a key had from one revision on.
///
/// Versions never change, but for one thing: compaction cuts [`Version::previous`] off. A reader that walked the
/// chain therefore has to look afterwards whether its revision was compacted meanwhile.
#[derive(Debug)]
pub struct Version {
    /// The key.
    pub key: Key,
    /// The value; empty for a tombstone.
    pub value: Bytes,
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
    previous: Mutex<Option<Arc<Version>>>,
}

impl Version {
    /// A put.
    pub fn put(
        key: Key,
        value: Bytes,
        lease: i64,
        revision: (i64, u32),
        live: Option<(i64, i64)>,
        previous: Option<Arc<Version>>,
    ) -> Self {
        let (mod_revision, sub) = revision;
        let (create_revision, version) =
            live.map_or((mod_revision, 1), |(create, version)| (create, version + 1));
        Self {
            key,
            value,
            create_revision,
            mod_revision,
            version,
            lease,
            sub,
            previous: Mutex::new(previous),
        }
    }

    /// A tombstone.
    pub fn delete(key: Key, revision: (i64, u32), previous: Option<Arc<Version>>) -> Self {
        let (mod_revision, sub) = revision;
        Self {
            key,
            value: Bytes::new(),
            create_revision: 0,
            mod_revision,
            version: 0,
            lease: 0,
            sub,
            previous: Mutex::new(previous),
        }
    }

    /// A version as a checkpoint stored it.
    pub fn restored(key: Key, fields: StoredVersion, previous: Option<Arc<Version>>) -> Self {
        Self {
            key,
            value: fields.value,
            create_revision: fields.create_revision,
            mod_revision: fields.mod_revision,
            version: fields.version,
            lease: fields.lease,
            sub: fields.sub,
            previous: Mutex::new(previous),
        }
    }

    /// False for a tombstone.
    pub fn is_live(&self) -> bool {
        self.version != 0
    }

    /// The version before this one, unless compaction cut it off.
    pub fn previous(&self) -> Option<Arc<Version>> {
        self.previous.lock().clone()
    }

    /// The newest version at or below `revision` in the chain that starts here.
    pub fn at(self: &Arc<Self>, revision: i64) -> Option<Arc<Version>> {
        let mut current = Arc::clone(self);
        while current.mod_revision > revision {
            current = current.previous()?;
        }
        Some(current)
    }

    /// Cuts off everything older and gives it back, so that the caller drops it where that harms nobody.
    pub fn cut(&self) -> Option<Arc<Version>> {
        self.previous.lock().take()
    }

    /// Estimated bytes that this version takes, without its predecessors.
    pub fn size(&self) -> u64 {
        self.key.len() as u64 + self.value.len() as u64 + VERSION_OVERHEAD_BYTES
    }

    /// The version as the API shows it: a tombstone has its key and mod revision only.
    pub fn to_key_value(&self) -> pb::KeyValue {
        pb::KeyValue {
            key: self.key.to_bytes(),
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            value: self.value.clone(),
            lease: self.lease,
        }
    }
}

impl Drop for Version {
    /// Unlinks the chain step by step: a chain of a million versions must not recurse a million times.
    fn drop(&mut self) {
        let mut next = self.previous.get_mut().take();
        while let Some(version) = next {
            next = Arc::into_inner(version).and_then(|mut owned| owned.previous.get_mut().take());
        }
    }
}

/// The fields of a version that a checkpoint stores beside its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredVersion {
    /// See [`Version::value`].
    pub value: Bytes,
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
