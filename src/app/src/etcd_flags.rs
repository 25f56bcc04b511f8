//! Flags of etcd and etcdutl that `engine` does not have: each is refused with what to do instead, on the command line
//! and as a variable. None is ignored.

use std::ffi::OsString;

const NO_PEERS: &str = "the engine is one member without peers: leave it out";
const NO_RAFT: &str = "the engine has no raft log; its log is bounded by the size of the data: leave it out";
const NO_TLS: &str = "TLS is not there yet: listen on a loopback address, or put a proxy with TLS before it";
const NO_AUTH: &str = "users and roles are not there yet: leave it out";
const NO_BBOLT: &str = "the engine has its own files and no bbolt: leave it out";
const LOGS: &str =
    "write --log-format, -v or -vv, or the variable RUST_LOG instead; logs go to standard error";
const METRICS: &str = "/metrics and /health are on the client port: leave it out";
const NO_SUCH: &str = "the engine has no such thing: leave it out";
const SYNCED: &str = "the engine acknowledges nothing that is not on disk: leave it out";

/// A flag and what to do instead.
const REFUSED: &[(&str, &str)] = &[
    ("snapshot-count", NO_RAFT),
    ("snapshot-catchup-entries", NO_RAFT),
    ("max-snapshots", NO_RAFT),
    ("max-wals", NO_RAFT),
    ("wal-dir", "the log is in the data folder: write --data-dir on the disk that it shall be on"),
    ("listen-peer-urls", NO_PEERS),
    ("initial-advertise-peer-urls", NO_PEERS),
    ("initial-cluster", NO_PEERS),
    ("initial-cluster-token", NO_PEERS),
    ("initial-cluster-state", NO_PEERS),
    ("initial-election-tick-advance", NO_PEERS),
    ("heartbeat-interval", NO_PEERS),
    ("election-timeout", NO_PEERS),
    ("pre-vote", NO_PEERS),
    ("strict-reconfig-check", NO_PEERS),
    ("max-learners", NO_PEERS),
    (
        "force-new-cluster",
        "write `engine restore SNAPSHOT --data-dir DIR` to begin anew with the data of a cluster",
    ),
    ("discovery", NO_PEERS),
    ("discovery-token", NO_PEERS),
    ("discovery-endpoints", NO_PEERS),
    ("discovery-srv", NO_PEERS),
    ("discovery-srv-name", NO_PEERS),
    ("discovery-fallback", NO_PEERS),
    ("discovery-proxy", NO_PEERS),
    ("raft-read-timeout", NO_PEERS),
    ("raft-write-timeout", NO_PEERS),
    ("cert-file", NO_TLS),
    ("key-file", NO_TLS),
    ("client-cert-auth", NO_TLS),
    ("client-cert-file", NO_TLS),
    ("client-key-file", NO_TLS),
    ("client-crl-file", NO_TLS),
    ("client-cert-allowed-hostname", NO_TLS),
    ("trusted-ca-file", NO_TLS),
    ("auto-tls", NO_TLS),
    ("cipher-suites", NO_TLS),
    ("tls-min-version", NO_TLS),
    ("tls-max-version", NO_TLS),
    ("self-signed-cert-validity", NO_TLS),
    ("peer-cert-file", NO_PEERS),
    ("peer-key-file", NO_PEERS),
    ("peer-client-cert-auth", NO_PEERS),
    ("peer-trusted-ca-file", NO_PEERS),
    ("peer-auto-tls", NO_PEERS),
    ("auth-token", NO_AUTH),
    ("auth-token-ttl", NO_AUTH),
    ("bcrypt-cost", NO_AUTH),
    ("backend-bbolt-freelist-type", NO_BBOLT),
    ("backend-batch-interval", NO_BBOLT),
    ("backend-batch-limit", NO_BBOLT),
    ("bootstrap-defrag-threshold-megabytes", NO_BBOLT),
    ("initial-memory-map-size", NO_BBOLT),
    ("memory-mlock", NO_BBOLT),
    ("compaction-batch-limit", NO_BBOLT),
    ("compaction-sleep-interval", NO_BBOLT),
    ("unsafe-no-fsync", SYNCED),
    ("logger", LOGS),
    ("log-outputs", LOGS),
    ("log-level", LOGS),
    ("enable-log-rotation", LOGS),
    ("log-rotation-config-json", LOGS),
    ("listen-metrics-urls", METRICS),
    ("metrics", METRICS),
    ("listen-client-http-urls", "gRPC and HTTP share --listen: leave it out"),
    ("enable-grpc-gateway", NO_SUCH),
    ("enable-pprof", NO_SUCH),
    ("enable-distributed-tracing", NO_SUCH),
    ("corrupt-check-time", "write `engine check DIR`, which verifies every checksum, instead"),
    ("compact-hash-check-time", NO_PEERS),
    ("grpc-keepalive-min-time", NO_SUCH),
    ("socket-reuse-port", NO_SUCH),
    ("socket-reuse-address", NO_SUCH),
    ("warning-apply-duration", NO_SUCH),
    ("warning-unary-request-duration", NO_SUCH),
    ("downgrade-check-time", NO_PEERS),
    ("feature-gates", NO_SUCH),
    ("cors", NO_SUCH),
    ("host-whitelist", NO_SUCH),
    ("v2-deprecation", NO_SUCH),
    ("config-file", "write flags or variables instead"),
];

/// Flags that only etcdutl has, which reads no variables.
const NO_VARIABLES: [&str; 1] = ["initial-memory-map-size"];

/// What is wrong with a command line of `engine`, if a flag of etcd is on it, or in the environment, that is refused.
pub fn refusal(
    arguments: impl IntoIterator<Item = OsString>,
    is_set: impl Fn(&str) -> bool,
) -> Option<String> {
    let mut arguments = arguments.into_iter().skip(1).map(|argument| argument.to_string_lossy().into_owned());
    // Options of the program itself may come before the command.
    if arguments.by_ref().find(|argument| !argument.starts_with('-')).as_deref() != Some("engine") {
        return None;
    }
    for argument in arguments.take_while(|argument| argument != "--") {
        let name = argument.strip_prefix("--").map_or("", |rest| rest.split('=').next().unwrap_or_default());
        if let Some((flag, instead)) = REFUSED.iter().find(|(flag, _)| *flag == name) {
            return Some(format!("--{flag} is a flag of etcd: {instead}"));
        }
    }
    REFUSED.iter().filter(|(flag, _)| !NO_VARIABLES.contains(flag)).find_map(|(flag, instead)| {
        let variable = format!("ETCD_{}", flag.to_uppercase().replace('-', "_"));
        is_set(&variable).then(|| format!("the variable {variable} is set, a flag of etcd: {instead}"))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(line: &str, set: &str) -> Option<String> {
        refusal(line.split(' ').map(OsString::from), |name| name == set)
    }

    #[test]
    fn flags_of_etcd_are_refused_with_what_to_do_instead() {
        let text = of("sharded-etcd engine --data-dir x --snapshot-count=10", "").unwrap();
        assert!(text.starts_with("--snapshot-count is a flag of etcd: the engine has no raft log"), "{text}");
        let text = of("sharded-etcd -v engine restore x --initial-cluster m0=http://a:1", "").unwrap();
        assert!(text.contains("without peers"), "{text}");
        let text = of("sharded-etcd engine", "ETCD_CERT_FILE").unwrap();
        assert!(text.contains("ETCD_CERT_FILE") && text.contains("TLS"), "{text}");
    }

    #[test]
    fn others_are_left_to_the_parser() {
        assert_eq!(of("sharded-etcd engine --name snapshot-count --data-dir x", "ETCD_NAME"), None);
        assert_eq!(of("sharded-etcd engine -- --snapshot-count", ""), None);
        assert_eq!(of("sharded-etcd up --snapshot-count 1", "ETCD_CERT_FILE"), None);
        assert_eq!(of("sharded-etcd", "ETCD_CERT_FILE"), None);
        // What Kubernetes sets for a service called etcd.
        assert_eq!(of("sharded-etcd engine", "ETCD_SERVICE_HOST"), None);
    }
}
