//! What the schema alone cannot say: the checks of `up` and of the operator, with messages that say what to write.
//! The API server checks the same with the rules of `schema`.

use std::collections::BTreeMap;

use sharded_etcd_core::topology::{Draft, DraftPin, FieldError, RebalanceMode, Topology, validate};

use crate::{RebalanceModeSpec, ShardedEtcd, ShardedEtcdSpec, StorageSpec, units::Quantity};

/// Flags of etcd that the topology sets itself.
const OWNED_FLAGS: &[&str] = &[
    "name",
    "data-dir",
    "wal-dir",
    "initial-cluster",
    "initial-cluster-state",
    "initial-cluster-token",
    "initial-advertise-peer-urls",
    "listen-client-urls",
    "listen-peer-urls",
    "advertise-client-urls",
    "auto-compaction-mode",
    "auto-compaction-retention",
    "quota-backend-bytes",
    "max-txn-ops",
    "max-request-bytes",
    "force-new-cluster",
    "discovery",
    "discovery-srv",
    "config-file",
];

impl ShardedEtcd {
    /// The topology that this resource asks for.
    ///
    /// # Errors
    /// Every problem there is, each with its field and what to write instead.
    pub fn topology(&self) -> Result<Topology, Vec<FieldError>> {
        let mut errors = Vec::new();
        self.spec.check(&mut errors);
        let spec = &self.spec;
        let mut quantity = |field: &str, quantity: Option<&Quantity>| match quantity.map(Quantity::bytes) {
            Some(Err(message)) => {
                errors.push(FieldError::new(field, message));
                None
            }
            other => other.and_then(Result::ok),
        };
        let bytes_per_second_max =
            quantity("spec.rebalance.bytesPerSecond", spec.rebalance.bytes_per_second.as_ref());
        let quota_bytes = quantity("spec.etcd.quota", spec.etcd.as_ref().and_then(|e| e.quota.as_ref()));
        let _ =
            quantity("spec.etcd.storage.size", size_of(spec.etcd.as_ref().and_then(|e| e.storage.as_ref())));
        let _ =
            quantity("spec.meta.storage.size", size_of(spec.meta.as_ref().and_then(|m| m.storage.as_ref())));
        let compaction_retention = match spec.compaction.as_ref().map(|c| c.retention.duration()) {
            Some(Err(message)) => {
                errors.push(FieldError::new("spec.compaction.retention", message));
                None
            }
            other => other.and_then(Result::ok),
        };
        let prefixes = |list: &[String]| list.iter().map(|p| p.clone().into()).collect();
        let draft = Draft {
            name: self.metadata.name.clone().unwrap_or_default(),
            shards: spec.shards,
            delimiter: spec.keyspace.delimiter.clone().into(),
            splittable: prefixes(&spec.keyspace.splittable),
            presplit: prefixes(&spec.keyspace.presplit),
            pins: spec
                .keyspace
                .pins
                .iter()
                .map(|pin| DraftPin { prefix: pin.prefix.clone().into(), shard: pin.shard })
                .collect(),
            mode: match spec.rebalance.mode {
                RebalanceModeSpec::Automatic => RebalanceMode::Automatic,
                RebalanceModeSpec::Manual => RebalanceMode::Manual,
                RebalanceModeSpec::Paused => RebalanceMode::Paused,
            },
            moves_max: spec.rebalance.max_concurrent_moves,
            bytes_per_second_max,
            compaction_retention,
            quota_bytes,
        };
        match validate(draft) {
            Ok(topology) if errors.is_empty() => Ok(topology),
            Ok(_) => Err(errors),
            Err(more) => {
                errors.extend(more);
                Err(errors)
            }
        }
    }
}

fn size_of(storage: Option<&StorageSpec>) -> Option<&Quantity> {
    storage.and_then(|s| s.size.as_ref())
}

impl ShardedEtcdSpec {
    /// Checks what has no place in core's topology.
    fn check(&self, errors: &mut Vec<FieldError>) {
        if let Some(version) = &self.version {
            let numbers = version.split('.').collect::<Vec<_>>();
            let number = |n: &&str| !n.is_empty() && n.len() < 6 && n.bytes().all(|b| b.is_ascii_digit());
            if numbers.len() != 3 || !numbers.iter().all(number) {
                let message =
                    format!("{version:?} is no release of etcd; write three numbers, such as 3.7.3");
                errors.push(FieldError::new("spec.version", message));
            }
        }
        if self.image.as_ref().is_some_and(|image| image.is_empty() || image.contains(char::is_whitespace)) {
            errors.push(FieldError::new("spec.image", "no image repository; write one, or remove the field"));
        }
        let members = [
            ("spec.etcd.members", self.etcd.as_ref().and_then(|e| e.members)),
            ("spec.meta.members", self.meta.as_ref().and_then(|m| m.members)),
        ];
        for (field, members) in members {
            if let Some(n) = members.filter(|n| ![1, 3, 5].contains(n)) {
                let message =
                    format!("{n} members survive no more failures than {} do; write 1, 3 or 5", n - 1);
                let message = if (2..=4).contains(&n) {
                    message
                } else {
                    format!("{n} is out of range; write 1, 3 or 5")
                };
                errors.push(FieldError::new(field, message));
            }
        }
        let replicas = [
            ("spec.proxy.replicas", self.proxy.as_ref().and_then(|p| p.replicas), 100),
            ("spec.shardManager.replicas", self.shard_manager.as_ref().and_then(|m| m.replicas), 5),
        ];
        for (field, replicas, max) in replicas {
            if let Some(n) = replicas.filter(|n| !(1..=max).contains(n)) {
                errors.push(FieldError::new(field, format!("{n} is out of range; write 1 to {max}")));
            }
        }
        let flags = self.etcd.as_ref().and_then(|e| e.extra_args.as_ref());
        for flag in flags.into_iter().flat_map(BTreeMap::keys) {
            let field = format!("spec.etcd.extraArgs.{flag}");
            if flag.starts_with('-') {
                let message = format!("starts with a dash; write {}", flag.trim_start_matches('-'));
                errors.push(FieldError::new(field, message));
            } else if OWNED_FLAGS.contains(&flag.as_str()) {
                errors.push(FieldError::new(field, "the topology sets this flag itself; remove it"));
            }
        }
    }
}
