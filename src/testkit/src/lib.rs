//! What tests need around the code under test: the real programs, their processes, free ports, bounded waiting, and dice.
//!
//! The programs (etcd, etcdctl, kube-apiserver, …) come from [`tools`], which builds them from pinned Go modules when
//! they are not installed. Everything that waits has a deadline and says what it waited for.

pub mod command;
mod dice;
pub mod etcd;
pub mod etcdctl;
pub mod kube;
pub mod ports;
pub mod process;
pub mod tools;
mod wait;

pub use command::Output;
pub use dice::Dice;
pub use etcd::{EtcdProcess, EtcdProcessOptions};
pub use etcdctl::{etcdctl, etcdctl_with_input};
pub use kube::KubeApiserver;
pub use ports::free_port;
pub use process::Process;
pub use wait::wait_until;
