//! The `sharded-etcd` binary.

fn main() {}
