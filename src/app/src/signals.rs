//! Being told to stop.

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled by the first Ctrl-C, SIGTERM or hang-up. The second one ends the process at once.
///
/// # Errors
/// If the system lets nobody listen to signals.
pub fn shutdown() -> Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut streams = Vec::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        streams.push(signal(kind).context("cannot listen to signals")?);
    }
    let told = token.clone();
    tokio::spawn(async move {
        any(&mut streams).await;
        told.cancel();
        any(&mut streams).await;
        tracing::warn!("told to stop twice; ending at once");
        #[allow(
            clippy::disallowed_methods,
            reason = "what is running was told to stop and does not; it is to end now"
        )]
        std::process::exit(1);
    });
    Ok(token)
}

async fn any(streams: &mut [tokio::signal::unix::Signal]) {
    let waits = streams.iter_mut().map(|stream| Box::pin(stream.recv()));
    futures::future::select_all(waits).await;
}
