//! `sharded-etcd`: one etcd endpoint over several etcds.

mod cli;
mod files;
mod routing;
mod up;
mod version;

fn main() {}
