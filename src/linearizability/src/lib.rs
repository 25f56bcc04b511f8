//! Was a recorded history of concurrent operations linearizable?
//!
//! Clients of a store record when each operation began and ended and what it answered. The history is *linearizable* if
//! every operation can be given one moment between its begin and its end so that, in the order of these moments, a store
//! that does one thing at a time gives the same answers.
//!
//! - [`search`] decides it for any sequential model: the search of Wing and Gong (1993) with the cache of Lowe (2017), as
//!   porcupine does it. It is exponential at worst, so it counts its steps and says [`Verdict::Unknown`] at a bound.
//! - [`key`] is the model of one key of etcd: puts, deletes, compare-and-set, reads, with revisions and versions. As no
//!   operation of this model writes two keys, a store is linearizable if each of its keys is (Herlihy and Wing's locality).
//! - [`store`] is the model of all keys together, with transactions on several of them, reads of several and leases. It needs
//!   no search, as it is stepped in the order of the revisions that a watch tells.
//! - [`line`] holds the revisions in the headers of all answers, over all keys, against real time.
//!
//! An operation whose outcome is not known (a timeout, a connection that broke) has no end: it may take effect at any
//! moment after its begin, or never.
//!
//! Times are of one clock that never goes back, in any unit; operations that touch in one moment count as concurrent.

pub mod key;
pub mod line;
pub mod search;
pub mod store;

pub use search::{Call, Model, Verdict, check};
