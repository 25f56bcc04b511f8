//! The suite against every target, one test each.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod targets;

use std::{fs, path::Path};

use bytes::Bytes;
use sharded_etcd_conformance::{Need, Suite, Target, cases, run, table};

/// Where the ranges that move begin at first: few, so that the range of a case moves often.
const START_OF_CASES: [Bytes; 2] = [Bytes::from_static(b"/c0200/"), Bytes::from_static(b"/c0400/")];

async fn passes(suite: &Suite, target: Target, endpoints: &[String]) {
    let started = std::time::Instant::now();
    // CASE=lease/ runs the cases whose name has that in it.
    let only = std::env::var("CASE").ok();
    match run(suite, &target, endpoints, only.as_deref()).await {
        Ok(passed) => println!("{}: {passed} cases pass in {:?}", target.name, started.elapsed()),
        Err(report) => panic!("{report}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd() {
    let served = targets::etcd().await;
    passes(&cases::suite(), targets::etcd_target(), &served.endpoints).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn engine() {
    let served = targets::engine().await;
    passes(&cases::suite(), targets::engine_target(), &served.endpoints).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_over_three_engines() {
    let suite = cases::suite();
    let served = targets::proxies_over_engines(1, 3, &suite.boundaries()).await;
    passes(&suite, targets::engines_target(), &served.endpoints).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_proxies_over_three_engines() {
    let suite = cases::suite();
    let served = targets::proxies_over_engines(2, 3, &suite.boundaries()).await;
    passes(&suite, targets::two_proxies_target(), &served.endpoints).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_over_one_etcd() {
    let suite = cases::suite();
    let served = targets::proxy_over_etcds(1, &suite.boundaries()).await;
    passes(&suite, targets::etcd_shard_target(), &served.endpoints).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_over_three_etcds() {
    let suite = cases::suite();
    let served = targets::proxy_over_etcds(3, &suite.boundaries()).await;
    passes(&suite, targets::etcd_shards_target(), &served.endpoints).await;
}

/// The ranges that are written to move, split and merge underneath. `MOVING_SEED` repeats the choices of a run, not the
/// moments at which they meet the cases.
async fn passes_while_ranges_move(target: Target, served: targets::Served) {
    let moving = served.start_moving().await;
    passes(&cases::suite(), target, &served.endpoints).await;
    moving.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_over_three_engines_while_ranges_move() {
    let served = targets::proxies_over_engines(1, 3, &START_OF_CASES).await;
    passes_while_ranges_move(targets::moving_engines_target(), served).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_over_three_etcds_while_ranges_move() {
    let served = targets::proxy_over_etcds(3, &START_OF_CASES).await;
    passes_while_ranges_move(targets::moving_etcds_target(), served).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_difference_is_reported_with_its_requirement() {
    let served = targets::engine().await;
    let mut suite = Suite::default();
    suite.case("put/fine", "a put is there", |c| async move {
        c.put("b/1", "x").await?;
        c.same("value", c.value("b/1").await?.as_deref(), Some("x"));
        Ok(())
    });
    suite.case("put/wrong", "one is two", |c| async move {
        c.same("number", 1, 2);
        c.refused(c.try_range(c.all()).await, tonic::Code::NotFound, "nothing");
        c.there("b/none").await?;
        Ok(())
    });
    suite.case("put/users", "what is not there", |_| async { Ok(()) }).needs(Need::Users);
    let report = run(&suite, &targets::engine_target(), &served.endpoints, None).await.unwrap_err();
    for part in [
        "2 of 3 cases fail on embedded engine",
        "put/wrong\n  requires: one is two\n  number: got 1, expected 2\n",
        "expected NotFound: nothing",
        "b/none is not there",
        "put/users\n  requires: what is not there\n  is skipped on this target, but passes",
    ] {
        assert!(report.contains(part), "{part:?} is not in\n{report}");
    }
    let fine = run(&suite, &targets::engine_target(), &served.endpoints, Some("fine")).await;
    assert_eq!(fine, Ok(1));
}

#[test]
fn directories_of_a_case_are_cut_apart() {
    let boundaries = cases::suite().boundaries();
    assert!(boundaries.is_sorted_by(|a, b| a < b), "a range needs a start below its end");
    let shard_of = |key: &str| boundaries.iter().filter(|start| start.as_ref() <= key.as_bytes()).count() % 3;
    for prefix in ["/c0000/", "/c0001/", "/c0100/", "/c0640/"] {
        let mut shards = ["a/1", "b/1", "c/1"].map(|name| shard_of(&format!("{prefix}{name}")));
        shards.sort_unstable();
        assert_eq!(shards, [0, 1, 2], "{prefix}");
    }
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
