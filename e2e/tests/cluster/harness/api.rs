//! Reads objects, cheaply enough to be asked again and again.

use anyhow::{Context, Result};
use kube::{Client, Config};
use serde_json::Value;

/// A client of the cluster's API server.
pub(crate) struct Api(Client);

impl Api {
    /// The cluster of KUBECONFIG.
    pub(super) async fn new() -> Result<Self> {
        let config = Config::infer().await.context("no cluster: run these tests with make e2e")?;
        Ok(Self(Client::try_from(config)?))
    }

    /// What is at this path, if anything.
    pub(crate) async fn get(&self, path: &str) -> Result<Option<Value>> {
        let request = http::Request::get(path).body(Vec::new())?;
        match self.0.request(request).await {
            Ok(object) => Ok(Some(object)),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {path}")),
        }
    }

    /// One object of a namespace, if it is there.
    pub(crate) async fn object(&self, namespace: &str, plural: &str, name: &str) -> Result<Option<Value>> {
        self.get(&format!("{}/namespaces/{namespace}/{plural}/{name}", group(plural))).await
    }

    /// The objects of a namespace with these labels, as in `app.kubernetes.io/instance=demo`.
    pub(crate) async fn list(&self, namespace: &str, plural: &str, labels: &str) -> Result<Vec<Value>> {
        let labels = labels.replace('=', "%3D").replace(',', "%2C").replace('/', "%2F");
        let path = format!("{}/namespaces/{namespace}/{plural}?labelSelector={labels}", group(plural));
        let mut list = self.get(&path).await?.with_context(|| format!("{plural} are not served"))?;
        let Value::Array(items) = list["items"].take() else { anyhow::bail!("{path} has no items") };
        Ok(items)
    }
}

/// Path of the group that a plural belongs to.
fn group(plural: &str) -> &'static str {
    match plural {
        "shardedetcds" => "/apis/shardedetcd.io/v1alpha1",
        "deployments" | "statefulsets" | "replicasets" | "controllerrevisions" => "/apis/apps/v1",
        "poddisruptionbudgets" => "/apis/policy/v1",
        "networkpolicies" => "/apis/networking.k8s.io/v1",
        "roles" | "rolebindings" => "/apis/rbac.authorization.k8s.io/v1",
        "leases" => "/apis/coordination.k8s.io/v1",
        "endpointslices" => "/apis/discovery.k8s.io/v1",
        _ => "/api/v1",
    }
}
