//! The engine through its public port.
#![allow(clippy::unwrap_used)]

mod durability;
mod kill;
mod kv;
mod lease;
mod serve;
mod support;
mod watch;
