//! `status`: the topology as it is.

use std::fmt::Write;

use anyhow::{Context, Result};
use sharded_etcd_crd::status::{ConditionStatus, LoadStatus, ShardPhase, ShardedEtcdStatus};

use crate::{
    cli::{OutputFormat, StatusArgs},
    query::{Admin, decode},
    table::{Table, bytes},
};

/// The text to print.
///
/// # Errors
/// If no topology answers.
pub async fn run(args: StatusArgs) -> Result<String> {
    let json = Admin::connect(&args.query.endpoint).await?.status().await?;
    let status: ShardedEtcdStatus = decode(&json, "status")?;
    Ok(match args.query.output {
        OutputFormat::Json => {
            serde_json::to_string_pretty(&status).context("cannot write the status as JSON")?
        }
        OutputFormat::Table => text(&status),
    })
}

/// A status for people.
fn text(status: &ShardedEtcdStatus) -> String {
    let mut out = String::new();
    let endpoint = status.endpoint.as_deref().unwrap_or("unknown");
    let _ = writeln!(
        out,
        "endpoint {endpoint}, {} shards, {} keys, {}, revision {}, compacted below {}",
        status.shards,
        status.keys,
        bytes(status.bytes),
        status.revision,
        status.compact_revision
    );
    for condition in &status.conditions {
        let state = match condition.status {
            ConditionStatus::True => "yes",
            ConditionStatus::False => "no",
            ConditionStatus::Unknown => "unknown",
        };
        let _ = writeln!(out, "{}: {state}, {}", condition.type_, condition.message);
    }
    let mut shards = Table::new(&["SHARD", "PHASE", "KEYS", "BYTES", "RANGES", "DATABASE", "MEMBERS", ""]);
    for shard in &status.topology {
        shards.row([
            shard.shard.clone(),
            phase(shard.phase).to_owned(),
            shard.keys.to_string(),
            bytes(shard.bytes),
            shard.ranges.to_string(),
            bytes(shard.db_size),
            format!("{}/{}", shard.ready, shard.members),
            shard.message.clone().unwrap_or_default(),
        ]);
    }
    let _ = writeln!(out, "\n{shards}");
    let mut ranges = Table::new(&["RANGE", "", "SHARD", "KEYS", "BYTES"]);
    let figure = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    for range in &status.range_map.ranges {
        ranges.row([
            if range.start.is_empty() { "start".to_owned() } else { range.start.clone() },
            if range.end.is_empty() { "end".to_owned() } else { range.end.clone() },
            range.shard.clone(),
            figure(range.keys.map(|n| n.to_string())),
            figure(range.bytes.map(bytes)),
        ]);
    }
    let _ = write!(out, "\n{ranges}");
    let more = status.range_map.total - i64::try_from(status.range_map.ranges.len()).unwrap_or(i64::MAX);
    if more > 0 {
        let _ = write!(out, "\n… and {more} more");
    }
    let mut moves = Table::new(&["MOVE", "FROM", "TO", "PHASE", "DONE", "WHY"]);
    for m in &status.moves {
        moves.row([
            m.range.clone(),
            m.from.clone(),
            m.to.clone(),
            m.phase.clone(),
            format!("{} %", m.progress),
            m.reason.clone(),
        ]);
    }
    if !moves.is_empty() {
        let _ = write!(out, "\n\n{moves}");
    }
    if let Some(load) = &status.load {
        write_load(&mut out, load);
    }
    out
}

/// What clients do, by the second.
fn write_load(out: &mut String, load: &LoadStatus) {
    let bound = |key: &str, open: &str| if key.is_empty() { open.to_owned() } else { key.to_owned() };
    let mut shards = Table::new(&["LOAD", "READS/S", "WRITES/S", "READ/S", "WRITTEN/S", "EVENTS/S", "OPS/S"]);
    for shard in &load.shards {
        shards.row([
            shard.shard.clone(),
            shard.reads.to_string(),
            shard.writes.to_string(),
            bytes(shard.read_bytes),
            bytes(shard.written_bytes),
            shard.watch_events.to_string(),
            shard.operations.to_string(),
        ]);
    }
    let _ = write!(out, "\n\n{shards}");
    let mut ranges = Table::new(&["BUSY RANGE", "", "SHARD", "READS/S", "WRITES/S", "OPS/S"]);
    for range in &load.ranges {
        ranges.row([
            bound(&range.start, "start"),
            bound(&range.end, "end"),
            range.shard.clone(),
            range.reads.to_string(),
            range.writes.to_string(),
            range.operations.to_string(),
        ]);
    }
    if !ranges.is_empty() {
        let _ = write!(out, "\n\n{ranges}");
    }
    let mut keys = Table::new(&["HOT KEY", "SHARD", "OPS/S"]);
    for key in &load.keys {
        keys.row([key.key.clone(), key.shard.clone(), key.operations.to_string()]);
    }
    if !keys.is_empty() {
        let _ = write!(out, "\n\n{keys}");
    }
}

fn phase(phase: ShardPhase) -> &'static str {
    match phase {
        ShardPhase::Joining => "joining",
        ShardPhase::Serving => "serving",
        ShardPhase::Draining => "draining",
        ShardPhase::Unreachable => "unreachable",
        ShardPhase::Quarantined => "quarantined",
    }
}

#[cfg(test)]
mod tests {
    use sharded_etcd_crd::status::{
        Condition, KeyLoad, MoveStatus, RangeLoad, RangeMapStatus, RangeStatus, ShardLoad, ShardStatus,
    };

    use super::*;

    #[test]
    fn a_status_for_people() {
        let status = ShardedEtcdStatus {
            endpoint: Some("http://127.0.0.1:2379".into()),
            shards: 1,
            keys: 7,
            bytes: 2048,
            revision: 9,
            compact_revision: 0,
            conditions: vec![Condition {
                type_: "Ready".into(),
                status: ConditionStatus::True,
                reason: "Serving".into(),
                message: "all shards serve".into(),
                last_transition_time: None,
                observed_generation: None,
            }],
            topology: vec![ShardStatus {
                incarnation: None,
                shard: "shard-0".into(),
                phase: ShardPhase::Serving,
                members: 1,
                ready: 1,
                leader: None,
                db_size: 4096,
                keys: 7,
                bytes: 2048,
                ranges: 2,
                message: None,
            }],
            range_map: RangeMapStatus {
                generation: 3,
                total: 2,
                ranges: vec![RangeStatus {
                    start: String::new(),
                    end: "/m/".into(),
                    shard: "shard-0".into(),
                    keys: Some(7),
                    bytes: None,
                    rid: "b".into(),
                }],
            },
            moves: vec![MoveStatus {
                range: "[\"/m/\", end)".into(),
                from: "shard-0".into(),
                to: "shard-1".into(),
                phase: "copy".into(),
                progress: 40,
                stall_ms: None,
                reason: "to balance".into(),
            }],
            load: Some(LoadStatus {
                shards: vec![ShardLoad {
                    shard: "shard-0".into(),
                    reads: 900,
                    writes: 20,
                    read_bytes: 2048,
                    written_bytes: 100,
                    watch_events: 7,
                    operations: 980,
                }],
                ranges: vec![RangeLoad {
                    start: String::new(),
                    end: "/m/".into(),
                    shard: "shard-0".into(),
                    reads: 900,
                    writes: 20,
                    operations: 980,
                }],
                keys: vec![KeyLoad { key: "/a/hot".into(), shard: "shard-0".into(), operations: 500 }],
            }),
            ..ShardedEtcdStatus::default()
        };
        let expected = "\
endpoint http://127.0.0.1:2379, 1 shards, 7 keys, 2.0 KiB, revision 9, compacted below 0
Ready: yes, all shards serve

SHARD     PHASE     KEYS   BYTES     RANGES   DATABASE   MEMBERS
shard-0   serving   7      2.0 KiB   2        4.0 KiB    1/1

RANGE         SHARD     KEYS   BYTES
start   /m/   shard-0   7      -
… and 1 more

MOVE           FROM      TO        PHASE   DONE   WHY
[\"/m/\", end)   shard-0   shard-1   copy    40 %   to balance

LOAD      READS/S   WRITES/S   READ/S    WRITTEN/S   EVENTS/S   OPS/S
shard-0   900       20         2.0 KiB   100 B       7          980

BUSY RANGE         SHARD     READS/S   WRITES/S   OPS/S
start        /m/   shard-0   900       20         980

HOT KEY   SHARD     OPS/S
/a/hot    shard-0   500";
        assert_eq!(text(&status), expected);
    }
}
