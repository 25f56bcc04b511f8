//! `engine`: the embedded engine alone in a process of its own, and a check of its files.
//!
//! Besides gRPC the port serves `/health`, `/livez`, `/readyz`, `/version` and `/metrics`, as etcd's does.

use std::{fmt::Write as _, io::Write, num::NonZero, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use futures::{FutureExt, future::BoxFuture};
use sharded_etcd_engine::{
    Engine, EngineConfig, serve,
    snapshot::{self, RestoreOptions},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_serve::{
    probes::{Probed, with_probes},
    serve_on_threads,
};
use sharded_etcd_shard::Shard;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};

use crate::{
    auto_compaction::{Retention, Schedule},
    cli::{EngineArgs, RestoreArgs, client_urls},
    listen::listen,
    signals,
};

/// How long requests under way may take once the process is told to stop.
const STOP_MAX: Duration = Duration::from_secs(3);

/// Serves until it is told to stop.
///
/// # Errors
/// If the data cannot be opened, or the client port fails.
pub async fn run(args: EngineArgs) -> Result<()> {
    let shutdown = signals::shutdown()?;
    let retention = Retention::of(args.auto_compaction_mode, &args.auto_compaction_retention)?;
    let (mut listeners, mut bound) = (Vec::new(), Vec::new());
    for address in &args.listen {
        let listener = listen(address).await?;
        bound.push(listener.local_addr().context("the client port has no address")?);
        listeners.push(listener);
    }
    let urls = client_urls(&args.advertise_client_urls, &bound);
    let dir = args.data_dir.unwrap_or_else(|| format!("{}.etcd", args.name).into());
    let mut config = EngineConfig::new(dir, args.name);
    config.quota_bytes = args.quota_backend_bytes;
    config.progress_interval = args.watch.watch_progress_notify_interval;
    config.max_txn_ops = args.max_txn_ops;
    config.max_request_bytes = args.max_request_bytes;
    let engine = Engine::open(config).await?;
    let compactor = retention.map(|retention| tokio::spawn(compact(Arc::clone(&engine), retention)));

    let grpc = serve::routes(Arc::clone(&engine), urls.clone(), shutdown.clone());
    let probe = Arc::new(Probe(Arc::clone(&engine)));
    let router = with_probes(grpc.prepare().into_axum_router(), probe, |probe| probe.0.metrics());
    let server = Server::builder()
        .accept_http1(true)
        .max_concurrent_streams(args.max_concurrent_streams)
        .http2_keepalive_interval(Some(args.grpc_keepalive_interval))
        .http2_keepalive_timeout(Some(args.grpc_keepalive_timeout));
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let serving = serve_on_threads(listeners, server, Routes::from(router), threads, shutdown.clone());
    let _ = writeln!(std::io::stdout().lock(), "sharded-etcd engine serves at {}", urls.join(" "));
    let served = tokio::select! {
        served = serving => served.context("the client port failed"),
        () = stopped_for(shutdown, STOP_MAX) => Ok(()),
    };
    if let Some(compactor) = compactor {
        compactor.abort();
    }
    engine.close().await;
    served
}

async fn stopped_for(shutdown: CancellationToken, time: Duration) {
    shutdown.cancelled().await;
    tokio::time::sleep(time).await;
}

/// How an engine is.
struct Probe(Arc<Engine>);

impl Probe {
    async fn alarms_and_trouble(&self) -> Result<(Vec<pb::AlarmType>, Option<String>), String> {
        let alarms =
            self.0.alarm(pb::AlarmRequest::default()).await.map_err(|error| error.to_string())?.alarms;
        let status = self.0.status().await.map_err(|error| error.to_string())?;
        // What is not an alarm comes behind them.
        let trouble = status.errors.into_iter().nth(alarms.len());
        Ok((alarms.iter().map(pb::AlarmMember::alarm).collect(), trouble))
    }
}

impl Probed for Probe {
    fn alarms(&self) -> BoxFuture<'_, Result<Vec<pb::AlarmType>, String>> {
        async { Ok(self.alarms_and_trouble().await?.0) }.boxed()
    }

    /// It reads what it has whatever happens to its disk.
    fn lives(&self) -> BoxFuture<'_, Result<(), String>> {
        async { Ok(()) }.boxed()
    }

    fn serves(&self) -> BoxFuture<'_, Result<(), String>> {
        async { self.alarms_and_trouble().await?.1.map_or(Ok(()), Err) }.boxed()
    }

    fn release(&self) -> &'static str {
        sharded_etcd_engine::ETCD_VERSION
    }
}

/// Compacts again and again.
async fn compact(engine: Arc<Engine>, retention: Retention) {
    let mut schedule = Schedule::new(retention);
    let started = Instant::now();
    loop {
        schedule.sample(engine.snapshot().revision());
        tokio::time::sleep(schedule.interval()).await;
        let Some(revision) = schedule.due(started.elapsed(), engine.snapshot().revision()) else { continue };
        match engine.compact(pb::CompactionRequest { revision, physical: false }).await {
            Ok(_) => tracing::info!(revision, "compacted"),
            // Somebody else was faster.
            Err(error) if error.is_compacted() => {}
            Err(error) => {
                tracing::warn!(%error, revision, "compaction failed; it is tried again");
                continue;
            }
        }
        schedule.compacted(started.elapsed(), revision);
    }
}

/// Makes a data folder from a snapshot and says what is in it.
///
/// # Errors
/// If the snapshot cannot be used, or there is something in the folder.
pub fn restore(args: RestoreArgs) -> Result<String> {
    let data_dir = args.data_dir.unwrap_or_else(|| format!("{}.etcd", args.name).into());
    let options = RestoreOptions {
        data_dir,
        name: args.name,
        skip_hash_check: args.skip_hash_check,
        bump_revision: args.bump_revision,
    };
    let restored = snapshot::restore(&args.snapshot, &options)?;
    Ok(format!(
        "{} is restored\nrevision    {}\ncompacted   {}\nkeys        {}\nleases      {}",
        options.data_dir.display(),
        restored.revision,
        restored.compact_revision.max(0),
        restored.keys,
        restored.leases,
    ))
}

/// Verifies a data folder and says what is in it.
///
/// # Errors
/// What is wrong, file by file.
pub fn check(dir: &Path) -> Result<String> {
    let contents = match sharded_etcd_engine::verify(dir) {
        Ok(contents) => contents,
        Err(trouble) => bail!("{}", trouble.join("\nerror: ")),
    };
    let mut text = format!("{} is intact\n", dir.display());
    let _ = write!(
        text,
        "cluster     {:016x}\nmember      {:016x}\nrevision    {}\ncompacted   {}\nkeys        {}\nleases      {}\n\
         bytes       {}\ncheckpoint  {} bytes, up to record {}\nlog         {} files, up to record {}",
        contents.cluster_id,
        contents.member_id,
        contents.revision,
        contents.compact_revision.max(0),
        contents.keys,
        contents.leases,
        contents.bytes,
        contents.checkpoint_bytes,
        contents.checkpoint_sequence,
        contents.segments.len(),
        contents.last_sequence,
    );
    Ok(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_engine_tells_its_alarms_and_serves_with_them() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(EngineConfig::new(dir.path(), "health")).await.unwrap();
        let probe = Probe(Arc::clone(&engine));
        assert_eq!(probe.alarms().await, Ok(vec![]));
        for alarm in [pb::AlarmType::Nospace, pb::AlarmType::Corrupt] {
            let request = pb::AlarmRequest { action: 1, member_id: 0, alarm: alarm.into() };
            engine.alarm(request).await.unwrap();
        }
        assert_eq!(probe.alarms().await, Ok(vec![pb::AlarmType::Nospace, pb::AlarmType::Corrupt]));
        assert_eq!((probe.lives().await, probe.serves().await), (Ok(()), Ok(())));
    }

    #[tokio::test]
    async fn a_data_folder_is_checked_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(EngineConfig::new(dir.path(), "check")).await.unwrap();
        let put = pb::PutRequest { key: "a".into(), value: "1".into(), ..Default::default() };
        for _ in 0..2 {
            engine.put(put.clone()).await.unwrap();
        }
        engine.close().await;
        let text = check(dir.path()).unwrap();
        assert!(text.contains("revision    3\n") && text.contains("keys        1\n"), "{text}");

        // The first of two records: damage, and no write that was cut off.
        let log = dir.path().join("wal-0000000000000001.log");
        let mut bytes = std::fs::read(&log).unwrap();
        bytes[4096 + 30] ^= 1;
        std::fs::write(&log, bytes).unwrap();
        let error = format!("{:#}", check(dir.path()).unwrap_err());
        assert!(error.contains("wal-0000000000000001.log is damaged at byte 4096"), "{error}");
        assert!(check(&dir.path().join("nothing")).is_err());
    }
}
