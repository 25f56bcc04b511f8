//! Seeds of the simulation.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // in what the tests share

use std::sync::atomic::{AtomicU64, Ordering};

use sharded_etcd_sim::{Told, run, story::Story, story_of};

fn told(seed: u64, print: bool) -> Told {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    run(runtime, seed, print)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Fails with what went wrong, and how to see it again.
fn require_good(seed: u64, told: &Told) {
    if let Some((why, last)) = &told.failure {
        for line in last {
            println!("{line}");
        }
        panic!(
            "seed {seed}: {why}\n  see it again: SIM_SEED={seed} cargo test -p sharded-etcd-sim one_seed -- --nocapture"
        );
    }
}

/// `SIM_SEED` alone, with its trace; one that is known to be good without it.
#[test]
fn one_seed() {
    let seed = number("SIM_SEED");
    if seed.is_some() {
        // With RUST_LOG, what the processes say too.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .without_time()
            .with_writer(std::io::stderr)
            .try_init();
    }
    let told = told(seed.unwrap_or(1), seed.is_some());
    println!("{} lines, {} checks, hash {:016x}", told.lines, told.checks, told.hash);
    require_good(seed.unwrap_or(1), &told);
}

/// `SIM_SEEDS` seeds from `SIM_FIRST` on, on all processors.
#[test]
fn many_seeds() {
    many(number("SIM_FIRST").unwrap_or(0), number("SIM_SEEDS").unwrap_or(2000), |_| true);
}

/// The same, but only of stories in which shards join and leave, which one seed in ten tells: for long runs of these alone.
#[test]
fn many_seeds_with_shards_that_come_and_go() {
    let first = number("SIM_FIRST").unwrap_or(1_000_000);
    many(first, number("SIM_SEEDS").unwrap_or(200), |story| !story.scales.is_empty());
}

fn many(first: u64, count: u64, wanted: impl Fn(&Story) -> bool + Sync) {
    let next = AtomicU64::new(first);
    let (runs, checks) = (AtomicU64::new(0), AtomicU64::new(0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!("seeds {first} to {}", first + count - 1);
    let one = || loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= first + count {
            return;
        }
        if !wanted(&story_of(seed)) {
            continue;
        }
        let told = told(seed, false);
        runs.fetch_add(1, Ordering::Relaxed);
        checks.fetch_add(told.checks, Ordering::Relaxed);
        if told.failure.is_some() {
            next.store(first + count, Ordering::Relaxed);
        }
        require_good(seed, &told);
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(one);
        }
    });
    println!("{} of {count} seeds, {} checks", runs.into_inner(), checks.into_inner());
}

/// Seeds that have found something, and what.
const FOUND: [(u64, &str); 6] = [
    (
        79,
        "a proxy that was parted from a shard while that was compacted told watchers that all up to the line's end was",
    ),
    (14_523, "a watcher was told compacted as history was for another, which had gone meanwhile"),
    (39_549, "a base stream that was late told watchers that all up to the line's end was compacted"),
    (
        62_883,
        "the override of an imported key was kept from the middle of the import, as a base stream passed over the rest",
    ),
    (
        1_000_022_409,
        "a deletion that was numbered late, at the compaction's revision, made up when its keys were made",
    ),
    (
        1_000_044_187,
        "a shard left with history of a flip that came while the manager looked at another shard",
    ),
];

/// What was found stays found. Seeds mean something else once the stories change: the fixes have tests of their own.
#[test]
fn found_seeds() {
    for (seed, what) in FOUND {
        println!("seed {seed}: {what}");
        require_good(seed, &told(seed, false));
    }
}

/// The same seed is the same run.
#[test]
fn a_seed_repeats_itself() {
    for seed in 0..20 {
        let (first, second) = (told(seed, false), told(seed, false));
        assert_eq!((first.hash, first.lines), (second.hash, second.lines), "seed {seed}: {:?}", first.story);
        assert!(first.lines > 10);
    }
}

/// Each way to break the protocol is noticed within so many seeds.
#[cfg(debug_assertions)]
#[test]
fn sabotage_is_noticed() {
    use sharded_etcd_core::sabotage::{Sabotage, set};
    const SEEDS_MAX: u64 = 400;
    for sabotage in Sabotage::ALL {
        set(Some(sabotage));
        let noticed = (0..SEEDS_MAX).find_map(|seed| Some((seed, told(seed, false).failure?.0)));
        set(None);
        let (seed, why) =
            noticed.unwrap_or_else(|| panic!("{sabotage:?} is not noticed within {SEEDS_MAX} seeds"));
        let why: String = why.chars().take(160).collect();
        println!("{sabotage:?} is noticed at seed {seed}: {why}");
    }
}
