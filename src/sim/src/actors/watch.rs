//! Watchers: one stream each, some watchers on it; they go on elsewhere when it breaks.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use sharded_etcd_etcd_api::messages as pb;
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::Client;
use crate::{process::Process, state::in_range, trace, truth::Truth, world::World};

/// How long an answer to a request for progress may take when nothing goes wrong.
const PROGRESS_MAX: Duration = Duration::from_secs(8);
/// Requests under way on one stream.
const REQUESTS_MAX: usize = 16;

/// One watcher of a client.
struct Watched {
    key: Bytes,
    range_end: Bytes,
    prev_kv: bool,
    no_put: bool,
    no_delete: bool,
    /// Where it begins; 0 for now.
    start: i64,
    /// The first revision that it has not been told everything of; 0 before it is known.
    next: i64,
    /// It was created on the present stream, or is not to be.
    created: bool,
    /// It is on the present stream.
    present: bool,
    /// It wants large answers in parts.
    fragment: bool,
    /// The parts of an answer that is not whole yet.
    parts: Vec<pb::Event>,
}

/// A client's watches, and what it was told.
pub struct Watcher {
    client: Arc<Client>,
    watched: Mutex<Vec<Watched>>,
    /// Told to catch up and end.
    end: CancellationToken,
}

impl Watched {
    fn wants(&self, event: &pb::Event) -> bool {
        let delete = event.r#type == i32::from(pb::EventType::Delete);
        let key = event.kv.as_ref().map_or(&b""[..], |kv| &kv.key);
        !(if delete { self.no_delete } else { self.no_put }) && in_range(key, &self.key, &self.range_end)
    }

    /// What it must be told from `next` to a revision.
    fn due(&self, truth: &Truth, upto: i64) -> Vec<pb::Event> {
        let mut due = Vec::new();
        if self.next <= upto {
            let events = truth.events.range(self.next..=upto).flat_map(|(_, events)| events);
            due.extend(events.filter(|e| self.wants(&e.event)).map(|e| pb::Event {
                prev_kv: e.event.prev_kv.clone().filter(|_| self.prev_kv),
                ..e.event.clone()
            }));
        }
        due
    }
}

impl Watcher {
    /// Some watchers of a client.
    pub fn new(client: Arc<Client>, end: &CancellationToken) -> Arc<Self> {
        Arc::new(Self { client, watched: Mutex::default(), end: end.clone() })
    }

    fn world(&self) -> &Arc<World> {
        &self.client.world
    }

    /// Watches until the end; then until it has been told everything.
    pub async fn run(self: Arc<Self>) {
        let count = self.client.rng.between(1, 3);
        for _ in 0..count {
            let watched = self.one();
            self.watched.lock().push(watched);
        }
        while !self.has_all() {
            let running = self.world().running();
            if running.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
            let process = Arc::clone(self.client.rng.pick(&running));
            self.one_stream(&process).await;
            for watched in self.watched.lock().iter_mut() {
                watched.created = false;
                watched.present = false;
                watched.parts.clear();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn one(&self) -> Watched {
        let rng = &self.client.rng;
        let (key, range_end) = self.client.range();
        let start = if rng.chance(50) { 0 } else { self.client.past() };
        Watched {
            key,
            range_end,
            prev_kv: rng.chance(60),
            no_put: rng.chance(8),
            no_delete: rng.chance(8),
            start,
            next: start,
            created: false,
            present: false,
            fragment: rng.chance(50),
            parts: Vec::new(),
        }
    }

    /// True if the story is over and everything was told.
    fn has_all(&self) -> bool {
        let revision = self.world().truth.lock().revision;
        self.end.is_cancelled() && self.watched.lock().iter().all(|w| w.next > revision)
    }

    /// True if a watcher that was left out of the present stream is behind: what nobody was told the outcome of may come into
    /// the line late.
    fn misses_some(&self) -> bool {
        let revision = self.world().truth.lock().revision;
        self.watched.lock().iter().any(|w| w.created && !w.present && w.next <= revision)
    }

    async fn one_stream(&self, process: &Process) {
        let (name, world) = (&self.client.name, self.world());
        let (requests, stream) = mpsc::channel(REQUESTS_MAX);
        trace!(world, "{name} {} watches", process.name);
        let asked = world.history.ask();
        let calm = world.is_calm();
        let revision = world.truth.lock().revision;
        let ending = self.end.is_cancelled();
        for (id, watched) in self.watched.lock().iter_mut().enumerate() {
            if ending && watched.next > revision {
                // One that begins in the future would hold back the others' progress.
                watched.created = true;
                continue;
            }
            watched.present = true;
            let start = if watched.next > 0 { watched.next } else { watched.start };
            let mut filters = Vec::new();
            if watched.no_put {
                filters.push(pb::FilterType::Noput.into());
            }
            if watched.no_delete {
                filters.push(pb::FilterType::Nodelete.into());
            }
            let create = pb::WatchCreateRequest {
                key: watched.key.clone(),
                range_end: watched.range_end.clone(),
                start_revision: start,
                progress_notify: self.client.rng.chance(50),
                filters,
                prev_kv: watched.prev_kv,
                watch_id: id as i64 + 1,
                fragment: watched.fragment,
            };
            let request_union = Some(pb::RequestUnion::CreateRequest(create));
            // There is room for all of them.
            let _ = requests.try_send(pb::WatchRequest { request_union });
        }
        let mut client = process.watches();
        let opened = tokio::select! {
            biased;
            () = process.killed.cancelled() => return,
            opened = client.watch(ReceiverStream::new(stream)) => opened,
        };
        let Ok(opened) = opened else { return };
        let mut answers = opened.into_inner();
        let mut lives = self.client.rng.between(5, 60);
        let mut progress: Option<(i64, Instant)> = None;
        loop {
            let pause = Duration::from_millis(self.client.rng.between(20, 250));
            tokio::select! {
                biased;
                () = process.killed.cancelled() => return,
                () = self.end.cancelled(), if !ending => return,
                answer = answers.message() => {
                    let Ok(Some(answer)) = answer else {
                        trace!(world, "{name} {} watch stream ended", process.name);
                        return;
                    };
                    let checked = self.told(process, (asked.floor, calm), &answer, &mut progress);
                    let again = checked.as_ref().is_ok_and(|again| *again);
                    world.require(checked.map(|_| ()));
                    if again {
                        return;
                    }
                }
                () = tokio::time::sleep(pause) => {
                    if self.has_all() || self.misses_some() {
                        return;
                    }
                    lives = lives.saturating_sub(1);
                    if lives == 0 && !self.end.is_cancelled() {
                        // A client that goes, and comes back elsewhere.
                        return;
                    }
                    if let Some((_, since)) = progress
                        && since.elapsed() > PROGRESS_MAX
                    {
                        // Without meta a request for progress is passed over.
                        if ending {
                            world.fail(format!("{name}: progress was asked for, and is not answered"));
                        }
                        progress = None;
                    }
                    let all = self.watched.lock().iter().all(|w| w.created);
                    if progress.is_none() && all && (self.end.is_cancelled() || self.client.rng.chance(40)) {
                        progress = Some((world.history.told(), Instant::now()));
                        let request = pb::WatchProgressRequest {};
                        let request_union = Some(pb::RequestUnion::ProgressRequest(request));
                        let _ = requests.try_send(pb::WatchRequest { request_union });
                    }
                }
            }
        }
    }

    /// Checks an answer; true if the stream is to be begun anew.
    fn told(
        &self,
        process: &Process,
        (floor, calm): (i64, bool),
        answer: &pb::WatchResponse,
        progress: &mut Option<(i64, Instant)>,
    ) -> Result<bool, String> {
        let world = self.world();
        let revision = answer.header.as_ref().ok_or("a watch answer without a header")?.revision;
        let name = &self.client.name;
        trace!(
            world,
            "{name} {} watch {} at {revision}: {} events{}{}",
            process.name,
            answer.watch_id,
            answer.events.len(),
            if answer.created { " created" } else { "" },
            if answer.canceled { " cancelled" } else { "" }
        );
        let truth = world.truth.lock();
        world.history.tell(&truth, revision)?;
        let mut all = self.watched.lock();
        if let Some(open) = all.iter().position(|w| !w.parts.is_empty())
            && answer.watch_id != open as i64 + 1
        {
            return Err(format!(
                "{name}: an answer for {} amid the parts of one for {}",
                answer.watch_id,
                open + 1
            ));
        }
        let what = |id: i64| format!("{name} on {} watcher {id}", process.name);
        if answer.watch_id == -1 {
            // Progress of all watchers of the stream.
            for (i, watched) in all.iter_mut().enumerate().filter(|(_, w)| w.present) {
                passed(&truth, watched, revision).map_err(|e| format!("{}: {e}", what(i as i64 + 1)))?;
            }
            if let Some((asked, _)) = progress.take()
                && revision < asked
            {
                return Err(format!("{name}: progress {revision} was asked for when {asked} was known"));
            }
            return Ok(false);
        }
        let id = answer.watch_id;
        let watched = usize::try_from(id - 1).ok().and_then(|i| all.get_mut(i));
        let Some(watched) = watched else { return Err(format!("{name}: an answer for watcher {id}")) };
        let what = what(id);
        if answer.created {
            if answer.canceled {
                return Err(format!("{what} was refused: {}", answer.cancel_reason));
            }
            watched.created = true;
            // A proxy that does not reach meta opens watches all the same, as an etcd member without a leader does.
            if revision < floor && calm {
                return Err(format!("{what} was created at {revision} after {floor}"));
            }
            if watched.next == 0 {
                watched.next = revision + 1;
            }
            return Ok(false);
        }
        if answer.canceled {
            if answer.compact_revision == 0 {
                return Err(format!("{what} was cancelled: {}", answer.cancel_reason));
            }
            if watched.next >= truth.compacted {
                return Err(format!(
                    "{what} was told compacted at {}, but it is at {}, and the line at {}",
                    answer.compact_revision, watched.next, truth.compacted
                ));
            }
            watched.next = truth.compacted;
            return Ok(true);
        }
        if answer.fragment {
            watched.parts.extend(answer.events.iter().cloned());
            return if watched.fragment { Ok(false) } else { Err(format!("{what} is told parts")) };
        }
        let events = [std::mem::take(&mut watched.parts).as_slice(), &answer.events].concat();
        let Some(last) = events.last() else {
            return passed(&truth, watched, revision).map(|()| false).map_err(|e| format!("{what}: {e}"));
        };
        let upto = last.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        let due = watched.due(&truth, upto);
        let same =
            due.len() == events.len() && due.iter().zip(&events).all(|(due, told)| same(&truth, due, told));
        if !same || upto > revision {
            return Err(format!(
                "{what} from {} was told {:?} (header {revision}), but it is {due:?}",
                watched.next, events
            ));
        }
        watched.next = upto + 1;
        Ok(false)
    }
}

/// A watcher was told that it has everything up to a revision.
fn passed(truth: &Truth, watched: &mut Watched, revision: i64) -> Result<(), String> {
    let due = watched.due(truth, revision);
    if !due.is_empty() {
        return Err(format!("progress {revision} before events from {} on: {due:?}", watched.next));
    }
    watched.next = watched.next.max(revision + 1);
    Ok(())
}

/// The same event; what was before it may be unknown if that is compacted.
fn same(truth: &Truth, due: &pb::Event, told: &pb::Event) -> bool {
    let at = due.kv.as_ref().map_or(0, |kv| kv.mod_revision);
    (due.r#type, &due.kv) == (told.r#type, &told.kv)
        && (due.prev_kv == told.prev_kv || (told.prev_kv.is_none() && at <= truth.compacted))
}
