//! Adapter for real etcd over gRPC.
