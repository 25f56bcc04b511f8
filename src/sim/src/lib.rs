//! A deterministic simulation of a whole topology.
//!
//! The real proxy, line and manager run over etcds in memory and a network that delays, loses, reorders and parts, all in
//! one thread, on a clock that stands still until nobody has anything to do. A seed decides everything that happens, so
//! what it finds can be seen again: `SIM_SEED=<seed> cargo test -p sharded-etcd-sim -- --nocapture one_seed`.
//!
//! # How it is built
//! - [`etcd`]: a small etcd, right at a glance; [`state`] is its history, and the reference for everything.
//! - [`net`]: the connections of processes to etcds, as [`Shard`](sharded_etcd_shard::Shard)s.
//! - [`process`]: real proxies, which can be killed. [`chaos`] does that, parts the network, stops and restarts etcds.
//! - [`actors`]: clients. What they ask and are told goes to [`check`].
//! - [`managing`]: real shard managers, and moves, splits and merges for them.
//! - [`scaling`]: an operator, which starts etcds for shards that join and removes those that left.
//! - [`truth`]: the line as it follows from the log in meta and the shards' histories, by code of its own; it is brought up
//!   to date, and checked, with each entry of the log.
//! - [`story`]: what a seed makes of all that.
//!
//! # What is checked, at each event
//! Numbers are those of the invariants that clients rely on.
//! 1. Writes and linearizable reads are strictly serializable: each is at its revision, which is above all that anybody
//!    was told before it was asked for, and shows the state of that revision. Headers never go back over all proxies.
//! 2. Key, create, mod, version and lease are the same in every answer and event.
//! 3. A read at a revision shows the state of that revision until it is compacted; pages from any proxies fit.
//! 4. Watches are complete, in order, whole, with what was before; progress is never ahead of events, and is answered.
//! 5. An acknowledged write is there once, one of unknown outcome at most once, a refused one never.
//! 6. Leases end no earlier than their time after the last answered keep-alive; after a revoke nothing is left, and
//!    nothing attaches; in the end nothing of ended leases is left.
//! 7. Below a compaction is ErrCompacted, everything else is served.
//! 8. At one log position all processes know the same revision, compaction and vector.
//! 9. Ranges tile the keyspace.

pub mod actors;
pub mod chaos;
pub mod check;
pub mod etcd;
pub mod managing;
pub mod net;
pub mod process;
pub mod rng;
pub mod scaling;
pub mod state;
pub mod story;
pub mod trace;
pub mod truth;
pub mod world;

use std::{cell::RefCell, sync::Once};

use tokio::runtime::Runtime;

use story::Story;
use world::World;

/// What came of a run.
#[derive(Debug)]
pub struct Told {
    /// A hash over everything that happened.
    pub hash: u64,
    /// How many lines the trace has.
    pub lines: u64,
    /// How many answers and events were checked.
    pub checks: u64,
    /// The story.
    pub story: Story,
    /// Why it failed, if so, and the last lines of the trace.
    pub failure: Option<(String, Vec<String>)>,
}

thread_local! {
    /// The first panic of a task, which the runtime would pass over.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

fn note_panics() {
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANIC.with_borrow_mut(|first| {
                first.get_or_insert_with(|| panic.to_string());
            });
            before(panic);
        }));
    });
    PANIC.take();
}

/// The story of a seed.
pub fn story_of(seed: u64) -> Story {
    Story::of(&rng::Rng::new(seed ^ 0x5707))
}

/// Runs a seed on a runtime with one thread and a clock that stands still.
pub fn run(runtime: Runtime, seed: u64, print: bool) -> Told {
    run_with(runtime, &story_of(seed), seed, print)
}

/// Runs a seed with a story of one's own.
pub fn run_with(runtime: Runtime, story: &Story, seed: u64, print: bool) -> Told {
    sharded_etcd_line::random::seed_this_thread(Some(seed));
    note_panics();
    let told = runtime.block_on(async {
        let world = World::new(seed, story.shards, (story.proxies, story.managers), print);
        let result = story::tell(&world, story).await;
        let (hash, lines) = world.trace.digest();
        let result = result.and_then(|()| PANIC.take().map_or(Ok(()), Err));
        let failure = result.err().map(|why| (why, world.trace.last()));
        Told { hash, lines, checks: world.history.checks(), story: story.clone(), failure }
    });
    sharded_etcd_line::random::seed_this_thread(None);
    told
}
