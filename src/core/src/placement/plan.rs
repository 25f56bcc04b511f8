//! What the planner gives.

use std::fmt;

use bytes::Bytes;
use serde::Serialize;

use super::text::{bytes_text, load_text, work_text};
use crate::keyspace::{KeyRange, Printable, Rid};

/// What to do next, and why the rest is not done. Immutable: after any change a new one is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Generation of the range map that this was made for; it says nothing about any other.
    pub parent_generation: u64,
    /// What to do, in order.
    pub steps: Vec<Step>,
    /// What is not done, and why.
    pub waits: Vec<Wait>,
    /// True if no shard is above 1.2 times its share of keys, bytes or load, small differences left aside.
    pub balanced: bool,
    /// How keys are spread now.
    pub keys: Figures,
    /// How bytes are spread now.
    pub bytes: Figures,
    /// How load is spread, in operations a second at its highest of late; see [`crate::load::Rates::work`].
    pub load: Figures,
    /// True if the way to the goal is longer than the plan.
    pub truncated: bool,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What is done.
    pub action: Action,
    /// The shard that owns the data before the step.
    pub from: String,
    /// Keys that the step moves, or that the ranges it changes hold.
    pub keys: u64,
    /// Bytes that the step moves, or that the ranges it changes hold.
    pub bytes: u64,
    /// Load of these keys, in operations a second.
    pub work: u64,
    /// Why, for people.
    pub reason: String,
    /// True if it can begin now, beside all others that are ready: nothing before it has to be done first, and
    /// neither the mode nor the number of concurrent moves forbids it.
    pub ready: bool,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A range becomes two, on the same shard, at the cost of metadata only.
    Split {
        /// The range's ownership now. If an earlier step of the plan splits it already, the part is in `range`.
        rid: Rid,
        /// The range to split.
        range: KeyRange,
        /// First key of the right part.
        at: Bytes,
    },
    /// A range goes to another shard.
    Move {
        /// The range's ownership now. If an earlier step of the plan splits it, the ownership that is moved gets its
        /// id only then; `range` names it in any case.
        rid: Rid,
        /// The keys that move.
        range: KeyRange,
        /// Name of the shard that takes it.
        to: String,
    },
    /// Two neighbours on one shard become one.
    Merge {
        /// Ownership of the left range.
        left: Rid,
        /// Ownership of the right range.
        right: Rid,
        /// What they make together.
        range: KeyRange,
    },
}

impl Action {
    /// The keys that it is about.
    pub fn range(&self) -> &KeyRange {
        match self {
            Self::Split { range, .. } | Self::Move { range, .. } | Self::Merge { range, .. } => range,
        }
    }
}

/// Something that is not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wait {
    /// What waits: a shard or a range, for people.
    pub what: String,
    /// What it waits for, for people.
    pub reason: String,
}

/// How one measure is spread over the shards that are to hold data.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// Over all shards, those that leave included.
    pub total: u64,
    /// The mean of the shards that are to hold data.
    pub mean: u64,
    /// The fullest shard.
    pub highest_shard: String,
    /// What the fullest shard holds.
    pub highest: u64,
    /// What the fullest shard holds in hundredths of its fair share (the mean, if all weigh the same); 100 when empty.
    pub highest_percent: u64,
}

impl Plan {
    /// The steps that can begin now.
    pub fn ready(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|step| step.ready)
    }

    /// Bytes that all moves of the plan carry.
    pub fn moved_bytes(&self) -> u64 {
        self.moves().map(|step| step.bytes).sum()
    }

    /// Keys that all moves of the plan carry.
    pub fn moved_keys(&self) -> u64 {
        self.moves().map(|step| step.keys).sum()
    }

    fn moves(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|step| matches!(step.action, Action::Move { .. }))
    }
}

impl Step {
    /// What it does, for people, without figures and reason.
    pub fn what(&self) -> String {
        match &self.action {
            Action::Split { range, at, .. } => format!("split {range} on {} at {}", self.from, Printable(at)),
            Action::Move { range, to, .. } => format!("move {range} from {} to {to}", self.from),
            Action::Merge { range, .. } => format!("merge into {range} on {}", self.from),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.what(), load_text(self.keys, self.bytes))?;
        if self.work > 0 {
            write!(f, ", {}", work_text(self.work))?;
        }
        write!(f, "): {}", self.reason)
    }
}

/// For people: one line a step and a wait.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.balanced { "balanced" } else { "not balanced" };
        write!(f, "{state}: ")?;
        let figure = |f: &mut fmt::Formatter<'_>, figures: &Figures, what: &str, highest: String| {
            let (whole, part) = (figures.highest_percent / 100, figures.highest_percent % 100);
            write!(f, "{} has {highest} {what}, {whole}.{part:02} × its share", figures.highest_shard)
        };
        figure(f, &self.keys, "keys", self.keys.highest.to_string())?;
        f.write_str("; ")?;
        figure(f, &self.bytes, "of data", bytes_text(self.bytes.highest))?;
        if self.load.total > 0 {
            f.write_str("; ")?;
            figure(f, &self.load, "of load", work_text(self.load.highest))?;
        }
        for step in &self.steps {
            let mark = if step.ready { "now" } else { "then" };
            write!(f, "\n{mark}: {step}")?;
        }
        for wait in &self.waits {
            write!(f, "\nwaits: {}: {}", wait.what, wait.reason)?;
        }
        Ok(())
    }
}

/// What `plan -o json` prints; keys are shown as in the resource's status.
impl Serialize for Plan {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Shown<'a> {
            generation: u64,
            balanced: bool,
            keys: &'a Figures,
            bytes: &'a Figures,
            load: &'a Figures,
            truncated: bool,
            steps: Vec<ShownStep<'a>>,
            waits: &'a [Wait],
        }
        Shown {
            generation: self.parent_generation,
            balanced: self.balanced,
            keys: &self.keys,
            bytes: &self.bytes,
            load: &self.load,
            truncated: self.truncated,
            steps: self.steps.iter().map(ShownStep::of).collect(),
            waits: &self.waits,
        }
        .serialize(serializer)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownStep<'a> {
    action: &'static str,
    start: String,
    end: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<String>,
    from: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<&'a str>,
    keys: u64,
    bytes: u64,
    load: u64,
    ready: bool,
    reason: &'a str,
}

impl<'a> ShownStep<'a> {
    fn of(step: &'a Step) -> Self {
        let range = step.action.range();
        let (action, at, to) = match &step.action {
            Action::Split { at, .. } => ("split", Some(at.escape_ascii().to_string()), None),
            Action::Move { to, .. } => ("move", None, Some(to.as_str())),
            Action::Merge { .. } => ("merge", None, None),
        };
        Self {
            action,
            start: range.start.escape_ascii().to_string(),
            end: range.end.escape_ascii().to_string(),
            at,
            from: &step.from,
            to,
            keys: step.keys,
            bytes: step.bytes,
            load: step.work,
            ready: step.ready,
            reason: &step.reason,
        }
    }
}
