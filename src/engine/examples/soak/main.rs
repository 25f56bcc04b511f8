//! `soak [OPERATIONS] [SEED] [DIR]`: many writes with compaction on, every key compared at the end and after a restart.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod run;

use std::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u64| arguments.next().map_or(default, |text| text.parse().unwrap());
    let (operations, seed) = (number(50_000_000), number(rand::random()));
    let temporary = tempfile::tempdir().unwrap();
    let dir = arguments.next().map_or(temporary.path().to_owned(), Into::into);
    println!("{operations} operations, seed {seed}, {}", dir.display());
    let begin = Instant::now();
    let show = move |sample: run::Sample| {
        println!(
            "{:>10} operations, {:>6.0} s, memory {:>4} MiB, disk {:>4} MiB",
            sample.operations,
            begin.elapsed().as_secs_f64(),
            sample.resident_bytes >> 20,
            sample.disk_bytes >> 20,
        );
    };
    let samples = run::soak(&dir, operations, seed, show).await;
    println!("every key is right; {} samples, {:.0} s", samples.len(), begin.elapsed().as_secs_f64());
}
