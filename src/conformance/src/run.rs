//! Runs a suite against an endpoint.

use std::{fmt::Write as _, time::Duration};

use futures::{StreamExt, stream};
use tokio::time::timeout;

use crate::{Api, Case, Ctx, Suite, Target};

/// Cases that run at the same time.
const AT_ONCE: usize = 24;
/// How long one case may take.
const CASE_MAX: Duration = Duration::from_secs(30);

/// Runs every case of the suite that the target does not skip against its endpoints; if these are several,
/// each request goes to any of them.
///
/// With `only`, just the cases whose name has that in it. Returns how many passed.
///
/// # Errors
/// What is not as required, for all cases in their order: name, requirement, and each difference. Also if a case that
/// the target skips would pass: then the target does more than it says.
pub async fn run(
    suite: &Suite,
    target: &Target,
    endpoints: &[String],
    only: Option<&str>,
) -> Result<usize, String> {
    let api = match endpoints {
        [one] => Api::connect(one).await,
        several => Api::balanced(several),
    };
    let api = api.map_err(|e| format!("{}: cannot connect: {e}", target.name))?;
    let (alone, shared): (Vec<_>, Vec<_>) = suite
        .cases()
        .iter()
        .enumerate()
        .filter(|(_, case)| only.is_none_or(|part| case.name.contains(part)))
        .partition(|(_, case)| case.is_alone);
    let at_once = stream::iter(shared)
        .map(|(place, case)| {
            let ctx = Ctx::new(api.clone(), Suite::prefix(place), place);
            async move { (place, outcome(case, target, ctx).await) }
        })
        .buffer_unordered(AT_ONCE);
    let mut outcomes: Vec<_> = at_once.collect().await;
    for (place, case) in alone {
        let ctx = Ctx::new(api.clone(), Suite::prefix(place), place);
        outcomes.push((place, outcome(case, target, ctx).await));
    }
    outcomes.sort_by_key(|(place, _)| *place);
    let passed = outcomes.iter().filter(|(_, outcome)| *outcome == Outcome::Passed).count();
    let mut report = String::new();
    let mut failed = 0;
    for (place, outcome) in outcomes {
        let Outcome::Failed(differences) = outcome else { continue };
        failed += 1;
        let case = &suite.cases()[place];
        let _ = writeln!(report, "{}\n  requires: {}", case.name, case.requires);
        for difference in differences {
            let _ = writeln!(report, "  {difference}");
        }
    }
    if failed == 0 {
        Ok(passed)
    } else {
        Err(format!("{failed} of {} cases fail on {}:\n\n{report}", suite.cases().len(), target.name))
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Skipped,
    Failed(Vec<String>),
}

async fn outcome(case: &Case, target: &Target, ctx: Ctx) -> Outcome {
    let skipped = match target.skips(case) {
        Some(lack) if lack.is_fickle => return Outcome::Skipped,
        lack => lack.is_some(),
    };
    let differences = match timeout(CASE_MAX, (case.check)(ctx.clone())).await {
        Ok(Ok(())) => ctx.found(),
        Ok(Err(stop)) => ctx.found().into_iter().chain([stop.0]).collect(),
        Err(_) => ctx.found().into_iter().chain([format!("did not end within {CASE_MAX:?}")]).collect(),
    };
    match (skipped, differences.is_empty()) {
        (false, true) => Outcome::Passed,
        (false, false) => Outcome::Failed(differences),
        (true, false) => Outcome::Skipped,
        (true, true) => Outcome::Failed(vec!["is skipped on this target, but passes".to_owned()]),
    }
}
