//! One HTTP/2 connection to one member, opened when needed and again after it broke.

use std::{sync::Arc, time::Duration};

use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{net::TcpStream, time::Instant};
use tonic::body::Body;
use tracing::{debug, info};

use super::{EtcdOptions, endpoint::Endpoint};

/// How long after a failed attempt the next one may start: doubled from the first to the last of these.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// Flow-control windows. Fixed, as measuring them means pings, which grpc-go punishes as too many. A stream's covers
/// what etcd sends in a round trip; a connection's is that of many streams.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
/// Largest HTTP/2 frame taken; the default of 16 KiB costs a frame header and a wake-up for each.
const FRAME_BYTES_MAX: u32 = 256 << 10;

/// Hands requests to a live connection.
pub(super) type Sender = SendRequest<Body>;

/// One connection, or the lack of one.
#[derive(Debug)]
pub(super) struct Connection {
    endpoint: Endpoint,
    options: Arc<EtcdOptions>,
    live: Mutex<Option<Sender>>,
    /// Held by whoever connects, so that all others wait for that one attempt.
    attempts: tokio::sync::Mutex<Attempts>,
}

/// What failed attempts have taught.
#[derive(Debug, Default)]
struct Attempts {
    backoff: Duration,
    next: Option<Instant>,
    error: String,
}

impl Connection {
    pub(super) fn new(endpoint: Endpoint, options: Arc<EtcdOptions>) -> Self {
        Self { endpoint, options, live: Mutex::default(), attempts: tokio::sync::Mutex::default() }
    }

    /// The live connection, if there is one.
    pub(super) fn live(&self) -> Option<Sender> {
        self.live.lock().as_ref().filter(|sender| !sender.is_closed()).cloned()
    }

    /// The live connection, or a new one.
    ///
    /// # Errors
    ///
    /// Why the attempt failed, or the one just before it while its back-off lasts.
    pub(super) async fn open(&self) -> Result<Sender, String> {
        if let Some(sender) = self.live() {
            return Ok(sender);
        }
        let mut attempts = self.attempts.lock().await;
        if let Some(sender) = self.live() {
            return Ok(sender);
        }
        if attempts.next.is_some_and(|next| Instant::now() < next) {
            return Err(attempts.error.clone());
        }
        let timeout = self.options.connect_timeout;
        let outcome = match tokio::time::timeout(timeout, self.connect()).await {
            Ok(outcome) => outcome,
            Err(_) => {
                Err(format!("cannot connect to etcd at {}: no answer within {timeout:?}", self.endpoint))
            }
        };
        match outcome {
            Ok(sender) => {
                if !attempts.error.is_empty() {
                    info!(endpoint = %self.endpoint, "connected to etcd again");
                }
                *attempts = Attempts::default();
                *self.live.lock() = Some(sender.clone());
                Ok(sender)
            }
            Err(error) => {
                if attempts.error.is_empty() {
                    info!(%error, "etcd cannot be reached");
                }
                attempts.backoff = (attempts.backoff * 2).clamp(BACKOFF_MIN, BACKOFF_MAX);
                attempts.next = Some(Instant::now() + attempts.backoff);
                attempts.error.clone_from(&error);
                Err(error)
            }
        }
    }

    /// Begins to open the connection if nobody does and its back-off is over.
    pub(super) fn open_beside(self: Arc<Self>) {
        let due = match self.attempts.try_lock() {
            Ok(attempts) => attempts.next.is_none_or(|next| next <= Instant::now()),
            Err(_) => false,
        };
        if due {
            // Ends within the connect timeout.
            tokio::spawn(async move {
                // The error is logged and kept for whoever asks next.
                let _ = self.open().await;
            });
        }
    }

    async fn connect(&self) -> Result<Sender, String> {
        let failed =
            |error: &dyn std::error::Error| format!("cannot connect to etcd at {}: {error}", self.endpoint);
        let stream = TcpStream::connect(&self.endpoint.address).await.map_err(|error| failed(&error))?;
        // Requests are small and each waits for its answer: Nagle's algorithm would add up to 40 ms.
        stream.set_nodelay(true).map_err(|error| failed(&error))?;
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX)
            .keep_alive_interval(self.options.keepalive_interval)
            .keep_alive_timeout(self.options.keepalive_timeout)
            // grpc-go counts pings without an open stream as abuse, whatever their interval.
            .keep_alive_while_idle(false)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
        let endpoint = self.endpoint.clone();
        // Ends by itself: with the socket, or when the last sender and the last stream are dropped.
        tokio::spawn(async move {
            match connection.await {
                Ok(()) => debug!(%endpoint, "connection to etcd closed"),
                Err(error) => info!(%endpoint, %error, "connection to etcd broke"),
            }
        });
        Ok(sender)
    }
}
