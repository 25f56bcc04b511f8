//! gRPC on single-threaded runtimes, each with connections of its own.
//!
//! A connection stays on the thread that had the fewest when it came.

use std::{
    io,
    net::TcpStream as StdTcpStream,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::{StreamExt, future::try_join_all, stream::select_all};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::{
        Server,
        server::{Connected, TcpConnectInfo},
    },
};
use tower::util::MapResponseLayer;

use crate::{mailbox, too_large::as_grpc_go};

/// Why serving ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A thread, or its runtime, cannot be started.
    #[error("cannot start a thread to serve on")]
    Thread(#[source] std::io::Error),
    /// A thread panicked.
    #[error("a thread that served clients panicked")]
    Panicked,
    /// The server of a thread failed.
    #[error("cannot serve clients")]
    Connections(#[source] tonic::transport::Error),
}

/// New connections that wait for one thread at most; more of them wait in the listener.
const CONNECTIONS_MAX: usize = 64;
/// The number of the next thread.
static NUMBERS: AtomicUsize = AtomicUsize::new(1);
/// After a connection that could not be accepted, for instance because there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `routes` on so many threads until `shutdown` and the end of the connections. Dropping the future ends
/// everything at once.
///
/// # Errors
/// When a thread cannot be started, or its server fails.
pub async fn serve_on_threads(
    listeners: Vec<TcpListener>,
    server: Server,
    routes: Routes,
    threads: usize,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let routes = routes.prepare();
    let stop = CancellationToken::new();
    let _stop_when_dropped = stop.clone().drop_guard();
    let (mut workers, mut ended) = (Vec::new(), Vec::new());
    for number in 0..threads.max(1) {
        let (worker, end) = start(number, server.clone(), routes.clone(), shutdown.clone(), stop.clone())?;
        workers.push(worker);
        ended.push(async { end.await.unwrap_or(Err(ServeError::Panicked)) });
    }
    let serving = try_join_all(ended);
    tokio::pin!(serving);
    tokio::select! {
        biased;
        result = &mut serving => return result.map(drop),
        () = accept(listeners, workers, shutdown) => {}
    }
    serving.await.map(drop)
}

/// One thread as the one that accepts sees it.
struct Worker {
    connections: mpsc::Sender<StdTcpStream>,
    /// How many connections it has.
    open: Arc<AtomicUsize>,
}

type End = oneshot::Receiver<Result<(), ServeError>>;

fn start(
    number: usize,
    server: Server,
    routes: Routes,
    shutdown: CancellationToken,
    stop: CancellationToken,
) -> Result<(Worker, End), ServeError> {
    let (connections, received) = mpsc::channel(CONNECTIONS_MAX);
    let open = Arc::new(AtomicUsize::new(0));
    let (done, end) = oneshot::channel();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ServeError::Thread)?;
    let counted = Arc::clone(&open);
    let work = move || {
        let incoming =
            ReceiverStream::new(received).map(move |stream| Connection::new(stream, Arc::clone(&counted)));
        let served = runtime.block_on(async {
            let opening = tokio::spawn(mailbox::open_letters(NUMBERS.fetch_add(1, Ordering::Relaxed)));
            let mut server = server.layer(MapResponseLayer::new(as_grpc_go));
            let serving =
                server.add_routes(routes).serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned());
            let served = tokio::select! {
                served = serving => served.map_err(ServeError::Connections),
                () = stop.cancelled() => Ok(()),
            };
            opening.abort();
            served
        });
        // What waits for a client or a file must not hold the thread.
        runtime.shutdown_background();
        // Nobody listens if the future was dropped.
        let _ = done.send(served);
    };
    std::thread::Builder::new().name(format!("serve-{number}")).spawn(work).map_err(ServeError::Thread)?;
    Ok((Worker { connections, open }, end))
}

/// Gives each new connection to the thread that has the fewest.
async fn accept(listeners: Vec<TcpListener>, workers: Vec<Worker>, shutdown: CancellationToken) {
    let mut incoming = select_all(listeners.into_iter().map(TcpListenerStream::new));
    loop {
        let accepted = tokio::select! {
            Some(accepted) = incoming.next() => accepted,
            () = shutdown.cancelled() => return,
        };
        let prepared = accepted.and_then(|stream| {
            stream.set_nodelay(true)?;
            stream.into_std()
        });
        match prepared {
            Ok(stream) => {
                let Some(worker) = workers.iter().min_by_key(|worker| worker.open.load(Ordering::Relaxed))
                else {
                    return;
                };
                worker.open.fetch_add(1, Ordering::Relaxed);
                if worker.connections.send(stream).await.is_err() {
                    // The thread has ended; whoever waits for it says why.
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted; the next one is waited for");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A connection that says when it ends.
struct Connection {
    stream: TcpStream,
    _counted: Counted,
}

struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connection {
    /// `open` counts it already.
    fn new(stream: StdTcpStream, open: Arc<AtomicUsize>) -> io::Result<Self> {
        let _counted = Counted(open);
        Ok(Self { stream: TcpStream::from_std(stream)?, _counted })
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
