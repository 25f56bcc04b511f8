//! The shard manager: observe → plan → write down → execute.

mod error;
pub mod mover;
mod progress;

pub use error::ManagerError;
pub use mover::{
    MoverContext, MoverOptions, Outcome,
    failpoint::{Failpoints, Point, Proceed, When},
    run_move,
    throttle::Throttle,
};
pub use progress::{FinishedMove, MoveCounters, MoveProgress, Progress};
