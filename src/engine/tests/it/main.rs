//! The engine through its public port.
#![allow(clippy::unwrap_used)]

mod durability;
mod hash;
mod kill;
mod kv;
mod lease;
mod metrics;
mod serve;
mod snapshot;
mod support;
mod threads;
mod values;
mod watch;
