//! What is known of keys on their shards: overrides of imported keys, and last values.

use std::collections::HashMap;

use bytes::Bytes;
use parking_lot::Mutex;
use sharded_etcd_core::{keyspace::ShardIx, translate::StoredOverride};
use sharded_etcd_etcd_api::messages as pb;

/// Overrides kept, twice: entries not asked for since the last so many new ones are forgotten.
const OVERRIDES_MAX: usize = 1 << 16;

/// Bytes of last values kept for one shard.
const RECENT_BYTES_MAX: usize = 8 << 20;

/// Values larger than this are read again when they are needed.
const RECENT_VALUE_MAX: usize = 64 << 10;

/// A cache of two generations: what is not used while the young one fills up is dropped.
struct TwoGenerations<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K, V> Default for TwoGenerations<K, V> {
    fn default() -> Self {
        Self { young: HashMap::new(), old: HashMap::new() }
    }
}

/// One life of a key on a shard: the shard, the key, its local create revision.
type Life = (ShardIx, Bytes, i64);

/// Overrides, by key and its local create revision.
///
/// From the flip that makes an imported key visible until the key is deleted, its override does not change; so what is
/// found once stays right, also that there is none. Before that flip a move may write it again, which the shard's base stream
/// tells: whatever of that it passes over must not stay.
#[derive(Default)]
pub(crate) struct Overrides {
    lives: Mutex<TwoGenerations<Life, Option<StoredOverride>>>,
    /// Counts the base streams of each shard.
    streams: Mutex<HashMap<ShardIx, u64>>,
}

impl Overrides {
    /// A base stream of a shard begins, and does not go on where the one before was: what that one told may be out of date.
    /// For [`Overrides::told`].
    pub(crate) fn begin(&self, shard: ShardIx) -> u64 {
        let mut streams = self.streams.lock();
        let mut lives = self.lives.lock();
        lives.young.retain(|life, _| life.0 != shard);
        lives.old.retain(|life, _| life.0 != shard);
        let stream = streams.entry(shard).or_default();
        *stream += 1;
        *stream
    }

    /// A base stream tells of an override. One that has been replaced is not heard.
    pub(crate) fn told(&self, stream: u64, shard: ShardIx, key: Bytes, told: StoredOverride) {
        let streams = self.streams.lock();
        if streams.get(&shard) != Some(&stream) {
            return;
        }
        let mut lives = self.lives.lock();
        let life = (shard, key, told.create);
        let known = lives.young.get(&life).or_else(|| lives.old.get(&life)).copied().flatten();
        // Who read it at a later revision knows better than a stream that is late.
        if known.is_none_or(|known| known.modified < told.modified) {
            Self::insert(&mut lives, life, Some(told));
        }
    }

    /// What is known of a key that was created at local revision `create`: its override, or that it has none.
    pub(crate) fn get(&self, shard: ShardIx, key: &Bytes, create: i64) -> Option<Option<StoredOverride>> {
        let life = (shard, key.clone(), create);
        let mut lives = self.lives.lock();
        if let Some(&found) = lives.young.get(&life) {
            return Some(found);
        }
        let found = lives.old.remove(&life)?;
        Self::insert(&mut lives, life, found);
        Some(found)
    }

    /// Remembers the override of a key, or that it has none.
    pub(crate) fn put(&self, shard: ShardIx, key: Bytes, create: i64, found: Option<StoredOverride>) {
        Self::insert(&mut self.lives.lock(), (shard, key, create), found);
    }

    fn insert(
        lives: &mut TwoGenerations<Life, Option<StoredOverride>>,
        life: Life,
        found: Option<StoredOverride>,
    ) {
        lives.young.insert(life, found);
        if lives.young.len() >= OVERRIDES_MAX {
            lives.old = std::mem::take(&mut lives.young);
        }
    }
}

/// The last value of keys of one shard, as its event stream said. Only right as long as it sees all events in order.
#[derive(Default)]
pub(crate) struct Recent {
    values: TwoGenerations<Bytes, Option<pb::KeyValue>>,
    young_bytes: usize,
}

impl Recent {
    /// The key's value after the last event seen: `Some(None)` if it was deleted, `None` if it is not known.
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Option<pb::KeyValue>> {
        self.values.young.get(key).or_else(|| self.values.old.get(key))
    }

    /// Notes an event.
    pub(crate) fn see(&mut self, event: &pb::Event) {
        let Some(kv) = &event.kv else { return };
        if kv.value.len() > RECENT_VALUE_MAX {
            self.values.young.remove(&kv.key);
            self.values.old.remove(&kv.key);
            return;
        }
        // Copies, as each slice would keep the whole message alive that it came in.
        let key = Bytes::copy_from_slice(&kv.key);
        let deleted = event.r#type == i32::from(pb::EventType::Delete);
        let value = (!deleted).then(|| pb::KeyValue {
            key: key.clone(),
            value: Bytes::copy_from_slice(&kv.value),
            ..kv.clone()
        });
        self.young_bytes += 128 + key.len() + kv.value.len();
        self.values.young.insert(key, value);
        if self.young_bytes > RECENT_BYTES_MAX / 2 {
            self.values.old = std::mem::take(&mut self.values.young);
            self.young_bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use sharded_etcd_core::records::Override;

    use super::*;

    fn put(key: &'static str, value: Bytes, mod_revision: i64) -> pb::Event {
        let kv = pb::KeyValue { key: key.into(), value, mod_revision, ..Default::default() };
        pb::Event { r#type: pb::EventType::Put.into(), kv: Some(kv), prev_kv: None }
    }

    #[test]
    fn the_newest_value_wins_over_generations() {
        let mut recent = Recent::default();
        recent.see(&put("k", Bytes::from_static(b"1"), 1));
        // Enough to make the young generation old.
        for i in 0..(RECENT_BYTES_MAX / RECENT_VALUE_MAX / 2) as i64 + 1 {
            recent.see(&put("fill", Bytes::from(vec![0; RECENT_VALUE_MAX]), i));
        }
        assert_eq!(recent.get(b"k").cloned().flatten().map(|kv| kv.mod_revision), Some(1));
        recent.see(&put("k", Bytes::from_static(b"2"), 2));
        assert_eq!(recent.get(b"k").cloned().flatten().map(|kv| kv.mod_revision), Some(2));
        recent.see(&put("k", Bytes::from(vec![0; RECENT_VALUE_MAX + 1]), 3));
        assert_eq!(recent.get(b"k"), None, "what is not kept is not known, rather than old");
    }

    fn stored(modified: i64) -> StoredOverride {
        let value = Override { create: 3, modified, version: 1 };
        StoredOverride { value, create: 5, modified, version: 1 }
    }

    #[test]
    fn what_a_stream_told_that_was_replaced_does_not_stay() {
        let overrides = Overrides::default();
        let (a, b, key) = (ShardIx(0), ShardIx(1), Bytes::from_static(b"k"));
        let modified = |shard| overrides.get(shard, &key, 5).map(|found| found.map(|o| o.modified));
        let (first, other) = (overrides.begin(a), overrides.begin(b));
        overrides.told(first, a, key.clone(), stored(5));
        overrides.told(other, b, key.clone(), stored(5));
        assert_eq!((modified(a), modified(b)), (Some(Some(5)), Some(Some(5))));
        // The import writes it again at 7, and that part is passed over.
        let second = overrides.begin(a);
        assert_eq!((modified(a), modified(b)), (None, Some(Some(5))));
        overrides.told(first, a, key.clone(), stored(5));
        assert_eq!(modified(a), None, "the first one ends a little later");
        overrides.put(a, key.clone(), 5, Some(stored(7)));
        overrides.told(second, a, key.clone(), stored(6));
        assert_eq!(modified(a), Some(Some(7)), "the second one is late");
        overrides.told(second, a, key.clone(), stored(8));
        assert_eq!(modified(a), Some(Some(8)));
    }

    #[test]
    fn overrides_are_bounded() {
        let overrides = Overrides::default();
        overrides.put(ShardIx(0), Bytes::from_static(b"k"), 0, None);
        for i in 0..3 * OVERRIDES_MAX as i64 {
            overrides.put(ShardIx(0), Bytes::from_static(b"x"), i, None);
        }
        assert_eq!(overrides.get(ShardIx(0), &Bytes::from_static(b"k"), 0), None);
        let lives = overrides.lives.lock();
        assert!(lives.young.len() + lives.old.len() <= 2 * OVERRIDES_MAX);
    }
}
