//! A Kubernetes cluster in memory: API server, controllers, kubelets, and shard managers, with a clock that jumps.
//!
//! ```text
//! operator ── kube::Client ── Link (log, faults) ── Server ── Store ── controllers, kubelets
//!     └────── Ask ─────────── SharedManagers (models of the shard managers) ┘
//! ```

#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by several test programs"
)]

pub mod controllers;
pub mod defaults;
pub mod fields;
pub mod kinds;
pub mod managers;
pub mod normal;
pub mod selector;
pub mod server;
pub mod store;
pub mod watches;
pub mod world;
