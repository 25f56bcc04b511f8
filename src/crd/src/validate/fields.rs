//! Checks of the fields that have no place in core's topology.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{ResourceRequirements, Toleration},
    apimachinery::pkg::util::intstr::IntOrString,
};
use sharded_etcd_core::topology::FieldError;

use super::text::{amount, is_image, is_label_value, is_object_name, is_qualified_name};
use crate::{
    EtcdSpec, KeyspaceSpec, ProxySpec, ShardedEtcdSpec, StorageSpec,
    defaults::{BESIDE_DATABASE_BYTES, PROXY_REPLICAS, backend_quota_bytes},
    units::{Quantity, TimeSpan},
};

/// Most splittable prefixes. This and the bounds below keep the API server's rules within its cost limits.
pub(crate) const SPLITTABLE_MAX: usize = 32;
/// Most boundaries from the start.
pub(crate) const PRESPLIT_MAX: usize = 2048;
/// Most pins.
pub(crate) const PINS_MAX: usize = 2048;
/// Longest prefix or boundary in the resource, in characters.
pub(crate) const PREFIX_CHARS_MAX: usize = 256;
/// Most characters of all prefixes and boundaries: proxies get them in a ConfigMap, which holds 1 MiB.
const KEYSPACE_CHARS_MAX: usize = 131_072;
/// Most entries of a map of texts (labels, flags, annotations).
const ENTRIES_MAX: usize = 32;
/// Most tolerations.
const TOLERATIONS_MAX: usize = 32;
/// Most topology spread constraints.
const SPREAD_MAX: usize = 16;

/// Labels that the operator or Kubernetes sets on pods itself begin with one of these.
pub(crate) const LABEL_PREFIXES_OWNED: &[&str] = &[
    "shardedetcd.io/",
    "app.kubernetes.io/",
    "apps.kubernetes.io/",
    "statefulset.kubernetes.io/",
    "batch.kubernetes.io/",
];
/// Labels that Kubernetes sets on pods itself.
pub(crate) const LABELS_OWNED: &[&str] = &["controller-revision-hash", "pod-template-hash"];

/// Flags of etcd that the topology sets itself, that would part members from it, or that lose acknowledged writes.
pub(crate) const OWNED_FLAGS: &[&str] = &[
    "name",
    "data-dir",
    "wal-dir",
    "config-file",
    "initial-cluster",
    "initial-cluster-state",
    "initial-cluster-token",
    "initial-advertise-peer-urls",
    "listen-client-urls",
    "listen-client-http-urls",
    "listen-peer-urls",
    "listen-metrics-urls",
    "advertise-client-urls",
    "auto-compaction-mode",
    "auto-compaction-retention",
    "quota-backend-bytes",
    "max-txn-ops",
    "max-request-bytes",
    "max-wals",
    "discovery",
    "discovery-srv",
    "discovery-endpoints",
    "discovery-token",
    "force-new-cluster",
    "unsafe-no-fsync",
    "auth-token",
    "cert-file",
    "key-file",
    "client-cert-auth",
    "trusted-ca-file",
    "auto-tls",
    "peer-cert-file",
    "peer-key-file",
    "peer-client-cert-auth",
    "peer-trusted-ca-file",
    "peer-auto-tls",
    "version",
    "help",
];

/// Bounds of a volume in bytes, as written.
const STORAGE: (&str, &str) = ("1Gi", "64Ti");
/// Bounds of the quota in bytes, as written; core says what is too little.
const QUOTA: (&str, &str) = ("0", "64Gi");
/// Bounds of the copying of moves in bytes a second, as written; core says what is too little.
const BYTES_PER_SECOND: (&str, &str) = ("0", "64Gi");
/// Longest retention of history in hours.
const RETENTION_HOURS_MAX: u64 = 720;

impl ShardedEtcdSpec {
    /// Adds every problem to `errors`.
    pub(super) fn check(&self, errors: &mut Vec<FieldError>) {
        let mut check = Check { errors };
        check.version(self.version.as_deref());
        check.image(self.image.as_deref());
        check.keyspace(&self.keyspace);
        if let Some(etcd) = &self.etcd {
            check.etcd(etcd);
        }
        if let Some(meta) = &self.meta {
            check.members("spec.meta.members", meta.members);
            check.storage("spec.meta.storage", meta.storage.as_ref());
            check.resources("spec.meta.resources", meta.resources.as_ref());
        }
        if let Some(proxy) = &self.proxy {
            check.proxy(proxy);
        }
        if let Some(manager) = &self.shard_manager {
            check.replicas("spec.shardManager.replicas", manager.replicas, 5);
            check.resources("spec.shardManager.resources", manager.resources.as_ref());
        }
        check.bytes(
            "spec.rebalance.bytesPerSecond",
            self.rebalance.bytes_per_second.as_ref(),
            BYTES_PER_SECOND,
        );
        check.retention(self.compaction.as_ref().map(|c| &c.retention));
    }
}

struct Check<'a> {
    errors: &'a mut Vec<FieldError>,
}

impl Check<'_> {
    fn wrong(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.errors.push(FieldError::new(field, message));
    }

    fn version(&mut self, version: Option<&str>) {
        let Some(version) = version else { return };
        let field = "spec.version";
        let number = |n: &&str| !n.is_empty() && n.len() < 6 && n.bytes().all(|b| b.is_ascii_digit());
        let numbers = version.split('.').collect::<Vec<_>>();
        if numbers.len() != 3 || !numbers.iter().all(number) {
            let message = format!("{version:?} is no release of etcd; write three numbers, such as 3.7.3");
            self.wrong(field, message);
        } else if numbers[0] != "3" || numbers[1].parse::<u32>().is_ok_and(|minor| minor < 6) {
            let message =
                format!("shards run on etcd 3.6 or newer, not {version}; write such a release, as in 3.7.3");
            self.wrong(field, message);
        }
    }

    fn image(&mut self, image: Option<&str>) {
        let Some(image) = image else { return };
        let field = "spec.image";
        let name = image.rsplit('/').next().unwrap_or_default();
        if !is_image(image) {
            self.wrong(
                field,
                "no image repository; write one such as registry.example/etcd, or remove the field",
            );
        } else if image.contains('@') || name.contains(':') {
            self.wrong(
                field,
                "write the repository without tag and digest, as the tag is v and spec.version",
            );
        }
    }

    fn keyspace(&mut self, keyspace: &KeyspaceSpec) {
        let field = "spec.keyspace";
        if !keyspace.delimiter.bytes().all(|b| (b' '..=b'~').contains(&b)) {
            self.wrong(format!("{field}.delimiter"), "use printable ASCII characters only, such as /");
        }
        let pins = keyspace.pins.iter().map(|pin| &pin.prefix).collect::<Vec<_>>();
        let lists = [
            ("splittable", keyspace.splittable.iter().collect::<Vec<_>>(), SPLITTABLE_MAX),
            ("presplit", keyspace.presplit.iter().collect(), PRESPLIT_MAX),
            ("pins", pins, PINS_MAX),
        ];
        let mut chars = 0;
        for (list, prefixes, max) in lists {
            self.at_most(&format!("{field}.{list}"), prefixes.len(), max);
            for (i, prefix) in prefixes.iter().enumerate() {
                let n = prefix.chars().count();
                chars += n;
                if n > PREFIX_CHARS_MAX {
                    let message = format!("{n} characters long; use at most {PREFIX_CHARS_MAX}");
                    self.wrong(format!("{field}.{list}[{i}]"), message);
                }
            }
        }
        if chars > KEYSPACE_CHARS_MAX {
            let message = format!(
                "splittable, presplit and pins have {chars} characters together, so proxies could not be told; use at \
                 most {KEYSPACE_CHARS_MAX}"
            );
            self.wrong(field, message);
        }
    }

    fn etcd(&mut self, etcd: &EtcdSpec) {
        self.members("spec.etcd.members", etcd.members);
        self.storage("spec.etcd.storage", etcd.storage.as_ref());
        self.bytes("spec.etcd.quota", etcd.quota.as_ref(), QUOTA);
        // Without volumes of its own, as under `up`, the quota is as large as somebody likes.
        let size = etcd.storage.as_ref().and_then(|s| s.size.as_ref());
        if let (Some(quota), Some(size)) = (&etcd.quota, size)
            && let (Ok(used), Ok(bytes)) = (quota.bytes(), size.bytes())
            && backend_quota_bytes(used).saturating_add(BESIDE_DATABASE_BYTES) > bytes
        {
            let message = format!(
                "a database of {quota} does not fit a volume of {size} beside the log; write less, or raise \
                 spec.etcd.storage.size above 9/8 of the quota and 512Mi"
            );
            self.wrong("spec.etcd.quota", message);
        }
        self.resources("spec.etcd.resources", etcd.resources.as_ref());
        let tolerations = etcd.tolerations.as_deref().unwrap_or_default();
        self.at_most("spec.etcd.tolerations", tolerations.len(), TOLERATIONS_MAX);
        for (i, toleration) in tolerations.iter().enumerate() {
            self.toleration(&format!("spec.etcd.tolerations[{i}]"), toleration);
        }
        let spread = etcd.topology_spread.as_deref().unwrap_or_default();
        self.at_most("spec.etcd.topologySpread", spread.len(), SPREAD_MAX);
        for (i, constraint) in spread.iter().enumerate() {
            for (name, n) in [("maxSkew", Some(constraint.max_skew)), ("minDomains", constraint.min_domains)]
            {
                if let Some(n) = n.filter(|n| *n < 1) {
                    let field = format!("spec.etcd.topologySpread[{i}].{name}");
                    self.wrong(field, format!("{n} is out of range; write at least 1"));
                }
            }
        }
        if etcd.priority_class_name.as_deref().is_some_and(|name| !is_object_name(name)) {
            self.wrong(
                "spec.etcd.priorityClassName",
                "no name of a priority class; write one that `kubectl get priorityclass` shows",
            );
        }
        self.labels(etcd.labels.as_ref());
        self.extra_args(etcd.extra_args.as_ref());
    }

    fn toleration(&mut self, field: &str, toleration: &Toleration) {
        let exists = toleration.operator.as_deref() == Some("Exists");
        let empty = |text: Option<&str>| text.is_none_or(str::is_empty);
        if exists && !empty(toleration.value.as_deref()) {
            let message = "operator Exists goes with no value; remove value, or write operator: Equal";
            self.wrong(field, message);
        }
        if !exists && empty(toleration.key.as_deref()) {
            let message = "a toleration without key is for all taints; write key, or operator: Exists";
            self.wrong(field, message);
        }
    }

    fn labels(&mut self, labels: Option<&BTreeMap<String, String>>) {
        self.at_most("spec.etcd.labels", labels.map_or(0, BTreeMap::len), ENTRIES_MAX);
        for (name, value) in labels.into_iter().flatten() {
            let field = format!("spec.etcd.labels.{name}");
            if LABEL_PREFIXES_OWNED.iter().any(|owned| name.starts_with(owned))
                || LABELS_OWNED.contains(&name.as_str())
            {
                self.wrong(field, "a label that the operator or Kubernetes sets itself; remove it");
            } else if !is_qualified_name(name) {
                self.wrong(field, "no name of a label; write one such as team or example.com/team");
            } else if !is_label_value(value) {
                let message = "no value of a label; use at most 63 letters, digits, '-', '_' and '.', a letter or digit \
                               first and last";
                self.wrong(field, message);
            }
        }
    }

    fn extra_args(&mut self, args: Option<&BTreeMap<String, String>>) {
        self.at_most("spec.etcd.extraArgs", args.map_or(0, BTreeMap::len), ENTRIES_MAX);
        for (flag, value) in args.into_iter().flatten() {
            let field = format!("spec.etcd.extraArgs.{flag}");
            let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            if flag.starts_with('-') {
                let message = format!("starts with a dash; write {}", flag.trim_start_matches('-'));
                self.wrong(field, message);
            } else if !flag.starts_with(|c: char| c.is_ascii_lowercase()) || !flag.chars().all(known) {
                self.wrong(field, "no flag of etcd; write one such as heartbeat-interval");
            } else if OWNED_FLAGS.contains(&flag.as_str()) {
                let message = "the topology sets this flag itself, or cannot work with it; remove it";
                self.wrong(field, message);
            } else if value.chars().any(|c| c < ' ') || value.chars().count() > 1024 {
                self.wrong(field, "use at most 1024 characters, no line break among them");
            }
        }
    }

    fn proxy(&mut self, proxy: &ProxySpec) {
        self.replicas("spec.proxy.replicas", proxy.replicas, 100);
        self.resources("spec.proxy.resources", proxy.resources.as_ref());
        let annotations = proxy.service.as_ref().and_then(|s| s.annotations.as_ref());
        let field = "spec.proxy.service.annotations";
        self.at_most(field, annotations.map_or(0, BTreeMap::len), ENTRIES_MAX);
        for (name, value) in annotations.into_iter().flatten() {
            let field = format!("{field}.{name}");
            if !is_qualified_name(name) {
                self.wrong(field, "no name of an annotation; write one such as example.com/key");
            } else if name.starts_with("shardedetcd.io/") {
                let message = "annotations with shardedetcd.io/ in front are the operator's own; remove it";
                self.wrong(field, message);
            } else if value.chars().count() > 4096 {
                self.wrong(field, "too long; use at most 4096 characters");
            }
        }
        let Some(disruption) = &proxy.disruption else { return };
        let field = "spec.proxy.disruption";
        let (max, min) = (&disruption.max_unavailable, &disruption.min_available);
        if max.is_some() == min.is_some() {
            self.wrong(field, "write exactly one of maxUnavailable and minAvailable");
        }
        let within = |n: &IntOrString, from: i32, to: (i32, i32)| match n {
            IntOrString::Int(n) => (from..=to.0).contains(n),
            IntOrString::String(text) => {
                let plain = |n: &&str| !n.starts_with('0') || *n == "0";
                let digits = |n: &&str| n.bytes().all(|b| b.is_ascii_digit());
                let percent = text.strip_suffix('%').filter(plain).filter(digits);
                percent.and_then(|n| n.parse().ok()).is_some_and(|n: i32| (from..=to.1).contains(&n))
            }
        };
        if max.as_ref().is_some_and(|n| !within(n, 1, (100, 100))) {
            let message = "write a number from 1 to 100, or a share from 1% to 100%, as with less no node could be drained";
            self.wrong(format!("{field}.maxUnavailable"), message);
        }
        if min.as_ref().is_some_and(|n| !within(n, 0, (99, 99))) {
            let message = "write a number from 0 to 99, or a share from 0% to 99%, as with more no node could be drained";
            self.wrong(format!("{field}.minAvailable"), message);
        } else if let Some(IntOrString::Int(n)) = min
            && i64::from(*n) >= proxy.replicas.unwrap_or(PROXY_REPLICAS.into())
        {
            let message = "no node with a proxy could be drained; write less than spec.proxy.replicas";
            self.wrong(format!("{field}.minAvailable"), message);
        }
    }

    fn members(&mut self, field: &str, members: Option<i64>) {
        let Some(n) = members.filter(|n| ![1, 3, 5].contains(n)) else { return };
        let message = if (2..=4).contains(&n) {
            format!("{n} members survive no more failures than {} do; write 1, 3 or 5", n - 1)
        } else {
            format!("{n} is out of range; write 1, 3 or 5")
        };
        self.wrong(field, message);
    }

    fn replicas(&mut self, field: &str, replicas: Option<i64>, max: i64) {
        if let Some(n) = replicas.filter(|n| !(1..=max).contains(n)) {
            self.wrong(field, format!("{n} is out of range; write 1 to {max}"));
        }
    }

    fn storage(&mut self, field: &str, storage: Option<&StorageSpec>) {
        let Some(storage) = storage else { return };
        self.bytes(&format!("{field}.size"), storage.size.as_ref(), STORAGE);
        if storage.class_name.as_deref().is_some_and(|name| !is_object_name(name)) {
            let message = "no name of a storage class; write one that `kubectl get storageclass` shows, or remove the \
                           field for the default";
            self.wrong(format!("{field}.className"), message);
        }
    }

    /// A number of bytes between two others.
    fn bytes(&mut self, field: &str, quantity: Option<&Quantity>, (min, max): (&str, &str)) {
        let of = |text: &str| Quantity(text.to_owned()).bytes().unwrap_or_default();
        match quantity.map(Quantity::bytes) {
            None => {}
            Some(Err(message)) => self.wrong(field, message),
            Some(Ok(bytes)) if bytes < of(min) => {
                self.wrong(field, format!("{bytes} bytes are too few; write at least {min}"));
            }
            Some(Ok(bytes)) if bytes > of(max) => {
                self.wrong(field, format!("{bytes} bytes are too many; write at most {max}"));
            }
            Some(Ok(_)) => {}
        }
    }

    fn resources(&mut self, field: &str, resources: Option<&ResourceRequirements>) {
        let Some(resources) = resources else { return };
        for (which, amounts) in [("requests", &resources.requests), ("limits", &resources.limits)] {
            self.at_most(&format!("{field}.{which}"), amounts.as_ref().map_or(0, BTreeMap::len), 16);
            for (name, quantity) in amounts.iter().flatten() {
                let field = format!("{field}.{which}.{name}");
                let known = ["cpu", "memory", "ephemeral-storage"].contains(&name.as_str());
                if !(known || name.starts_with("hugepages-") || name.contains('/')) {
                    let message = "no resource of Kubernetes; write cpu, memory, ephemeral-storage, or a name with a \
                                   domain in front";
                    self.wrong(field, message);
                } else if amount(&quantity.0).is_none_or(|n| n.is_sign_negative() || !n.is_finite()) {
                    let message = "no quantity; write one such as 500m for cpu or 2Gi for memory";
                    self.wrong(field, message);
                }
            }
        }
        for (name, request) in resources.requests.iter().flatten() {
            let limit = resources.limits.as_ref().and_then(|limits| limits.get(name));
            let limit = limit.and_then(|limit| amount(&limit.0));
            if limit.is_some_and(|limit| amount(&request.0).is_some_and(|request| request > limit)) {
                let message = "more is requested than the limit allows; raise limits or lower requests";
                self.wrong(format!("{field}.requests.{name}"), message);
            }
        }
    }

    fn retention(&mut self, retention: Option<&TimeSpan>) {
        match retention.map(TimeSpan::duration) {
            None => {}
            Some(Err(message)) => self.wrong("spec.compaction.retention", message),
            // Core says what is too short.
            Some(Ok(span)) if span.as_secs() <= RETENTION_HOURS_MAX * 3600 => {}
            Some(Ok(_)) => {
                let message = "too long; write at most 720h, or remove spec.compaction to keep history until a client \
                               compacts it";
                self.wrong("spec.compaction.retention", message);
            }
        }
    }

    fn at_most(&mut self, field: &str, entries: usize, max: usize) {
        if entries > max {
            self.wrong(field, format!("{entries} entries; use at most {max}"));
        }
    }
}
