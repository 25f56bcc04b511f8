//! What explains a failure, written down before the cluster is gone.

use std::path::PathBuf;

use super::{Operator, SOON, Test, kubectl, logs};

/// Most lines of each container's log.
const TAIL: &str = "--tail=3000";

/// Writes all that is to be known of a test's namespaces and the operator into one file, and returns its name.
pub(super) async fn write(test: &Test, error: &anyhow::Error) -> PathBuf {
    let file = logs().join(format!("{}.log", test.name));
    let mut text = format!("{error:#}\n");
    let namespaces = namespaces(test).await;
    for namespace in &namespaces {
        for arguments in [
            &["get", "se", "-o", "wide"][..],
            &["describe", "se"],
            &["get", "all,pvc,cm,pdb,networkpolicy", "-o", "wide"],
            &["get", "events", "--sort-by=.lastTimestamp"],
            &["get", "se", "-o", "yaml"],
            &["describe", "pods"],
        ] {
            add(&mut text, &[&["-n", namespace][..], arguments].concat()).await;
        }
        let pods = kubectl(&["-n", namespace, "get", "pods", "-o", "name"], "", SOON).await;
        for pod in pods.map(|o| o.stdout).unwrap_or_default().lines() {
            let of = ["-n", namespace, "logs", pod, "--all-containers", "--prefix", "--timestamps", TAIL];
            add(&mut text, &of).await;
            // Of the container before the last restart; most have none.
            let before = [&of[..], &["--previous"]].concat();
            if kubectl(&before, "", SOON).await.is_ok_and(|o| o.code == Some(0)) {
                add(&mut text, &before).await;
            }
        }
    }
    add(&mut text, &["get", "nodes,pv", "-o", "wide"]).await;
    if let Err(error) = std::fs::create_dir_all(logs()).and_then(|()| std::fs::write(&file, &text)) {
        println!("cannot write {}: {error}\n{text}", file.display());
    }
    file
}

/// The test's own namespaces, and the operator's.
async fn namespaces(test: &Test) -> Vec<String> {
    let all =
        kubectl(&["get", "namespaces", "-o", "name"], "", SOON).await.map(|o| o.stdout).unwrap_or_default();
    let names = all.lines().filter_map(|line| line.strip_prefix("namespace/"));
    let mut found: Vec<_> = names
        .filter(|n| n.starts_with(&test.namespace) || *n == Operator::NAMESPACE)
        .map(str::to_owned)
        .collect();
    found.sort();
    found
}

async fn add(text: &mut String, arguments: &[&str]) {
    *text += &format!("\n===== kubectl {}\n", arguments.join(" "));
    match kubectl(arguments, "", SOON).await {
        Ok(output) => *text += &format!("{}{}", output.stdout, output.stderr),
        Err(error) => *text += &format!("{error:#}\n"),
    }
}
