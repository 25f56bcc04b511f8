//! Four ways to store what etcd stores, measured on its access pattern: every put is a new record under its revision, is
//! answered after a sync, and puts that wait together share one.
//!
//! `cargo run --release` in this directory prints the table of docs/engine.md; `KEYS` and `SECONDS` change the load. Each
//! measurement runs in a process of its own, so CPU and memory are its own.

mod grouped;
mod run;
mod stores;

use std::process::Command;

use anyhow::{Context, Result, ensure};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WRITERS: [u64; 3] = [1, 10, 100];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.is_empty() {
        return run::child(&arguments);
    }
    let number = |name: &str, default: u64| std::env::var(name).map_or(Ok(default), |text| text.parse());
    let (keys, seconds) = (number("KEYS", 1_000_000)?, number("SECONDS", 5)?);
    let work =
        tempfile::tempdir_in(std::env::var_os("BENCH_DIR").unwrap_or_else(|| std::env::temp_dir().into()))?;

    println!("| store | writers | puts/s | p50 ms | p99 ms | p99.9 ms | CPU µs per put |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    for writers in WRITERS {
        for store in run::STORES {
            let dir = work.path().join(format!("{store}-{writers}"));
            let row = measure(&[
                "speed",
                store,
                &dir.to_string_lossy(),
                &writers.to_string(),
                &seconds.to_string(),
            ])?;
            println!("| {store} | {writers} {row}");
            std::fs::remove_dir_all(dir)?;
        }
    }
    println!();
    println!("| {keys} keys | fill, s | memory MiB | disk MiB | get µs | open, ms | memory after it, MiB |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    for store in run::STORES {
        let dir = work.path().join(format!("{store}-full"));
        let full = measure(&["fill", store, &dir.to_string_lossy(), &keys.to_string()])?;
        let opened = measure(&["open", store, &dir.to_string_lossy(), &keys.to_string()])?;
        println!("| {store} {full}{}", opened.trim_start_matches("| "));
        std::fs::remove_dir_all(dir)?;
    }
    Ok(())
}

/// Runs one measurement; it prints the cells of its row.
fn measure(arguments: &[&str]) -> Result<String> {
    let output = Command::new(std::env::current_exe()?).args(arguments).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?} failed: {error}");
    let row = String::from_utf8(output.stdout).context("the row is no text")?;
    Ok(row.trim_end_matches('\n').to_owned())
}
