//! The planner: which range goes where, and why.
//!
//! [`plan`] is a pure function of what was observed, what is wanted ([`crate::topology::Topology`]) and the limits.
//!
//! # Expected flow
//! The shard manager observes, plans, begins the steps that are [ready](Step::ready), observes again and plans again.
//! A plan is never patched; the next one replaces it.
//!
//! # Guarantees
//! - Deterministic: the same input gives the same plan.
//! - Consistent: what remains of a plan after its first step is in the plan for the state after that step.
//! - Converging: on data that stands still, repeating this ends.
//! - Damped: a step for balance is planned only if it takes away clearly more imbalance than a part of that size could
//!   make elsewhere, so that a difference has to grow anew before anything moves back; and what is observed as moved
//!   recently does not move for balance at all, so no range goes to and fro.
//! - Worth it: for load nothing moves whose copying costs its shards more than it evens out in ten minutes.
//! - Within the quota: no step takes a shard over `etcd.quota`, and none for balance over four fifths of it, whatever the
//!   weights say; what the quota prevents is told.
//! - Just in time: a range is split for a move when the move can follow.
//! - Explained: every step and everything that is not done has a reason in words, with figures.
//!
//! # Policy, in this order
//! 1. Boundaries of pins and presplit exist.
//! 2. Pinned ranges are on their shard.
//! 3. Directories that the rules keep together are not parted.
//! 4. Shards that leave are emptied.
//! 5. No shard is above 1.2 times or below 0.75 times what by its weight would be its share in keys or bytes, nor above
//!    1.2 times in load; see [`Limits`] and `rebalance.loadTolerance` for differences too small to matter.
//! 6. When nothing else is to be done, small neighbours on a shard with very many ranges are merged.
//!
//! # Assumptions
//! Ranges in an observation are sorted and tile the keyspace; cut points are legal boundaries inside their range. Load has
//! been made steady before ([`crate::load::Memory`]): the planner believes what it is given.

mod balance;
mod by_size;
mod drain;
mod explain;
mod merge;
mod model;
mod observation;
mod plan;
mod planner;
mod pour;
mod reunite;
mod room;
mod scan;
mod text;

#[cfg(test)]
mod golden_load_tests;
#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod load_tests;
#[cfg(test)]
mod noise_tests;
#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod room_tests;
#[cfg(test)]
mod world;

pub use observation::{CutPoint, Limits, Observation, RangeView, ShardState, ShardView};
pub use plan::{Action, Figures, Plan, Step, Wait};
pub use planner::{plan, plan_approved};
pub(crate) use room::no_room_of;
pub use scan::{CutScan, Scanned};
