//! The bounded form of `examples/soak`: see there.

#[path = "../examples/soak/run.rs"]
mod run;

/// Once the store has reached its size, memory and disk may vary by this much.
const GROWTH_MAX: f64 = 1.5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_operations_with_compaction_keep_memory_and_disk_flat() {
    let operations = std::env::var("SOAK_OPERATIONS").map_or(1_000_000, |text| text.parse().expect("a number"));
    let seed = rand::random();
    println!("{operations} operations, seed {seed}");
    let dir = tempfile::tempdir().expect("a directory");
    let samples = run::soak(dir.path(), operations, seed, |sample| println!("{sample:?}")).await;

    // By then every key was written, and the log has been through its first checkpoints.
    let half = samples.len() / 2;
    let most = |samples: &[run::Sample], of: fn(&run::Sample) -> u64| samples.iter().map(of).max().unwrap_or(0);
    let figures: [(&str, fn(&run::Sample) -> u64); 2] =
        [("memory", |sample| sample.resident_bytes), ("disk", |sample| sample.disk_bytes)];
    for (what, of) in figures {
        let (before, after) = (most(&samples[..half], of), most(&samples[half..], of));
        assert!(after as f64 <= before as f64 * GROWTH_MAX, "{what} grew from {before} to {after} bytes");
    }
}
