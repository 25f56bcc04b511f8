//! What people and programs get wrong, against the program as a user runs it: each bad input is answered with one clear
//! error, in etcd's own words where etcd has some; nothing crashes and nothing is half applied.
#![allow(clippy::unwrap_used)]

mod api;
mod disk;
mod files;
mod reload;
mod requests;
mod requests_etcd;
mod starts;
mod unreachable;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use sharded_etcd_e2e::program;
use sharded_etcd_testkit::command::{Output, finish};

/// How long a command that is refused may take; the longest wait of the program for a lock is 3 s.
const RUN_LIMIT: Duration = Duration::from_secs(30);

/// Runs the program to its end.
async fn run(arguments: &[&str]) -> Output {
    run_with(arguments, &[]).await
}

/// Runs the program to its end with some variables set, and without those that would set flags.
async fn run_with(arguments: &[&str], variables: &[(&str, &Path)]) -> Output {
    let mut command = tokio::process::Command::new(program().unwrap());
    let ours = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b"SHARDED_ETCD_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| ours(name) || name == "RUST_LOG") {
        command.env_remove(name);
    }
    command.args(arguments).envs(variables.iter().copied());
    finish(command, "sharded-etcd", "", RUN_LIMIT).await.unwrap()
}

/// What is wrong with how a bad start ended, if anything.
fn complaint(output: &Output, code: i32, expected: &[&str]) -> Option<String> {
    let mut wrong = Vec::new();
    if output.code != Some(code) {
        wrong.push(format!("ended with {:?} instead of {code}", output.code));
    }
    if !output.stdout.is_empty() {
        wrong.push(format!("printed {:?} as if it ran", output.stdout));
    }
    let missing = expected.iter().filter(|part| !output.stderr.contains(*part));
    wrong.extend(missing.map(|part| format!("{part:?} is not in the message")));
    if output.stderr.contains("panicked") || output.stderr.contains("RUST_BACKTRACE") {
        wrong.push("it panicked".to_owned());
    }
    (!wrong.is_empty()).then(|| format!("{}:\n{}", wrong.join("; "), output.stderr))
}

/// Everything in a folder: to see that nothing in it has changed. Links are not followed.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let (path, kind) = entry.map(|entry| (entry.path(), entry.file_type().unwrap())).unwrap();
            let text = if kind.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            all.insert(path.clone(), text);
            if kind.is_dir() {
                folders.push(path);
            }
        }
    }
    all
}

/// A folder that is removed when dropped.
fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("sharded-etcd-bad-inputs-").tempdir().unwrap()
}

/// The text of a file with this spec.
fn resource(spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!("apiVersion: shardedetcd.io/v1alpha1\nkind: ShardedEtcd\nmetadata: {{name: demo}}\nspec:\n{spec}")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
