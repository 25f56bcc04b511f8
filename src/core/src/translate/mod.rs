//! Translation between what a client sees (revisions of the line) and what a shard stores (local revisions, overrides).

mod compare;
mod kv;
mod range;
mod txn;

pub use compare::{Translated, evaluate, impossible, translate_compare};
pub use kv::{StoredOverride, client_kv};
pub use range::{finish_range, has_revision_filters, is_default_order, keys_needed};
pub use txn::{
    Built, Decided, LeaseGuard, NEVER_GRANTED, Shape, ShapeOp, TxnBuilder, WriteAnswer, explicit_ranges,
    is_read_only, leases, overrides_of, read_answer, touched,
};
