//! The multi-version index: what is stored. No IO but the reading of values, see [`crate::values`].
//!
//! [`Store`] is a persistent (copy-on-write) map: a clone costs a few reference counts, so readers work on a snapshot
//! while the one writer goes on. Each key points at its newest [`Version`], and each version at the one before it.
//! [`EventLog`] keeps the same versions in revision order for watchers.

mod events;
mod index;
mod key;
mod key_range;
mod scan;
mod store;
mod version;
mod write;

#[cfg(test)]
mod model_tests;

pub use events::{Changes, EventLog, FIRST_EVENT_REVISION};
pub use key::Key;
pub use key_range::KeyRange;
pub use scan::{RangeScan, Step};
pub use store::{Alarm, Lease, Restore, Store};
pub use version::{StoredVersion, VERSION_OVERHEAD_BYTES, Version, VersionRef};
pub use write::WriteTxn;
