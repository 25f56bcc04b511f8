//! The shard managers' answers: asked for by a task of their own, so that no reconcile waits for one.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    ask::Ask,
    metrics::Metrics,
    model::{TopologyAnswer, TopologyReport},
    queue::{Key, Queue},
    settings::Pace,
};

/// Questions under way at most.
const ASKED_AT_ONCE_MAX: usize = 32;
/// Questions are bounded by the asker; this holds if one is not.
const ASK_MAX: Duration = Duration::from_secs(10);
/// How long to sleep when nobody is to be asked.
const IDLE: Duration = Duration::from_secs(3600);

/// An answer, and when it was asked for: it says what was true at that time or later.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) answer: TopologyAnswer,
    pub(crate) asked: Instant,
}

struct Entry {
    answer: Option<Answer>,
    /// Between two questions.
    interval: Duration,
    /// It is to be asked at once.
    hurried: bool,
    /// A question is under way.
    asking: bool,
    /// When its resource was last reconciled because of an answer in which only counts differ.
    counted: Instant,
}

impl Entry {
    /// When to ask next; `None`: now.
    fn due(&self) -> Option<Instant> {
        let answer = self.answer.as_ref().filter(|_| !self.hurried)?;
        Some(answer.asked + self.interval)
    }
}

/// The newest answer of each shard manager that is asked.
pub(crate) struct Answers {
    entries: Mutex<HashMap<Key, Entry>>,
    changed: Notify,
    pace: Pace,
}

impl Answers {
    pub(crate) fn new(pace: Pace) -> Arc<Self> {
        Arc::new(Self { entries: Mutex::default(), changed: Notify::new(), pace })
    }

    /// The newest answer. A resource that is new here is asked at once.
    pub(crate) fn get(&self, key: &Key) -> Option<Answer> {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get(key) {
            return entry.answer.clone();
        }
        let interval = self.pace.ask_in_flux;
        let entry = Entry { answer: None, interval, hurried: false, asking: false, counted: Instant::now() };
        entries.insert(key.clone(), entry);
        self.changed.notify_one();
        None
    }

    /// Says how soon to ask again: `in_flux`, or as of a steady resource.
    pub(crate) fn pace(&self, key: &Key, in_flux: bool) {
        let interval = if in_flux { self.pace.ask_in_flux } else { self.pace.ask_steady };
        if let Some(entry) = self.entries.lock().get_mut(key)
            && entry.interval != interval
        {
            entry.interval = interval;
            self.changed.notify_one();
        }
    }

    /// Asks at once, also if a question is under way.
    pub(crate) fn hurry(&self, key: &Key) {
        if let Some(entry) = self.entries.lock().get_mut(key) {
            entry.hurried = true;
            self.changed.notify_one();
        }
    }

    /// Asks no more.
    pub(crate) fn forget(&self, key: &Key) {
        self.entries.lock().remove(key);
    }

    /// Asks until `stop`.
    pub(crate) async fn poll(
        &self,
        asker: Arc<dyn Ask>,
        queue: Arc<Queue>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) {
        let mut questions = FuturesUnordered::new();
        loop {
            let (due, next) = self.due(ASKED_AT_ONCE_MAX - questions.len());
            for key in due {
                questions.push(question(Arc::clone(&asker), key));
            }
            tokio::select! {
                Some((key, answer)) = questions.next() => {
                    if matches!(answer.answer, TopologyAnswer::Unknown(_)) {
                        metrics.ask_failed();
                    }
                    if self.take(&key, answer) {
                        queue.push(key);
                    }
                }
                () = self.changed.notified() => {}
                () = sleep_until(next) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// At most `room` of those to ask now, and when there is more.
    fn due(&self, room: usize) -> (Vec<Key>, Instant) {
        let now = Instant::now();
        let mut entries = self.entries.lock();
        let mut next = now + IDLE;
        let mut due = Vec::new();
        for (key, entry) in entries.iter().filter(|(_, entry)| !entry.asking) {
            match entry.due().filter(|due| *due > now) {
                Some(due) => next = next.min(due),
                None => due.push((entry.answer.as_ref().map(|answer| answer.asked), key.clone())),
            }
        }
        // Who was asked longest ago comes first, so that those that never answer do not keep the others out. Those that
        // find no room come next time: an answer that arrives makes room.
        due.sort();
        due.truncate(room);
        for (_, key) in &due {
            if let Some(entry) = entries.get_mut(key) {
                (entry.asking, entry.hurried) = (true, false);
            }
        }
        (due.into_iter().map(|(_, key)| key).collect(), next)
    }

    /// Keeps an answer. True if the resource should be looked at because of it.
    fn take(&self, key: &Key, answer: Answer) -> bool {
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get_mut(key) else { return false };
        entry.asking = false;
        let now = Instant::now();
        let news = match entry.answer.as_ref().map(|last| &last.answer) {
            None => true,
            Some(last) if !is_same(last, &answer.answer, false) => true,
            Some(last) => !is_same(last, &answer.answer, true) && now >= entry.counted + self.pace.counts,
        };
        if news {
            entry.counted = now;
        }
        // What only differs in counts is kept as well, and shown when the resource is looked at next.
        entry.answer = Some(answer);
        news
    }
}

async fn question(asker: Arc<dyn Ask>, key: Key) -> (Key, Answer) {
    let asked = Instant::now();
    let answer = timeout(ASK_MAX, asker.ask(&key.0, &key.1)).await;
    let answer = answer.unwrap_or_else(|_| {
        TopologyAnswer::Unknown(format!("the shard manager does not answer in {ASK_MAX:?}"))
    });
    (key, Answer { answer, asked })
}

/// Whether two answers say the same; `exactly`: in counts as well.
fn is_same(a: &TopologyAnswer, b: &TopologyAnswer, exactly: bool) -> bool {
    match (a, b) {
        (TopologyAnswer::Known(a), TopologyAnswer::Known(b)) => {
            if exactly {
                a == b
            } else {
                a == b || without_counts(a) == without_counts(b)
            }
        }
        // Why there is no answer may be told in another way each time.
        (TopologyAnswer::Unknown(_), TopologyAnswer::Unknown(_)) => true,
        (a, b) => a == b,
    }
}

fn without_counts(report: &TopologyReport) -> TopologyReport {
    let mut report = report.clone();
    let status = &mut report.status;
    (status.keys, status.bytes, status.revision, status.compact_revision) = (0, 0, 0, 0);
    status.load = None;
    for shard in &mut status.topology {
        (shard.db_size, shard.keys, shard.bytes) = (0, 0, 0);
    }
    for range in &mut status.range_map.ranges {
        (range.keys, range.bytes) = (None, None);
    }
    for moving in &mut status.moves {
        moving.progress = 0;
    }
    for condition in &mut status.conditions {
        condition.last_transition_time = None;
    }
    report
}

#[cfg(test)]
mod tests {
    use sharded_etcd_crd::status::{ShardPhase, ShardStatus};

    use super::*;

    fn key() -> Key {
        ("ns".to_owned(), "demo".to_owned())
    }

    fn report(keys: i64, phase: ShardPhase) -> TopologyAnswer {
        let mut report = TopologyReport::default();
        report.status.keys = keys;
        report.status.topology.push(ShardStatus {
            shard: "shard-0".into(),
            incarnation: Some(0),
            phase,
            members: 3,
            ready: 3,
            leader: None,
            db_size: keys,
            keys,
            bytes: keys,
            ranges: 1,
            message: None,
        });
        TopologyAnswer::Known(Box::new(report))
    }

    fn take(answers: &Answers, answer: TopologyAnswer) -> bool {
        answers.take(&key(), Answer { answer, asked: Instant::now() })
    }

    #[tokio::test(start_paused = true)]
    async fn only_news_are_told() {
        let answers = Answers::new(Pace::default());
        assert!(answers.get(&key()).is_none());
        assert!(take(&answers, report(1, ShardPhase::Serving)), "the first answer is news");
        assert!(!take(&answers, report(1, ShardPhase::Serving)));
        assert!(!take(&answers, report(2, ShardPhase::Serving)), "counts are told once in a while");
        assert!(take(&answers, report(2, ShardPhase::Draining)));
        tokio::time::advance(Pace::default().counts).await;
        assert!(!take(&answers, report(2, ShardPhase::Draining)));
        assert!(take(&answers, report(3, ShardPhase::Draining)));
        assert!(take(&answers, TopologyAnswer::Unknown("a".into())));
        assert!(!take(&answers, TopologyAnswer::Unknown("b".into())));
    }

    #[tokio::test(start_paused = true)]
    async fn questions_are_bounded_and_paced() {
        let pace = Pace::default();
        let answers = Answers::new(pace.clone());
        answers.get(&key());
        answers.get(&("ns".to_owned(), "other".to_owned()));
        let (first, _) = answers.due(1);
        let (second, _) = answers.due(1);
        assert_eq!((first.len(), second.len()), (1, 1));
        assert_ne!(first, second);
        assert!(answers.due(1).0.is_empty(), "both are being asked");
        answers.forget(&("ns".to_owned(), "other".to_owned()));

        take(&answers, report(1, ShardPhase::Serving));
        assert_eq!(answers.due(1).1, Instant::now() + pace.ask_in_flux);
        answers.pace(&key(), false);
        assert_eq!(answers.due(1).1, Instant::now() + pace.ask_steady);
        answers.hurry(&key());
        assert_eq!(answers.due(1).0, [key()]);
        // Asked for again while a question is under way: that one does not count.
        answers.hurry(&key());
        take(&answers, report(1, ShardPhase::Serving));
        assert_eq!(answers.due(1).0, [key()]);
    }
}
