//! Clients in pods: etcdctl, and the Go workload that judges everything it sees.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{SETTLED_MAX, SOON, Test, setting};

/// How long the workload may take to come to its judgement: it lets leases run out.
const JUDGED_MAX: Duration = Duration::from_secs(240);

/// A pod that runs a command in the workload's image, on a node that stays.
pub(crate) async fn workload_pod(test: &Test, name: &str, command: &[&str]) -> Result<Value> {
    let nodes = test.api.get("/api/v1/nodes").await?.context("there are no nodes")?;
    let names = nodes["items"].as_array().into_iter().flatten();
    let node = names.filter_map(|n| n["metadata"]["labels"]["kubernetes.io/hostname"].as_str()).min();
    Ok(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "nodeSelector": {"kubernetes.io/hostname": node.context("the nodes have no names")?},
            "securityContext":
                {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "main",
                "image": setting("E2E_WORKLOAD_IMAGE")?,
                "command": command,
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    }))
}

/// Starts a pod to run commands in with [`Toolbox::run`].
pub(crate) async fn toolbox(test: &Test) -> Result<Toolbox<'_>> {
    let pod = workload_pod(test, "toolbox", &["sleep", "1d"]).await?;
    test.apply(&pod).await?;
    test.kubectl(&["wait", "--for=condition=Ready", "pod/toolbox", "--timeout=60s"]).await?;
    Ok(Toolbox { test })
}

/// A pod with etcdctl and the workload.
pub(crate) struct Toolbox<'a> {
    test: &'a Test,
}

impl Toolbox<'_> {
    /// Runs a command in the pod; it has to succeed.
    pub(crate) async fn run(&self, command: &[&str]) -> Result<String> {
        let mut arguments = vec!["exec", "toolbox", "--"];
        arguments.extend(command);
        self.test.kubectl(&arguments).await
    }

    /// etcdctl on a topology's Service.
    pub(crate) async fn etcdctl(&self, topology: &str, arguments: &[&str]) -> Result<String> {
        let endpoint = format!("--endpoints=http://{topology}:2379");
        let mut all = vec!["etcdctl", &endpoint, "--command-timeout=20s"];
        all.extend(arguments);
        self.run(&all).await
    }

    /// Fills a prefix with keys of many directories and notes what they are.
    pub(crate) async fn seed(&self, topology: &str) -> Result<()> {
        let endpoints = format!("{topology}:2379");
        let keys = ["--prefix", "/seed/", "--keys", "3000", "--dirs", "60", "--state", "/tmp/seed.json"];
        self.run(&[&["workload", "seed", "--endpoints", &endpoints][..], &keys].concat()).await?;
        self.test.ok("3000 keys are written that nobody touches again");
        Ok(())
    }

    /// Compares the prefix with the notes: values, revisions, versions, leases.
    pub(crate) async fn verify_seed(&self, topology: &str) -> Result<()> {
        let endpoints = format!("{topology}:2379");
        let keys = ["--prefix", "/seed/", "--state", "/tmp/seed.json"];
        let said =
            self.run(&[&["workload", "verify-seed", "--endpoints", &endpoints][..], &keys].concat()).await?;
        self.test.ok(format!("the untouched keys are as they were: {}", said.trim()));
        Ok(())
    }
}

/// Clients in a pod that write, watch, lock and keep leases until they are told to judge what they saw.
pub(crate) struct Load<'a> {
    test: &'a Test,
    name: String,
}

impl<'a> Load<'a> {
    /// Starts them. With `tolerant`, errors that say that something is away are counted, and not failed.
    pub(crate) async fn start(test: &'a Test, name: &str, topology: &str, tolerant: bool) -> Result<Self> {
        let endpoints = format!("{topology}:2379");
        let mut command = vec!["workload", "run", "--quiet", "--endpoints", &endpoints, "--duration", "1h"];
        command.extend(["--until-file", "/tmp/stop", "--final-wait", "90s", "--compact-every", "5s"]);
        // Gentle enough for two processors that also run the shards.
        command.extend(["--rate", "8", "--writers", "4", "--watchers", "2", "--readers", "1", "--seed", "7"]);
        if tolerant {
            command.push("--tolerate-unavailable");
        }
        test.apply(&workload_pod(test, name, &command).await?).await?;
        let pod = format!("pod/{name}");
        test.kubectl(&["wait", "--for=condition=Ready", &pod, "--timeout=60s"]).await?;
        test.ok(if tolerant {
            "clients write, watch, lock and keep leases, and put up with failures that say so"
        } else {
            "clients write, watch, lock and keep leases; any error of theirs fails the test"
        });
        Ok(Self { test, name: name.to_owned() })
    }

    /// Fails if they have ended by themselves.
    pub(crate) async fn check_running(&self) -> Result<()> {
        let pod = self.pod().await?;
        let phase = &pod["status"]["phase"];
        ensure!(phase == "Running", "the clients are {phase}: {}", self.log().await?);
        Ok(())
    }

    /// Ends them; they must have found nothing wrong.
    pub(crate) async fn judge(self) -> Result<()> {
        self.check_running().await?;
        self.test.kubectl(&["exec", &self.name, "--", "touch", "/tmp/stop"]).await?;
        let phase = self
            .test
            .until("the clients have judged", JUDGED_MAX, async || {
                let pod = self.pod().await?;
                let phase = pod["status"]["phase"].as_str().unwrap_or_default().to_owned();
                Ok((phase == "Succeeded" || phase == "Failed").then_some(phase))
            })
            .await?;
        let log = self.log().await?;
        ensure!(phase == "Succeeded" && log.contains("0 failed"), "the clients' judgement:\n{log}");
        let counts: Vec<_> = log.lines().filter(|line| line.contains(" failed")).collect();
        self.test
            .ok(format!("the clients found nothing lost, repeated or out of order: {}", counts.join("; ")));
        Ok(())
    }

    async fn pod(&self) -> Result<Value> {
        let pod = self.test.api.object(&self.test.namespace, "pods", &self.name).await?;
        pod.with_context(|| format!("the pod {} is gone", self.name))
    }

    async fn log(&self) -> Result<String> {
        let output = super::kubectl(&["-n", &self.test.namespace, "logs", &self.name], "", SOON).await?;
        output.success()
    }
}

impl Test {
    /// `kubectl port-forward` to a Service, and etcdctl of this machine through it.
    pub(crate) async fn etcdctl_by_port_forward(&self, service: &str, arguments: &[&str]) -> Result<String> {
        let port = sharded_etcd_testkit::free_port()?;
        let log = tempfile::tempdir()?;
        let mut command = std::process::Command::new("kubectl");
        command.args([
            "-n",
            &self.namespace,
            "port-forward",
            &format!("service/{service}"),
            &format!("{port}:2379"),
        ]);
        let file = log.path().join("port-forward.log");
        let mut forward = sharded_etcd_testkit::Process::start("kubectl port-forward", &mut command, &file)?;
        self.until("kubectl port-forward listens", SETTLED_MAX, async || {
            Ok(std::fs::read_to_string(&file)?.contains("Forwarding from").then_some(()))
        })
        .await?;
        forward.check_running()?;
        sharded_etcd_testkit::etcdctl(&format!("127.0.0.1:{port}"), arguments).await?.success()
    }
}
