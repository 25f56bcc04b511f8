//! gRPC servers on single-threaded runtimes, and what makes them cheap for whoever answers from another thread.
//!
//! Measured per request, a runtime that moves tasks between threads costs several µs more than one that does not: a
//! request wakes the task of its connection, that wakes the request's, that the connection's again, and each may be on
//! another thread. So [`serve_on_threads`] keeps a connection where it is, and a [`Mailbox`] brings what other threads
//! have for it with one wake-up for many answers.

mod mailbox;
mod parts;
mod threads;
mod too_large;

pub use mailbox::{Asker, Mailbox, Round, ask, home, thread};
pub use parts::in_parts;
pub use threads::{ServeError, serve_on_threads};
