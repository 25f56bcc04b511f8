//! The operator, installed with its chart as a user installs it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{SOON, Test, run, setting};

/// Where it is installed.
const NAMESPACE: &str = "sharded-etcd-system";
/// Name of the release.
const RELEASE: &str = "sharded-etcd";
/// How long the operator's own pods may take to be ready.
const INSTALLED_MAX: Duration = Duration::from_secs(150);

/// The repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The installed operator.
pub(crate) struct Operator;

impl Operator {
    /// Its namespace.
    pub(crate) const NAMESPACE: &'static str = NAMESPACE;
    /// Its release.
    pub(crate) const RELEASE: &'static str = RELEASE;
    /// Labels of its pods.
    pub(crate) const LABELS: &'static str =
        "app.kubernetes.io/name=sharded-etcd,app.kubernetes.io/component=operator";

    /// Installs it unless it is there.
    pub(crate) async fn installed(test: &Test) -> Result<()> {
        static ONCE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let _one = ONCE.lock().await;
        let status = ["status", RELEASE, "-n", NAMESPACE, "-o", "json"];
        let there = run("helm", &status, "", SOON).await?;
        let deployed = there.code == Some(0)
            && serde_json::from_str::<Value>(&there.stdout)?["info"]["status"] == "deployed";
        if !deployed {
            Self::helm(&[]).await?;
            test.ok("the operator is installed with its chart");
        }
        Ok(())
    }

    /// `helm upgrade --install` with the images of this run and these further arguments.
    pub(crate) async fn helm(more: &[&str]) -> Result<String> {
        let image = setting("E2E_IMAGE")?;
        let (repository, tag) = image.rsplit_once(':').context("E2E_IMAGE has no tag")?;
        let sets = [
            format!("image.repository={repository}"),
            format!("image.tag={tag}"),
            format!("etcd.image.repository={}", setting("E2E_ETCD_IMAGE")?),
        ];
        let mut arguments = vec!["upgrade", "--install", RELEASE, "charts/sharded-etcd", "-n", NAMESPACE];
        arguments.extend(["--create-namespace", "--wait", "--timeout", "140s"]);
        for set in &sets {
            arguments.extend(["--set", set]);
        }
        arguments.extend(more);
        run("helm", &arguments, "", INSTALLED_MAX).await?.success().context("helm upgrade --install")
    }

    /// Its pods.
    pub(crate) async fn pods(test: &Test) -> Result<Vec<Value>> {
        test.api.list(NAMESPACE, "pods", Self::LABELS).await
    }

    /// Ends its pods at once, as a crash does, and returns when they are gone from the API; others are made.
    pub(crate) async fn kill(test: &Test) -> Result<()> {
        let arguments = [
            "-n",
            NAMESPACE,
            "delete",
            "pods",
            "-l",
            Self::LABELS,
            "--grace-period=0",
            "--force",
            "--wait=true",
        ];
        super::kubectl(&arguments, "", SOON).await?.success()?;
        test.ok("the operator is killed");
        Ok(())
    }
}
