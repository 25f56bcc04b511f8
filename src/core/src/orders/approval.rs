//! What an approval is for.

use std::fmt::Write;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    hash::fnv1a,
    keyspace::{KeyRange, hex},
    placement::{Action, Step},
};

/// A step of a plan, told apart from others whatever the ids of the ownerships are by then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepKey {
    /// A split.
    Split {
        /// First key of the right part.
        #[serde(with = "hex")]
        at: Bytes,
    },
    /// A move.
    Move {
        /// The keys.
        range: KeyRange,
        /// Name of the destination.
        to: String,
    },
    /// A merge.
    Merge {
        /// What the two make together.
        range: KeyRange,
    },
}

impl StepKey {
    /// That of a step.
    pub fn of(step: &Step) -> Self {
        match &step.action {
            Action::Split { at, .. } => Self::Split { at: at.clone() },
            Action::Move { range, to, .. } => Self::Move { range: range.clone(), to: to.clone() },
            Action::Merge { range, .. } => Self::Merge { range: range.clone() },
        }
    }
}

/// A short name of a plan: the same as long as the plan has the same steps.
pub fn plan_id(steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps {
        // Writing to a string does not fail.
        let _ = write!(text, "{:?};", StepKey::of(step));
    }
    let hash = fnv1a(text.as_bytes());
    format!("{:08x}", (hash >> 32) ^ (hash & 0xffff_ffff))
}
