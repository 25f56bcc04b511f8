//! What the schema alone cannot say: the checks of `up` and of the operator, with messages that say what to write.
//! The API server checks the same with [`crate::rules`].

mod fields;
mod members;
mod proxy;
mod text;

use sharded_etcd_core::topology::{
    Draft, DraftPin, DraftWeight, FieldError, RebalanceMode, Topology, validate,
};

use crate::{RebalanceModeSpec, ShardedEtcd, units::Quantity};

pub(crate) use fields::{PINS_MAX, PREFIX_CHARS_MAX, PRESPLIT_MAX, SPLITTABLE_MAX, WEIGHTS_MAX};
pub(crate) use members::{LABEL_PREFIXES_OWNED, LABELS_OWNED, OWNED_FLAGS};

impl ShardedEtcd {
    /// The topology that this resource asks for.
    ///
    /// # Errors
    /// Every problem there is, each with its field and what to write instead.
    pub fn topology(&self) -> Result<Topology, Vec<FieldError>> {
        let mut errors = Vec::new();
        self.spec.check(&mut errors);
        let spec = &self.spec;
        // What is no quantity and no span of time is among the errors already.
        let bytes = |quantity: Option<&Quantity>| quantity.and_then(|quantity| quantity.bytes().ok());
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
            load_tolerance: spec.rebalance.load_tolerance,
            weights: spec
                .rebalance
                .weights
                .iter()
                .map(|w| DraftWeight { shard: w.shard, weight: w.weight })
                .collect(),
            approved_plan: spec.rebalance.approved_plan.clone(),
            bytes_per_second_max: bytes(spec.rebalance.bytes_per_second.as_ref()),
            compaction_retention: spec.compaction.as_ref().and_then(|c| c.retention.duration().ok()),
            quota_bytes: bytes(spec.etcd.as_ref().and_then(|e| e.quota.as_ref())),
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
