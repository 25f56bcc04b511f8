//! The cases, by call.

mod auth;
mod cluster;
mod compact;
mod delete;
mod election;
mod health;
mod lease;
mod limits;
mod lock;
mod maintenance;
mod put;
mod range;
mod range_stream;
mod recipes;
mod texts;
mod txn;
mod watch;

use crate::Suite;

/// All cases.
pub fn suite() -> Suite {
    let mut suite = Suite::default();
    range::add(&mut suite);
    range_stream::add(&mut suite);
    put::add(&mut suite);
    delete::add(&mut suite);
    txn::add(&mut suite);
    lease::add(&mut suite);
    watch::add(&mut suite);
    maintenance::add(&mut suite);
    cluster::add(&mut suite);
    auth::add(&mut suite);
    limits::add(&mut suite);
    recipes::add(&mut suite);
    lock::add(&mut suite);
    election::add(&mut suite);
    health::add(&mut suite);
    compact::add(&mut suite);
    suite
}
