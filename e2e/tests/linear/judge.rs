//! Holds what clients and watches wrote down against one another and against what etcd guarantees.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use anyhow::{Context, Result, bail, ensure};
use sharded_etcd_linearizability::{
    Call, Verdict,
    key::{Change, Input, Kv, Op, Output, check_key, settle},
    line::{Contradiction, Stamp, contradiction},
};

use crate::{
    clients::{Diary, Snapshot},
    watching::Event,
};

/// How long the search for one key may be.
const STEPS_MAX: u64 = 2_000_000;

/// All that was written down in one round.
pub struct Record {
    pub keys: Vec<String>,
    /// No key was there at this revision.
    pub before: i64,
    pub calls: Vec<(usize, Call<Op>)>,
    pub snapshots: Vec<Snapshot>,
    pub never: BTreeSet<u64>,
    pub pairs: Vec<[u64; 2]>,
    /// What each watch has seen.
    pub watches: Vec<Vec<Event>>,
}

impl Record {
    pub fn new(keys: Vec<String>, before: i64, diaries: Vec<Diary>, watches: Vec<Vec<Event>>) -> Self {
        let (calls, snapshots, never, pairs) = (Vec::new(), Vec::new(), BTreeSet::new(), Vec::new());
        let mut this = Self { keys, before, calls, snapshots, never, pairs, watches };
        for diary in diaries {
            this.calls.extend(diary.calls);
            this.snapshots.extend(diary.snapshots);
            this.never.extend(diary.never);
            this.pairs.extend(diary.pairs);
        }
        this
    }

    /// Fails with the first thing that cannot be.
    pub fn judge(&self) -> Result<()> {
        self.headers_never_go_back()?;
        let events = self.watches_agree()?;
        let states = replay(self.keys.len(), events)?;
        self.events_are_what_was_written(events)?;
        self.reads_are_of_their_revision(&states)?;
        self.keys_are_linearizable(events)
    }

    /// What was told over all keys, in real time.
    fn headers_never_go_back(&self) -> Result<()> {
        let answered = self.calls.iter().filter_map(|(key, call)| {
            let output = call.op.output?;
            let wrote = matches!(output, Output::Wrote { .. });
            let stamp = Stamp { begin: call.begin, end: call.end?, revision: output.revision(), wrote };
            Some((stamp, format!("{} {:?}", self.keys[*key], call.op)))
        });
        let read = self.snapshots.iter().map(|read| {
            let stamp = Stamp { begin: read.begin, end: read.end, revision: read.revision, wrote: false };
            (stamp, format!("{read:?}"))
        });
        // One operation on several keys is one answer.
        let mut all: Vec<(Stamp, String)> = answered.chain(read).collect();
        all.sort_by_key(|(stamp, _)| (stamp.begin, stamp.end, stamp.revision, stamp.wrote));
        all.dedup_by_key(|(stamp, _)| *stamp);
        let (stamps, words): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        match contradiction(&stamps) {
            None => Ok(()),
            Some(found) => {
                let (first, second) = match found {
                    Contradiction::Back { first, second } | Contradiction::Shared { first, second } => {
                        (first, second)
                    }
                };
                bail!(
                    "headers: {found:?}: {:?} {}, then {:?} {}",
                    stamps[first],
                    words[first],
                    stamps[second],
                    words[second]
                )
            }
        }
    }

    /// All watches have seen the same events, whether they went on after losses or began late.
    fn watches_agree(&self) -> Result<&[Event]> {
        let (first, others) = self.watches.split_first().context("nothing was watched")?;
        for (other, at) in others.iter().zip(1..) {
            let differs = first.iter().zip(other).position(|(a, b)| a != b);
            if let Some(at_event) = differs {
                bail!("watch {at} has {:?} where watch 0 has {:?}", other[at_event], first[at_event]);
            }
            let (few, many) = if first.len() < other.len() { (first, other) } else { (other, first) };
            ensure!(few.len() == many.len(), "one watch has and another has not: {:?}", many[few.len()]);
        }
        Ok(first)
    }

    /// Each event is the write of somebody, and each acknowledged write is an event, with the revision that was told.
    fn events_are_what_was_written(&self, events: &[Event]) -> Result<()> {
        let mut puts = BTreeMap::new();
        let mut deletes = BTreeSet::new();
        let mut unknown_deletes = vec![0_usize; self.keys.len()];
        for (key, call) in &self.calls {
            match (call.op.input, call.op.output) {
                (_, Some(Output::Read { .. })) | (Input::Get, _) => {}
                (Input::Write { change: Change::Put(value), .. }, output) => {
                    puts.insert(value, (*key, output.as_ref().map(Output::revision)));
                }
                (Input::Write { change: Change::Delete, .. }, Some(output)) => {
                    deletes.insert((output.revision(), *key));
                }
                (Input::Write { change: Change::Delete, .. }, None) => unknown_deletes[*key] += 1,
            }
        }
        for event in events {
            match event.kv {
                Some(kv) => {
                    ensure!(!self.never.contains(&kv.value), "{event:?} was refused before it was sent");
                    let (key, told) = puts
                        .remove(&kv.value)
                        .with_context(|| format!("nobody put {event:?}, or it came twice"))?;
                    let right = key == event.key && told.is_none_or(|told| told == event.revision);
                    ensure!(right, "{event:?} was told to be at {told:?}, of key {key}");
                }
                None if deletes.remove(&(event.revision, event.key)) => {}
                None => {
                    let left = &mut unknown_deletes[event.key];
                    *left = left.checked_sub(1).with_context(|| format!("nobody did {event:?}"))?;
                }
            }
        }
        let lost = puts.iter().find(|(_, (_, told))| told.is_some());
        ensure!(lost.is_none(), "an acknowledged put never came by watch: {lost:?}");
        ensure!(deletes.is_empty(), "acknowledged deletes never came by watch: {deletes:?}");
        let put_at: BTreeMap<u64, i64> =
            events.iter().filter_map(|event| Some((event.kv?.value, event.revision))).collect();
        for [one, other] in &self.pairs {
            let (one, other) = (put_at.get(one), put_at.get(other));
            ensure!(one == other, "one transaction put at {one:?} and at {other:?}");
        }
        Ok(())
    }

    /// A read at a revision saw exactly what was there at that revision, over all keys and shards.
    fn reads_are_of_their_revision(&self, states: &[States]) -> Result<()> {
        for read in &self.snapshots {
            let at = if read.asked == 0 { read.revision } else { read.asked };
            for (&key, seen) in &read.seen {
                let there = state_at(&states[key], at);
                ensure!(
                    *seen == there,
                    "{} at {at} was read as {seen:?}, and is {there:?}: {read:?}",
                    self.keys[key]
                );
            }
        }
        for (key, call) in &self.calls {
            let Some(Output::Read { kv, revision }) = call.op.output else { continue };
            let there = state_at(&states[*key], revision);
            ensure!(kv == there, "{} at {revision} is {there:?}, and {call:?}", self.keys[*key]);
        }
        Ok(())
    }

    /// Each key by the search, which knows nothing of the revisions of other keys.
    fn keys_are_linearizable(&self, events: &[Event]) -> Result<()> {
        let written: BTreeMap<u64, i64> =
            events.iter().filter_map(|event| event.kv.map(|kv| (kv.value, event.revision))).collect();
        for (key, name) in self.keys.iter().enumerate() {
            let own = self.calls.iter().filter(|(of, _)| *of == key).map(|(_, call)| call.clone());
            let seen = self.snapshots.iter().filter(|read| read.asked == 0).filter_map(|read| {
                let output = Output::Read { kv: *read.seen.get(&key)?, revision: read.revision };
                let op = Op { input: Input::Get, output: Some(output) };
                Some(Call { begin: read.begin, end: Some(read.end), op })
            });
            let history = settle(&own.chain(seen).collect::<Vec<_>>(), Some(&written));
            let verdict = check_key(&history, self.before, STEPS_MAX);
            if verdict != Verdict::Linearizable {
                bail!("{name} is not linearizable: {}", explain(&history, &verdict));
            }
        }
        Ok(())
    }
}

/// The operations around the place where the search was stuck.
fn explain(history: &[Call<Op>], verdict: &Verdict) -> String {
    let mut text = format!("{verdict:?}");
    if let Verdict::Refused { stuck, .. } = verdict {
        let from = stuck.iter().map(|&at| history[at].begin).min().unwrap_or(0);
        let mut sorted: Vec<_> = history.iter().collect();
        sorted.sort_by_key(|call| call.begin);
        let at = sorted.partition_point(|call| call.begin < from);
        for call in &sorted[at.saturating_sub(15)..(at + 10).min(sorted.len())] {
            let _ = write!(text, "\n  {call:?}");
        }
    }
    text
}

/// What a key was, from which revision on.
type States = Vec<(i64, Option<Kv>)>;

/// What each key was over time. Fails if an event does not follow from the ones before it.
fn replay(keys: usize, events: &[Event]) -> Result<Vec<States>> {
    let mut states: Vec<States> = vec![Vec::new(); keys];
    let mut newest = 0;
    for event in events {
        // A transaction writes several keys in one revision, each once.
        let again = states[event.key].last().is_some_and(|(since, _)| *since == event.revision);
        ensure!(event.revision >= newest && !again, "{event:?} comes after an event at {newest}");
        newest = event.revision;
        let was = states[event.key].last().and_then(|(_, kv)| *kv);
        ensure!(event.previous == was, "{event:?} comes where the key is {was:?}");
        if let Some(kv) = event.kv {
            let (create, version) = was.map_or((event.revision, 1), |was| (was.create, was.version + 1));
            let fits = (kv.create, kv.version, kv.modified) == (create, version, event.revision);
            ensure!(fits, "{event:?} comes where the key is {was:?}");
        }
        states[event.key].push((event.revision, event.kv));
    }
    Ok(states)
}

fn state_at(states: &[(i64, Option<Kv>)], revision: i64) -> Option<Kv> {
    let after = states.partition_point(|(since, _)| *since <= revision);
    after.checked_sub(1).and_then(|at| states[at].1)
}

/// What the judge finds, on small records.
#[cfg(test)]
mod tests {
    use sharded_etcd_linearizability::key::Guard;

    use super::*;

    fn kv(value: u64, create: i64, modified: i64, version: i64) -> Kv {
        Kv { value, create, modified, version }
    }

    fn call(begin: u64, input: Input, output: Option<Output>) -> Call<Op> {
        Call { begin, end: output.map(|_| begin + 5), op: Op { input, output } }
    }

    fn put(begin: u64, value: u64, told: Option<i64>) -> Call<Op> {
        let input = Input::Write { guard: None, change: Change::Put(value) };
        call(begin, input, told.map(|revision| Output::Wrote { revision, previous: None }))
    }

    /// Two puts and a delete on key 0, a put on key 1 of which nobody was told, and a list.
    fn good() -> Record {
        let delete = Input::Write { guard: None, change: Change::Delete };
        let deleted = Output::Wrote { revision: 14, previous: None };
        let events = vec![
            Event { revision: 10, key: 0, kv: Some(kv(1, 10, 10, 1)), previous: None },
            Event { revision: 11, key: 1, kv: Some(kv(9, 11, 11, 1)), previous: None },
            Event { revision: 13, key: 0, kv: Some(kv(2, 10, 13, 2)), previous: Some(kv(1, 10, 10, 1)) },
            Event { revision: 14, key: 0, kv: None, previous: Some(kv(2, 10, 13, 2)) },
        ];
        let seen = BTreeMap::from([(0, Some(kv(1, 10, 10, 1))), (1, Some(kv(9, 11, 11, 1)))]);
        Record {
            keys: vec!["/a/0".into(), "/b/1".into()],
            before: 5,
            calls: vec![
                (0, put(0, 1, Some(10))),
                (1, put(1, 9, None)),
                (0, put(20, 2, Some(13))),
                (0, call(30, delete, Some(deleted))),
            ],
            snapshots: vec![Snapshot { begin: 10, end: 15, revision: 12, asked: 0, seen }],
            never: BTreeSet::from([77]),
            pairs: vec![[100, 101]],
            watches: vec![events.clone(), events],
        }
    }

    #[track_caller]
    fn finds(text: &str, spoil: impl FnOnce(&mut Record)) {
        let mut record = good();
        spoil(&mut record);
        let found = format!("{:#}", record.judge().expect_err("it finds nothing"));
        assert!(found.contains(text), "{found}");
    }

    fn both(record: &mut Record, spoil: impl Fn(&mut Vec<Event>)) {
        record.watches.iter_mut().for_each(spoil);
    }

    #[test]
    fn what_is_right_passes() {
        good().judge().unwrap();
    }

    #[test]
    fn what_is_wrong_is_found() {
        finds("never came", |record| both(record, |events| events.truncate(3)));
        finds("one watch has", |record| record.watches[1].truncate(3));
        finds("where watch 0 has", |record| record.watches[1][1].revision = 12);
        finds("comes where the key is", |record| both(record, |events| events[2].previous = None));
        finds("comes after", |record| both(record, |events| events.push(events[3].clone())));
        finds("refused before", |record| record.never.extend([9]));
        finds("one transaction put", |record| record.pairs.push([1, 2]));
        finds("nobody put", |record| record.calls.retain(|(key, _)| *key != 1));
        finds("was told to be at", |record| record.calls[0].1 = put(0, 1, Some(9)));
        finds("nobody did", |record| record.calls.truncate(3));
        finds("headers", |record| record.snapshots[0].revision = 9);
        // A list that mixes two revisions: the second put, and not the first one of the other key.
        finds("was read as", |record| record.snapshots[0].seen.extend([(1, None)]));
        finds("was read as", |record| record.snapshots[0].seen.extend([(0, Some(kv(2, 10, 13, 2)))]));
        // In real time the list comes after both, though its header is older.
        finds("headers", |record| (record.snapshots[0].begin, record.snapshots[0].end) = (50, 60));
        finds("is not linearizable", |record| {
            let compared = Input::Write { guard: Some(Guard::Version(4)), change: Change::Put(2) };
            record.calls[2].1.op.input = compared;
        });
    }
}
