//! Which of the replicas acts: the one that holds the Lease, as client-go's leaderelection has it.
//!
//! - A Lease is free when its holder released it, or when nothing about it has changed for its duration. That time is
//!   measured here, from when the last change was seen: clocks of two machines are never compared.
//! - Every write names the resourceVersion that it replaces, so of two that want it one gets it.
//! - The holder stops when it could not renew for the renew deadline, which is shorter than the duration: it stops
//!   before anybody else begins. [`Leadership::check`] is asked before every write to the API server, so a process that
//!   was paused writes nothing either.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::settings::Election;

/// A call to the API server about the Lease takes at most this long.
const CALL_MAX: Duration = Duration::from_secs(5);
/// Giving the Lease back takes at most this long.
const RELEASE_MAX: Duration = Duration::from_secs(2);

/// This replica must not act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this replica does not hold the lease")]
pub struct NotLeading;

/// The right to act, for a time.
#[derive(Clone)]
pub(crate) struct Leadership(Arc<Inner>);

struct Inner {
    /// `None`: for ever.
    until: Mutex<Option<Instant>>,
    lost: CancellationToken,
}

impl Leadership {
    /// For ever: there is no election.
    pub(crate) fn always() -> Self {
        Self(Arc::new(Inner { until: Mutex::new(None), lost: CancellationToken::new() }))
    }

    fn until(until: Instant) -> Self {
        Self(Arc::new(Inner { until: Mutex::new(Some(until)), lost: CancellationToken::new() }))
    }

    fn extend(&self, until: Instant) {
        *self.0.until.lock() = Some(until);
    }

    fn deadline(&self) -> Option<Instant> {
        *self.0.until.lock()
    }

    /// How long this replica may act without renewing, at most `max`.
    ///
    /// # Errors
    /// [`NotLeading`] if it may not act at all.
    pub(crate) fn check(&self, max: Duration) -> Result<Duration, NotLeading> {
        if self.0.lost.is_cancelled() {
            return Err(NotLeading);
        }
        let Some(until) = self.deadline() else { return Ok(max) };
        let rest = until.saturating_duration_since(Instant::now());
        if rest.is_zero() { Err(NotLeading) } else { Ok(rest.min(max)) }
    }

    /// Returns once it is lost.
    pub(crate) async fn lost(&self) {
        self.0.lost.cancelled().await;
    }
}

/// A replica that wants the Lease.
pub(crate) struct Candidate {
    api: Api<Lease>,
    election: Election,
    /// The Lease as it was last seen, and since when it has been like that.
    seen: Option<(Lease, Instant)>,
}

impl Candidate {
    pub(crate) fn new(client: Client, election: Election) -> Self {
        Self { api: Api::namespaced(client, &election.namespace), election, seen: None }
    }

    /// Tries until it has the Lease. `None` if `stop` comes first.
    pub(crate) async fn acquire(&mut self, stop: &CancellationToken) -> Option<Leadership> {
        let mut said = None;
        loop {
            let began = Instant::now();
            match timeout(CALL_MAX, self.attempt()).await {
                Ok(Ok(true)) => return Some(Leadership::until(began + self.election.renew_deadline)),
                Ok(Ok(false)) => {
                    let holder = self.holder();
                    if said != holder {
                        tracing::info!(holder, "standing by");
                        said = holder;
                    }
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, lease = self.election.lease, "cannot ask for the lease")
                }
                Err(_) => tracing::warn!(
                    lease = self.election.lease,
                    "the API server does not answer about the lease"
                ),
            }
            // Of several that stand by, not all ask at once.
            let pause = self.election.retry.mul_f64(rand::random_range(1.0..1.2));
            tokio::select! {
                () = sleep(pause) => {}
                () = stop.cancelled() => return None,
            }
        }
    }

    /// Renews until the Lease is lost, which `leadership` then says, or until `stop`: then it is given back.
    pub(crate) async fn hold(mut self, leadership: Leadership, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = sleep(self.election.retry) => {}
                () = stop.cancelled() => return self.release().await,
            }
            let deadline = leadership.deadline().unwrap_or_else(Instant::now);
            let began = Instant::now();
            let renewed = tokio::select! {
                renewed = timeout(CALL_MAX, self.attempt()) => renewed,
                () = sleep_until(deadline) => break,
            };
            match renewed {
                // Late is too late: somebody else may have begun.
                Ok(Ok(true)) if Instant::now() < deadline => {
                    leadership.extend(began + self.election.renew_deadline);
                }
                Ok(Ok(_)) => break,
                Ok(Err(error)) => {
                    tracing::warn!(%error, lease = self.election.lease, "cannot renew the lease")
                }
                Err(_) => {
                    tracing::warn!(lease = self.election.lease, "the API server does not renew the lease")
                }
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        leadership.0.lost.cancel();
    }

    fn holder(&self) -> Option<String> {
        self.seen.as_ref().and_then(|(lease, _)| holder(lease)).map(str::to_owned)
    }

    /// Takes or renews the Lease. False if another one holds it, or took it at this moment.
    async fn attempt(&mut self) -> kube::Result<bool> {
        let Some(lease) = self.api.get_opt(&self.election.lease).await? else {
            let lease = self.record(None);
            return match self.api.create(&PostParams::default(), &lease).await {
                Ok(lease) => {
                    self.seen = Some((lease, Instant::now()));
                    Ok(true)
                }
                Err(kube::Error::Api(status)) if status.is_already_exists() || status.is_conflict() => {
                    Ok(false)
                }
                Err(error) => Err(error),
            };
        };
        let changed = self.seen.as_ref().is_none_or(|(seen, _)| {
            seen.metadata.resource_version != lease.metadata.resource_version || seen.spec != lease.spec
        });
        if changed {
            self.seen = Some((lease.clone(), Instant::now()));
        }
        let since = self.seen.as_ref().map_or_else(Instant::now, |(_, since)| *since);
        let mine = holder(&lease) == Some(self.election.identity.as_str());
        let valid = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
        let valid = valid
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(self.election.duration, Duration::from_secs);
        if !mine && holder(&lease).is_some() && since.elapsed() < valid {
            return Ok(false);
        }
        let next = self.record(Some(&lease));
        match self.api.replace(&self.election.lease, &PostParams::default(), &next).await {
            Ok(lease) => {
                self.seen = Some((lease, Instant::now()));
                Ok(true)
            }
            // Somebody was faster. If that was us (an answer that got lost), the next try says so.
            Err(kube::Error::Api(status)) if status.is_conflict() && !mine => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The Lease with us as its holder.
    fn record(&self, last: Option<&Lease>) -> Lease {
        let spec = last.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let mine = spec.holder_identity.as_deref() == Some(self.election.identity.as_str());
        let now = MicroTime(Timestamp::now());
        let transitions = spec.lease_transitions.unwrap_or_default();
        let metadata = last.map_or_else(
            || ObjectMeta { name: Some(self.election.lease.clone()), ..ObjectMeta::default() },
            |lease| ObjectMeta { managed_fields: None, ..lease.metadata.clone() },
        );
        let spec = LeaseSpec {
            holder_identity: Some(self.election.identity.clone()),
            lease_duration_seconds: i32::try_from(self.election.duration.as_secs()).ok(),
            acquire_time: if mine { spec.acquire_time } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(if mine || last.is_none() {
                transitions
            } else {
                transitions.saturating_add(1)
            }),
            ..spec
        };
        Lease { metadata, spec: Some(spec) }
    }

    /// Gives the Lease back, so that another one need not wait.
    async fn release(self) {
        let Some((lease, _)) = &self.seen else { return };
        let mut next = self.record(Some(lease));
        if let Some(spec) = &mut next.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
        }
        let params = PostParams::default();
        match timeout(RELEASE_MAX, self.api.replace(&self.election.lease, &params, &next)).await {
            Ok(Ok(_)) => tracing::info!("the lease is given back"),
            Ok(Err(error)) => tracing::info!(%error, "the lease is not given back; it runs out by itself"),
            Err(_) => tracing::info!("the lease is not given back in time; it runs out by itself"),
        }
    }
}

/// Who holds a Lease.
fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::convert::Infallible;

    use http::{Method, Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    /// One Lease behind the API of Kubernetes.
    #[derive(Default)]
    struct Server {
        lease: Mutex<Option<Value>>,
        version: Mutex<u64>,
        /// Every call fails.
        down: Mutex<bool>,
    }

    impl Server {
        fn client(self: &Arc<Self>) -> Client {
            let server = Arc::clone(self);
            let service = tower::service_fn(move |request: Request<Body>| {
                let server = Arc::clone(&server);
                async move { Ok::<_, Infallible>(server.answer(request).await) }
            });
            Client::new(service, "default")
        }

        async fn answer(&self, request: Request<Body>) -> Response<Body> {
            let method = request.method().clone();
            let body = request.into_body().collect_bytes().await.unwrap();
            let sent = serde_json::from_slice::<Value>(&body).unwrap_or_default();
            let error = |code: u16, reason: &str| {
                (
                    code,
                    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": reason, "code": code}),
                )
            };
            let held = self.lease.lock().clone();
            let store = |mut sent: Value| {
                *self.version.lock() += 1;
                sent["metadata"]["resourceVersion"] = json!(self.version.lock().to_string());
                *self.lease.lock() = Some(sent.clone());
                (200, sent)
            };
            let (code, answer) = if *self.down.lock() {
                error(500, "InternalError")
            } else if method == Method::POST {
                store(sent)
            } else if method == Method::PUT {
                let version = held.as_ref().map(|lease| &lease["metadata"]["resourceVersion"]);
                if version == Some(&sent["metadata"]["resourceVersion"]) {
                    store(sent)
                } else {
                    error(409, "Conflict")
                }
            } else {
                held.map_or_else(|| error(404, "NotFound"), |lease| (200, lease))
            };
            Response::builder().status(code).body(Body::from(answer.to_string().into_bytes())).unwrap()
        }

        fn holder(&self) -> Option<String> {
            self.lease.lock().as_ref()?["spec"]["holderIdentity"].as_str().map(str::to_owned)
        }
    }

    fn candidate(server: &Arc<Server>, identity: &str) -> Candidate {
        Candidate::new(server.client(), Election::new("ns", identity))
    }

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_and_the_next_at_once_after_a_release() {
        let server = Arc::new(Server::default());
        let stop = CancellationToken::new();
        let mut a = candidate(&server, "a");
        let leads = a.acquire(&stop).await.unwrap();
        assert_eq!(server.holder().as_deref(), Some("a"));
        let mut b = candidate(&server, "b");
        assert!(!b.attempt().await.unwrap());
        let holding = tokio::spawn(a.hold(leads.clone(), stop.clone()));
        // Renewals keep the other one out for any time.
        for _ in 0..20 {
            sleep(Duration::from_secs(5)).await;
            assert!(!b.attempt().await.unwrap());
            leads.check(CALL_MAX).unwrap();
        }
        stop.cancel();
        holding.await.unwrap();
        assert!(b.attempt().await.unwrap());
        assert_eq!(server.holder().as_deref(), Some("b"));
        assert_eq!(server.lease.lock().as_ref().unwrap()["spec"]["leaseTransitions"], json!(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_is_silent_stops_before_another_begins() {
        let server = Arc::new(Server::default());
        let stop = CancellationToken::new();
        let mut a = candidate(&server, "a");
        let leads = a.acquire(&stop).await.unwrap();
        let mut b = candidate(&server, "b");
        assert!(!b.attempt().await.unwrap());
        let began = Instant::now();
        while !b.attempt().await.unwrap() {
            sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(began.elapsed(), Duration::from_secs(15));
        // The paused one wakes up and has not been told anything.
        assert_eq!(leads.check(CALL_MAX), Err(NotLeading));
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_cannot_renew_gives_up() {
        let server = Arc::new(Server::default());
        let stop = CancellationToken::new();
        let mut a = candidate(&server, "a");
        let leads = a.acquire(&stop).await.unwrap();
        *server.down.lock() = true;
        let began = Instant::now();
        let holding = tokio::spawn(a.hold(leads.clone(), stop.clone()));
        leads.lost().await;
        assert_eq!(began.elapsed(), Duration::from_secs(10));
        assert_eq!(leads.check(CALL_MAX), Err(NotLeading));
        holding.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_whose_lease_is_taken_gives_up() {
        let server = Arc::new(Server::default());
        let stop = CancellationToken::new();
        let mut a = candidate(&server, "a");
        let leads = a.acquire(&stop).await.unwrap();
        let taken = json!({"metadata": {"name": "sharded-etcd-operator", "resourceVersion": "77"},
            "spec": {"holderIdentity": "b", "leaseDurationSeconds": 15}});
        *server.lease.lock() = Some(taken);
        a.hold(leads.clone(), stop).await;
        assert_eq!(leads.check(CALL_MAX), Err(NotLeading));
        assert_eq!(server.holder().as_deref(), Some("b"));
    }
}
