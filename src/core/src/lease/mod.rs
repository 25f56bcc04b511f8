//! Leases: what is stored about them, what follows from it, and the transactions that change it.
//!
//! # Where a lease lives
//!
//! The *real* lease is in meta, with the client's id and TTL; `lease/<id>/alive` hangs on it. `lease/<id>` is the record
//! that makes it a client's lease; the record's create revision is the lease's *epoch*. Keys are attached to a *shadow*
//! on their shard: a lease of the same id that does not expire by itself. A *marker* `L/<id>` beside it says of which
//! epoch it is and whether keys may be attached; every attaching write compares it.
//!
//! # From the first attach to the end
//!
//! ```text
//! attach   meta:  If the record was never changed, and alive is of its epoch      Then put lease/<id>/shadow/<s>
//!          shard: LeaseGrant(id, practically forever)
//!          shard: If there is no marker, and the floor is as read before all      Then put L/<id> = live@epoch
//! revoke   meta:  If mod(record), and, for an expiry, no alive                    Then put record = revoking, by me
//!          shard: put L/<id> = revoking@epoch, over live@epoch or nothing
//!          shard: If the fences are open and L/<id> = revoking@epoch              Then for each key, if it is still
//!                                                                                 attached, delete it and its override
//! gone     meta:  If mod(record), mod(map), no newer registration                 Then put record = gone
//!          shard: LeaseRevoke(id), once nothing visible and no open import is attached
//! end      meta:  If mod(record), no newer registration                           Then delete all below lease/<id>
//! ```
//!
//! # Why it holds
//!
//! - Nothing is attached after `revoking`: a registration compares the unchanged record, so it is either known when the
//!   markers are written, or fails. A marker is only put over *no* marker, and markers of ended leases are removed only
//!   after the shard's floor was rewritten, which the put compares: a first attach that was held up on its way fails.
//! - Keys cannot slip away to another shard while they are deleted: `gone` compares the map that named the owners.
//! - `LeaseRevoke` deletes keys and cannot be guarded. So only the helper that the record names sends it. If one may
//!   still be on its way as its helper vanished, the record is *uncertain*, and an id that clients may use again rests
//!   for a while before it ends. Ids that the topology chose are random and never come back.

mod deletes;
mod facts;
mod marker;
mod step;
mod txns;

pub use crate::translate::NEVER_GRANTED;
pub use deletes::{
    BATCH_BYTES_MAX, BATCH_KEYS_MAX, DeleteBatch, held_by_imports, plan_deletes, visible_keys,
};
pub use facts::LeaseFacts;
pub use marker::{Marker, MarkerStep, MarkerView, Over, after_live, after_revoking};
pub use step::{Asked, Step, next_step};
pub use txns::{
    adopt_txn, delete_txn, end_txn, gone_txn, grant_txn, marker_txn, read_marker_txn, read_txn, record_txn,
    records_txn, register_txn, remove_markers_txn,
};

/// The longest TTL that etcd grants, in seconds (server/lease/lessor.go, `MaxLeaseTTL`).
pub const TTL_SECONDS_MAX: i64 = 9_000_000_000;

/// TTL of the shadows, in seconds: 285 years.
pub const SHADOW_TTL_SECONDS: i64 = TTL_SECONDS_MAX;
