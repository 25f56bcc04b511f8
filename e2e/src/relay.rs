//! A wire between two processes that a test can cut.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// Bytes passed on at once.
const PIECE: usize = 64 << 10;

/// Passes on what comes, in both directions. While it is cut nothing passes, and nobody is told: connections stand still, as
/// when packets are lost, and go on when it is whole again.
#[derive(Debug)]
pub struct TcpRelay {
    /// What to dial, `http://127.0.0.1:PORT`.
    pub endpoint: String,
    cut: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl TcpRelay {
    /// A relay to `http://HOST:PORT`, which need not be there yet.
    ///
    /// # Errors
    /// If no port can be listened to, or the endpoint is none.
    pub async fn start(to: String) -> Result<Self> {
        let address = to.strip_prefix("http://").context("not http://HOST:PORT")?;
        let address: SocketAddr = address.parse().with_context(|| format!("{address} is no address"))?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let (cut, is_cut) = watch::channel(false);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(pass(stream, address, is_cut.clone()));
            }
        });
        Ok(Self { endpoint, cut, task })
    }

    /// Cuts it, or makes it whole.
    pub fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }
}

impl Drop for TcpRelay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One connection, until either side ends it.
async fn pass(mut from: TcpStream, to: SocketAddr, mut is_cut: watch::Receiver<bool>) {
    let until_whole = is_cut.wait_for(|cut| !*cut).await.is_ok();
    if !until_whole {
        return;
    }
    let Ok(mut to) = TcpStream::connect(to).await else { return };
    let (_, _) = (from.set_nodelay(true), to.set_nodelay(true));
    let ((from_read, from_write), (to_read, to_write)) = (from.split(), to.split());
    tokio::select! {
        () = pass_one_way(from_read, to_write, is_cut.clone()) => {}
        () = pass_one_way(to_read, from_write, is_cut) => {}
    }
}

async fn pass_one_way(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut is_cut: watch::Receiver<bool>,
) {
    let mut piece = vec![0; PIECE];
    loop {
        let Ok(count @ 1..) = from.read(&mut piece).await else { return };
        // The test is over if nobody can make it whole any more.
        let whole = is_cut.wait_for(|cut| !*cut).await.is_ok();
        if !whole || to.write_all(&piece[..count]).await.is_err() {
            return;
        }
    }
}
