//! The shard manager: observe → plan → write down → execute.
//!
//! One of any number of managers leads; it takes shards in and out, plans ([`sharded_etcd_core::placement`]), splits,
//! moves and merges ranges ([`sharded_etcd_core::moves`]) and cuts history off. Whatever it does is stored before it is
//! relied on and guarded where it is stored, so a manager may be killed, doubled or replaced at any moment.

mod admin;
mod attend;
mod control;
mod error;
mod held;
mod history;
mod leader;
mod load;
mod manager;
mod members;
mod metrics;
mod mover;
mod orders;
mod progress;
mod report;
mod reshape;
mod resting;
mod sizes;
mod start;
mod status;

pub use admin::{AdminService, ReadResource};
pub use error::ManagerError;
pub use held::Held;
pub use history::HistoryOptions;
pub use load::Loads;
pub use manager::{Manager, ManagerOptions};
pub use metrics::MoveCounters;
pub use mover::{
    MoverContext, MoverOptions, Outcome,
    failpoint::{Failpoints, Point, Proceed, When},
    run_move,
    throttle::Throttle,
};
pub use progress::{FinishedMove, MoveProgress, Progress};
pub use report::{KeyLoad, LoadStatus, RangeLoad, ShardLoad};
pub use reshape::Reshaper;
pub use sizes::{RangeSize, Sizes};
pub use start::{StartError, start_topology};
pub use status::{ManagerStatus, MoveReport, Report, ShardReport};
