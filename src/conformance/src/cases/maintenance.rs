//! Maintenance.

use pb::alarm_request::AlarmAction;
use sharded_etcd_etcd_api::messages as pb;
use tonic::{
    Code::{DataLoss, OutOfRange, ResourceExhausted},
    Response, Status,
};

use super::texts::{COMPACTED, CORRUPT, FAR, FUTURE, NO_SPACE};
use crate::{
    Need, Suite,
    check::{Check, Ctx, needed, revision},
    request::{put, txn},
};

async fn status(c: &Ctx) -> Check<pb::StatusResponse> {
    let answer = c.api.maintenance.clone().status(pb::StatusRequest {}).await;
    Ok(needed("Status", answer)?.into_inner())
}

async fn alarm(c: &Ctx, action: AlarmAction, kind: pb::AlarmType) -> Result<pb::AlarmResponse, Status> {
    let request = pb::AlarmRequest { action: action.into(), member_id: 0, alarm: kind.into() };
    c.api.maintenance.clone().alarm(request).await.map(Response::into_inner)
}

async fn hash_kv(c: &Ctx, revision: i64) -> Result<pb::HashKvResponse, Status> {
    let request = pb::HashKvRequest { revision };
    c.api.maintenance.clone().hash_kv(request).await.map(Response::into_inner)
}

pub(super) fn add(suite: &mut Suite) {
    suite.case(
        "maintenance/status/version",
        "the version is one of etcd 3.7, which clients parse",
        |c| async move {
            let status = status(&c).await?;
            let parts: Vec<_> = status.version.split('.').map(str::parse::<u32>).collect();
            c.holds("it has three numbers", parts.len() == 3 && parts.iter().all(Result::is_ok));
            c.holds("it is a 3.7", status.version.starts_with("3.7."));
            Ok(())
        },
    );
    suite.case("maintenance/status/leader", "there is a leader, a term and an index", |c| async move {
        let status = status(&c).await?;
        c.holds("leader", status.leader != 0);
        c.holds("term", status.raft_term > 0);
        c.holds("index", status.raft_index > 0 && status.raft_applied_index > 0);
        c.same("learner", status.is_learner, false);
        c.same("errors", status.errors, Vec::<String>::new());
        Ok(())
    });
    suite.case(
        "maintenance/status/sizes",
        "sizes are positive, and in use is not more than there is",
        |c| async move {
            c.put("b/1", "x").await?;
            let status = status(&c).await?;
            c.holds("size", status.db_size > 0);
            c.holds("size in use", status.db_size_in_use > 0 && status.db_size_in_use <= status.db_size);
            c.holds("quota", status.db_size_quota > 0);
            Ok(())
        },
    );
    suite
        .case(
            "maintenance/status/header",
            "the header is not before an earlier write and names the member that answers others",
            |c| async move {
                let at = c.put("b/1", "x").await?;
                let read = c.range(c.all()).await?.header.unwrap_or_default();
                let header = status(&c).await?.header.unwrap_or_default();
                c.holds("revision", header.revision >= at);
                c.same("identity", (header.cluster_id, header.member_id), (read.cluster_id, read.member_id));
                Ok(())
            },
        )
        .needs(crate::Need::OneMember);
    suite.case("maintenance/status/storage-version", "the storage version is told", |c| async move {
        // etcd's monitor writes it down a moment after the start.
        c.until("it is a 3.7", || async {
            Ok(status(&c).await?.storage_version.starts_with("3.7.").then_some(()))
        })
        .await
    });
    suite.case("maintenance/alarm/none", "there is no alarm when all is well", |c| async move {
        for kind in [pb::AlarmType::None, pb::AlarmType::Nospace, pb::AlarmType::Corrupt] {
            let answer = needed("Alarm", alarm(&c, AlarmAction::Get, kind).await)?;
            c.same("alarms", answer.alarms, vec![]);
        }
        Ok(())
    });
    suite.case(
        "maintenance/alarm/disarm-none",
        "disarming what was not raised is no error",
        |c| async move {
            let answer = needed("Alarm", alarm(&c, AlarmAction::Deactivate, pb::AlarmType::Nospace).await)?;
            c.same("alarms", answer.alarms, vec![]);
            Ok(())
        },
    );
    alarms(suite);
    alarmed(suite);
    suite
        .case(
            "maintenance/defragment",
            "a defragmentation keeps every key, revision and lease",
            |c| async move {
                let lease = c.grant(0, 600).await?;
                c.puts(&[("a/1", "1"), ("b/1", "2"), ("b/1", "3"), ("c/1", "4")]).await?;
                c.send_put(pb::PutRequest { lease, ..put(c.key("c/2"), "5") }).await?;
                let before = c.range(c.all()).await?;
                let answer = c.api.maintenance.clone().defragment(pb::DefragmentRequest {}).await;
                needed("Defragment", answer)?;
                let after = c.range(c.all()).await?;
                c.same("pairs", after.kvs, before.kvs);
                c.same("keys of the lease", c.lease(lease).await?.keys, vec![c.key("c/2")]);
                c.holds("revisions go on", c.put("a/1", "x").await? > revision(&before.header));
                Ok(())
            },
        )
        .alone();
    hashes(suite);
    snapshots(suite);
}

/// The parts of a snapshot: what remains after each, and all of it.
async fn snapshot(c: &Ctx) -> Check<(Vec<pb::SnapshotResponse>, Vec<u8>)> {
    let stream = c.api.maintenance.clone().snapshot(pb::SnapshotRequest {}).await;
    let mut stream = needed("Snapshot", stream)?.into_inner();
    let (mut parts, mut file) = (Vec::new(), Vec::new());
    while let Some(part) = needed("Snapshot", stream.message().await)? {
        file.extend_from_slice(&part.blob);
        parts.push(part);
    }
    Ok((parts, file))
}

fn snapshots(suite: &mut Suite) {
    suite
        .case(
            "maintenance/snapshot",
            "a snapshot comes in parts that count down to the end",
            |c| async move {
                c.put("b/1", "x").await?;
                let (parts, file) = snapshot(&c).await?;
                let falls =
                    |pair: &[pb::SnapshotResponse]| pair[0].remaining_bytes >= pair[1].remaining_bytes;
                c.holds("what remains does not grow", parts.windows(2).all(falls));
                c.holds("there is something in it", !file.is_empty());
                c.same("left at the end", parts.last().map(|part| part.remaining_bytes), Some(0));
                let all = parts.first().map(|part| part.remaining_bytes as usize + part.blob.len());
                c.same("the file that the first part tells of", all, Some(file.len() - 32));
                Ok(())
            },
        )
        .needs(Need::Snapshot);
    suite
        .case(
            "maintenance/snapshot/form",
            "a snapshot is a database of whole pages with a SHA-256 behind it, and says which storage version it has",
            |c| async move {
                let (parts, file) = snapshot(&c).await?;
                c.same("what is behind whole sectors", file.len() % 512, 32);
                // bbolt's first page: number 0, a meta page, and its magic number.
                c.same("magic", file.get(16..20), Some(&[0xED, 0xDA, 0x0C, 0xED][..]));
                let sum = parts.last().map(|part| (part.remaining_bytes, part.blob.len()));
                c.same("the last part", sum, Some((0, 32)));
                // As in the status: etcd's monitor writes it down a moment after the start.
                c.until("each part has the version", || async {
                    let (parts, _) = snapshot(&c).await?;
                    Ok(parts.iter().all(|part| part.version.starts_with("3.7.")).then_some(()))
                })
                .await
            },
        )
        .needs(Need::Snapshot);
    suite
        .case(
            "maintenance/snapshot/newest",
            "a snapshot has what was written right before it, and the history that was not compacted",
            |c| async move {
                c.puts(&[("b/1", "a value of the past"), ("b/1", "the value of now")]).await?;
                let (_, file) = snapshot(&c).await?;
                for value in ["a value of the past", "the value of now"] {
                    let found = file.windows(value.len()).any(|bytes| bytes == value.as_bytes());
                    c.holds(value, found);
                }
                Ok(())
            },
        )
        .alone()
        .needs(Need::Snapshot);
}

fn alarms(suite: &mut Suite) {
    suite
        .case(
            "maintenance/alarm/nospace",
            "under NOSPACE puts and leased puts are refused, reads and deletes go on, and \
disarming ends it",
            |c| async move {
                c.puts(&[("a/1", "x"), ("b/1", "x")]).await?;
                needed("Alarm", alarm(&c, AlarmAction::Activate, pb::AlarmType::Nospace).await)?;
                let raised = needed("Alarm", alarm(&c, AlarmAction::Get, pb::AlarmType::None).await)?.alarms;
                c.same("alarms", raised.iter().map(|a| a.alarm).collect::<Vec<_>>(), [1]);
                let refused = c.try_put(put(c.key("b/1"), "y")).await;
                let txn_put = c.try_txn(txn().then(put(c.key("b/1"), "y")).into()).await;
                let txn_else = c.try_txn(txn().or(put(c.key("b/1"), "y")).into()).await;
                let granted = c.try_grant(c.lease_id(0), 600).await;
                let deleted = c.delete("a/1").await;
                let read = c.value("b/1").await;
                let txn_read = c.txn(txn().then(c.all())).await;
                needed("Alarm", alarm(&c, AlarmAction::Deactivate, pb::AlarmType::Nospace).await)?;
                c.refused(refused, ResourceExhausted, NO_SPACE);
                c.refused(txn_put, ResourceExhausted, NO_SPACE);
                c.refused(txn_else, ResourceExhausted, NO_SPACE);
                c.refused(granted, ResourceExhausted, NO_SPACE);
                deleted?;
                txn_read?;
                c.same("value", read?.as_deref(), Some("x"));
                c.put("b/1", "z").await?;
                let left = needed("Alarm", alarm(&c, AlarmAction::Get, pb::AlarmType::None).await)?.alarms;
                c.same("alarms", left, vec![]);
                Ok(())
            },
        )
        .alone()
        .needs(Need::RaiseAlarms);
    suite
        .case(
            "maintenance/alarm/corrupt",
            "under CORRUPT nothing is served, and disarming ends it",
            |c| async move {
                c.put("b/1", "x").await?;
                needed("Alarm", alarm(&c, AlarmAction::Activate, pb::AlarmType::Corrupt).await)?;
                let put = c.try_put(put(c.key("b/1"), "y")).await;
                let read = c.try_range(c.all()).await;
                let delete = c.try_delete(crate::request::delete(c.key("b/1"))).await;
                let granted = c.try_grant(c.lease_id(0), 600).await;
                needed("Alarm", alarm(&c, AlarmAction::Deactivate, pb::AlarmType::Corrupt).await)?;
                c.refused(put, DataLoss, CORRUPT);
                c.refused(delete, DataLoss, CORRUPT);
                c.refused(granted, DataLoss, CORRUPT);
                // etcd's members go on serving reads of what they have.
                c.same("read", read.map(|answer| c.words(&answer.kvs)).ok().as_deref(), Some("b/1=x"));
                c.put("b/1", "z").await?;
                Ok(())
            },
        )
        .alone()
        .needs(Need::RaiseAlarms);
}

/// What else alarms stop, and what not.
fn alarmed(suite: &mut Suite) {
    suite
        .case(
            "maintenance/alarm/corrupt-writes",
            "under CORRUPT no transaction writes, nothing is compacted and no lease revoked; what only reads goes on",
            |c| async move {
                let lease = c.grant(0, 600).await?;
                let at = c.put("b/1", "x").await?;
                let mut watching = c.watch(c.watch_all(at)).await?;
                needed("Alarm", alarm(&c, AlarmAction::Activate, pb::AlarmType::Corrupt).await)?;
                let write = c.try_txn(txn().then(put(c.key("b/1"), "y")).into()).await;
                let read = c.try_txn(txn().then(c.all()).into()).await;
                let compact = c.try_compact(at, false).await;
                let revoke = c.try_revoke(lease).await;
                let kept = c.keep_alive(lease).await;
                let left = c.lease(lease).await;
                let history = watching.events(1).await;
                let status = status(&c).await;
                needed("Alarm", alarm(&c, AlarmAction::Deactivate, pb::AlarmType::Corrupt).await)?;
                c.refused(write, DataLoss, CORRUPT);
                c.refused(compact, DataLoss, CORRUPT);
                c.refused(revoke, DataLoss, CORRUPT);
                c.holds("a transaction reads", read.is_ok_and(|answer| answer.succeeded));
                c.same("time to live", kept?.ttl, 600);
                c.same("granted", left?.granted_ttl, 600);
                history?;
                let errors = status?.errors;
                c.holds("the status says it", errors.iter().any(|error| error.contains("CORRUPT")));
                c.revoke(lease).await?;
                Ok(())
            },
        )
        .alone()
        .needs(Need::RaiseAlarms);
    suite
        .case(
            "maintenance/alarm/nospace-room",
            "under NOSPACE everything that makes room goes on: compaction, defragmentation, the end of a lease",
            |c| async move {
                let lease = c.grant(0, 600).await?;
                c.send_put(pb::PutRequest { lease, ..put(c.key("b/1"), "x") }).await?;
                let at = c.put("b/2", "x").await?;
                needed("Alarm", alarm(&c, AlarmAction::Activate, pb::AlarmType::Nospace).await)?;
                let compact = c.try_compact(at, true).await;
                let defragment = c.api.maintenance.clone().defragment(pb::DefragmentRequest {}).await;
                let kept = c.keep_alive(lease).await;
                let revoke = c.try_revoke(lease).await;
                let deletes = c.try_txn(txn().then(crate::request::delete(c.key("b/2"))).into()).await;
                let status = status(&c).await;
                needed("Alarm", alarm(&c, AlarmAction::Deactivate, pb::AlarmType::Nospace).await)?;
                needed("Compact", compact)?;
                needed("Defragment", defragment)?;
                c.same("time to live", kept?.ttl, 600);
                needed("LeaseRevoke", revoke)?;
                needed("Txn", deletes)?;
                let errors = status?.errors;
                c.holds("the status says it", errors.iter().any(|error| error.contains("NOSPACE")));
                c.same("count", c.range(c.all()).await?.count, 0);
                Ok(())
            },
        )
        .alone()
        .needs(Need::RaiseAlarms);
    suite
        .case(
            "maintenance/alarm/twice",
            "an alarm that is up can be raised again, and is there once",
            |c| async move {
                for _ in 0..2 {
                    let raised = alarm(&c, AlarmAction::Activate, pb::AlarmType::Corrupt).await;
                    c.same("raised", needed("Alarm", raised)?.alarms.len(), 1);
                }
                let there = alarm(&c, AlarmAction::Get, pb::AlarmType::Corrupt).await;
                let other = alarm(&c, AlarmAction::Get, pb::AlarmType::Nospace).await;
                let taken = alarm(&c, AlarmAction::Deactivate, pb::AlarmType::Corrupt).await;
                let again = alarm(&c, AlarmAction::Deactivate, pb::AlarmType::Corrupt).await;
                c.same("there", needed("Alarm", there)?.alarms.len(), 1);
                c.same("of another kind", needed("Alarm", other)?.alarms.len(), 0);
                c.same("taken down", needed("Alarm", taken)?.alarms.len(), 1);
                c.same("taken down again", needed("Alarm", again)?.alarms.len(), 0);
                Ok(())
            },
        )
        .alone()
        .needs(Need::RaiseAlarms);
    suite
        .case("maintenance/alarm/of-members", "each member's alarm is taken down by itself", |c| async move {
            let kind = pb::AlarmType::Nospace;
            let of = |action: AlarmAction, member_id| {
                let request = pb::AlarmRequest { action: action.into(), member_id, alarm: kind.into() };
                let mut client = c.api.maintenance.clone();
                async move { client.alarm(request).await.map(Response::into_inner) }
            };
            let mut members = Vec::new();
            needed("Alarm", of(AlarmAction::Activate, 7).await)?;
            needed("Alarm", of(AlarmAction::Activate, 8).await)?;
            for taken in [7, 8] {
                let there = alarm(&c, AlarmAction::Get, kind).await;
                members.push(needed("Alarm", there)?.alarms.iter().map(|alarm| alarm.member_id).collect());
                needed("Alarm", of(AlarmAction::Deactivate, taken).await)?;
            }
            c.put("b/1", "x").await?;
            members.iter_mut().for_each(|ids: &mut Vec<u64>| ids.sort_unstable());
            c.same("members", members, [vec![7, 8], vec![8]]);
            Ok(())
        })
        .alone()
        .needs(Need::RaiseAlarms);
}

fn hashes(suite: &mut Suite) {
    suite
        .case(
            "maintenance/hash-kv/same",
            "the hash of a revision stays the same while other revisions come",
            |c| async move {
                let at = c.put("b/1", "x").await?;
                let first = needed("HashKV", hash_kv(&c, at).await)?;
                c.put("b/1", "y").await?;
                let second = needed("HashKV", hash_kv(&c, at).await)?;
                c.same("hash", second.hash, first.hash);
                c.same("revision", second.hash_revision, at);
                let other = needed("HashKV", hash_kv(&c, 0).await)?;
                c.holds("the newest differs", other.hash != first.hash && other.hash_revision > at);
                Ok(())
            },
        )
        .alone()
        .needs(Need::Hashes);
    suite
        .case("maintenance/hash-kv/future", "the hash of a future revision is refused", |c| async move {
            c.refused(hash_kv(&c, FAR).await, OutOfRange, FUTURE);
            Ok(())
        })
        .needs(Need::Hashes);
    suite
        .case(
            "maintenance/hash-kv/compacted",
            "a hash is of the history since the compaction, and refused before it",
            |c| async move {
                let at = c.puts(&[("b/1", "x"), ("b/1", "y"), ("b/1", "z")]).await?;
                let before = needed("HashKV", hash_kv(&c, at[2]).await)?;
                c.holds("the compaction is an earlier one", before.compact_revision < at[0]);
                needed("Compact", c.try_compact(at[1], true).await)?;
                let after = needed("HashKV", hash_kv(&c, at[2]).await)?;
                c.same("compaction", after.compact_revision, at[1]);
                c.same("revision", after.hash_revision, at[2]);
                c.holds("another history has another hash", after.hash != before.hash);
                c.refused(hash_kv(&c, at[0]).await, OutOfRange, COMPACTED);
                Ok(())
            },
        )
        .alone()
        .needs(Need::Hashes);
    suite
        .case(
            "maintenance/hash-kv/at-compaction",
            "what a compaction compacted has the hash that it had before, from the compaction before that",
            |c| async move {
                let at = c.puts(&[("b/1", "x"), ("b/1", "y"), ("b/2", "z"), ("b/1", "z")]).await?;
                needed("Compact", c.try_compact(at[0], true).await)?;
                let before = needed("HashKV", hash_kv(&c, at[2]).await)?;
                needed("Compact", c.try_compact(at[2], true).await)?;
                let after = needed("HashKV", hash_kv(&c, at[2]).await)?;
                c.same("hash", (after.hash, after.hash_revision), (before.hash, at[2]));
                c.same("compaction", (before.compact_revision, after.compact_revision), (at[0], at[0]));
                c.same("of now", needed("HashKV", hash_kv(&c, 0).await)?.compact_revision, at[2]);
                Ok(())
            },
        )
        .alone()
        .needs(Need::Hashes);
    suite
        .case(
            "maintenance/hash-kv/before-everything",
            "a negative revision has no history, whose hash is that of the bucket's name",
            |c| async move {
                let answer = needed("HashKV", hash_kv(&c, -1).await)?;
                // CRC-32C of "key".
                c.same("hash", (answer.hash, answer.hash_revision), (0x40a4_756d, -1));
                Ok(())
            },
        )
        .needs(Need::Hashes);
    suite
        .case("maintenance/hash/changes", "the hash of the whole file changes with a key", |c| async move {
            let mut hashes = Vec::new();
            for value in ["x", "y"] {
                c.put("b/1", value).await?;
                let answer = c.api.maintenance.clone().hash(pb::HashRequest {}).await;
                hashes.push(needed("Hash", answer)?.into_inner().hash);
            }
            c.holds("they differ", hashes[0] != hashes[1]);
            Ok(())
        })
        .alone()
        .needs(Need::Hashes);
    suite
        .case("maintenance/hash", "the hash of the whole file is answered", |c| async move {
            let answer = c.api.maintenance.clone().hash(pb::HashRequest {}).await;
            let answer = needed("Hash", answer)?.into_inner();
            c.holds("there is a header", answer.header.is_some_and(|header| header.revision > 0));
            Ok(())
        })
        .needs(Need::Hashes);
}
