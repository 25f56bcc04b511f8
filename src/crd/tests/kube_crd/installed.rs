//! The kustomize bases: what they install, and what the operator may do then.

use crate::{Cluster, file};

/// The operator, as the API server knows it.
const OPERATOR: &str = "--as=system:serviceaccount:sharded-etcd-system:sharded-etcd-operator";

pub(crate) async fn with_kustomize(cluster: &Cluster) {
    let folder = file("config/default");
    let apply = ["apply", "--server-side", "--force-conflicts", "-k", folder.as_str()];
    cluster.good(&apply, "").await;
    let diff = ["diff", "--server-side", "--force-conflicts", "-k", folder.as_str()];
    let output = cluster.kubectl(&diff, "").await;
    assert_eq!(output.code, Some(0), "{}{}", output.stdout, output.stderr);
    for (verb, what, allowed) in [
        ("watch", "shardedetcds.shardedetcd.io", true),
        ("patch", "shardedetcds.shardedetcd.io/status", true),
        ("patch", "shardedetcds.shardedetcd.io", false),
        ("create", "statefulsets.apps", true),
        ("delete", "persistentvolumeclaims", true),
        ("create", "persistentvolumeclaims", false),
        ("create", "pods", false),
        ("create", "pods/exec", false),
        ("get", "secrets", false),
        ("list", "secrets", false),
        ("create", "events.events.k8s.io", true),
        ("get", "storageclasses.storage.k8s.io", true),
        ("create", "rolebindings.rbac.authorization.k8s.io", false),
        ("update", "leases.coordination.k8s.io", false),
    ] {
        let (what, subresource) = what.split_once('/').unwrap_or((what, ""));
        may(cluster, &[verb, what, &format!("--subresource={subresource}"), "-A"], allowed).await;
    }
    may(cluster, &["update", "leases.coordination.k8s.io", "-n", "sharded-etcd-system"], true).await;
}

async fn may(cluster: &Cluster, what: &[&str], allowed: bool) {
    let arguments = [&["auth", "can-i", OPERATOR][..], what].concat();
    let output = cluster.kubectl(&arguments, "").await;
    assert_eq!(output.stdout.trim(), if allowed { "yes" } else { "no" }, "{what:?}: {}", output.stderr);
}

pub(crate) async fn samples(cluster: &Cluster) {
    let folder = file("config/samples");
    cluster.good(&["apply", "-k", folder.as_str()], "").await;
    cluster.good(&["diff", "-k", folder.as_str()], "").await;
    assert_eq!(cluster.field("demo", ".spec.shards").await, "3");
    cluster.good(&["apply", "--dry-run=server", "-f", &file("config/samples/kubernetes.yaml")], "").await;
}
