//! Txn.

mod compare;
mod errors;
mod nested;
mod operations;
mod read_only;

use crate::Suite;

pub(super) fn add(suite: &mut Suite) {
    compare::add(suite);
    operations::add(suite);
    nested::add(suite);
    read_only::add(suite);
    errors::add(suite);
}
