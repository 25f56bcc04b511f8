//! The program as a process under test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::etcd::{EtcdOptions, EtcdShard};
use sharded_etcd_testkit::{Process, free_port, wait_until};
use tempfile::TempDir;

/// How long a start may take on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);
const PROGRAM: &str = env!("CARGO_BIN_EXE_sharded-etcd");

/// Without the variables that would set its flags.
fn clean(mut command: Command) -> Command {
    let ours =
        |name: &[u8]| name.starts_with(b"SHARDED_ETCD_") || name.starts_with(b"ETCD_") || name == b"RUST_LOG";
    for (name, _) in std::env::vars_os().filter(|(name, _)| ours(name.as_encoded_bytes())) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// How a command ended, and what it printed on both outputs.
pub fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let output = clean(Command::new(PROGRAM)).args(arguments).output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.code(), text)
}

/// A data folder, and the program on it or not.
pub struct Server {
    folder: TempDir,
    port: u16,
    process: Option<Process>,
}

impl Server {
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("sharded-etcd-engine-").tempdir().unwrap();
        Self { folder, port: free_port().unwrap(), process: None }
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().unwrap()
    }

    /// Runs it; it may not serve yet.
    pub fn spawn(&mut self) {
        self.spawn_as(Command::new(PROGRAM));
    }

    /// Runs it where no file may be larger than so many units of 512 bytes, as POSIX counts them.
    pub fn spawn_with_files_of(&mut self, units: u64) {
        // The signal would end it; ignored, the write fails instead, as on a disk that takes no more.
        self.spawn_after(&format!("trap '' XFSZ; ulimit -f {units}"));
    }

    /// Runs it in a shell's place after these commands.
    pub fn spawn_after(&mut self, commands: &str) {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{commands}; exec \"$0\" \"$@\""), PROGRAM]);
        self.spawn_as(command);
    }

    fn spawn_as(&mut self, command: Command) {
        self.process = None;
        let log = self.log();
        let _ = fs::remove_file(&log);
        let listen = format!("127.0.0.1:{}", self.port);
        let mut command = clean(command);
        command.args(["engine", "--listen", &listen, "--data-dir"]).arg(self.data());
        self.process = Some(Process::start("sharded-etcd engine", &mut command, &log).unwrap());
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    pub async fn ready(&mut self) {
        let process = self.process.as_mut().unwrap();
        let ready = wait_until("the engine serves", START_LIMIT, || {
            let gone = process.check_running().err();
            let serves = process.log().contains("engine serves at ");
            std::future::ready(gone.map(Err).or(serves.then_some(Ok(()))))
        });
        ready.await.unwrap().unwrap();
    }

    /// A client with connections of its own.
    pub fn client(&self) -> EtcdShard {
        EtcdShard::connect_lazy(vec![format!("127.0.0.1:{}", self.port)], EtcdOptions::default()).unwrap()
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) {
        self.process().kill();
        self.process = None;
    }

    /// Ends it with SIGTERM.
    pub async fn stop(&mut self) {
        let status = self.process().stop().await.unwrap();
        assert!(status.success(), "{status}: {}", self.process().log());
        self.process = None;
    }

    /// What `engine check` says.
    pub fn check(&self) -> (Option<i32>, String) {
        check(&self.data())
    }
}

pub fn check(dir: &Path) -> (Option<i32>, String) {
    run(&["engine", "check", dir.to_str().unwrap()])
}

pub fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() }
}

pub fn everything() -> pb::RangeRequest {
    pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() }
}

pub fn revision(header: &Option<pb::ResponseHeader>) -> i64 {
    header.as_ref().unwrap().revision
}
