//! A key as the store holds it.

use std::{borrow::Borrow, fmt, ops::Deref, sync::Arc};

use bytes::Bytes;

/// The bytes of a key, shared by the index, all versions of the key and the leases it was attached to.
///
/// Half as large as [`Bytes`], which also would allocate once more as soon as it is shared: with a million keys that is
/// a sixth of the memory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<[u8]>);

impl Key {
    /// A copy for an answer.
    pub fn to_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }
}

impl From<&[u8]> for Key {
    fn from(key: &[u8]) -> Self {
        Self(key.into())
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Compares as its bytes do, so an ordered map can be asked with a slice.
impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq<Bytes> for Key {
    fn eq(&self, other: &Bytes) -> bool {
        *self.0 == **other
    }
}

impl PartialEq<Key> for Bytes {
    fn eq(&self, other: &Key) -> bool {
        other == self
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}
