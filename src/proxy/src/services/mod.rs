//! The gRPC services of the etcd v3 API, one file each.

pub mod auth;
pub mod cluster;
pub mod kv;
pub mod lease;
pub mod maintenance;
pub mod watch;
