//! What the operator was told when it was started.

use std::{net::SocketAddr, time::Duration};

/// Repository of the etcd image, unless it is said otherwise.
pub const ETCD_IMAGE_DEFAULT: &str = "gcr.io/etcd-development/etcd";

/// What the objects that the operator makes depend on, beside the resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Image of this program, for proxies, shard managers and the guard of a member's volume.
    pub image: String,
    /// Repository of the etcd image; `spec.image` goes before it, the tag is `v<spec.version>`.
    pub etcd_image: String,
    /// Namespace that the operator's own pods run in, for the NetworkPolicies that let them in; `None`: not known, so
    /// any namespace.
    pub operator_namespace: Option<String>,
}

impl Settings {
    /// Those with the images given, and with etcd's public image if `etcd_image` is `None`.
    pub fn new(image: impl Into<String>, etcd_image: Option<String>) -> Self {
        Self {
            image: image.into(),
            etcd_image: etcd_image.unwrap_or_else(|| ETCD_IMAGE_DEFAULT.to_owned()),
            operator_namespace: None,
        }
    }
}

/// Arguments of the program.
#[derive(Debug, Clone)]
pub struct Options {
    /// Image of this program.
    pub image: String,
    /// Repository of the etcd image; `None`: [`ETCD_IMAGE_DEFAULT`].
    pub etcd_image: Option<String>,
    /// Only resources of this namespace; `None`: of all.
    pub watch_namespace: Option<String>,
    /// Where `/livez`, `/readyz` and `/metrics` are served.
    pub listen: SocketAddr,
    /// Namespace of the Lease; `None`: the one that the operator runs in, as its service account says.
    pub lease_namespace: Option<String>,
    /// Name of this replica in the Lease, different from that of every other; `None`: the host's name and a random part.
    pub identity: Option<String>,
}

/// How often things are done. [`Pace::default`] is for real clusters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pace {
    /// Between two questions to the shard manager of a resource in which something changes.
    pub ask_in_flux: Duration,
    /// Between two questions to the shard manager of a resource that is steady.
    pub ask_steady: Duration,
    /// For how long an answer of the shard manager may be acted on.
    pub answer_age_max: Duration,
    /// Before the first retry of a reconcile that failed; doubled with each further failure.
    pub retry_min: Duration,
    /// Longest time before a retry.
    pub retry_max: Duration,
    /// Between two reconciles of a resource of which nothing is heard.
    pub resync: Duration,
    /// Between two writes of a status in which only counts differ (keys, bytes, revisions).
    pub counts: Duration,
    /// Changes that come within this time of one another are one reconcile.
    pub debounce: Duration,
    /// Before another look, when what was seen turned out to be old.
    pub again: Duration,
    /// How long the watches may take to show what the operator itself has written, before it asks the API server.
    pub stale_max: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            ask_in_flux: Duration::from_secs(2),
            ask_steady: Duration::from_secs(30),
            answer_age_max: Duration::from_secs(60),
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(60),
            resync: Duration::from_secs(300),
            counts: Duration::from_secs(60),
            debounce: Duration::from_millis(50),
            again: Duration::from_secs(1),
            stale_max: Duration::from_secs(10),
        }
    }
}

/// Two or more replicas of which one acts: the Lease that says which.
///
/// The numbers are client-go's (tools/leaderelection).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Election {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub lease: String,
    /// Name of this replica.
    pub identity: String,
    /// How long the others wait after the last renewal that they saw. Whole seconds.
    pub duration: Duration,
    /// How long this one tries to renew before it gives up. Less than `duration`.
    pub renew_deadline: Duration,
    /// Between two tries. Less than `renew_deadline`.
    pub retry: Duration,
}

impl Election {
    /// Name of the operator's Lease.
    pub const LEASE: &str = "sharded-etcd-operator";

    /// The election in `namespace`, with client-go's numbers.
    pub fn new(namespace: impl Into<String>, identity: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            lease: Self::LEASE.to_owned(),
            identity: identity.into(),
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}
