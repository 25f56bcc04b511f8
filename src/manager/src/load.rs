//! The load that the proxies report, laid on the ranges as they are.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use sharded_etcd_core::{
    keyspace::{KeyRange, RangeMap, Rules},
    load::{Folded, HotKey, Memory, Rates, Share, cuts_with_work},
    moves::ops,
    placement::{CutPoint, RangeView},
    records::{LOAD_PREFIX, LoadRecord, MEMORY, MemoryRecord, RangeAborted, Record},
};
use sharded_etcd_line::{Cut, Line};
use tokio::time::Instant;

use crate::{
    ManagerError,
    error::Result,
    mover::observe::get,
    report::{KeyLoad, LoadStatus, RangeLoad, ShardLoad},
};

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;

/// Proxies report about every ten seconds; they are asked for more often so that a plan is not much older than that.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long meta may take to answer.
const WAIT: Duration = Duration::from_secs(2);
/// The next leader is told of each move, and of the load after so long.
const TELL_INTERVAL: Duration = Duration::from_secs(60);
/// Ranges and keys that a status lists at most.
const LISTED_MAX: usize = 10;
/// A range below so much work a second is not worth looking at its keys.
const WORK_MIN: f64 = 1.0;

/// What clients do; one for each process that needs it.
pub struct Loads {
    line: Arc<Line>,
    state: Mutex<State>,
}

#[derive(Clone)]
struct State {
    began: Instant,
    read_at: Option<Instant>,
    folded: Arc<Folded>,
    memory: Memory,
    /// What the next leader knows, and since when.
    told: Option<(Instant, MemoryRecord)>,
}

/// The load of the ranges of one map.
pub(crate) struct LoadView {
    folded: Arc<Folded>,
    /// The highest work of late, by index of the range; sorted.
    peaks: Vec<(usize, f64)>,
    rests: Vec<usize>,
}

impl Loads {
    pub(crate) fn new(line: Arc<Line>) -> Self {
        let state = State {
            began: Instant::now(),
            read_at: None,
            folded: Arc::default(),
            memory: Memory::default(),
            told: None,
        };
        Self { line, state: Mutex::new(state) }
    }

    /// Reads what the proxies report, if that was not done a moment ago. If meta does not answer, the last reports count.
    pub(crate) async fn refresh(&self) {
        if self.state.lock().read_at.is_some_and(|at| at.elapsed() < INTERVAL) {
            return;
        }
        let request = ops::range_request(&KeyRange::prefix(LOAD_PREFIX));
        let answer = tokio::time::timeout(WAIT, self.line.meta().range(request)).await;
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                tracing::debug!(%error, "cannot read the load that proxies report");
                return;
            }
            Err(_) => return,
        };
        let records: Vec<LoadRecord> = answer
            .kvs
            .iter()
            .filter_map(|kv| {
                LoadRecord::decode(&kv.value)
                    .inspect_err(|error| tracing::debug!(%error, "a proxy's load is passed over"))
                    .ok()
            })
            .collect();
        let mut state = self.state.lock();
        state.folded = Arc::new(Folded::of(&records));
        state.read_at = Some(Instant::now());
    }

    /// Takes over what another one knows.
    pub(crate) fn adopt(&self, other: &Self) {
        let known = other.state.lock().clone();
        *self.state.lock() = known;
    }

    /// Takes over what the leader before remembered: once in a term, before anything is planned. What a newer release wrote is
    /// passed over: without it something may move too soon, and with an error nothing would be done at all. Gives the moves
    /// that people aborted.
    ///
    /// # Errors
    /// If meta does not answer.
    pub(crate) async fn recall(&self) -> Result<Vec<RangeAborted>> {
        let answer =
            self.line.meta().range(get(Bytes::from_static(MEMORY))).await.map_err(ManagerError::Meta)?;
        let Some(kv) = answer.kvs.first() else { return Ok(Vec::new()) };
        let told = match MemoryRecord::decode(&kv.value) {
            Ok(told) => told,
            Err(error) => {
                tracing::warn!(%error, "what the leader before remembered is passed over");
                return Ok(Vec::new());
            }
        };
        let aborted = told.aborted.clone();
        let mut state = self.state.lock();
        let now = state.began.elapsed();
        state.memory.recall(&told, now);
        state.told = Some((Instant::now(), told));
        Ok(aborted)
    }

    /// Tells the next leader what it has to remember, if it does not know, with the moves that people `aborted`.
    ///
    /// # Errors
    /// If meta does not take it: it is told in the next round.
    pub(crate) async fn tell(&self, aborted: Vec<RangeAborted>) -> Result<()> {
        let memory = {
            let state = self.state.lock();
            let memory = MemoryRecord { aborted, ..state.memory.told(state.began.elapsed()) };
            let is_known = match &state.told {
                None => memory == MemoryRecord::default(),
                Some((at, told)) => {
                    let moves = |record: &MemoryRecord| -> Vec<_> {
                        record.rests.iter().map(|rest| (rest.range.clone(), rest.times)).collect()
                    };
                    let by_hand = |record: &MemoryRecord| -> Vec<KeyRange> {
                        record.aborted.iter().map(|aborted| aborted.range.clone()).collect()
                    };
                    let is_same = moves(told) == moves(&memory) && by_hand(told) == by_hand(&memory);
                    is_same && (*told == memory || at.elapsed() < TELL_INTERVAL)
                }
            };
            if is_known {
                return Ok(());
            }
            memory
        };
        let put = ops::put(Bytes::from_static(MEMORY), memory.encode());
        let answer = tokio::time::timeout(WAIT, self.line.meta().txn(ops::txn(Vec::new(), vec![put]))).await;
        let slow = ManagerError::Slow { what: "writing down what is remembered", ms: WAIT.as_millis() };
        answer.map_err(|_| slow)?.map_err(ManagerError::Meta)?;
        self.state.lock().told = Some((Instant::now(), memory));
        Ok(())
    }

    /// These keys were moved: they rest.
    pub(crate) fn moved(&self, range: &KeyRange) {
        let mut state = self.state.lock();
        let now = state.began.elapsed();
        state.memory.moved(range, now);
    }

    /// The load of these ranges, for a plan. Peaks are remembered from call to call.
    pub(crate) fn view(&self, map: &RangeMap) -> LoadView {
        let mut state = self.state.lock();
        let (now, folded) = (state.began.elapsed(), Arc::clone(&state.folded));
        let work: Vec<(usize, f64)> =
            folded.on(map.entries()).into_iter().map(|(i, rates)| (i, rates.work())).collect();
        let peaks = state.memory.see(now, &work, map.entries());
        let rests = peaks
            .iter()
            .map(|(i, _)| *i)
            .filter(|i| state.memory.rests(&map.entries()[*i].range, now))
            .collect();
        LoadView { folded, peaks, rests }
    }

    /// The load by shard, range and key, for people; `None` if there is next to none.
    pub(crate) fn status(&self, cut: &Cut) -> Option<LoadStatus> {
        let folded = Arc::clone(&self.state.lock().folded);
        let entries = cut.map.entries();
        let mut shards: Vec<(usize, Rates)> = Vec::new();
        let mut ranges = folded.on(entries);
        for (i, rates) in &ranges {
            let shard = entries[*i].shard.index();
            match shards.iter_mut().find(|(at, _)| *at == shard) {
                Some((_, sum)) => *sum = sum.plus(*rates),
                None => shards.push((shard, *rates)),
            }
        }
        if shards.is_empty() {
            return None;
        }
        shards.sort_by_key(|(shard, _)| *shard);
        ranges.sort_by(|a, b| b.1.work().total_cmp(&a.1.work()).then(a.0.cmp(&b.0)));
        let text = |key: &[u8]| key.escape_ascii().to_string();
        Some(LoadStatus {
            shards: shards
                .into_iter()
                .map(|(shard, rates)| ShardLoad {
                    shard: cut.names[shard].to_string(),
                    operations: whole(rates.work()),
                    reads: whole(rates.reads),
                    writes: whole(rates.writes),
                    read_bytes: whole(rates.read_bytes),
                    written_bytes: whole(rates.written_bytes),
                    watch_events: whole(rates.events),
                })
                .collect(),
            ranges: ranges
                .into_iter()
                .take(LISTED_MAX)
                .map(|(i, rates)| RangeLoad {
                    start: text(&entries[i].range.start),
                    end: text(&entries[i].range.end),
                    shard: cut.name(entries[i].shard).to_owned(),
                    operations: whole(rates.work()),
                    reads: whole(rates.reads),
                    writes: whole(rates.writes),
                })
                .collect(),
            keys: folded
                .hot_keys(LISTED_MAX)
                .into_iter()
                .map(|HotKey { key, work }| KeyLoad {
                    shard: cut.name(cut.map.owner(&key).shard).to_owned(),
                    key: text(&key),
                    operations: whole(work as f64),
                })
                .collect(),
        })
    }
}

/// Two digits: what stands still is reported once.
fn whole(rate: f64) -> i64 {
    Rates { reads: rate, ..Rates::default() }.coarse().reads as i64
}

impl LoadView {
    /// Adds to the view of the range with this index in the map what is known of its load.
    pub(crate) fn add_to(&self, view: &mut RangeView, i: usize, rules: &Rules) {
        let Ok(at) = self.peaks.binary_search_by_key(&i, |(i, _)| *i) else { return };
        let work = self.peaks[at].1;
        if work < WORK_MIN {
            return;
        }
        view.work = work as u64;
        view.rests = self.rests.binary_search(&i).is_ok();
        view.hot = self.folded.hottest(&view.range, work);
        let size = (view.keys, view.bytes);
        let with_work = |cuts: Vec<CutPoint>| {
            cuts_with_work(&view.range, &cuts, size, view.work, self.folded.sampled(), rules)
        };
        view.cuts = view.cuts.take().map(with_work);
    }
}
