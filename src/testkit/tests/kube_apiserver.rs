//! A real kube-apiserver on a real etcd: the ground that tests of the endpoint stand on.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use sharded_etcd_testkit::{EtcdProcess, EtcdProcessOptions, KubeApiserver, etcdctl};

#[tokio::test]
async fn stores_what_kubectl_creates() {
    let etcd = EtcdProcess::start(EtcdProcessOptions::default()).await.unwrap();
    let server = KubeApiserver::start(&etcd.endpoint(), &[]).await.unwrap();
    let minute = Duration::from_secs(60);
    let create = ["create", "configmap", "a", "--from-literal=key=value"];
    server.kubectl(&create, "", minute).await.unwrap().success().unwrap();
    let keys = etcdctl(&etcd.endpoint(), &["get", "--prefix", "--keys-only", "/registry/configmaps/"])
        .await
        .unwrap();
    assert!(keys.success().unwrap().contains("/registry/configmaps/default/a"));
    let read = ["get", "configmap", "a", "-o", "jsonpath={.data.key}"];
    assert_eq!(server.kubectl(&read, "", minute).await.unwrap().success().unwrap(), "value");
}
