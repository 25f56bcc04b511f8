//! What many steady resources cost the operator: `cargo run --profile ci -p sharded-etcd-operator --example steady`.
//!
//! A first process makes the resources and everything in them on a scripted API server, lets the operator bring them to
//! rest, and writes the objects to a file. A second one, which has run no operator before, reads them, starts the
//! operator, and measures: so memory is not that of making them. Time is simulated.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement, run by hand")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write},
    process::Command,
};

use serde_json::{Value, json};
use support::{
    kinds::ALL,
    managers::{Managers, Topology},
    server::Watching,
    store::Store,
    world::{Snapshot, World},
};

const FIRST: &str = "space-000";
const STEADY_S: u32 = 600;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    tokio::time::pause();
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("measure") => measure(&arguments[2]).await,
        count => {
            let count = count.map_or(200, |n| n.parse().unwrap());
            let file = std::env::temp_dir().join(format!("sharded-etcd-steady-{}.jsonl", std::process::id()));
            make(count, file.to_str().unwrap()).await;
            let status = Command::new(&arguments[0]).args(["measure", file.to_str().unwrap()]).status();
            std::fs::remove_file(&file).unwrap();
            assert!(status.unwrap().success(), "the measurement failed");
        }
    }
}

/// One resource of the default size is brought to rest, and copied; then the operator has a look at all of them.
async fn make(count: u32, file: &str) {
    let mut world = World::default();
    world.apply_in(FIRST, "demo", json!({"shards": 3}));
    let operator = world.start(Watching::Fresh);
    world.until("the first is ready", |w| w.is_ready_in(FIRST, "demo")).await;
    world.settle(&operator).await;
    operator.end().await;
    let mut all = world.snapshot();
    let (uid, topology) = all.managers.topologies.iter().next().map(|(u, t)| (u.clone(), t.clone())).unwrap();
    let disks = all.machines.disks.clone();
    for n in 1..count {
        all.store.copy_namespace(FIRST, &format!("space-{n:03}"), n);
        let of_copy = |text: &str| text.replace("-4000-8000-", &format!("-4000-8{n:03x}-"));
        all.machines.disks.extend(disks.iter().map(|(uid, token)| (of_copy(uid), of_copy(token))));
        let uid = uid.replace("-4000-8000-", &format!("-4000-8{n:03x}-"));
        all.managers.topologies.insert(uid, topology.clone());
    }
    let mut world = World::from(all);
    let operator = world.start(Watching::Fresh);
    world.settle(&operator).await;
    operator.end().await;
    let ready = (0..count).filter(|n| world.is_ready_in(&format!("space-{n:03}"), "demo")).count();
    assert_eq!(ready, count as usize, "not all are ready: {}", world.story());
    let all = world.snapshot();
    let mut out = BufWriter::new(File::create(file).unwrap());
    writeln!(out, "{}", serde_json::to_string(&all.managers.topologies).unwrap()).unwrap();
    for (key, object) in all.store.all() {
        writeln!(out, "{} {object}", key.kind().index()).unwrap();
    }
}

async fn measure(file: &str) {
    let mut lines = BufReader::new(File::open(file).unwrap()).lines().map(Result::unwrap);
    let topologies: BTreeMap<String, Topology> = serde_json::from_str(&lines.next().unwrap()).unwrap();
    let mut store = Store::default();
    let (mut objects, mut pods) = (0, 0);
    for line in lines {
        let (kind, object) = line.split_once(' ').unwrap();
        let kind = ALL[kind.parse::<usize>().unwrap()];
        let object: Value = serde_json::from_str(object).unwrap();
        objects += 1;
        pods += u32::from(kind.kind == "Pod");
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
        store.load(kind, &namespace, object);
    }
    let resources = topologies.len();
    let mut managers = Managers::default();
    managers.topologies = topologies;
    let mut world =
        World::from(Snapshot { store, machines: support::controllers::Machines::default(), managers });
    for _ in 0..5 {
        world.tick().await;
    }
    let before = resident_kib();
    let (cpu, operator) = (cpu_ms(), world.start(Watching::Fresh));
    for _ in 0..120 {
        world.tick().await;
    }
    println!("{resources} resources, {objects} objects, {pods} of them pods");
    println!("start: {} ms of CPU, {} calls", cpu_ms() - cpu, operator.link.calls().len());
    println!("memory: {} MiB more than before the operator", (resident_kib() - before) / 1024);
    let (cpu, calls) = (cpu_ms(), operator.link.calls().len());
    for _ in 0..STEADY_S {
        world.tick().await;
    }
    let spent = cpu_ms() - cpu;
    let all = operator.link.calls();
    let writes = all[calls..].iter().filter(|call| call.mutates()).count();
    println!(
        "{STEADY_S} steady seconds: {writes} writes, {} reads, {spent} ms of CPU ({:.2} % of a core), {} MiB",
        all.len() - calls - writes,
        f64::from(u32::try_from(spent).unwrap()) / f64::from(STEADY_S) / 10.0,
        (resident_kib() - before) / 1024
    );
    assert_eq!(writes, 0, "a steady resource is written");
    operator.end().await;
}

/// Resident memory of this process.
fn resident_kib() -> i64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<i64>().unwrap() * 4
}

/// Time that this process's only thread has run, of the test's own parts too.
fn cpu_ms() -> i64 {
    let schedstat = std::fs::read_to_string("/proc/self/schedstat").unwrap();
    schedstat.split(' ').next().unwrap().parse::<i64>().unwrap() / 1_000_000
}
