//! The bounded form of `examples/soak`: see there. SOAK_OPERATIONS sets another length.

#[path = "../examples/soak/run.rs"]
mod run;

/// Bytes that memory may grow by for each operation in the second half; a value alone has 256. The allocator's own pools are
/// full by then.
const MEMORY_MAX: f64 = 100.0;
/// The same of the disk, where the log is cut in steps; a record has more than 300.
const DISK_MAX: f64 = 200.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_operations_with_compaction_keep_memory_and_disk_flat() {
    let operations =
        std::env::var("SOAK_OPERATIONS").map_or(1_000_000, |text| text.parse().expect("a number"));
    let seed = rand::random();
    println!("{operations} operations, seed {seed}");
    let dir = tempfile::tempdir().expect("a directory");
    let samples = run::soak(dir.path(), operations, seed, |sample| {
        println!("{}: memory {}, disk {} bytes", sample.operations, sample.resident_bytes, sample.disk_bytes);
    })
    .await;

    // Medians of the third and the last quarter: a checkpoint that is slow lets the log grow for a moment.
    let quarter = samples.len() / 4;
    let between = operations as f64 / 4.0;
    let growth = |what: &str, max: f64, of: fn(&run::Sample) -> u64| {
        let median = |quarter: &[run::Sample]| {
            let mut figures: Vec<_> = quarter.iter().map(of).collect();
            figures.sort_unstable();
            figures[figures.len() / 2] as f64
        };
        let (before, after) = (median(&samples[2 * quarter..3 * quarter]), median(&samples[3 * quarter..]));
        let each = (after - before) / between;
        assert!(each <= max, "{what} grew from {before} to {after} bytes, {each} an operation");
    };
    growth("memory", MEMORY_MAX, |sample| sample.resident_bytes);
    growth("disk", DISK_MAX, |sample| sample.disk_bytes);
}
