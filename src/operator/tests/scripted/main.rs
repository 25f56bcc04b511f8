//! The operator against a scripted API server, in simulated time.

#[path = "../support/mod.rs"]
mod support;

mod converge;
mod fake;
mod fields;
mod scenario;
mod stops;
mod trouble;
