#![allow(clippy::unwrap_used)]

use sharded_etcd_core::{
    keyspace::{RangeEntry, Rid},
    line::{Entry, Flip, Init, Join},
};
use sharded_etcd_etcd_api::messages as pb;

use super::*;
use crate::hub::event::Prev;

const A: ShardIx = ShardIx(0);
const B: ShardIx = ShardIx(1);

/// A fold over two shards: A owns everything below "m", B the rest. Both joined at local revision 2.
fn fold() -> Fold {
    let join = |name: &str| Join { shard: name.into(), incarnation: 0, l0: 2, etcd_cluster_id: 1 };
    let range = |s: &'static str, e: &'static str, rid: &str, shard| RangeEntry {
        range: KeyRange::new(s, e),
        rid: Rid::new(rid),
        shard,
        imported_at: 0,
    };
    let init = Init {
        cluster_id: 7,
        joins: vec![join("shard-0"), join("shard-1")],
        ranges: vec![range("", "m", "b-0", A), range("m", "", "b-1", B)],
    };
    Fold::start(1, &Entry::Init(init)).unwrap()
}

/// A merge with one stream (1), and the fold that it follows.
struct Bench {
    fold: Fold,
    merge: Merge,
    room: Arc<Room>,
    position: i64,
    next_id: WatcherId,
}

impl Bench {
    fn new() -> Self {
        Self::with(WindowLimits::default())
    }

    fn with(limits: WindowLimits) -> Self {
        let fold = fold();
        let mut merge = Merge::new(&fold, limits);
        let room = Arc::new(Room::default());
        merge.open(1, Arc::clone(&room));
        Self { fold, merge, room, position: 1, next_id: 100 }
    }

    fn log(&mut self, entry: &Entry) {
        self.position += 1;
        self.fold.apply(self.position, entry).unwrap();
    }

    fn adv(&mut self, vector: &[(ShardIx, i64)]) {
        self.log(&Entry::Adv(vector.to_vec()));
    }

    /// The base stream of a shard brings what it wrote at these local revisions: what the map hides is left out, as the
    /// translator does it.
    fn ready(&mut self, shard: ShardIx, writes: &[(i64, &[&str])]) {
        let upto = writes.last().unwrap().0;
        let visible = |global, key: &&&str| {
            self.fold.map_at(global).owner(key.trim_start_matches('-').as_bytes()).shard == shard
        };
        let revisions = writes
            .iter()
            .filter_map(|(local, keys)| {
                let global = self.fold.global(shard, *local).unwrap();
                let events: Vec<_> = keys
                    .iter()
                    .filter(|k| visible(global, k))
                    .map(|k| event(shard, *local, global, k))
                    .collect();
                (!events.is_empty()).then(|| Arc::new(Revision::new(global, *local, events)))
            })
            .collect();
        self.merge.ready(&self.fold, shard, revisions, upto);
    }

    fn watch(&mut self, prefix: &str, start: i64) -> WatcherId {
        self.watch_spec(WatchSpec {
            range: KeyRange::prefix(prefix.as_bytes()).clamped(),
            start,
            prev_kv: false,
            no_put: false,
            no_delete: false,
        })
    }

    fn watch_spec(&mut self, spec: WatchSpec) -> WatcherId {
        self.next_id += 1;
        self.merge.watch(&self.fold, self.next_id, 1, Arc::new(spec)).unwrap();
        self.next_id
    }

    /// Lets the merge go on until it has nothing to do; what was delivered, in words, and the other effects.
    fn run(&mut self) -> (Vec<String>, Vec<Effect>) {
        let mut bound = 0;
        while self.merge.advance(&self.fold) {
            bound += 1;
            assert!(bound < 10_000, "the merge goes in circles");
        }
        let mut said = Vec::new();
        let mut other = Vec::new();
        for effect in self.merge.take_effects() {
            let Effect::Deliver(1, delivery) = effect else {
                other.push(effect);
                continue;
            };
            let room = match &delivery {
                Delivery::Events { bytes, .. } => *bytes,
                _ => 0,
            };
            said.push(words(&delivery));
            if self.room.give_back(room) {
                self.merge.room(1);
            }
        }
        (said, other)
    }

    fn said(&mut self) -> Vec<String> {
        let (said, other) = self.run();
        assert!(other.is_empty(), "{other:?}");
        said
    }
}

/// A key, with a leading `-` for its deletion.
fn event(shard: ShardIx, local: i64, global: i64, key: &str) -> Arc<HubEvent> {
    let delete = key.starts_with('-');
    let kv = pb::KeyValue {
        key: key.trim_start_matches('-').to_owned().into(),
        mod_revision: global,
        ..Default::default()
    };
    let kind = if delete { pb::EventType::Delete } else { pb::EventType::Put };
    let event = pb::Event { r#type: kind.into(), kv: Some(kv), prev_kv: None };
    Arc::new(HubEvent { event, shard, local, imported_at: 0, prev: Prev::new() })
}

fn words(delivery: &Delivery) -> String {
    match delivery {
        Delivery::Events { watcher, revision, events, .. } => {
            let events: Vec<_> = events
                .iter()
                .map(|e| {
                    let sign = if e.is_delete() { "-" } else { "" };
                    format!("{sign}{}@{}", String::from_utf8_lossy(e.key()), e.revision())
                })
                .collect();
            format!("{watcher}: {} <={revision}", events.join(" "))
        }
        Delivery::ProgressOfAll { revision, .. } => format!("all <={revision}"),
        Delivery::Progress { watcher, revision } => format!("{watcher} <={revision}"),
        Delivery::Ended { watcher, compact_revision, reason } => {
            format!("{watcher} ended {compact_revision} {reason}").trim_end().to_owned()
        }
    }
}

#[test]
fn shards_are_merged_in_the_order_of_the_line_and_revisions_stay_whole() {
    let mut b = Bench::new();
    b.watch("", 0);
    b.adv(&[(A, 4), (B, 3)]); // 2, 3 of A, 4 of B
    b.adv(&[(A, 5)]); // 5
    b.ready(B, &[(3, &["x", "-x", "y"])]);
    let (said, effects) = b.run();
    assert!(said.is_empty(), "what A wrote comes first");
    assert!(matches!(effects[..], [Effect::Grace(A, 2)]));
    b.ready(A, &[(3, &["a"])]);
    assert_eq!(b.said(), ["101: a@2 <=2"]);
    b.ready(A, &[(4, &["b"]), (5, &["-a", "c"])]);
    assert_eq!(b.said(), ["101: b@3 x@4 -x@4 y@4 -a@5 c@5 <=5"]);
    assert_eq!((b.merge.head(), b.merge.passed()), (5, 5));
}

#[test]
fn nothing_is_sent_before_it_is_part_of_the_line() {
    let mut b = Bench::new();
    b.watch("", 0);
    b.adv(&[(A, 3)]);
    b.ready(A, &[(3, &["a"])]);
    assert_eq!(b.said(), ["101: a@2 <=2"]);
    assert_eq!(b.said(), Vec::<String>::new(), "and once");
}

#[test]
fn a_moved_key_comes_from_the_source_before_the_flip_and_from_the_destination_after_it() {
    let mut b = Bench::new();
    b.watch("k", 0);
    b.adv(&[(A, 3)]); // 2: k on A
    b.ready(A, &[(3, &["k"])]);
    b.adv(&[(B, 3)]); // 3: import of k on B
    b.ready(B, &[(3, &["k"])]);
    b.log(&Entry::Flip(Flip {
        id: "m1".into(),
        range: KeyRange::new("", "m"),
        rid: Rid::new("b-0"),
        new_rid: Rid::new("m1"),
        from: A,
        to: B,
        from_local: 5,
        to_local: 4,
    })); // 4, 5 of A, 6 of B, 7 the flip
    b.ready(A, &[(4, &["k"]), (5, &[])]);
    b.ready(B, &[(4, &[])]);
    b.adv(&[(A, 6), (B, 5)]); // 8: the purge on A, 9: a client's put on B
    b.ready(A, &[(6, &["-k"])]);
    b.ready(B, &[(5, &["k"])]);
    assert_eq!(b.said(), ["101: k@2 k@4 k@9 <=9"]);
    assert_eq!(b.fold.revision, 9);
    // From the past it is the same.
    b.watch("k", 3);
    assert_eq!(b.said(), ["102: k@4 k@9 <=9"]);
}

#[test]
fn what_a_shard_without_ranges_writes_holds_nobody_up() {
    let mut b = Bench::new();
    b.log(&Entry::Flip(Flip {
        id: "m1".into(),
        range: KeyRange::new("", "m"),
        rid: Rid::new("b-0"),
        new_rid: Rid::new("m1"),
        from: A,
        to: B,
        from_local: 3,
        to_local: 3,
    })); // 2, 3, flip 4
    b.ready(A, &[(3, &[])]);
    b.ready(B, &[(3, &[])]);
    b.watch("", 0);
    b.adv(&[(A, 9), (B, 4)]); // the purge, which has not been read, and a put
    b.ready(B, &[(4, &["k"])]);
    assert_eq!(b.said(), ["101: k@11 <=11"]);
}

#[test]
fn progress_waits_for_all_and_comes_after_the_events() {
    let mut b = Bench::new();
    b.watch("a", 0);
    b.watch("x", 0);
    b.merge.progress(1, 1);
    assert_eq!(b.said(), ["all <=1"]);
    b.adv(&[(A, 3), (B, 3)]);
    b.merge.progress(1, 3);
    b.ready(B, &[(3, &["x"])]);
    let (said, _) = b.run();
    assert_eq!(said, Vec::<String>::new());
    b.ready(A, &[(3, &["a"])]);
    assert_eq!(b.said(), ["101: a@2 <=3", "102: x@3 <=3", "all <=3"]);
}

/// Found by the workload: an event came twice after a reconnect, as the client had been sent back by a progress.
#[test]
fn progress_of_a_stream_never_goes_back_behind_an_event() {
    let mut b = Bench::new();
    let (on_a, on_b) = (b.watch("a", 0), b.watch("x", 0));
    b.adv(&[(A, 3), (B, 3)]); // 2 of A is late
    b.ready(B, &[(3, &["x"])]);
    b.run();
    b.merge.grace_over(A, 2);
    assert_eq!(b.said(), [format!("{on_b}: x@3 <=3")]);
    b.merge.progress(1, 1);
    assert_eq!(
        b.said(),
        Vec::<String>::new(),
        "all have passed 1, but a client that is told so resumes at 2"
    );
    b.ready(A, &[(3, &["a"])]);
    assert_eq!(b.said(), [format!("{on_a}: a@2 <=3"), "all <=3".to_owned()]);
}

#[test]
fn progress_is_for_watchers_that_have_begun() {
    let mut b = Bench::new();
    b.merge.progress(1, 1);
    assert_eq!(b.said(), Vec::<String>::new(), "no watcher, no answer, as in etcd");
    let id = b.watch("a", 3);
    b.merge.progress(1, 1);
    b.merge.notify(id);
    assert_eq!(b.said(), Vec::<String>::new());
    b.adv(&[(A, 4)]); // 2, 3
    b.ready(A, &[(3, &["a"]), (4, &["a"])]);
    b.merge.progress(1, 3);
    assert_eq!(b.said(), ["101: a@3 <=3", "all <=3"]);
    b.merge.notify(id);
    assert_eq!(b.said(), ["101 <=3"]);
}

#[test]
fn a_late_shard_holds_up_only_those_that_watch_it() {
    let mut b = Bench::new();
    let (on_a, on_b, on_both) = (b.watch("a", 0), b.watch("x", 0), b.watch("", 0));
    b.adv(&[(A, 3), (B, 3)]); // 2 of A never comes
    b.ready(B, &[(3, &["x"])]);
    let (said, effects) = b.run();
    assert!(said.is_empty() && matches!(effects[..], [Effect::Grace(A, 2)]));
    b.merge.grace_over(A, 2);
    assert_eq!(b.said(), [format!("{on_b}: x@3 <=3")]);
    assert_eq!((b.merge.counts(), b.merge.passed()), ((3, 2), 1));
    b.adv(&[(B, 4)]);
    b.ready(B, &[(4, &["x"])]);
    assert_eq!(b.said(), [format!("{on_b}: x@4 <=4")], "at once: A is known to be late");
    b.ready(A, &[(3, &["a"])]);
    let mut said = b.said();
    said.sort();
    assert_eq!(said, [format!("{on_a}: a@2 <=4"), format!("{on_both}: a@2 x@3 x@4 <=4")]);
    assert_eq!((b.merge.counts(), b.merge.passed()), ((3, 0), 4));
    // It has caught up, so it is waited for again.
    b.adv(&[(A, 4), (B, 5)]);
    b.ready(B, &[(5, &["x"])]);
    let (said, effects) = b.run();
    assert!(said.is_empty() && matches!(effects[..], [Effect::Grace(A, 3)]));
}

#[test]
fn a_watcher_that_comes_while_a_shard_is_late_is_not_forgotten() {
    let mut b = Bench::new();
    b.watch("a", 0);
    b.adv(&[(A, 3)]);
    b.run();
    b.merge.grace_over(A, 2);
    b.run();
    let second = b.watch("a", 0); // from 3
    let future = b.watch("a", 4);
    b.adv(&[(A, 5)]); // 3, 4
    b.run();
    b.ready(A, &[(3, &["a"]), (4, &["a"]), (5, &["a"])]);
    let mut said = b.said();
    said.sort();
    assert_eq!(
        said,
        ["101: a@2 a@3 a@4 <=4", &format!("{second}: a@3 a@4 <=4"), &format!("{future}: a@4 <=4")]
    );
}

#[test]
fn filters_and_ranges() {
    let mut b = Bench::new();
    let spec = |range, no_put, no_delete| WatchSpec { range, start: 0, prev_kv: false, no_put, no_delete };
    b.watch_spec(spec(KeyRange::key(b"a"), true, false));
    b.watch_spec(spec(KeyRange::key(b"a"), false, true));
    b.watch_spec(spec(KeyRange::new("a\0", "b\0"), false, false));
    b.adv(&[(A, 4)]);
    b.ready(A, &[(3, &["a", "-a", "b"]), (4, &["-b", "c"])]);
    assert_eq!(b.said(), ["101: -a@2 <=3", "102: a@2 <=3", "103: b@2 -b@3 <=3"]);
}

#[test]
fn a_slow_client_gets_everything_later_and_holds_nobody_up() {
    let mut b = Bench::new();
    b.merge.open(2, Arc::new(Room::default()));
    b.watch("a", 0);
    let spec = WatchSpec {
        range: KeyRange::prefix(b"a"),
        start: 0,
        prev_kv: false,
        no_put: false,
        no_delete: false,
    };
    b.merge.watch(&b.fold, 7, 2, Arc::new(spec)).unwrap();
    let mut kept = Vec::new();
    let mut quick = 0;
    for local in 3..=400 {
        b.adv(&[(A, local)]);
        b.ready(A, &[(local, &["a"])]);
        let (said, effects) = b.run();
        quick += said.len();
        kept.extend(effects);
    }
    assert_eq!(quick, 398);
    let count = |effects: &[Effect]| -> Vec<i64> {
        effects
            .iter()
            .flat_map(|e| match e {
                Effect::Deliver(2, Delivery::Events { watcher: 7, events, .. }) => {
                    events.iter().map(|e| e.revision()).collect::<Vec<_>>()
                }
                other => panic!("{other:?}"),
            })
            .collect()
    };
    assert_eq!(count(&kept).len(), crate::hub::room::DELIVERIES_MAX);
    assert_eq!(b.merge.counts(), (2, 1));
    let room = Arc::clone(&b.merge.streams[&2].room);
    for effect in &kept {
        if let Effect::Deliver(2, Delivery::Events { bytes, .. }) = effect
            && room.give_back(*bytes)
        {
            b.merge.room(2);
        }
    }
    let (_, rest) = b.run();
    kept.extend(rest);
    assert_eq!(count(&kept), (2..=399).collect::<Vec<_>>(), "each once, in order");
    assert_eq!(b.merge.counts(), (2, 0));
}

#[test]
fn previous_pairs_are_fetched_before_an_event_is_sent_and_only_for_those_that_ask() {
    let mut b = Bench::new();
    let spec =
        WatchSpec { range: KeyRange::prefix(b""), start: 0, prev_kv: true, no_put: false, no_delete: false };
    let with = b.watch_spec(spec);
    let without = b.watch("", 0);
    b.adv(&[(A, 4)]);
    b.ready(A, &[(3, &["a", "b"]), (4, &["a"])]);
    let (said, mut effects) = b.run();
    assert_eq!(said, [format!("{without}: a@2 b@2 a@3 <=3")]);
    let Some(Effect::FetchPrev(id, events)) = effects.pop() else { panic!("{effects:?}") };
    assert_eq!((id, events.len()), (with, 3));
    b.adv(&[(A, 5)]);
    b.ready(A, &[(5, &["c"])]);
    assert_eq!(b.said(), [format!("{without}: c@4 <=4")]);
    for event in &events {
        event.prev.set(None).unwrap();
    }
    b.merge.fetched(&b.fold, with, FetchOutcome::Done);
    let (said, mut effects) = b.run();
    assert_eq!(said, [format!("{with}: a@2 b@2 a@3 <=3")]);
    let Some(Effect::FetchPrev(_, events)) = effects.pop() else { panic!("{effects:?}") };
    b.merge.fetched(&b.fold, with, FetchOutcome::Failed);
    assert!(b.merge.wants_retry());
    b.merge.retry();
    let (said, effects) = b.run();
    assert!(said.is_empty() && matches!(effects[..], [Effect::FetchPrev(..)]));
    events[0].prev.set(None).unwrap();
    b.merge.fetched(&b.fold, with, FetchOutcome::Done);
    assert_eq!(b.said(), [format!("{with}: c@4 <=4")]);
    assert_eq!(b.merge.counts(), (2, 0));
}

#[test]
fn history_before_the_window_is_replayed_and_then_joined_without_gap_or_repeat() {
    let mut b = Bench::with(WindowLimits { bytes_max: usize::MAX, revisions_max: 2 });
    for local in 3..=6 {
        b.adv(&[(A, local), (B, local)]); // A: 2, 4, 6, 8, B: 3, 5, 7, 9
        b.ready(A, &[(local, &["a"])]);
        b.ready(B, &[(local, &["x"])]);
        b.run();
    }
    let id = b.watch("", 3);
    let other = b.watch("x", 5);
    let (said, mut effects) = b.run();
    assert!(said.is_empty());
    let Some(Effect::Replay { replay, shards, upto }) = effects.pop() else { panic!("{effects:?}") };
    assert!(effects.is_empty(), "one replay for both");
    let of = |shard, from, upto| ReplayShard { shard, from, upto };
    assert_eq!((shards, upto), (vec![of(A, 4, 6), of(B, 3, 6)], 9));
    let revision = |shard, local, global, key| {
        Arc::new(Revision::new(global, local, vec![event(shard, local, global, key)]))
    };
    let part = [revision(B, 3, 3, "x"), revision(A, 4, 4, "a"), revision(B, 4, 5, "x")];
    assert!(b.merge.replayed(&b.fold, replay, &part, 5));
    assert_eq!(b.said(), [format!("{id}: x@3 a@4 x@5 <=5"), format!("{other}: x@5 <=5")]);
    // Meanwhile the line goes on.
    b.adv(&[(B, 7)]);
    b.ready(B, &[(7, &["x"])]);
    assert_eq!(b.said(), Vec::<String>::new());
    b.merge.cancel(other);
    let part =
        [revision(A, 5, 6, "a"), revision(B, 5, 7, "x"), revision(A, 6, 8, "a"), revision(B, 6, 9, "x")];
    assert!(b.merge.replayed(&b.fold, replay, &part, 9));
    b.merge.replay_ended(&b.fold, replay, ReplayOutcome::Done);
    assert_eq!(b.said(), [format!("{id}: a@6 x@7 a@8 x@9 <=9"), format!("{id}: x@10 <=10")]);
    assert_eq!(b.merge.counts(), (1, 0));
}

#[test]
fn a_replay_that_fails_is_tried_again_and_one_that_is_compacted_ends_those_it_concerns() {
    let mut b = Bench::with(WindowLimits { bytes_max: usize::MAX, revisions_max: 0 });
    b.adv(&[(A, 4), (B, 4)]);
    b.ready(A, &[(3, &["a"]), (4, &["a"])]);
    b.ready(B, &[(3, &["x"]), (4, &["x"])]);
    b.run();
    let (on_a, on_b) = (b.watch("a", 2), b.watch("x", 2));
    let replay = |b: &mut Bench| match b.run() {
        (said, effects) if said.is_empty() => match effects[..] {
            [Effect::Replay { replay, .. }] => replay,
            _ => panic!("{effects:?}"),
        },
        (said, _) => panic!("{said:?}"),
    };
    let first = replay(&mut b);
    b.merge.replay_ended(&b.fold, first, ReplayOutcome::Failed);
    assert!(b.merge.wants_retry());
    b.merge.retry();
    let second = replay(&mut b);
    b.merge.replay_ended(&b.fold, second, ReplayOutcome::Compacted(A));
    let (said, effects) = b.run();
    assert_eq!(said, [format!("{on_a} ended 3")]);
    assert!(matches!(effects[..], [Effect::Replay { .. }]));
    assert_eq!(b.merge.counts(), (1, 1));
    assert!(b.merge.cancel(on_b).is_some());
}

#[test]
fn a_replay_that_is_compacted_for_one_is_tried_again_for_the_others() {
    let mut b = Bench::with(WindowLimits { bytes_max: usize::MAX, revisions_max: 0 });
    b.adv(&[(A, 6)]); // 2..=5
    b.ready(A, &[(3, &["a"]), (4, &["a"]), (5, &["a"]), (6, &["a"])]);
    b.run();
    let (below, above) = (b.watch("a", 2), b.watch("a", 4));
    let (_, effects) = b.run();
    let [Effect::Replay { replay, .. }] = effects[..] else { panic!("{effects:?}") };
    // Compacted at 3 by somebody else, which this process does not know yet.
    b.merge.replay_ended(&b.fold, replay, ReplayOutcome::Compacted(A));
    assert_eq!(b.said(), [format!("{below} ended 3")]);
    b.merge.retry();
    let (said, effects) = b.run();
    let [Effect::Replay { replay, ref shards, .. }] = effects[..] else { panic!("{effects:?}") };
    assert_eq!((said.len(), shards[0].from), (0, 5), "from revision 4 on");
    // Alone it is the one that it concerns, so this ends.
    b.merge.replay_ended(&b.fold, replay, ReplayOutcome::Compacted(A));
    assert_eq!(b.said(), [format!("{above} ended 5")]);
}

#[test]
fn a_replay_that_is_compacted_for_one_that_is_gone_is_tried_again_for_the_others() {
    let mut b = Bench::with(WindowLimits { bytes_max: usize::MAX, revisions_max: 0 });
    b.adv(&[(A, 6), (B, 4)]); // 2..=5, and 6 and 7
    b.ready(A, &[(3, &["a"]), (4, &["a"]), (5, &["a"]), (6, &["a"])]);
    b.ready(B, &[(3, &["x"]), (4, &["x"])]);
    b.run();
    let (below, above, elsewhere) = (b.watch("a", 2), b.watch("a", 4), b.watch("x", 2));
    let (_, effects) = b.run();
    let [Effect::Replay { replay, .. }] = effects[..] else { panic!("{effects:?}") };
    b.merge.cancel(below);
    // Compacted at 4.
    b.merge.replay_ended(&b.fold, replay, ReplayOutcome::Compacted(A));
    b.merge.retry();
    let (said, effects) = b.run();
    let [Effect::Replay { ref shards, .. }] = effects[..] else { panic!("{effects:?}") };
    assert_eq!((said.len(), b.merge.counts()), (0, (2, 2)), "{said:?}: {above} and {elsewhere} go on");
    let from: Vec<_> = shards.iter().map(|of| (of.shard, of.from)).collect();
    assert_eq!(from, [(A, 5), (B, 3)], "A is read for who needs it, from revision 4 on");
}

#[test]
fn compaction_is_exact() {
    let mut b = Bench::new();
    b.adv(&[(A, 6)]); // 2..=5
    b.ready(A, &[(3, &["a"]), (4, &["a"]), (5, &["a"]), (6, &["a"])]);
    b.run();
    b.log(&Entry::Compact(4));
    let below = b.watch("a", 3);
    let at = b.watch("a", 4);
    let mut said = b.said();
    said.sort();
    assert_eq!(said, [format!("{below} ended 4"), format!("{at}: a@4 a@5 <=5")]);
    assert_eq!(b.merge.counts(), (1, 0));
}

#[test]
fn nobody_waits_for_a_shard_that_left() {
    let mut b = Bench::new();
    let (on_a, on_b) = (b.watch("a", 0), b.watch("x", 0));
    b.adv(&[(B, 4)]); // 2 and 3, which are never read
    b.adv(&[(A, 3)]); // 4
    b.ready(A, &[(3, &["a"])]);
    let (said, effects) = b.run();
    let [Effect::Grace(B, ready)] = effects[..] else { panic!("{said:?} {effects:?}") };
    b.merge.grace_over(B, ready);
    assert_eq!(b.said(), [format!("{on_a}: a@4 <=4")]);
    assert_eq!(b.merge.counts(), (2, 1), "the other waits for its shard");
    let all = KeyRange::new("m", "");
    b.log(&Entry::Flip(Flip {
        id: "m1".into(),
        range: all,
        rid: Rid::new("b-1"),
        new_rid: Rid::new("m1"),
        from: B,
        to: A,
        from_local: 4,
        to_local: 4,
    })); // 5 and 6
    b.ready(A, &[(4, &[])]);
    assert_eq!(b.said(), Vec::<String>::new());
    b.log(&Entry::Compact(6));
    b.log(&Entry::Leave(B));
    assert_eq!(b.said(), Vec::<String>::new());
    b.merge.left(&b.fold, B);
    assert_eq!(b.said(), [format!("{on_b} ended 6")]);
    assert_eq!(b.merge.counts(), (1, 0));
}

#[test]
fn a_gap_ends_those_that_need_it_and_nobody_else() {
    let mut b = Bench::new();
    let (on_a, on_b) = (b.watch("a", 0), b.watch("x", 0));
    b.adv(&[(A, 5), (B, 3)]); // 2..=4 of A are lost, 5 of B
    b.ready(B, &[(3, &["x"])]);
    b.run();
    b.merge.gap(&b.fold, A, 5);
    let mut said = b.said();
    said.sort();
    assert_eq!(said, [format!("{on_a} ended 5"), format!("{on_b}: x@5 <=5")]);
    // Whom it told to start at 5 can start there.
    let again = b.watch("a", 5);
    b.adv(&[(A, 6)]);
    b.ready(A, &[(6, &["a"])]);
    assert_eq!(b.said(), [format!("{again}: a@6 <=6")]);
}

#[test]
fn a_gap_of_what_is_compacted_and_condensed_ends_nobody_above_it() {
    let mut b = Bench::new();
    b.adv(&[(A, 4)]); // 2, 3
    b.adv(&[(B, 3)]); // 4
    b.adv(&[(A, 6)]); // 5, 6
    b.log(&Entry::Compact(6));
    b.fold.condense(&[vec![], vec![]]);
    assert_eq!(b.fold.global(A, 4), None);
    let id = b.watch("a", 6);
    b.merge.gap(&b.fold, A, 4);
    b.ready(B, &[(3, &[])]);
    b.ready(A, &[(5, &["a"]), (6, &["a"])]);
    assert_eq!(b.said(), [format!("{id}: a@6 <=6")]);
}

#[test]
fn shards_that_join_are_read_from_their_join() {
    let mut b = Bench::new();
    b.watch("", 0);
    let join = Join { shard: "shard-2".into(), incarnation: 0, l0: 4, etcd_cluster_id: 2 };
    b.log(&Entry::Join(join));
    assert_eq!(b.merge.take_in_joined(&b.fold), [(ShardIx(2), 4)]);
    assert_eq!(b.merge.take_in_joined(&b.fold), []);
    b.log(&Entry::Flip(Flip {
        id: "m1".into(),
        range: KeyRange::new("m", ""),
        rid: Rid::new("b-1"),
        new_rid: Rid::new("m1"),
        from: B,
        to: ShardIx(2),
        from_local: 3,
        to_local: 6,
    })); // 2 of B, 3 and 4 of the new shard, 5 the flip
    b.adv(&[(ShardIx(2), 7)]); // 6
    b.ready(B, &[(3, &[])]);
    b.ready(ShardIx(2), &[(5, &["x"]), (6, &[]), (7, &["x"])]);
    assert_eq!(b.said(), ["101: x@6 <=6"]);
}

#[test]
fn closed_streams_leave_nothing_behind() {
    let mut b = Bench::with(WindowLimits { bytes_max: usize::MAX, revisions_max: 0 });
    b.adv(&[(A, 4)]);
    b.ready(A, &[(3, &["a"]), (4, &["a"])]);
    b.run();
    b.watch("a", 2); // in a replay
    b.run();
    b.watch("a", 0);
    b.watch("b", 9);
    b.merge.progress(1, 99);
    assert_eq!(b.merge.close(1).len(), 3);
    assert_eq!(b.merge.counts(), (0, 0));
    assert!(b.merge.live.is_empty() && b.merge.progress_wanted.is_empty() && b.merge.streams.is_empty());
    b.adv(&[(A, 5)]);
    b.ready(A, &[(5, &["a"])]);
    assert_eq!(b.said(), Vec::<String>::new());
}
