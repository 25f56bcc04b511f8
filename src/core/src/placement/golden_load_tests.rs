//! Situations with load and the plans for them, beside those of [`super::golden_tests`].
#![allow(clippy::unwrap_used)]

use bytes::Bytes;

use super::{
    Action, Limits, Plan, ShardState,
    golden_tests::{golden, twenty_directories},
    plan,
    world::{World, pin, topology, topology_with, weight},
};
use crate::topology::{RebalanceMode, Topology};

/// Two shards with ten directories of 100 keys each.
fn two_shards(t: &Topology) -> World {
    let mut world = World::new(t);
    world.lay_out(&[("", 0), ("/k/", 1)]);
    twenty_directories(&mut world);
    world
}

fn says(made: &Plan, text: &str) {
    assert!(made.waits.iter().any(|w| w.reason.contains(text)), "{made}");
}

#[test]
fn small_loads_are_left_alone() {
    let t = topology(2);
    let mut world = two_shards(&t);
    world.heat("/b/", 10, 90);
    let made = golden("load_small_differences_are_left_alone", &world.observe(&t), &t);
    assert!(made.balanced && made.steps.is_empty() && made.waits.is_empty());
}

#[test]
fn a_tolerance_of_its_own() {
    let t = topology_with(2, |d| d.load_tolerance = 10_000);
    let mut world = two_shards(&t);
    world.heat("/b/", 10, 400);
    world.heat("/d/", 10, 400);
    let made = golden("load_below_a_tolerance_of_its_own", &world.observe(&t), &t);
    assert!(made.balanced && made.steps.is_empty());
}

#[test]
fn hot_ranges_on_one_shard() {
    let t = topology(3);
    let mut world = World::new(&t);
    world.lay_out(&[("", 0), ("/c/", 0), ("/e/", 0), ("/g/", 0), ("/i/", 1), ("/o/", 2)]);
    twenty_directories(&mut world);
    ('b'..='g').for_each(|letter| world.heat(&format!("/{letter}/"), 40, 50));
    golden("load_hot_ranges_on_one_shard", &world.observe(&t), &t);
    world.settle(&t, &Limits::default(), 20);
    assert!(plan(&world.observe(&t), &t, &Limits::default()).balanced);
}

#[test]
fn hot_directories_are_split_off() {
    let t = topology(2);
    let mut world = two_shards(&t);
    world.heat("/c/", 50, 40);
    world.heat("/g/", 50, 40);
    golden("load_hot_directories_are_split_off", &world.observe(&t), &t);
    let steps = world.settle(&t, &Limits::default(), 10);
    let moved: u64 = steps.iter().filter(|s| matches!(s.action, Action::Move { .. })).map(|s| s.keys).sum();
    assert!(moved <= 200, "only what is hot moves: {moved} keys");
    assert!(plan(&world.observe(&t), &t, &Limits::default()).balanced);
}

#[test]
fn one_hot_directory() {
    let t = topology(2);
    let mut world = two_shards(&t);
    world.heat("/c/", 100, 40);
    let made = golden("load_one_hot_directory_cannot_be_parted", &world.observe(&t), &t);
    assert!(!made.balanced);
    says(&made, "[\"/c/\", \"/c0\") has 4000 ops/s and cannot be parted");
}

#[test]
fn one_hot_key() {
    let t = topology_with(2, |d| d.splittable = vec![Bytes::from_static(b"/c/")]);
    let mut world = two_shards(&t);
    world.heat("/c/", 1, 4000);
    let made = golden("load_one_hot_key_cannot_be_parted", &world.observe(&t), &t);
    assert!(!made.balanced);
    says(&made, "the key \"/c/00000\" alone has 4000 ops/s");
}

#[test]
fn a_hot_splittable_prefix() {
    let t = topology_with(3, |d| d.splittable = vec![Bytes::from_static(b"/registry/pods/")]);
    let mut world = World::new(&t);
    world.fill("/registry/pods/", 60, 100);
    world.heat("/registry/pods/", 60, 100);
    golden("load_a_hot_splittable_prefix", &world.observe(&t), &t);
    world.settle(&t, &Limits::default(), 30);
    assert!(plan(&world.observe(&t), &t, &Limits::default()).balanced);
}

#[test]
fn not_worth_its_move() {
    let t = topology(2);
    let mut world = World::new(&t);
    world.lay_out(&[("", 0), ("/b/", 0), ("/b0", 0), ("/c/", 0), ("/c0", 1)]);
    world.fill("/b/", 256, 4 << 20);
    world.fill("/c/", 256, 4 << 20);
    world.fill("/e/", 512, 4 << 20);
    world.heat("/b/", 100, 10);
    world.heat("/c/", 100, 10);
    let made = golden("load_not_worth_its_move", &world.observe(&t), &t);
    assert!(made.steps.is_empty() && !made.balanced);
    says(&made, "costs more than it evens out");
}

#[test]
fn what_was_moved_lately_rests() {
    let t = topology(2);
    let mut world = World::new(&t);
    world.lay_out(&[("", 0), ("/c/", 0), ("/k/", 1)]);
    twenty_directories(&mut world);
    world.heat("/b/", 50, 60);
    world.heat("/d/", 50, 60);
    world.ranges.iter_mut().for_each(|range| range.rests = true);
    let made = golden("load_moved_lately_rests", &world.observe(&t), &t);
    assert!(made.steps.is_empty());
    says(&made, "rest for now");
}

#[test]
fn keys_on_one_and_load_on_the_other() {
    let t = topology(2);
    let mut world = World::new(&t);
    world.lay_out(&[("", 0), ("/g/", 1)]);
    ["/a/", "/b/", "/c/", "/d/"].into_iter().for_each(|directory| world.fill(directory, 500, 100));
    ["/g/", "/h/", "/i/", "/j/"].into_iter().for_each(|directory| {
        world.fill(directory, 50, 100);
        world.heat(directory, 50, 30);
    });
    golden("load_keys_on_one_and_load_on_the_other", &world.observe(&t), &t);
    world.settle(&t, &Limits::default(), 30);
    assert!(plan(&world.observe(&t), &t, &Limits::default()).balanced);
}

#[test]
fn pinned_load_stays() {
    let t = topology_with(2, |d| d.pins = vec![pin("/c/", 0)]);
    let mut world = World::new(&t);
    world.lay_out(&[("", 0), ("/c/", 0), ("/c0", 0), ("/k/", 1)]);
    twenty_directories(&mut world);
    world.heat("/c/", 100, 40);
    let made = golden("load_pinned_stays", &world.observe(&t), &t);
    says(&made, "pinned there");
}

#[test]
fn manual_and_paused_tell_of_load() {
    for (mode, name) in [(RebalanceMode::Manual, "load_manual"), (RebalanceMode::Paused, "load_paused")] {
        let t = topology_with(2, |d| d.mode = mode);
        let mut world = World::new(&t);
        world.lay_out(&[("", 0), ("/c/", 0), ("/k/", 1)]);
        twenty_directories(&mut world);
        world.heat("/b/", 50, 60);
        world.heat("/d/", 50, 60);
        let made = golden(name, &world.observe(&t), &t);
        assert!(made.ready().count() == 0 && !made.steps.is_empty() && !made.balanced);
        assert_eq!((made.load.highest, made.load.highest_percent), (6000, 200));
    }
}

#[test]
fn hot_ranges_of_a_shard_that_leaves_are_spread() {
    let t = topology(2);
    let mut world = World::new(&topology(3));
    world.lay_out(&[("", 0), ("/h/", 1), ("/o/", 2), ("/q/", 2)]);
    twenty_directories(&mut world);
    world.heat("/p/", 50, 60);
    world.heat("/r/", 50, 60);
    golden("load_of_a_shard_that_leaves", &world.observe(&t), &t);
    world.settle(&t, &Limits::default(), 20);
    let work = world.work_of_shards();
    assert_eq!((work["shard-0"], work["shard-1"]), (3000, 3000));
}

#[test]
fn a_shard_more_takes_load() {
    let t = topology(4);
    let mut world = World::new(&t);
    world.lay_out(&[("", 0), ("/h/", 1), ("/o/", 2)]);
    twenty_directories(&mut world);
    ('a'..='t').for_each(|letter| world.heat(&format!("/{letter}/"), 100, 10));
    golden("load_a_shard_more", &world.observe(&t), &t);
}

#[test]
fn a_heavier_shard_takes_more_load() {
    let t = topology_with(2, |d| d.weights = vec![weight(1, 300)]);
    let mut world = World::new(&t);
    world.lay_out(&[("", 0), ("/b/", 0), ("/f/", 1)]);
    twenty_directories(&mut world);
    ('a'..='e').chain('k'..='o').for_each(|letter| world.heat(&format!("/{letter}/"), 50, 20));
    let made = golden("load_by_weight", &world.observe(&t), &t);
    assert_eq!((made.load.mean, made.load.highest, made.load.highest_percent), (5000, 5000, 200));
    assert!(made.keys.highest_percent <= 120 && !made.balanced);
    world.settle(&t, &Limits::default(), 20);
    let work = world.work_of_shards();
    assert!((2000..=3000).contains(&work["shard-0"]), "its share is 2500: {work:?}");
    assert!(plan(&world.observe(&t), &t, &Limits::default()).balanced);
}

#[test]
fn load_on_an_unreachable_shard() {
    let t = topology(3);
    let mut world = World::new(&t);
    world.lay_out(&[("", 0), ("/h/", 1), ("/o/", 2)]);
    world.shards[0].state = ShardState::Unreachable;
    twenty_directories(&mut world);
    world.heat("/b/", 50, 60);
    world.heat("/d/", 50, 60);
    let made = golden("load_on_an_unreachable_shard", &world.observe(&t), &t);
    assert!(made.steps.is_empty());
    says(&made, "unreachable");
}

#[test]
fn hot_and_not_scanned_yet() {
    let t = topology(2);
    let mut world = two_shards(&t);
    world.heat("/c/", 50, 40);
    world.heat("/g/", 50, 40);
    let mut observation = world.observe(&t);
    observation.ranges[0].cuts = None;
    golden("load_not_scanned_yet", &observation, &t);
}
