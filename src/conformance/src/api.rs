//! The clients of one endpoint.

use std::time::Duration;

use sharded_etcd_etcd_api::{
    etcdserverpb::{
        auth_client::AuthClient, cluster_client::ClusterClient, kv_client::KvClient,
        lease_client::LeaseClient, maintenance_client::MaintenanceClient, watch_client::WatchClient,
    },
    health::health_client::HealthClient,
    v3electionpb::election_client::ElectionClient,
    v3lockpb::lock_client::LockClient,
};
use tonic::transport::{Channel, Endpoint};

/// How large an answer may be: more than anything that a case asks for.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// How long a connection may take.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Clients of one endpoint, over one connection.
#[derive(Debug, Clone)]
pub struct Api {
    /// `etcdserverpb.KV`.
    pub kv: KvClient<Channel>,
    /// `etcdserverpb.Watch`.
    pub watch: WatchClient<Channel>,
    /// `etcdserverpb.Lease`.
    pub lease: LeaseClient<Channel>,
    /// `etcdserverpb.Cluster`.
    pub cluster: ClusterClient<Channel>,
    /// `etcdserverpb.Maintenance`.
    pub maintenance: MaintenanceClient<Channel>,
    /// `etcdserverpb.Auth`.
    pub auth: AuthClient<Channel>,
    /// `v3lockpb.Lock`.
    pub lock: LockClient<Channel>,
    /// `v3electionpb.Election`.
    pub election: ElectionClient<Channel>,
    /// `grpc.health.v1.Health`.
    pub health: HealthClient<Channel>,
}

impl Api {
    /// Connects to `http://HOST:PORT`.
    ///
    /// # Errors
    /// If the endpoint is malformed or nothing listens there.
    pub async fn connect(endpoint: &str) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(endpoint.to_owned())?;
        Ok(Self::over(endpoint.connect_timeout(CONNECT_MAX).connect().await?))
    }

    /// Clients of several endpoints of one cluster: each request goes to any of them.
    ///
    /// # Errors
    /// If an endpoint is malformed.
    pub fn balanced(endpoints: &[String]) -> Result<Self, tonic::transport::Error> {
        let endpoints: Result<Vec<_>, _> =
            endpoints.iter().map(|endpoint| Endpoint::from_shared(endpoint.clone())).collect();
        Ok(Self::over(Channel::balance_list(endpoints?.into_iter())))
    }

    fn over(channel: Channel) -> Self {
        let max = ANSWER_BYTES_MAX;
        Self {
            kv: KvClient::new(channel.clone()).max_decoding_message_size(max),
            watch: WatchClient::new(channel.clone()).max_decoding_message_size(max),
            lease: LeaseClient::new(channel.clone()).max_decoding_message_size(max),
            cluster: ClusterClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel.clone()).max_decoding_message_size(max),
            auth: AuthClient::new(channel.clone()),
            lock: LockClient::new(channel.clone()),
            election: ElectionClient::new(channel.clone()),
            health: HealthClient::new(channel),
        }
    }
}
