//! Runs a test in a namespace of its own, prints what it checks, and collects what is needed to explain a failure.

mod api;
mod client;
mod diagnose;
mod operator;
pub(crate) mod topology;

use std::{future::Future, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sharded_etcd_testkit::{Output, command::finish, wait_until};
use tokio::{process::Command, sync::RwLock, time::Instant};

pub(crate) use self::{
    api::Api,
    client::{Load, toolbox, workload_pod},
    operator::{Operator, root},
};

/// How long one kubectl or helm may take unless it waits for something.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// How long a topology may take to be what its spec says, on a machine that does nothing else but is small.
pub(crate) const SETTLED_MAX: Duration = Duration::from_secs(180);

/// Tests that stop what the others need, or measure time, run alone.
static CLUSTER: RwLock<()> = RwLock::const_new(());

/// Whether a test may run beside others.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// It touches only its own namespaces, and pods of the operator.
    Beside,
    /// It needs the cluster for itself.
    Alone,
}

/// A running test.
pub(crate) struct Test {
    /// Its name, and that of its namespace after `e2e-`.
    pub(crate) name: String,
    /// Its namespace.
    pub(crate) namespace: String,
    /// For reading.
    pub(crate) api: Api,
    began: Instant,
}

/// Runs `body` with the operator installed and an empty namespace; removes the namespace afterwards.
///
/// # Panics
/// When `body` fails; what the cluster looked like is in the folder of the logs then, and the namespace stays.
pub(crate) async fn test(name: &str, sharing: Sharing, body: impl AsyncFnOnce(&Test) -> Result<()>) {
    let (_alone, _beside);
    match sharing {
        Sharing::Alone => _alone = CLUSTER.write().await,
        Sharing::Beside => _beside = CLUSTER.read().await,
    }
    let test = Test::start(name).await.expect("the test can start");
    let outcome = async {
        Operator::installed(&test).await?;
        test.make_namespace(&test.namespace).await?;
        body(&test).await
    };
    match outcome.await {
        Ok(()) => {
            test.ok("done");
            let gone = kubectl(&["delete", "namespace", &test.namespace, "--wait=false"], "", SOON).await;
            gone.and_then(Output::success).expect("the namespace can be deleted");
        }
        Err(error) => {
            let file = diagnose::write(&test, &error).await;
            panic!("{name}: {error:#}\n{}", file.display());
        }
    }
}

impl Test {
    async fn start(name: &str) -> Result<Self> {
        println!("[{name}] begins");
        Ok(Self {
            name: name.to_owned(),
            namespace: format!("e2e-{name}"),
            api: Api::new().await?,
            began: Instant::now(),
        })
    }

    /// Says that something was checked.
    pub(crate) fn ok(&self, what: impl std::fmt::Display) {
        println!("[{}] {:6.1} s  {what}", self.name, self.began.elapsed().as_secs_f64());
    }

    /// Makes an empty namespace in which only pods run that ask for the least rights; an old one of the name goes first.
    pub(crate) async fn make_namespace(&self, name: &str) -> Result<()> {
        let old = ["delete", "namespace", name, "--ignore-not-found", "--timeout=90s"];
        kubectl(&old, "", Duration::from_secs(100)).await?.success()?;
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        });
        kubectl(&["create", "-f", "-"], &namespace.to_string(), SOON).await?.success()?;
        let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
        self.until("the namespace has its service account", SOON, async || {
            Ok(self.api.get(&account).await?.map(|_| ()))
        })
        .await
    }

    /// kubectl in the test's namespace; it has to succeed.
    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.try_kubectl(arguments, "").await?.success().with_context(|| arguments.join(" "))
    }

    /// kubectl in the test's namespace, with something to read.
    pub(crate) async fn try_kubectl(&self, arguments: &[&str], input: &str) -> Result<Output> {
        let mut all = vec!["-n", &self.namespace];
        all.extend(arguments);
        kubectl(&all, input, SETTLED_MAX).await
    }

    /// `kubectl apply` of an object.
    pub(crate) async fn apply(&self, object: &Value) -> Result<String> {
        let output = self.try_kubectl(&["apply", "-f", "-"], &object.to_string()).await?;
        output.success().with_context(|| format!("applying {object}"))
    }

    /// Asks `condition` until it answers something; an error ends the waiting only when the time is over.
    pub(crate) async fn until<T>(
        &self,
        what: &str,
        limit: Duration,
        condition: impl AsyncFn() -> Result<Option<T>>,
    ) -> Result<T> {
        let last = std::cell::RefCell::new(None);
        let found = wait_until(what, limit, || async {
            // The API server is asked again at leisure: it shares two processors with what is waited for.
            tokio::time::sleep(Duration::from_millis(150)).await;
            match condition().await {
                Ok(answer) => answer,
                Err(error) => {
                    last.replace(Some(error));
                    None
                }
            }
        })
        .await;
        found.map_err(|error| match last.take() {
            Some(cause) => cause.context(error.to_string()),
            None => error,
        })
    }

    /// As [`until`](Self::until), for what is either so or not; the error says how it was last.
    pub(crate) async fn until_so<F>(&self, what: &str, limit: Duration, look: impl Fn() -> F) -> Result<()>
    where
        F: Future<Output = Result<(bool, String)>>,
    {
        let last = std::cell::RefCell::new(String::new());
        let found = self
            .until(what, limit, async || {
                let (so, text) = look().await?;
                last.replace(text);
                Ok(so.then_some(()))
            })
            .await;
        found.with_context(|| format!("at last: {}", last.take()))
    }
}

/// Runs kubectl.
///
/// # Errors
/// When it cannot be run or takes longer than `limit`.
pub(crate) async fn kubectl(arguments: &[&str], input: &str, limit: Duration) -> Result<Output> {
    run("kubectl", arguments, input, limit).await
}

/// Runs a program in the repository's folder.
///
/// # Errors
/// When it cannot be run or takes longer than `limit`.
pub(crate) async fn run(program: &str, arguments: &[&str], input: &str, limit: Duration) -> Result<Output> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root());
    finish(command, &format!("{program} {}", arguments.join(" ")), input, limit).await
}

/// Where to write what explains a failure.
pub(crate) fn logs() -> PathBuf {
    std::env::var_os("E2E_LOGS").map_or_else(|| root().join("target/e2e-logs"), PathBuf::from)
}

/// What an environment variable says that `e2e/run.sh` sets.
pub(crate) fn setting(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set: run these tests with make e2e"))
}

/// Fails unless `text` has all these words.
pub(crate) fn has_words(text: &str, words: &[&str]) -> Result<()> {
    let missing: Vec<_> = words.iter().filter(|word| !text.contains(**word)).collect();
    if !missing.is_empty() {
        bail!("{missing:?} is missing in:\n{text}");
    }
    Ok(())
}
