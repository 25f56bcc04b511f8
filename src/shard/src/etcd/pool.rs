//! The connections to all members of one etcd cluster, as the service that tonic's clients send through.
//!
//! A thread that serves clients has connections of its own: an answer that arrives on another thread costs a wake-up more.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;
use tonic::{body::Body, codegen::Service};

use crate::with_causes;

use super::{
    EtcdOptions,
    connection::{Connection, Sender},
    endpoint::Endpoint,
    failure::SendFailure,
};

/// How long a member that did not answer is passed over while there is another one.
pub const SUSPENSION: Duration = Duration::from_secs(2);

/// A caller that gives up on a member after this long has found it hanging; one that gives up sooner had its own reason.
const HANGING: Duration = Duration::from_secs(1);

/// Sends each request to one member.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    members: Vec<Member>,
    next: AtomicUsize,
}

#[derive(Debug)]
struct Member {
    endpoint: Endpoint,
    options: Arc<EtcdOptions>,
    /// For all threads that do not serve.
    shared: Vec<Arc<Connection>>,
    /// By the number of the thread that serves. Not more than there ever were, and closed when their thread ends.
    own: RwLock<HashMap<usize, Arc<Connection>>>,
    suspended_until: Mutex<Option<Instant>>,
}

impl Member {
    /// The connection whose turn it is among those for this thread.
    fn connection(&self, turn: usize) -> Arc<Connection> {
        let thread = sharded_etcd_serve::thread();
        if thread == 0 {
            return Arc::clone(&self.shared[turn % self.shared.len()]);
        }
        if let Some(own) = self.own.read().get(&thread) {
            return Arc::clone(own);
        }
        let new = || Arc::new(Connection::new(self.endpoint.clone(), Arc::clone(&self.options)));
        Arc::clone(self.own.write().entry(thread).or_insert_with(new))
    }

    fn suspend(&self) {
        *self.suspended_until.lock() = Some(Instant::now() + SUSPENSION);
    }

    fn is_suspended(&self) -> bool {
        self.suspended_until.lock().is_some_and(|until| Instant::now() < until)
    }
}

impl Pool {
    /// A pool of `connections` connections to each member, and of one for each thread that serves; none is open yet.
    pub(super) fn new(endpoints: &[Endpoint], connections: usize, options: &Arc<EtcdOptions>) -> Self {
        let members = endpoints
            .iter()
            .map(|endpoint| Member {
                endpoint: endpoint.clone(),
                options: Arc::clone(options),
                shared: (0..connections)
                    .map(|_| Arc::new(Connection::new(endpoint.clone(), options.clone())))
                    .collect(),
                own: RwLock::default(),
                suspended_until: Mutex::default(),
            })
            .collect();
        Self { shared: Arc::new(Shared { members, next: AtomicUsize::new(0) }) }
    }

    /// Sends a request to one member.
    ///
    /// # Errors
    /// Whether the request may have got there, and why there is no answer.
    pub(super) async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, SendFailure> {
        self.shared.send(request).await
    }

    /// All endpoints, for messages.
    pub(super) fn names(&self) -> String {
        let names: Vec<_> = self.shared.members.iter().map(|member| member.endpoint.to_string()).collect();
        names.join(", ")
    }
}

impl Shared {
    /// Sends a request to one member.
    async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, SendFailure> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let mut refusal = String::new();
        // More than once, as a connection may have been closed since it was opened; it hands the request back then.
        for _ in 0..=self.members.len() {
            let (member, mut sender) = self.connected(turn).await.map_err(SendFailure::NotSent)?;
            let waiting = Waiting { member, since: Instant::now(), answered: false };
            match waiting.answer(sender.try_send_request(request)).await {
                Ok(response) => return Ok(response),
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) => {
                        refusal = format!("etcd at {} closed the connection", member.endpoint);
                        request = unsent;
                    }
                    None => {
                        let (endpoint, error) = (&member.endpoint, with_causes(&failed.into_error()));
                        return Err(SendFailure::Lost(format!(
                            "the connection to etcd at {endpoint} broke before an answer came: {error}"
                        )));
                    }
                },
            }
        }
        Err(SendFailure::NotSent(refusal))
    }

    /// A live connection to the member whose turn it is, or the next best: one that is connected and answers, one that
    /// can be connected to, one that did not answer lately.
    ///
    /// Nobody waits for a connection to one member while another is connected: that may take long, and is done beside.
    ///
    /// # Errors
    ///
    /// Why the last member could not be connected to, if none could.
    async fn connected(&self, turn: usize) -> Result<(&Member, Sender), String> {
        if let [member] = self.members.as_slice() {
            let sender = member.connection(turn).open().await?;
            return Ok((member, sender));
        }
        let count = self.members.len();
        let in_turn = (0..count).map(|step| &self.members[(turn + step) % count]);
        let (suspended, answering): (Vec<_>, Vec<_>) = in_turn.partition(|member| member.is_suspended());
        let connection = |member: &Member| member.connection(turn / count);
        for &member in &answering {
            let connection = connection(member);
            match connection.live() {
                Some(sender) => return Ok((member, sender)),
                None => connection.open_beside(),
            }
        }
        let mut refusal = String::new();
        for member in answering.into_iter().chain(suspended) {
            match connection(member).open().await {
                Ok(sender) => return Ok((member, sender)),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }
}

/// Suspends a member when its caller gives up waiting.
struct Waiting<'a> {
    member: &'a Member,
    since: Instant,
    answered: bool,
}

impl Waiting<'_> {
    async fn answer<E>(
        mut self,
        answer: impl Future<Output = Result<Response<Incoming>, E>>,
    ) -> Result<Response<Incoming>, E> {
        let answer = answer.await;
        self.answered = true;
        // An error without a body comes with its status in the headers. Unavailable (14) is what a member says that has
        // no leader or gave up waiting for one; others may be better off.
        if let Ok(response) = &answer
            && response.headers().get("grpc-status").is_some_and(|code| code == "14")
        {
            self.member.suspend();
        }
        answer
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.answered && self.since.elapsed() >= HANGING {
            self.member.suspend();
        }
    }
}

impl Service<Request<Body>> for Pool {
    type Response = Response<Incoming>;
    type Error = SendFailure;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = self.shared.clone();
        Box::pin(async move { shared.send(request).await })
    }
}
