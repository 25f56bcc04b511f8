//! Clients with leases: they keep them alive for a while, then revoke them, or let them expire.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;
use tokio::time::Instant;
use tonic::Code;

use super::Client;
use crate::check::NoAnswer;

impl Client {
    /// Some lives of leases, one after the other.
    pub async fn lease(self: Arc<Self>, lives: u64) {
        for _ in 0..lives {
            if self.stop.is_cancelled() {
                return;
            }
            self.one_lease().await;
            self.rest(200).await;
        }
    }

    async fn one_lease(&self) {
        let ttl = self.rng.between(2, 3) as i64;
        let Some(process) = self.proxy().await else { return };
        let sent = Instant::now();
        let result = self.ask(&process, process.proxy.leases().grant(ttl, 0)).await;
        let id = result.as_ref().map_or(0, |granted| granted.id);
        self.said(&process, format_args!("grant {id:x} ttl {ttl}"), &result, 0);
        let Ok(granted) = result else { return };
        self.world.history.granted(id, granted.ttl, sent);
        for _ in 0..self.rng.between(1, 3) {
            self.attach(id).await;
        }
        for _ in 0..self.rng.below(4) {
            tokio::time::sleep(Duration::from_millis(self.rng.between(200, 900))).await;
            if self.stop.is_cancelled() {
                return;
            }
            if !self.keep_alive(id).await {
                return;
            }
            if self.rng.chance(40) {
                self.attach(id).await;
            }
            if self.rng.chance(40) {
                self.look(id).await;
            }
        }
        if self.rng.chance(50) {
            self.revoke(id).await;
        }
    }

    /// Puts a key that no other client touches.
    async fn attach(&self, id: i64) {
        let Some(process) = self.proxy().await else { return };
        let directory = self.rng.pick(&super::DIRECTORIES);
        let key: Bytes = format!("{directory}l{id:x}.{}", self.rng.below(3)).into();
        let put = pb::PutRequest { key, value: self.value(), lease: id, ..Default::default() };
        if let Err(NoAnswer::Status(status)) = self.put_on(&process, put).await
            && status.code() == Code::NotFound
        {
            self.world
                .require(self.world.history.may_be_gone(id, "a put was told that there is no such lease"));
        }
    }

    /// False if the lease is gone.
    async fn keep_alive(&self, id: i64) -> bool {
        let Some(process) = self.proxy().await else { return false };
        let sent = Instant::now();
        let result = self.ask(&process, process.proxy.leases().keep_alive(id)).await;
        let ttl = result.as_ref().map_or(0, |answer| answer.ttl);
        self.said(&process, format_args!("keep alive {id:x}"), &result, ttl);
        if result.is_ok() {
            self.world.require(self.world.history.renewed(id, ttl, sent));
        }
        result.is_err() || ttl > 0
    }

    async fn look(&self, id: i64) {
        let Some(process) = self.proxy().await else { return };
        let request = pb::LeaseTimeToLiveRequest { id, keys: true };
        let result = self.ask(&process, process.proxy.leases().time_to_live(request)).await;
        let ttl = result.as_ref().map_or(0, |answer| answer.ttl);
        self.said(&process, format_args!("time to live {id:x}"), &result, ttl);
        if ttl < 0 {
            self.world.require(self.world.history.may_be_gone(id, "TimeToLive was answered with -1"));
        }
    }

    async fn revoke(&self, id: i64) {
        let Some(process) = self.proxy().await else { return };
        let history = &self.world.history;
        history.revoking(id);
        let result = self.ask(&process, process.proxy.leases().revoke(id)).await;
        self.said(&process, format_args!("revoke {id:x}"), &result, 0);
        if let Ok(answer) = &result {
            let truth = self.world.truth.lock();
            let revision = answer.header.as_ref().map_or(0, |h| h.revision);
            self.world.require(history.tell(&truth, revision));
            self.world.require(history.revoked(&truth, id));
        }
        if self.rng.chance(50) {
            self.attach(id).await;
        }
    }
}
