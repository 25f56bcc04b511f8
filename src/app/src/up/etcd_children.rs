//! Real etcd processes as children: found, started, watched over and ended.
//!
//! # Orphans
//!
//! A child cannot be tied to the life of its parent without unsafe code, so after a `kill -9` of `up` its etcds go on.
//! The next start finds them, as each carries its data folder on its command line, and ends them before it starts
//! anew: nothing is lost, as an etcd answers only what is on disk. A pid file would miss the child of a parent that
//! was killed before it had written one.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rand::Rng;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::data_dir::Ports;
use crate::files::FileError;

/// The oldest release of etcd that shards can run on, (major, minor).
const RELEASE_MIN: (u32, u32) = (3, 6);
/// How long an etcd may take to end after SIGTERM.
const STOP_MAX: Duration = Duration::from_secs(10);
/// Pause before a child that died is started again: doubled each time, up to the largest.
const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A child that ran for this long had started well.
const SETTLED: Duration = Duration::from_secs(30);
/// A log file that is larger than this is set aside at the next start of the child, and replaces the one before.
const LOG_BYTES_MAX: u64 = 16 << 20;
/// How much of a log's end is looked at for messages.
const LOG_TAIL_BYTES: u64 = 4 << 10;
/// Ports are taken from below Linux's range for outgoing connections (32768 and up), so that no client socket takes
/// one while its etcd is down.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Why no etcd can be run.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// There is none.
    #[error(
        "no etcd program found on PATH: install etcd {}.{} or newer, give its path with --etcd, or use --engine embedded",
        RELEASE_MIN.0,
        RELEASE_MIN.1
    )]
    NotFound,
    /// It cannot be run.
    #[error("cannot run {}: give the path of an etcd program with --etcd", path.display())]
    Run {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is something else.
    #[error("{} is no etcd: asked for its version, it says {said:?}; give the path of an etcd program with --etcd", path.display())]
    NotEtcd {
        /// Its path.
        path: PathBuf,
        /// The first line it printed.
        said: String,
    },
    /// It is too old.
    #[error(
        "{} is etcd {version}, but shards need {}.{} or newer: install a newer one, or give its path with --etcd",
        path.display(),
        RELEASE_MIN.0,
        RELEASE_MIN.1
    )]
    TooOld {
        /// Its path.
        path: PathBuf,
        /// Its version.
        version: String,
    },
    /// No ports are free.
    #[error("no free port between {} and {} on 127.0.0.1", PORTS.start, PORTS.end)]
    NoPorts,
    /// A process left over from an earlier run cannot be ended.
    #[error("process {pid} still runs on {} and cannot be ended: end it, then start again", data_dir.display())]
    Orphan {
        /// Its id.
        pid: i32,
        /// The data folder it holds.
        data_dir: PathBuf,
    },
    /// A file of it cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
}

/// An etcd program that shards can run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdProgram {
    /// Where it is.
    pub path: PathBuf,
    /// Its version, as in 3.7.3.
    pub version: String,
}

impl EtcdProgram {
    /// Finds the program, or takes the given one, and asks it for its version.
    ///
    /// # Errors
    /// See [`EtcdError`].
    pub async fn find(given: Option<&Path>) -> Result<Self, EtcdError> {
        let path = given.unwrap_or(Path::new("etcd"));
        let output = Command::new(path).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
        let output = tokio::time::timeout(Duration::from_secs(10), output)
            .await
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within 10 s")));
        let output = match output {
            Ok(output) => output,
            Err(error) if error.kind() == io::ErrorKind::NotFound && given.is_none() => {
                return Err(EtcdError::NotFound);
            }
            Err(source) => return Err(EtcdError::Run { path: path.to_owned(), source }),
        };
        let said = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned();
        let path = path.to_owned();
        let Some((version, release)) = parse_version(&said) else {
            return Err(EtcdError::NotEtcd { path, said });
        };
        if release < RELEASE_MIN {
            return Err(EtcdError::TooOld { path, version });
        }
        Ok(Self { path, version })
    }
}

/// Version and release (major, minor) of `etcd Version: 3.7.3`.
fn parse_version(line: &str) -> Option<(String, (u32, u32))> {
    let version = line.strip_prefix("etcd Version: ")?.trim();
    let mut numbers = version.split('.');
    let release = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
    Some((version.to_owned(), release))
}

/// One etcd of one member, as it is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdMember {
    /// `meta`, or the shard's name; also etcd's `--name`.
    pub name: String,
    /// Its data folder, absolute.
    pub data_dir: PathBuf,
    /// Where it logs to.
    pub log: PathBuf,
    /// `--initial-cluster-token`: unlike that of every other etcd ever, as the cluster id comes from it.
    pub token: String,
    /// Where it listens.
    pub ports: Ports,
    /// `--quota-backend-bytes`.
    pub quota_bytes: u64,
}

impl EtcdMember {
    /// URL of its client port.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.client)
    }

    /// The argument that tells this etcd from all others.
    fn data_dir_argument(&self) -> OsString {
        let mut argument = OsString::from("--data-dir=");
        argument.push(&self.data_dir);
        argument
    }

    fn arguments(&self) -> Vec<OsString> {
        let client = self.endpoint();
        let peer = format!("http://127.0.0.1:{}", self.ports.peer);
        let mut arguments = vec![self.data_dir_argument()];
        arguments.extend(
            [
                format!("--name={}", self.name),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster={}={peer}", self.name),
                format!("--initial-cluster-token={}", self.token),
                "--initial-cluster-state=new".to_owned(),
                format!("--quota-backend-bytes={}", self.quota_bytes),
                format!("--max-txn-ops={}", super::engines::TXN_OPS_MAX),
                format!("--max-request-bytes={}", super::engines::REQUEST_BYTES_MAX),
                // The topology owns history.
                "--auto-compaction-retention=0".to_owned(),
                "--log-level=warn".to_owned(),
            ]
            .map(OsString::from),
        );
        arguments
    }
}

/// Two loopback ports that nothing listens on.
///
/// # Errors
/// If there are none.
pub fn free_ports(taken: &[Ports]) -> Result<Ports, EtcdError> {
    let client = free_port(|port| taken.iter().any(|t| t.client == port || t.peer == port))?;
    let peer = free_port(|port| port == client || taken.iter().any(|t| t.client == port || t.peer == port))?;
    Ok(Ports { client, peer })
}

/// Whether both ports can be listened on.
pub fn are_free(ports: Ports) -> bool {
    is_free(ports.client) && is_free(ports.peer)
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn free_port(taken: impl Fn(u16) -> bool) -> Result<u16, EtcdError> {
    let count = PORTS.end - PORTS.start;
    let first = rand::rng().random_range(0..count);
    // Starting anywhere, so that two topologies started at once rarely meet.
    let mut ports = (0..count).map(|n| PORTS.start + (first + n) % count);
    ports.find(|port| !taken(*port) && is_free(*port)).ok_or(EtcdError::NoPorts)
}

/// What is known of a child.
#[derive(Debug, Clone, Default)]
pub struct ChildState {
    /// How often it died since it last ran well.
    pub deaths: u32,
    /// How it ended last, and the end of its log.
    pub last_death: Option<String>,
    /// Its process id while it runs.
    pub pid: Option<u32>,
}

/// An etcd that is kept running until it is stopped.
#[derive(Debug)]
pub struct EtcdChild {
    member: EtcdMember,
    state: watch::Receiver<ChildState>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl EtcdChild {
    /// Starts etcd and keeps it running. What an earlier run left behind must have been ended ([`end_orphan`]).
    pub fn start(program: &EtcdProgram, member: EtcdMember) -> Self {
        let (sender, state) = watch::channel(ChildState::default());
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(keep_running(program.path.clone(), member.clone(), sender, shutdown.clone()));
        Self { member, state, shutdown, task }
    }

    /// How it is to run.
    pub fn member(&self) -> &EtcdMember {
        &self.member
    }

    /// What is known of it now.
    pub fn state(&self) -> ChildState {
        self.state.borrow().clone()
    }

    /// Ends it: SIGTERM, and SIGKILL if that takes longer than 10 s.
    pub async fn stop(self) {
        self.shutdown.cancel();
        // Fails only if the task panicked; then the child was killed as it was dropped.
        let _ = self.task.await;
    }
}

async fn keep_running(
    program: PathBuf,
    member: EtcdMember,
    state: watch::Sender<ChildState>,
    shutdown: CancellationToken,
) {
    let mut backoff = BACKOFF_MIN;
    loop {
        let started = Instant::now();
        let died = match spawn(&program, &member) {
            Ok(mut child) => {
                state.send_modify(|s| s.pid = child.id());
                let status = tokio::select! {
                    status = child.wait() => status,
                    () = shutdown.cancelled() => return end(&member, child).await,
                };
                describe_death(status, &member.log)
            }
            Err(error) => format!("cannot be started: {error}"),
        };
        let settled = started.elapsed() >= SETTLED;
        let deaths = if settled { 1 } else { state.borrow().deaths + 1 };
        if deaths == 1 {
            tracing::error!(etcd = %member.name, log = %member.log.display(), "{died}; starting it again until it stays");
        } else {
            tracing::debug!(etcd = %member.name, deaths, "{died}");
        }
        state.send_replace(ChildState { deaths, last_death: Some(died), pid: None });
        backoff = if settled { BACKOFF_MIN } else { backoff };
        tokio::select! {
            () = tokio::time::sleep(backoff) => {}
            () = shutdown.cancelled() => return,
        }
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

fn spawn(program: &Path, member: &EtcdMember) -> io::Result<Child> {
    if fs::metadata(&member.log).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
        fs::rename(&member.log, member.log.with_extension("log.old"))?;
    }
    let log = File::options().create(true).append(true).open(&member.log)?;
    let mut command = Command::new(program);
    command
        .args(member.arguments())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C goes to all of the terminal's group: the proxy drains first, then the shards are ended.
        .process_group(0)
        .kill_on_drop(true);
    // Variables such as ETCD_NAME would set flags that are not given.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"ETCD_")) {
        command.env_remove(name);
    }
    command.spawn()
}

async fn end(member: &EtcdMember, mut child: Child) {
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
        // Not reaped yet, so the id is still this child's.
        let _ = kill_process(pid, Signal::TERM);
        // A stopped process ends only once it goes on.
        let _ = kill_process(pid, Signal::CONT);
    }
    if tokio::time::timeout(STOP_MAX, child.wait()).await.is_err() {
        tracing::warn!(etcd = %member.name, "did not end within {STOP_MAX:?}; killing it");
        let _ = child.kill().await;
    }
}

fn describe_death(status: io::Result<ExitStatus>, log: &Path) -> String {
    let how = match status {
        Ok(status) => format!("etcd ended ({status})"),
        Err(error) => format!("etcd cannot be waited for ({error})"),
    };
    match log_tail(log) {
        tail if tail.is_empty() => how,
        tail => format!("{how}, its log ends: {tail}"),
    }
}

/// The last line of a log, if any.
fn log_tail(log: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let from = file.metadata()?.len().saturating_sub(LOG_TAIL_BYTES);
        file.seek(SeekFrom::Start(from))?;
        let mut tail = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut tail)?;
        Ok(tail)
    };
    let tail = read().unwrap_or_default();
    String::from_utf8_lossy(&tail).trim_end().lines().next_back().unwrap_or_default().to_owned()
}

/// Ends the etcd that an earlier run left behind on this data folder, if there is one.
///
/// # Errors
/// If it still runs after SIGKILL: it is another user's, or hangs in the kernel.
pub async fn end_orphan(data_dir: &Path) -> Result<(), EtcdError> {
    let mut argument = OsString::from("--data-dir=");
    argument.push(data_dir);
    let started = Instant::now();
    let mut told = false;
    let mut pause = Duration::from_millis(10);
    loop {
        let Some(orphan) = find_process(&argument) else { return Ok(()) };
        if !told {
            told = true;
            tracing::info!(pid = orphan.as_raw_pid(), folder = %data_dir.display(), "ending the etcd of an earlier run");
            let _ = kill_process(orphan, Signal::TERM);
            let _ = kill_process(orphan, Signal::CONT);
        } else if started.elapsed() > STOP_MAX * 2 {
            return Err(EtcdError::Orphan { pid: orphan.as_raw_pid(), data_dir: data_dir.to_owned() });
        } else if started.elapsed() > STOP_MAX {
            let _ = kill_process(orphan, Signal::KILL);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

/// A process other than this one that has `argument` on its command line.
fn find_process(argument: &OsStr) -> Option<Pid> {
    let own = std::process::id();
    let ids =
        fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    // Zombies have an empty command line, so a child that is not reaped yet does not count.
    let mut found = ids.filter(|id| *id != own).filter(|id| {
        let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        line.split(|b| *b == 0).any(|arg| arg == argument.as_encoded_bytes())
    });
    found.next().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(parse_version("etcd Version: 3.7.3"), Some(("3.7.3".into(), (3, 7))));
        assert_eq!(parse_version("etcd Version: 4.0.0-alpha.0").unwrap().1, (4, 0));
        for other in ["", "etcd", "etcd Version: x", "GNU bash, version 5.2"] {
            assert_eq!(parse_version(other), None);
        }
    }

    fn script(folder: &Path, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.join("etcd");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn programs_that_will_not_do_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("nothing");
        let error = EtcdProgram::find(Some(&missing)).await.unwrap_err();
        assert!(matches!(error, EtcdError::Run { .. }), "{error}");
        for (text, expected) in [("echo hello", "no etcd"), ("echo 'etcd Version: 3.5.21'", "3.5.21")] {
            let error = EtcdProgram::find(Some(&script(folder.path(), text))).await.unwrap_err();
            assert!(error.to_string().contains(expected) && error.to_string().contains("--etcd"), "{error}");
        }
        let good = script(folder.path(), "echo 'etcd Version: 3.6.0'");
        assert_eq!(EtcdProgram::find(Some(&good)).await.unwrap().version, "3.6.0");
    }

    #[test]
    fn ports_are_free_and_apart() {
        let first = free_ports(&[]).unwrap();
        assert!(are_free(first) && first.client != first.peer);
        let _held = TcpListener::bind((Ipv4Addr::LOCALHOST, first.peer)).unwrap();
        assert!(!are_free(first));
    }

    fn member(folder: &Path) -> EtcdMember {
        EtcdMember {
            name: "shard-0".into(),
            data_dir: folder.join("shard-0"),
            log: folder.join("shard-0.log"),
            token: "t".into(),
            ports: Ports { client: 1, peer: 2 },
            quota_bytes: 1 << 30,
        }
    }

    #[tokio::test]
    async fn an_orphan_is_found_by_its_data_folder_and_ended() {
        let folder = tempfile::tempdir().unwrap();
        let program = script(folder.path(), "while :; do sleep 0.05; done");
        let member = member(folder.path());
        let mut orphan = spawn(&program, &member).unwrap();
        let mut other =
            spawn(&program, &EtcdMember { data_dir: folder.path().join("shard-01"), ..member.clone() })
                .unwrap();
        // Exec'd children only show their arguments once they run.
        while find_process(&member.data_dir_argument()).is_none() {
            tokio::task::yield_now().await;
        }
        let reaper = tokio::spawn(async move { orphan.wait().await.unwrap() });
        end_orphan(&member.data_dir).await.unwrap();
        assert!(!reaper.await.unwrap().success());
        assert!(other.try_wait().unwrap().is_none(), "another folder's etcd is left alone");
        other.kill().await.unwrap();
    }

    #[tokio::test]
    async fn a_child_that_dies_is_started_again_and_its_end_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = script(folder.path(), "echo 'panic: the disk is on fire' >&2; exit 7");
        let program = EtcdProgram { path, version: "3.7.3".into() };
        let child = EtcdChild::start(&program, member(folder.path()));
        let mut state = child.state.clone();
        let state = state.wait_for(|s| s.deaths == 2).await.unwrap().clone();
        let death = state.last_death.unwrap();
        assert!(death.contains("exit status: 7") && death.contains("the disk is on fire"), "{death}");
        child.stop().await;
    }
}
