//! What the documents name is there.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

/// The text of all Rust files below a folder.
fn sources(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

/// The names in backquotes in the last column of a row.
fn tests_of(row: &str) -> Vec<&str> {
    let last = row.trim_end_matches(['|', ' ']).rsplit(" | ").next().unwrap();
    last.split('`').skip(1).step_by(2).collect()
}

#[test]
fn each_numbered_trap_has_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut code = String::new();
    sources(&root.join("src"), &mut code);
    let document = fs::read_to_string(root.join("docs/consistency.md")).unwrap();
    let rows: Vec<(u32, &str)> = document
        .lines()
        .skip_while(|line| !line.starts_with("| trap |"))
        .take_while(|line| line.starts_with('|'))
        .filter_map(|line| Some((line.strip_prefix("| ")?.split(' ').next()?.parse().ok()?, line)))
        .collect();
    let numbers: Vec<u32> = rows.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=19).collect::<Vec<_>>());
    for (number, row) in rows {
        let tests = tests_of(row);
        assert!(!tests.is_empty(), "trap {number} has no test");
        for test in tests {
            // A function, or the name of a case of the conformance suite.
            let exists = code.contains(&format!("fn {test}(")) || code.contains(&format!("\"{test}\""));
            assert!(exists, "trap {number}: there is no test {test}");
            let other = test.strip_prefix("trap_").map(|rest| rest[..2].parse::<u32>().unwrap());
            assert!(other.is_none_or(|other| other == number), "{test} is not of trap {number}");
        }
    }
    // And no test of a trap is left out of the table.
    for name in code.split("fn trap_").skip(1).map(|rest| rest.split('(').next().unwrap()) {
        let name = format!("trap_{name}");
        let known =
            document.contains(&format!("`{name}`")) || document.contains(&format!("`{name}_over_etcd`"));
        assert!(known, "{name} is not in docs/consistency.md");
    }
}
