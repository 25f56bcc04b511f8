//! How long a plan takes: `cargo run --release -p sharded-etcd-core --example plan_many [SHARDS] [RANGES]`.
//!
//! Situations in which much is to be done, as those cost most; the best of five runs each.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a measurement, run by hand"
)]

use std::{hint::black_box, time::Instant};

use bytes::Bytes;
use sharded_etcd_core::{
    keyspace::{KeyRange, Rid},
    placement::{CutPoint, Limits, Observation, RangeView, ShardState, ShardView, plan},
    topology::{Draft, DraftPin, Topology, shard_name, validate},
};

/// Ranges `/d0000000/`, `/d0000001/`, … of 1,000 keys and 10 MiB, with ten cut points each; `owner` says whose they are.
fn observe(shards: u32, ranges: u32, owner: impl Fn(u32) -> u32) -> Observation {
    let start = |i: u32| if i == 0 { Bytes::new() } else { Bytes::from(format!("/d{i:07}/")) };
    let cut = |i: u32, part: u64| CutPoint {
        at: Bytes::from(format!("/d{i:07}/{part}/")),
        keys_before: 100 * part,
        bytes_before: (1 << 20) * part,
        work_before: 0,
        guessed: false,
    };
    let view = |i: u32| RangeView {
        range: KeyRange::new(start(i), if i + 1 == ranges { Bytes::new() } else { start(i + 1) }),
        rid: Rid::new(format!("r{i}")),
        shard: shard_name(owner(i)),
        keys: 1000,
        bytes: 10 << 20,
        work: 0,
        hot: None,
        rests: false,
        cuts: Some((1..10).map(|part| cut(i, part)).collect()),
        moving_to: None,
        moved_recently: false,
    };
    let shard = |i| ShardView { name: shard_name(i), state: ShardState::Active, used_bytes: 0 };
    Observation {
        generation: 1,
        shards: (0..shards).map(shard).collect(),
        ranges: (0..ranges).map(view).collect(),
    }
}

/// The same with so many operations a second in each range, most of them between its third and fourth cut point.
fn with_load(mut observation: Observation, work: impl Fn(u32) -> u64) -> Observation {
    for (view, i) in observation.ranges.iter_mut().zip(0..) {
        view.work = work(i);
        for (cut, nth) in view.cuts.iter_mut().flatten().zip(1u64..) {
            cut.work_before = view.work * if nth > 3 { 90 + nth } else { nth } / 100;
        }
    }
    observation
}

fn measure(what: &str, observation: &Observation, topology: &Topology) {
    let limits = Limits::default();
    let mut best = f64::INFINITY;
    let mut steps = 0;
    for _ in 0..5 {
        let begun = Instant::now();
        let made = black_box(plan(black_box(observation), topology, &limits));
        best = best.min(begun.elapsed().as_secs_f64());
        steps = made.steps.len();
    }
    println!("| {what} | {steps} | {:.1} |", best * 1000.0);
}

fn main() {
    let mut numbers = std::env::args().skip(1).map(|n| n.parse::<u32>().unwrap());
    let (shards, ranges) = (numbers.next().unwrap_or(1000), numbers.next().unwrap_or(100_000));
    let topology = |shards: u32, change: &dyn Fn(&mut Draft)| {
        let mut draft = Draft::new("demo", i64::from(shards).try_into().unwrap());
        change(&mut draft);
        validate(draft).unwrap()
    };
    let plain = topology(shards, &|_| {});
    println!("{shards} shards, {ranges} ranges\n\n| situation | steps | ms |\n| --- | ---: | ---: |");
    measure("balanced", &observe(shards, ranges, |i| i % shards), &plain);
    measure("all on one shard", &observe(shards, ranges, |_| 0), &plain);
    measure(
        "one shard has twice its share",
        &observe(shards, ranges, |i| if i % 997 == 0 { 0 } else { i % shards }),
        &plain,
    );
    measure("half of the shards are empty", &observe(shards, ranges, |i| i % (shards / 2)), &plain);
    let fewer = topology(shards - 10, &|_| {});
    measure("ten shards leave", &observe(shards, ranges, |i| i % shards), &fewer);
    // A thousandth of the ranges has as much load as all others together.
    let hot = |i: u32| if i % 1000 == 7 { 200_000 } else { 200 };
    measure("balanced, with load", &with_load(observe(shards, ranges, |i| i % shards), |_| 1000), &plain);
    measure("hot ranges anywhere", &with_load(observe(shards, ranges, |i| i % shards), hot), &plain);
    measure(
        "all hot ranges on one shard",
        &with_load(observe(shards, ranges, |i| if i % 1000 == 7 { 0 } else { i % shards }), hot),
        &plain,
    );
    let pinned = topology(shards, &|draft| {
        let pin = |i: u32| DraftPin {
            prefix: Bytes::from(format!("/d{:07}/", i * 97)),
            shard: i64::from(i % shards),
        };
        draft.pins = (0..200).map(pin).collect();
    });
    measure("200 pins elsewhere", &observe(shards, ranges, |i| (i + 1) % shards), &pinned);
}
