//! The operator's own life: upgraded, taken away, installed with kustomize; and manifests that two tools apply.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::harness::{
    Operator, SETTLED_MAX, Sharing, Test, kubectl, root, run, setting, test, toolbox,
    topology::{resource, smallest},
};

#[tokio::test(flavor = "multi_thread")]
async fn upgraded_removed_and_installed_with_kustomize() {
    test("install", Sharing::Alone, async |t| {
        t.apply(&resource("demo", smallest(json!({})))).await?;
        t.settled("demo", 1).await?;
        let toolbox = toolbox(t).await?;
        toolbox.etcdctl("demo", &["put", "/before", "there"]).await?;
        two_tools_apply(t).await?;
        let lives = t.pod_lives(&t.namespace, "demo").await?;

        let before = operator_pods(t).await?;
        Operator::helm(&["--set", "replicas=1"]).await?;
        t.settled("demo", 1).await?;
        Operator::helm(&["--set", "replicas=2", "--set-string", "podAnnotations.changed=yes"]).await?;
        ensure!(operator_pods(t).await? != before, "the operator's pods are the same after the upgrade");
        t.settled("demo", 1).await?;
        untouched(t, &lives).await?;
        t.ok("helm upgrade replaced the operator, and no pod of the topology");

        let uninstall =
            ["uninstall", Operator::RELEASE, "-n", Operator::NAMESPACE, "--wait", "--timeout", "60s"];
        run("helm", &uninstall, "", Duration::from_secs(70)).await?.success()?;
        t.until("the operator's pods have ended", crate::harness::SOON, async || {
            Ok(operator_pods(t).await?.is_empty().then_some(()))
        })
        .await?;
        let got = toolbox.etcdctl("demo", &["get", "/before", "--print-value-only"]).await?;
        ensure!(got.trim() == "there", "{got:?}");
        untouched(t, &lives).await?;
        t.ok("helm uninstall took the operator away; the topology serves on");

        kustomized(t).await?;
        untouched(t, &lives).await?;
        t.patch("demo", json!({"shards": 2})).await?;
        t.settled("demo", 2).await?;
        t.ok("the operator of kubectl apply -k took the topology over");
        kustomize_away(t).await?;
        // The CRD has stayed, and is kustomize's now.
        Operator::helm(&["--take-ownership"]).await?;
        t.ok("helm install --take-ownership took it over again");
        t.settled("demo", 2).await?;
        t.delete(&t.namespace, "demo", false).await
    })
    .await;
}

async fn operator_pods(t: &Test) -> Result<Vec<String>> {
    let pods = Operator::pods(t).await?;
    let mut uids: Vec<_> = pods.iter().map(|pod| pod["metadata"]["uid"].to_string()).collect();
    uids.sort();
    Ok(uids)
}

async fn untouched(t: &Test, lives: &[String]) -> Result<()> {
    let now = t.pod_lives(&t.namespace, "demo").await?;
    ensure!(now == lives, "the topology's pods changed: {now:?}, before {lives:?}");
    Ok(())
}

/// Server-side apply of one manifest by two field managers, as two GitOps tools do: neither sees a difference afterwards.
async fn two_tools_apply(t: &Test) -> Result<()> {
    let manifest = resource("demo", smallest(json!({"rebalance": {"bytesPerSecond": "64Mi"}}))).to_string();
    let manifest_one = manifest.as_str();
    for manager in ["argocd-controller", "kustomize-controller"] {
        let manager = format!("--field-manager={manager}");
        let apply = ["apply", "--server-side", "--force-conflicts", &manager, "-f", "-"];
        t.try_kubectl(&apply, manifest_one).await?.success()?;
    }
    t.settled("demo", 1).await?;
    for manager in ["argocd-controller", "kustomize-controller"] {
        let manager = format!("--field-manager={manager}");
        let diff = ["diff", "--server-side", "--force-conflicts", &manager, "-f", "-"];
        let output = t.try_kubectl(&diff, manifest_one).await?;
        ensure!(output.code == Some(0), "kubectl diff: {}{}", output.stdout, output.stderr);
    }
    t.ok("two field managers applied the same manifest: kubectl diff is empty for both");
    Ok(())
}

/// A kustomization of our own on top of the one in config/: only the images differ, as for a mirror.
async fn overlay() -> Result<tempfile::TempDir> {
    let image = setting("E2E_IMAGE")?;
    let (name, tag) = image.rsplit_once(':').context("E2E_IMAGE has no tag")?;
    // Kustomize takes no folders by absolute path, and none of ours may be written: a copy.
    let folder = tempfile::tempdir()?;
    let copy = |what: &str| {
        let from = root().join(what).display().to_string();
        let to = folder.path().display().to_string();
        async move { run("cp", &["-r", &from, &to], "", crate::harness::SOON).await?.success() }
    };
    for what in ["config", "crds"] {
        copy(what).await?;
    }
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": Operator::NAMESPACE,
        "resources": ["config/default"],
        "images": [{"name": "ghcr.io/sharded-etcd/sharded-etcd", "newName": name, "newTag": tag}],
        // What the operator makes.
        "configMapGenerator": [{
            "name": "sharded-etcd-operator",
            "behavior": "merge",
            "literals": [
                format!("SHARDED_ETCD_IMAGE={image}"),
                format!("SHARDED_ETCD_ETCD_IMAGE={}", setting("E2E_ETCD_IMAGE")?),
            ],
        }],
    });
    std::fs::write(folder.path().join("kustomization.yaml"), kustomization.to_string())?;
    Ok(folder)
}

async fn kustomized(t: &Test) -> Result<()> {
    let overlay = overlay().await?;
    let folder = overlay.path().display().to_string();
    kubectl(&["apply", "--server-side", "--force-conflicts", "-k", &folder], "", SETTLED_MAX)
        .await?
        .success()?;
    let wait = [
        "-n",
        Operator::NAMESPACE,
        "wait",
        "--for=condition=Ready",
        "pod",
        "-l",
        Operator::LABELS,
        "--timeout=120s",
    ];
    t.until("the operator's pods are made", crate::harness::SOON, async || {
        Ok((!Operator::pods(t).await?.is_empty()).then_some(()))
    })
    .await?;
    kubectl(&wait, "", SETTLED_MAX).await?.success()?;
    let diff =
        kubectl(&["diff", "--server-side", "--force-conflicts", "-k", &folder], "", SETTLED_MAX).await?;
    ensure!(diff.code == Some(0), "kubectl diff -k: {}{}", diff.stdout, diff.stderr);
    t.ok("kubectl apply -k config/default runs the operator, and kubectl diff -k is empty");
    Ok(())
}

/// Takes away all of it but the CRDs, with which the topologies would go.
async fn kustomize_away(t: &Test) -> Result<()> {
    let overlay = overlay().await?;
    let folder = overlay.path().display().to_string();
    let rendered = kubectl(&["kustomize", &folder], "", SETTLED_MAX).await?.success()?;
    let kept =
        |part: &&str| !part.contains("kind: CustomResourceDefinition") && !part.contains("kind: Namespace\n");
    let parts: Vec<_> = rendered.split("\n---\n").filter(kept).collect();
    let delete = ["delete", "--ignore-not-found", "--wait=true", "-f", "-"];
    kubectl(&delete, &parts.join("\n---\n"), SETTLED_MAX).await?.success()?;
    t.ok("kubectl delete takes the operator away again");
    Ok(())
}
