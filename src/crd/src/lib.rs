//! The custom resource `ShardedEtcd`: its types, the reading of a file that holds one, and the CRD.
//!
//! ```text
//! YAML --parse_file--> ShardedEtcd --topology()--> core's Topology (valid) --> plan
//! ```
//!
//! Under Kubernetes the API server checks the schema; `up` has no API server, so [`parse_file`] checks a file against
//! the very same schema, and refuses what it does not know by name. Nothing that is accepted is ignored in silence:
//! [`cluster_only_fields`] lists what has no effect outside a cluster.

mod check;
mod crd;
pub mod defaults;
mod document;
mod effect;
mod parse;
pub mod routing;
mod rules;
mod schema;
mod spec;
pub mod status;
pub mod units;
mod validate;

#[cfg(test)]
mod bad_input_tests;

pub use crd::crd_yaml;
pub use effect::{cluster_only_fields, version_mismatch};
pub use parse::{Located, SpecError, parse_file, parse_json};
pub use spec::{
    CompactionSpec, DisruptionSpec, EtcdSpec, KeyspaceSpec, MetaSpec, PinSpec, ProxySpec, RebalanceModeSpec,
    RebalanceSpec, RetainPolicy, ServiceSpec, ServiceType, ShardManagerSpec, ShardedEtcd, ShardedEtcdSpec,
    StorageSpec, WeightSpec,
};

/// `apiVersion` of the resource.
pub const API_VERSION: &str = "shardedetcd.io/v1alpha1";
/// `kind` of the resource.
pub const KIND: &str = "ShardedEtcd";
