//! `engine`: the embedded engine alone in a process of its own, and a check of its files.
//!
//! Besides gRPC the port serves `/health`, `/livez`, `/readyz` and `/version`, as etcd's does.

use std::{collections::VecDeque, fmt::Write as _, io::Write, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use sharded_etcd_crd::units::TimeSpan;
use sharded_etcd_engine::{Engine, EngineConfig, serve};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::Shard;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::{Server, server::TcpIncoming},
};

use crate::{
    cli::{CompactionMode, EngineArgs, client_urls},
    listen::listen,
    signals,
};

/// How long requests under way may take once the process is told to stop.
const STOP_MAX: Duration = Duration::from_secs(3);
/// A retention of hours is acted on that often, as in etcd.
const COMPACT_INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// A retention of revisions is acted on that often, as in etcd.
const COMPACT_REVISIONS_INTERVAL: Duration = Duration::from_secs(300);
/// In one interval the revision is looked at this often, as in etcd.
const SAMPLES: u32 = 10;

/// Serves until it is told to stop.
///
/// # Errors
/// If the data cannot be opened, or the client port fails.
pub async fn run(args: EngineArgs) -> Result<()> {
    let shutdown = signals::shutdown()?;
    let retention = Retention::of(args.auto_compaction_mode, &args.auto_compaction_retention)?;
    let listener = listen(&args.listen).await?;
    let bound = listener.local_addr().context("the client port has no address")?;
    let urls = client_urls(&args.advertise_client_urls, bound);
    let dir = args.data_dir.unwrap_or_else(|| format!("{}.etcd", args.name).into());
    let mut config = EngineConfig::new(dir, args.name);
    config.quota_bytes = args.quota_backend_bytes;
    config.max_txn_ops = args.max_txn_ops;
    config.max_request_bytes = args.max_request_bytes;
    let engine = Engine::open(config).await?;
    let compactor = retention.map(|retention| tokio::spawn(compact(Arc::clone(&engine), retention)));

    let http = Router::new()
        .route("/health", get(health))
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/version", get(version))
        .with_state(Arc::clone(&engine));
    let grpc = serve::routes(Arc::clone(&engine), urls.clone(), shutdown.clone());
    let router = grpc.prepare().into_axum_router().merge(http);
    let serving = Server::builder()
        .accept_http1(true)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .add_routes(Routes::from(router))
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            shutdown.clone().cancelled_owned(),
        );
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

/// What the engine says is wrong with it.
async fn trouble(engine: &Engine) -> Option<String> {
    match engine.status().await {
        Ok(status) => status.errors.into_iter().next(),
        Err(error) => Some(error.to_string()),
    }
}

async fn health(State(engine): State<Arc<Engine>>) -> Response {
    let (code, body) = match trouble(&engine).await {
        None => (StatusCode::OK, serde_json::json!({"health": "true", "reason": ""})),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, serde_json::json!({"health": "false", "reason": why})),
    };
    (code, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

async fn readyz(State(engine): State<Arc<Engine>>) -> Response {
    match trouble(&engine).await {
        None => "ok\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn version() -> Response {
    let etcd = sharded_etcd_engine::ETCD_VERSION;
    let body = serde_json::json!({"etcdserver": etcd, "etcdcluster": etcd, "storage": "3.7.0"});
    ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// How much history is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retention {
    Time(Duration),
    Revisions(i64),
}

impl Retention {
    /// None keeps all of it.
    fn of(mode: CompactionMode, text: &str) -> Result<Option<Self>> {
        let number = text.parse::<i64>().ok();
        Ok(match (mode, number) {
            (_, Some(0)) => None,
            (CompactionMode::Revision, Some(revisions)) if revisions > 0 => Some(Self::Revisions(revisions)),
            (CompactionMode::Revision, _) => {
                bail!("--auto-compaction-retention {text:?} is no number of revisions")
            }
            (CompactionMode::Periodic, Some(hours)) => {
                let hours = u64::try_from(hours).ok().and_then(|hours| hours.checked_mul(3600));
                let seconds = hours.context("--auto-compaction-retention is no number of hours")?;
                Some(Self::Time(Duration::from_secs(seconds)))
            }
            (CompactionMode::Periodic, None) => {
                let time = TimeSpan(text.to_owned()).duration().map_err(anyhow::Error::msg);
                Some(Self::Time(time.context("--auto-compaction-retention")?))
            }
        })
    }
}

/// Compacts again and again.
async fn compact(engine: Arc<Engine>, retention: Retention) {
    let (interval, kept) = match retention {
        Retention::Time(time) => {
            let interval = time.min(COMPACT_INTERVAL_MAX) / SAMPLES;
            (interval, (time.as_secs_f64() / interval.as_secs_f64()).ceil() as usize)
        }
        Retention::Revisions(_) => (COMPACT_REVISIONS_INTERVAL, 0),
    };
    let mut ticks = tokio::time::interval(interval.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut samples = VecDeque::new();
    let mut compacted = 0;
    loop {
        ticks.tick().await;
        let newest = engine.snapshot().revision();
        let target = match retention {
            Retention::Revisions(revisions) => newest - revisions,
            Retention::Time(_) => {
                samples.push_back(newest);
                if samples.len() <= kept {
                    continue;
                }
                samples.pop_front().unwrap_or_default()
            }
        };
        if target <= compacted.max(1) {
            continue;
        }
        match engine.compact(pb::CompactionRequest { revision: target, physical: false }).await {
            Ok(_) => compacted = target,
            // Somebody else was faster.
            Err(error) if error.is_compacted() => compacted = target,
            Err(error) => tracing::warn!(%error, revision = target, "compaction failed; it is tried again"),
        }
    }
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

    #[test]
    fn retentions() {
        let of = |mode, text| Retention::of(mode, text).unwrap();
        assert_eq!(of(CompactionMode::Periodic, "0"), None);
        assert_eq!(of(CompactionMode::Periodic, "2"), Some(Retention::Time(Duration::from_secs(7200))));
        assert_eq!(of(CompactionMode::Periodic, "30m"), Some(Retention::Time(Duration::from_secs(1800))));
        assert_eq!(of(CompactionMode::Revision, "1000"), Some(Retention::Revisions(1000)));
        for (mode, text) in [
            (CompactionMode::Revision, "30m"),
            (CompactionMode::Revision, "-1"),
            (CompactionMode::Periodic, "-1"),
            (CompactionMode::Periodic, "soon"),
        ] {
            assert!(Retention::of(mode, text).is_err(), "{text}");
        }
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
