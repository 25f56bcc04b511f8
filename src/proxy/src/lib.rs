//! The proxy: one etcd v3 endpoint over all shards of a topology.
//!
//! Stateless: everything it knows it has from meta and the shards, and any number of proxies serve one topology at
//! once. The protocol is in docs/consistency.md.

pub mod context;
pub mod http;
pub mod hub;
pub mod kv;
pub mod lease;
mod load;
pub mod metrics;
pub mod register;
mod server;
pub mod services;

pub use server::{Drain, Proxy, ProxyError, ProxyOptions};
