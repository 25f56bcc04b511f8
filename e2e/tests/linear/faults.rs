//! What goes wrong while the clients work: processes are killed and started again, or frozen for a while, and ranges move.

use std::time::Duration;

use anyhow::Result;
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use sharded_etcd_e2e::cluster::{Cluster, SHARDS};
use sharded_etcd_testkit::Process;
use tokio::time::{Instant, sleep, sleep_until};

/// A process that something happens to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Meta,
    Shard(usize),
    Proxy(usize),
    Manager,
}

const VICTIMS: [Victim; 7] = [
    Victim::Meta,
    Victim::Shard(0),
    Victim::Shard(1),
    Victim::Shard(2),
    Victim::Proxy(0),
    Victim::Proxy(1),
    Victim::Manager,
];

/// Of its own doing.
#[derive(Debug, Clone, Copy)]
enum Harm {
    /// SIGKILL, and started again when it heals.
    Kill,
    /// SIGSTOP, and SIGCONT when it heals.
    Freeze,
}

/// How much happened.
#[derive(Debug, Default)]
pub struct Toll {
    pub kills: usize,
    pub freezes: usize,
    pub moves: usize,
}

/// Lets things go wrong until `until`, then heals everything and waits until it serves.
pub async fn run(cluster: &mut Cluster, random: &mut StdRng, until: Instant) -> Result<Toll> {
    let mut toll = Toll::default();
    loop {
        let pause = Duration::from_millis(random.random_range(200..1500));
        if Instant::now() + pause >= until {
            break;
        }
        sleep(pause).await;
        if random.random_bool(0.3) {
            let pins: Vec<_> = ["/a/", "/b/", "/c/"].map(|p| (p, random.random_range(0..SHARDS))).into();
            println!("pins: {pins:?}");
            cluster.pin(&pins)?;
            toll.moves += 1;
        }
        let count = if random.random_bool(0.25) { 2 } else { 1 };
        let victims: Vec<Victim> = VICTIMS.choose_multiple(random, count).copied().collect();
        let mut harmed = Vec::new();
        for victim in victims {
            let harm = if random.random_bool(0.5) { Harm::Kill } else { Harm::Freeze };
            println!("{harm:?} {victim:?}");
            harmed.push((victim, harm));
            match harm {
                Harm::Kill => toll.kills += 1,
                Harm::Freeze => toll.freezes += 1,
            }
            hurt(cluster, victim, harm).await?;
        }
        // Now and then long enough for sessions and leases to end, and for ranges to move away meanwhile.
        let down = if random.random_bool(0.1) { 6_000..12_000 } else { 20..2_500 };
        let down = Duration::from_millis(random.random_range(down));
        sleep_until((Instant::now() + down).min(until)).await;
        for (victim, harm) in harmed {
            heal(cluster, victim, harm)?;
        }
    }
    for etcd in &mut cluster.etcds {
        etcd.wait_ready().await?;
    }
    cluster.serves().await?;
    cluster.manager.process.check_running()?;
    Ok(toll)
}

async fn hurt(cluster: &mut Cluster, victim: Victim, harm: Harm) -> Result<()> {
    let process = process(cluster, victim);
    // Whoever ended without being told to is a bug.
    process.check_running()?;
    match harm {
        Harm::Kill => process.kill(),
        Harm::Freeze => process.pause().await?,
    }
    Ok(())
}

fn heal(cluster: &mut Cluster, victim: Victim, harm: Harm) -> Result<()> {
    match (victim, harm) {
        (Victim::Meta, Harm::Kill) => cluster.etcds[0].spawn_again(),
        (Victim::Shard(at), Harm::Kill) => cluster.etcds[1 + at].spawn_again(),
        (Victim::Proxy(at), Harm::Kill) => cluster.proxies[at].spawn_again(),
        (Victim::Manager, Harm::Kill) => cluster.manager.spawn_again(),
        (_, Harm::Freeze) => {
            process(cluster, victim).resume();
            Ok(())
        }
    }
}

fn process(cluster: &mut Cluster, victim: Victim) -> &mut Process {
    match victim {
        Victim::Meta => cluster.etcds[0].process(),
        Victim::Shard(at) => cluster.etcds[1 + at].process(),
        Victim::Proxy(at) => &mut cluster.proxies[at].process,
        Victim::Manager => &mut cluster.manager.process,
    }
}
