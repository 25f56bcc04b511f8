//! Bad files, each with the message that a user gets: it names the field and says what to write.
#![allow(clippy::unwrap_used)]

use crate::{parse_file, parse_json};

const HEAD: &str = "apiVersion: shardedetcd.io/v1alpha1\nkind: ShardedEtcd\nmetadata: {name: demo}\n";

/// What `spec`, given as flow or block YAML, is refused with.
fn refused(spec: &str) -> String {
    refused_file(&format!("{HEAD}spec:\n  {}\n", spec.replace('\n', "\n  ")))
}

fn refused_file(text: &str) -> String {
    match parse_file(text) {
        Ok(_) => String::from("ACCEPTED"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn dump() {
    for s in [
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
"\"shards",
"[1, 2]",
] {
        println!("{s:?}\n    {}", refused(s));
    }
    let long = "x".repeat(4 << 20);
    for f in ["", "---\n---\n", "hello", "[]", "kind: ShardedEtcd", "apiVersion: v1\nkind: Service\n", "apiVersion: shardedetcd.io/v1\nkind: ShardedEtcd\n", "apiVersion: shardedetcd.io/v1alpha1\n",
      "apiVersion: shardedetcd.io/v1alpha1\nkind: ShardedEtcd\n",
      "apiVersion: shardedetcd.io/v1alpha1\nkind: ShardedEtcd\nspec: {shards: 1}\n",
      "apiVersion: shardedetcd.io/v1alpha1\nkind: ShardedEtcd\nmetadata: {name: Demo_1}\nspec: {shards: 1}\n",
      "apiVersion: shardedetcd.io/v1alpha1\nkind: ShardedEtcd\nmetadata: {name: 7}\nspec: {shards: 1}\n",
      "apiVersion: shardedetcd.io/v1alpha1\nkind: ShardedEtcd\nmetadata: {nam: demo}\nspec: {shards: 1}\n",
      "apiVersion: shardedetcd.io/v1alpha1\nkind: ShardedEtcd\nmetadata: {name: demo}\nspce: {shards: 1}\n",
      "apiVersion: shardedetcd.io/v1alpha1\nkind: ShardedEtcd\nmetadata: {name: demo}\nspec: {shards: 1}\n---\napiVersion: shardedetcd.io/v1alpha1\nkind: ShardedEtcd\nmetadata: {name: demo}\nspec: {shards: 1}\n",
      "a: &x [1]\nb: *y\n", "\0\u{1}", "{\"a\": ", &long, "%YAML 9\n---\na", "a: !!binary abc",
    ] {
        println!("{:?}\n    {}", &f[..f.len().min(100)], refused_file(f));
    }
    println!("{}", parse_json("{").unwrap_err());
}
