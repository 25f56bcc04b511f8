//! What a cluster stores, of many kinds and over several namespaces.

use serde_json::{Value, json};

/// Namespaces `team-0` to `team-3` hold the objects.
pub const NAMESPACES: usize = 4;

/// How many objects [`everything`] makes.
pub const OBJECTS: usize = 2_000;

/// The namespace of the `n`th object of a kind.
pub fn namespace(n: usize) -> String {
    format!("team-{}", n % NAMESPACES)
}

/// The namespaces themselves, and a custom resource definition for `widgets.example.com`.
pub fn foundation() -> Vec<Value> {
    let namespaces = (0..NAMESPACES)
        .map(|n| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace(n)}}));
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com",
            "names": {"kind": "Widget", "plural": "widgets", "singular": "widget", "listKind": "WidgetList"},
            "scope": "Namespaced",
            "versions": [{
                "name": "v1",
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    });
    namespaces.chain([definition]).collect()
}

/// Exactly [`OBJECTS`] objects; custom resources are stored as JSON, all others as protobuf.
pub fn everything() -> Vec<Value> {
    type Make = fn(usize) -> Value;
    let kinds: [(usize, Make); 8] = [
        (600, pod),
        (400, config_map),
        (300, secret),
        (200, lease),
        (150, service),
        (150, event),
        (100, deployment),
        (100, widget),
    ];
    kinds.into_iter().flat_map(|(count, make)| (0..count).map(make)).collect()
}

/// A pod `pod-NNN` that nothing will run.
pub fn pod(n: usize) -> Value {
    object("v1", "Pod", &format!("pod-{n:03}"), n, json!({"spec": pod_spec()}))
}

/// A ConfigMap `config-NNN` of some hundred bytes; a few of 100 KiB, and some with bytes that are no text.
pub fn config_map(n: usize) -> Value {
    let text = "ключ=värde\n".repeat(if n % 100 == 7 { 8_000 } else { 1 + n % 40 });
    let mut content = json!({"data": {"settings": text}});
    if n.is_multiple_of(10) {
        content["binaryData"] = json!({"image": "AAECAwT//v38"});
    }
    object("v1", "ConfigMap", &format!("config-{n:03}"), n, content)
}

fn secret(n: usize) -> Value {
    let content = json!({"type": "Opaque", "stringData": {"password": format!("not-so-secret-{n}")}});
    object("v1", "Secret", &format!("secret-{n:03}"), n, content)
}

fn lease(n: usize) -> Value {
    let content = json!({"spec": {
        "holderIdentity": format!("node-{n}"),
        "leaseDurationSeconds": 40,
        "renewTime": "2024-01-01T00:00:00.000000Z",
    }});
    object("coordination.k8s.io/v1", "Lease", &format!("node-{n:03}"), n, content)
}

fn service(n: usize) -> Value {
    let content = json!({"spec": {"selector": {"app": "demo"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    object("v1", "Service", &format!("service-{n:03}"), n, content)
}

/// Stored with an etcd lease, as the only kind.
fn event(n: usize) -> Value {
    let content = json!({
        "involvedObject": {"kind": "Pod", "name": format!("pod-{n:03}"), "namespace": namespace(n)},
        "reason": "Scheduled",
        "message": "assigned to a node",
        "type": "Normal",
        "source": {"component": "test"},
    });
    object("v1", "Event", &format!("event-{n:03}"), n, content)
}

fn deployment(n: usize) -> Value {
    let content = json!({"spec": {
        "replicas": 3,
        "selector": {"matchLabels": {"app": "demo"}},
        "template": {"metadata": {"labels": {"app": "demo"}}, "spec": pod_spec()},
    }});
    object("apps/v1", "Deployment", &format!("deployment-{n:03}"), n, content)
}

fn widget(n: usize) -> Value {
    let content =
        json!({"spec": {"size": n, "colours": ["red", "green"], "nested": {"deep": [1, 2, {"x": null}]}}});
    object("example.com/v1", "Widget", &format!("widget-{n:03}"), n, content)
}

fn pod_spec() -> Value {
    json!({"containers": [{"name": "main", "image": "registry.example/app:1", "env": [{"name": "A", "value": "b"}]}]})
}

fn object(version: &str, kind: &str, name: &str, n: usize, mut content: Value) -> Value {
    content["apiVersion"] = version.into();
    content["kind"] = kind.into();
    content["metadata"] = json!({"name": name, "namespace": namespace(n), "labels": {"app": "demo"}});
    content
}
