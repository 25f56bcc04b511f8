//! The CRD in a real kube-apiserver: what it refuses and what it says, what it accepts, and what kubectl makes of it.
#![allow(clippy::unwrap_used)]

mod bad;
mod everyday;
mod good;
mod installed;

use std::{path::Path, time::Duration};

use sharded_etcd_testkit::{EtcdProcess, EtcdProcessOptions, KubeApiserver, Output, wait_until};

/// How long one command may take on a busy machine; most take a tenth of a second.
const SOON: Duration = Duration::from_secs(60);

/// A kube-apiserver with its etcd, in which the CRD is installed.
struct Cluster {
    server: KubeApiserver,
    _etcd: EtcdProcess,
}

impl Cluster {
    /// Starts it and installs the CRD as users do.
    async fn start() -> Self {
        let etcd = EtcdProcess::start(EtcdProcessOptions::default()).await.unwrap();
        let server = KubeApiserver::start(&etcd.endpoint(), &[]).await.unwrap();
        let cluster = Self { server, _etcd: etcd };
        cluster.good(&["apply", "-f", &file("crds/shardedetcds.yaml")], "").await;
        let crd = "crd/shardedetcds.shardedetcd.io";
        cluster.good(&["wait", "--for=condition=Established", crd, "--timeout=60s"], "").await;
        // kubectl checks what it sends against the published schema, which comes a moment later.
        wait_until("kubectl knows the resource", SOON, || async {
            let output = cluster.kubectl(&["explain", "shardedetcd.spec.shards"], "").await;
            (output.code == Some(0)).then_some(())
        })
        .await
        .unwrap();
        cluster
    }

    async fn kubectl(&self, arguments: &[&str], input: &str) -> Output {
        self.server.kubectl(arguments, input, SOON).await.unwrap()
    }

    /// What a kubectl prints that has to succeed.
    async fn good(&self, arguments: &[&str], input: &str) -> String {
        let output = self.kubectl(arguments, input).await;
        output.success().unwrap_or_else(|error| panic!("kubectl {}: {error}", arguments.join(" ")))
    }

    /// A field of a resource.
    async fn field(&self, name: &str, path: &str) -> String {
        self.good(&["get", "se", name, "-o", &format!("jsonpath={{{path}}}")], "").await
    }
}

/// A file of the repository.
fn file(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path).display().to_string()
}

/// A resource as a file, with its spec in YAML on one line.
fn resource(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: shardedetcd.io/v1alpha1\nkind: ShardedEtcd\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
    )
}

/// One API server for all, as its start takes longest.
#[tokio::test]
async fn the_resource_in_a_real_api_server() {
    let cluster = Cluster::start().await;
    bad::created(&cluster).await;
    bad::changed(&cluster).await;
    good::accepted(&cluster).await;
    good::defaults_show(&cluster).await;
    everyday::scaled(&cluster).await;
    everyday::applied_by_two(&cluster).await;
    everyday::listed(&cluster).await;
    installed::with_kustomize(&cluster).await;
    installed::samples(&cluster).await;
}
