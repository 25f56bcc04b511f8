//! What the objects have in common.

use std::collections::BTreeMap;

use k8s_openapi::{
    Resource,
    api::core::v1::{
        Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction,
        ObjectFieldSelector, PodSecurityContext, Probe, SeccompProfile, SecurityContext,
        TopologySpreadConstraint, Volume, VolumeMount,
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use kube::core::TypeMeta;
use serde::Serialize;

use crate::{
    model::Manifest,
    names::{self, Component},
    validate::Validated,
};

/// User and group that every container runs as.
const USER: i64 = 65532;
/// Images are pulled once for each tag: a tag names one image.
pub(super) const PULL_POLICY: &str = "IfNotPresent";
/// Revisions of a template that are kept for `kubectl rollout history`.
pub(super) const REVISIONS_KEPT: i32 = 3;

/// Type of an object.
pub(super) fn types<T: Resource>() -> TypeMeta {
    TypeMeta { api_version: T::API_VERSION.to_owned(), kind: T::KIND.to_owned() }
}

/// An object as it is sent. Fields without a value are not there.
pub(super) fn manifest<T: Resource + Serialize>(name: &str, object: &T) -> Manifest {
    Manifest {
        types: types::<T>(),
        name: name.to_owned(),
        object: serde_json::to_value(object).expect("objects of Kubernetes serialise to memory"),
    }
}

/// Metadata of an object of the resource.
pub(super) fn metadata(
    validated: &Validated,
    name: impl Into<String>,
    labels: BTreeMap<String, String>,
) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        namespace: Some(validated.namespace.clone()),
        labels: Some(labels),
        owner_references: Some(vec![names::owner_reference(&validated.name, &validated.uid)]),
        ..ObjectMeta::default()
    }
}

pub(super) fn selector(labels: BTreeMap<String, String>) -> LabelSelector {
    LabelSelector { match_labels: Some(labels), match_expressions: None }
}

pub(super) fn component_metadata(validated: &Validated, name: String, component: Component) -> ObjectMeta {
    metadata(validated, name, names::labels(&validated.name, Some(component)))
}

pub(super) fn port(number: u16) -> IntOrString {
    IntOrString::Int(i32::from(number))
}

pub(super) fn container_port(name: &str, number: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: i32::from(number),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

/// Asks `path` every `period_seconds`, and gives up after so many failures in a row.
pub(super) fn probe(path: &str, number: u16, period_seconds: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: port(number),
            scheme: Some("HTTP".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(5),
        failure_threshold: Some(failures),
        success_threshold: Some(1),
        ..Probe::default()
    }
}

/// An environment variable with a field of the pod.
pub(super) fn env_field(name: &str, path: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: Some("v1".to_owned()),
                field_path: path.to_owned(),
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

/// The `restricted` Pod Security Standard, for a pod.
pub(super) fn pod_security(volumes: bool) -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(USER),
        run_as_group: Some(USER),
        fs_group: volumes.then_some(USER),
        fs_group_change_policy: volumes.then(|| "OnRootMismatch".to_owned()),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            ..SeccompProfile::default()
        }),
        ..PodSecurityContext::default()
    }
}

/// The `restricted` Pod Security Standard, for a container.
pub(super) fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { add: None, drop: Some(vec!["ALL".to_owned()]) }),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        ..SecurityContext::default()
    }
}

/// Spreads pods over nodes and zones as far as that is possible.
pub(super) fn spread(labels: &BTreeMap<String, String>) -> Vec<TopologySpreadConstraint> {
    let over = |key: &str| TopologySpreadConstraint {
        max_skew: 1,
        topology_key: key.to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(selector(labels.clone())),
        ..TopologySpreadConstraint::default()
    };
    vec![over("kubernetes.io/hostname"), over("topology.kubernetes.io/zone")]
}

/// The volume with the routing. As a folder, so that it is replaced while the pod runs.
pub(super) fn routing_volume(resource: &str) -> Volume {
    Volume {
        name: "routing".to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: names::routing(resource),
            default_mode: Some(0o444),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    }
}

fn routing_mount() -> VolumeMount {
    VolumeMount {
        name: "routing".to_owned(),
        mount_path: names::ROUTING_FOLDER.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    }
}

/// `--routing` of our programs.
pub(super) fn routing_argument() -> String {
    format!("--routing={}/{}", names::ROUTING_FOLDER, names::ROUTING_KEY)
}

/// A container of our own image that reads the routing, without its arguments.
pub(super) fn program(validated: &Validated, name: &str, ports: Vec<ContainerPort>) -> Container {
    Container {
        name: name.to_owned(),
        image: Some(validated.settings.image.clone()),
        image_pull_policy: Some(PULL_POLICY.to_owned()),
        command: Some(vec!["/sharded-etcd".to_owned()]),
        env: Some(vec![env_field("POD_NAME", "metadata.name"), env_field("POD_IP", "status.podIP")]),
        ports: Some(ports),
        security_context: Some(container_security()),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(vec![routing_mount()]),
        ..Container::default()
    }
}
