//! What is true: the line as anybody can compute it from the log in meta and the shards' histories, computed here anew
//! with each entry of the log, in the simplest way, and by none of the code under test.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use sharded_etcd_core::{
    keyspace::{KeyRange, RESERVED, Rid, ShardIx},
    line::{Entry, Join},
};
use sharded_etcd_etcd_api::messages as pb;
use tokio::time::Instant;

use crate::{etcd::Etcd, state::Keys};

/// An event of the line.
#[derive(Debug, Clone)]
pub struct TrueEvent {
    /// As a watcher with previous values sees it.
    pub event: pb::Event,
    /// When its shard wrote it.
    pub at: Instant,
}

impl TrueEvent {
    /// The key-value pair after it.
    pub fn kv(&self) -> &pb::KeyValue {
        // Both kinds of events are made with one.
        self.event.kv.as_ref().expect("an event has its key")
    }

    /// True for a deletion.
    pub fn is_delete(&self) -> bool {
        self.event.r#type == i32::from(pb::EventType::Delete)
    }
}

struct Joined {
    name: String,
    etcd: Arc<Etcd>,
    v: i64,
    left: bool,
    /// The revision of the last flip that took a range from it.
    last_flip_away: i64,
}

/// The line.
#[derive(Default)]
pub struct Truth {
    shards: Vec<Joined>,
    owners: Vec<(KeyRange, Rid, ShardIx)>,
    /// The newest revision.
    pub revision: i64,
    /// Compacted below.
    pub compacted: i64,
    /// Clients' keys.
    pub keys: Keys,
    /// The events of each revision that has some.
    pub events: BTreeMap<i64, Vec<TrueEvent>>,
    /// Revision, compaction and vector at each log position.
    pub cuts: BTreeMap<i64, (i64, i64, Vec<i64>)>,
    position: i64,
}

impl Truth {
    /// Takes in the entry at a log position; the revisions that it brings. `etcds` are all there are.
    ///
    /// # Errors
    /// If the entry does not fit what is true.
    pub fn take(
        &mut self,
        position: i64,
        value: &[u8],
        etcds: &[Arc<Etcd>],
    ) -> Result<std::ops::RangeInclusive<i64>, String> {
        if position <= self.position {
            return Err(format!("log position {position} came after {}", self.position));
        }
        self.position = position;
        let before = self.revision;
        match Entry::decode(value).map_err(|e| e.to_string())? {
            Entry::Init(init) => {
                for join in &init.joins {
                    self.join(join, etcds)?;
                }
                self.owners = init.ranges.into_iter().map(|r| (r.range, r.rid, r.shard)).collect();
                self.revision = 1;
            }
            Entry::Adv(vector) => self.advance(vector)?,
            Entry::Flip(flip) => {
                self.advance(vec![(flip.from, flip.from_local), (flip.to, flip.to_local)])?;
                self.revision += 1;
                let owner = self.owner(&flip.rid)?;
                if owner.0 != flip.range || owner.2 != flip.from {
                    return Err(format!(
                        "a flip of {} from {:?} does not fit the map",
                        flip.range, flip.from
                    ));
                }
                (owner.1, owner.2) = (flip.new_rid, flip.to);
                if self.shard(flip.to)?.left {
                    return Err(format!("a flip gives {} to a shard that has left", flip.range));
                }
                let revision = self.revision;
                self.shard(flip.from)?.last_flip_away = revision;
            }
            Entry::Split(split) => {
                let owner = self.owner(&split.rid)?;
                let (range, shard) = (owner.0.clone(), owner.2);
                *owner = (KeyRange::new(range.start, split.at.clone()), split.left, shard);
                self.owners.push((KeyRange::new(split.at, range.end), split.right, shard));
                self.owners.sort();
            }
            Entry::Merge(merge) => {
                let end = self.owner(&merge.right)?.0.end.clone();
                self.owners.retain(|o| o.1 != merge.right);
                let left = self.owner(&merge.left)?;
                left.0.end = end;
                left.1 = merge.rid;
            }
            Entry::Compact(revision) => {
                if revision > self.compacted && revision <= self.revision {
                    self.compacted = revision;
                }
            }
            Entry::Join(join) => self.join(&join, etcds)?,
            Entry::Leave(ix) => self.leave(ix)?,
        }
        self.keys.set_revision(self.revision);
        let vector = self.vector();
        self.cuts.insert(position, (self.revision, self.compacted, vector));
        self.check_tiles()?;
        Ok(before + 1..=self.revision)
    }

    /// The local revisions that are part of the line.
    pub fn vector(&self) -> Vec<i64> {
        self.shards.iter().map(|s| s.v).collect()
    }

    /// The ranges, their ownerships and owners.
    pub fn owners(&self) -> &[(KeyRange, Rid, ShardIx)] {
        &self.owners
    }

    fn join(&mut self, join: &Join, etcds: &[Arc<Etcd>]) -> Result<(), String> {
        if self.shards.iter().any(|s| s.etcd.cluster_id == join.etcd_cluster_id) {
            return Ok(());
        }
        let etcd = etcds.iter().find(|e| e.cluster_id == join.etcd_cluster_id);
        let etcd = etcd.filter(|e| e.name == join.shard && e.incarnation == join.incarnation);
        let etcd = etcd.ok_or_else(|| format!("an unknown shard joined: {join:?}"))?;
        if let Some(there) = self.shards.iter().find(|s| s.name == join.shard && !s.left) {
            return Err(format!("{join:?}, but incarnation {} is there", there.etcd.incarnation));
        }
        // A fresh etcd is at revision 1: that one as a revision to read at would be "what is there now".
        if join.l0 < 2 || join.l0 > etcd.revision() {
            return Err(format!("{join:?}, and it is at revision {}", etcd.revision()));
        }
        let events = (2..=join.l0).filter_map(|local| etcd.events_of(local)).flat_map(|(events, _)| events);
        if let Some(kv) = events.filter_map(|e| e.kv).find(|kv| kv.key.as_ref() < RESERVED) {
            return Err(format!("{join:?}, and it holds {:?}", kv.key));
        }
        let (name, etcd) = (join.shard.clone(), Arc::clone(etcd));
        self.shards.push(Joined { name, etcd, v: join.l0, left: false, last_flip_away: 0 });
        Ok(())
    }

    /// A shard leaves: with nothing that anybody can still ask for.
    fn leave(&mut self, ix: ShardIx) -> Result<(), String> {
        if let Some((range, ..)) = self.owners.iter().find(|o| o.2 == ix) {
            return Err(format!("shard number {} leaves, and owns {range}", ix.0));
        }
        let compacted = self.compacted;
        let shard = self.shard(ix)?;
        if compacted < shard.last_flip_away {
            return Err(format!(
                "{} leaves with history up to {}, and only {compacted} is compacted",
                shard.name, shard.last_flip_away
            ));
        }
        shard.left = true;
        Ok(())
    }

    fn shard(&mut self, ix: ShardIx) -> Result<&mut Joined, String> {
        self.shards.get_mut(ix.index()).ok_or_else(|| format!("shard number {} never joined", ix.0))
    }

    /// Cluster ids of the shards that have left.
    pub fn left(&self) -> Vec<u64> {
        self.shards.iter().filter(|s| s.left).map(|s| s.etcd.cluster_id).collect()
    }

    /// Names of those that have not.
    pub fn present(&self) -> Vec<String> {
        self.shards.iter().filter(|s| !s.left).map(|s| s.name.clone()).collect()
    }

    /// Those that have not, with the local revision up to which they are part of the line.
    pub fn shards_there(&self) -> Vec<(ShardIx, Arc<Etcd>, i64)> {
        let all = self.shards.iter().enumerate();
        all.filter(|(_, s)| !s.left).map(|(i, s)| (ShardIx(i as u32), Arc::clone(&s.etcd), s.v)).collect()
    }

    fn owner(&mut self, rid: &Rid) -> Result<&mut (KeyRange, Rid, ShardIx), String> {
        self.owners.iter_mut().find(|o| o.1 == *rid).ok_or_else(|| format!("{rid} owns nothing"))
    }

    fn advance(&mut self, mut vector: Vec<(ShardIx, i64)>) -> Result<(), String> {
        vector.sort_unstable();
        for (ix, v) in vector {
            let shard = self.shards.get_mut(ix.index()).ok_or("a cut names a shard that never joined")?;
            let (etcd, from) = (Arc::clone(&shard.etcd), shard.v + 1);
            shard.v = shard.v.max(v);
            for local in from..=v {
                let (events, at) = etcd.events_of(local).ok_or_else(|| {
                    format!("a cut claims {} revision {local}, which is not there", etcd.name)
                })?;
                self.revision += 1;
                self.add(ix, events, at);
            }
        }
        Ok(())
    }

    fn add(&mut self, shard: ShardIx, events: Vec<pb::Event>, at: Instant) {
        let mut seen = Vec::new();
        for kv in events.iter().filter_map(|e| e.kv.as_ref().map(|kv| (e.r#type, kv))) {
            let (kind, kv) = kv;
            if kv.key.as_ref() >= RESERVED || self.owner_of(&kv.key) != Some(shard) {
                continue;
            }
            let event = if kind == i32::from(pb::EventType::Delete) {
                self.keys.delete(&kv.key, self.revision)
            } else {
                Some(self.keys.put(&kv.key, kv.value.clone(), kv.lease, self.revision))
            };
            seen.extend(event.map(|event| TrueEvent { event, at }));
        }
        if !seen.is_empty() {
            self.events.insert(self.revision, seen);
        }
    }

    fn owner_of(&self, key: &[u8]) -> Option<ShardIx> {
        self.owners.iter().find(|o| o.0.contains(key)).map(|o| o.2)
    }

    /// Invariant: ranges tile the keyspace.
    fn check_tiles(&self) -> Result<(), String> {
        let mut end = Bytes::new();
        for (i, (range, ..)) in self.owners.iter().enumerate() {
            if range.start != end || (i > 0 && end.is_empty()) {
                return Err(format!("the ranges do not tile the keyspace at {range}"));
            }
            end = range.end.clone();
        }
        if end.is_empty() { Ok(()) } else { Err("the ranges end before the keyspace does".to_owned()) }
    }
}
