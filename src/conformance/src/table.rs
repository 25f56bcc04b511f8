//! The document about what runs where.

use std::{collections::BTreeMap, fmt::Write as _};

use crate::{Suite, Target};

/// `docs/conformance.md`: cases by call, and for each target what passes and what is skipped, with the reason.
pub fn table(suite: &Suite, targets: &[Target]) -> String {
    let mut text = String::from(
        "# Conformance\n\n\
         One suite of etcd v3 API cases (`src/conformance`) runs against every target below in `make test`. A case\n\
         says what it requires; where real etcd answers differently, the case is wrong. The keys of each case lie on\n\
         all shards of a target, so that ranges, deletes and watches cross shards. A case that a target skips must\n\
         fail there, or what it needs holds there only at times: the tests say so when it would pass.\n\n\
         `CASE=lease/ cargo test -p sharded-etcd-conformance` runs the cases whose name has that in it.\n\n\
         This file is written by the tests of that crate (`UPDATE=1`), which fail if it is out of date.\n\n\
         | target | passed | skipped |\n| --- | --- | --- |\n",
    );
    for target in targets {
        let skipped = suite.cases().iter().filter(|case| target.skips(case).is_some()).count();
        let passed = suite.cases().len() - skipped;
        let _ = writeln!(text, "| {} | {passed} | {skipped} |", target.name);
    }
    text.push_str("\n## Skipped\n");
    for target in targets {
        let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for case in suite.cases() {
            if let Some(lack) = target.skips(case) {
                by_reason.entry(lack.reason).or_default().push(&case.name);
            }
        }
        if by_reason.is_empty() {
            continue;
        }
        let _ = writeln!(text, "\n{}:\n", target.name);
        for (reason, names) in by_reason {
            let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
            let _ = writeln!(text, "- {reason}: {}", names.join(", "));
        }
    }
    let mut by_call: BTreeMap<&str, usize> = BTreeMap::new();
    for case in suite.cases() {
        let call = case.name.split('/').next().unwrap_or_default();
        *by_call.entry(call).or_default() += 1;
    }
    let _ = write!(text, "\n## Cases\n\n| call | cases |\n| --- | --- |\n");
    for (call, cases) in by_call {
        let _ = writeln!(text, "| {call} | {cases} |");
    }
    let _ = writeln!(text, "| all | {} |", suite.cases().len());
    text
}
