//! `plan`: what a file would change.

use std::fmt::Write;

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sharded_etcd_core::topology::shard_name;
use sharded_etcd_crd::{
    ShardedEtcd,
    status::{ShardPhase, ShardedEtcdStatus},
};

use crate::{
    cli::{OutputFormat, PlanArgs},
    query::{Admin, decode},
    table::bytes,
    up::desired::{Desired, in_file},
};

/// What is printed, and whether there is anything to do.
pub struct Answer {
    /// The text.
    pub text: String,
    /// There are changes.
    pub has_changes: bool,
}

/// What the file would change.
///
/// # Errors
/// If the file makes no sense, or no topology answers.
pub async fn run(args: PlanArgs) -> Result<Answer> {
    let text = std::fs::read_to_string(&args.file)
        .with_context(|| format!("cannot read {}", args.file.display()))?;
    let desired = Desired::of_file(&text).map_err(|refused| anyhow!(in_file(&args.file, &refused)))?;
    let mut admin = Admin::connect(&args.query.endpoint).await?;
    let status: ShardedEtcdStatus = decode(&admin.status().await?, "status")?;
    let resource = to_json(&desired.resource)?;
    let plan: Value = decode(&admin.plan(resource).await?, "plan")?;
    let shards = ShardChanges::between(&status, desired.topology.shards);
    let known: Known =
        serde_json::from_value(plan.clone()).context("the plan is not readable by this release")?;
    let has_changes = !shards.is_empty() || !known.steps.is_empty();
    let text = match args.query.output {
        OutputFormat::Json => {
            let mut shown = plan;
            if let Some(object) = shown.as_object_mut() {
                object.insert("shards".to_owned(), json!(shards));
                object.insert("changes".to_owned(), json!(has_changes));
            }
            serde_json::to_string_pretty(&shown).context("cannot write the plan as JSON")?
        }
        OutputFormat::Table => text_of(&shards, &known),
    };
    Ok(Answer { text, has_changes })
}

/// A resource as JSON.
///
/// # Errors
/// None in practice: a resource is plain data.
pub fn to_json(resource: &ShardedEtcd) -> Result<String> {
    serde_json::to_string(resource).context("cannot write the resource as JSON")
}

/// Shards that come and go.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct ShardChanges {
    added: Vec<String>,
    removed: Vec<String>,
}

impl ShardChanges {
    fn between(status: &ShardedEtcdStatus, wanted: u32) -> Self {
        let wanted: Vec<_> = (0..wanted).map(shard_name).collect();
        let is_there = |name: &String| status.topology.iter().any(|shard| shard.shard == *name);
        let goes = status.topology.iter().filter(|shard| !wanted.contains(&shard.shard));
        // One that drains already is no change; the moves that are left to do are in the plan.
        let goes = goes.filter(|shard| shard.phase != ShardPhase::Draining).map(|shard| shard.shard.clone());
        Self {
            removed: goes.collect(),
            added: wanted.iter().filter(|name| !is_there(name)).cloned().collect(),
        }
    }

    fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }
}

/// What is shown of a plan.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Known {
    truncated: bool,
    steps: Vec<KnownStep>,
    waits: Vec<KnownWait>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct KnownStep {
    action: String,
    start: String,
    end: String,
    at: Option<String>,
    from: String,
    to: Option<String>,
    keys: i64,
    bytes: i64,
    load: i64,
    reason: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct KnownWait {
    what: String,
    reason: String,
}

fn text_of(shards: &ShardChanges, plan: &Known) -> String {
    let mut out = String::new();
    for name in &shards.added {
        let _ = writeln!(out, "add {name}");
    }
    for name in &shards.removed {
        let _ = writeln!(out, "remove {name} once it is empty");
    }
    for step in &plan.steps {
        let start = if step.start.is_empty() { "start" } else { &step.start };
        let end = if step.end.is_empty() { "end" } else { &step.end };
        let _ = write!(out, "{} {start} to {end}, {}", step.action, step.from);
        if let Some(to) = &step.to {
            let _ = write!(out, " → {to}");
        }
        if let Some(at) = &step.at {
            let _ = write!(out, ", at {at}");
        }
        let _ = write!(out, ", {} keys, {}", step.keys, bytes(step.bytes));
        if step.load > 0 {
            let _ = write!(out, ", {} ops/s", step.load);
        }
        let _ = writeln!(out, ": {}", step.reason);
    }
    if plan.truncated {
        let _ = writeln!(out, "… and more, planned once these are done");
    }
    for wait in &plan.waits {
        let _ = writeln!(out, "not yet {}: {}", wait.what, wait.reason);
    }
    let moves = plan.steps.iter().filter(|step| step.action == "move");
    let (count, moved) = moves.fold((0, 0), |(count, moved), step| (count + 1, moved + step.bytes));
    if plan.steps.is_empty() && shards.is_empty() {
        out.push_str("nothing to do");
    } else {
        let _ = write!(out, "{} steps, {count} of them moves of {} together", plan.steps.len(), bytes(moved));
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use sharded_etcd_crd::status::ShardStatus;

    use super::*;

    fn status(shards: &[(&str, ShardPhase)]) -> ShardedEtcdStatus {
        let shard = |(name, phase): &(&str, ShardPhase)| ShardStatus {
            incarnation: None,
            shard: (*name).to_owned(),
            phase: *phase,
            members: 1,
            ready: 1,
            leader: None,
            db_size: 0,
            keys: 0,
            bytes: 0,
            ranges: 0,
            message: None,
        };
        ShardedEtcdStatus { topology: shards.iter().map(shard).collect(), ..ShardedEtcdStatus::default() }
    }

    #[test]
    fn shards_that_come_and_go_are_changes() {
        use ShardPhase::{Draining, Serving};
        let now = status(&[("shard-0", Serving), ("shard-1", Serving), ("shard-2", Draining)]);
        assert!(ShardChanges::between(&now, 2).is_empty());
        assert_eq!(ShardChanges::between(&now, 1).removed, ["shard-1"]);
        assert_eq!(ShardChanges::between(&now, 4).added, ["shard-3"]);
    }

    #[test]
    fn a_plan_for_people() {
        assert_eq!(text_of(&ShardChanges::default(), &Known::default()), "nothing to do");
        let shards = ShardChanges { added: vec!["shard-1".into()], removed: Vec::new() };
        let plan: Known = serde_json::from_value(json!({
            "steps": [
                {"action": "split", "start": "", "end": "", "at": "/m/", "from": "shard-0", "keys": 4, "bytes": 2048,
                 "ready": true, "reason": "to part it"},
                {"action": "move", "start": "/m/", "end": "", "from": "shard-0", "to": "shard-1", "keys": 2,
                 "bytes": 1024, "load": 700, "ready": false, "reason": "shard-0 is full"},
            ],
            "waits": [{"what": "shard-1", "reason": "joining"}],
        }))
        .unwrap();
        let expected = "\
add shard-1
split start to end, shard-0, at /m/, 4 keys, 2.0 KiB: to part it
move /m/ to end, shard-0 → shard-1, 2 keys, 1.0 KiB, 700 ops/s: shard-0 is full
not yet shard-1: joining
2 steps, 1 of them moves of 1.0 KiB together";
        assert_eq!(text_of(&shards, &plan), expected);
    }
}
