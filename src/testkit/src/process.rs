//! A program under test, run as its own process that can be killed, stopped and looked at.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::{tools::last_lines, wait_until};

/// How long a process may take to end after SIGTERM before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// How long the threads of a process may take to stop after SIGSTOP.
const PAUSE_LIMIT: Duration = Duration::from_secs(10);

/// A running child process whose output goes to a file. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with stdout and stderr appended to the file `log`; `name` is for messages.
    ///
    /// # Errors
    ///
    /// When the log file cannot be opened or the program cannot be run.
    pub fn start(name: impl Into<String>, command: &mut Command, log: &Path) -> Result<Self> {
        let name = name.into();
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open {}, the log of {name}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("cannot duplicate a file handle")?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot run {name} ({})", command.get_program().display()))?;
        Ok(Self { name, child, log: log.to_owned() })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, if the process has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Fails with the end of the log if the process has ended.
    pub fn check_running(&mut self) -> Result<()> {
        match self.ended() {
            Some(status) => bail!("{} ended with {status}; its log ends:\n{}", self.name, self.log_tail()),
            None => Ok(()),
        }
    }

    /// Sends a signal; nothing happens if the process has ended.
    pub fn signal(&mut self, signal: Signal) {
        // The child is ours and not reaped before `try_wait` says so: its id cannot be another process's.
        if self.ended().is_none()
            && let Ok(id) = i32::try_from(self.child.id())
            && let Some(id) = Pid::from_raw(id)
        {
            let _ = kill_process(id, signal);
        }
    }

    /// Ends the process at once with SIGKILL and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Freezes the process with SIGSTOP: its sockets stay open and nothing answers.
    ///
    /// # Errors
    ///
    /// When not all of its threads stand still within 10 s.
    pub async fn pause(&mut self) -> Result<()> {
        self.signal(Signal::STOP);
        // The signal is only sent: threads on other processors go on for a moment.
        let what = format!("all threads of {} stand still", self.name);
        let id = self.id();
        wait_until(&what, PAUSE_LIMIT, || std::future::ready(stands_still(id).then_some(()))).await
    }

    /// Lets a frozen process go on.
    pub fn resume(&mut self) {
        self.signal(Signal::CONT);
    }

    /// Ends the process with SIGTERM.
    ///
    /// # Errors
    ///
    /// When it does not end within 20 s; it is killed then.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM);
        let what = format!("{} ends after SIGTERM", self.name);
        let ended = wait_until(&what, STOP_LIMIT, || std::future::ready(self.ended())).await;
        if ended.is_err() {
            self.kill();
        }
        ended.with_context(|| format!("its log ends:\n{}", self.log_tail()))
    }

    /// Waits until the process has ended by itself.
    ///
    /// # Errors
    ///
    /// When it still runs after `limit`.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("{} ends", self.name);
        let ended = wait_until(&what, limit, || std::future::ready(self.ended())).await;
        ended.with_context(|| format!("its log ends:\n{}", self.log_tail()))
    }

    /// The file that holds stdout and stderr.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Everything printed so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The last 20 lines printed, for error messages.
    pub fn log_tail(&self) -> String {
        last_lines(&self.log(), 20)
    }
}

/// True if all threads of a process are stopped by a signal (state T in proc_pid_stat(5)).
fn stands_still(id: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{id}/task")) else { return false };
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // The name before the state is in parentheses and may hold any character.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn shell(script: &str) -> (Process, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let process = Process::start("script", Command::new("sh").args(["-c", script]), &log).unwrap();
        (process, folder)
    }

    #[tokio::test]
    async fn keeps_what_was_printed_and_shows_it_when_the_process_is_gone() {
        let (mut process, _folder) = shell("echo to stdout; echo to stderr >&2; exit 3");
        let status = process.wait(Duration::from_secs(10)).await.unwrap();
        assert_eq!(status.code(), Some(3));
        let message = process.check_running().unwrap_err().to_string();
        assert!(message.contains("to stdout") && message.contains("to stderr"), "{message}");
    }

    #[tokio::test]
    async fn a_frozen_process_does_nothing_until_it_is_resumed() {
        let (mut process, _folder) =
            shell("echo ready; trap 'echo stopped; exit 0' TERM; while :; do sleep 0.01; done");
        wait_until("the script has started", Duration::from_secs(10), || {
            std::future::ready(process.log().contains("ready").then_some(()))
        })
        .await
        .unwrap();
        process.pause().await.unwrap();
        process.signal(Signal::TERM);
        assert!(process.wait(Duration::from_millis(300)).await.is_err(), "a stopped process cannot end");
        process.resume();
        assert_eq!(process.wait(Duration::from_secs(10)).await.unwrap().code(), Some(0));
        assert!(process.log().contains("stopped"));
    }
}
