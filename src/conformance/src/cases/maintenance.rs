//! Maintenance.

use pb::alarm_request::AlarmAction;
use sharded_etcd_etcd_api::messages as pb;
use tonic::{
    Code::{DataLoss, OutOfRange, ResourceExhausted},
    Response, Status,
};

use super::texts::{CORRUPT, FAR, FUTURE, NO_SPACE};
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
    suite
        .case(
            "maintenance/snapshot",
            "a snapshot comes in parts that count down to the end",
            |c| async move {
                c.put("b/1", "x").await?;
                let stream = c.api.maintenance.clone().snapshot(pb::SnapshotRequest {}).await;
                let mut stream = needed("Snapshot", stream)?.into_inner();
                let (mut parts, mut bytes, mut left) = (0, 0, u64::MAX);
                while let Some(part) = needed("Snapshot", stream.message().await)? {
                    c.holds("what remains does not grow", part.remaining_bytes <= left);
                    left = part.remaining_bytes;
                    bytes += part.blob.len();
                    parts += 1;
                }
                c.holds("there is something in it", parts > 0 && bytes > 0);
                c.same("left at the end", left, 0);
                Ok(())
            },
        )
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
        .case("maintenance/hash", "the hash of the whole file is answered", |c| async move {
            let answer = c.api.maintenance.clone().hash(pb::HashRequest {}).await;
            let answer = needed("Hash", answer)?.into_inner();
            c.holds("there is a header", answer.header.is_some_and(|header| header.revision > 0));
            Ok(())
        })
        .needs(Need::Hashes);
}
