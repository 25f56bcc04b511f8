//! What the write-ahead log says: effects, not requests, so that replay decides nothing again.

use std::sync::Arc;

use bytes::Bytes;
use sharded_etcd_shard::ShardError;

use crate::{
    codec::{Decoder, Encoder, Malformed},
    mvcc::{Alarm, Changes, Store, VersionRef},
    values::{IN_MEMORY_BYTES_MAX, Look, Value, ValueFile},
};

const WRITE: u8 = 1;
const GRANT: u8 = 2;
const REVOKE: u8 = 3;
const COMPACT: u8 = 4;
const RAISE: u8 = 5;
const DISARM: u8 = 6;
const REMAINING: u8 = 7;

const OP_PUT: u8 = 0;
const OP_DELETE: u8 = 1;

/// One durable change of the store.
#[derive(Debug, Clone, Copy)]
pub enum Entry<'a> {
    /// Puts and deletes of one revision.
    Write(&'a Changes),
    /// A new lease.
    Grant {
        /// Its id.
        id: i64,
        /// Its time to live in seconds.
        ttl: i64,
    },
    /// How much of a lease's time is left after a restart.
    Remaining {
        /// Its id.
        id: i64,
        /// Seconds; 0 for all of them.
        seconds: i64,
    },
    /// A lease is gone, with its keys if it had any.
    Revoke {
        /// Its id.
        id: i64,
        /// The deletes of its keys.
        changes: Option<&'a Changes>,
    },
    /// History below the revision is compacted.
    Compact(i64),
    /// An alarm went up.
    Raise(Alarm),
    /// An alarm went down.
    Disarm(Alarm),
}

/// Versions whose values were encoded, each with where in the record its value begins; small ones are left out.
pub(crate) type Placed = Vec<(VersionRef, usize)>;

impl Entry<'_> {
    /// Appends the encoded entry. The versions are new, so that their values are in memory.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.encode_placed(out, &mut Vec::new());
    }

    /// Like [`Self::encode`], and says where in `out` the values are.
    pub(crate) fn encode_placed(&self, out: &mut Vec<u8>, placed: &mut Placed) {
        match *self {
            Entry::Write(changes) => {
                out.put_u8(WRITE);
                encode_changes(out, changes.as_slice(), placed);
            }
            Entry::Grant { id, ttl } => {
                out.put_u8(GRANT);
                out.put_i64(id);
                out.put_i64(ttl);
            }
            Entry::Revoke { id, changes } => {
                out.put_u8(REVOKE);
                out.put_i64(id);
                encode_changes(out, changes.map_or(&[], Changes::as_slice), placed);
            }
            Entry::Remaining { id, seconds } => {
                out.put_u8(REMAINING);
                out.put_i64(id);
                out.put_i64(seconds);
            }
            Entry::Compact(revision) => {
                out.put_u8(COMPACT);
                out.put_i64(revision);
            }
            Entry::Raise(alarm) => encode_alarm(out, RAISE, alarm),
            Entry::Disarm(alarm) => encode_alarm(out, DISARM, alarm),
        }
    }
}

fn encode_alarm(out: &mut Vec<u8>, tag: u8, alarm: Alarm) {
    out.put_u8(tag);
    out.put_i64(i64::from(alarm.kind));
    out.put_u64(alarm.member_id);
}

fn encode_changes(out: &mut Vec<u8>, changes: &[VersionRef], placed: &mut Placed) {
    out.put_varint(changes.len() as u64);
    let Some(first) = changes.first() else { return };
    out.put_i64(first.mod_revision);
    for version in changes {
        if version.is_live() {
            let Look::Here(value) = version.look() else {
                unreachable!("a value went to a file before its record");
            };
            out.put_u8(OP_PUT);
            out.put_bytes(&version.key);
            out.put_bytes(&value);
            if value.len() > IN_MEMORY_BYTES_MAX {
                placed.push((VersionRef::clone(version), out.len() - value.len()));
            }
            out.put_i64(version.lease);
        } else {
            out.put_u8(OP_DELETE);
            out.put_bytes(&version.key);
        }
    }
}

/// Why a recorded entry does not fit the store it is replayed on.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The bytes are no entry.
    #[error("the record is malformed")]
    Malformed,
    /// The entry was written for another revision than the store has.
    #[error("the record was written for revision {recorded}, the store is at {store}")]
    Revision {
        /// The revision in the record.
        recorded: i64,
        /// The revision that the store would give next.
        store: i64,
    },
    /// The entry deletes a key that is not there, or revokes an unknown lease.
    #[error("the record removes something that is not there")]
    Missing,
    /// The store refused the entry.
    #[error("the record does not apply")]
    Refused(#[source] ShardError),
}

impl From<Malformed> for ReplayError {
    fn from(_: Malformed) -> Self {
        ReplayError::Malformed
    }
}

/// Applies all entries of one log record to the store, handing each revision's changes to `each_revision`. The values
/// are copied.
pub fn replay(
    record: &Bytes,
    store: &mut Store,
    each_revision: impl FnMut(Changes),
) -> Result<(), ReplayError> {
    replay_from(record, None, store, each_revision)
}

/// Like [`replay`] with a record that begins at a byte of a file, where its values stay.
pub(crate) fn replay_from(
    record: &[u8],
    origin: Option<(&Arc<ValueFile>, u64)>,
    store: &mut Store,
    mut each_revision: impl FnMut(Changes),
) -> Result<(), ReplayError> {
    let mut input = Decoder::new(record);
    let value_at = |value: &[u8], left: usize| match origin {
        Some((file, begin)) => {
            let offset = (record.len() - left - value.len()) as u64;
            Value::stored(value, file, begin + offset)
        }
        None => Bytes::copy_from_slice(value).into(),
    };
    while !input.is_empty() {
        match input.u8()? {
            WRITE => {
                each_revision(replay_changes(&mut input, store, value_at)?.ok_or(ReplayError::Malformed)?);
            }
            GRANT => {
                let (id, ttl) = (input.i64()?, input.i64()?);
                store.grant(id, ttl);
            }
            REVOKE => {
                let id = input.i64()?;
                let changes = replay_changes(&mut input, store, value_at)?;
                // Its keys are gone by now, so this takes the lease itself away.
                store.forget_lease(id, changes.is_some()).then_some(()).ok_or(ReplayError::Missing)?;
                changes.into_iter().for_each(&mut each_revision);
            }
            REMAINING => {
                let id = input.i64()?;
                store.set_remaining(id, input.i64()?).then_some(()).ok_or(ReplayError::Missing)?;
            }
            COMPACT => store.compact(input.i64()?).map_err(ReplayError::Refused)?,
            tag @ (RAISE | DISARM) => {
                let kind = i32::try_from(input.i64()?).map_err(|_| ReplayError::Malformed)?;
                let alarm = Alarm { kind, member_id: input.u64()? };
                if tag == RAISE {
                    store.raise(alarm)
                } else {
                    store.disarm(alarm)
                };
            }
            _ => return Err(ReplayError::Malformed),
        }
    }
    Ok(())
}

fn replay_changes(
    input: &mut Decoder<'_>,
    store: &mut Store,
    value_at: impl Fn(&[u8], usize) -> Value,
) -> Result<Option<Changes>, ReplayError> {
    let count = input.varint()?;
    if count == 0 {
        return Ok(None);
    }
    let recorded = input.i64()?;
    if recorded != store.revision() + 1 {
        return Err(ReplayError::Revision { recorded, store: store.revision() + 1 });
    }
    let mut txn = store.write();
    for _ in 0..count {
        match input.u8()? {
            OP_PUT => {
                let (key, value) = (input.bytes()?, input.bytes()?);
                let value = value_at(value, input.left());
                let lease = input.i64()?;
                txn.put_value(key, value, lease);
            }
            OP_DELETE => {
                let (deleted, _) = txn.delete_range(input.bytes()?, &[]);
                if deleted != 1 {
                    return Err(ReplayError::Missing);
                }
            }
            _ => return Err(ReplayError::Malformed),
        }
    }
    Ok(txn.end())
}
