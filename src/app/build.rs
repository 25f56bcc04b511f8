//! Tells the program which commit it is built from: `SHARDED_ETCD_COMMIT` where a build sets it (an image has no
//! repository), else what git says, else "unknown".

#![allow(clippy::print_stdout, reason = "cargo reads instructions from standard output")]

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=SHARDED_ETCD_COMMIT");
    println!("cargo::rerun-if-changed=../../.git/HEAD");
    println!("cargo::rerun-if-changed=../../.git/logs/HEAD");
    let given = std::env::var("SHARDED_ETCD_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = given.or_else(of_git).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=SHARDED_ETCD_BUILD_COMMIT={commit}");
}

fn of_git() -> Option<String> {
    let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
    let commit = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !commit.is_empty()).then_some(commit)
}
