//! The suite against every target, one test each.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod targets;

use std::{fs, path::Path};

use sharded_etcd_conformance::{Suite, Target, cases, run, table};

async fn passes(suite: &Suite, target: Target, endpoint: &str) {
    let started = std::time::Instant::now();
    // CASE=lease/ runs the cases whose name has that in it.
    let only = std::env::var("CASE").ok();
    match run(suite, &target, endpoint, only.as_deref()).await {
        Ok(passed) => println!("{}: {passed} cases pass in {:?}", target.name, started.elapsed()),
        Err(report) => panic!("{report}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd() {
    let served = targets::etcd().await;
    passes(&cases::suite(), targets::etcd_target(), &served.endpoint).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn engine() {
    let served = targets::engine().await;
    passes(&cases::suite(), targets::engine_target(), &served.endpoint).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_over_three_engines() {
    let suite = cases::suite();
    let served = targets::proxy_over_engines(3, &suite.boundaries()).await;
    passes(&suite, targets::engines_target(), &served.endpoint).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_over_one_etcd() {
    let suite = cases::suite();
    let served = targets::proxy_over_etcds(1, &suite.boundaries()).await;
    passes(&suite, targets::etcd_shard_target(), &served.endpoint).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_over_three_etcds() {
    let suite = cases::suite();
    let served = targets::proxy_over_etcds(3, &suite.boundaries()).await;
    passes(&suite, targets::etcd_shards_target(), &served.endpoint).await;
}

/// `docs/conformance.md` is what suite and targets say; `UPDATE=1` writes it anew.
#[test]
fn document_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/conformance.md");
    let current = table(&cases::suite(), &targets::all());
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &current).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == current, "{} is out of date: run the tests with UPDATE=1", path.display());
}
