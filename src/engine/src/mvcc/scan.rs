//! A Range in steps.

use std::ops::Bound;

use bytes::Bytes;
use sharded_etcd_core::translate::{finish_range, keys_needed};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::Result;

use super::{Key, Store, VersionRef, key_range::bounds, store::live_at};
use crate::{
    errors,
    values::{read_all, read_all_cached},
};

/// Bytes of values that one step reads, about.
const STEP_BYTES_MAX: usize = 4 << 20;

/// A Range under way on one snapshot: large ones are walked in slices between which others have their turn.
#[derive(Debug)]
pub struct RangeScan {
    request: pb::RangeRequest,
    /// What the header says.
    newest: i64,
    /// Where is read.
    revision: i64,
    /// The key to go on with; None at the start.
    resume: Option<Key>,
    kvs: Vec<pb::KeyValue>,
    kvs_max: usize,
    count: i64,
    /// Keys that were found and whose values are on the disk only, and whether they are the last ones.
    unread: Option<(Vec<VersionRef>, bool)>,
}

/// What a step of a [`RangeScan`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The range is done.
    Done,
    /// There is more.
    More,
    /// Values are to be read from the disk: [`RangeScan::read_on`] goes on.
    OnDisk,
}

impl From<bool> for Step {
    fn from(is_done: bool) -> Self {
        if is_done { Self::Done } else { Self::More }
    }
}

impl RangeScan {
    /// Checks the revision. `newest` is the newest revision that the reader sees.
    pub fn new(store: &Store, request: pb::RangeRequest, newest: i64) -> Result<Self> {
        if request.revision > newest {
            return Err(errors::future_revision());
        }
        let revision = if request.revision <= 0 { newest } else { request.revision };
        if revision < store.compact_revision() {
            return Err(errors::compacted());
        }
        let needed = if request.count_only { Some(0) } else { keys_needed(&request) };
        let kvs_max = needed.map_or(usize::MAX, |needed| usize::try_from(needed).unwrap_or(usize::MAX));
        Ok(Self { request, newest, revision, resume: None, kvs: Vec::new(), kvs_max, count: 0, unread: None })
    }

    /// The revision that is read.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Looks at up to `keys_max` keys, always of the same store, and reads their values: fewer if they are large. True when
    /// the range is done.
    ///
    /// # Errors
    /// If a value cannot be read.
    pub fn step(&mut self, store: &Store, keys_max: usize) -> Result<bool> {
        match self.step_cached(store, keys_max)? {
            Step::OnDisk => self.read_on(),
            step => Ok(step == Step::Done),
        }
    }

    /// The same, but without waiting for the disk.
    ///
    /// # Errors
    /// If a value is damaged.
    pub fn step_cached(&mut self, store: &Store, keys_max: usize) -> Result<Step> {
        if self.unread.is_some() {
            return Ok(Step::OnDisk);
        }
        let mut found = Vec::new();
        let is_done = self.walk(store, keys_max, &mut found);
        if !self.needs_values() {
            // etcd answers keys-only from its index, which does not know leases.
            let without =
                found.iter().map(|version| pb::KeyValue { lease: 0, ..version.with_value(Bytes::new()) });
            self.kvs.extend(without);
            return Ok(is_done.into());
        }
        match read_all_cached(found.iter().map(|version| &**version))? {
            Some(values) => {
                self.add(&found, values);
                Ok(is_done.into())
            }
            None => {
                self.unread = Some((found, is_done));
                Ok(Step::OnDisk)
            }
        }
    }

    /// Reads the values that the step before came to, which may take as long as the disk does. True when the range is done.
    ///
    /// # Errors
    /// If a value cannot be read.
    pub fn read_on(&mut self) -> Result<bool> {
        let Some((found, is_done)) = self.unread.take() else { return Ok(false) };
        let values = read_all(found.iter().map(|version| &**version))?;
        self.add(&found, values);
        Ok(is_done)
    }

    fn add(&mut self, found: &[VersionRef], values: Vec<Bytes>) {
        self.kvs.extend(found.iter().zip(values).map(|(version, value)| version.with_value(value)));
    }

    fn needs_values(&self) -> bool {
        !self.request.keys_only || self.request.sort_target == pb::SortTarget::Value as i32
    }

    fn walk(&mut self, store: &Store, keys_max: usize, found: &mut Vec<VersionRef>) -> bool {
        if self.request.range_end.is_empty() {
            if let Some(live) =
                store.index.get(&self.request.key).and_then(|head| live_at(head, self.revision))
            {
                self.take(&live, found);
            }
            return true;
        }
        let key = self.request.key.clone();
        let range_end = self.request.range_end.clone();
        let Some((mut start, end)) = bounds(&key, &range_end) else { return true };
        let resume = self.resume.take();
        if let Some(resume) = &resume {
            start = Bound::Included(resume.as_ref());
        }
        let mut bytes = 0;
        for (looked_at, (key, head)) in store.index.range((start, end)).enumerate() {
            if looked_at == keys_max || bytes > STEP_BYTES_MAX {
                self.resume = Some(key.clone());
                return false;
            }
            if let Some(live) = live_at(head, self.revision) {
                bytes += self.take(&live, found);
            }
        }
        true
    }

    /// Returns how many bytes of values are to be read for it.
    fn take(&mut self, version: &VersionRef, found: &mut Vec<VersionRef>) -> usize {
        // All keys are counted, also those behind the limit.
        self.count += 1;
        if self.kvs.len() + found.len() >= self.kvs_max {
            return 0;
        }
        found.push(VersionRef::clone(version));
        if self.needs_values() { version.value_len() } else { 0 }
    }

    /// The answer, with the newest revision in the header and nothing else there.
    pub fn finish(self) -> pb::RangeResponse {
        let (kvs, more) = finish_range(&self.request, self.kvs);
        let header = Some(pb::ResponseHeader { revision: self.newest, ..Default::default() });
        pb::RangeResponse { header, kvs, more, count: self.count }
    }
}
