//! Clients with transactions on several keys and with leases. What they were told is judged as a whole, in the order of the
//! revisions (`sharded_etcd_linearizability::store`).

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, DeleteOptions, GetOptions, KeyValue, PutOptions, Txn, TxnOp,
    TxnOpResponse,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use sharded_etcd_linearizability::{
    key::Guard,
    store::{Action, Answer, Event, History, Item, Lease, Outcome, Renewal, Request, Txn as Entry, check},
};
use tokio::time::{Instant, sleep, timeout};

use crate::clients::{ANSWER_MAX, FOLDERS, Shared, Trouble, kv_of, told};

/// Keys of each folder; they are next to each other, and no others are between them.
const KEYS: usize = 4;
/// etcd's text for a lease that is not there.
const NO_LEASE: &str = "requested lease not found";

/// The keys of one round.
pub fn keys(round: u64) -> Vec<String> {
    FOLDERS.iter().flat_map(|folder| (0..KEYS).map(move |n| format!("{folder}r{round:04}-s{n}"))).collect()
}

/// A key and its lease, as the judge knows them.
pub fn item_of(kv: &KeyValue) -> Result<Item> {
    Ok(Item { kv: kv_of(kv)?, lease: kv.lease() })
}

/// What one client wrote down.
#[derive(Debug, Default)]
pub struct Book {
    entries: Vec<Entry>,
    leases: BTreeMap<i64, Lease>,
}

/// See the module.
pub struct Bookkeeper {
    shared: Arc<Shared>,
    client: Client,
    random: StdRng,
    /// Values of this client are this and above.
    value: u64,
    /// What it saw last of each key.
    known: BTreeMap<usize, Option<Item>>,
    /// The lease that it has now.
    lease: Option<i64>,
    book: Book,
}

impl Bookkeeper {
    /// A client of some endpoints. `number` is unlike that of every other client of the run.
    pub async fn new(shared: Arc<Shared>, endpoints: &[String], seed: u64, number: u64) -> Result<Self> {
        let options = ConnectOptions::new().with_connect_timeout(Duration::from_secs(1));
        Ok(Self {
            shared,
            client: Client::connect(endpoints, Some(options)).await?,
            random: StdRng::seed_from_u64(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            value: number * 1_000_000,
            known: BTreeMap::new(),
            lease: None,
            book: Book::default(),
        })
    }

    /// Works until the end of the round.
    pub async fn work(mut self) -> Result<Book> {
        while Instant::now() < self.shared.until {
            let done = match self.random.random_range(0..100) {
                0..15 => self.read().await?,
                15..35 => self.look_after_lease().await?,
                _ => self.transact().await?,
            };
            // Who is refused does not come back at once.
            let pause = if done { self.random.random_range(0..20) } else { 50 };
            sleep(Duration::from_millis(pause)).await;
        }
        Ok(self.book)
    }

    /// All keys of all folders, at one revision.
    async fn read(&mut self) -> Result<bool> {
        let all = Action::Get { from: 0, upto: self.shared.books.len() };
        let request = Request { then: vec![all], ..Request::default() };
        let options = GetOptions::new().with_prefix();
        let begin = self.shared.now();
        let asked = timeout(ANSWER_MAX, self.client.get("/", Some(options))).await;
        let end = self.shared.now();
        let Ok(Ok(response)) = asked else { return Ok(false) };
        let revision = response.header().context("an answer has no header")?.revision();
        let seen = vec![Some(self.items(response.kvs())?)];
        self.note(begin, end, request, Answer { revision, succeeded: true, seen });
        Ok(true)
    }

    fn items(&self, kvs: &[KeyValue]) -> Result<BTreeMap<usize, Item>> {
        let place = |kv: &KeyValue| self.shared.books.iter().position(|name| name.as_bytes() == kv.key());
        kvs.iter().filter_map(|kv| Some((place(kv)?, kv))).map(|(key, kv)| Ok((key, item_of(kv)?))).collect()
    }

    /// Some request on the keys of one folder, which are on one shard.
    fn some_request(&mut self) -> Request {
        let first = KEYS * self.random.random_range(0..FOLDERS.len());
        let mut compares = Vec::new();
        for key in first..first + KEYS {
            let Some(item) = self.known.get(&key) else { continue };
            let kv = item.map(|item| item.kv);
            match self.random.random_range(0..8) {
                0 => compares.push((key, Guard::Modified(kv.map_or(0, |kv| kv.modified)))),
                1 => compares.push((key, Guard::Version(kv.map_or(0, |kv| kv.version)))),
                2 => compares.extend(kv.map(|kv| (key, Guard::Value(kv.value)))),
                _ => {}
            }
        }
        let everything = Action::Get { from: first, upto: first + KEYS };
        let mut then = Vec::new();
        if self.random.random_bool(0.4) {
            then.push(everything);
        }
        // Puts below, a deletion above: etcd takes no request that does both to one key.
        let cut = first + self.random.random_range(0..=KEYS);
        let lease = self.lease.filter(|_| self.random.random_bool(0.5)).unwrap_or(0);
        for key in first..cut {
            if self.random.random_bool(0.6) {
                self.value += 1;
                then.push(Action::Put { key, value: self.value, lease });
            }
        }
        if cut < first + KEYS && self.random.random_bool(0.25) {
            then.push(Action::Delete { from: cut, upto: first + KEYS });
        }
        then.push(everything);
        Request { compares, then, otherwise: vec![everything], at: None }
    }

    async fn transact(&mut self) -> Result<bool> {
        let request = self.some_request();
        let name = |key: usize| self.shared.books[key].as_str();
        let compares: Vec<Compare> = request
            .compares
            .iter()
            .map(|&(key, guard)| match guard {
                Guard::Modified(revision) => Compare::mod_revision(name(key), CompareOp::Equal, revision),
                Guard::Version(version) => Compare::version(name(key), CompareOp::Equal, version),
                Guard::Value(value) => Compare::value(name(key), CompareOp::Equal, value.to_string()),
            })
            .collect();
        let behind = |upto: usize| format!("{}\0", name(upto - 1));
        let op = |action: &Action| match *action {
            Action::Put { key, value, lease } => {
                let options = PutOptions::new().with_prev_key().with_lease(lease);
                TxnOp::put(name(key), value.to_string(), Some(options))
            }
            Action::Delete { from, upto } => {
                let options = DeleteOptions::new().with_prev_key().with_range(behind(upto));
                TxnOp::delete(name(from), Some(options))
            }
            Action::Get { from, upto } => {
                TxnOp::get(name(from), Some(GetOptions::new().with_range(behind(upto))))
            }
        };
        let ops = |actions: &[Action]| actions.iter().map(op).collect::<Vec<_>>();
        let txn = Txn::new().when(compares).and_then(ops(&request.then)).or_else(ops(&request.otherwise));
        let begin = self.shared.now();
        let asked = timeout(ANSWER_MAX, self.client.txn(txn)).await;
        let end = self.shared.now();
        let response = match asked.map_err(|_| Trouble::Unknown("no answer".to_owned())).and_then(told) {
            Ok(response) => response,
            Err(trouble) => return self.not_answered(begin, request, &trouble).map(|()| false),
        };
        let revision = response.header().context("an answer has no header")?.revision();
        let mut seen = Vec::new();
        for op in response.op_responses() {
            seen.push(Some(match &op {
                TxnOpResponse::Get(read) => self.items(read.kvs())?,
                TxnOpResponse::Delete(delete) => self.items(delete.prev_kvs())?,
                TxnOpResponse::Put(put) => match put.prev_key() {
                    Some(kv) => self.items(std::slice::from_ref(kv))?,
                    None => BTreeMap::new(),
                },
                TxnOpResponse::Txn(_) => anyhow::bail!("{request:?} was answered with {op:?}"),
            }));
        }
        self.note(begin, end, request, Answer { revision, succeeded: response.succeeded(), seen });
        Ok(true)
    }

    /// Notes an answer; the last thing that each request does is to look.
    fn note(&mut self, begin: u64, end: u64, request: Request, answer: Answer) {
        self.shared.newest.fetch_max(answer.revision, Ordering::Relaxed);
        let ran = if answer.succeeded { &request.then } else { &request.otherwise };
        if let (Some(&Action::Get { from, upto }), Some(Some(seen))) = (ran.last(), answer.seen.last()) {
            self.known.extend((from..upto).map(|key| (key, seen.get(&key).copied())));
        }
        self.book.entries.push(Entry { begin, request, outcome: Outcome::Answered { end, answer } });
    }

    fn not_answered(&mut self, begin: u64, request: Request, trouble: &Trouble) -> Result<()> {
        let outcome = match trouble {
            Trouble::Unknown(text) if text.contains(NO_LEASE) => {
                self.lease_is_gone(text)?;
                Outcome::Refused
            }
            Trouble::Unknown(_) => Outcome::Unknown,
            Trouble::NotDone(_) => Outcome::Refused,
        };
        self.book.entries.push(Entry { begin, request, outcome });
        Ok(())
    }

    /// Somebody said that there is no such lease any more: that must be possible.
    fn lease_is_gone(&mut self, text: &str) -> Result<()> {
        let Some(id) = self.lease.take() else { return Ok(()) };
        let now = self.shared.now();
        let may_be = self.book.leases.get(&id).is_none_or(|lease| lease.may_end_by(now));
        ensure!(may_be, "lease {id:x} is said to be gone at {now} ({text}): {:?}", self.book.leases.get(&id));
        Ok(())
    }

    /// Gets a lease, keeps it alive, revokes it, or leaves it alone from now on.
    async fn look_after_lease(&mut self) -> Result<bool> {
        let Some(id) = self.lease else { return self.grant().await };
        match self.random.random_range(0..10) {
            0 => self.revoke(id).await,
            1 => {
                self.lease = None;
                Ok(true)
            }
            _ => self.keep_alive(id).await,
        }
    }

    async fn grant(&mut self) -> Result<bool> {
        let ttl = self.random.random_range(2..6);
        let begin = self.shared.now();
        let Ok(Ok(response)) = timeout(ANSWER_MAX, self.client.lease_grant(ttl, None)).await else {
            return Ok(false);
        };
        let ttl = Duration::from_secs(response.ttl().try_into()?);
        let renewals = vec![Renewal { begin }];
        let lease = Lease { ttl: u64::try_from(ttl.as_nanos())?, renewals, ..Lease::default() };
        self.book.leases.insert(response.id(), lease);
        self.lease = Some(response.id());
        Ok(true)
    }

    async fn keep_alive(&mut self, id: i64) -> Result<bool> {
        let begin = self.shared.now();
        let asked = timeout(ANSWER_MAX, async {
            let (mut keeper, mut answers) = self.client.lease_keep_alive(id).await?;
            keeper.keep_alive().await?;
            answers.message().await
        });
        match asked.await {
            Ok(Ok(Some(answer))) if answer.ttl() > 0 => {
                if let Some(lease) = self.book.leases.get_mut(&id) {
                    lease.renewals.push(Renewal { begin });
                }
                Ok(true)
            }
            Ok(Ok(Some(_))) => self.lease_is_gone("a keep-alive").map(|()| true),
            _ => Ok(false),
        }
    }

    async fn revoke(&mut self, id: i64) -> Result<bool> {
        if let Some(lease) = self.book.leases.get_mut(&id) {
            lease.revoking = Some(self.shared.now());
        }
        self.lease = None;
        let Ok(Ok(response)) = timeout(ANSWER_MAX, self.client.lease_revoke(id)).await else {
            return Ok(false);
        };
        let revision = response.header().context("an answer has no header")?.revision();
        if let Some(lease) = self.book.leases.get_mut(&id) {
            lease.revoked = Some(revision);
        }
        Ok(true)
    }
}

/// Judges what the clients of a round wrote down, with the events of watches from its beginning up to revision `upto`: leases
/// may end later, too.
///
/// # Errors
/// The first thing that cannot be, or that too little happened to say anything.
pub fn judge(
    shared: &Shared,
    (before, upto): (i64, i64),
    books: Vec<Book>,
    watches: &[&[Event]],
) -> Result<()> {
    let watches: Vec<&[Event]> =
        watches.iter().map(|events| &events[..events.partition_point(|e| e.revision <= upto)]).collect();
    let Some((&events, others)) = watches.split_first() else { anyhow::bail!("nothing was watched") };
    for other in others {
        let differs = events.iter().zip(*other).find(|(a, b)| Event { told: a.told, ..**b } != **a);
        ensure!(differs.is_none(), "two watches differ: {differs:?}");
        ensure!(events.len() == other.len(), "a watch has {} events, another {}", events.len(), other.len());
    }
    let mut history = History {
        before,
        groups: (0..shared.books.len()).map(|key| key / KEYS).collect(),
        events: events.to_vec(),
        ..History::default()
    };
    for book in books {
        history.txns.extend(book.entries);
        history.leases.extend(book.leases);
    }
    let answered = history.txns.iter().filter(|txn| matches!(txn.outcome, Outcome::Answered { .. })).count();
    let unknown = history.txns.iter().filter(|txn| txn.outcome == Outcome::Unknown).count();
    let revoked = history.leases.values().filter(|lease| lease.revoked.is_some()).count();
    println!(
        "{answered} transactions answered, {unknown} of unknown outcome, {} events; {} leases, {revoked} revoked",
        events.len(),
        history.leases.len(),
    );
    ensure!(answered > 50, "only {answered} transactions were answered");
    check(&history).context("transactions and leases")
}
