//! `sharded-etcd` as a process under test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use sharded_etcd_shard::etcd::{EtcdOptions, EtcdShard};
use sharded_etcd_testkit::{
    Process, etcdctl, etcdctl_with_input, free_port,
    tools::{self, Tools},
    wait_until,
};
use tempfile::TempDir;

/// How long a start may take on a busy machine; etcd takes some seconds to elect itself.
const START_LIMIT: Duration = Duration::from_secs(60);

/// What answers as a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Embedded,
    Etcd,
}

/// The program under test, without the variables that would set its flags.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sharded-etcd"));
    let ours = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b"SHARDED_ETCD_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| ours(name) || name == "RUST_LOG") {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// How a command ended, and what it printed.
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the program to its end.
pub fn run(arguments: &[&str]) -> Ended {
    let output = program().args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A running topology in a folder of its own. Ended, with its etcds, when dropped.
pub struct Up {
    process: Process,
    arguments: Vec<String>,
    port: u16,
    folder: TempDir,
}

impl Up {
    /// Runs so many shards without a file.
    pub async fn shards(engine: Engine, shards: u32) -> Self {
        Self::start(engine, &["--shards", &shards.to_string()]).await
    }

    /// Runs a file; only the spec is given.
    pub async fn file(engine: Engine, spec: &str) -> Self {
        let folder = folder();
        write_spec(folder.path(), spec);
        let file = folder.path().join("demo.yaml").display().to_string();
        Self::start_in(folder, engine, &["-f", &file]).await
    }

    /// Runs with further arguments.
    pub async fn start(engine: Engine, arguments: &[&str]) -> Self {
        Self::start_in(folder(), engine, arguments).await
    }

    async fn start_in(folder: TempDir, engine: Engine, more: &[&str]) -> Self {
        let port = free_port().unwrap();
        let data = folder.path().join("data").display().to_string();
        let mut arguments: Vec<String> =
            ["up", "--data-dir", &data, "--listen", &format!("127.0.0.1:{port}")].map(str::to_owned).into();
        if engine == Engine::Etcd {
            let etcd = tools::program(Tools::Etcd, "etcd").await.unwrap();
            arguments.extend(["--engine", "etcd", "--etcd", etcd.to_str().unwrap()].map(str::to_owned));
        }
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        let process = spawn(&arguments, &folder.path().join("log"));
        let mut up = Self { process, arguments, port, folder };
        up.wait_ready().await;
        up
    }

    /// `127.0.0.1:PORT` of the endpoint.
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The process, to signal it or read its log.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Replaces the spec in the file, as an editor does.
    pub fn save(&self, spec: &str) {
        write_spec(self.folder.path(), spec);
    }

    /// Replaces the text of the file.
    pub fn save_text(&self, text: &str) {
        replace(&self.folder.path().join("demo.yaml"), text);
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Runs it again, after a kill or a stop.
    pub async fn again(&mut self) {
        fs::write(self.process.log_path(), "").unwrap();
        self.process = spawn(&self.arguments, self.process.log_path());
        self.wait_ready().await;
    }

    /// `etcdctl` against the endpoint, which has to succeed.
    pub async fn ctl(&self, arguments: &[&str]) -> String {
        etcdctl(&self.endpoint(), arguments).await.unwrap().success().unwrap()
    }

    /// The same, with text on its standard input.
    pub async fn ctl_with_input(&self, arguments: &[&str], input: &str) -> String {
        etcdctl_with_input(&self.endpoint(), arguments, input).await.unwrap().success().unwrap()
    }

    /// Waits until something is in the log.
    pub async fn wait_log(&self, text: &str) {
        let what = format!("{text:?} is logged");
        let seen = wait_until(&what, START_LIMIT, || {
            std::future::ready(self.process.log().contains(text).then_some(()))
        });
        if let Err(error) = seen.await {
            panic!("{error}; the log:\n{}", self.process.log());
        }
    }

    async fn wait_ready(&mut self) {
        let process = &mut self.process;
        let ready = wait_until("it serves", START_LIMIT, || {
            let gone = process.check_running().err();
            let serves = process.log().contains("sharded-etcd serves ");
            std::future::ready(gone.map(Err).or(serves.then_some(Ok(()))))
        });
        match ready.await {
            Ok(outcome) => outcome.unwrap(),
            Err(error) => panic!("{error}; the log:\n{}", process.log()),
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.process.kill();
        end_orphans(self.folder.path());
        if std::thread::panicking() {
            eprintln!("the log of {:?} ends:\n{}", self.arguments, self.process.log_tail());
            if std::env::var_os("SHARDED_ETCD_ACCEPTANCE_KEEP").is_some() {
                self.folder.disable_cleanup(true);
                eprintln!("kept: {}", self.folder.path().display());
            }
        }
    }
}

/// Ends the etcds that a killed `up` left behind in a folder of ours.
fn end_orphans(folder: &Path) {
    let marker = format!("--data-dir={}/", folder.canonicalize().unwrap().display());
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let is_ours = line.split(|b| *b == 0).any(|argument| argument.starts_with(marker.as_bytes()));
        let id = entry.file_name().to_str().and_then(|id| id.parse().ok()).and_then(Pid::from_raw);
        if let Some(id) = id.filter(|_| is_ours) {
            let _ = kill_process(id, Signal::KILL);
        }
    }
}

/// A typed client of any endpoint.
pub fn client(endpoint: &str) -> EtcdShard {
    EtcdShard::connect_lazy(vec![endpoint.to_owned()], EtcdOptions::default()).unwrap()
}

/// A folder that is removed when dropped.
pub fn folder() -> TempDir {
    tempfile::Builder::new().prefix("sharded-etcd-acceptance-").tempdir().unwrap()
}

/// Starts the program with its output in a file.
pub fn spawn(arguments: &[String], log: &Path) -> Process {
    Process::start("sharded-etcd", program().args(arguments), log).unwrap()
}

/// The text of a file with this spec.
pub fn resource(spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!("apiVersion: shardedetcd.io/v1alpha1\nkind: ShardedEtcd\nmetadata: {{name: demo}}\nspec:\n{spec}")
}

fn write_spec(folder: &Path, spec: &str) {
    replace(&folder.join("demo.yaml"), &resource(spec));
}

fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("swp");
    fs::write(&beside, text).unwrap();
    fs::rename(&beside, path).unwrap();
}
