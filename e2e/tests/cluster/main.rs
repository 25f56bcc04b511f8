//! The operator on a whole Kubernetes cluster, as users meet it: chart, kubectl, clients in pods.
//!
//! `make e2e` runs these, on a cluster of its own or on that of KUBECONFIG. Each test has a namespace of its own, prints what it
//! has checked, and leaves what explains a failure in the folder of the logs.
#![allow(clippy::unwrap_used)]
#![allow(clippy::print_stdout, reason = "a test of minutes says what it has checked so far")]

mod changes;
mod faults;
mod first_use;
mod harness;
mod install;
mod neighbours;
mod stops;
mod told;
