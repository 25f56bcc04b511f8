//! Bad files, each with the message that a user gets: it names the field and says what to write instead. The
//! messages are in `snapshots/`.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;

use crate::{parse::FILE_BYTES_MAX, parse_file, parse_json};

const HEAD: &str = "apiVersion: shardedetcd.io/v1alpha1\nkind: ShardedEtcd\nmetadata: {name: demo}\n";

/// Specs that are refused, each below a good head.
const SPECS: &[&str] = &[
    "shards: three",
    "{}",
    "shards: 0",
    "shards: -3",
    "shards: 3.5",
    "shards: 99999999999999999999",
    "shards: [3]",
    "shards: \"3\"",
    "shards: 5000",
    "shard: 3",
    "shards: 3\nshards: 4",
    "shards: 3\ntls: {}",
    "shards: 3\nauth: {enabled: true}",
    "shards: 3\nbackup: {}",
    "shards: 3\nmonitoring: {}",
    "shards: 3\ndelimiter: /",
    "shards: 3\nfoo: 1",
    "shards: 3\nversion: 3.7",
    "shards: 3\nversion: latest",
    "shards: 3\nversion: v3.7.3",
    "shards: 3\nkeyspace: []",
    "shards: 3\nkeyspace: {delimeter: /}",
    "shards: 3\nkeyspace: {delimiter: 1}",
    "shards: 3\nkeyspace: {presplit: /a/}",
    "shards: 3\nkeyspace: {presplit: [1]}",
    "shards: 3\nkeyspace:\n  presplit:\n  - /registry/pods/\n  - /registry/pods/kube-",
    "shards: 3\nkeyspace: {presplit: [\"\"]}",
    "shards: 3\nkeyspace: {presplit: [/a/, /a/]}",
    "shards: 3\nkeyspace: {presplit: [null]}",
    "shards: 3\nkeyspace: {splittable: [/registry/pods]}",
    "shards: 3\nkeyspace: {splittable: [/a/, /a/b/]}",
    "shards: 3\nkeyspace: {delimiter: \"\", splittable: [/a/]}",
    "shards: 3\nkeyspace: {pins: [{prefix: /a/}]}",
    "shards: 3\nkeyspace: {pins: [{shard: 1}]}",
    "shards: 3\nkeyspace: {pins: [{prefix: /a/, shard: 3}]}",
    "shards: 3\nkeyspace: {pins: [{prefix: /a/, shard: -1}]}",
    "shards: 3\nkeyspace: {pins: [{prefix: /a/, shard: shard-1}]}",
    "shards: 3\nkeyspace:\n  pins:\n  - {prefix: /a/, shard: 1}\n  - {prefix: /a/, shard: 2}",
    "shards: 3\nkeyspace: {pins: [{prefix: \"\", shard: 1}]}",
    "shards: 3\nkeyspace: {pins: [{prefix: /a, shard: 1}]}",
    "shards: 3\nkeyspace: {pins: {/a/: 1}}",
    "shards: 1\nkeyspace: {pins: [{prefix: /a/, shard: 1}]}",
    "shards: 3\nkeyspace: {pins: [{prefix: /a/, shard: 1, weight: 2}]}",
    "shards: 3\nrebalance: {mode: automatic}",
    "shards: 3\nrebalance: {mode: Off}",
    "shards: 3\nrebalance: {maxConcurrentMoves: 0}",
    "shards: 3\nrebalance: {maxConcurrentMoves: 1000}",
    "shards: 3\nrebalance: {bytesPerSecond: fast}",
    "shards: 3\nrebalance: {bytesPerSecond: 64MB}",
    "shards: 3\nrebalance: {bytesPerSecond: 1}",
    "shards: 3\nrebalance: {bytesPerSecond: true}",
    "shards: 3\nrebalance: {bytesPerSecond: -5}",
    "shards: 3\nrebalance: {loadTolerance: 9}",
    "shards: 3\nrebalance: {loadTolerance: much}",
    "shards: 3\nrebalance: {weights: 2}",
    "shards: 3\nrebalance: {weights: {0: 50}}",
    "shards: 3\nrebalance: {weights: [{shard: 0}]}",
    "shards: 3\nrebalance: {weights: [{weight: 50}]}",
    "shards: 3\nrebalance: {weights: [{shard: shard-0, weight: 50}]}",
    "shards: 3\nrebalance: {weights: [{shard: 3, weight: 50}]}",
    "shards: 3\nrebalance: {weights: [{shard: 0, weight: 0}]}",
    "shards: 3\nrebalance: {weights: [{shard: 0, weight: 1001}]}",
    "shards: 3\nrebalance: {weights: [{shard: 0, weight: 0.5}]}",
    "shards: 3\nrebalance:\n  weights:\n  - {shard: 1, weight: 50}\n  - {shard: 1, weight: 200}",
    "shards: 3\nrebalance: {approvedPlan: all}",
    "shards: 3\nrebalance: {approvedPlan: 12345678}",
    "shards: 3\ncompaction: {}",
    "shards: 3\ncompaction: {retention: 5}",
    "shards: 3\ncompaction: {retention: \"300\"}",
    "shards: 3\ncompaction: {retention: 5 minutes}",
    "shards: 3\ncompaction: {retention: 10ms}",
    "shards: 3\netcd: {members: 2}",
    "shards: 3\netcd: {members: 9}",
    "shards: 3\netcd: {quota: 8GB}",
    "shards: 3\netcd: {quota: 1Mi}",
    "shards: 3\netcd: {storage: {size: big}}",
    "shards: 3\netcd: {storage: {retain: Keep}}",
    "shards: 3\netcd: {extraArgs: {data-dir: /x}}",
    "shards: 3\netcd: {extraArgs: {--heartbeat-interval: \"100\"}}",
    "shards: 3\netcd: {extraArgs: {heartbeat-interval: 100}}",
    "shards: 3\nmeta: {members: 4, storage: {size: -1}}",
    "shards: 3\nproxy: {replicas: 0}",
    "shards: 3\nproxy: {service: {type: Ingress}}",
    "shards: 3\nshardManager: {replicas: 50}",
    "shards: 0\nversion: x\nrebalance: {maxConcurrentMoves: 0}\netcd: {quota: x}",
    "shards: 3\n image: x",
    "shards: 3\nimage: \"\"",
    "shards: 3\nversion: 3.5.9",
    "shards: 3\nimage: \"registry.example/etcd:v3.7.3\"",
    "shards: 3\nkeyspace: {delimiter: ü}",
    "shards: 3\netcd: {quota: 8Gi, storage: {size: 8Gi}}",
    "shards: 3\netcd: {quota: 100Gi}",
    "shards: 3\netcd: {storage: {size: 100Mi, className: Fast}}",
    "shards: 3\netcd: {resources: {requests: {cpus: 1, memory: much}, limit: {cpu: 1}}}",
    "shards: 3\netcd: {resources: {requests: {cpus: 1, memory: much}}}",
    "shards: 3\netcd: {resources: {requests: {cpu: 2}, limits: {cpu: 1500m}}}",
    "shards: 3\netcd: {affinity: {nodeAfinity: {}}}",
    "shards: 3\netcd: {tolerations: [{value: a}, {key: a, operator: Exists, value: b}]}",
    "shards: 3\netcd: {priorityClassName: My Class}",
    "shards: 3\netcd: {labels: {shardedetcd.io/cluster: x, a b: x, team: a b}}",
    "shards: 3\netcd: {extraArgs: {Heartbeat: \"1\", unsafe-no-fsync: \"true\", log-level: \"a\\nb\"}}",
    "shards: 3\nproxy: {disruption: {}}",
    "shards: 3\nproxy: {disruption: {maxUnavailable: 0}}",
    "shards: 3\nproxy: {disruption: {minAvailable: 100%}}",
    "shards: 3\nproxy: {disruption: {minAvailable: 2}}",
    "shards: 3\nproxy: {service: {annotations: {shardedetcd.io/a: b, a b: c}}}",
    "shards: 3\ncompaction: {retention: 721h}",
    "\"shards",
    "[1, 2]",
];

/// Files that are refused.
const FILES: &[&str] = &[
    "",
    "---\n---\n",
    "hello",
    "[]",
    "kind: ShardedEtcd",
    "apiVersion: v1\nkind: Service\n",
    "apiVersion: shardedetcd.io/v1\nkind: ShardedEtcd\n",
    "apiVersion: shardedetcd.io/v1alpha1\n",
    "apiVersion: shardedetcd.io/v1alpha1\nkind: ShardedEtcd\n",
    "apiVersion: shardedetcd.io/v1alpha1\nkind: ShardedEtcd\nspec: {shards: 1}\n",
    "apiVersion: shardedetcd.io/v1alpha1\nkind: ShardedEtcd\nmetadata: {name: Demo_1}\nspec: {shards: 1}\n",
    "apiVersion: shardedetcd.io/v1alpha1\nkind: ShardedEtcd\nmetadata: {name: 7}\nspec: {shards: 1}\n",
    "apiVersion: shardedetcd.io/v1alpha1\nkind: ShardedEtcd\nmetadata: {nam: demo}\nspec: {shards: 1}\n",
    "apiVersion: shardedetcd.io/v1alpha1\nkind: ShardedEtcd\nmetadata: {name: demo}\nspce: {shards: 1}\n",
    "apiVersion: shardedetcd.io/v1alpha1\nkind: ShardedEtcd\nmetadata: {name: demo, labels: {a: 1}}\nspec: {shards: 1}\n",
    "a: &x [1]\nb: *y\n",
    "\0\u{1}",
    "{\"a\": ",
    "a: !!binary abc",
    "a:\n\t- b\n",
];

/// What a file is refused with.
fn refused(text: &str) -> String {
    match parse_file(text) {
        Ok(_) => panic!("accepted: {text}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn bad_files_are_refused_with_a_remedy() {
    let mut messages = String::new();
    let specs = SPECS.iter().map(|spec| (*spec, format!("{HEAD}spec:\n  {}\n", spec.replace('\n', "\n  "))));
    let files = FILES.iter().map(|file| (*file, (*file).to_owned()));
    for (shown, file) in specs.chain(files) {
        writeln!(messages, "{}\n    {}", shown.escape_debug(), refused(&file).replace('\n', "\n    "))
            .unwrap();
    }
    insta::with_settings!({omit_expression => true, prepend_module_to_snapshot => false}, {
        insta::assert_snapshot!("bad_files", messages);
    });
}

#[test]
fn several_resources() {
    let one = format!("{HEAD}spec: {{shards: 1}}\n");
    assert_eq!(
        refused(&format!("{one}---\n{one}---\n{one}")),
        "the file holds 3 resources of kind ShardedEtcd, the second in line 6; keep one"
    );
    assert_eq!(
        refused(&format!("{one}---\napiVersion: v1\nkind: Namespace\n")),
        "line 6: document 2 is a Namespace; keep nothing but one ShardedEtcd in this file"
    );
    parse_file(&format!("---\n{one}---\n")).unwrap();
}

#[test]
fn large_files() {
    let message = refused(&" ".repeat(FILE_BYTES_MAX + 1));
    assert_eq!(message, "the file is 3145729 bytes long; use at most 3145728");
}

#[test]
fn long_lists() {
    let entries =
        |n: usize, chars: usize| (0..n).map(|i| format!("{i:0>chars$}")).collect::<Vec<_>>().join(", ");
    let refuse = |list: &str, entries: String| {
        refused(&format!("{HEAD}spec: {{shards: 3, keyspace: {{{list}: [{entries}]}}}}\n"))
    };
    let quoted = entries(2049, 5).replace(", ", "\", \"");
    assert_eq!(
        refuse("presplit", format!("\"{quoted}\"")),
        "line 4: spec.keyspace.presplit: 2049 entries; use at most 2048"
    );
    let long = entries(1, 257);
    assert_eq!(
        refuse("presplit", format!("\"{long}\"")),
        "line 4: spec.keyspace.presplit[0]: 257 characters long; use at most 256"
    );
    let quoted = entries(600, 256).replace(", ", "\", \"");
    let message = refuse("presplit", format!("\"{quoted}\""));
    assert!(message.contains("have 153600 characters together"), "{message}");
}

#[test]
fn bad_json() {
    assert_eq!(
        parse_json("{").unwrap_err().to_string(),
        "line 1: no JSON: EOF while parsing an object at line 1 column 1"
    );
    let message = parse_json(
        r#"{"apiVersion": "shardedetcd.io/v1alpha1", "kind": "ShardedEtcd", "metadata": {"name": "demo"}, "spec": {"shards": 0}}"#,
    );
    assert_eq!(message.unwrap_err().to_string(), "spec.shards: 0 is out of range; write 1 to 1024");
}
