//! This proxy's registration in meta, and the other proxies there.
//!
//! A proxy is a member to clients as long as its key `proxies/<member id>` lives, on a lease of its own. The record also
//! says up to which revision its watchers are served; the shard manager keeps history from there on.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::StreamExt;
use parking_lot::RwLock;
use sharded_etcd_core::{
    keyspace::KeyRange,
    records::{LoadRecord, PROXIES_PREFIX, ProxyRecord, Record, load_key, proxy_key},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Shard, ShardError};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::{context::Context, load::Publisher};

/// TTL of a registration in seconds: how long a proxy that was killed is still named.
const TTL_SECONDS: i64 = 10;
/// How often a registration is renewed and its revision brought up to date: three times within its TTL.
const RENEW_INTERVAL: Duration = Duration::from_secs(3);
/// Pauses before meta is tried again.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How long leaving may take at shutdown.
const LEAVE_MAX: Duration = Duration::from_secs(1);

/// Proxies by member id.
pub type Proxies = BTreeMap<u64, ProxyRecord>;

/// The registration, kept up in the background, and what it sees of others.
pub struct Registration {
    ctx: Arc<Context>,
    passed: Box<dyn Fn() -> i64 + Send + Sync>,
    others: RwLock<Proxies>,
    /// Generation of the routing that this proxy acts on.
    generation: watch::Sender<Option<i64>>,
}

impl Registration {
    /// Registers, keeps that up, and follows the other registrations, until the context shuts down. `passed` tells the
    /// revision up to which all watchers are served.
    /// `generation` is that of the routing which it acts on, if it has one.
    pub fn start(
        ctx: Arc<Context>,
        generation: Option<i64>,
        passed: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> Arc<Self> {
        let registration = Arc::new(Self {
            ctx,
            passed: Box::new(passed),
            others: RwLock::default(),
            generation: watch::Sender::new(generation),
        });
        let tasks = &registration.ctx.tasks;
        tasks.spawn(Arc::clone(&registration).keep());
        tasks.spawn(Arc::clone(&registration).follow());
        registration
    }

    /// The proxy acts on this generation of the routing from now on; meta is told at once.
    pub fn took_up(&self, generation: Option<i64>) {
        self.generation.send_replace(generation);
    }

    /// The live proxies as last seen; this one is always among them.
    pub fn proxies(&self) -> Proxies {
        let others = self.others.read().clone();
        self.with_me(others)
    }

    /// The live proxies as of a moment after this call.
    ///
    /// # Errors
    /// If meta cannot be reached.
    pub async fn read_proxies(&self) -> Result<Proxies, ShardError> {
        Ok(self.with_me(self.load().await?.0))
    }

    /// The proxy that clients are told is the leader: the one with the smallest member id, so that all name the same.
    pub fn leader(&self) -> u64 {
        let me = self.ctx.identity.member_id;
        self.others.read().first_key_value().map_or(me, |(&first, _)| first.min(me))
    }

    fn meta(&self) -> &Arc<dyn Shard> {
        self.ctx.line.meta()
    }

    fn record(&self) -> ProxyRecord {
        let identity = &self.ctx.identity;
        let generation = *self.generation.borrow();
        ProxyRecord {
            name: identity.name.clone(),
            client_urls: identity.client_urls.clone(),
            revision: (self.passed)(),
            generation,
            shards: generation.map(|_| self.ctx.shards.directory().digest()),
        }
    }

    fn with_me(&self, mut proxies: Proxies) -> Proxies {
        proxies.insert(self.ctx.identity.member_id, self.record());
        proxies
    }

    async fn keep(self: Arc<Self>) {
        let shutdown = self.ctx.shutdown.clone();
        let mut pause = PAUSE_MIN;
        let mut publisher = Publisher::new(&self.ctx.metrics.load, &self.ctx.line.cut().map, Instant::now());
        while !shutdown.is_cancelled() {
            if let Err(error) = self.keep_once(&mut pause, &mut publisher).await {
                tracing::warn!(%error, "registering this proxy in meta again");
                rest(&shutdown, pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }

    /// One registration, until it is lost (then an error, or Ok to begin anew) or the proxy shuts down.
    async fn keep_once(&self, pause: &mut Duration, publisher: &mut Publisher) -> Result<(), ShardError> {
        let request = pb::LeaseGrantRequest { ttl: TTL_SECONDS, id: 0 };
        let lease = self.meta().lease_grant(request).await?.id;
        let mut written = None;
        let mut told = LoadRecord::default();
        let mut generation = self.generation.subscribe();
        while !self.ctx.shutdown.is_cancelled() {
            let record = self.record();
            if written.as_ref() != Some(&record) {
                let key = proxy_key(self.ctx.identity.member_id);
                let put = pb::PutRequest { key, value: record.encode(), lease, ..Default::default() };
                self.meta().put(put).await?;
                written = Some(record);
            }
            let load = publisher.due(&self.ctx.metrics.load, &self.ctx.line.cut().map, Instant::now());
            if let Some(load) = load.filter(|load| *load != told)
                && self.tell_load(&load, lease).await
            {
                told = load;
            }
            *pause = PAUSE_MIN;
            tokio::select! {
                biased;
                () = rest(&self.ctx.shutdown, RENEW_INTERVAL) => {}
                _ = generation.changed() => {}
            }
            if !self.ctx.shutdown.is_cancelled() && self.meta().lease_keep_alive(lease).await?.ttl <= 0 {
                tracing::warn!("this proxy's registration in meta had expired");
                return Ok(());
            }
        }
        // Its key goes with it. If meta is away the lease expires by itself.
        let leave = self.meta().lease_revoke(pb::LeaseRevokeRequest { id: lease });
        let _ = tokio::time::timeout(LEAVE_MAX, leave).await;
        Ok(())
    }

    /// Tells the shard manager what clients do here. A proxy is registered whether that can be told or not.
    async fn tell_load(&self, load: &LoadRecord, lease: i64) -> bool {
        let key = load_key(self.ctx.identity.member_id);
        let put = pb::PutRequest { key, value: load.encode(), lease, ..Default::default() };
        let told = self.meta().put(put).await;
        if let Err(error) = &told {
            tracing::debug!(%error, "the load of this proxy is told later");
        }
        told.is_ok()
    }

    async fn follow(self: Arc<Self>) {
        let mut pause = PAUSE_MIN;
        loop {
            let result = tokio::select! {
                biased;
                () = self.ctx.shutdown.cancelled() => return,
                result = self.follow_once(&mut pause) => result,
            };
            if let Err(error) = result {
                tracing::warn!(%error, "following the registrations in meta again");
            }
            rest(&self.ctx.shutdown, pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Reads all registrations and follows them until the watch ends.
    async fn follow_once(&self, pause: &mut Duration) -> Result<(), ShardError> {
        let (proxies, revision) = self.load().await?;
        *self.others.write() = proxies;
        let range = KeyRange::prefix(PROXIES_PREFIX);
        let request = pb::WatchCreateRequest {
            key: range.request_key(),
            range_end: range.request_end(),
            start_revision: revision + 1,
            ..Default::default()
        };
        let mut events = self.meta().watch(request).await?;
        while let Some(response) = events.next().await {
            let response = response?;
            if response.canceled {
                let reason = format!("meta cancelled the watch on the proxies: {}", response.cancel_reason);
                return Err(ShardError::refused(Code::Unavailable, reason));
            }
            *pause = PAUSE_MIN;
            let mut others = self.others.write();
            for event in &response.events {
                let Some(kv) = &event.kv else { continue };
                if event.r#type == i32::from(pb::EventType::Delete) {
                    if let Some(id) = member_of(&kv.key) {
                        others.remove(&id);
                    }
                } else if let Some((id, record)) = proxy_of(kv) {
                    others.insert(id, record);
                }
            }
        }
        Ok(())
    }

    /// All registrations, and meta's revision.
    async fn load(&self) -> Result<(Proxies, i64), ShardError> {
        let range = KeyRange::prefix(PROXIES_PREFIX);
        let request = pb::RangeRequest {
            key: range.request_key(),
            range_end: range.request_end(),
            ..Default::default()
        };
        let answer = self.meta().range(request).await?;
        let revision = answer.header.as_ref().map_or(0, |h| h.revision);
        Ok((answer.kvs.iter().filter_map(proxy_of).collect(), revision))
    }
}

async fn rest(shutdown: &CancellationToken, pause: Duration) {
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        () = tokio::time::sleep(pause) => {}
    }
}

fn proxy_of(kv: &pb::KeyValue) -> Option<(u64, ProxyRecord)> {
    match ProxyRecord::decode(&kv.value) {
        Ok(record) => Some((member_of(&kv.key)?, record)),
        Err(error) => {
            tracing::warn!(%error, "a proxy's registration is passed over");
            None
        }
    }
}

fn member_of(key: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(key.strip_prefix(PROXIES_PREFIX)?).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_map_back() {
        for id in [1, u64::MAX] {
            assert_eq!(member_of(&proxy_key(id)), Some(id));
        }
        assert_eq!(member_of(b"proxies/"), None);
        assert_eq!(member_of(b"other/1"), None);
    }
}
