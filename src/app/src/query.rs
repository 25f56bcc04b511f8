//! Asking a running topology, for `status`, `plan` and the orders by hand.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use sharded_etcd_admin_api::v1::{
    OrderRequest, OrderStateRequest, PlanRequest, StatusRequest, admin_client::AdminClient,
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use crate::cli::host_port;

/// How long a topology may take to be connected to.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long an answer may take: it needs figures of every shard.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Largest answer: a plan has up to some ten thousand steps.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A running topology.
pub struct Admin {
    endpoint: String,
    client: AdminClient<Channel>,
}

impl Admin {
    /// Connects to one.
    ///
    /// # Errors
    /// If the address makes no sense, or nothing answers there.
    pub async fn connect(endpoint: &str) -> Result<Self> {
        let address = host_port(endpoint).context("--endpoint")?;
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .with_context(|| format!("--endpoint {endpoint:?} is no address"))?
            .connect_timeout(CONNECT_MAX)
            .timeout(ANSWER_MAX)
            .connect()
            .await
            .map_err(|error| {
                anyhow!(
                    "nothing answers at {address} ({}): is `sharded-etcd up` running? give its endpoint with --endpoint",
                    root(&error)
                )
            })?;
        let client = AdminClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        Ok(Self { endpoint: address.to_owned(), client })
    }

    /// The topology as it is: the status of the resource, as JSON.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn status(&mut self) -> Result<String> {
        let answer = self.client.status(StatusRequest {}).await;
        Ok(answer.map_err(|status| self.failed(status))?.into_inner().status_json)
    }

    /// What a resource would change, as JSON.
    ///
    /// # Errors
    /// If it does not answer, or refuses the resource.
    pub async fn plan(&mut self, resource_json: String) -> Result<String> {
        let answer = self.client.plan(PlanRequest { resource_json }).await;
        Ok(answer.map_err(|status| self.failed(status))?.into_inner().plan_json)
    }

    /// Writes an order down, given as JSON; its id.
    ///
    /// # Errors
    /// If it does not answer, or refuses the order.
    pub async fn order(&mut self, order_json: String) -> Result<String> {
        let answer = self.client.order(OrderRequest { order_json }).await;
        Ok(answer.map_err(|status| self.failed(status))?.into_inner().id)
    }

    /// How far an order is, as JSON.
    ///
    /// # Errors
    /// If it does not answer, or does not know the order.
    pub async fn order_state(&mut self, id: &str) -> Result<String> {
        let answer = self.client.order_state(OrderStateRequest { id: id.to_owned() }).await;
        Ok(answer.map_err(|status| self.failed(status))?.into_inner().order_json)
    }

    fn failed(&self, status: Status) -> anyhow::Error {
        match status.code() {
            Code::Unimplemented => anyhow!(
                "what answers at {} is no sharded-etcd of this release: give the endpoint of one with --endpoint",
                self.endpoint
            ),
            Code::InvalidArgument => anyhow!("{}", status.message()),
            _ => anyhow!("{} answers: {}", self.endpoint, status.message()),
        }
    }
}

fn root(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// The value of JSON that a topology answered with.
///
/// # Errors
/// If it is not what this release reads.
pub fn decode<T: serde::de::DeserializeOwned>(json: &str, what: &str) -> Result<T> {
    match serde_json::from_str(json) {
        Ok(value) => Ok(value),
        Err(error) => bail!("the {what} is not readable by this release: {error}"),
    }
}
