//! Who may speak to whom. The kubelet's probes come from the node and are exempt.

use k8s_openapi::{
    api::networking::v1::{
        NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement},
};

use super::{
    common::{component_metadata, metadata, port, selector},
    member::Member,
};
use crate::{
    names::{self, Component, PORT_CLIENT, PORT_MANAGER, PORT_PEER},
    validate::Validated,
};

fn rule(number: u16, from: Option<Vec<NetworkPolicyPeer>>) -> NetworkPolicyIngressRule {
    NetworkPolicyIngressRule {
        from,
        ports: Some(vec![NetworkPolicyPort {
            port: Some(port(number)),
            protocol: Some("TCP".to_owned()),
            end_port: None,
        }]),
    }
}

fn pods(selector: LabelSelector) -> NetworkPolicyPeer {
    NetworkPolicyPeer { pod_selector: Some(selector), ..NetworkPolicyPeer::default() }
}

fn spec(pods: LabelSelector, ingress: Vec<NetworkPolicyIngressRule>) -> Option<NetworkPolicySpec> {
    Some(NetworkPolicySpec {
        pod_selector: Some(pods),
        ingress: Some(ingress),
        egress: None,
        policy_types: Some(vec!["Ingress".to_owned()]),
    })
}

/// Clients' port: pods of the same topology. Peer port: members of the same cluster. Metrics: nobody.
pub(super) fn member(member: &Member<'_>) -> NetworkPolicy {
    let validated = member.validated;
    let cluster = names::cluster_selector(&validated.name, member.cluster);
    let topology = LabelSelector {
        match_labels: Some(names::selector_labels(&validated.name)),
        match_expressions: Some(vec![LabelSelectorRequirement {
            key: names::LABEL_COMPONENT.to_owned(),
            operator: "In".to_owned(),
            values: Some(Component::ALL.map(|component| component.label().to_owned()).into()),
        }]),
    };
    let labels =
        names::cluster_labels(&validated.name, &validated.uid, member.cluster, member.plan.incarnation);
    let name = names::member_policy(&validated.name, member.cluster);
    let ingress = vec![
        rule(PORT_CLIENT, Some(vec![pods(topology)])),
        rule(PORT_PEER, Some(vec![pods(selector(cluster.clone()))])),
    ];
    NetworkPolicy { metadata: metadata(validated, name, labels), spec: spec(selector(cluster), ingress) }
}

/// Everybody: it is the endpoint.
pub(super) fn proxy(validated: &Validated) -> NetworkPolicy {
    let component = Component::Proxy;
    NetworkPolicy {
        metadata: component_metadata(validated, names::proxy(&validated.name), component),
        spec: spec(
            selector(names::component_selector(&validated.name, component)),
            vec![rule(PORT_CLIENT, None)],
        ),
    }
}

/// The operator, in whichever namespace it runs if that is not known.
pub(super) fn manager(validated: &Validated) -> NetworkPolicy {
    let component = Component::ShardManager;
    let namespace =
        validated.settings.operator_namespace.as_ref().map_or_else(LabelSelector::default, |namespace| {
            selector([("kubernetes.io/metadata.name".to_owned(), namespace.clone())].into())
        });
    let operator = [(names::LABEL_NAME, names::APP), (names::LABEL_COMPONENT, names::COMPONENT_OPERATOR)];
    let operator = NetworkPolicyPeer {
        namespace_selector: Some(namespace),
        pod_selector: Some(selector(operator.map(|(k, v)| (k.to_owned(), v.to_owned())).into())),
        ip_block: None,
    };
    NetworkPolicy {
        metadata: component_metadata(validated, names::shard_manager(&validated.name), component),
        spec: spec(
            selector(names::component_selector(&validated.name, component)),
            vec![rule(PORT_MANAGER, Some(vec![operator]))],
        ),
    }
}
