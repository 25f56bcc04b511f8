//! The proxies, and the Service that clients connect to.

use k8s_openapi::api::{
    apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
    core::v1::{
        Container, PodSpec, PodTemplateSpec, ResourceRequirements, Service, ServicePort, ServiceSpec,
    },
    policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
};
use k8s_openapi::apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString};
use sharded_etcd_crd::{ServiceType, defaults::Disruption};

use super::common::{
    REVISIONS_KEPT, component_metadata, container_port, pod_security, port, probe, program, routing_argument,
    routing_volume, selector, spread,
};
use crate::{
    names::{self, Component, PORT_CLIENT, PORT_MANAGER},
    quantity::canonical_resources,
    validate::Validated,
};

/// After the signal a proxy is "not ready" for so long before it stops, so that no new client finds it.
const DRAIN_DELAY: &str = "5s";
/// Drain delay, the drain of what runs (at most 10 s), 2 s to deregister, and some for a slow machine.
const PROXY_GRACE_SECONDS: i64 = 30;
/// A shard manager hands its leadership over and ends; a move under way is taken up by the next.
const MANAGER_GRACE_SECONDS: i64 = 30;
/// How often the start is looked at, in seconds, and how often that may fail: they wait for shards that are starting.
const STARTUP: (i32, i32) = (2, 900);

/// A Deployment of our own program.
struct Program<'a> {
    validated: &'a Validated,
    component: Component,
    name: String,
    replicas: i32,
    container: Container,
    /// Serves `/livez` and `/readyz`.
    port: u16,
    args: Vec<String>,
    resources: Option<&'a ResourceRequirements>,
    grace_seconds: i64,
}

impl Program<'_> {
    fn deployment(self) -> Deployment {
        let resource = &self.validated.name;
        let selected = names::component_selector(resource, self.component);
        let mut container = self.container;
        container.args = Some(self.args);
        container.startup_probe = Some(probe("/livez", self.port, STARTUP.0, STARTUP.1));
        container.liveness_probe = Some(probe("/livez", self.port, 10, 6));
        container.readiness_probe = Some(probe("/readyz", self.port, 2, 2));
        container.resources = self.resources.map(canonical_resources);
        Deployment {
            metadata: component_metadata(self.validated, self.name.clone(), self.component),
            spec: DeploymentSpec {
                replicas: Some(self.replicas),
                selector: selector(selected.clone()),
                revision_history_limit: Some(REVISIONS_KEPT),
                strategy: Some(DeploymentStrategy {
                    type_: Some("RollingUpdate".to_owned()),
                    rolling_update: Some(RollingUpdateDeployment {
                        max_surge: Some(IntOrString::Int(1)),
                        max_unavailable: Some(IntOrString::Int(0)),
                    }),
                }),
                template: PodTemplateSpec {
                    metadata: Some(ObjectMeta {
                        labels: Some(names::labels(resource, Some(self.component))),
                        ..ObjectMeta::default()
                    }),
                    spec: Some(PodSpec {
                        service_account_name: Some(self.name),
                        automount_service_account_token: Some(false),
                        enable_service_links: Some(false),
                        security_context: Some(pod_security(false)),
                        termination_grace_period_seconds: Some(self.grace_seconds),
                        topology_spread_constraints: Some(spread(&selected)),
                        containers: vec![container],
                        volumes: Some(vec![routing_volume(resource)]),
                        ..PodSpec::default()
                    }),
                },
                ..DeploymentSpec::default()
            },
            status: None,
        }
    }
}

pub(super) fn proxy_deployment(validated: &Validated) -> Deployment {
    Program {
        validated,
        component: Component::Proxy,
        name: names::proxy(&validated.name),
        replicas: validated.resource.spec.proxy_replicas(),
        container: program(validated, names::CONTAINER_PROXY, vec![container_port("client", PORT_CLIENT)]),
        port: PORT_CLIENT,
        args: vec![
            "proxy".to_owned(),
            routing_argument(),
            format!("--listen=0.0.0.0:{PORT_CLIENT}"),
            format!("--advertise-client-urls=http://$(POD_IP):{PORT_CLIENT}"),
            "--name=$(POD_NAME)".to_owned(),
            format!("--drain-delay={DRAIN_DELAY}"),
        ],
        resources: validated.resource.spec.proxy_resources(),
        grace_seconds: PROXY_GRACE_SECONDS,
    }
    .deployment()
}

pub(super) fn manager_deployment(validated: &Validated) -> Deployment {
    Program {
        validated,
        component: Component::ShardManager,
        name: names::shard_manager(&validated.name),
        replicas: validated.resource.spec.shard_manager_replicas(),
        container: program(validated, names::CONTAINER_MANAGER, vec![container_port("admin", PORT_MANAGER)]),
        port: PORT_MANAGER,
        args: vec![
            "shard-manager".to_owned(),
            routing_argument(),
            format!("--listen=0.0.0.0:{PORT_MANAGER}"),
            "--name=$(POD_NAME)".to_owned(),
        ],
        resources: validated.resource.spec.shard_manager_resources(),
        grace_seconds: MANAGER_GRACE_SECONDS,
    }
    .deployment()
}

/// What clients connect to.
pub(super) fn endpoint(validated: &Validated) -> Service {
    let spec = &validated.resource.spec;
    let name = names::endpoint_service(&validated.name);
    let mut metadata = component_metadata(validated, name, Component::Proxy);
    let annotations: std::collections::BTreeMap<_, _> =
        spec.service_annotations().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    metadata.annotations = (!annotations.is_empty()).then_some(annotations);
    let type_ = match spec.service_type() {
        ServiceType::ClusterIP => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
    };
    service(validated, metadata, type_, Component::Proxy, ("client", PORT_CLIENT))
}

/// What the operator asks.
pub(super) fn admin(validated: &Validated) -> Service {
    let component = Component::ShardManager;
    let metadata = component_metadata(validated, names::shard_manager(&validated.name), component);
    service(validated, metadata, "ClusterIP", component, ("admin", PORT_MANAGER))
}

fn service(
    validated: &Validated,
    metadata: ObjectMeta,
    type_: &str,
    component: Component,
    (name, number): (&str, u16),
) -> Service {
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(type_.to_owned()),
            selector: Some(names::component_selector(&validated.name, component)),
            ports: Some(vec![ServicePort {
                name: Some(name.to_owned()),
                port: i32::from(number),
                target_port: Some(port(number)),
                protocol: Some("TCP".to_owned()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

pub(super) fn proxy_disruption(validated: &Validated) -> PodDisruptionBudget {
    let (max, min) = match validated.resource.spec.proxy_disruption() {
        Disruption::MaxUnavailable(n) => (Some(n.clone()), None),
        Disruption::MinAvailable(n) => (None, Some(n.clone())),
    };
    disruption(validated, names::proxy(&validated.name), Component::Proxy, max, min)
}

pub(super) fn manager_disruption(validated: &Validated) -> PodDisruptionBudget {
    let name = names::shard_manager(&validated.name);
    disruption(validated, name, Component::ShardManager, Some(IntOrString::Int(1)), None)
}

fn disruption(
    validated: &Validated,
    name: String,
    component: Component,
    max_unavailable: Option<IntOrString>,
    min_available: Option<IntOrString>,
) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: component_metadata(validated, name, component),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable,
            min_available,
            selector: Some(selector(names::component_selector(&validated.name, component))),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}
