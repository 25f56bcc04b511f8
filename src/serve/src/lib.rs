//! gRPC servers on single-threaded runtimes, and what makes them cheap for whoever answers from another thread.
//!
//! Measured per request, a runtime that moves tasks between threads costs several µs more than one that does not: a
//! request wakes the task of its connection, that wakes the request's, that the connection's again, and each may be on
//! another thread. So [`serve_on_threads`] keeps a connection where it is, and a [`Mailbox`] brings what other threads
//! have for it with one wake-up for many answers.

//!
//! Also what every server has beside its own calls: [`ServerHealth`], [`Recipes`] and [`probes`].

mod health;
mod mailbox;
mod parts;
pub mod probes;
mod recipes;
mod threads;
mod too_large;

pub use health::ServerHealth;
pub use mailbox::{Asker, Mailbox, Round, ask, home, thread};
pub use parts::in_parts;
pub use recipes::Recipes;
pub use threads::{ServeError, serve_on_threads};
