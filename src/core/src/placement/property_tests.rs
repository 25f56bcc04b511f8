//! What holds for any situation: plans are carried out on a model of shards until there is nothing left to do.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;

use super::{
    Action, Limits, Plan, ShardState, plan,
    world::{World, show},
};
use crate::topology::{Draft, DraftPin, Topology, shard_name, validate};

/// Small enough that a few hundred keys are worth a move.
pub(super) const LIMITS: Limits = Limits {
    move_bytes_max: 40_000,
    steps_max: 64,
    tolerance_keys: 10,
    tolerance_bytes: 1_000,
    ranges_per_shard_max: 12,
};
/// No situation below needs more steps; each range is split or moved a few times.
pub(super) const STEPS_MAX: usize = 600;

/// A topology, and a state of it.
#[derive(Debug, Clone)]
pub(super) struct Situation {
    pub(super) topology: Topology,
    pub(super) world: World,
}

fn directory() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "/[a-f]/",
        2 => "/[a-d]/[a-c]/",
        1 => Just("/s/".to_owned()),
        1 => Just(String::new()),
    ]
}

/// Keys in a few directories, some of them splittable, some large.
fn keys() -> impl Strategy<Value = BTreeMap<Bytes, u64>> {
    let group = (directory(), 1usize..120, prop_oneof![Just(20u64), Just(100), Just(3000)]);
    prop::collection::vec(group, 0..8).prop_map(|groups| {
        let mut keys = BTreeMap::new();
        for (directory, n, bytes) in groups {
            for i in 0..n {
                keys.insert(format!("{directory}k{i:03}").into(), bytes);
            }
        }
        keys
    })
}

fn topology() -> impl Strategy<Value = Topology> {
    let pins =
        prop::collection::btree_map(prop_oneof!["/[a-f]/", "/[a-c]/[a-c]/", "/s/k[0-3]"], 0i64..6, 0..4);
    let presplit = prop::collection::btree_set(prop_oneof!["/[a-f]/", "k0[0-9]", "/s/k05"], 0..3);
    (1u32..6, pins, presplit).prop_map(|(shards, pins, presplit)| {
        let mut draft = Draft::new("demo", shards);
        draft.splittable = vec![Bytes::from_static(b"/s/")];
        let pin = |(prefix, shard): (String, i64)| DraftPin {
            prefix: prefix.into(),
            shard: shard % i64::from(shards),
        };
        draft.pins = pins.into_iter().map(pin).collect();
        draft.presplit = presplit.into_iter().map(Bytes::from).collect();
        draft.moves_max = 4;
        validate(draft).unwrap()
    })
}

/// Any state of any topology, without load.
pub(super) fn situation() -> impl Strategy<Value = Situation> {
    let boundaries =
        prop::collection::btree_set(prop_oneof!["/[a-f]/", "/[a-f]/[a-c]/", "/s/k0[0-9]", "k0[0-9]"], 0..10);
    let owners = prop::collection::vec(0u32..7, 11);
    let weights = prop::collection::vec(prop_oneof![4 => Just(100u32), 1 => Just(50), 1 => Just(300)], 7);
    (topology(), keys(), boundaries, owners, weights, 0u32..3, prop_oneof![Just(1000usize), Just(12)])
        .prop_map(|(mut topology, keys, boundaries, owners, weights, leaving, cuts_max)| {
            topology.rebalance.weights = (0..topology.shards).zip(weights).collect();
            let mut world = World::new(&topology);
            for i in 0..leaving {
                world.shard(topology.shards + i, ShardState::Active);
            }
            let shards = world.shards.len() as u32;
            let starts = [String::new()].into_iter().chain(boundaries).collect::<Vec<_>>();
            let layout = starts.iter().zip(owners).map(|(start, owner)| (start.as_str(), owner % shards));
            world.lay_out(&layout.collect::<Vec<_>>());
            world.keys = keys;
            world.cuts_max = cuts_max;
            Situation { topology, world }
        })
}

/// Owner of each key.
fn owners(world: &World) -> BTreeMap<Bytes, String> {
    let owner = |key: &Bytes| world.ranges.iter().find(|r| r.range.contains(key)).unwrap().shard.clone();
    world.keys.keys().map(|key| (key.clone(), owner(key))).collect()
}

/// Whether the shard manager remembers what moved recently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    Remembers,
    Forgets,
}

/// Carries out plans until there is nothing to do, and checks each step on the way.
fn settle(situation: &Situation, memory: Memory) -> Result<World, TestCaseError> {
    let Situation { topology, world } = situation;
    let mut world = world.clone();
    let mut seen =
        owners(&world).into_iter().map(|(key, owner)| (key, vec![owner])).collect::<BTreeMap<_, _>>();
    let mut done = Vec::new();
    loop {
        let observation = world.observe(topology);
        let made = plan(&observation, topology, &LIMITS);
        prop_assert_eq!(&made, &plan(&observation, topology, &LIMITS));
        prop_assert!(made.steps.len() <= LIMITS.steps_max);
        prop_assert_eq!(made.parent_generation, world.generation);
        let Some(step) = made.ready().next() else {
            prop_assert!(made.steps.is_empty(), "steps, but none is ready: {}", made);
            return Ok(world);
        };
        if let Action::Move { range, to, .. } = &step.action {
            let pinned = topology.pin_for(&range.start).map(shard_name);
            prop_assert!(pinned.is_none_or(|pinned| pinned == *to), "against a pin: {}", step);
            prop_assert!(world.shards.iter().any(|s| s.name == *to && s.state == ShardState::Active));
        }
        if let Action::Split { at, .. } = &step.action {
            prop_assert!(topology.keyspace.rules.is_legal_boundary(at), "parts a directory: {}", step);
        }
        prop_assert!(!step.reason.is_empty());
        world.apply(step);
        if memory == Memory::Forgets {
            world.wait();
        }
        done.push(step.clone());
        prop_assert!(done.len() <= STEPS_MAX, "does not end:\n{}", show(&done));
        for (key, owner) in owners(&world) {
            let owners = seen.get_mut(&key).unwrap();
            if owners.last() != Some(&owner) {
                prop_assert!(!owners.contains(&owner), "{:?} goes to and fro:\n{}", key, show(&done));
                owners.push(owner);
            }
        }
    }
}

/// One range on each of the first `shards` shards, with as many of `n` keys.
fn fill_evenly(world: &mut World, n: usize, shards: u32) {
    let start =
        |i: u32| if i == 0 { String::new() } else { format!("k{:05}", i as usize * n / shards as usize) };
    let starts: Vec<_> = (0..shards).map(start).collect();
    let layout: Vec<_> = starts.iter().zip(0..).map(|(start, shard)| (start.as_str(), shard)).collect();
    world.lay_out(&layout);
    world.fill("k", n, 100);
    world.cuts_max = 256;
}

/// A plan of which no step is ready has none, and what is not balanced then has a reason.
pub(super) fn is_at_rest(made: &Plan) -> Result<(), TestCaseError> {
    prop_assert!(made.steps.is_empty(), "steps, but none is ready: {made}");
    prop_assert!(made.balanced || !made.waits.is_empty(), "not balanced, and no reason why: {made}");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn plans_lead_to_what_is_wanted(situation in situation()) {
        let world = settle(&situation, Memory::Remembers)?;
        let topology = &situation.topology;
        let made = plan(&world.observe(topology), topology, &LIMITS);
        for range in &world.ranges {
            prop_assert!(world.shards.iter().position(|s| s.name == range.shard).unwrap() < topology.shards as usize);
        }
        for (key, owner) in owners(&world) {
            let pinned = topology.pin_for(&key).map(shard_name);
            prop_assert!(pinned.is_none_or(|pinned| pinned == owner), "{:?} is on {}", key, owner);
        }
        let starts = world.ranges.iter().map(|r| r.range.start.clone()).collect::<BTreeSet<_>>();
        for boundary in topology.wanted_boundaries() {
            prop_assert!(starts.contains(&boundary), "{:?} is no boundary", boundary);
        }
        if !made.balanced {
            prop_assert!(!made.waits.is_empty(), "not balanced, and no reason why: {}", made);
        }
        // What is left to do once the moves are not recent any more comes to an end, too.
        let mut later = world;
        later.wait();
        settle(&Situation { topology: topology.clone(), world: later }, Memory::Remembers)?;
    }

    /// Also a manager that remembers nothing comes to an end.
    #[test]
    fn forgetful_managers_come_to_an_end(situation in situation()) {
        let Situation { topology, mut world } = situation;
        for _ in 0..STEPS_MAX {
            let made = plan(&world.observe(&topology), &topology, &LIMITS);
            let Some(step) = made.ready().next() else { return Ok(()) };
            world.apply(step);
            world.wait();
        }
        prop_assert!(false, "does not end: {}", plan(&world.observe(&topology), &topology, &LIMITS));
    }

    /// Without pins and large directories there is no excuse.
    #[test]
    fn what_can_be_spread_is_balanced(
        n in 0usize..800,
        shards in 1u32..7,
        leaving in 0u32..3,
        bytes in 30u64..300,
        owners in prop::collection::vec(0u32..9, 4),
    ) {
        let topology = validate(Draft::new("demo", shards)).unwrap();
        let mut world = World::new(&topology);
        (0..leaving).for_each(|i| world.shard(shards + i, ShardState::Active));
        let owner = |i: usize| owners[i] % (shards + leaving);
        world.lay_out(&[("", owner(0)), ("k00100", owner(1)), ("k00300", owner(2)), ("k00500", owner(3))]);
        world.fill("k", n, bytes);
        world.cuts_max = 256;
        let before = plan(&world.observe(&topology), &topology, &LIMITS);
        let settled = settle(&Situation { topology: topology.clone(), world }, Memory::Forgets)?;
        let after = plan(&settled.observe(&topology), &topology, &LIMITS);
        prop_assert!(after.balanced, "{}\nwas {}", after, before);
    }

    /// Between n and n ± 1 equal shards at most 1.2 times the share of the shard that comes or goes moves.
    #[test]
    fn one_shard_more_or_less_moves_little(n in 200usize..900, shards in 2u32..8, grows: bool) {
        let topology = validate(Draft::new("demo", shards)).unwrap();
        let before = if grows { shards - 1 } else { shards + 1 };
        let mut world = World::new(&topology);
        if !grows {
            world.shard(shards, ShardState::Active);
        }
        fill_evenly(&mut world, n, before);
        let first = owners(&world);
        let settled = settle(&Situation { topology, world }, Memory::Forgets)?;
        let last = owners(&settled);
        let moved = first.iter().filter(|(key, owner)| last[*key] != **owner).count();
        let share = n / shards.max(before) as usize;
        prop_assert!(moved * 10 <= share * 12 + 10, "{moved} keys moved, the share is {share}");
    }

    /// When weights change, at most 1.2 times what shards have beyond their new share moves, and nothing is left to do.
    #[test]
    fn other_weights_move_little(
        n in 400usize..900,
        weights in prop::collection::vec(prop_oneof![Just(50u32), Just(100), Just(200), Just(300)], 2..6),
    ) {
        let shards = weights.len() as u32;
        let mut topology = validate(Draft::new("demo", shards)).unwrap();
        let mut world = World::new(&topology);
        fill_evenly(&mut world, n, shards);
        let first = owners(&world);
        let all = weights.iter().sum::<u32>() as usize;
        let beyond = weights.iter().map(|w| (n / weights.len()).saturating_sub(n * *w as usize / all)).sum::<usize>();
        topology.rebalance.weights = (0..).zip(weights).collect();
        let settled = settle(&Situation { topology: topology.clone(), world }, Memory::Forgets)?;
        let last = owners(&settled);
        let moved = first.iter().filter(|(key, owner)| last[*key] != **owner).count();
        prop_assert!(moved * 10 <= beyond * 12 + 100, "{moved} keys moved, {beyond} are beyond the shares");
        let after = plan(&settled.observe(&topology), &topology, &LIMITS);
        prop_assert!(after.balanced && after.steps.is_empty(), "{}", after);
    }

    /// After a directory was splittable it is one range again in the end, whatever else is to be done.
    #[test]
    fn parted_directories_are_brought_together(
        situation in situation(),
        boundaries in prop::collection::btree_map("/[a-e]/k0[0-9]", 0usize..9, 1..6),
    ) {
        let Situation { topology, mut world } = situation;
        for (boundary, owner) in boundaries {
            let boundary = Bytes::from(boundary);
            let Some(i) = world.ranges.iter().position(|r| r.range.contains(&boundary)) else { continue };
            let mut right = world.ranges[i].clone();
            if right.range.start == boundary { continue }
            right.range.start = boundary.clone();
            right.rid = crate::keyspace::Rid::new(format!("x{i}-{boundary:?}"));
            right.shard = world.shards[owner % world.shards.len()].name.clone();
            world.ranges[i].range.end = boundary;
            world.ranges.insert(i + 1, right);
        }
        let settled = settle(&Situation { topology: topology.clone(), world }, Memory::Remembers)?;
        for range in &settled.ranges {
            prop_assert!(topology.keyspace.rules.is_legal_boundary(&range.range.start), "{} is parted", range.range);
        }
    }

    /// The rest of a plan is the plan for the state after its first step.
    #[test]
    fn the_rest_of_a_plan_is_the_next_plan(situation in situation()) {
        let Situation { topology, mut world } = situation;
        world.cuts_max = 100_000;
        let what = |step: &super::Step| match &step.action {
            Action::Split { range, at, .. } => format!("split {range} at {at:?}"),
            Action::Move { range, to, .. } => format!("move {range} to {to}"),
            Action::Merge { .. } => "merge".to_owned(),
        };
        let whole = plan(&world.observe(&topology), &topology, &LIMITS);
        prop_assume!(whole.steps.first().is_some_and(|s| !matches!(s.action, Action::Merge { .. })));
        world.apply(&whole.steps[0]);
        let rest = plan(&world.observe(&topology), &topology, &LIMITS);
        let rest = rest.steps.iter().filter(|s| !matches!(s.action, Action::Merge { .. })).cloned().collect::<Vec<_>>();
        prop_assert!(whole.truncated || rest.len() + 1 == whole.steps.len(), "{}\n\n{}", whole, show(&rest));
        let whole = &whole.steps[1..];
        for (a, b) in whole.iter().zip(&rest) {
            prop_assert_eq!(what(a), what(b), "\n{}\n\n{}", show(whole), show(&rest));
        }
    }
}
