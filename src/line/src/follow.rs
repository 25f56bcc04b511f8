//! Following the log: from the newest checkpoint, through the log's history, and on.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use sharded_etcd_core::{
    line::{Entry, Fold},
    records,
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Shard, ShardError};

use crate::{
    Cut, Line, LineError,
    checkpoint::{CheckpointError, read_checkpoint},
};

/// How often a start begins anew because checkpoint or log were compacted away under it.
const LOAD_TRIES: u32 = 5;

/// The fold at the log's end (or a little before it: the follower takes over from there).
pub(crate) async fn load(meta: &dyn Shard) -> Result<Fold, LineError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match try_load(meta).await {
            Err(LineError::Meta(e)) if e.is_compacted() && tries < LOAD_TRIES => {}
            result => return result,
        }
    }
}

async fn try_load(meta: &dyn Shard) -> Result<Fold, LineError> {
    let mut fold = read_checkpoint(meta).await.map_err(|e| match e {
        CheckpointError::Meta(e) => LineError::Meta(e),
        e @ CheckpointError::Damaged { .. } => LineError::Broken(e.to_string()),
    })?;
    let key = Bytes::from_static(records::CUT_LATEST);
    let end = meta.range(pb::RangeRequest { key: key.clone(), ..Default::default() }).await?;
    let Some(end) = end.kvs.first() else { return Err(LineError::NotBootstrapped) };
    let from = fold.as_ref().map_or(end.create_revision, |f| f.position + 1);
    if fold.as_ref().is_some_and(|f| f.position >= end.mod_revision) {
        return fold.ok_or(LineError::NotBootstrapped);
    }
    let mut events = meta.watch(log_watch(from)).await?;
    while let Some(response) = events.next().await {
        for kv in log_events(response?)? {
            let broken = |e: &dyn std::fmt::Display| LineError::Broken(e.to_string());
            let entry = Entry::decode(&kv.value).map_err(|e| broken(&e))?;
            match &mut fold {
                None => fold = Some(Fold::start(kv.mod_revision, &entry).map_err(|e| broken(&e))?),
                Some(fold) if kv.version == fold.entries + 1 => {
                    fold.apply(kv.mod_revision, &entry).map_err(|e| broken(&e))?;
                }
                Some(fold) => {
                    return Err(LineError::Broken(format!(
                        "entry {} of the log follows entry {}: entries are missing",
                        kv.version, fold.entries
                    )));
                }
            }
            if kv.mod_revision >= end.mod_revision {
                return fold.ok_or(LineError::NotBootstrapped);
            }
        }
    }
    Err(LineError::Meta(ShardError::refused(tonic::Code::Unavailable, "meta ended the watch on the log")))
}

fn log_watch(from: i64) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest {
        key: Bytes::from_static(records::CUT_LATEST),
        start_revision: from,
        ..Default::default()
    }
}

/// The log's entries in a watch response.
fn log_events(response: pb::WatchResponse) -> Result<impl Iterator<Item = pb::KeyValue>, LineError> {
    if response.compact_revision > 0 {
        return Err(LineError::Meta(ShardError::refused(
            tonic::Code::OutOfRange,
            sharded_etcd_shard::ERR_COMPACTED,
        )));
    }
    if response.canceled {
        let reason = format!("meta cancelled the watch on the log: {}", response.cancel_reason);
        return Err(LineError::Meta(ShardError::refused(tonic::Code::Unavailable, reason)));
    }
    let put = |event: &pb::Event| event.r#type == i32::from(pb::EventType::Put);
    Ok(response.events.into_iter().filter(put).filter_map(|event| event.kv))
}

impl Line {
    /// Follows the log until shutdown; starts over from where it is when the watch breaks, and from the newest
    /// checkpoint when it is behind meta's compaction.
    pub(crate) async fn follow(self: Arc<Self>) {
        let mut pause = Duration::from_millis(10);
        loop {
            let result = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return,
                result = self.follow_once(&mut pause) => result,
            };
            self.stats.restarts.fetch_add(1, Ordering::Relaxed);
            let Err(error) = result else { continue };
            if matches!(error, LineError::Broken(_)) {
                return; // said where it was found
            }
            tracing::warn!(%error, source = ?std::error::Error::source(&error), "following the log again");
            if matches!(&error, LineError::Meta(e) if e.is_compacted())
                && let Err(error) = self.reload().await
            {
                tracing::warn!(%error, "the newest checkpoint cannot be read yet");
            }
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(1)),
            }
        }
    }

    async fn follow_once(&self, pause: &mut Duration) -> Result<(), LineError> {
        let from = self.with_fold(|f| f.position) + 1;
        let mut events = self.meta.watch(log_watch(from)).await?;
        while let Some(response) = events.next().await {
            for kv in log_events(response?)? {
                if !self.fold_entry(kv.mod_revision, kv.version, &kv.value)? {
                    return Err(
                        self.stop(format!("entries before number {} of the log are missing", kv.version))
                    );
                }
            }
            *pause = Duration::from_millis(10);
        }
        Ok(())
    }

    async fn reload(&self) -> Result<(), LineError> {
        let newer = load(self.meta.as_ref()).await?;
        let cut = {
            let mut fold = self.fold.write();
            if newer.position <= fold.position {
                return Ok(());
            }
            *fold = newer;
            Arc::new(Cut::of(&fold))
        };
        self.publish(cut);
        Ok(())
    }
}
