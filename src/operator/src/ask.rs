//! Asks the shard manager of a topology.

use std::{collections::HashMap, error::Error, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use sharded_etcd_admin_api::v1::{StatusRequest, admin_client::AdminClient};
use tonic::transport::{Channel, Endpoint};

use crate::{error::chain, model::TopologyAnswer, names::admin_url};

/// Asks the shard manager of a resource; bounded in time.
#[async_trait]
pub trait Ask: Send + Sync + 'static {
    /// What the shard manager of the resource `name` in `namespace` answers.
    async fn ask(&self, namespace: &str, name: &str) -> TopologyAnswer;
}

/// How long a connection may take.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Connections that are kept.
const CONNECTIONS_MAX: usize = 1024;

/// Asks over the admin gRPC, on one connection for each topology.
pub struct GrpcAsk {
    channels: Mutex<HashMap<String, Channel>>,
}

impl GrpcAsk {
    /// Without connections yet.
    pub fn new() -> Self {
        Self { channels: Mutex::default() }
    }

    fn channel(&self, url: &str) -> Result<Channel, tonic::transport::Error> {
        let mut channels = self.channels.lock();
        if let Some(channel) = channels.get(url) {
            return Ok(channel.clone());
        }
        // A manager whose node lost its power sends no word: only a ping tells.
        let endpoint = Endpoint::from_shared(url.to_owned())?
            .connect_timeout(CONNECT_MAX)
            .timeout(ANSWER_MAX)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true);
        let channel = endpoint.connect_lazy();
        if channels.len() >= CONNECTIONS_MAX {
            // Those that are needed are made again.
            channels.clear();
        }
        channels.insert(url.to_owned(), channel.clone());
        Ok(channel)
    }

    async fn ask_url(&self, url: &str) -> TopologyAnswer {
        let channel = match self.channel(url) {
            Ok(channel) => channel,
            Err(error) => return TopologyAnswer::Unknown(format!("{url} is no address: {}", chain(&error))),
        };
        let answered = AdminClient::new(channel).status(StatusRequest {}).await;
        let answer = match answered {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                // The next question gets a new connection, perhaps to another replica.
                self.channels.lock().remove(url);
                let why = status.source().map_or_else(|| status.message().to_owned(), chain);
                return TopologyAnswer::Unknown(format!("the shard manager does not answer: {why}"));
            }
        };
        match serde_json::from_str(&answer.status_json) {
            Ok(report) => TopologyAnswer::Known(Box::new(report)),
            Err(error) => {
                TopologyAnswer::Unknown(format!("the shard manager's answer cannot be read: {error}"))
            }
        }
    }
}

impl Default for GrpcAsk {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Ask for GrpcAsk {
    async fn ask(&self, namespace: &str, name: &str) -> TopologyAnswer {
        self.ask_url(&admin_url(name, namespace)).await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use sharded_etcd_admin_api::v1::{
        OrderRequest, OrderResponse, OrderStateRequest, OrderStateResponse, PlanRequest, PlanResponse,
        StatusResponse,
        admin_server::{Admin, AdminServer},
    };
    use sharded_etcd_crd::status::ShardPhase;
    use tokio::net::TcpListener;
    use tokio_util::sync::CancellationToken;
    use tonic::{
        Request, Response, Status,
        transport::{Server, server::TcpIncoming},
    };

    use super::*;
    use crate::model::LeftShard;

    struct Manager(Result<String, String>);

    #[async_trait]
    impl Admin for Manager {
        async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
            match &self.0 {
                Ok(status_json) => Ok(Response::new(StatusResponse { status_json: status_json.clone() })),
                Err(why) => Err(Status::unavailable(why.clone())),
            }
        }

        async fn plan(&self, _: Request<PlanRequest>) -> Result<Response<PlanResponse>, Status> {
            Err(Status::unimplemented("not asked"))
        }

        async fn order(&self, _: Request<OrderRequest>) -> Result<Response<OrderResponse>, Status> {
            Err(Status::unimplemented("not asked"))
        }

        async fn order_state(
            &self,
            _: Request<OrderStateRequest>,
        ) -> Result<Response<OrderStateResponse>, Status> {
            Err(Status::unimplemented("not asked"))
        }
    }

    async fn ask(answer: Result<&str, &str>) -> TopologyAnswer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let manager = Manager(answer.map(str::to_owned).map_err(str::to_owned));
        let stop = CancellationToken::new();
        let server = Server::builder()
            .add_service(AdminServer::new(manager))
            .serve_with_incoming_shutdown(TcpIncoming::from(listener), stop.clone().cancelled_owned());
        let server = tokio::spawn(server);
        let asker = GrpcAsk::new();
        let answer = asker.ask_url(&url).await;
        drop(asker);
        stop.cancel();
        server.await.unwrap().unwrap();
        answer
    }

    #[tokio::test]
    async fn an_answer_is_read() {
        let json = r#"{"observedGeneration": 4, "shards": 1, "topology": [{"shard": "shard-0", "incarnation": 2,
            "phase": "Draining", "members": 3, "ready": 3, "dbSize": 1, "keys": 2, "bytes": 3, "ranges": 4}],
            "left": [{"shard": "shard-1", "incarnation": 0}], "newer": true}"#;
        let TopologyAnswer::Known(report) = ask(Ok(json)).await else { panic!("known") };
        assert_eq!(report.status.observed_generation, Some(4));
        assert_eq!(report.status.topology[0].phase, ShardPhase::Draining);
        assert_eq!(report.status.topology[0].incarnation, Some(2));
        assert_eq!(report.left, [LeftShard { shard: "shard-1".into(), incarnation: 0 }]);
    }

    #[tokio::test]
    async fn no_answer_says_why() {
        let why = |answer| match answer {
            TopologyAnswer::Unknown(why) => why,
            other => panic!("{other:?}"),
        };
        assert!(why(ask(Err("no leader")).await).contains("no leader"));
        assert!(why(ask(Ok("{")).await).contains("cannot be read"));
        // A port that nobody listens on.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        assert!(why(GrpcAsk::new().ask_url(&url).await).contains("refused"));
    }
}
