//! Reading a range of one shard at one of its revisions, as clients know its keys.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use sharded_etcd_core::{
    keyspace::{KeyRange, ShardIx, successor},
    moves::ops,
    records::{overridden_key, override_key, override_range},
    translate::{StoredOverride, client_kv},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::Line;
use sharded_etcd_shard::{Shard, ShardError};

/// Bytes of a page aimed at.
const PAGE_BYTES: usize = 1 << 20;
/// Most keys of a page.
const PAGE_KEYS_MAX: i64 = 1000;

/// Reads a range page by page.
pub(crate) struct KeyReader {
    line: Arc<Line>,
    shard: Arc<dyn Shard>,
    ix: ShardIx,
    /// Local revision of every page.
    revision: i64,
    /// What is left, below the hidden space.
    rest: KeyRange,
    /// Whether keys of the range may have overrides.
    overrides: bool,
    limit: i64,
    done: bool,
}

impl KeyReader {
    pub(crate) fn new(
        line: Arc<Line>,
        shard: Arc<dyn Shard>,
        ix: ShardIx,
        range: &KeyRange,
        revision: i64,
        overrides: bool,
    ) -> Self {
        let rest = range.clamped();
        let done = rest.is_empty();
        Self { line, shard, ix, revision, rest, overrides, limit: 100, done }
    }

    /// The next page in key order; `None` at the end.
    pub(crate) async fn page(&mut self) -> Result<Option<Vec<pb::KeyValue>>, ShardError> {
        if self.done {
            return Ok(None);
        }
        let answer = self.raw_page().await?;
        let Some(last) = answer.kvs.last() else {
            self.done = true;
            return Ok(None);
        };
        let next = successor(&last.key);
        let read = KeyRange::new(self.rest.start.clone(), next.clone());
        let bytes: usize = answer.kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
        let fitting = (PAGE_BYTES * answer.kvs.len() / bytes.max(1)) as i64;
        self.limit = fitting.clamp(1, PAGE_KEYS_MAX).min(self.limit * 4);
        let overrides = if self.overrides {
            read_overrides(self.shard.as_ref(), &read, self.revision).await?
        } else {
            HashMap::new()
        };
        let kvs = self.line.with_fold(|fold| {
            answer
                .kvs
                .into_iter()
                .map(|kv| {
                    let o = overrides.get(&kv.key);
                    client_kv(fold, self.ix, kv, o)
                })
                .collect()
        });
        self.done = !answer.more;
        self.rest.start = next;
        Ok(Some(kvs))
    }

    /// One page; with fewer keys if so many are too large for one answer.
    async fn raw_page(&mut self) -> Result<pb::RangeResponse, ShardError> {
        loop {
            let request = pb::RangeRequest {
                limit: self.limit,
                revision: self.revision,
                ..ops::range_request(&self.rest)
            };
            match self.shard.range(request).await {
                Err(error)
                    if self.limit > 1
                        && !error.is_compacted()
                        && !error.is_future_rev()
                        && too_large(&error) =>
                {
                    self.limit = (self.limit / 4).max(1);
                }
                answer => return answer,
            }
        }
    }
}

pub(crate) fn too_large(error: &ShardError) -> bool {
    error.message.contains("message length too large") || error.message.contains("larger than max")
}

async fn read_overrides(
    shard: &dyn Shard,
    range: &KeyRange,
    revision: i64,
) -> Result<HashMap<Bytes, StoredOverride>, ShardError> {
    let request = pb::RangeRequest { revision, ..ops::range_request(&override_range(range)) };
    let answer = shard.range(request).await?;
    Ok(answer
        .kvs
        .iter()
        .filter_map(|kv| Some((overridden_key(&kv.key)?, StoredOverride::from_kv(kv)?)))
        .collect())
}

/// The override of one key at one local revision.
pub(crate) async fn read_override(
    shard: &dyn Shard,
    key: &[u8],
    revision: i64,
) -> Result<Option<StoredOverride>, ShardError> {
    let request = pb::RangeRequest { key: override_key(key), revision, ..Default::default() };
    Ok(shard.range(request).await?.kvs.first().and_then(StoredOverride::from_kv))
}

/// These keys at one local revision as clients know them, sorted by key; those that do not exist are left out.
pub(crate) async fn read_keys(
    line: &Line,
    shard: &dyn Shard,
    ix: ShardIx,
    keys: &[Bytes],
    revision: i64,
) -> Result<Vec<pb::KeyValue>, ShardError> {
    let get = |key| {
        let range = pb::RangeRequest { key, revision, ..Default::default() };
        pb::RequestOp { request: Some(pb::Request::RequestRange(range)) }
    };
    let ops = keys.iter().flat_map(|key| [get(key.clone()), get(override_key(key))]).collect();
    let answer = shard.txn(pb::TxnRequest { success: ops, ..Default::default() }).await?;
    let mut first = answer.responses.into_iter().map(|op| match op.response {
        Some(pb::Response::ResponseRange(range)) => range.kvs.into_iter().next(),
        _ => None,
    });
    let mut kvs = Vec::with_capacity(keys.len());
    line.with_fold(|fold| {
        while let (Some(kv), Some(o)) = (first.next(), first.next()) {
            if let Some(kv) = kv {
                kvs.push(client_kv(fold, ix, kv, o.as_ref().and_then(StoredOverride::from_kv).as_ref()));
            }
        }
    });
    kvs.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(kvs)
}
