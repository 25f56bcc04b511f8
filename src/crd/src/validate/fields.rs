//! Checks of the fields that have no place in core's topology.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceRequirements;
use sharded_etcd_core::topology::FieldError;

use super::text::{amount, is_image, is_object_name};
use crate::{
    KeyspaceSpec, ShardedEtcdSpec, StorageSpec,
    units::{Quantity, TimeSpan},
};

/// Most splittable prefixes. This and the bounds below keep the API server's rules within its cost limits.
pub(crate) const SPLITTABLE_MAX: usize = 32;
/// Most boundaries from the start.
pub(crate) const PRESPLIT_MAX: usize = 2048;
/// Most pins.
pub(crate) const PINS_MAX: usize = 2048;
/// Most weights: one for each shard that there can be.
pub(crate) const WEIGHTS_MAX: usize = 1024;
/// Longest prefix or boundary in the resource, in characters.
pub(crate) const PREFIX_CHARS_MAX: usize = 256;
/// Most characters of all prefixes and boundaries: proxies get them in a ConfigMap, which holds 1 MiB.
const KEYSPACE_CHARS_MAX: usize = 131_072;
/// Most entries of a map of texts (labels, flags, annotations).
pub(super) const ENTRIES_MAX: usize = 32;

/// Bounds of a volume in bytes, as written.
const STORAGE: (&str, &str) = ("1Gi", "64Ti");
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
        check.at_most("spec.rebalance.weights", self.rebalance.weights.len(), WEIGHTS_MAX);
        check.retention(self.compaction.as_ref().map(|c| &c.retention));
    }
}

/// Gathers the problems.
pub(super) struct Check<'a> {
    errors: &'a mut Vec<FieldError>,
}

impl Check<'_> {
    pub(super) fn wrong(&mut self, field: impl Into<String>, message: impl Into<String>) {
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

    pub(super) fn members(&mut self, field: &str, members: Option<i64>) {
        let Some(n) = members.filter(|n| ![1, 3, 5].contains(n)) else { return };
        let message = if (2..=4).contains(&n) {
            format!("{n} members survive no more failures than {} do; write 1, 3 or 5", n - 1)
        } else {
            format!("{n} is out of range; write 1, 3 or 5")
        };
        self.wrong(field, message);
    }

    pub(super) fn replicas(&mut self, field: &str, replicas: Option<i64>, max: i64) {
        if let Some(n) = replicas.filter(|n| !(1..=max).contains(n)) {
            self.wrong(field, format!("{n} is out of range; write 1 to {max}"));
        }
    }

    pub(super) fn storage(&mut self, field: &str, storage: Option<&StorageSpec>) {
        let Some(storage) = storage else { return };
        self.bytes(&format!("{field}.size"), storage.size.as_ref(), STORAGE);
        if storage.class_name.as_deref().is_some_and(|name| !is_object_name(name)) {
            let message = "no name of a storage class; write one that `kubectl get storageclass` shows, or remove the \
                           field for the default";
            self.wrong(format!("{field}.className"), message);
        }
    }

    /// A number of bytes between two others.
    pub(super) fn bytes(&mut self, field: &str, quantity: Option<&Quantity>, (min, max): (&str, &str)) {
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

    pub(super) fn resources(&mut self, field: &str, resources: Option<&ResourceRequirements>) {
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

    pub(super) fn at_most(&mut self, field: &str, entries: usize, max: usize) {
        if entries > max {
            self.wrong(field, format!("{entries} entries; use at most {max}"));
        }
    }
}
