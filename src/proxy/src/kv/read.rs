//! Reads: one log read for all requests that wait, then each shard at its local revision of the cut, from any member.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use sharded_etcd_core::{
    keyspace::{KeyRange, RangeMap, ShardIx, successor},
    records,
    sabotage::Sabotage,
    translate::{StoredOverride, client_kv, finish_range, keys_needed, overrides_of},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::Cut;
use sharded_etcd_shard::{Shard, ShardError};
use tonic::Status;

use super::{Kv, compacted, future_revision, refused};
use crate::context::{line_status, status_of};

/// How often a read starts over because a compaction overtook it.
const STALE_TRIES: u32 = 10;
/// How many shards one request reads at once.
const READS_AT_ONCE: usize = 32;

/// What a read sees: which shard has what, and at which local revision.
pub(super) struct View {
    pub(super) map: Arc<RangeMap>,
    vector: Vec<i64>,
    /// The revision that it shows.
    at: i64,
    /// The header's revision.
    pub(super) revision: i64,
}

impl View {
    fn newest(cut: &Cut) -> Self {
        let (vector, at) = (cut.vector.to_vec(), cut.revision);
        Self { map: Arc::clone(&cut.map), vector, at, revision: cut.revision }
    }

    fn local(&self, shard: ShardIx) -> i64 {
        self.vector.get(shard.index()).copied().unwrap_or(0)
    }
}

/// Why a read did not come to an end.
pub(super) enum ReadError {
    /// A shard is compacted beyond the view: take a newer one.
    Stale,
    /// Final.
    Status(Status),
}

impl From<Status> for ReadError {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// Neighbouring ranges of one shard, read with one request.
struct Run {
    shard: ShardIx,
    range: KeyRange,
    imported_at: i64,
}

/// What a run gave.
struct Fetched {
    kvs: Vec<pb::KeyValue>,
    count: i64,
}

impl Kv {
    /// etcd's `KV.Range`: linearizable over all shards, unless serializable is asked for.
    ///
    /// # Errors
    /// etcd's; Unavailable naming the shard if one that has a part of the range cannot be reached.
    pub async fn range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        sharded_etcd_core::check::range(&request).map_err(refused)?;
        for _ in 0..STALE_TRIES {
            let newest = self.newest(request.serializable).await?;
            let view = self.view(&newest, request.revision, request.serializable).await?;
            match self.range_in(&view, &request).await {
                Ok(mut answer) => {
                    answer.header = Some(self.ctx.header(view.revision));
                    return Ok(answer);
                }
                Err(ReadError::Stale) => self.catch_up().await?,
                Err(ReadError::Status(status)) => return Err(status),
            }
        }
        Err(Status::unavailable("compaction overtook the read again and again; try again"))
    }

    pub(super) async fn newest(&self, serializable: bool) -> Result<Arc<Cut>, Status> {
        if serializable {
            Ok(self.ctx.line.cut())
        } else {
            self.ctx.line.refresh().await.map_err(line_status)
        }
    }

    async fn catch_up(&self) -> Result<(), Status> {
        self.ctx.line.refresh().await.map(|_| ()).map_err(line_status)
    }

    /// The view of a request at a revision of its own, or at the newest cut.
    pub(super) async fn view(
        &self,
        cut: &Arc<Cut>,
        revision: i64,
        serializable: bool,
    ) -> Result<View, Status> {
        if revision <= 0 {
            return Ok(View::newest(cut));
        }
        let mut newest = cut.revision;
        if revision > newest && serializable {
            // Another proxy may know more; only then is it a revision of the future.
            newest = self.ctx.line.refresh().await.map_err(line_status)?.revision;
        }
        if revision > newest {
            return Err(future_revision());
        }
        self.ctx.line.with_fold(|fold| {
            if revision < fold.compacted {
                return Err(compacted());
            }
            let local = |i| fold.local_at_most(ShardIx(i as u32), revision).unwrap_or(0);
            Ok(View {
                map: Arc::clone(fold.map_at(revision)),
                vector: (0..fold.shards().len()).map(local).collect(),
                at: revision,
                revision: newest,
            })
        })
    }

    /// The keys of a request in a view, finished as etcd does; the header is the caller's.
    pub(super) async fn range_in(
        &self,
        view: &View,
        request: &pb::RangeRequest,
    ) -> Result<pb::RangeResponse, ReadError> {
        let runs = runs(&view.map, &KeyRange::of_request(&request.key, &request.range_end));
        let keys_only = request.keys_only && request.sort_target() != pb::SortTarget::Value;
        let (kvs, count) = match keys_needed(request).filter(|_| !request.count_only) {
            Some(needed) => self.first_keys(view, runs, needed, keys_only).await?,
            None => {
                let what = if request.count_only { What::Count } else { What::Keys { limit: 0, keys_only } };
                self.all_runs(view, runs, what).await?
            }
        };
        let (kvs, more) = finish_range(request, kvs);
        self.ctx.metrics.load.read(request, &kvs);
        Ok(pb::RangeResponse { header: None, kvs, more, count })
    }

    /// Runs in key order until enough keys are there; the rest is only counted.
    async fn first_keys(
        &self,
        view: &View,
        runs: Vec<Run>,
        needed: i64,
        keys_only: bool,
    ) -> Result<(Vec<pb::KeyValue>, i64), ReadError> {
        let mut runs = runs.into_iter();
        let (mut kvs, mut count) = (Vec::new(), 0);
        for run in runs.by_ref() {
            let limit = needed - kvs.len() as i64;
            let fetched = self.fetch(view, run, What::Keys { limit, keys_only }).await?;
            kvs.extend(fetched.kvs);
            count += fetched.count;
            if kvs.len() as i64 >= needed {
                break;
            }
        }
        let (_, rest) = self.all_runs(view, runs.collect(), What::Count).await?;
        Ok((kvs, count + rest))
    }

    async fn all_runs(
        &self,
        view: &View,
        mut runs: Vec<Run>,
        what: What,
    ) -> Result<(Vec<pb::KeyValue>, i64), ReadError> {
        if runs.len() == 1
            && let Some(run) = runs.pop()
        {
            let fetched = self.fetch(view, run, what).await?;
            return Ok((fetched.kvs, fetched.count));
        }
        let fetched: Vec<Fetched> = stream::iter(runs.into_iter().map(|run| self.fetch(view, run, what)))
            .buffered(READS_AT_ONCE)
            .try_collect()
            .await?;
        let count = fetched.iter().map(|f| f.count).sum();
        Ok((fetched.into_iter().flat_map(|f| f.kvs).collect(), count))
    }

    async fn fetch(&self, view: &View, run: Run, what: What) -> Result<Fetched, ReadError> {
        let shard = self.ctx.shards.get(run.shard).await.map_err(|e| needed_for(e, &run.range))?;
        let newest = Sabotage::ReadLater.is_on() && run.shard == ShardIx(0);
        let local = if newest { 0 } else { view.local(run.shard) };
        let (limit, keys_only, count_only) = match what {
            What::Count => (0, false, true),
            What::Keys { limit, keys_only } => (limit, keys_only, false),
        };
        let (key, range_end) = bounds(&run.range);
        let request = pb::RangeRequest {
            key,
            range_end,
            limit,
            revision: local,
            keys_only,
            count_only,
            ..Default::default()
        };
        let answer = self.read_at(shard.as_ref(), run.shard, request, &run.range).await?;
        if count_only {
            return Ok(Fetched { kvs: Vec::new(), count: answer.count });
        }
        let overrides = self.overrides(shard.as_ref(), &run, local, &answer.kvs).await?;
        let kvs = self.ctx.line.with_fold(|fold| {
            // Keys that were gone at the compaction may have no numbers any more.
            let is_known = view.at >= fold.compacted;
            let kvs = answer.kvs.into_iter();
            let translated = kvs.map(|kv| {
                let o = overrides.get(&kv.key);
                client_kv(fold, run.shard, kv, o)
            });
            is_known.then(|| translated.collect())
        });
        Ok(Fetched { kvs: kvs.ok_or(ReadError::Stale)?, count: answer.count })
    }

    /// The overrides of those keys of an imported run that are as old as the import.
    async fn overrides(
        &self,
        shard: &dyn Shard,
        run: &Run,
        local: i64,
        kvs: &[pb::KeyValue],
    ) -> Result<HashMap<Bytes, StoredOverride>, ReadError> {
        if run.imported_at == 0 {
            return Ok(HashMap::new());
        }
        let old: Vec<&pb::KeyValue> = self.ctx.line.with_fold(|fold| {
            let native = |kv: &pb::KeyValue| {
                fold.global(run.shard, kv.create_revision).is_some_and(|created| created > run.imported_at)
            };
            kvs.iter().filter(|kv| !native(kv)).collect()
        });
        let (Some(first), Some(last)) = (old.first(), old.last()) else { return Ok(HashMap::new()) };
        let range = records::override_range(&KeyRange::new(first.key.clone(), successor(&last.key)));
        let range_end = if old.len() == 1 { Bytes::new() } else { range.end };
        let request = pb::RangeRequest { key: range.start, range_end, revision: local, ..Default::default() };
        let answer = self.read_at(shard, run.shard, request, &run.range).await?;
        Ok(overrides_of(answer.kvs))
    }

    /// One read of a shard at a local revision, from any member; a member that lags is asked linearizably.
    async fn read_at(
        &self,
        shard: &dyn Shard,
        ix: ShardIx,
        request: pb::RangeRequest,
        range: &KeyRange,
    ) -> Result<pb::RangeResponse, ReadError> {
        let serializable = pb::RangeRequest { serializable: true, ..request.clone() };
        let error = match shard.range(serializable).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let error = if error.is_future_rev() {
            match shard.range(request).await {
                Ok(answer) => return Ok(answer),
                Err(error) if error.is_future_rev() => self.ctx.shards.suspect(ix).await.unwrap_or(error),
                Err(error) => error,
            }
        } else {
            error
        };
        if error.is_compacted() { Err(ReadError::Stale) } else { Err(needed_for(error, range).into()) }
    }
}

/// Which part of a run is wanted.
#[derive(Clone, Copy)]
enum What {
    Count,
    Keys { limit: i64, keys_only: bool },
}

/// The ranges of a map that overlap `range`, neighbours of one shard joined.
fn runs(map: &RangeMap, range: &KeyRange) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for entry in map.overlapping(range) {
        let part = entry.range.intersect(range);
        if part.is_empty() {
            continue;
        }
        match runs.last_mut() {
            Some(last) if last.shard == entry.shard => {
                last.range.end = part.end;
                last.imported_at = last.imported_at.max(entry.imported_at);
            }
            _ => runs.push(Run { shard: entry.shard, range: part, imported_at: entry.imported_at }),
        }
    }
    runs
}

/// `key` and `range_end` for an interval; a single key is asked for as one.
pub(super) fn bounds(range: &KeyRange) -> (Bytes, Bytes) {
    let single = range.end.len() == range.start.len() + 1
        && range.end.last() == Some(&0)
        && range.end.starts_with(&range.start)
        && !range.start.is_empty();
    if single { (range.start.clone(), Bytes::new()) } else { (range.request_key(), range.request_end()) }
}

/// A shard's error with the keys that it was needed for; etcd's own texts stay as they are.
pub(super) fn needed_for(mut error: ShardError, range: &KeyRange) -> Status {
    if !error.message.starts_with("etcdserver:") {
        error.message = format!("{} (needed for keys {range})", error.message);
    }
    status_of(error)
}
