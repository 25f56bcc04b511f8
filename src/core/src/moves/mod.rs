//! Moves, splits and merges as state machines without IO: what was observed in, the next guarded Txn out.
//!
//! # Rules that make every step safe to repeat, to race and to interrupt
//!
//! 1. A Txn on a shard compares the mod revision of every record that its decision read there. Whoever decides otherwise
//!    writes those records, so a late Txn of an executor that has been overtaken does not match.
//! 2. Whether a move happens is decided in meta alone: flip and abort both compare `moves/<rid>`.
//! 3. An observation reads meta, then the shards, then meta again, and is used only if meta is unchanged: what was read
//!    on the shards cannot have been undone before the decision, as undoing begins with a write in meta.
//! 4. After a Txn of its own an executor knows what it wrote ([`Observation::after`]) and need not read again.
//!
//! # Order
//!
//! ```text
//! plan → open → copy → tail → verify → close → drain → seal → FLIP → purge source → forget
//!           any of these before the flip → ABORT → release source → void → purge destination → forget
//! ```

mod batch;
mod claims;
mod decide;
mod effect;
pub mod ops;
mod pace;
mod reshape;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod traps;

use bytes::Bytes;

use crate::{
    keyspace::ShardIx,
    records::{Claims, Cursor, MoveRecord},
};

pub use batch::{BATCH_BYTES_MAX, BATCH_KEYS_MAX, Change, import_txn, latest_of_each_key};
pub use decide::{Step, Work, decide};
pub use effect::{Effect, Place, abort_txn, plan_txn, purge_chunk_txn};
pub use pace::Pace;
pub use reshape::{Reshape, ReshapeStep, pending_reshape, propose_merge, propose_split, reshape_step};

/// Something stored, with its mod revision; a record that does not exist has mod revision 0.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stored<T> {
    /// The value.
    pub value: T,
    /// Its mod revision where it is stored.
    pub modified: i64,
}

/// What an executor has seen of a move, see rule 3 of the module's documentation.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// `moves/<rid>`; `None`: there is no such move (any more).
    pub record: Option<Stored<MoveRecord>>,
    /// The range map, folded at least up to its newest change.
    pub map: MapView,
    /// The move's records on the source; `None`: it could not be reached.
    pub source: Option<SourceView>,
    /// The move's records on the destination; `None`: it could not be reached.
    pub destination: Option<DestinationView>,
}

/// What matters of the range map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapView {
    /// Mod revision of `map`.
    pub modified: i64,
    /// Its generation.
    pub generation: u64,
    /// The shard that owns the ownership `rid` in the map; `None`: the map has no such ownership.
    pub owner: Option<ShardIx>,
}

/// A move's records on the source.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SourceView {
    /// `F/<rid>`.
    pub fence: Option<Stored<Bytes>>,
    /// `C`.
    pub claims: Stored<Claims>,
    /// Mod revision of `P/<rid>`, if it exists.
    pub purge: Option<i64>,
}

/// A move's records on the destination.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DestinationView {
    /// `F/<rid'>`.
    pub fence: Option<Stored<Bytes>>,
    /// `C`.
    pub claims: Stored<Claims>,
    /// `M/<id>`.
    pub cursor: Option<Stored<Cursor>>,
    /// Mod revision of `P/<rid'>`, if it exists.
    pub purge: Option<i64>,
}

/// What an executor knows of its own doing; nothing of it is stored, a new executor starts with the default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Session {
    /// Local revision of the source at which the copy is to read; at most what the line covers.
    pub copy_at: i64,
    /// The destination has been verified in full, and what changed since is little and applied: the source may be closed.
    pub ready_to_close: bool,
    /// This executor closed the source, at this local revision, and the clock of the stall runs.
    pub closed_at: Option<i64>,
    /// The destination has everything up to the close, and what changed since the verification was compared.
    pub drained: bool,
    /// This executor gives the move up, for this reason.
    pub give_up: Option<String>,
    /// This executor has released the source of an aborted move.
    pub released: bool,
    /// This executor has seen the destination's cursor void.
    pub voided: bool,
    /// The purge of the source, or of the destination, has deleted everything.
    pub purged: bool,
}

impl Session {
    /// What is left of it when another has been at work on the move meanwhile, see [`Observation::continues`].
    #[must_use]
    pub fn forgotten(self) -> Self {
        Self { released: self.released, voided: self.voided, ..Self::default() }
    }
}

impl Observation {
    /// True if all that was known of the copy at `before` still holds: a guard that did not match because of another range's
    /// claims, or of another change of the map, undoes nothing.
    ///
    /// What a session knows of the copy is about the destination's cursor: nobody has imported, sealed or voided if that is
    /// unchanged, and nobody has decided if the record is. The fence is compared with what the session says of it.
    pub fn continues(&self, before: &Self) -> bool {
        let cursor = |seen: &Self| seen.destination.as_ref().and_then(|d| d.cursor.clone());
        self.record == before.record && cursor(self).is_some() && cursor(self) == cursor(before)
    }
}
