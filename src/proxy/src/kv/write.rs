//! Writes: one guarded transaction on the owner shard, then the cut that makes its revision part of the line.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use sharded_etcd_core::{
    keyspace::{KeyRange, Printable, RangeMap, Rid, ShardIx},
    records::FENCE_OPEN,
    sabotage::Sabotage,
    translate::{
        Built, Decided, LeaseGuard, TxnBuilder, WriteAnswer, client_kv, evaluate, explicit_ranges, leases,
        overrides_of, read_answer, touched,
    },
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Certainty, Shard, ShardError};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::{
    Kv,
    read::{bounds, needed_for},
};
use crate::context::line_status;

/// How often one write is sent again, at most: each time the shard said that it was not applied.
const TRIES_MAX: u32 = 256;
/// Keys of one range compare that the proxy decides itself, at most.
const DECIDED_KEYS_MAX: usize = 1_000;

/// Why a write did not come to an end.
pub(super) enum WriteError {
    /// Its keys are on several shards.
    Spans(Status),
    /// Final.
    Status(Status),
}

impl From<Status> for WriteError {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<WriteError> for Status {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Spans(status) | WriteError::Status(status) => status,
        }
    }
}

/// Where a transaction goes.
struct Route {
    shard: ShardIx,
    rids: Vec<Rid>,
    first: KeyRange,
}

/// What the shard's refusal means.
enum Refused {
    /// A fence is not open: the range moves, was moved, or was split.
    Fence(Rid),
    /// The map, a lease marker or a guard on what was read is out of date: send again.
    Retry,
}

impl Kv {
    /// Runs a transaction on the shard that owns its keys, and gives the client's answer.
    pub(super) async fn write(&self, txn: pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        Ok(self.try_write(txn).await?)
    }

    /// As [`Kv::write`], and tells apart that the keys are on several shards.
    pub(super) async fn try_write(&self, txn: pb::TxnRequest) -> Result<pb::TxnResponse, WriteError> {
        let ranges = touched(&txn);
        let lease_ids = leases(&txn);
        let (fixed, poisoned) = self.explicit(&txn).await?;
        if self.quota.is_exceeded() {
            self.quota.check(&txn, &self.ctx, &ranges)?;
        }
        self.ctx
            .line
            .ready_for_writes()
            .await
            .map_err(|e| Status::unavailable(format!("not sent: {}", line_status(e).message())))?;
        let mut hold = None;
        for attempt in 0..TRIES_MAX {
            if attempt > 0 {
                self.ctx.metrics.write_retries.inc();
            }
            let cut = self.ctx.line.cut();
            let route = route(&cut.map, &ranges, |shard| cut.name(shard).to_owned())?;
            let shard = self.ctx.shards.get(route.shard).await.map_err(|e| needed_for(e, &route.first))?;
            let mut guards = Vec::with_capacity(lease_ids.len());
            for &id in &lease_ids {
                guards.push(LeaseGuard { id, epoch: self.leases.attach(id, route.shard).await? });
            }
            let mut decided = HashMap::new();
            let needed =
                self.with_builder(&cut.map, &route, &guards, &decided, &fixed, |b| b.reads_needed(&txn));
            for (number, compare) in needed {
                decided.insert(number, self.decide(shard.as_ref(), route.shard, &compare).await?);
            }
            let built =
                self.with_builder(&cut.map, &route, &guards, &decided, &fixed, |b| b.build(txn.clone()));
            let Built { request, shape, nested } = built;
            match shard.txn(request).await {
                Ok(answer) if answer.succeeded => {
                    self.ctx.metrics.load.wrote(&ranges, prost::Message::encoded_len(&txn));
                    let answer = WriteAnswer::of(answer, nested);
                    let wrote = answer.wrote;
                    let Some(revision) = self.number(route.shard, &answer).await? else { continue };
                    let (mut answer, is_compacted) = self.ctx.line.with_fold(|fold| {
                        let answer = read_answer(fold, route.shard, &shape, answer, revision);
                        // A write shows what was before it.
                        let oldest = if wrote { revision - 1 } else { revision };
                        (answer, oldest < fold.compacted)
                    });
                    // Keys that it shows may have no numbers any more.
                    match is_compacted {
                        true if !wrote => continue,
                        true if shows_keys(&answer) => {
                            self.ctx.metrics.ambiguous_writes.inc();
                            return Err(Status::unavailable(
                                "the write was applied, and what was before it is compacted by now",
                            )
                            .into());
                        }
                        _ => {}
                    }
                    answer.header = Some(self.ctx.header(revision));
                    return Ok(answer);
                }
                Ok(answer) => match self.why_refused(&route, &guards, answer) {
                    Refused::Retry => {}
                    Refused::Fence(rid) => {
                        if hold.is_none() {
                            // The proxy may only be late: then the newest map says where to go.
                            let newest = self.ctx.line.refresh().await.map_err(line_status)?;
                            if newest.map.by_rid(&rid).is_none() {
                                continue;
                            }
                        }
                        let hold = match &mut hold {
                            Some(hold) => hold,
                            none => {
                                let bytes = prost::Message::encoded_len(&txn);
                                none.insert(self.held.enter(&rid, bytes)?)
                            }
                        };
                        hold.wait(&self.ctx.line, &rid, route.shard).await?;
                    }
                },
                Err(error) => self.write_failed(&route, error, poisoned.as_ref()).await?,
            }
        }
        Err(Status::unavailable("the keys are written to so much that the write found no gap; try again")
            .into())
    }

    fn with_builder<T>(
        &self,
        map: &RangeMap,
        route: &Route,
        leases: &[LeaseGuard],
        decided: &HashMap<usize, Decided>,
        fixed: &HashMap<usize, Option<pb::RangeResponse>>,
        use_it: impl FnOnce(&TxnBuilder<'_>) -> T,
    ) -> T {
        self.ctx.line.with_fold(|fold| {
            use_it(&TxnBuilder { fold, map, shard: route.shard, rids: &route.rids, leases, decided, fixed })
        })
    }

    /// Answers of the ranges at an explicit revision, which no write can change; and the error of one that cannot be
    /// answered, to be given if its branch runs.
    #[allow(clippy::type_complexity)]
    async fn explicit(
        &self,
        txn: &pb::TxnRequest,
    ) -> Result<(HashMap<usize, Option<pb::RangeResponse>>, Option<Status>), Status> {
        let mut fixed = HashMap::new();
        let mut poisoned = None;
        for (number, range) in explicit_ranges(txn).into_iter().enumerate() {
            match self.range(range.clone()).await {
                Ok(answer) => {
                    fixed.insert(number, Some(answer));
                }
                Err(status) if status.code() == Code::OutOfRange => {
                    poisoned.get_or_insert(status);
                    fixed.insert(number, None);
                }
                Err(status) => return Err(status),
            }
        }
        Ok((fixed, poisoned))
    }

    /// Reads the keys of a compare that speaks of times before an import, decides it, and says what must not change.
    async fn decide(&self, shard: &dyn Shard, ix: ShardIx, compare: &pb::Compare) -> Result<Decided, Status> {
        let range = KeyRange::of_request(&compare.key, &compare.range_end);
        let (key, range_end) = bounds(&range);
        let single = range_end.is_empty();
        let overrides = if single {
            KeyRange::key(&sharded_etcd_core::records::override_key(&key))
        } else {
            sharded_etcd_core::records::override_range(&range)
        };
        let get = |(key, range_end): (Bytes, Bytes)| pb::RequestOp {
            request: Some(pb::Request::RequestRange(pb::RangeRequest {
                key,
                range_end,
                ..Default::default()
            })),
        };
        let read = pb::TxnRequest {
            success: vec![get((key.clone(), range_end.clone())), get(bounds(&overrides))],
            ..Default::default()
        };
        let answer = shard.txn(read).await.map_err(|e| needed_for(e, &range))?;
        let local = answer.header.as_ref().map_or(0, |h| h.revision);
        let mut ranges = answer.responses.into_iter().filter_map(|op| match op.response {
            Some(pb::Response::ResponseRange(range)) => Some(range.kvs),
            _ => None,
        });
        let kvs = ranges.next().unwrap_or_default();
        let overrides = overrides_of(ranges.next().unwrap_or_default());
        if kvs.len() > DECIDED_KEYS_MAX {
            return Err(Status::resource_exhausted(format!(
                "a compare over {range} covers {} keys of a range that was moved; at most {DECIDED_KEYS_MAX} can be decided",
                kvs.len()
            )));
        }
        // Nothing can be numbered before the line covers it.
        self.ctx.line.cover(ix, local).await.map_err(line_status)?;
        let modified = |result: pb::CompareResult, key: Bytes, range_end: Bytes, revision| pb::Compare {
            result: result.into(),
            target: pb::CompareTarget::Mod.into(),
            key,
            range_end,
            target_union: Some(pb::TargetUnion::ModRevision(revision)),
        };
        let mut guards: Vec<pb::Compare> = kvs
            .iter()
            .map(|kv| modified(pb::CompareResult::Equal, kv.key.clone(), Bytes::new(), kv.mod_revision))
            .collect();
        if guards.is_empty() && single {
            guards.push(modified(pb::CompareResult::Equal, key, Bytes::new(), 0));
        } else if !single {
            guards.push(modified(pb::CompareResult::Less, key, range_end, local + 1));
        }
        let seen: Vec<pb::KeyValue> = self.ctx.line.with_fold(|fold| {
            kvs.into_iter()
                .map(|kv| (overrides.get(&kv.key), kv))
                .map(|(o, kv)| client_kv(fold, ix, kv, o))
                .collect()
        });
        Ok(Decided { result: evaluate(compare, &seen), guards })
    }

    /// The revision of an answer: the write's own number, or for one that wrote nothing a number that is not before
    /// anything acknowledged earlier, and at which the shard was as the transaction saw it (protocol: trap 1).
    ///
    /// `None` if it wrote nothing, and what it saw is compacted by now: it can be sent again.
    async fn number(&self, shard: ShardIx, answer: &WriteAnswer) -> Result<Option<i64>, Status> {
        let started = Instant::now();
        let line = &self.ctx.line;
        let unknown = |error| {
            self.ctx.metrics.ambiguous_writes.inc();
            line_status(error)
        };
        if answer.wrote {
            if Sabotage::SkipCutWait.is_on() {
                line.observe(shard, answer.local);
                return Ok(Some(line.cut().revision));
            }
            line.cover(shard, answer.local).await.map_err(unknown)?;
            self.ctx.metrics.cut_wait_seconds.observe(started.elapsed().as_secs_f64());
            let number = line.with_fold(|fold| fold.global(shard, answer.local));
            let gone = "the write was applied, and compacted before it could be numbered";
            return number.map(Some).ok_or_else(|| Status::unavailable(gone));
        }
        line.refresh().await.map_err(line_status)?;
        line.cover(shard, answer.local).await.map_err(line_status)?;
        Ok(line.with_fold(|fold| fold.seen_until(shard, answer.local)))
    }

    fn why_refused(&self, route: &Route, guards: &[LeaseGuard], answer: pb::TxnResponse) -> Refused {
        let mut values = answer.responses.into_iter().map(|op| match op.response {
            Some(pb::Response::ResponseRange(mut range)) => range.kvs.pop().map(|kv| kv.value),
            _ => None,
        });
        for rid in &route.rids {
            if values.next().flatten().as_deref() != Some(FENCE_OPEN) {
                return Refused::Fence(rid.clone());
            }
        }
        for lease in guards {
            if let Some(epoch) = lease.epoch
                && values.next().flatten() != Some(sharded_etcd_core::records::lease_live(epoch))
            {
                self.leases.forget(lease.id, route.shard);
            }
        }
        Refused::Retry
    }

    /// What an error of the shard means; `Ok` if the write was not applied and is to be sent again.
    async fn write_failed(
        &self,
        route: &Route,
        error: ShardError,
        poisoned: Option<&Status>,
    ) -> Result<(), WriteError> {
        if error.certainty == Certainty::Ambiguous {
            self.ctx.metrics.ambiguous_writes.inc();
        }
        if error.certainty == Certainty::Refused && error.is_compacted() {
            // The guard reads at a revision that this proxy knew; the shard is compacted beyond it.
            self.ctx.line.refresh().await.map_err(line_status)?;
            return Ok(());
        }
        if error.certainty == Certainty::Refused && error.is_future_rev() {
            if let Some(quarantined) = self.ctx.shards.suspect(route.shard).await {
                return Err(needed_for(quarantined, &route.first).into());
            }
            if let Some(status) = poisoned {
                return Err(status.clone().into());
            }
            // A member that lags behind what the line knows: ask again, which a leader change ends.
            tokio::time::sleep(Duration::from_millis(5)).await;
            return Ok(());
        }
        Err(needed_for(error, &route.first).into())
    }
}

/// True if an answer has keys in it, of reads or from before its writes.
fn shows_keys(answer: &pb::TxnResponse) -> bool {
    answer.responses.iter().any(|op| match &op.response {
        Some(pb::Response::ResponseRange(r)) => !r.kvs.is_empty(),
        Some(pb::Response::ResponsePut(r)) => r.prev_kv.is_some(),
        Some(pb::Response::ResponseDeleteRange(r)) => !r.prev_kvs.is_empty(),
        Some(pb::Response::ResponseTxn(inner)) => shows_keys(inner),
        None => false,
    })
}

/// The one shard that owns all ranges touched.
fn route(map: &RangeMap, ranges: &[KeyRange], name: impl Fn(ShardIx) -> String) -> Result<Route, WriteError> {
    let mut route: Option<Route> = None;
    for range in ranges {
        for entry in map.overlapping(range) {
            let part = entry.range.intersect(range);
            match &mut route {
                None => {
                    route = Some(Route { shard: entry.shard, rids: vec![entry.rid.clone()], first: part });
                }
                Some(route) if route.shard == entry.shard => {
                    if !route.rids.contains(&entry.rid) {
                        route.rids.push(entry.rid.clone());
                    }
                }
                Some(route) => {
                    return Err(WriteError::Spans(Status::failed_precondition(format!(
                        "the transaction spans shards: {} is on {}, {} is on {}; keep its keys in one directory, or pin \
                         their common prefix to one shard",
                        Printable(&route.first.start),
                        name(route.shard),
                        Printable(&part.start),
                        name(entry.shard),
                    ))));
                }
            }
        }
    }
    route.ok_or_else(|| Status::internal("a write that touches no key was routed").into())
}
