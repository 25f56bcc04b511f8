//! One shard manager leads, the others stand by. Who leads is a matter of economy, not of safety: all that is done is
//! guarded where it is stored.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use sharded_etcd_core::{moves::ops, records};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Shard, ShardError};
use tokio_util::sync::CancellationToken;

/// Seconds after which a leader that does not renew is replaced.
pub(crate) const LEADER_TTL_SECONDS: i64 = 5;
/// How often a leader renews, and a standby looks.
const RENEW: Duration = Duration::from_millis(1500);

/// A time of leading.
#[derive(Debug, Clone)]
pub(crate) struct Term {
    /// Cancelled when leadership is lost. To cancel it is to give leadership up: what was sent under this term's guard and has
    /// not arrived does nothing from the next term on.
    pub(crate) token: CancellationToken,
    /// For keys that are to go with the leader.
    pub(crate) lease: i64,
    /// The revision of meta that began it: no other term has the same.
    pub(crate) began: i64,
}

impl Term {
    /// True in meta until the term is over there: its lease expired or was revoked, or another term began.
    pub(crate) fn guard(&self) -> pb::Compare {
        ops::modified_at(Bytes::from_static(records::MANAGER_LEADER), self.began)
    }
}

/// Leads whenever it can until `shutdown`: runs `work`, which must end soon after its term's token.
pub(crate) async fn lead<F, Fut>(meta: Arc<dyn Shard>, name: &str, shutdown: CancellationToken, work: F)
where
    F: Fn(Term) -> Fut,
    Fut: Future<Output = ()>,
{
    while !shutdown.is_cancelled() {
        match campaign(meta.as_ref(), name).await {
            Ok(Some((lease, began))) => {
                tracing::info!(name, "leading the topology");
                let token = shutdown.child_token();
                let term = Term { token: token.clone(), lease, began };
                tokio::join!(work(term), renew(meta.as_ref(), lease, &token));
                // A standby need not wait for the lease to expire; if this fails, it does.
                let _ = meta.lease_revoke(pb::LeaseRevokeRequest { id: lease }).await;
                tracing::info!(name, "no longer leading");
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(name, %error, "cannot campaign for leadership"),
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(RENEW) => {}
        }
    }
}

/// The lease and the revision of meta, if this manager leads now.
///
/// A leader of the same name is this manager's own predecessor, as names are unique: it was killed, and is replaced at
/// once, since writers may be waiting for a range whose fence it closed.
async fn campaign(meta: &dyn Shard, name: &str) -> Result<Option<(i64, i64)>, ShardError> {
    let leader = Bytes::from_static(records::MANAGER_LEADER);
    let get = pb::RangeRequest { key: leader.clone(), ..Default::default() };
    let seen = match meta.range(get).await?.kvs.pop() {
        None => 0,
        Some(kv) if kv.value == name.as_bytes() => kv.mod_revision,
        Some(_) => return Ok(None),
    };
    let lease = meta.lease_grant(pb::LeaseGrantRequest { ttl: LEADER_TTL_SECONDS, id: 0 }).await?.id;
    let put = ops::put_leased(leader.clone(), Bytes::copy_from_slice(name.as_bytes()), lease);
    let answer = meta.txn(ops::txn(vec![ops::modified_at(leader, seen)], vec![put])).await;
    match answer {
        Ok(answer) if answer.succeeded => Ok(Some((lease, answer.header.map_or(0, |h| h.revision)))),
        other => {
            let _ = meta.lease_revoke(pb::LeaseRevokeRequest { id: lease }).await;
            other.map(|_| None)
        }
    }
}

/// Renews until the lease is lost, or may be lost, or the work is over; then cancels the work.
async fn renew(meta: &dyn Shard, lease: i64, token: &CancellationToken) {
    let most = Duration::from_secs(LEADER_TTL_SECONDS.unsigned_abs());
    let mut renewed = tokio::time::Instant::now();
    loop {
        tokio::select! {
            biased;
            () = token.cancelled() => return,
            () = tokio::time::sleep(RENEW) => {}
        }
        let begun = tokio::time::Instant::now();
        let left = most.saturating_sub(renewed.elapsed());
        match tokio::time::timeout(left, meta.lease_keep_alive(lease)).await {
            Ok(Ok(answer)) if answer.ttl > 0 => renewed = begun,
            Ok(Ok(_)) => break,
            Ok(Err(_)) if renewed.elapsed() < most => {}
            Ok(Err(_)) | Err(_) => break,
        }
    }
    tracing::warn!("leadership is lost or unknown; stopping work");
    token.cancel();
}
