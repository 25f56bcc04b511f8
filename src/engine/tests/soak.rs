//! The bounded form of `examples/soak`: see there. SOAK_OPERATIONS sets another length.

#[path = "../examples/soak/run.rs"]
mod run;

/// Once the store has reached its size, memory and disk may vary by this much.
const GROWTH_MAX: f64 = 1.5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_operations_with_compaction_keep_memory_and_disk_flat() {
    let operations = std::env::var("SOAK_OPERATIONS").map_or(300_000, |text| text.parse().expect("a number"));
    let seed = rand::random();
    println!("{operations} operations, seed {seed}");
    let dir = tempfile::tempdir().expect("a directory");
    let samples = run::soak(dir.path(), operations, seed, |sample| {
        println!("{}: memory {}, disk {} bytes", sample.operations, sample.resident_bytes, sample.disk_bytes);
    })
    .await;

    // Medians: a checkpoint that is slow lets the log grow for a moment. By the second quarter every key was written, and
    // the log has been through its first checkpoints.
    let quarter = samples.len() / 4;
    let growth = |what: &str, of: fn(&run::Sample) -> u64| {
        let median = |quarter: &[run::Sample]| {
            let mut figures: Vec<_> = quarter.iter().map(of).collect();
            figures.sort_unstable();
            figures[figures.len() / 2]
        };
        let (before, after) = (median(&samples[quarter..2 * quarter]), median(&samples[3 * quarter..]));
        assert!(after as f64 <= before as f64 * GROWTH_MAX, "{what} grew from {before} to {after} bytes");
    };
    growth("memory", |sample| sample.resident_bytes);
    growth("disk", |sample| sample.disk_bytes);
}
