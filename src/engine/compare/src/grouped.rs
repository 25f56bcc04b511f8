//! Group commit over any [`Storage`]: one thread takes all puts that wait, stores them, syncs once, answers them.
//!
//! As in etcd, an index in memory says which revision a key's newest value has; the storage knows revisions only.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    thread::JoinHandle,
};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot};

const GROUP_MAX: usize = 1024;

/// One put.
pub struct Record {
    pub revision: u64,
    pub key: Bytes,
    pub value: Bytes,
}

/// Something that keeps records by revision.
pub trait Storage: Send + Sync + 'static {
    /// Stores the records; they are durable when it returns.
    fn commit(&self, records: &[Record]) -> Result<()>;
    /// The value of a revision.
    fn get(&self, revision: u64) -> Result<Option<Bytes>>;
    /// Calls `each` for every record's revision and key, oldest first.
    fn load(&self, each: &mut dyn FnMut(u64, Bytes)) -> Result<()>;
}

type Index = Arc<RwLock<BTreeMap<Bytes, u64>>>;
type Reply = oneshot::Sender<Result<(), String>>;

/// A storage with its index and its thread.
pub struct Grouped {
    storage: Arc<dyn Storage>,
    index: Index,
    puts: mpsc::Sender<(Bytes, Bytes, Reply)>,
    thread: JoinHandle<()>,
}

impl Grouped {
    /// Loads the index and starts the thread.
    pub fn start(storage: impl Storage) -> Result<Self> {
        let storage: Arc<dyn Storage> = Arc::new(storage);
        let (mut index, mut newest) = (BTreeMap::new(), 0);
        storage.load(&mut |revision, key| {
            index.insert(key, revision);
            newest = newest.max(revision);
        })?;
        let index = Arc::new(RwLock::new(index));
        let (puts, received) = mpsc::channel(4096);
        let committer =
            Committer { storage: Arc::clone(&storage), index: Arc::clone(&index), revision: newest };
        let thread = std::thread::spawn(move || committer.run(received));
        Ok(Self { storage, index, puts, thread })
    }

    pub async fn put(&self, key: Bytes, value: Bytes) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.puts.send((key, value, reply)).await.context("the writer ended")?;
        answer.await?.map_err(|error| anyhow!(error))
    }

    pub fn get(&self, key: &Bytes) -> Result<Option<Bytes>> {
        let revision = self.index.read().get(key).copied();
        revision.map_or(Ok(None), |revision| self.storage.get(revision))
    }

    pub fn close(self) -> Result<()> {
        drop(self.puts);
        self.thread.join().map_err(|_| anyhow!("the writer panicked"))
    }
}

struct Committer {
    storage: Arc<dyn Storage>,
    index: Index,
    revision: u64,
}

impl Committer {
    fn run(mut self, mut puts: mpsc::Receiver<(Bytes, Bytes, Reply)>) {
        let mut received = Vec::new();
        let (mut records, mut replies) = (Vec::new(), VecDeque::new());
        while puts.blocking_recv_many(&mut received, GROUP_MAX) > 0 {
            for (key, value, reply) in received.drain(..) {
                self.revision += 1;
                // Copied, as a value that came from a network buffer has to be.
                let (key, value) = (Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value));
                records.push(Record { revision: self.revision, key, value });
                replies.push_back(reply);
            }
            let result = self.storage.commit(&records).map_err(|error| error.to_string());
            if result.is_ok() {
                let mut index = self.index.write();
                for record in records.drain(..) {
                    match index.get_mut(&record.key) {
                        Some(revision) => *revision = record.revision,
                        None => drop(index.insert(record.key, record.revision)),
                    }
                }
            }
            records.clear();
            for reply in replies.drain(..) {
                let _ = reply.send(result.clone());
            }
        }
    }
}
