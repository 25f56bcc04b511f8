//! The admin service beside etcd's: what `status` and `plan` ask.

use std::sync::Arc;

use sharded_etcd_admin_api::v1::admin_server::AdminServer;
use sharded_etcd_core::topology::Topology;
use sharded_etcd_crd::parse_json;
use sharded_etcd_line::{Line, Shards};
use sharded_etcd_manager::{AdminService, Sizes};
use tonic::service::Routes;

/// The service, to be served on a client port.
pub fn routes(
    line: &Arc<Line>,
    shards: &Arc<Shards>,
    sizes: &Arc<Sizes>,
    endpoint: Option<String>,
) -> Routes {
    Routes::new(AdminServer::new(service(line, shards, sizes, endpoint)))
}

/// The service itself.
pub fn service(
    line: &Arc<Line>,
    shards: &Arc<Shards>,
    sizes: &Arc<Sizes>,
    endpoint: Option<String>,
) -> AdminService {
    AdminService::new(
        Arc::clone(line),
        Arc::clone(shards),
        Arc::clone(sizes),
        Arc::new(|json: &str| topology(json)),
        endpoint,
    )
}

fn topology(json: &str) -> Result<Topology, String> {
    let resource = parse_json(json).map_err(|error| error.to_string())?;
    resource
        .topology()
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}
