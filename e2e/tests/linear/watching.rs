//! Watches over all keys, which go on where they were when a connection or a proxy is lost.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use etcd_client::{Client, ConnectOptions, EventType, WatchOptions, WatchStream};
use sharded_etcd_linearizability::{key::Kv, store};
use tokio::time::{sleep, timeout};

use crate::{
    books::item_of,
    clients::{Shared, kv_of},
};

/// How long a watch may hear nothing before it is started again; a frozen proxy says nothing.
const SILENCE_MAX: Duration = Duration::from_secs(4);
/// How often it asks how far it is.
const ASK_EVERY: Duration = Duration::from_millis(300);

/// An event of one of the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub revision: i64,
    /// Number of the key.
    pub key: usize,
    /// `None` for a delete.
    pub kv: Option<Kv>,
    pub previous: Option<Kv>,
}

/// What a watch has seen.
#[derive(Debug, Default)]
pub struct Seen {
    pub events: Vec<Event>,
    /// Those of the keys of transactions and leases.
    pub books: Vec<store::Event>,
    /// Everything up to here has been seen: by an event, or by a progress notification.
    pub upto: i64,
    /// How often it was started.
    pub starts: usize,
    /// How often it was told how far it is.
    pub notified: usize,
}

/// Watches from a revision on until everything up to `last` has been seen; `last` may be told later. What it has seen may be
/// compacted, if it tells so in a slot of [`Shared::watched`].
pub async fn watch(
    shared: Arc<Shared>,
    endpoint: String,
    from: i64,
    last: tokio::sync::watch::Receiver<Option<i64>>,
    slot: Option<usize>,
) -> Result<Seen> {
    let mut seen = Seen { upto: from - 1, ..Seen::default() };
    let done = |seen: &Seen| last.borrow().is_some_and(|last| seen.upto >= last);
    while !done(&seen) {
        match start(&endpoint, seen.upto + 1).await {
            Ok(mut stream) => {
                seen.starts += 1;
                while !done(&seen) && take(&mut stream, &shared, &mut seen).await? {
                    if let Some(slot) = slot {
                        shared.watched[slot].store(seen.upto, Ordering::Relaxed);
                    }
                }
            }
            // A proxy that is away.
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
    Ok(seen)
}

async fn start(endpoint: &str, from: i64) -> Result<WatchStream> {
    let connect = ConnectOptions::new().with_connect_timeout(Duration::from_secs(1));
    let mut client = Client::connect([endpoint], Some(connect)).await?;
    let options =
        WatchOptions::new().with_prefix().with_start_revision(from).with_prev_key().with_progress_notify();
    timeout(SILENCE_MAX, client.watch("/", Some(options))).await?.context("the watch cannot be started")
}

/// Takes the next answer; false when the stream has to be started again.
async fn take(stream: &mut WatchStream, shared: &Shared, seen: &mut Seen) -> Result<bool> {
    let mut silence = Duration::ZERO;
    let response = loop {
        match timeout(ASK_EVERY, stream.message()).await {
            Ok(Ok(Some(response))) => break response,
            Ok(Ok(None) | Err(_)) => return Ok(false),
            Err(_) if silence >= SILENCE_MAX => return Ok(false),
            Err(_) => {
                silence += ASK_EVERY;
                if timeout(ASK_EVERY, stream.request_progress()).await.is_err() {
                    return Ok(false);
                }
            }
        }
    };
    if response.canceled() {
        let reason = response.cancel_reason();
        ensure!(
            response.compact_revision() == 0,
            "a watch from {} on is refused: {response:?}",
            seen.upto + 1
        );
        // A proxy that shuts down or cannot serve it now.
        println!("a watch was cancelled: {reason}");
        return Ok(false);
    }
    let header = response.header().context("a watch response has no header")?.revision();
    if response.created() {
        return Ok(true);
    }
    if response.events().is_empty() {
        ensure!(header >= seen.upto, "progress went back from {} to {header}", seen.upto);
        seen.notified += 1;
        seen.upto = header;
        return Ok(true);
    }
    let before = seen.upto;
    for event in response.events() {
        let kv = event.kv().context("an event has no key")?;
        let revision = kv.mod_revision();
        ensure!(
            revision > before && revision >= seen.upto && revision <= header,
            "an event at {revision} came after {}, in a response of {before} < … <= {header}",
            seen.upto
        );
        seen.upto = revision;
        if let Some(key) = shared.books.iter().position(|name| name.as_bytes() == kv.key()) {
            let item = match event.event_type() {
                EventType::Put => Some(item_of(kv)?),
                EventType::Delete => None,
            };
            seen.books.push(store::Event { revision, key, item, told: shared.now() });
            continue;
        }
        let Some(key) = shared.keys.iter().position(|name| name.as_bytes() == kv.key()) else { continue };
        let previous = event.prev_kv().map(kv_of).transpose()?;
        let kv = match event.event_type() {
            EventType::Put => Some(kv_of(kv)?),
            EventType::Delete => None,
        };
        if previous.is_none() && kv.is_none_or(|kv| kv.create != kv.modified) {
            bail!("an event at {revision} of {key} has no previous value: {event:?}");
        }
        seen.events.push(Event { revision, key, kv, previous });
    }
    Ok(true)
}

/// A watch from before a compaction is refused, and told where it can start.
pub async fn is_refused_from(endpoint: &str, from: i64, compacted: i64) -> Result<()> {
    let mut stream = start(endpoint, from).await?;
    loop {
        let response = timeout(SILENCE_MAX, stream.message()).await??.context("a watch ended")?;
        if response.canceled() {
            let told = response.compact_revision();
            ensure!(told >= compacted, "a watch from {from} on is told of {told}, not {compacted}");
            return Ok(());
        }
        ensure!(
            response.created() && response.events().is_empty(),
            "a watch from {from} on gets {response:?}"
        );
    }
}
