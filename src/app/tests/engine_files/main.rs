//! `sharded-etcd engine` and its files: killed under load, on a disk that takes no more, and with files that are damaged.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod check;
mod full;
mod kill;
mod open_files;
mod server;
