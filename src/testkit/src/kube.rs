//! A real kube-apiserver without the rest of a cluster, on any etcd endpoint.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::process::Command;

use crate::{
    Process,
    command::{Output, finish},
    free_port,
    tools::{self, Tools},
    wait_until,
};

/// How long kube-apiserver may take until it serves; it runs its start hooks first.
const READY_LIMIT: Duration = Duration::from_secs(120);

/// The bearer token of the only user, a cluster administrator.
const TOKEN: &str = "test-administrator";

/// A kube-apiserver. Killed when dropped; what it stored stays in its etcd.
#[derive(Debug)]
pub struct KubeApiserver {
    process: Process,
    port: u16,
    folder: TempDir,
}

impl KubeApiserver {
    /// Starts a kube-apiserver that stores in the etcd at `endpoint`, and waits until it is ready.
    ///
    /// Its watch cache compares itself with etcd all the time and ends the process when they differ
    /// (`KUBE_WATCHCACHE_CONSISTENCY_CHECKER`). Pods can be created without a service account controller.
    ///
    /// # Errors
    ///
    /// When it cannot be built or run, or is not ready in time, with the end of its log.
    pub async fn start(endpoint: &str, arguments: &[&str]) -> Result<Self> {
        let program = tools::program(Tools::Kube, "kube-apiserver").await?;
        let folder = tempfile::Builder::new().prefix("sharded-etcd-test-kube-").tempdir();
        let folder = folder.context("cannot make a temporary folder for kube-apiserver")?;
        write_keys(folder.path()).await?;
        let port = free_port()?;
        let file = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(folder.path().join("tokens.csv"), format!("{TOKEN},admin,1,system:masters\n"))
            .context("cannot write kube-apiserver's token file")?;
        let mut command = std::process::Command::new(program);
        command
            .env("KUBE_WATCHCACHE_CONSISTENCY_CHECKER", "true")
            .args([
                format!("--etcd-servers={endpoint}"),
                "--bind-address=127.0.0.1".to_owned(),
                format!("--secure-port={port}"),
                format!("--tls-cert-file={}", file("cert.pem")),
                format!("--tls-private-key-file={}", file("key.pem")),
                format!("--token-auth-file={}", file("tokens.csv")),
                "--authorization-mode=RBAC".to_owned(),
                "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
                format!("--service-account-key-file={}", file("key.pem")),
                format!("--service-account-signing-key-file={}", file("key.pem")),
                "--service-cluster-ip-range=10.0.0.0/16".to_owned(),
                // A loopback address may not be an endpoint of the service `kubernetes`.
                "--endpoint-reconciler-type=none".to_owned(),
                "--disable-admission-plugins=ServiceAccount".to_owned(),
            ])
            .args(arguments);
        let process =
            Process::start("kube-apiserver", &mut command, &folder.path().join("kube-apiserver.log"))?;
        let mut server = Self { process, port, folder };
        server.wait_ready().await?;
        Ok(server)
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The bearer token of a cluster administrator. The certificate of the server is self-signed.
    pub fn token(&self) -> &'static str {
        TOKEN
    }

    /// The process, to signal it or read its log.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Runs `kubectl ARGUMENTS` as cluster administrator with `input` on standard input, and waits for its end.
    ///
    /// # Errors
    ///
    /// When it cannot be run or takes longer than `limit`. A failure of the command itself is in [`Output`].
    pub async fn kubectl(&self, arguments: &[&str], input: &str, limit: Duration) -> Result<Output> {
        Kubectl { port: self.port, home: self.folder.path() }.run(arguments, input, limit).await
    }

    /// Starts `kubectl ARGUMENTS` as cluster administrator and lets it run, as watches do; `name` is that of its log.
    ///
    /// # Errors
    ///
    /// When it cannot be run.
    pub async fn kubectl_in_background(&self, name: &str, arguments: &[&str]) -> Result<Process> {
        let kubectl = Kubectl { port: self.port, home: self.folder.path() };
        let mut command = kubectl.command(arguments).await?;
        Process::start(name, &mut command, &self.folder.path().join(format!("{name}.log")))
    }

    async fn wait_ready(&mut self) -> Result<()> {
        let Self { process, port, folder } = self;
        let kubectl = Kubectl { port: *port, home: folder.path() };
        let ready = wait_until("kube-apiserver is ready", READY_LIMIT, || {
            let gone = process.check_running().err();
            async move {
                if let Some(error) = gone {
                    return Some(Err(error));
                }
                let answer = kubectl.run(&["get", "--raw", "/readyz"], "", READY_LIMIT).await;
                // Not ready yet, and refused connections before that, are exit code 1.
                answer.map(|output| (output.code == Some(0)).then_some(())).transpose()
            }
        });
        match ready.await {
            Ok(outcome) => outcome,
            Err(error) => {
                Err(error.context(format!("kube-apiserver's log ends:\n{}", self.process.log_tail())))
            }
        }
    }
}

/// What kubectl needs to know.
#[derive(Clone, Copy)]
struct Kubectl<'a> {
    port: u16,
    home: &'a Path,
}

impl Kubectl<'_> {
    async fn run(&self, arguments: &[&str], input: &str, limit: Duration) -> Result<Output> {
        finish(self.command(arguments).await?.into(), "kubectl", input, limit).await
    }

    async fn command(&self, arguments: &[&str]) -> Result<std::process::Command> {
        let mut command = std::process::Command::new(tools::program(Tools::Kube, "kubectl").await?);
        let server = format!("https://127.0.0.1:{}", self.port);
        command
            // Neither the user's configuration nor their cache.
            .env("KUBECONFIG", "/dev/null")
            .env("HOME", self.home)
            .args(["--server", &server, "--token", TOKEN, "--insecure-skip-tls-verify"])
            .args(arguments);
        Ok(command)
    }
}

/// Makes `cert.pem` and `key.pem` in a folder: a self-signed certificate, whose key also signs service account tokens.
async fn write_keys(folder: &Path) -> Result<()> {
    let output = Command::new(tools::program(Tools::Kube, "generate_cert").await?)
        .args(["--host", "127.0.0.1", "--rsa-bits", "2048", "--ca"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("cannot run generate_cert")?;
    ensure!(output.status.success(), "generate_cert failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
