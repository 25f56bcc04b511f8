//! How many keys and bytes each range holds, what load it has, and where it could be split.
//!
//! Counting is cheap and done often; reading a range, for its bytes and cut points, is not, and is done when its count has
//! changed by enough, never for more than a tenth of the time. A split, a move or a merge carries the figures over.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use sharded_etcd_core::{
    keyspace::{RangeEntry, RangeMap, Rid, Rules, ShardIx},
    moves::ops,
    placement::{CutPoint, CutScan, Observation, RangeView, ShardState, ShardView},
    topology::{Topology, shard_index, shard_name},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::{Cut, Line, Shards};
use sharded_etcd_shard::{Shard, ShardError};
use tokio::time::Instant;

use crate::{load::Loads, mover::read::KeyReader};

/// Cut points kept for each range.
const CUTS_MAX: usize = 256;
/// A range is read at most a tenth of the time.
const REST_FACTOR: u32 = 10;
/// Least time between two reads of a range.
const REST_MIN: Duration = Duration::from_secs(1);
/// A shard that does not answer for so long counts as unreachable.
const SHARD_WAIT: Duration = Duration::from_secs(2);
/// After this time a range that was written to is read again, whatever its count says: values may have grown.
const AGE_MAX: Duration = Duration::from_secs(300);

/// What is known of one range.
#[derive(Debug, Clone, PartialEq)]
pub struct RangeSize {
    /// Keys at the last count.
    pub keys: u64,
    /// Bytes of keys and values at the last read, scaled to the last count.
    pub bytes: u64,
    /// Where it could be split; `None` if it was not read yet.
    pub cuts: Option<Vec<CutPoint>>,
}

#[derive(Debug, Clone)]
struct Known {
    size: RangeSize,
    /// Keys and bytes at the last read.
    read: (u64, u64),
    /// Local revision of the owner at the last count.
    counted_at: i64,
    read_at: Option<Instant>,
    read_revision: i64,
    took: Duration,
    /// When it was counted last, and how long that took.
    counted: (Instant, Duration),
}

/// Sizes of all ranges; one for each process that needs them.
pub struct Sizes {
    line: Arc<Line>,
    shards: Arc<Shards>,
    loads: Loads,
    known: Mutex<HashMap<Rid, Known>>,
    /// Rules and wanted boundaries that the cut points were made for.
    made_for: Mutex<Option<(Rules, Vec<Bytes>)>>,
    /// Shards that did not answer at the last look, with the reason.
    unreachable: Mutex<HashMap<ShardIx, String>>,
    /// Bytes that the shards' databases had in use at the last look.
    used: Mutex<HashMap<ShardIx, u64>>,
}

impl Sizes {
    /// Knows nothing yet.
    pub fn new(line: Arc<Line>, shards: Arc<Shards>) -> Arc<Self> {
        Arc::new(Self {
            loads: Loads::new(Arc::clone(&line)),
            line,
            shards,
            known: Mutex::default(),
            made_for: Mutex::default(),
            unreachable: Mutex::default(),
            used: Mutex::default(),
        })
    }

    /// What clients do to the ranges.
    pub fn loads(&self) -> &Loads {
        &self.loads
    }

    /// Bytes of keys and values of all ranges that were read.
    pub(crate) fn bytes_of_ranges(&self) -> HashMap<Rid, u64> {
        self.known.lock().iter().map(|(rid, k)| (rid.clone(), k.size.bytes)).collect()
    }

    /// Bytes of the shards' databases that are in use, history included.
    pub(crate) fn used(&self) -> HashMap<ShardIx, u64> {
        self.used.lock().clone()
    }

    /// What is known of a range.
    pub fn of(&self, rid: &Rid) -> Option<RangeSize> {
        self.known.lock().get(rid).map(|k| k.size.clone())
    }

    /// Shards that did not answer at the last look, with the reason.
    pub fn unreachable(&self) -> HashMap<ShardIx, String> {
        self.unreachable.lock().clone()
    }

    /// Counts what may have changed, and reads what changed by enough. What cannot be reached keeps its last figures.
    pub async fn refresh(&self, topology: &Topology) {
        let wanted = topology.wanted_boundaries();
        let rules = topology.keyspace.rules.clone();
        {
            let mut made_for = self.made_for.lock();
            let now = Some((rules.clone(), wanted.clone()));
            if *made_for != now {
                *made_for = now;
                for known in self.known.lock().values_mut() {
                    known.read_at = None;
                }
            }
        }
        let cut = self.line.cut();
        self.known.lock().retain(|rid, _| cut.map.by_rid(rid).is_some());
        let joined = (0..cut.names.len()).filter(|&i| !cut.left[i]);
        let looks = joined.map(|i| {
            let ix = ShardIx(u32::try_from(i).unwrap_or(u32::MAX));
            let (cut, rules, wanted) = (&cut, &rules, &wanted);
            async move { Some((ix, self.refresh_shard(ix, cut, rules, wanted).await.err()?)) }
        });
        // Side by side: a shard that hangs must not keep the others waiting for longer than its own answer takes.
        let (looks, ()) = futures::future::join(futures::future::join_all(looks), self.loads.refresh()).await;
        let unreachable = looks.into_iter().flatten().collect();
        *self.unreachable.lock() = unreachable;
    }

    async fn refresh_shard(
        &self,
        ix: ShardIx,
        cut: &Cut,
        rules: &Rules,
        wanted: &[Bytes],
    ) -> Result<(), String> {
        let reach = async {
            let shard = self.shards.get(ix).await?;
            // Also asked of a shard without ranges: does it answer?
            let status = shard.status().await?;
            self.used.lock().insert(ix, u64::try_from(status.db_size_in_use).unwrap_or(0));
            Ok::<_, ShardError>(shard)
        };
        let slow = |_| format!("{}: no answer within {} s", cut.name(ix), SHARD_WAIT.as_secs());
        let shard =
            tokio::time::timeout(SHARD_WAIT, reach).await.map_err(slow)?.map_err(|e| e.to_string())?;
        self.read_shard(ix, shard, cut, rules, wanted).await.map_err(|e| e.to_string())
    }

    async fn read_shard(
        &self,
        ix: ShardIx,
        shard: Arc<dyn Shard>,
        cut: &Cut,
        rules: &Rules,
        wanted: &[Bytes],
    ) -> Result<(), ShardError> {
        let v = cut.v(ix);
        for entry in cut.map.entries().iter().filter(|e| e.shard == ix) {
            let before = self.known.lock().get(&entry.rid).cloned();
            if before
                .as_ref()
                .is_some_and(|k| k.read_at.is_some() && (k.counted_at == v || k.was_just_counted()))
            {
                continue;
            }
            let counting = Instant::now();
            let request = pb::RangeRequest {
                count_only: true,
                serializable: true,
                ..ops::range_request(&entry.range.clamped())
            };
            let keys = u64::try_from(shard.range(request).await?.count).unwrap_or(0);
            let counted = (Instant::now(), counting.elapsed());
            if before.as_ref().is_none_or(|k| k.is_stale(keys, v)) {
                let begun = Instant::now();
                let mut scan = CutScan::new(rules, &entry.range.start, wanted, CUTS_MAX);
                let line = Arc::clone(&self.line);
                let mut reader = KeyReader::new(line, Arc::clone(&shard), ix, &entry.range, v, false);
                while let Some(page) = reader.page().await? {
                    for kv in page {
                        scan.key(&kv.key, kv.value.len() as u64);
                    }
                }
                let scanned = scan.finish(&entry.range.end);
                let size = RangeSize { keys: scanned.keys, bytes: scanned.bytes, cuts: Some(scanned.cuts) };
                let known = Known {
                    read: (size.keys, size.bytes),
                    size,
                    counted_at: v,
                    read_at: Some(Instant::now()),
                    read_revision: v,
                    took: begun.elapsed(),
                    counted,
                };
                self.known.lock().insert(entry.rid.clone(), known);
            } else if let Some(known) = self.known.lock().get_mut(&entry.rid) {
                known.count(keys, v);
                known.counted = counted;
            }
        }
        Ok(())
    }

    /// The figures of a range go to the ranges that a split made of it.
    pub fn split(&self, rid: &Rid, at: &Bytes, left: &Rid, right: &Rid) {
        let mut known = self.known.lock();
        let Some(parent) = known.remove(rid) else { return };
        let cuts = parent.size.cuts.clone().unwrap_or_default();
        let Some(point) = cuts.iter().find(|c| c.at == *at).cloned() else { return };
        let before = (point.keys_before, point.bytes_before);
        let child = |size: (u64, u64), cuts: Vec<CutPoint>| Known {
            size: RangeSize { keys: size.0, bytes: size.1, cuts: Some(cuts) },
            read: size,
            ..parent.clone()
        };
        let rest = (parent.read.0.saturating_sub(before.0), parent.read.1.saturating_sub(before.1));
        let left_cuts = cuts.iter().filter(|c| c.at < *at).cloned().collect();
        let right_cuts = cuts
            .iter()
            .filter(|c| c.at > *at)
            .map(|c| CutPoint {
                at: c.at.clone(),
                keys_before: c.keys_before.saturating_sub(before.0),
                bytes_before: c.bytes_before.saturating_sub(before.1),
                work_before: 0,
                guessed: false,
            })
            .collect();
        known.insert(left.clone(), child(before, left_cuts));
        known.insert(right.clone(), child(rest, right_cuts));
    }

    /// The figures of a range go with it to its new owner.
    pub fn moved(&self, rid: &Rid, new: &Rid) {
        let mut known = self.known.lock();
        if let Some(mut size) = known.remove(rid) {
            // The new owner's revisions have nothing to do with those of the old one.
            size.counted_at = 0;
            size.read_revision = 0;
            known.insert(new.clone(), size);
        }
    }

    /// What the planner is given: the line as it is, these figures, and the moves under way.
    pub fn observation(
        &self,
        topology: &Topology,
        moving: &HashMap<Rid, ShardIx>,
        recent: impl Fn(&RangeEntry) -> bool,
    ) -> Observation {
        let cut = self.line.cut();
        let unreachable = self.unreachable.lock().clone();
        let known = self.known.lock();
        let loads = self.loads.view(&cut.map);
        let ranges = cut.map.entries().iter().enumerate().map(|(i, entry)| {
            let size = known.get(&entry.rid).map(|k| k.size.clone());
            let size = size.unwrap_or(RangeSize { keys: 0, bytes: 0, cuts: None });
            let mut view = RangeView {
                range: entry.range.clone(),
                rid: entry.rid.clone(),
                shard: cut.name(entry.shard).to_owned(),
                keys: size.keys,
                bytes: size.bytes,
                work: 0,
                hot: None,
                rests: false,
                cuts: size.cuts,
                moving_to: moving.get(&entry.rid).map(|&ix| cut.name(ix).to_owned()),
                moved_recently: recent(entry),
            };
            loads.add_to(&mut view, i, &topology.keyspace.rules);
            view
        });
        Observation {
            generation: cut.map.generation,
            ranges: ranges.collect(),
            shards: shard_views(&cut, topology, &unreachable, &self.used.lock()),
        }
    }

    /// Takes over what another one knows, so that only what is missing has to be read.
    pub(crate) fn adopt(&self, other: &Self) {
        *self.known.lock() = other.known.lock().clone();
        *self.used.lock() = other.used.lock().clone();
        *self.made_for.lock() = other.made_for.lock().clone();
        self.loads.adopt(&other.loads);
    }

    /// As [`Sizes::observation`], with wanted shards that have not joined as if they had: what would a spec do?
    pub(crate) fn observation_as_joined(
        &self,
        topology: &Topology,
        moving: &HashMap<Rid, ShardIx>,
    ) -> Observation {
        let mut observation = self.observation(topology, moving, |_| false);
        for shard in &mut observation.shards {
            if shard.state == ShardState::Joining {
                shard.state = ShardState::Active;
            }
        }
        observation
    }

    /// Keys and bytes of all ranges of a shard.
    pub fn of_shard(&self, map: &RangeMap, ix: ShardIx) -> (u64, u64) {
        let known = self.known.lock();
        let sizes = map.entries().iter().filter(|e| e.shard == ix).filter_map(|e| known.get(&e.rid));
        sizes.fold((0, 0), |sum, k| (sum.0 + k.size.keys, sum.1 + k.size.bytes))
    }

    /// Whether every range was read at least once, so that a plan knows what it does.
    pub fn complete(&self) -> bool {
        let cut = self.line.cut();
        let known = self.known.lock();
        cut.map.entries().iter().all(|e| known.get(&e.rid).is_some_and(|k| k.size.cuts.is_some()))
    }
}

fn shard_views(
    cut: &Cut,
    topology: &Topology,
    unreachable: &HashMap<ShardIx, String>,
    used: &HashMap<ShardIx, u64>,
) -> Vec<ShardView> {
    let mut views: Vec<ShardView> = Vec::new();
    for (i, name) in cut.names.iter().enumerate() {
        if cut.left[i] {
            continue;
        }
        let ix = ShardIx(u32::try_from(i).unwrap_or(u32::MAX));
        let wanted = shard_index(name).is_some_and(|index| index < topology.shards);
        let state = match (unreachable.contains_key(&ix), wanted) {
            (true, _) => ShardState::Unreachable,
            (false, true) => ShardState::Active,
            (false, false) => ShardState::Draining,
        };
        views.push(ShardView {
            name: name.to_string(),
            state,
            used_bytes: used.get(&ix).copied().unwrap_or(0),
        });
    }
    for index in 0..topology.shards {
        let name = shard_name(index);
        if !views.iter().any(|v| v.name == name) {
            views.push(ShardView { name, state: ShardState::Joining, used_bytes: 0 });
        }
    }
    views
}

impl Known {
    /// True if the range should be read again.
    fn is_stale(&self, keys: u64, v: i64) -> bool {
        let Some(read_at) = self.read_at else { return true };
        let rested = read_at.elapsed() >= REST_MIN.max(self.took * REST_FACTOR);
        let changed = self.read.0.abs_diff(keys) > (self.read.0 / 10).max(20);
        rested && (changed || (read_at.elapsed() > AGE_MAX && v > self.read_revision))
    }

    /// Counting walks over an etcd's index: it, too, is done for at most a tenth of the time.
    fn was_just_counted(&self) -> bool {
        self.counted.0.elapsed() < self.counted.1 * REST_FACTOR
    }

    fn count(&mut self, keys: u64, v: i64) {
        let (read_keys, read_bytes) = self.read;
        self.counted_at = v;
        self.size.keys = keys;
        // Until it is read again: as if the new keys were as large as the others.
        self.size.bytes = match u128::from(read_keys) {
            0 => read_bytes,
            n => u64::try_from(u128::from(read_bytes) * u128::from(keys) / n).unwrap_or(u64::MAX),
        };
    }
}
