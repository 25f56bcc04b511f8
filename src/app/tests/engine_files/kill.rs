//! Killed (-9) at any moment with clients writing over the network; what they were told is there at the next start.
//!
//! `ENGINE_KILL_ROUNDS` is how often (10 if it is not set: the engine's own test does it with the engine in process, and
//! more often), `ENGINE_KILL_SEED` chooses the moments.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::join_all;
use rand::{Rng, SeedableRng, rngs::StdRng};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Certainty, Shard};
use sharded_etcd_testkit::wait_until;

use crate::server::{Server, everything, put, revision};

const ROUNDS: u64 = 10;
const WRITERS: usize = 8;
const LEASE_SECONDS: i64 = 1_000_000;
/// How long a round may take to get its answers on a busy machine.
const ROUND_LIMIT: Duration = Duration::from_secs(60);

/// What one writer was told.
#[derive(Clone, Default)]
struct Writer {
    index: usize,
    /// The last number that was acknowledged, and the one after it if nobody knows what became of it.
    last: u64,
    maybe: Option<u64>,
    revisions: Vec<i64>,
    compacted: i64,
    leases: Vec<i64>,
}

impl Writer {
    fn key(&self) -> String {
        format!("w{}", self.index)
    }

    /// Writes until the engine is gone.
    async fn write(mut self, client: impl Shard, answers: Arc<AtomicU64>) -> Self {
        loop {
            let number = self.last + 1;
            // Large enough that segments fill up.
            match client.put(put(&self.key(), &format!("{number:<3000}"))).await {
                Ok(response) => {
                    self.last = number;
                    self.revisions.push(revision(&response.header));
                    answers.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    self.maybe = (error.certainty == Certainty::Ambiguous).then_some(number);
                    return self;
                }
            }
            if number.is_multiple_of(50) {
                let target = self.revisions[self.revisions.len() - 1] - 20;
                let request = pb::CompactionRequest { revision: target, physical: false };
                // Somebody else may have compacted further meanwhile.
                if client.compact(request).await.is_ok() {
                    self.compacted = target;
                }
            }
            if number.is_multiple_of(40) {
                let id = (self.index as i64 + 1) * 1_000_000_000 + number as i64;
                let request = pb::LeaseGrantRequest { id, ttl: LEASE_SECONDS };
                if client.lease_grant(request).await.is_ok() {
                    self.leases.push(id);
                }
            }
            if number.is_multiple_of(300) {
                // A checkpoint.
                let _ = client.defragment().await;
            }
        }
    }

    /// Holds what is there to what was told.
    fn check(&mut self, stored: &pb::RangeResponse) -> i64 {
        let Some(kv) = stored.kvs.iter().find(|kv| kv.key == self.key()) else {
            assert_eq!(self.last, 0, "everything of writer {} is gone", self.index);
            return 0;
        };
        let found: u64 = std::str::from_utf8(&kv.value).unwrap().trim().parse().unwrap();
        assert!(
            found == self.last || Some(found) == self.maybe,
            "writer {}: {} was acknowledged, {:?} is open, {found} is there",
            self.index,
            self.last,
            self.maybe
        );
        assert_eq!(kv.version as u64, found, "each write made one version");
        assert!(self.revisions.last().is_none_or(|last| kv.mod_revision >= *last));
        (self.last, self.maybe) = (found, None);
        kv.version
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_were_told_survives_kills() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let rounds = number("ENGINE_KILL_ROUNDS").unwrap_or(ROUNDS);
    let seed = number("ENGINE_KILL_SEED").unwrap_or_else(rand::random);
    eprintln!("{rounds} rounds, ENGINE_KILL_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut server = Server::new();
    let mut writers: Vec<Writer> = (0..WRITERS).map(|index| Writer { index, ..Writer::default() }).collect();
    let mut seen = HashSet::new();
    let (mut compacted, mut in_start, mut told) = (0, 0, 0);
    let began = Instant::now();
    for round in 0..rounds {
        server.spawn();
        if random.random_ratio(1, 6) {
            // The moment is what is tested; nothing waits for it.
            tokio::time::sleep(Duration::from_micros(random.random_range(0..150_000))).await;
            server.kill();
            in_start += 1;
            continue;
        }
        server.ready().await;

        let client = server.client();
        let stored = client.range(everything()).await.unwrap();
        let versions: i64 = writers.iter_mut().map(|writer| writer.check(&stored)).sum();
        assert_eq!(revision(&stored.header), versions + 1, "each write made one revision");
        if compacted > 1 {
            let old = pb::RangeRequest { revision: compacted - 1, ..everything() };
            assert!(client.range(old).await.unwrap_err().is_compacted(), "a compaction was undone");
        }
        let leases: HashSet<i64> =
            client.lease_leases().await.unwrap().leases.iter().map(|lease| lease.id).collect();
        for id in writers.iter().flat_map(|writer| &writer.leases) {
            assert!(leases.contains(id), "lease {id} is gone");
        }
        for id in leases.iter().take(5) {
            let request = pb::LeaseTimeToLiveRequest { id: *id, keys: false };
            let lease = client.lease_time_to_live(request).await.unwrap();
            let elapsed = began.elapsed().as_secs() as i64;
            assert!(lease.ttl <= LEASE_SECONDS && lease.ttl >= LEASE_SECONDS - elapsed - 2, "{lease:?}");
        }

        let answers = Arc::new(AtomicU64::new(0));
        let running: Vec<_> = writers
            .into_iter()
            .map(|writer| tokio::spawn(writer.write(server.client(), Arc::clone(&answers))))
            .collect();
        let wanted = random.random_range(1..400);
        wait_until("so many writes are acknowledged", ROUND_LIMIT, || {
            std::future::ready((answers.load(Ordering::Relaxed) >= wanted).then_some(()))
        })
        .await
        .unwrap();
        server.kill();
        writers = join_all(running).await.into_iter().map(Result::unwrap).collect();
        for writer in &mut writers {
            compacted = compacted.max(writer.compacted);
            for revision in writer.revisions.drain(..) {
                assert!(seen.insert(revision), "round {round}: revision {revision} was given twice");
            }
        }
        told += answers.load(Ordering::Relaxed);
    }
    let (code, text) = server.check();
    assert!(code == Some(0) && text.contains(" is intact\n"), "{text}");
    eprintln!("{rounds} kills, {in_start} of them at a start; {told} answers");
    assert!(told > 0);
}
