//! The engine through its public port.
#![allow(clippy::unwrap_used)]

mod durability;
mod kill;
mod kv;
mod hash;
mod lease;
mod serve;
mod snapshot;
mod support;
mod watch;
