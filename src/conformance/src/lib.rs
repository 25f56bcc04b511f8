//! One suite of etcd v3 API cases for every server of this project, and for etcd itself.
//!
//! A [`Case`] has a name, a sentence that says what it requires, and a check that talks gRPC. It keeps to keys under a
//! prefix of its own, and compares revisions only with those that the target answered, so a target may serve several
//! cases at once. Where real etcd answers differently from a case, the case is wrong.
//!
//! Keys of a case lie in three directories, `a/`, `b/` and `c/` under its prefix. [`Suite::boundaries`] names the
//! places where a sharded target has to be cut so that these are on different shards: requests over a whole case then
//! cross shards, while transactions that write keep to one directory.
//!
//! [`run()`] runs a suite against an endpoint and reports everything that is not as required; a [`Target`] names what
//! its kind of server does not do, each with the reason, and [`table()`] makes a document of that.

mod api;
pub mod cases;
mod check;
mod request;
mod run;
mod suite;
mod table;
mod watching;

pub use api::Api;
pub use check::{Check, Ctx, Stop};
pub use run::run;
pub use suite::{Case, Lack, Need, Suite, Target};
pub use table::table;
