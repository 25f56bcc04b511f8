//! `grpc.health.v1.Health`, as probes and load balancers ask.

use sharded_etcd_etcd_api::health::{
    HealthCheckRequest, HealthListRequest, health_check_response::ServingStatus,
};
use tonic::{Code, Response};

use crate::{
    Suite,
    check::{Stop, needed},
};

fn of(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

pub(super) fn add(suite: &mut Suite) {
    suite.case(
        "health/check",
        "the server as a whole serves; no service has a health of its own",
        |c| async move {
            let mut client = c.api.health.clone();
            let answer = needed("Check", client.check(of("")).await)?.into_inner();
            c.same("status", answer.status(), ServingStatus::Serving);
            let one = client.check(of("etcdserverpb.KV")).await.map(Response::into_inner);
            c.refused(one, Code::NotFound, "unknown service");
            Ok(())
        },
    );
    suite.case("health/list", "the server as a whole is all that is listed", |c| async move {
        let answer = c.api.health.clone().list(HealthListRequest {}).await;
        let statuses = needed("List", answer)?.into_inner().statuses;
        let listed: Vec<_> = statuses.iter().map(|(name, health)| (name.as_str(), health.status())).collect();
        c.same("statuses", listed, [("", ServingStatus::Serving)]);
        Ok(())
    });
    for (name, service, status) in [
        ("health/watch", "", ServingStatus::Serving),
        ("health/watch/unknown", "etcdserverpb.KV", ServingStatus::ServiceUnknown),
    ] {
        suite.case(name, "a watch begins with the state as it is", move |c| async move {
            let opened = c.api.health.clone().watch(of(service)).await;
            let answer = needed("Watch", needed("Watch", opened)?.into_inner().message().await)?;
            let answer = answer.ok_or_else(|| Stop("the watch has ended".to_owned()))?;
            c.same("status", answer.status(), status);
            Ok(())
        });
    }
}
