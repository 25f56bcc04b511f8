//! The pure heart of the project: no clock, no IO, no randomness of its own.
//!
//! Functions here take what happened and give what follows; the shells (`line`, `proxy`, `manager`, `app`) do it.

pub mod check;
pub mod hash;
pub mod keyspace;
pub mod lease;
pub mod line;
pub mod load;
pub mod moves;
pub mod orders;
pub mod placement;
pub mod range_stream;
pub mod records;
pub mod sabotage;
pub mod topology;
pub mod translate;
