//! When leases are gone, on a clock that only moves when nothing is left to be done: no machine is too slow for this.
//!
//! `ENGINE_EXPIRY_SEED` chooses what happens.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_testkit::Dice;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::{
    EngineConfig,
    committer::{Command, Committer, Limits, Queued},
    disk::{Disk, sim::SimDisk},
    engine::{Opened, expire},
    lease::Renewal,
    shared::Shared,
};

/// How long after its deadline a lease may still be seen.
const LATE_MAX: Duration = Duration::from_millis(200);
const STEPS: u64 = 3000;
/// More than are revoked in one go.
const CROWD: i64 = 1500;

/// The writer without its thread, and the task that finds what expired.
struct Engine {
    shared: Arc<Shared>,
    committer: Committer,
    sender: mpsc::Sender<Queued>,
    received: mpsc::Receiver<Queued>,
    /// Leases that are there, and when each is over.
    deadlines: BTreeMap<i64, Instant>,
    expired: usize,
}

impl Engine {
    fn start() -> Self {
        let mut config = EngineConfig::new("/sim", "sim");
        let disk = SimDisk::new(1);
        disk.set(0, u64::MAX);
        config.disk = Disk::Sim(disk);
        let Opened { shared, wal, wal_bytes, checkpoint_bytes, .. } = Opened::open(&config).unwrap();
        let limits = Limits {
            disk: config.disk.clone(),
            dir: config.dir.clone(),
            quota_bytes: config.quota_limit(),
            lease_ttl_seconds_min: config.lease_ttl_seconds_min,
            checkpoint_wal_bytes: config.checkpoint_wal_bytes,
            recent_bytes: 0,
        };
        let (_, unused) = mpsc::channel(1);
        let (sender, received) = mpsc::channel(config.queue_requests_max);
        tokio::spawn(expire(Arc::clone(&shared), sender.downgrade(), config));
        let committer = Committer::new(limits, Arc::clone(&shared), unused, wal, wal_bytes, checkpoint_bytes);
        Self { shared, committer, sender, received, deadlines: BTreeMap::new(), expired: 0 }
    }

    fn work(&mut self, command: Queued) {
        self.committer.work(&mut VecDeque::from([command]));
        let (store, now) = (self.committer.published(), Instant::now());
        let before = self.deadlines.len();
        self.deadlines.retain(|id, deadline| {
            if store.lease(*id).is_some() {
                return true;
            }
            let late = now.checked_duration_since(*deadline);
            let late = late.unwrap_or_else(|| panic!("lease {id} ended {:?} early", *deadline - now));
            assert!(late <= LATE_MAX, "lease {id} ended {late:?} late");
            false
        });
        self.expired += before - self.deadlines.len();
    }

    /// Lets the clock go on to a moment, and what expires expire.
    async fn run_until(&mut self, end: Instant) {
        loop {
            tokio::select! {
                biased;
                command = self.received.recv() => self.work(command.unwrap()),
                () = tokio::time::sleep_until(end) => break,
            }
        }
        // One that was never revoked would not be noticed above.
        let overdue = self.deadlines.iter().find(|(_, deadline)| **deadline + LATE_MAX < end);
        assert!(overdue.is_none(), "lease {overdue:?} is still there at {end:?}");
    }

    fn grant(&mut self, id: i64, ttl: i64) {
        let (reply, mut answer) = oneshot::channel();
        let request = pb::LeaseGrantRequest { id, ttl };
        self.work(Command::Grant(request, reply).into());
        let granted = answer.try_recv().unwrap().unwrap();
        self.deadlines.insert(id, Instant::now() + Duration::from_secs(granted.ttl as u64));
    }

    /// As a keep-alive does.
    fn renew(&mut self, id: i64) {
        let now = Instant::now();
        let ttl = self.committer.published().lease(id).unwrap().ttl;
        let renewal = self.shared.leases.lock().at(now).renew(id, ttl, now);
        if let Renewal::Renewed { .. } = renewal {
            self.deadlines.insert(id, now + Duration::from_secs(ttl as u64));
        } else {
            assert!(self.deadlines[&id] <= now, "a keep-alive came too late before the deadline");
        }
    }

    fn revoke(&mut self, id: i64) {
        let (reply, mut answer) = oneshot::channel();
        self.deadlines.remove(&id);
        self.work(Command::Revoke(id, reply).into());
        answer.try_recv().unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_gone_at_most_200_ms_after_its_deadline_and_never_before() {
    let seed =
        std::env::var("ENGINE_EXPIRY_SEED").map_or_else(|_| rand::random(), |text| text.parse().unwrap());
    eprintln!("ENGINE_EXPIRY_SEED={seed}");
    let mut dice = Dice::new(seed);
    let mut engine = Engine::start();
    for step in 1..=STEPS {
        // Mostly within a tick, and now and then long after the last lease.
        let pause = if dice.one_in(200) { dice.below(60_000) } else { dice.below(700) };
        engine.run_until(Instant::now() + Duration::from_millis(pause)).await;
        let known: Vec<i64> = engine.deadlines.keys().copied().collect();
        let any = (!known.is_empty()).then(|| known[dice.below(known.len() as u64) as usize]);
        match (dice.below(10), any) {
            (0..=3, Some(id)) => engine.renew(id),
            (4, Some(id)) => engine.revoke(id),
            _ => engine.grant(step as i64, 1 + dice.below(20) as i64),
        }
    }
    // Many at the same moment.
    for id in 0..CROWD {
        engine.grant(1_000_000 + id, 5);
    }
    engine.run_until(Instant::now() + Duration::from_secs(30)).await;
    assert!(engine.deadlines.is_empty(), "{:?}", engine.deadlines);
    assert!(engine.expired > CROWD as usize + 500, "only {} leases expired", engine.expired);
    assert!(!engine.sender.is_closed());
}
