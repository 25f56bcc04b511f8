//! An embedded, durable, single-node store with etcd's semantics.
//!
//! [`Engine`] answers the [`Shard`](sharded_etcd_shard::Shard) port in process, message for message as etcd 3.7 does:
//! revisions, history, transactions, watches, leases, compaction, quota and alarms, error codes and texts.
//!
//! # How it is built
//! - [`mvcc`]: the multi-version index. Persistent maps, so a reader has a snapshot and blocks nobody. Pure but for reading
//!   values, whose bytes [`values`] finds.
//! - [`txn`], [`check`], [`quota`]: requests evaluated on it, pure; the rules that a proxy needs too are `core`'s.
//! - [`lease`]: deadlines, pure; the caller brings the time.
//! - [`wal`], [`checkpoint`], [`entry`]: what is on disk.
//! - `committer`: the one writer thread: apply, sync, publish, answer.
//! - `watch`: watchers as positions in the history.
//!
//! # Guarantees
//! - A write is answered, and seen by readers and watchers, only after it is synced to disk.
//! - After a failed write or sync nothing more is acknowledged; reads go on.
//! - Keys, and what is known of their versions, are in memory; values are in the files, see [`values`].

mod bolt;
pub mod check;
pub mod checkpoint;
#[cfg(test)]
mod checkpoint_tests;
pub mod codec;
mod committer;
mod config;
#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod damage_tests;
mod disk;
mod engine;
pub mod entry;
pub mod errors;
#[cfg(test)]
mod expiry_tests;
mod hash;
mod history;
mod identity;
pub mod lease;
mod metrics;
pub mod mvcc;
pub mod quota;
pub mod serve;
mod shard;
mod shared;
pub mod snapshot;
pub mod txn;
pub mod values;
#[cfg(test)]
mod values_tests;
mod verify;
pub mod wal;
mod watch;

pub use config::EngineConfig;
pub use engine::{Engine, EngineError};
pub use verify::{Contents, verify};

/// The etcd release whose semantics the engine follows and which it reports.
pub const ETCD_VERSION: &str = "3.7.3";
