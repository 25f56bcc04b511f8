//! Many operations with compaction on: what is kept must stay right, and memory and disk flat.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use sharded_etcd_engine::{Engine, EngineConfig};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::Shard;

/// Tasks that write; each has keys of its own, so it knows what they must hold.
const WRITERS: usize = 256;
/// Of each writer, at most: a short run has fewer, so that each is written many times.
const KEYS_MAX: u64 = 500;
const VALUE_BYTES: usize = 256;
/// Operations between two compactions at most.
const COMPACT_EVERY_MAX: u64 = 100_000;
/// Revisions of history that a compaction keeps at most.
const KEPT_MAX: u64 = 10_000;
/// Log bytes between two checkpoints at most, as the engine has it by default.
const CHECKPOINT_BYTES_MAX: u64 = 64 << 20;
/// How long an operation may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(600);
/// Samples of memory and disk in one run.
pub const SAMPLES: u64 = 50;

/// What a run looked like at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Operations so far.
    pub operations: u64,
    /// Resident memory of this process.
    pub resident_bytes: u64,
    /// Blocks that the data directory takes.
    pub disk_bytes: u64,
}

/// What a writer's keys must hold: the number in the value, 0 for no key.
type Model = Vec<u64>;

/// Runs `operations` operations on a new engine in `dir`, closes it, opens it again and compares all keys before and
/// after. Returns the samples.
pub async fn soak(
    dir: &Path,
    operations: u64,
    seed: u64,
    each: impl Fn(Sample) + Send + Sync + 'static,
) -> Vec<Sample> {
    // A short run has compactions and checkpoints too.
    let checkpoint_bytes = (operations * VALUE_BYTES as u64 / SAMPLES * 2).min(CHECKPOINT_BYTES_MAX);
    let engine = open(dir, checkpoint_bytes).await;
    let shared = Arc::new(Run {
        engine: Arc::clone(&engine),
        dir: dir.to_owned(),
        operations,
        keys: (operations / 20 / WRITERS as u64).clamp(2, KEYS_MAX) as usize,
        done: AtomicU64::new(0),
        samples: parking_lot::Mutex::new(Vec::new()),
        each: Box::new(each),
    });
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let random = StdRng::seed_from_u64(seed.wrapping_add(writer as u64));
            tokio::spawn(Arc::clone(&shared).write(writer, random))
        })
        .collect();
    let mut models = Vec::new();
    for writer in writers {
        models.push(writer.await.expect("a writer failed"));
    }
    compare(&engine, &models).await;
    let revision = engine.snapshot().revision();
    engine.close().await;
    let samples = shared.samples.lock().clone();
    drop((engine, shared));
    let reopened = open(dir, checkpoint_bytes).await;
    assert_eq!(reopened.snapshot().revision(), revision);
    compare(&reopened, &models).await;
    reopened.close().await;
    samples
}

async fn open(dir: &Path, checkpoint_bytes: u64) -> Arc<Engine> {
    let mut config = EngineConfig::new(dir, "soak");
    config.checkpoint_wal_bytes = checkpoint_bytes;
    config.segment_bytes = checkpoint_bytes / 4;
    // A machine that is busy with other work, or stops this process for a while, is no failure.
    config.request_timeout = REQUEST_LIMIT;
    Engine::open(config).await.expect("the engine opens")
}

struct Run {
    engine: Arc<Engine>,
    dir: std::path::PathBuf,
    operations: u64,
    /// Of each writer.
    keys: usize,
    done: AtomicU64,
    samples: parking_lot::Mutex<Vec<Sample>>,
    each: Box<dyn Fn(Sample) + Send + Sync>,
}

impl Run {
    async fn write(self: Arc<Self>, writer: usize, mut random: StdRng) -> Model {
        let mut model = vec![0; self.keys];
        loop {
            let operation = self.done.fetch_add(1, Ordering::Relaxed) + 1;
            if operation > self.operations {
                return model;
            }
            let at = random.random_range(0..self.keys);
            match random.random_range(0..10) {
                0 => self.delete(writer, at, &mut model).await,
                1 => self.put_two(writer, at, operation, &mut model).await,
                _ => {
                    self.engine.put(put(writer, at, operation)).await.expect("a put");
                    model[at] = operation;
                }
            }
            if operation.is_multiple_of((self.operations / SAMPLES).clamp(1, COMPACT_EVERY_MAX)) {
                self.compact().await;
            }
            if operation.is_multiple_of((self.operations / SAMPLES).max(1)) {
                let (resident_bytes, disk_bytes) = (resident_bytes(), disk_bytes(&self.dir));
                let sample = Sample { operations: operation, resident_bytes, disk_bytes };
                (self.each)(sample);
                self.samples.lock().push(sample);
            }
        }
    }

    async fn compact(&self) {
        let kept = (self.operations / SAMPLES / 2).min(KEPT_MAX);
        let revision = self.engine.snapshot().revision() - kept as i64;
        if revision > 1 {
            let request = pb::CompactionRequest { revision, physical: false };
            self.engine.compact(request).await.expect("a compaction");
        }
    }

    async fn delete(&self, writer: usize, at: usize, model: &mut Model) {
        let request = pb::DeleteRangeRequest { key: key(writer, at).into(), ..Default::default() };
        let deleted = self.engine.delete_range(request).await.expect("a delete").deleted;
        assert_eq!(deleted, i64::from(model[at] != 0), "writer {writer}, key {at}");
        model[at] = 0;
    }

    async fn put_two(&self, writer: usize, at: usize, operation: u64, model: &mut Model) {
        let other = (at + 1) % self.keys;
        let ops = [at, other]
            .map(|at| pb::RequestOp { request: Some(pb::Request::RequestPut(put(writer, at, operation))) });
        let request = pb::TxnRequest { success: ops.into(), ..Default::default() };
        self.engine.txn(request).await.expect("a transaction");
        model[at] = operation;
        model[other] = operation;
    }
}

fn key(writer: usize, at: usize) -> String {
    format!("/soak/{writer:04}/{at:06}")
}

fn put(writer: usize, at: usize, operation: u64) -> pb::PutRequest {
    let mut value = vec![0; VALUE_BYTES];
    value[..8].copy_from_slice(&operation.to_be_bytes());
    pb::PutRequest { key: key(writer, at).into(), value: value.into(), ..Default::default() }
}

/// Every key of every writer, and no other.
async fn compare(engine: &Engine, models: &[Model]) {
    for (writer, model) in models.iter().enumerate() {
        let request = pb::RangeRequest {
            key: format!("/soak/{writer:04}/").into(),
            range_end: format!("/soak/{writer:04}0").into(),
            ..Default::default()
        };
        let found: Vec<_> = engine.range(request).await.expect("a range").kvs;
        let found = found.into_iter().map(|kv| {
            let number = kv.value[..8].try_into().map(u64::from_be_bytes).expect("a number");
            (kv.key, number)
        });
        let expected = model.iter().enumerate().filter(|(_, number)| **number != 0);
        let expected = expected.map(|(at, number)| (bytes::Bytes::from(key(writer, at)), *number));
        assert!(found.eq(expected), "the keys of writer {writer} are not what it wrote");
    }
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    1024 * line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
}

/// Files may come and go meanwhile.
fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(dir).expect("the data directory");
    entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|metadata| 512 * metadata.blocks()).sum()
}
