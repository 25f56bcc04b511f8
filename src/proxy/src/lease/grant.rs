//! Granting and renewing.

use std::time::Duration;

use rand::Rng;
use sharded_etcd_core::{
    lease::{NEVER_GRANTED, TTL_SECONDS_MAX, grant_txn},
    records::{LeaseRecord, LeaseState},
    sabotage::Sabotage,
};
use sharded_etcd_etcd_api::messages as pb;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::{Leases, exists, meta_status};

/// Random ids that may be taken already, one after the other, before that is no accident any more.
const TRIES_MAX: u32 = 8;
/// How long a grant waits for what a lease of the same id that has ended leaves on shards.
const ENDING_MAX: Duration = Duration::from_secs(2);

impl Leases {
    /// etcd's `Lease.LeaseGrant`. An id of 0 lets the topology choose one.
    ///
    /// # Errors
    /// etcd's: `ErrLeaseTTLTooLarge`, `ErrLeaseExist`; also if meta cannot be reached.
    pub async fn grant(&self, ttl: i64, id: i64) -> Result<pb::LeaseGrantResponse, Status> {
        if ttl > TTL_SECONDS_MAX {
            return Err(Status::new(Code::OutOfRange, "etcdserver: too large lease TTL"));
        }
        let chosen = id != 0;
        if chosen && (id == NEVER_GRANTED || !self.is_free(id).await?) {
            return Err(exists());
        }
        for _ in 0..TRIES_MAX {
            let id =
                if chosen { id } else { sharded_etcd_line::random::rng().random_range(1..NEVER_GRANTED) };
            match self.meta().lease_grant(pb::LeaseGrantRequest { id, ttl }).await {
                Ok(granted) => return self.make_known(id, granted.ttl, chosen).await,
                // It may be one that meta uses for itself, or one that a failed grant left: that one is swept.
                Err(error) if error.is_lease_exist() && chosen => return Err(exists()),
                Err(error) if error.is_lease_exist() => {}
                Err(error) => return Err(meta_status(error)),
            }
        }
        Err(Status::internal("no free lease id was found: the random numbers repeat themselves"))
    }

    /// Whether no lease has that id. Of one that has ended, the shadows are dropped after its end was answered: that is
    /// waited for, as etcd grants such an id again at once.
    async fn is_free(&self, id: i64) -> Result<bool, Status> {
        let deadline = Instant::now() + ENDING_MAX;
        loop {
            let facts = self.read(id).await?;
            match facts.record {
                None => return Ok(true),
                // An uncertain one rests for much longer.
                Some(record) if !record.is_for_clients() && !record.uncertain => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(false);
                    }
                    self.view.changed(id, facts.modified, left).await;
                }
                Some(_) => return Ok(false),
            }
        }
    }

    /// Makes a real lease a client's. If that fails the real lease is without a record, and the sweep ends it.
    async fn make_known(&self, id: i64, ttl: i64, chosen: bool) -> Result<pb::LeaseGrantResponse, Status> {
        let record = LeaseRecord { ttl, state: LeaseState::Live, chosen, helper: None, uncertain: false };
        match self.meta().txn(grant_txn(id, &record)).await {
            Ok(answer) if answer.succeeded => {
                Ok(pb::LeaseGrantResponse { header: self.header(), id, ttl, error: String::new() })
            }
            Ok(_) if chosen => Err(exists()),
            Ok(_) => {
                Err(Status::unavailable("granting the lease took so long that it was swept away: try again"))
            }
            Err(error) if error.is_lease_not_found() => Err(Status::unavailable(
                "the lease expired while it was granted: try again, or with a longer TTL",
            )),
            Err(error) => Err(meta_status(error)),
        }
    }

    /// One round of etcd's `Lease.LeaseKeepAlive`. A lease that is not there, or no longer, answers TTL 0.
    ///
    /// # Errors
    /// If meta cannot be reached: the lease may or may not have been renewed.
    pub async fn keep_alive(&self, id: i64) -> Result<pb::LeaseKeepAliveResponse, Status> {
        // The header first, as etcd does: its revision is not above the moment of the renewal.
        let header = self.header();
        let state = match self.view.get(id) {
            Some(seen) => Some(seen.record.state),
            // Granted a moment ago, ended, or one of meta's own, which is none of the client's business.
            None => self.read(id).await?.record.map(|record| record.state),
        };
        let ttl = match state {
            Some(LeaseState::Live) if Sabotage::EarlyExpiry.is_on() => 1,
            // What the view does not know yet, meta does: the real lease goes before a revoke is answered.
            Some(LeaseState::Live) => self.meta().lease_keep_alive(id).await.map_err(meta_status)?.ttl,
            _ => 0,
        };
        Ok(pb::LeaseKeepAliveResponse { header, id, ttl: ttl.max(0) })
    }
}
