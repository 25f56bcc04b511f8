//! Situations and the plans for them, as text in `snapshots/`: a change of policy shows there.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;

use super::{
    Action, Limits, Observation, Plan, ShardState, plan, plan_approved,
    world::{World, pin, show, topology, topology_with, weight},
};
use crate::{
    orders::{StepKey, plan_id},
    topology::{RebalanceMode, Topology},
};

pub(super) fn golden(name: &str, observation: &Observation, topology: &Topology) -> Plan {
    golden_with(name, observation, topology, &Limits::default())
}

fn golden_with(name: &str, observation: &Observation, topology: &Topology, limits: &Limits) -> Plan {
    let made = plan(observation, topology, limits);
    assert_eq!(made, plan(observation, topology, limits), "not deterministic");
    insta::with_settings!({omit_expression => true, prepend_module_to_snapshot => false}, {
        insta::assert_snapshot!(name, made.to_string());
    });
    made
}

/// Directories `/a/` to `/t/` of 100 keys of 100 bytes.
pub(super) fn twenty_directories(world: &mut World) {
    for letter in 'a'..='t' {
        world.fill(&format!("/{letter}/"), 100, 100);
    }
}

#[test]
fn empty() {
    let t = topology(3);
    let made = golden("empty", &World::new(&t).observe(&t), &t);
    assert!(made.balanced && made.steps.is_empty());
}

#[test]
fn first_spread_over_three() {
    let t = topology(3);
    let mut world = World::new(&t);
    twenty_directories(&mut world);
    golden("first_spread_over_three", &world.observe(&t), &t);
    let steps = world.settle(&t, &Limits::default(), 20);
    assert!(plan(&world.observe(&t), &t, &Limits::default()).balanced, "{}", show(&steps));
}

#[test]
fn keys_without_delimiter() {
    let t = topology(2);
    let mut world = World::new(&t);
    world.fill("key-", 1000, 300);
    golden("keys_without_delimiter", &world.observe(&t), &t);
}

#[test]
fn one_directory_cannot_be_spread() {
    let t = topology(3);
    let mut world = World::new(&t);
    world.fill("/registry/pods/", 1000, 300);
    let made = golden("one_directory_cannot_be_spread", &world.observe(&t), &t);
    assert!(made.steps.is_empty() && !made.balanced);
}

#[test]
fn splittable_directory() {
    let t = topology_with(3, |d| d.splittable = vec![Bytes::from_static(b"/registry/pods/")]);
    let mut world = World::new(&t);
    world.fill("/registry/pods/", 1000, 300);
    golden("splittable_directory", &world.observe(&t), &t);
}

#[test]
fn small_differences_are_left_alone() {
    let t = topology(2);
    let mut world = World::new(&t);
    world.lay_out(&[("", 0), ("m", 1)]);
    world.fill("a", 140, 100);
    world.fill("n", 60, 100);
    golden("small_differences_are_left_alone", &world.observe(&t), &t);
}

#[test]
fn a_sixth_shard_is_filled() {
    let t = topology(6);
    let mut world = World::new(&t);
    world.lay_out(&[("", 0), ("b", 1), ("c", 2), ("d", 3), ("e", 4)]);
    ["a", "b", "c", "d", "e"].into_iter().for_each(|prefix| world.fill(prefix, 1000, 1000));
    golden("a_sixth_shard_is_filled", &world.observe(&t), &t);
}

#[test]
fn three_to_five() {
    let t = topology(5);
    let mut world = World::new(&t);
    world.lay_out(&[("", 0), ("b", 1), ("c", 2)]);
    ["a", "b", "c"].into_iter().for_each(|prefix| world.fill(prefix, 1000, 1000));
    let made = golden("three_to_five", &world.observe(&t), &t);
    // Two of five shards are new: two fifths have to move, a fifth more at most.
    assert!(made.moved_keys() * 10 <= 3000 * 2 / 5 * 12, "{}", made.moved_keys());
}

#[test]
fn five_to_two() {
    let t = topology(2);
    let mut world = World::new(&topology(5));
    world.lay_out(&[("", 0), ("b", 1), ("c", 2), ("d", 3), ("e", 4)]);
    ["a", "b", "c", "d", "e"].into_iter().for_each(|prefix| world.fill(prefix, 1000, 1000));
    let made = golden("five_to_two", &world.observe(&t), &t);
    assert_eq!(made.moved_keys(), 3000);
}

#[test]
fn new_pin_on_part_of_a_range() {
    let t = topology_with(3, |d| d.pins = vec![pin("/e/", 2)]);
    let mut world = World::new(&topology(3));
    world.lay_out(&[("", 0), ("/h/", 1), ("/o/", 2)]);
    twenty_directories(&mut world);
    golden("new_pin_on_part_of_a_range", &world.observe(&t), &t);
}

#[test]
fn nested_pins() {
    let t = topology_with(3, |d| d.pins = vec![pin("/a/", 1), pin("/a/b/", 2)]);
    let mut world = World::new(&topology(3));
    ["/a/", "/a/b/", "/a/c/", "/d/"].into_iter().for_each(|prefix| world.fill(prefix, 50, 100));
    golden("nested_pins", &world.observe(&t), &t);
}

#[test]
fn pins_overload_a_shard() {
    let t = topology_with(3, |d| d.pins = vec![pin("/e/", 0)]);
    let mut world = World::new(&t);
    world.fill("/e/", 5000, 100);
    world.fill("/f/", 500, 100);
    golden("pins_overload_a_shard", &world.observe(&t), &t);
}

#[test]
fn presplit_added_later() {
    let t = topology_with(2, |d| d.presplit = vec![Bytes::from_static(b"/g/"), Bytes::from_static(b"/p/")]);
    let mut world = World::new(&topology(2));
    world.fill("/a/", 10, 100);
    golden("presplit_added_later", &world.observe(&t), &t);
}

#[test]
fn unreachable_shard() {
    let t = topology_with(3, |d| d.pins = vec![pin("/b/", 2)]);
    let mut world = World::new(&topology(3));
    world.shards[2].state = ShardState::Unreachable;
    twenty_directories(&mut world);
    golden("unreachable_shard", &world.observe(&t), &t);
}

#[test]
fn leaving_shard_is_unreachable_and_another_joins() {
    let t = topology(2);
    let mut world = World::new(&topology(3));
    world.shards[1].state = ShardState::Joining;
    world.shards[2].state = ShardState::Unreachable;
    world.lay_out(&[("", 0), ("/h/", 2)]);
    twenty_directories(&mut world);
    golden("leaving_shard_is_unreachable_and_another_joins", &world.observe(&t), &t);
}

#[test]
fn large_ranges_are_split_before_they_move() {
    let t = topology(2);
    let mut world = World::new(&t);
    world.fill("key-", 4000, 1 << 20);
    golden("large_ranges_are_split_before_they_move", &world.observe(&t), &t);
}

#[test]
fn move_under_way() {
    let t = topology(2);
    let mut world = World::new(&t);
    world.lay_out(&[("", 0), ("/e/", 0), ("/h/", 0)]);
    world.ranges[1].moving_to = Some("shard-1".to_owned());
    twenty_directories(&mut world);
    golden("move_under_way", &world.observe(&t), &t);
}

#[test]
fn manual_and_paused() {
    for (mode, name) in [(RebalanceMode::Manual, "manual"), (RebalanceMode::Paused, "paused")] {
        let t = topology_with(2, |d| d.mode = mode);
        let mut world = World::new(&t);
        twenty_directories(&mut world);
        let made = golden(name, &world.observe(&t), &t);
        assert_eq!(made.ready().count(), 0);
    }
}

#[test]
fn approved_steps_are_carried_out_in_mode_manual() {
    let t = topology_with(2, |d| d.mode = RebalanceMode::Manual);
    let mut world = World::new(&t);
    twenty_directories(&mut world);
    let limits = Limits::default();
    let shown = plan(&world.observe(&t), &t, &limits);
    let approved: Vec<StepKey> = shown.steps.iter().map(StepKey::of).collect();
    let hint = format!("sharded-etcd approve {}", plan_id(&shown.steps));
    assert!(shown.waits.iter().any(|w| w.reason.contains(&hint)), "{shown}");

    // The move can begin once the split is done, though the range has another id then.
    for action in ["split", "move"] {
        let allowed = plan_approved(&world.observe(&t), &t, &limits, &approved);
        let ready: Vec<_> = allowed.ready().cloned().collect();
        assert_eq!(ready.len(), 1, "{allowed}");
        assert!(ready[0].to_string().starts_with(action), "{allowed}");
        world.apply(&ready[0]);
    }
    let rest = plan_approved(&world.observe(&t), &t, &limits, &approved);
    assert!(rest.balanced && rest.steps.is_empty(), "{rest}");

    // What nobody approved waits, and Paused begins nothing whatever was approved.
    let mut world = World::new(&t);
    twenty_directories(&mut world);
    assert_eq!(plan_approved(&world.observe(&t), &t, &limits, &approved[1..]).ready().count(), 0);
    let paused = topology_with(2, |d| d.mode = RebalanceMode::Paused);
    assert_eq!(plan_approved(&world.observe(&paused), &paused, &limits, &approved).ready().count(), 0);
}

#[test]
fn not_scanned_yet() {
    let t = topology(2);
    let mut world = World::new(&t);
    twenty_directories(&mut world);
    let mut observation = world.observe(&t);
    observation.ranges[0].cuts = None;
    golden("not_scanned_yet", &observation, &t);
}

#[test]
fn keys_on_one_and_bytes_on_the_other() {
    let t = topology(2);
    let mut world = World::new(&t);
    world.lay_out(&[("", 0), ("m", 1)]);
    world.fill("a", 10_000, 100);
    world.fill("n", 100, 1 << 20);
    golden("keys_on_one_and_bytes_on_the_other", &world.observe(&t), &t);
    world.settle(&t, &Limits::default(), 20);
    assert!(plan(&world.observe(&t), &t, &Limits::default()).balanced);
}

#[test]
fn many_small_ranges_are_merged() {
    let t = topology_with(1, |d| d.presplit = vec![Bytes::from_static(b"c")]);
    let mut world = World::new(&t);
    world.lay_out(&[("", 0), ("b", 0), ("c", 0), ("d", 0), ("e", 0), ("f", 0)]);
    ["a", "b", "c", "d", "e", "f"]
        .into_iter()
        .zip([1, 2, 3, 4, 5, 6])
        .for_each(|(p, n)| world.fill(p, n, 100));
    let limits = Limits { ranges_per_shard_max: 4, ..Limits::default() };
    golden_with("many_small_ranges_are_merged", &world.observe(&t), &t, &limits);
}

#[test]
fn directory_is_no_longer_splittable() {
    let t = topology(3);
    let mut world = World::new(&t);
    world.lay_out(&[("", 0), ("/p/00305", 1), ("/p/00405", 2)]);
    world.fill("/p/", 1000, 100);
    golden("directory_is_no_longer_splittable", &world.observe(&t), &t);
    world.settle(&t, &Limits::default(), 10);
    assert_eq!(world.ranges.len(), 1);
}

#[test]
fn one_shard_has_nowhere_to_go() {
    let t = topology(1);
    let mut world = World::new(&t);
    twenty_directories(&mut world);
    let made = golden("one_shard_has_nowhere_to_go", &world.observe(&t), &t);
    assert!(made.balanced && made.steps.is_empty());
}

#[test]
fn a_heavier_shard_gets_more() {
    let t = topology_with(2, |d| d.weights = vec![weight(1, 300)]);
    let mut world = World::new(&t);
    twenty_directories(&mut world);
    golden("a_heavier_shard_gets_more", &world.observe(&t), &t);
    world.settle(&t, &Limits::default(), 10);
    let on_heavy =
        world.observe(&t).ranges.iter().filter(|r| r.shard == "shard-1").map(|r| r.keys).sum::<u64>();
    assert!((1400..=1600).contains(&on_heavy), "{on_heavy}");
}

/// Keys on each shard of `t`, in its order.
fn keys_of_shards(world: &World, t: &Topology) -> Vec<u64> {
    let ranges = world.observe(t).ranges;
    let keys = |name: &str| ranges.iter().filter(|r| r.shard == name).map(|r| r.keys).sum();
    world.shards.iter().map(|shard| keys(&shard.name)).collect()
}

#[test]
fn weights_are_what_there_is() {
    let t = topology_with(3, |d| d.weights = vec![weight(0, 40), weight(1, 60)]);
    let mut world = World::new(&t);
    world.lay_out(&[("", 0), ("/e/", 1), ("/k/", 2)]);
    twenty_directories(&mut world);
    let made = golden("weights_are_what_there_is", &world.observe(&t), &t);
    assert!(made.balanced && made.steps.is_empty() && made.waits.is_empty());
    assert_eq!((made.keys.highest_shard.as_str(), made.keys.highest_percent), ("shard-0", 100));
}

#[test]
fn equal_halves_are_out_of_balance_by_weight() {
    let t = topology_with(2, |d| d.weights = vec![weight(0, 50)]);
    let mut world = World::new(&t);
    world.lay_out(&[("", 0), ("/e/", 0), ("/k/", 1)]);
    twenty_directories(&mut world);
    let made = golden("weights_equal_halves", &world.observe(&t), &t);
    assert!(!made.balanced);
    assert_eq!((made.keys.mean, made.keys.highest_percent), (1000, 150));
    let steps = world.settle(&t, &Limits::default(), 10);
    let moved: u64 = steps.iter().filter(|s| matches!(s.action, Action::Move { .. })).map(|s| s.keys).sum();
    // A third is the share, which is 333 less than there is.
    assert!((300..=400).contains(&moved), "{moved}:\n{}", show(&steps));
    assert!(plan(&world.observe(&t), &t, &Limits::default()).balanced);
}

#[test]
fn a_light_shard_joins() {
    let t = topology_with(3, |d| d.weights = vec![weight(2, 25)]);
    let mut world = World::new(&t);
    world.lay_out(&[("", 0), ("/k/", 1)]);
    twenty_directories(&mut world);
    golden("weights_a_light_shard_joins", &world.observe(&t), &t);
    let steps = world.settle(&t, &Limits::default(), 10);
    let keys = keys_of_shards(&world, &t);
    assert!((200..=267).contains(&keys[2]), "its share is 222: {keys:?}\n{}", show(&steps));
}

#[test]
fn a_shard_that_leaves_is_spread_by_weight() {
    let t = topology_with(2, |d| d.weights = vec![weight(1, 300)]);
    let mut world = World::new(&topology(3));
    world.lay_out(&[("", 0), ("/f/", 1), ("/k/", 2), ("/p/", 2)]);
    twenty_directories(&mut world);
    golden("weights_a_shard_leaves", &world.observe(&t), &t);
    world.settle(&t, &Limits::default(), 20);
    let keys = keys_of_shards(&world, &t);
    assert!((400..=600).contains(&keys[0]) && keys[2] == 0, "{keys:?}");
}

#[test]
fn what_is_pinned_outweighs_the_weight() {
    let t = topology_with(2, |d| {
        d.weights = vec![weight(0, 10)];
        d.pins = vec![pin("/b/", 0), pin("/c/", 0), pin("/d/", 0), pin("/e/", 0)];
    });
    let mut world = World::new(&t);
    twenty_directories(&mut world);
    world.settle(&t, &Limits::default(), 40);
    let made = golden("weights_and_pins", &world.observe(&t), &t);
    assert!(made.steps.is_empty() && !made.balanced);
    assert_eq!(keys_of_shards(&world, &t), [400, 1600]);
}

#[test]
fn what_moved_recently_stays() {
    let t = topology(2);
    let mut world = World::new(&t);
    world.lay_out(&[("", 0), ("/h/", 0)]);
    world.ranges.iter_mut().for_each(|range| range.moved_recently = true);
    twenty_directories(&mut world);
    let made = golden("what_moved_recently_stays", &world.observe(&t), &t);
    assert!(made.steps.is_empty() && !made.balanced);
}

#[test]
fn paused_while_a_shard_leaves() {
    let t = topology_with(1, |d| d.mode = RebalanceMode::Paused);
    let mut world = World::new(&topology(2));
    world.lay_out(&[("", 0), ("/h/", 1)]);
    twenty_directories(&mut world);
    let made = golden("paused_while_a_shard_leaves", &world.observe(&t), &t);
    assert!(made.ready().count() == 0 && !made.balanced);
}

#[test]
fn a_large_pinned_range_moves_in_pieces() {
    let t = topology_with(2, |d| d.pins = vec![pin("key-", 1)]);
    let mut world = World::new(&topology(2));
    world.fill("key-", 1500, 1 << 20);
    golden("a_large_pinned_range_moves_in_pieces", &world.observe(&t), &t);
}

#[test]
fn all_shards_are_unreachable() {
    let t = topology(2);
    let mut world = World::new(&t);
    twenty_directories(&mut world);
    world.shards.iter_mut().for_each(|shard| shard.state = ShardState::Unreachable);
    assert!(golden("all_shards_are_unreachable", &world.observe(&t), &t).steps.is_empty());
}

#[test]
fn a_long_way_is_planned_in_pieces() {
    let t = topology(8);
    let mut world = World::new(&t);
    world.fill("key-", 2000, 1000);
    let limits = Limits { steps_max: 5, ..Limits::default() };
    assert!(golden_with("a_long_way_is_planned_in_pieces", &world.observe(&t), &t, &limits).truncated);
}

#[test]
fn without_a_delimiter_any_key_is_a_boundary() {
    let t = topology_with(2, |d| d.delimiter = Bytes::new());
    let mut world = World::new(&t);
    world.fill("/registry/pods/", 1000, 300);
    assert!(!golden("without_a_delimiter_any_key_is_a_boundary", &world.observe(&t), &t).steps.is_empty());
}

#[test]
fn large_values_on_one_shard() {
    let t = topology(2);
    let mut world = World::new(&t);
    world.lay_out(&[("", 0), ("m", 1)]);
    world.fill("a", 1000, 100_000);
    world.fill("n", 1000, 100);
    golden("large_values_on_one_shard", &world.observe(&t), &t);
}
