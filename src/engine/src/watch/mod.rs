//! Watchers.
//!
//! A watcher has no queue of its own: it is a position in the [`EventLog`](crate::mvcc::EventLog). The committer marks
//! those whose range a new revision touches and wakes them; they read the log when they are polled. So a slow watcher
//! costs no memory and holds nobody up; it catches up from the log, or is cancelled with `compact_revision` once
//! compaction has overtaken it.

mod registry;
mod stream;

pub use registry::Registry;
pub use stream::{Batch, Probe, Settings, Watcher};
