//! What clients asked and were told, and the invariants that hold of it at every moment.

mod reads;
mod writes;

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use sharded_etcd_etcd_api::messages as pb;
use tokio::time::Instant;

use crate::{
    process::Process,
    state::in_range,
    truth::{TrueEvent, Truth},
    world::World,
};

pub use writes::NoAnswer;

/// A write's place in the history.
pub type OpId = usize;

/// What is known of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Under way.
    Open,
    /// It certainly did nothing.
    Refused,
    /// Nobody was told.
    Unknown,
    /// Answered.
    Done,
}

#[derive(Debug)]
struct Op {
    /// Every revision that anybody knew when it began.
    floor: i64,
    /// Keys that it may delete.
    deletes: Vec<(Bytes, Bytes)>,
    fate: Fate,
    /// The revision at which its puts are in the line.
    at: Option<i64>,
}

/// A client's lease.
#[derive(Debug, Clone)]
struct Lease {
    ttl: Duration,
    /// When the last renewal that was answered was sent.
    renewed: Instant,
    /// A revoke was sent.
    revoking: bool,
    /// A revoke was answered.
    revoked: bool,
}

/// See the module.
#[derive(Default)]
pub struct History {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ops: Vec<Op>,
    /// Which write puts a value; no two put the same.
    values: BTreeMap<Bytes, OpId>,
    /// The highest revision that anybody was told.
    told: i64,
    /// The highest compaction that was answered, and the highest that was asked for.
    compacted: i64,
    compact_asked: i64,
    leases: BTreeMap<i64, Lease>,
    checks: u64,
}

/// What a client knows when it asks.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// Every revision that anybody was told before.
    pub floor: i64,
    /// Every compaction that anybody was told before.
    pub compacted: i64,
}

impl History {
    /// Something is asked now.
    pub fn ask(&self) -> Asked {
        let state = self.state.lock();
        Asked { floor: state.told, compacted: state.compacted }
    }

    /// How many answers and events were checked.
    pub fn checks(&self) -> u64 {
        self.state.lock().checks
    }

    /// The highest revision that anybody was told.
    pub fn told(&self) -> i64 {
        self.state.lock().told
    }

    /// Somebody was told a revision: it exists, and from now on nobody is told less.
    ///
    /// # Errors
    /// If the line has no such revision yet.
    pub fn tell(&self, truth: &Truth, revision: i64) -> Result<(), String> {
        let mut state = self.state.lock();
        state.checks += 1;
        state.told = state.told.max(revision);
        if revision > truth.revision {
            return Err(format!("revision {revision} was told, the line is at {}", truth.revision));
        }
        Ok(())
    }

    /// A header of a linearizable answer: not below what anybody was told before it was asked for.
    ///
    /// # Errors
    /// If it goes back, or ahead of the line.
    pub fn header(
        &self,
        truth: &Truth,
        asked: Asked,
        header: Option<&pb::ResponseHeader>,
    ) -> Result<i64, String> {
        let revision = header.ok_or("an answer without a header")?.revision;
        if revision < asked.floor {
            return Err(format!("the revision goes back: {revision} after {}", asked.floor));
        }
        self.tell(truth, revision)?;
        Ok(revision)
    }

    /// A process's fold is the same as everybody's at its position.
    ///
    /// # Errors
    /// If it is not.
    pub fn cut(&self, truth: &Truth, process: &Process) -> Result<(), String> {
        let cut = process.line.cut();
        let Some((revision, compacted, vector)) = truth.cuts.get(&cut.position) else {
            return Err(format!("{} is at log position {}, where nothing is", process.name, cut.position));
        };
        if (cut.revision, cut.compacted, cut.vector.as_ref()) != (*revision, *compacted, vector.as_slice()) {
            return Err(format!(
                "{} at log position {}: revision {} compacted {} vector {:?}, but it is {revision} {compacted} {vector:?}",
                process.name, cut.position, cut.revision, cut.compacted, cut.vector
            ));
        }
        Ok(())
    }

    /// A revision has become part of the line: everything in it was asked for, and not before.
    pub(crate) fn happened(&self, world: &World, truth: &Truth, revision: i64) -> Result<(), String> {
        let mut state = self.state.lock();
        for event in truth.events.get(&revision).into_iter().flatten() {
            state.checks += 1;
            state.explain(world, revision, event)?;
        }
        Ok(())
    }

    /// A lease was granted; `sent` is when it was asked for.
    pub fn granted(&self, id: i64, ttl: i64, sent: Instant) {
        let ttl = Duration::from_secs(ttl.unsigned_abs());
        let lease = Lease { ttl, renewed: sent, revoking: false, revoked: false };
        self.state.lock().leases.insert(id, lease);
    }

    /// A renewal that was sent at `sent` was answered with this time to live.
    ///
    /// # Errors
    /// If the lease must still live and does not.
    pub fn renewed(&self, id: i64, ttl: i64, sent: Instant) -> Result<(), String> {
        self.state.lock().checks += 1;
        if ttl <= 0 {
            return self.may_be_gone(id, "a keep-alive was answered with TTL 0");
        }
        let mut state = self.state.lock();
        let Some(lease) = state.leases.get_mut(&id) else { return Ok(()) };
        if lease.revoked {
            return Err(format!("lease {id:x} was revoked, and a keep-alive renewed it"));
        }
        lease.renewed = lease.renewed.max(sent);
        Ok(())
    }

    /// A revoke is sent.
    pub fn revoking(&self, id: i64) {
        if let Some(lease) = self.state.lock().leases.get_mut(&id) {
            lease.revoking = true;
        }
    }

    /// A revoke was answered: none of its keys is there.
    ///
    /// # Errors
    /// If one is.
    pub fn revoked(&self, truth: &Truth, id: i64) -> Result<(), String> {
        let mut state = self.state.lock();
        state.checks += 1;
        if let Some(lease) = state.leases.get_mut(&id) {
            lease.revoked = true;
        }
        match truth.keys.range(b"\0", b"\0", truth.revision).iter().find(|kv| kv.lease == id) {
            Some(kv) => Err(format!("lease {id:x} was revoked, and {:?} is still there", kv.key)),
            None => Ok(()),
        }
    }

    /// A lease was found not to be there (any more).
    ///
    /// # Errors
    /// If it must be.
    pub fn may_be_gone(&self, id: i64, what: &str) -> Result<(), String> {
        let state = self.state.lock();
        match state.leases.get(&id) {
            Some(lease) if !lease.may_end(Instant::now()) => {
                Err(format!("{what}, but lease {id:x} lives: {lease:?}"))
            }
            _ => Ok(()),
        }
    }

    /// The leases that nobody revoked and whose time is not over.
    pub fn live_leases(&self) -> Vec<i64> {
        let state = self.state.lock();
        let now = Instant::now();
        state.leases.iter().filter(|(_, l)| !l.may_end(now)).map(|(&id, _)| id).collect()
    }

    /// A compaction is asked for.
    pub fn compacting(&self, revision: i64) {
        let mut state = self.state.lock();
        state.compact_asked = state.compact_asked.max(revision);
    }

    /// A compaction was answered.
    pub fn compacted(&self, revision: i64) {
        let mut state = self.state.lock();
        state.compacted = state.compacted.max(revision);
    }
}

impl Lease {
    fn may_end(&self, at: Instant) -> bool {
        self.revoking || at >= self.renewed + self.ttl
    }
}

impl State {
    fn explain(&mut self, world: &World, revision: i64, event: &TrueEvent) -> Result<(), String> {
        let kv = event.kv();
        if event.is_delete() {
            return self.explain_delete(revision, event);
        }
        let id = *self.values.get(&kv.value).ok_or_else(|| {
            format!("revision {revision} puts {:?}={:?}, which nobody wrote", kv.key, kv.value)
        })?;
        let op = &mut self.ops[id];
        let wrong =
            |why: &str| Err(format!("write {id} ({:?} at revision {revision}) {why}: {op:?}", kv.key));
        if op.fate == Fate::Refused {
            return wrong("was refused, and is there");
        }
        if revision <= op.floor {
            return wrong("is in the line before it was asked for");
        }
        if op.at.is_some_and(|at| at != revision) {
            return wrong("is there twice");
        }
        if op.fate == Fate::Done && op.at != Some(revision) {
            return wrong("was answered before it was part of the line");
        }
        op.at = Some(revision);
        if kv.lease != 0 && self.leases.get(&kv.lease).is_some_and(|l| l.revoked) {
            return Err(format!("{:?} was attached to lease {:x} after that was revoked", kv.key, kv.lease));
        }
        let _ = world;
        Ok(())
    }

    fn explain_delete(&self, revision: i64, event: &TrueEvent) -> Result<(), String> {
        let key = &event.kv().key;
        let by_client = self.ops.iter().any(|op| {
            matches!(op.fate, Fate::Open | Fate::Unknown)
                && revision > op.floor
                && op.deletes.iter().any(|(start, end)| in_range(key, start, end))
        });
        let lease = event.event.prev_kv.as_ref().map_or(0, |kv| kv.lease);
        if by_client {
            return Ok(());
        }
        match self.leases.get(&lease) {
            // Granted, and the answer was lost: nobody can know when.
            None if lease != 0 => Ok(()),
            Some(lease) if lease.may_end(event.at) => Ok(()),
            Some(found) => Err(format!(
                "revision {revision} deletes {key:?} of lease {lease:x} {:?} after its last renewal: {found:?}",
                event.at - found.renewed
            )),
            None => Err(format!("revision {revision} deletes {key:?}, which nobody asked for")),
        }
    }
}
