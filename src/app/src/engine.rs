//! `engine`: the embedded engine alone in a process of its own, and a check of its files.
//!
//! Besides gRPC the port serves `/health`, `/livez`, `/readyz`, `/version` and `/metrics`, as etcd's does.

use std::{fmt::Write as _, io::Write, num::NonZero, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use axum::{
    Router,
    extract::State,
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::get,
};
use sharded_etcd_engine::{
    Engine, EngineConfig, serve,
    snapshot::{self, RestoreOptions},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_serve::serve_on_threads;
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

    let http = Router::new()
        .route("/health", get(health))
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/version", get(version))
        .route("/metrics", get(metrics))
        .with_state(Arc::clone(&engine));
    let grpc = serve::routes(Arc::clone(&engine), urls.clone(), shutdown.clone());
    let router = grpc.prepare().into_axum_router().merge(http);
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

async fn metrics(State(engine): State<Arc<Engine>>) -> Response {
    let form = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, form)], engine.metrics()).into_response()
}

/// What is wrong with the engine: an alarm that is not `excluded`, or that it cannot write.
async fn trouble(engine: &Engine, excluded: &[&str]) -> Option<String> {
    let (alarms, status) = match (engine.alarm(pb::AlarmRequest::default()).await, engine.status().await) {
        (Ok(alarms), Ok(status)) => (alarms.alarms, status),
        (Err(error), _) | (_, Err(error)) => return Some(error.to_string()),
    };
    let names = alarms
        .iter()
        .map(|alarm| pb::AlarmType::try_from(alarm.alarm).map_or("UNKNOWN", |kind| kind.as_str_name()));
    let alarm = names.filter(|name| !excluded.contains(name)).map(|name| format!("ALARM {name}")).next();
    // What is not an alarm comes behind them.
    alarm.or_else(|| status.errors.into_iter().nth(alarms.len()))
}

/// As etcd's: `?exclude=NOSPACE` leaves an alarm out.
async fn health(State(engine): State<Arc<Engine>>, uri: Uri) -> Response {
    let parameters = uri.query().unwrap_or_default().split('&');
    let excluded: Vec<&str> = parameters.filter_map(|parameter| parameter.strip_prefix("exclude=")).collect();
    let (code, body) = match trouble(&engine, &excluded).await {
        None => (StatusCode::OK, serde_json::json!({"health": "true", "reason": ""})),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, serde_json::json!({"health": "false", "reason": why})),
    };
    (code, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// A full store is ready, as in etcd: it serves reads, and deletes make room.
async fn readyz(State(engine): State<Arc<Engine>>) -> Response {
    match trouble(&engine, &["NOSPACE"]).await {
        None => "ok\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn version() -> Response {
    let etcd = sharded_etcd_engine::ETCD_VERSION;
    let body = serde_json::json!({"etcdserver": etcd, "etcdcluster": etcd, "storage": "3.7.0"});
    ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
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
    async fn a_full_engine_is_not_healthy_and_ready_and_a_corrupt_one_neither() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(EngineConfig::new(dir.path(), "health")).await.unwrap();
        let codes = async |query: &str| {
            let uri = Uri::try_from(format!("/health{query}")).unwrap();
            let health = health(State(Arc::clone(&engine)), uri).await.status().as_u16();
            (health, readyz(State(Arc::clone(&engine))).await.status().as_u16())
        };
        let alarm = async |action: i32, alarm: pb::AlarmType| {
            let request = pb::AlarmRequest { action, member_id: 0, alarm: alarm.into() };
            engine.alarm(request).await.unwrap();
        };
        assert_eq!(codes("").await, (200, 200));
        alarm(1, pb::AlarmType::Nospace).await;
        assert_eq!(codes("").await, (503, 200));
        assert_eq!(codes("?serializable=true&exclude=NOSPACE").await, (200, 200));
        assert_eq!(trouble(&engine, &[]).await.as_deref(), Some("ALARM NOSPACE"));
        alarm(1, pb::AlarmType::Corrupt).await;
        assert_eq!(codes("?exclude=NOSPACE").await, (503, 503));
        alarm(2, pb::AlarmType::Corrupt).await;
        alarm(2, pb::AlarmType::Nospace).await;
        assert_eq!(codes("").await, (200, 200));
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
