//! One measurement.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use sharded_etcd_engine::{Engine, EngineConfig};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::Shard;

use crate::{
    grouped::Grouped,
    stores::{Append, Fjall, Redb},
};

/// What is compared.
pub const STORES: [&str; 4] = ["engine", "append", "fjall", "redb"];
const KEYS: u64 = 100_000;
const VALUE_BYTES: usize = 256;
const FILL_WRITERS: u64 = 1000;
const GETS: u64 = 200_000;

enum Target {
    Engine(Arc<Engine>),
    Grouped(Grouped),
}

impl Target {
    async fn open(store: &str, dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        Ok(match store {
            "engine" => {
                let mut config = EngineConfig::new(dir, "compare");
                config.quota_bytes = 64 << 30;
                Self::Engine(Engine::open(config).await?)
            }
            "append" => Self::Grouped(Grouped::start(Append::open(dir)?)?),
            "fjall" => Self::Grouped(Grouped::start(Fjall::open(dir)?)?),
            "redb" => Self::Grouped(Grouped::start(Redb::open(dir)?)?),
            _ => bail!("no such store: {store}"),
        })
    }

    async fn put(&self, key: Bytes, value: Bytes) -> Result<()> {
        match self {
            Self::Engine(engine) => {
                engine.put(pb::PutRequest { key, value, ..Default::default() }).await?;
                Ok(())
            }
            Self::Grouped(grouped) => grouped.put(key, value).await,
        }
    }

    async fn get(&self, key: Bytes) -> Result<Option<Bytes>> {
        match self {
            Self::Engine(engine) => {
                let found = engine.range(pb::RangeRequest { key, ..Default::default() }).await?;
                Ok(found.kvs.into_iter().next().map(|kv| kv.value))
            }
            Self::Grouped(grouped) => grouped.get(&key),
        }
    }

    async fn close(self) -> Result<()> {
        match self {
            Self::Engine(engine) => engine.close().await,
            Self::Grouped(grouped) => grouped.close()?,
        }
        Ok(())
    }
}

/// Runs what the arguments say and prints cells.
pub fn child(arguments: &[String]) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["speed", store, dir, writers, seconds] => runtime.block_on(speed(
            store,
            Path::new(dir),
            writers.parse()?,
            Duration::from_secs(seconds.parse()?),
        )),
        ["fill", store, dir, keys] => runtime.block_on(fill(store, Path::new(dir), keys.parse()?)),
        ["open", store, dir, keys] => runtime.block_on(open(store, Path::new(dir), keys.parse()?)),
        _ => bail!("no such measurement: {arguments:?}"),
    }
}

async fn speed(store: &str, dir: &Path, writers: u64, time: Duration) -> Result<()> {
    let target = Arc::new(Target::open(store, dir).await?);
    let (begin, before) = (Instant::now(), cpu()?);
    let value = value();
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let (target, value) = (Arc::clone(&target), value.clone());
            tokio::spawn(async move {
                let (mut latencies, mut number) = (Vec::new(), writer * 7919);
                while begin.elapsed() < time {
                    number = (number * 6_364_136_223 + 1_442_695) % KEYS;
                    let asked = Instant::now();
                    target.put(key(number), value.clone()).await?;
                    latencies.push(asked.elapsed().as_micros() as u32);
                }
                anyhow::Ok(latencies)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    let (elapsed, used) = (begin.elapsed().as_secs_f64(), cpu()? - before);
    latencies.sort_unstable();
    let count = latencies.len();
    let at = |per_mille: usize| f64::from(latencies[count * per_mille / 1000]) / 1e3;
    println!(
        "| {:.0} | {:.2} | {:.2} | {:.2} | {:.1} |",
        count as f64 / elapsed,
        at(500),
        at(990),
        at(999),
        used.as_secs_f64() * 1e6 / count as f64
    );
    Ok(())
}

async fn fill(store: &str, dir: &Path, keys: u64) -> Result<()> {
    let target = Arc::new(Target::open(store, dir).await?);
    let begin = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let value = value();
    let tasks: Vec<_> = (0..FILL_WRITERS)
        .map(|_| {
            let (target, next, value) = (Arc::clone(&target), Arc::clone(&next), value.clone());
            tokio::spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= keys {
                        return anyhow::Ok(());
                    }
                    target.put(key(number), value.clone()).await?;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    let filled = begin.elapsed();
    let resident = resident_mib()?;
    let get_us = gets(&target, keys).await?;
    if let Some(target) = Arc::into_inner(target) {
        target.close().await?;
    }
    println!("| {:.0} | {resident} | {} | {get_us:.1} | ", filled.as_secs_f64(), disk_bytes(dir)? >> 20);
    Ok(())
}

async fn open(store: &str, dir: &Path, keys: u64) -> Result<()> {
    let begin = Instant::now();
    let target = Arc::new(Target::open(store, dir).await?);
    ensure!(target.get(key(keys / 2)).await?.is_some(), "a key is missing");
    println!("| {:.0} | {} |", begin.elapsed().as_secs_f64() * 1e3, resident_mib()?);
    Ok(())
}

async fn gets(target: &Target, keys: u64) -> Result<f64> {
    let before = cpu()?;
    for get in 0..GETS {
        ensure!(target.get(key(get.wrapping_mul(7_919) % keys)).await?.is_some(), "a key is missing");
    }
    Ok((cpu()? - before).as_secs_f64() * 1e6 / GETS as f64)
}

fn key(number: u64) -> Bytes {
    format!("/registry/pods/default/pod-{number:012}").into()
}

/// Bytes that do not compress.
fn value() -> Bytes {
    let mut state = 1u64;
    let step = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..VALUE_BYTES).map(step).collect()
}

/// User and system time of this process.
fn cpu() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
    let mut ticks = 0;
    for field in fields.split_whitespace().skip(11).take(2) {
        ticks += field.parse::<u64>()?;
    }
    Ok(Duration::from_millis(10 * ticks))
}

fn resident_mib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? >> 10)
}

fn disk_bytes(dir: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let metadata = entry?;
        bytes += match metadata.file_type()?.is_dir() {
            true => disk_bytes(&metadata.path())?,
            false => 512 * metadata.metadata()?.blocks(),
        };
    }
    Ok(bytes)
}
