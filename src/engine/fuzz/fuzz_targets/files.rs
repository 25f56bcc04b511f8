//! Arbitrary files of a data directory.
#![no_main]

#[path = "../src/files.rs"]
mod files;

use std::sync::LazyLock;

static DIR: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a folder for the files"));

libfuzzer_sys::fuzz_target!(|input: &[u8]| files::run(DIR.path(), input));
