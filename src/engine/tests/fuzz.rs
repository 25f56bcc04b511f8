//! What the fuzz targets do, on their corpus and on random changes of it.
//!
//! `ENGINE_FUZZ_SEED` chooses the changes. An input that a target failed on belongs into `fuzz/corpus`.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "../fuzz/src/files.rs"]
mod files;
#[path = "../fuzz/src/requests.rs"]
mod requests;

use std::{fs, path::Path};

use rand::{Rng, SeedableRng, rngs::StdRng};

/// Changed inputs for each one of the corpus.
const CHANGES: usize = 40;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() > 5, "the corpus of {target} is missing");
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Runs all inputs as they are, and with bytes changed, cut off, and joined with another one.
fn run(target: &str, run: impl Fn(&[u8])) {
    let seed =
        std::env::var("ENGINE_FUZZ_SEED").map_or_else(|_| rand::random(), |text| text.parse().unwrap());
    eprintln!("{target}: ENGINE_FUZZ_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let inputs = corpus(target);
    for input in &inputs {
        run(input);
        for _ in 0..CHANGES {
            let mut changed = input.clone();
            for _ in 0..random.random_range(1..5) {
                let Some(at) = changed.len().checked_sub(1).map(|last| random.random_range(0..=last)) else {
                    break;
                };
                match random.random_range(0..5) {
                    0 => changed[at] = random.random(),
                    1 => changed[at] ^= 1 << random.random_range(0..8),
                    2 => drop(changed.remove(at)),
                    3 => changed.insert(at, random.random()),
                    _ => {
                        let other = &inputs[random.random_range(0..inputs.len())];
                        changed.truncate(at);
                        changed.extend_from_slice(&other[random.random_range(0..=other.len())..]);
                    }
                }
            }
            run(&changed);
        }
    }
}

#[test]
fn files_of_any_content_are_read_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    run("files", |input| files::run(dir.path(), input));
}

#[test]
fn requests_of_any_content_keep_the_store_whole() {
    run("requests", requests::run);
}
