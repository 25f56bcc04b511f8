//! The guarded Txns of a move.

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;

use super::{DestinationView, Observation, Session, Stored, ops};
use crate::{
    keyspace::KeyRange,
    line::{Entry, Flip},
    records::{
        self, ClaimState, Claims, Cursor, CursorStage, FENCE_OPEN, MapRecord, MovePhase, MoveRecord, Record,
        claims_key, cursor_key, fence_closed_by, fence_key, move_key, override_range, purge_key,
    },
};

/// Where a Txn goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// The topology's own etcd.
    Meta,
    /// The shard that gives the range.
    Source,
    /// The shard that takes it.
    Destination,
}

/// One guarded Txn of a move; protocol.md, "Move of K", has the same names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Effect {
    /// The destination claims the empty range and gets a cursor that copies at this local revision of the source.
    Open {
        /// See [`Cursor::copy_at`].
        copy_at: i64,
    },
    /// The source's fence is closed; its revision is the last one that counts.
    Close,
    /// The destination is complete up to the close; the new fence opens.
    Seal {
        /// Local revision of the close.
        closed_at: i64,
    },
    /// The decision: the destination owns the range. There is no way back but another move.
    Flip {
        /// Local revision of the close on the source.
        from_local: i64,
        /// Local revision of the seal on the destination.
        to_local: i64,
    },
    /// The other decision: the move did not happen.
    Abort,
    /// After an abort: the source's fence is open, and rewritten, so that a late close no longer matches.
    Release,
    /// After an abort: late imports and seals no longer match; the destination's copy is to be deleted.
    Void,
    /// After the flip: the source's copy is to be deleted.
    PurgeSource,
    /// The source's copy is deleted.
    PurgedSource,
    /// The destination's copy of an aborted move is deleted.
    PurgedDestination,
    /// The cursor is not needed any more.
    ForgetCursor,
    /// The move is over.
    Forget,
}

impl Effect {
    /// Where it goes.
    pub fn place(&self) -> Place {
        match self {
            Self::Flip { .. } | Self::Abort | Self::Forget => Place::Meta,
            Self::Close | Self::Release | Self::PurgeSource | Self::PurgedSource => Place::Source,
            Self::Open { .. }
            | Self::Seal { .. }
            | Self::Void
            | Self::PurgedDestination
            | Self::ForgetCursor => Place::Destination,
        }
    }

    /// Its name in logs, metrics and failpoints.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Open { .. } => "open",
            Self::Close => "close",
            Self::Seal { .. } => "seal",
            Self::Flip { .. } => "flip",
            Self::Abort => "abort",
            Self::Release => "release",
            Self::Void => "void",
            Self::PurgeSource => "purge-source",
            Self::PurgedSource => "purged-source",
            Self::PurgedDestination => "purged-destination",
            Self::ForgetCursor => "forget-cursor",
            Self::Forget => "forget",
        }
    }

    /// Every effect, for tests that stop an executor at each of them.
    pub const NAMES: [&'static str; 12] = [
        "open",
        "close",
        "seal",
        "flip",
        "abort",
        "release",
        "void",
        "purge-source",
        "purged-source",
        "purged-destination",
        "forget-cursor",
        "forget",
    ];

    /// The Txn, guarded by everything that was observed where it goes; `None` if there is no such move, or nothing was
    /// observed there.
    pub fn txn(&self, seen: &Observation) -> Option<pb::TxnRequest> {
        let stored = seen.record.as_ref()?;
        let record = &stored.value;
        let writes = self.writes(seen, record)?;
        let mut compare = match self.place() {
            Place::Meta => vec![ops::modified_at(move_key(&record.rid), stored.modified)],
            Place::Source => {
                let source = seen.source.as_ref()?;
                vec![
                    ops::modified_at(claims_key(), source.claims.modified),
                    ops::modified_at(fence_key(&record.rid), modified(&source.fence)),
                    ops::modified_at(purge_key(&record.rid), source.purge.unwrap_or(0)),
                ]
            }
            Place::Destination => {
                let destination = seen.destination.as_ref()?;
                vec![
                    ops::modified_at(claims_key(), destination.claims.modified),
                    ops::modified_at(cursor_key(&record.id), modified(&destination.cursor)),
                    ops::modified_at(purge_key(&record.new_rid), destination.purge.unwrap_or(0)),
                ]
            }
        };
        match self {
            Self::Open { .. } => {
                let keys = record.range.clamped();
                compare.push(ops::is_empty(&keys));
                compare.push(ops::is_empty(&override_range(&record.range)));
            }
            // Belt and braces: the mod revision says it already.
            Self::Close => compare.push(ops::value_is(fence_key(&record.rid), FENCE_OPEN)),
            Self::PurgeSource => {
                compare.push(ops::value_is(fence_key(&record.rid), fence_closed_by(&record.id)));
            }
            Self::Flip { .. } => {
                compare.push(ops::modified_at(Bytes::from_static(records::MAP), seen.map.modified));
            }
            _ => {}
        }
        Some(ops::txn(compare, writes.into_iter().map(Write::op).collect()))
    }

    /// What it writes; `None` if that depends on a place that was not observed.
    fn writes(&self, seen: &Observation, record: &MoveRecord) -> Option<Vec<Write>> {
        match self.place() {
            Place::Meta => Some(self.writes_in_meta(seen, record)),
            Place::Source => Some(self.writes_on_source(&seen.source.as_ref()?.claims.value, record)),
            Place::Destination => Some(self.writes_on_destination(seen.destination.as_ref()?, record)),
        }
    }

    fn writes_in_meta(&self, seen: &Observation, record: &MoveRecord) -> Vec<Write> {
        match self {
            Self::Flip { from_local, to_local } => {
                let flip = Flip {
                    id: record.id.clone(),
                    range: record.range.clone(),
                    rid: record.rid.clone(),
                    new_rid: record.new_rid.clone(),
                    from: record.from,
                    to: record.to,
                    from_local: *from_local,
                    to_local: *to_local,
                };
                vec![
                    put_map(seen.map.generation + 1),
                    put_record(record, MovePhase::Flipped),
                    Write::Put(Bytes::from_static(records::CUT_LATEST), Entry::Flip(flip).encode()),
                ]
            }
            Self::Abort => vec![put_record(record, MovePhase::Aborting)],
            Self::Forget => vec![Write::Delete(move_key(&record.rid))],
            _ => Vec::new(),
        }
    }

    fn writes_on_source(&self, claims: &Claims, record: &MoveRecord) -> Vec<Write> {
        let (id, rid, range) = (&record.id, &record.rid, &record.range);
        let claim = |state| Write::Put(claims_key(), claims.with(range, rid, state).encode());
        match self {
            Self::Close => {
                vec![Write::Put(fence_key(rid), fence_closed_by(id)), claim(ClaimState::Closed(id.clone()))]
            }
            Self::Release => {
                // A split or merge that made the range is still to be closed, which its claims say.
                let state = match claims.of(rid).map(|claim| &claim.state) {
                    Some(opening @ ClaimState::Opening(_)) => opening.clone(),
                    _ => ClaimState::Open,
                };
                vec![Write::Put(fence_key(rid), Bytes::from_static(FENCE_OPEN)), claim(state)]
            }
            Self::PurgeSource => vec![
                Write::Delete(fence_key(rid)),
                Write::Put(purge_key(rid), Bytes::from_static(b"moved")),
                claim(ClaimState::Purging),
            ],
            Self::PurgedSource => {
                vec![Write::Delete(purge_key(rid)), Write::Put(claims_key(), claims.without(rid).encode())]
            }
            _ => Vec::new(),
        }
    }

    fn writes_on_destination(&self, seen: &DestinationView, record: &MoveRecord) -> Vec<Write> {
        let (id, rid, range, claims) = (&record.id, &record.new_rid, &record.range, &seen.claims.value);
        let cursor = |copy_at, stage| Write::Put(cursor_key(id), Cursor { copy_at, stage }.encode());
        let claim = |state| Write::Put(claims_key(), claims.with(range, rid, state).encode());
        let no_claim = || Write::Put(claims_key(), claims.without(rid).encode());
        let copy_at = seen.cursor.as_ref().map_or(0, |c| c.value.copy_at);
        match self {
            Self::Open { copy_at } => vec![
                claim(ClaimState::Importing(id.clone())),
                cursor(*copy_at, CursorStage::Copy { next: range.start.clone() }),
            ],
            Self::Seal { closed_at } => vec![
                cursor(copy_at, CursorStage::Sealed { revision: *closed_at }),
                Write::Put(fence_key(rid), Bytes::from_static(FENCE_OPEN)),
                claim(ClaimState::Open),
            ],
            // It never opened, or everything is deleted: the claims are put so that a late open does not match.
            Self::Void if seen.cursor.is_none() => vec![no_claim()],
            Self::Void => vec![
                cursor(copy_at, CursorStage::Void),
                Write::Delete(fence_key(rid)),
                Write::Put(purge_key(rid), Bytes::from_static(b"void")),
                claim(ClaimState::Purging),
            ],
            Self::PurgedDestination => vec![Write::Delete(purge_key(rid)), no_claim()],
            Self::ForgetCursor => vec![Write::Delete(cursor_key(id))],
            _ => Vec::new(),
        }
    }
}

enum Write {
    Put(Bytes, Bytes),
    Delete(Bytes),
}

impl Write {
    fn op(self) -> pb::RequestOp {
        match self {
            Self::Put(key, value) => ops::put(key, value),
            Self::Delete(key) => ops::delete(key),
        }
    }
}

fn put_map(generation: u64) -> Write {
    Write::Put(Bytes::from_static(records::MAP), MapRecord { generation }.encode())
}

fn put_record(record: &MoveRecord, phase: MovePhase) -> Write {
    Write::Put(move_key(&record.rid), MoveRecord { phase, ..record.clone() }.encode())
}

fn modified<T>(stored: &Option<Stored<T>>) -> i64 {
    stored.as_ref().map_or(0, |s| s.modified)
}

/// Writes the move down: one move an ownership, and only while the map is the one that was planned on.
pub fn plan_txn(record: &MoveRecord, map_modified: i64) -> pb::TxnRequest {
    let key = move_key(&record.rid);
    ops::txn(
        vec![
            ops::created_at(key.clone(), 0),
            ops::modified_at(Bytes::from_static(records::MAP), map_modified),
        ],
        vec![ops::put(key, record.encode())],
    )
}

/// Decides that a move does not happen, for who has looked at nothing but its record: what [`Effect::Abort`] sends. `None` if
/// it is decided already.
pub fn abort_txn(record: &Stored<MoveRecord>) -> Option<pb::TxnRequest> {
    let is_open = record.value.phase == MovePhase::Copying;
    is_open.then(|| {
        let aborting = put_record(&record.value, MovePhase::Aborting);
        ops::txn(vec![ops::modified_at(move_key(&record.value.rid), record.modified)], vec![aborting.op()])
    })
}

impl Observation {
    /// What would be observed after `effect` succeeded at `revision` of where it went; also what the session knows then.
    ///
    /// Sound without reading again: the Txn compared everything that the observation has of that place, so nothing of it
    /// had changed; what changes later elsewhere fails a later compare.
    pub fn after(&mut self, effect: &Effect, session: &mut Session, revision: i64) {
        let Some(record) = self.record.as_ref().map(|r| r.value.clone()) else { return };
        for write in effect.writes(self, &record).unwrap_or_default() {
            let (key, value) = match write {
                Write::Put(key, value) => (key, Some(value)),
                Write::Delete(key) => (key, None),
            };
            self.write(effect.place(), &record, &key, value, revision);
        }
        match effect {
            Effect::Close => session.closed_at = Some(revision),
            Effect::Flip { .. } => self.map.owner = None,
            Effect::Release => session.released = true,
            // A cursor that is forgotten after an abort was void.
            Effect::Void | Effect::ForgetCursor => session.voided = true,
            _ => {}
        }
    }

    fn write(&mut self, place: Place, record: &MoveRecord, key: &Bytes, value: Option<Bytes>, revision: i64) {
        let stored = |value| Stored { value, modified: revision };
        match (place, &mut self.source, &mut self.destination) {
            (Place::Meta, ..) if *key == move_key(&record.rid) => {
                self.record = value.and_then(|v| MoveRecord::decode(&v).ok()).map(stored_with(revision));
            }
            (Place::Meta, ..) if key.as_ref() == records::MAP => {
                self.map.modified = revision;
                self.map.generation += 1;
            }
            (Place::Source, Some(source), _) if *key == fence_key(&record.rid) => {
                source.fence = value.map(stored);
            }
            (Place::Source, Some(source), _) if *key == purge_key(&record.rid) => {
                source.purge = value.map(|_| revision);
            }
            (Place::Source, Some(source), _) if *key == claims_key() => {
                source.claims = decoded(value, revision);
            }
            (Place::Destination, _, Some(destination)) if *key == fence_key(&record.new_rid) => {
                destination.fence = value.map(stored);
            }
            (Place::Destination, _, Some(destination)) if *key == purge_key(&record.new_rid) => {
                destination.purge = value.map(|_| revision);
            }
            (Place::Destination, _, Some(destination)) if *key == claims_key() => {
                destination.claims = decoded(value, revision);
            }
            (Place::Destination, _, Some(destination)) if *key == cursor_key(&record.id) => {
                destination.cursor = value.and_then(|v| Cursor::decode(&v).ok()).map(stored_with(revision));
            }
            _ => {}
        }
    }
}

fn stored_with<T>(modified: i64) -> impl Fn(T) -> Stored<T> {
    move |value| Stored { value, modified }
}

fn decoded<T: Record + Default>(value: Option<Bytes>, modified: i64) -> Stored<T> {
    Stored { value: value.and_then(|v| T::decode(&v).ok()).unwrap_or_default(), modified }
}

/// The Txn that deletes one chunk of a purge: keys and their overrides, while the purge's guard is the one that was seen.
pub fn purge_chunk_txn(guard_key: Bytes, guard: i64, chunk: &KeyRange) -> pb::TxnRequest {
    ops::txn(
        vec![ops::modified_at(guard_key, guard)],
        vec![ops::delete_range(chunk), ops::delete_range(&override_range(chunk))],
    )
}
