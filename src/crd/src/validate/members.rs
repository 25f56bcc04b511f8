//! Checks of the members' pods.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Toleration;

use super::{
    fields::{Check, ENTRIES_MAX},
    text::{is_label_value, is_object_name, is_qualified_name},
};
use crate::{
    EtcdSpec,
    defaults::{BESIDE_DATABASE_BYTES, backend_quota_bytes},
};

/// Most tolerations.
const TOLERATIONS_MAX: usize = 32;
/// Most topology spread constraints.
const SPREAD_MAX: usize = 16;
/// Bounds of the quota in bytes, as written; core says what is too little.
const QUOTA: (&str, &str) = ("0", "64Gi");

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

impl Check<'_> {
    pub(super) fn etcd(&mut self, etcd: &EtcdSpec) {
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
}
