//! The gRPC services of the etcd v3 API, one file each.

pub mod auth;
pub mod cluster;
mod count;
pub mod kv;
pub mod lease;
pub mod maintenance;
pub mod watch;

/// The version that clients see: kube-apiserver asks for at least 3.5.13 for consistent reads from its cache.
pub const ETCD_VERSION: &str = "3.7.3";
/// The cluster version that goes with it.
pub const CLUSTER_VERSION: &str = "3.7.0";
