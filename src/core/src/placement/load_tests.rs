//! The planner in a closed loop with a load that stands still, moves or swings.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use proptest::{prelude::*, test_runner::RngSeed};

use super::{
    Action, Limits, Plan, Step, plan,
    property_tests::{LIMITS, STEPS_MAX, Situation, is_at_rest, situation},
    world::{World, show, topology},
};
use crate::{keyspace::KeyRange, load::Memory, topology::Topology};

/// Time between two plans.
const ROUND: Duration = Duration::from_secs(30);

/// A world in which time passes, with a shard manager that remembers.
struct Loop {
    topology: Topology,
    world: World,
    memory: Memory,
    now: Duration,
    done: Vec<Step>,
    /// In each round another shard manager leads, which knows what it was told only.
    leaders_change: bool,
}

impl Loop {
    fn new(topology: Topology, world: World) -> Self {
        Self {
            topology,
            world,
            memory: Memory::default(),
            now: Duration::ZERO,
            done: Vec::new(),
            leaders_change: false,
        }
    }

    /// What the shard manager plans now.
    fn plan(&mut self) -> Plan {
        let mut observation = self.world.observe(&self.topology);
        let map: Vec<KeyRange> = observation.ranges.iter().map(|r| r.range.clone()).collect();
        let work: Vec<(usize, f64)> =
            observation.ranges.iter().enumerate().map(|(i, r)| (i, r.work as f64)).collect();
        let peaks: BTreeMap<usize, f64> = self.memory.see(self.now, &work, &map).into_iter().collect();
        for (i, view) in observation.ranges.iter_mut().enumerate() {
            view.work = peaks.get(&i).map_or(0, |work| *work as u64);
            view.rests = self.memory.rests(&view.range, self.now);
        }
        plan(&observation, &self.topology, &Limits::default())
    }

    /// One round: what is ready is carried out, splits at once, and one move.
    fn round(&mut self) {
        loop {
            let Some(step) = self.plan().ready().next().cloned() else { break };
            self.world.apply(&step);
            let is_move = matches!(step.action, Action::Move { .. });
            if is_move {
                self.memory.moved(step.action.range(), self.now);
            }
            self.done.push(step);
            assert!(self.done.len() < 2000, "does not end:\n{}", show(&self.done));
            if is_move {
                break;
            }
        }
        self.now += ROUND;
        if self.leaders_change {
            let told = self.memory.told(self.now);
            self.memory = Memory::default();
            self.memory.recall(&told, self.now);
        }
        self.world.wait();
    }

    fn moves(&self) -> usize {
        self.done.iter().filter(|step| matches!(step.action, Action::Move { .. })).count()
    }

    fn highest_of_mean(&self) -> f64 {
        let work = self.world.work_of_shards();
        let mean = work.values().sum::<u64>() as f64 / work.len() as f64;
        *work.values().max().unwrap() as f64 / mean
    }
}

/// The same few situations each time; with `PROPTEST_CASES` so many others.
fn cases() -> ProptestConfig {
    let default = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_some() {
        return default;
    }
    ProptestConfig { cases: 16, rng_seed: RngSeed::Fixed(20_261_121), ..default }
}

/// Directories `/d000/`, … of ten keys, whose load falls off with their rank, in an order that `seed` makes.
fn zipf(world: &mut World, directories: u64, exponent: f64, total: f64, seed: u64) {
    let sum: f64 = (1..=directories).map(|rank| (rank as f64).powf(-exponent)).sum();
    for i in 0..directories {
        let prefix = format!("/d{i:03}/");
        world.fill(&prefix, 10, 200);
        // A permutation, as the number of directories and the factor have no divisor in common.
        let rank = (i * (2 * seed + 1) + seed) % directories + 1;
        world.heat(&prefix, 10, ((rank as f64).powf(-exponent) / sum * total / 10.0) as u64);
    }
}

/// The highest load is near the mean, or the one directory that is too hot for that is named.
fn is_even_or_explained(state: &mut Loop) -> Result<(), TestCaseError> {
    let highest = state.highest_of_mean();
    let made = state.plan();
    prop_assert!(made.steps.is_empty(), "not at rest: {made}");
    let named = made.waits.iter().any(|w| w.reason.contains("cannot be parted, so no move would help"));
    prop_assert!(
        highest <= 1.3 || named,
        "{highest} × the mean, and no reason:\n{made}\n{}",
        show(&state.done)
    );
    Ok(())
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_zipf_load_is_evened_out_or_the_hot_directory_is_named(
        shards in 2u32..7,
        exponent in 0.4f64..1.3,
        seed in 0u64..32,
    ) {
        let topology = topology(shards);
        let mut world = World::new(&topology);
        zipf(&mut world, 128, exponent, 60_000.0, seed);
        let mut state = Loop::new(topology, world);
        let mut rounds = 0;
        while rounds < 200 {
            let before = state.done.len();
            state.round();
            rounds += 1;
            // Ranges that were moved rest for a while: only then is nothing left to do.
            if state.done.len() == before && state.now > ROUND * 20 && state.plan().steps.is_empty() {
                break;
            }
        }
        is_even_or_explained(&mut state)?;
    }

    /// Whatever load lies wherever: plans end, also if nobody remembers what was moved, and what is not balanced then
    /// has a reason.
    #[test]
    fn with_any_load_plans_come_to_an_end(
        situation in situation(),
        work in prop::collection::vec(prop_oneof![3 => Just(0u64), 2 => 1u64..100, 1 => 100u64..5000], 1..60),
    ) {
        let Situation { topology, mut world } = situation;
        world.work = world.keys.keys().cloned().zip(work.into_iter().cycle()).collect();
        let mut done = Vec::new();
        loop {
            let made = plan(&world.observe(&topology), &topology, &LIMITS);
            let Some(step) = made.ready().next() else {
                is_at_rest(&made)?;
                break;
            };
            world.apply(step);
            world.wait();
            done.push(step.clone());
            prop_assert!(done.len() <= STEPS_MAX, "does not end:\n{}", show(&done));
        }
    }

    /// With load as with keys: between n and n ± 1 shards at most 1.2 times the share of the shard that comes or goes moves.
    #[test]
    fn one_shard_more_or_less_moves_little_of_a_load(n in 300usize..900, shards in 2u32..7, grows: bool, seed in 0u64..1000) {
        let limits = Limits { tolerance_keys: 10, tolerance_bytes: 1000, ..Limits::default() };
        let topology = topology(shards);
        let before = if grows { shards - 1 } else { shards + 1 };
        let mut world = World::new(&topology);
        if !grows {
            world.shard(shards, super::ShardState::Active);
        }
        let start = |i: u32| if i == 0 { String::new() } else { format!("k{:05}", i as usize * n / before as usize) };
        let starts: Vec<String> = (0..before).map(start).collect();
        let layout: Vec<(&str, u32)> = starts.iter().map(String::as_str).zip(0..).collect();
        world.lay_out(&layout);
        world.fill("k", n, 100);
        for i in 0..n {
            let jitter = (i as u64).wrapping_mul(0x9e37_79b9).wrapping_add(seed * 7919) % 40;
            world.work.insert(format!("k{i:05}").into(), 80 + jitter);
        }
        world.cuts_max = 256;
        let owner = |world: &World, key: &Bytes| world.ranges.iter().find(|r| r.range.contains(key)).unwrap().shard.clone();
        let first: Vec<(Bytes, String)> = world.keys.keys().map(|key| (key.clone(), owner(&world, key))).collect();
        loop {
            let made = plan(&world.observe(&topology), &topology, &limits);
            let Some(step) = made.ready().next() else { break };
            world.apply(step);
            world.wait();
        }
        let moved = first.iter().filter(|(key, was)| owner(&world, key) != *was).count();
        let share = n / shards.max(before) as usize;
        prop_assert!(moved * 10 <= share * 12 + 10, "{moved} keys moved, the share is {share}");
    }
}

/// Two shards, five directories, and a load of which a part comes and goes on one side; the moves up to each round of a day.
fn swing(period: usize, leaders_change: bool) -> (Loop, Vec<usize>) {
    let topology = topology(2);
    let mut world = World::new(&topology);
    world.lay_out(&[("", 0), ("/c/", 0), ("/e/", 0), ("/m/", 1), ("/p/", 1)]);
    ["/a/", "/c/", "/e/", "/m/", "/p/"].into_iter().for_each(|directory| world.fill(directory, 10, 1000));
    let mut state = Loop { leaders_change, ..Loop::new(topology, world) };
    let mut moves = Vec::new();
    for round in 0..2880 {
        // Constant on both sides, and as much again that comes and goes on one.
        let is_up = (round / period).is_multiple_of(2);
        state.world.work.clear();
        state.world.heat("/a/", 10, if is_up { 400 } else { 0 });
        state.world.heat("/c/", 10, 100);
        state.world.heat("/e/", 10, 200);
        state.world.heat("/m/", 10, 200);
        state.world.heat("/p/", 10, if is_up { 0 } else { 150 });
        state.round();
        moves.push(state.moves());
    }
    (state, moves)
}

/// Loads that swing, of periods from a minute to hours: what is moved is bounded, however long it goes on.
#[test]
fn nothing_follows_a_swinging_load_to_and_fro() {
    for period in [2, 5, 10, 40, 120, 480] {
        let (state, moves) = swing(period, false);
        // A day: of each of five directories at most one in four hours, after a few with shorter rests.
        let (first, last) = (moves[moves.len() / 24 - 1], moves[moves.len() - 1]);
        assert!(
            last <= 40,
            "period of {period} rounds: {first} moves in an hour, {last} in a day\n{}",
            show(&state.done)
        );
        if period <= 10 {
            assert!(last <= 6, "what swings within minutes is a peak: {last} moves\n{}", show(&state.done));
        }
    }
}

/// The same with another leader in each round, which knows what the one before told it.
#[test]
fn leaders_that_come_and_go_do_not_follow_it_either() {
    for period in [2, 5, 10, 40, 120, 480] {
        let (state, moves) = swing(period, true);
        let last = moves[moves.len() - 1];
        assert!(last <= 40, "period of {period} rounds: {last} moves in a day\n{}", show(&state.done));
    }
}

/// A hot spot that goes from directory to directory is not chased: peaks are remembered.
#[test]
fn a_wandering_hot_spot_is_not_chased() {
    let topology = topology(3);
    let mut world = World::new(&topology);
    world.lay_out(&[("", 0), ("/e/", 1), ("/i/", 2)]);
    let directories: Vec<String> = ('a'..='l').map(|letter| format!("/{letter}/")).collect();
    directories.iter().for_each(|directory| world.fill(directory, 5, 1000));
    let mut state = Loop::new(topology, world);
    for round in 0..1000 {
        state.world.work.clear();
        state.world.heat(&directories[round / 2 % directories.len()], 5, 1000);
        state.round();
    }
    assert!(state.moves() <= 12, "{} moves:\n{}", state.moves(), show(&state.done));
}
