//! One store, whatever happens: histories of clients of two proxies over real etcds, while proxies, shards, meta and the shard
//! manager are killed and frozen, ranges move and history is compacted, are linearizable; watches see every write once and in order.
//!
//! `LIN_SECONDS` is how long the clients work (25 unless told, in rounds), `LIN_SEED` repeats the choices of a run, not the
//! moments at which they meet the processes.
// What happened is printed, for whoever looks into a failed run.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod books;
mod clients;
mod faults;
mod judge;
mod watching;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use etcd_client::Client;
use futures::future::try_join_all;
use rand::{Rng, SeedableRng, rngs::StdRng};
use sharded_etcd_crd::KeyspaceSpec;
use sharded_etcd_e2e::cluster::Cluster;
use sharded_etcd_testkit::wait_until;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use books::Bookkeeper;
use clients::{Diary, Shared, Worker};
use judge::Record;

/// Histories are judged in pieces of this length.
const ROUND: Duration = Duration::from_secs(25);
/// How long watches may take to catch up after the last fault.
const CATCH_UP_MAX: Duration = Duration::from_secs(60);

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn histories_over_two_proxies_are_linearizable_while_processes_are_killed_and_frozen() -> Result<()> {
    let seed = number("LIN_SEED").unwrap_or_else(|| rand::rng().random());
    let seconds = number("LIN_SECONDS").unwrap_or(ROUND.as_secs());
    println!("LIN_SEED={seed} LIN_SECONDS={seconds}");
    let mut random = StdRng::seed_from_u64(seed);
    let presplit = clients::FOLDERS[1..].iter().map(|&folder| folder.to_owned()).collect();
    let mut cluster = Cluster::start(KeyspaceSpec { presplit, ..KeyspaceSpec::default() }).await?;
    let rounds = seconds.div_ceil(ROUND.as_secs()).max(1);
    for round in 0..rounds {
        let length = Duration::from_secs(seconds) / u32::try_from(rounds)?;
        run_round(&mut cluster, &mut random, round, length)
            .await
            .with_context(|| format!("round {round} of LIN_SEED={seed}"))?;
    }
    Ok(())
}

async fn run_round(cluster: &mut Cluster, random: &mut StdRng, round: u64, length: Duration) -> Result<()> {
    let endpoints: Vec<String> = cluster.proxies.iter().map(|proxy| proxy.endpoint.clone()).collect();
    let before = write(&endpoints[0], "/last").await?;
    let begun = Instant::now();
    let shared = Arc::new(Shared {
        keys: clients::keys(round),
        books: books::keys(round),
        begun,
        until: begun + length,
        newest: AtomicI64::new(before),
        first: before,
        watched: [AtomicI64::new(before), AtomicI64::new(before)],
        compacting: AtomicI64::new(0),
        compacted: AtomicI64::new(0),
    });
    let (last, told) = watch::channel(None);
    let watches: Vec<_> = endpoints
        .iter()
        .enumerate()
        .map(|(slot, endpoint)| {
            let shared = Arc::clone(&shared);
            tokio::spawn(watching::watch(shared, endpoint.clone(), before + 1, told.clone(), Some(slot)))
        })
        .collect();
    let compactor = tokio::spawn(clients::compact(Arc::clone(&shared), endpoints.clone()));
    // Three clients of each proxy, and two that use both.
    let uses = [vec![&endpoints[..1]; 3], vec![&endpoints[1..]; 3], vec![&endpoints[..]; 2]].concat();
    let mut workers = Vec::new();
    for (endpoints, number) in uses.into_iter().zip(1..) {
        let worker = Worker::new(Arc::clone(&shared), endpoints, random.random(), round * 100 + number);
        workers.push(tokio::spawn(worker.await?.work()));
    }
    // One client of each proxy, and one that uses both.
    let mut keepers = Vec::new();
    for (endpoints, number) in [&endpoints[..1], &endpoints[1..], &endpoints[..]].into_iter().zip(50..) {
        let keeper =
            Bookkeeper::new(Arc::clone(&shared), endpoints, random.random(), round * 100 + number).await?;
        keepers.push(tokio::spawn(keeper.work()));
    }
    let toll = faults::run(cluster, random, shared.until).await?;
    let mut diaries = Vec::new();
    for worker in workers {
        diaries.push(worker.await??);
    }

    let mut books = Vec::new();
    for keeper in keepers {
        books.push(keeper.await??);
    }
    let compactions = compactor.await??;

    // In peace the shard manager, which was killed and frozen like the others, does what it was told in the meantime.
    let healed = Instant::now();
    cluster.obeys_pins().await?;
    println!("ranges are where they are pinned after {:?}", healed.elapsed());

    // What is there, and what was, through each proxy; and watches that begin late.
    let end = write(&endpoints[1], "/last").await?;
    last.send_replace(Some(end));
    let (compacting, compacted) = (shared.compacting.load(Relaxed), shared.compacted.load(Relaxed));
    let kept = compacting.max(before);
    let late = endpoints.iter().map(|endpoint| {
        let shared = Arc::clone(&shared);
        tokio::spawn(watching::watch(shared, endpoint.clone(), kept + 1, told.clone(), None))
    });
    let all: Vec<_> = watches.into_iter().chain(late).collect();
    let seen = timeout(CATCH_UP_MAX, try_join_all(all)).await.context("a watch does not catch up")??;
    let mut seen = seen.into_iter().collect::<Result<Vec<_>>>()?;
    println!("{compactions} compactions, up to {compacted}, of {before} to {end}");
    if compacted > before + 1 {
        for endpoint in &endpoints {
            watching::is_refused_from(endpoint, before + 1, compacted).await?;
        }
    }
    for (endpoint, number) in endpoints.iter().zip(90..) {
        let one = std::slice::from_ref(endpoint);
        let worker = Worker::new(Arc::clone(&shared), one, random.random(), round * 100 + number);
        let past: Vec<i64> = (0..10).map(|_| random.random_range(kept..=end)).collect();
        diaries.push(worker.await?.look_back(&past).await?);
    }

    report(&diaries, &seen, &toll)?;
    let told: Vec<_> = seen[..2].iter().map(|seen| seen.books.as_slice()).collect();
    books::judge(&shared, (before, end), books, &told)?;
    // What was compacted before a late watch began, it cannot have seen.
    let early: Vec<_> = seen[0].events.iter().filter(|event| event.revision <= kept).cloned().collect();
    for late in &mut seen[2..] {
        late.events.splice(0..0, early.iter().cloned());
    }
    let watches = seen.into_iter().map(|seen| seen.events).collect();
    Record::new(shared.keys.clone(), before, diaries, watches).judge()
}

/// Says what happened, and fails if it was too little to say anything, or errors came that no fault explains.
fn report(diaries: &[Diary], seen: &[watching::Seen], toll: &faults::Toll) -> Result<()> {
    let mut errors: BTreeMap<&str, usize> = BTreeMap::new();
    for (text, count) in diaries.iter().flat_map(|diary| &diary.errors) {
        *errors.entry(text).or_default() += count;
    }
    let calls = diaries.iter().flat_map(|diary| &diary.calls);
    let (answered, unknown): (Vec<_>, Vec<_>) = calls.partition(|(_, call)| call.end.is_some());
    let snapshots: usize = diaries.iter().map(|diary| diary.snapshots.len()).sum();
    println!(
        "{toll:?}; {} answers, {} unknown outcomes, {snapshots} reads of several keys, {} refused unsent, {} of a compacted revision; watches: {:?}",
        answered.len(),
        unknown.len(),
        diaries.iter().map(|diary| diary.never.len()).sum::<usize>(),
        diaries.iter().map(|diary| diary.compacted).sum::<usize>(),
        seen.iter().map(|seen| (seen.events.len(), seen.starts, seen.notified)).collect::<Vec<_>>(),
    );
    for (text, count) in &errors {
        println!("  {count} × {text}");
    }
    let explained = ["Unavailable", "DeadlineExceeded", "Cancelled", "Unknown", "no answer", "not done"];
    let odd = errors.keys().find(|text| !explained.iter().any(|start| text.starts_with(start)));
    ensure!(odd.is_none(), "no fault explains {odd:?}");
    ensure!(answered.len() > 100, "only {} answers came", answered.len());
    ensure!(toll.kills + toll.freezes > 0, "nothing went wrong");
    Ok(())
}

/// Writes a key that is none of the clients', and returns its revision.
async fn write(endpoint: &str, key: &str) -> Result<i64> {
    wait_until("a write is acknowledged", Duration::from_secs(60), || async {
        let mut client = Client::connect([endpoint], None).await.ok()?;
        let response = timeout(Duration::from_secs(5), client.put(key, "0", None)).await.ok()?.ok()?;
        response.header().map(etcd_client::ResponseHeader::revision)
    })
    .await
}
