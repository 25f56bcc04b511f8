//! What clients do to ranges: counted by proxies, folded by the shard manager, weighed by the planner.
//!
//! # Expected flow
//! A proxy counts each request at the range that it goes to and offers some of the keys to a [`Sketch`]. Every few
//! seconds it takes what was counted into its [`Book`], which turns counts into rates that forget slowly, and publishes
//! the busiest ranges and keys. The shard manager adds the reports of all proxies up ([`Folded`]), lays them on the range
//! map as it is by now, remembers peaks for a while ([`Memory`]), and gives the planner the load of each range and of the
//! pieces that it could be split into ([`cuts_with_work`]).
//!
//! # Work
//! One figure stands for what a range costs its shard, [`Rates::work`], in operations a second: a read counts 1, a write
//! 4, and each 16 KiB read or written 1 more. etcd's own benchmarks (its operations guide, "Performance") have three to
//! four linearizable reads for a write. Watch events cost the proxy, not the shard, so they are shown and not weighed.
//!
//! # Guarantees
//! Nothing here has a clock: who calls says how much time has passed. What is kept is bounded by the number of ranges
//! that have load, and by the capacity of the sketch.

mod apportion;
mod book;
mod cuts;
mod fold;
mod memory;
mod rates;
mod sketch;

#[cfg(test)]
mod sketch_tests;

pub use apportion::{Share, apportion};
pub use book::{Book, Counted, KEYS_MAX, RANGES_MAX, REPORT_BYTES_MAX};
pub use cuts::cuts_with_work;
pub use fold::{Folded, HotKey, KeyWork};
pub use memory::Memory;
pub use rates::{Counts, Rates, decay, work};
pub use sketch::{Counter, Sketch};
