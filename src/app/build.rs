//! Tells the program which commit it is built from: `SHARDED_ETCD_COMMIT`, if the build sets it.
#![allow(clippy::print_stdout, reason = "cargo reads instructions from standard output")]

fn main() {
    println!("cargo::rerun-if-env-changed=SHARDED_ETCD_COMMIT");
    println!("cargo::rerun-if-changed=build.rs");
    let commit = std::env::var("SHARDED_ETCD_COMMIT").ok().filter(|commit| !commit.is_empty());
    println!("cargo::rustc-env=SHARDED_ETCD_BUILD_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
}
