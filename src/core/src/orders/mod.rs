//! What a person asks the shard manager to do by hand: `move`, `split`, `merge`, `abort`, `approve`.
//!
//! An order is written down in meta, so it outlives whoever gave it and whoever leads. The leading shard manager asks
//! [`next`] in each of its rounds and does what it says, until the order is done or refused. Every order says what should
//! be, not what to do: asking again after a part of it was done goes on from there.

mod approval;
mod next;

#[cfg(test)]
mod tests;

use std::{collections::HashMap, fmt};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    keyspace::{KeyRange, Printable, RangeMap, Rid, ShardIx, hex},
    records::{MoveRecord, Record},
    topology::Topology,
};

pub use approval::{StepKey, plan_id};
pub use next::{Next, next};

/// All orders: [`OrderRecord`].
pub const ORDERS_PREFIX: &[u8] = b"orders/";
/// Orders that may wait at the same time.
pub const ORDERS_MAX: usize = 100;

/// Key of an order.
pub fn order_key(id: &str) -> Bytes {
    format!("orders/{id}").into()
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// All keys of a range shall be on one shard.
    Move {
        /// The keys; boundaries are made where the range has none.
        range: KeyRange,
        /// Name of the shard.
        to: String,
    },
    /// A range shall begin at a key.
    Split {
        /// The key.
        #[serde(with = "hex")]
        at: Bytes,
    },
    /// No range shall begin at a key.
    Merge {
        /// The key.
        #[serde(with = "hex")]
        at: Bytes,
    },
    /// Moves of these keys shall end where they began.
    Abort {
        /// The keys.
        range: KeyRange,
    },
    /// What the planner wants in mode Manual shall be done.
    Approve {
        /// The plan that was looked at, see [`plan_id`].
        plan: String,
    },
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Move { range, to } => write!(f, "move {range} to {to}"),
            Self::Split { at } => write!(f, "split at {}", Printable(at)),
            Self::Merge { at } => write!(f, "merge at {}", Printable(at)),
            Self::Abort { range } => write!(f, "abort the moves of {range}"),
            Self::Approve { plan } => write!(f, "approve plan {plan}"),
        }
    }
}

/// How far an order is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OrderState {
    /// No shard manager has looked at it yet.
    Waiting,
    /// A shard manager has taken it up, and maybe done a part.
    Running,
    /// It is as was asked for.
    Done,
    /// It was refused, or taken back; the message says why.
    Failed,
}

/// An order in meta: `orders/<id>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderRecord {
    /// What is asked for.
    pub order: Order,
    /// How far it is.
    pub state: OrderState,
    /// What was done, what it waits for, or why it failed.
    pub message: String,
    /// The steps that an approval is for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepKey>,
}

impl OrderRecord {
    /// A new order.
    pub fn new(order: Order) -> Self {
        Self { order, state: OrderState::Waiting, message: String::new(), steps: Vec::new() }
    }

    /// True if nothing more will be done for it.
    pub fn is_over(&self) -> bool {
        matches!(self.state, OrderState::Done | OrderState::Failed)
    }
}

impl Record for OrderRecord {
    const WHAT: &'static str = "an order (orders/)";
}

/// A shard, as far as orders are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardAt {
    /// Its name.
    pub name: String,
    /// Whether ranges may be given to it: it has joined and is not to leave.
    pub takes: bool,
    /// Why nothing can be done with it now, if so.
    pub trouble: Option<String>,
    /// Bytes of its database that are in use, history included; 0 if that is not known.
    pub used_bytes: u64,
}

/// What an order is looked at with.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// The range map.
    pub map: &'a RangeMap,
    /// The shards, by join number.
    pub shards: &'a [ShardAt],
    /// Bytes of keys and values, by ownership; those that were not read yet are not in it.
    pub bytes: &'a HashMap<Rid, u64>,
    /// Moves that are written down.
    pub moves: &'a [MoveRecord],
    /// What is wanted.
    pub topology: &'a Topology,
}

impl Scene<'_> {
    fn name(&self, shard: ShardIx) -> &str {
        self.shards.get(shard.index()).map_or("a shard that is not known", |s| s.name.as_str())
    }

    fn trouble(&self, shard: ShardIx) -> Option<&str> {
        self.shards.get(shard.index())?.trouble.as_deref()
    }
}
