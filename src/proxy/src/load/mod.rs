//! Counts what clients do to each range, on the way of every request.
//!
//! A request costs a search in the range map and a few relaxed additions; it takes no lock that it could wait for, and
//! allocates nothing but, for one in [`SAMPLED`] requests, a key. What was counted is taken away every few seconds by
//! [`Publisher`], which tells meta what changed.

mod publish;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use parking_lot::Mutex;
use sharded_etcd_core::{
    keyspace::{KeyRange, RangeMap},
    load::{Counted, Counts, KEYS_MAX, Sketch, work},
};
use sharded_etcd_etcd_api::messages as pb;

pub(crate) use publish::Publisher;

/// One request in so many is offered to the sketch of keys.
const SAMPLED: u64 = 16;
/// Ranges that one request is counted at, at most: what goes over very many is a load on all alike.
const RANGES_MAX: usize = 64;

/// What was counted since it was taken away last.
pub struct Load {
    table: ArcSwapOption<Table>,
    /// Tables of older maps, which requests may still be adding to.
    retired: Mutex<Vec<Arc<Table>>>,
    keys: Mutex<Sketch>,
}

/// Counters of the ranges of one map.
struct Table {
    map: Arc<RangeMap>,
    counters: Box<[Counters]>,
}

/// A cache line of its own, so that requests on different cores do not slow each other down for neighbouring ranges.
#[derive(Default)]
#[repr(align(64))]
struct Counters {
    reads: AtomicU64,
    writes: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    events: AtomicU64,
}

impl Counters {
    fn take(&self) -> Counts {
        let take =
            |counter: &AtomicU64| if counter.load(Relaxed) == 0 { 0 } else { counter.swap(0, Relaxed) };
        Counts {
            reads: take(&self.reads),
            writes: take(&self.writes),
            read_bytes: take(&self.read_bytes),
            written_bytes: take(&self.written_bytes),
            events: take(&self.events),
        }
    }
}

impl Table {
    fn of(map: &Arc<RangeMap>) -> Arc<Self> {
        let counters = map.entries().iter().map(|_| Counters::default()).collect();
        Arc::new(Self { map: Arc::clone(map), counters })
    }

    fn take(&self, counted: &mut Vec<Counted>) {
        for (entry, counters) in self.map.entries().iter().zip(&self.counters) {
            let counts = counters.take();
            if !counts.is_zero() {
                counted.push(Counted { range: entry.range.clone(), counts });
            }
        }
    }
}

impl Default for Load {
    fn default() -> Self {
        Self {
            table: ArcSwapOption::empty(),
            retired: Mutex::default(),
            keys: Mutex::new(Sketch::new(KEYS_MAX)),
        }
    }
}

impl Load {
    /// A request has read keys, and was given these.
    pub(crate) fn read(&self, request: &pb::RangeRequest, kvs: &[pb::KeyValue]) {
        let table = self.table.load();
        let Some(table) = table.as_ref() else { return };
        let bytes = kvs.iter().map(|kv| (kv.key.len() + kv.value.len()) as u64).sum();
        if request.range_end.is_empty() {
            let at = table.map.index_of(&request.key);
            self.read_at(&table.counters[at], &request.key, bytes);
            return;
        }
        let range = KeyRange::of_request(&request.key, &request.range_end);
        let span = table.map.span(&range);
        let each = bytes / span.len().max(1) as u64;
        for at in span.take(RANGES_MAX) {
            self.read_at(&table.counters[at], first_key(table, at, &range), each);
        }
    }

    fn read_at(&self, counters: &Counters, key: &[u8], bytes: u64) {
        let nth = counters.reads.fetch_add(1, Relaxed);
        counters.read_bytes.fetch_add(bytes, Relaxed);
        self.sample(nth, key, work(1.0, 0.0, bytes as f64));
    }

    /// A transaction of so many bytes that touches these keys was carried out, and may have written.
    pub(crate) fn wrote(&self, ranges: &[KeyRange], bytes: usize) {
        let table = self.table.load();
        let Some(table) = table.as_ref() else { return };
        let each = bytes as u64 / ranges.len().max(1) as u64;
        let mut last = None;
        for range in ranges.iter().take(RANGES_MAX) {
            for at in table.map.span(range).take(RANGES_MAX) {
                let counters = &table.counters[at];
                counters.written_bytes.fetch_add(each, Relaxed);
                // Several keys of one range are one write to it: transactions mostly have the keys of one directory.
                if last.replace(at) == Some(at) {
                    continue;
                }
                let nth = counters.writes.fetch_add(1, Relaxed);
                self.sample(nth, first_key(table, at, range), work(0.0, 1.0, bytes as f64));
            }
        }
    }

    /// These keys' events were sent to one watcher.
    pub(crate) fn sent<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) {
        let table = self.table.load();
        let Some(table) = table.as_ref() else { return };
        let mut last: Option<(usize, u64)> = None;
        let count = |(at, n): (usize, u64)| {
            table.counters[at].events.fetch_add(n, Relaxed);
        };
        for key in keys {
            last = match last {
                Some((at, n)) if table.map.entries()[at].range.contains(key) => Some((at, n + 1)),
                other => {
                    other.map(count);
                    Some((table.map.index_of(key), 1))
                }
            };
        }
        last.map(count);
    }

    /// Offers one in [`SAMPLED`] requests to the sketch, without a pattern that requests could have, too.
    fn sample(&self, nth: u64, key: &[u8], work: f64) {
        if !mix(nth).is_multiple_of(SAMPLED) {
            return;
        }
        // Who finds the sketch in use goes on: that happens to any key alike.
        if let Some(mut keys) = self.keys.try_lock() {
            keys.offer(key, work * SAMPLED as f64);
        }
    }

    /// Takes away what was counted, and counts by this map from now on.
    pub(crate) fn take(&self, map: &Arc<RangeMap>) -> (Vec<Counted>, Sketch) {
        let mut counted = Vec::new();
        let mut retired = self.retired.lock();
        for table in retired.drain(..) {
            table.take(&mut counted);
        }
        let now = self.table.load_full();
        if let Some(table) = &now {
            table.take(&mut counted);
        }
        if now.as_ref().is_none_or(|table| table.map.generation != map.generation) {
            self.table.store(Some(Table::of(map)));
            // A request that began before may still count there: that is found the next time.
            retired.extend(now);
        }
        let keys = std::mem::replace(&mut *self.keys.lock(), Sketch::new(KEYS_MAX));
        (counted, keys)
    }
}

/// The first key of `range` that lies in a range of the table.
fn first_key<'a>(table: &'a Table, at: usize, range: &'a KeyRange) -> &'a Bytes {
    (&table.map.entries()[at].range.start).max(&range.start)
}

/// Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014: the finalizer.
fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use sharded_etcd_core::keyspace::{RangeEntry, Rid, ShardIx};

    use super::*;

    fn map(generation: u64, starts: &[&'static str]) -> Arc<RangeMap> {
        let end = |i: usize| starts.get(i + 1).copied().unwrap_or("");
        let entry = |(i, start): (usize, &&'static str)| RangeEntry {
            range: KeyRange::new(*start, end(i)),
            rid: Rid::new(format!("r{i}")),
            shard: ShardIx(0),
            imported_at: 0,
        };
        Arc::new(RangeMap::new(generation, starts.iter().enumerate().map(entry).collect()).unwrap())
    }

    fn get(key: &'static str, end: &'static str) -> pb::RangeRequest {
        pb::RangeRequest { key: key.into(), range_end: end.into(), ..Default::default() }
    }

    fn kv(key: &'static str, value: &'static str) -> pb::KeyValue {
        pb::KeyValue { key: key.into(), value: value.into(), ..Default::default() }
    }

    #[test]
    fn each_request_is_counted_where_it_goes() {
        let load = Load::default();
        load.read(&get("a", ""), &[]);
        assert!(load.take(&map(1, &["", "m", "t"])).0.is_empty(), "nothing is counted before there is a map");
        load.read(&get("a", ""), &[kv("a", "123")]);
        load.read(&get("n", "z"), &[kv("n", "1"), kv("u", "1")]);
        load.wrote(&[KeyRange::key(b"n"), KeyRange::key(b"o"), KeyRange::key(b"a")], 30);
        load.sent(["a", "n", "o", "b"].map(str::as_bytes).into_iter());
        // The map changes; what is counted by the old one is not lost.
        let (counted, _) = load.take(&map(2, &["", "m"]));
        let expected = [
            ("", Counts { reads: 1, writes: 1, read_bytes: 4, written_bytes: 10, events: 2 }),
            ("m", Counts { reads: 1, writes: 1, read_bytes: 2, written_bytes: 20, events: 2 }),
            ("t", Counts { reads: 1, writes: 0, read_bytes: 2, written_bytes: 0, events: 0 }),
        ];
        let counted: Vec<_> = counted.into_iter().map(|c| (c.range.start, c.counts)).collect();
        assert_eq!(counted, expected.map(|(start, counts)| (start.into(), counts)));
        load.read(&get("u", ""), &[]);
        let (counted, _) = load.take(&map(2, &["", "m"]));
        assert_eq!(counted[0].range.start, "m");
        assert!(load.take(&map(2, &["", "m"])).0.is_empty());
    }

    #[test]
    fn keys_are_sampled_without_a_pattern() {
        let load = Load::default();
        load.take(&map(1, &[""]));
        // As many keys as requests between two samples, one after the other: each is to be seen alike.
        let keys: Vec<Bytes> = (0..SAMPLED).map(|i| format!("k{i:02}").into()).collect();
        let rounds = 4000;
        for i in 0..rounds * SAMPLED {
            let request =
                pb::RangeRequest { key: keys[(i % SAMPLED) as usize].clone(), ..Default::default() };
            load.read(&request, &[]);
        }
        let (_, sketch) = load.take(&map(1, &[""]));
        assert_eq!(sketch.counters().len(), keys.len());
        for counter in sketch.counters() {
            let off = counter.work / rounds as f64;
            assert!((0.7..1.3).contains(&off), "{counter:?} of {rounds}");
        }
    }

    #[test]
    fn nothing_is_lost_among_many_threads() {
        let load = Load::default();
        let (one, two) = (map(1, &["", "m"]), map(2, &["", "g", "m"]));
        load.take(&one);
        let mut reads = 0;
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..5000).for_each(|_| load.read(&get("h", ""), &[]))))
                .collect();
            for i in 0..50 {
                let (counted, _) = load.take(if i % 2 == 0 { &two } else { &one });
                reads += counted.iter().map(|c| c.counts.reads).sum::<u64>();
            }
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
        for _ in 0..2 {
            reads += load.take(&one).0.iter().map(|c| c.counts.reads).sum::<u64>();
        }
        // A request that was stopped over two changes of the map is lost: four a change at worst, one for each thread.
        assert!((19_000..=20_000).contains(&reads), "{reads}");
    }
}
