//! The program as its users see it: run, asked with unmodified clients, killed, run again.
//!
//! The tests need etcd and etcdctl, which the test kit builds from their Go modules when they are not installed. How
//! long the load runs is set in seconds by `SHARDED_ETCD_ACCEPTANCE_SECONDS`; with `SHARDED_ETCD_ACCEPTANCE_KEEP` the folder
//! of a test that failed is kept.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod bad_files;
mod bad_requests;
mod bad_starts;
mod by_hand;
mod clients;
mod cluster;
mod engine;
mod gateway;
mod harness;
mod load;
mod rebalance;
mod two_proxies;
