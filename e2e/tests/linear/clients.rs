//! The clients: each does one operation after another and writes down what it asked, what came back, and when.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, DeleteOptions, Error, GetOptions, KeyValue, PutOptions,
    ResponseHeader, Txn, TxnOp, TxnOpResponse,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use sharded_etcd_linearizability::{
    Call,
    key::{Change, Guard, Input, Kv, Op, Output},
};
use tokio::time::{Instant, sleep, timeout};

/// How long a client waits for an answer.
pub const ANSWER_MAX: Duration = Duration::from_secs(3);

/// Folders of keys; they are on different shards at first.
pub const FOLDERS: [&str; 3] = ["/a/", "/b/", "/c/"];

/// The keys of one round.
pub fn keys(round: u64) -> Vec<String> {
    FOLDERS.iter().flat_map(|folder| (0..4).map(move |n| format!("{folder}r{round:04}-k{n}"))).collect()
}

/// What all clients of a round share.
pub struct Shared {
    pub keys: Vec<String>,
    /// The keys of transactions and leases.
    pub books: Vec<String>,
    pub begun: Instant,
    pub until: Instant,
    /// The newest revision that anybody was told.
    pub newest: AtomicI64,
    /// The first revision of the round.
    pub first: i64,
    /// How far each of the watches is that go on all the time.
    pub watched: [AtomicI64; 2],
    /// The highest revision that a compaction was asked for.
    pub compacting: AtomicI64,
    /// The highest revision that a compaction was acknowledged for.
    pub compacted: AtomicI64,
}

impl Shared {
    pub fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A read of several keys at once.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub begin: u64,
    pub end: u64,
    /// The header's revision.
    pub revision: i64,
    /// The revision that was asked for; 0 for the newest.
    pub asked: i64,
    /// The keys that it covers, by number, and what it saw of each.
    pub seen: BTreeMap<usize, Option<Kv>>,
}

/// What one client wrote down.
#[derive(Debug, Default)]
pub struct Diary {
    /// By number of the key.
    pub calls: Vec<(usize, Call<Op>)>,
    pub snapshots: Vec<Snapshot>,
    /// Values whose writes were refused before anything was sent.
    pub never: Vec<u64>,
    /// Values that were put in one transaction: both are there at one revision, or neither ever is.
    pub pairs: Vec<[u64; 2]>,
    /// How many reads were of a revision that was compacted.
    pub compacted: usize,
    /// How often which error came.
    pub errors: BTreeMap<String, usize>,
}

/// What an error says about the operation.
pub enum Trouble {
    /// It was not done.
    NotDone(String),
    /// Nobody knows.
    Unknown(String),
}

pub struct Worker {
    shared: std::sync::Arc<Shared>,
    client: Client,
    random: StdRng,
    /// Values of this client are this and above.
    value: u64,
    /// What it saw last of each key.
    known: BTreeMap<usize, Option<Kv>>,
    diary: Diary,
}

impl Worker {
    /// A client of some endpoints. `number` is unlike that of every other client of the run.
    pub async fn new(
        shared: std::sync::Arc<Shared>,
        endpoints: &[String],
        seed: u64,
        number: u64,
    ) -> Result<Self> {
        let options = ConnectOptions::new().with_connect_timeout(Duration::from_secs(1));
        Ok(Self {
            shared,
            client: Client::connect(endpoints, Some(options)).await?,
            random: StdRng::seed_from_u64(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            value: number * 1_000_000,
            known: BTreeMap::new(),
            diary: Diary::default(),
        })
    }

    /// Works until the end of the round.
    pub async fn work(mut self) -> Result<Diary> {
        while Instant::now() < self.shared.until {
            let done = match self.random.random_range(0..100) {
                0..8 => self.list(0).await?,
                8..13 => {
                    let newest = self.shared.newest.load(Ordering::Relaxed);
                    let revision = self.random.random_range(self.shared.first..=newest);
                    self.list(revision).await?
                }
                13..18 => self.read_several().await?,
                18..21 => self.sweep().await?,
                21..28 => self.put_two().await?,
                _ => self.one_key().await?,
            };
            // Who is refused does not come back at once.
            let pause = if done { self.random.random_range(0..15) } else { 50 };
            sleep(Duration::from_millis(pause)).await;
        }
        Ok(self.diary)
    }

    /// Reads all keys as they are and as they were at these revisions, which has to succeed.
    pub async fn look_back(mut self, revisions: &[i64]) -> Result<Diary> {
        for &revision in [0].iter().chain(revisions) {
            ensure!(self.list(revision).await?, "a list at {revision} failed: {:?}", self.diary.errors);
        }
        Ok(self.diary)
    }

    async fn one_key(&mut self) -> Result<bool> {
        let key = self.random.random_range(0..self.shared.keys.len());
        let input = self.some_input(key);
        let name = self.shared.keys[key].clone();
        let with_previous = self.random.random_bool(0.5);
        let begin = self.shared.now();
        let answer = timeout(ANSWER_MAX, ask(&mut self.client, &name, input, with_previous)).await;
        let end = self.shared.now();
        match answer.unwrap_or_else(|_| Ok(Err(Trouble::Unknown("no answer".to_owned()))))? {
            Ok(output) => {
                self.answered(key, begin, end, input, output);
                Ok(true)
            }
            Err(trouble) => Ok(self.lost(begin, trouble, &[(key, input)])),
        }
    }

    fn some_input(&mut self, key: usize) -> Input {
        let random = &mut self.random;
        if random.random_bool(0.3) {
            return Input::Get;
        }
        let guard = match (self.known.get(&key), random.random_range(0..6)) {
            (Some(kv), 0..3) => Some(Guard::Modified(kv.as_ref().map_or(0, |kv| kv.modified))),
            (Some(kv), 3) => Some(Guard::Version(kv.as_ref().map_or(0, |kv| kv.version))),
            (Some(Some(kv)), 4) => Some(Guard::Value(kv.value)),
            (None, 0) => Some(Guard::Modified(0)),
            _ => None,
        };
        if random.random_bool(0.15) {
            return Input::Write { guard, change: Change::Delete };
        }
        self.value += 1;
        Input::Write { guard, change: Change::Put(self.value) }
    }

    /// All keys at one revision; 0 for the newest.
    async fn list(&mut self, asked: i64) -> Result<bool> {
        let options = GetOptions::new().with_prefix().with_revision(asked);
        let gone = self.shared.compacted.load(Ordering::Relaxed);
        let begin = self.shared.now();
        let answer = timeout(ANSWER_MAX, self.client.get("/", Some(options))).await;
        let end = self.shared.now();
        let response = match answer.map_err(|_| Trouble::Unknown("no answer".to_owned())).and_then(told) {
            Ok(response) => response,
            Err(Trouble::Unknown(text)) if text.contains("revision has been compacted") => {
                let going = self.shared.compacting.load(Ordering::Relaxed);
                ensure!(asked > 0 && asked < going, "{asked} is refused, and compacted is {going}: {text}");
                self.diary.compacted += 1;
                return Ok(true);
            }
            Err(trouble) => {
                self.count(trouble);
                return Ok(false);
            }
        };
        ensure!(asked == 0 || asked >= gone, "{asked} is served, though {gone} was compacted before");
        let covered: Vec<usize> = (0..self.shared.keys.len()).collect();
        self.snapshot(begin, end, asked, response.header(), response.kvs(), &covered)?;
        Ok(true)
    }

    /// Deletes all keys of a folder, which are on one shard, in one revision.
    async fn sweep(&mut self) -> Result<bool> {
        let folder = FOLDERS[self.random.random_range(0..FOLDERS.len())];
        let all = 0..self.shared.keys.len();
        let keys: Vec<usize> = all.filter(|&key| self.shared.keys[key].starts_with(folder)).collect();
        // Keys of the round differ in their last letter only.
        let first = &self.shared.keys[keys[0]];
        let prefix = first[..first.len() - 1].to_owned();
        let input = Input::Write { guard: None, change: Change::Delete };
        let options = DeleteOptions::new().with_prefix().with_prev_key();
        let begin = self.shared.now();
        let answer = timeout(ANSWER_MAX, self.client.delete(prefix, Some(options))).await;
        let end = self.shared.now();
        let response = match answer.map_err(|_| Trouble::Unknown("no answer".to_owned())).and_then(told) {
            Ok(response) => response,
            Err(trouble) => {
                let writes: Vec<_> = keys.into_iter().map(|key| (key, input)).collect();
                return Ok(self.lost(begin, trouble, &writes));
            }
        };
        let revision = response.header().context("an answer has no header")?.revision();
        let deleted = usize::try_from(response.deleted())?;
        ensure!(deleted == response.prev_kvs().len(), "{deleted} deleted: {response:?}");
        let mut was: BTreeMap<usize, Kv> = BTreeMap::new();
        for kv in response.prev_kvs() {
            let key = self.shared.keys.iter().position(|name| name.as_bytes() == kv.key());
            was.insert(key.context("a key was deleted that nobody asked for")?, kv_of(kv)?);
        }
        for key in keys {
            let output = match was.get(&key) {
                Some(kv) => Output::Wrote { revision, previous: Some(Some(*kv)) },
                None => Output::Read { kv: None, revision },
            };
            self.answered(key, begin, end, input, output);
        }
        Ok(true)
    }

    /// Puts two keys of a folder in one transaction.
    async fn put_two(&mut self) -> Result<bool> {
        let key = self.random.random_range(0..self.shared.keys.len() - 1);
        let keys = [key, key + 1];
        if self.shared.keys[key][..3] != self.shared.keys[key + 1][..3] {
            return Ok(true);
        }
        self.value += 2;
        let values = [self.value - 1, self.value];
        let writes =
            [0, 1].map(|at| (keys[at], Input::Write { guard: None, change: Change::Put(values[at]) }));
        let puts =
            [0, 1].map(|at| TxnOp::put(self.shared.keys[keys[at]].as_str(), values[at].to_string(), None));
        self.diary.pairs.push(values);
        let begin = self.shared.now();
        let answer = timeout(ANSWER_MAX, self.client.txn(Txn::new().and_then(puts))).await;
        let end = self.shared.now();
        let response = match answer.map_err(|_| Trouble::Unknown("no answer".to_owned())).and_then(told) {
            Ok(response) => response,
            Err(trouble) => return Ok(self.lost(begin, trouble, &writes)),
        };
        let revision = response.header().context("an answer has no header")?.revision();
        for (key, input) in writes {
            self.answered(key, begin, end, input, Output::Wrote { revision, previous: None });
        }
        Ok(true)
    }

    /// Notes an answer.
    fn answered(&mut self, key: usize, begin: u64, end: u64, input: Input, output: Output) {
        self.shared.newest.fetch_max(output.revision(), Ordering::Relaxed);
        match output {
            Output::Read { kv, .. } => {
                self.known.insert(key, kv);
            }
            Output::Wrote { .. } => {
                self.known.remove(&key);
            }
        }
        self.diary.calls.push((key, Call { begin, end: Some(end), op: Op { input, output: Some(output) } }));
    }

    /// Notes that there was none. Always false: nothing was done.
    fn lost(&mut self, begin: u64, trouble: Trouble, asked: &[(usize, Input)]) -> bool {
        let unknown = matches!(trouble, Trouble::Unknown(_));
        self.count(trouble);
        for &(key, input) in asked {
            self.known.remove(&key);
            let Input::Write { change, .. } = input else { continue };
            if unknown {
                self.diary.calls.push((key, Call { begin, end: None, op: Op { input, output: None } }));
            } else if let Change::Put(value) = change {
                self.diary.never.push(value);
            }
        }
        false
    }

    /// Three keys in one transaction that only reads.
    async fn read_several(&mut self) -> Result<bool> {
        let keys: Vec<usize> = (0..3).map(|_| self.random.random_range(0..self.shared.keys.len())).collect();
        let reads: Vec<_> =
            keys.iter().map(|&key| TxnOp::get(self.shared.keys[key].as_str(), None)).collect();
        let begin = self.shared.now();
        let answer = timeout(ANSWER_MAX, self.client.txn(Txn::new().and_then(reads))).await;
        let end = self.shared.now();
        let response = match answer.map_err(|_| Trouble::Unknown("no answer".to_owned())).and_then(told) {
            Ok(response) => response,
            Err(trouble) => {
                self.count(trouble);
                return Ok(false);
            }
        };
        let mut kvs = Vec::new();
        for read in response.op_responses() {
            let TxnOpResponse::Get(read) = read else { anyhow::bail!("a read was answered with {read:?}") };
            kvs.extend(read.kvs().iter().cloned());
        }
        self.snapshot(begin, end, 0, response.header(), &kvs, &keys)?;
        Ok(true)
    }

    fn snapshot(
        &mut self,
        begin: u64,
        end: u64,
        asked: i64,
        header: Option<&ResponseHeader>,
        kvs: &[KeyValue],
        covered: &[usize],
    ) -> Result<()> {
        let revision = header.context("an answer has no header")?.revision();
        let mut seen: BTreeMap<usize, Option<Kv>> = covered.iter().map(|&key| (key, None)).collect();
        for kv in kvs {
            if let Some(key) = self.shared.keys.iter().position(|name| name.as_bytes() == kv.key()) {
                seen.insert(key, Some(kv_of(kv)?));
            }
        }
        self.shared.newest.fetch_max(revision, Ordering::Relaxed);
        if asked == 0 {
            self.known.extend(seen.iter().map(|(key, kv)| (*key, *kv)));
        }
        self.diary.snapshots.push(Snapshot { begin, end, revision, asked, seen });
        Ok(())
    }

    fn count(&mut self, trouble: Trouble) {
        let text = match trouble {
            Trouble::NotDone(text) => format!("not done: {text}"),
            Trouble::Unknown(text) => text,
        };
        // What is the same but for the key and the process counts as one.
        let kind: String = text.split(" at http").next().unwrap_or_default().chars().take(70).collect();
        *self.diary.errors.entry(kind).or_default() += 1;
    }
}

/// One operation on one key. The outer error is an answer that cannot be.
async fn ask(
    client: &mut Client,
    key: &str,
    input: Input,
    with_previous: bool,
) -> Result<Result<Output, Trouble>> {
    let revision = |header: Option<&ResponseHeader>| {
        header.map(ResponseHeader::revision).context("an answer has no header")
    };
    match input {
        Input::Get => {
            let response = match told(client.get(key, None).await) {
                Ok(response) => response,
                Err(trouble) => return Ok(Err(trouble)),
            };
            let kv = response.kvs().first().map(kv_of).transpose()?;
            Ok(Ok(Output::Read { kv, revision: revision(response.header())? }))
        }
        Input::Write { guard: None, change: Change::Put(value) } => {
            let options = with_previous.then(|| PutOptions::new().with_prev_key());
            let response = match told(client.put(key, value.to_string(), options).await) {
                Ok(response) => response,
                Err(trouble) => return Ok(Err(trouble)),
            };
            let previous = response.prev_key().map(kv_of).transpose()?;
            let previous = with_previous.then_some(previous);
            Ok(Ok(Output::Wrote { revision: revision(response.header())?, previous }))
        }
        Input::Write { guard: None, change: Change::Delete } => {
            let options = with_previous.then(|| DeleteOptions::new().with_prev_key());
            let response = match told(client.delete(key, options).await) {
                Ok(response) => response,
                Err(trouble) => return Ok(Err(trouble)),
            };
            let revision = revision(response.header())?;
            let previous = response.prev_kvs().first().map(kv_of).transpose()?;
            Ok(Ok(match response.deleted() {
                0 => Output::Read { kv: None, revision },
                _ => Output::Wrote { revision, previous: with_previous.then_some(previous) },
            }))
        }
        Input::Write { guard: Some(guard), change } => {
            let compare = match guard {
                Guard::Modified(revision) => Compare::mod_revision(key, CompareOp::Equal, revision),
                Guard::Version(version) => Compare::version(key, CompareOp::Equal, version),
                Guard::Value(value) => Compare::value(key, CompareOp::Equal, value.to_string()),
            };
            let write = match change {
                Change::Put(value) => TxnOp::put(key, value.to_string(), None),
                Change::Delete => TxnOp::delete(key, None),
            };
            let txn = Txn::new().when([compare]).and_then([write]).or_else([TxnOp::get(key, None)]);
            let response = match told(client.txn(txn).await) {
                Ok(response) => response,
                Err(trouble) => return Ok(Err(trouble)),
            };
            let revision = revision(response.header())?;
            let answers = response.op_responses();
            ensure!(answers.len() == 1, "one operation was answered with {answers:?}");
            Ok(Ok(match &answers[0] {
                TxnOpResponse::Get(read) if !response.succeeded() => {
                    Output::Read { kv: read.kvs().first().map(kv_of).transpose()?, revision }
                }
                TxnOpResponse::Delete(delete) if delete.deleted() == 0 => Output::Read { kv: None, revision },
                TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) if response.succeeded() => {
                    Output::Wrote { revision, previous: None }
                }
                other => anyhow::bail!("a transaction was answered with {other:?}"),
            }))
        }
    }
}

/// What an answer or error says about the operation.
pub fn told<T>(answer: Result<T, Error>) -> Result<T, Trouble> {
    let error = match answer {
        Ok(response) => return Ok(response),
        Err(error) => error,
    };
    let text = match &error {
        Error::GRpcStatus(status) => format!("{:?}: {}", status.code(), status.message()),
        other => other.to_string(),
    };
    // The proxy promises it of the first two; the last one is a connection that never was.
    let promises = ["not sent", "there is no connection available", "tcp connect error"];
    let not_done = promises.iter().any(|promise| text.contains(promise));
    Err(if not_done { Trouble::NotDone(text) } else { Trouble::Unknown(text) })
}

/// A key as the checker knows it.
pub fn kv_of(kv: &KeyValue) -> Result<Kv> {
    let value = kv.value_str().ok().and_then(|value| value.parse().ok());
    Ok(Kv {
        value: value.with_context(|| format!("nobody wrote {:?}", kv.value()))?,
        create: kv.create_revision(),
        modified: kv.mod_revision(),
        version: kv.version(),
    })
}

/// Compacts now and then, never beyond what the watches have seen; how often that was acknowledged.
pub async fn compact(shared: std::sync::Arc<Shared>, endpoints: Vec<String>) -> Result<usize> {
    let mut done = 0;
    for endpoint in endpoints.iter().cycle() {
        sleep(Duration::from_secs(2)).await;
        if Instant::now() >= shared.until {
            break;
        }
        let seen = shared.watched.iter().map(|upto| upto.load(Ordering::Relaxed)).min();
        let revision = seen.unwrap_or(0) - 20;
        if revision <= shared.compacting.load(Ordering::Relaxed).max(shared.first) {
            continue;
        }
        shared.compacting.store(revision, Ordering::Relaxed);
        let options = ConnectOptions::new().with_connect_timeout(Duration::from_secs(1));
        let mut client = Client::connect([endpoint], Some(options)).await?;
        if let Ok(Ok(_)) = timeout(ANSWER_MAX, client.compact(revision, None)).await {
            shared.compacted.store(revision, Ordering::Relaxed);
            done += 1;
        }
    }
    Ok(done)
}
