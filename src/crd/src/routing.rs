//! The routing file: what a proxy or shard manager in a process of its own needs to know.
//!
//! `up --engine etcd` writes it into its data folder, the operator into a ConfigMap. It is replaced as a whole, and
//! watched by its readers, so shards come and go without a restart.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};
use sharded_etcd_core::{
    records::{Record, RecordError},
    topology::{FieldError, Topology},
};

use crate::{ShardedEtcd, parse_json};

/// What answers as a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// The engine in the process of `up`.
    Embedded,
    /// Real etcd processes.
    Etcd,
}

/// Why a routing file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RoutingError {
    /// It is none, or a newer one.
    #[error("routing file {path} cannot be used")]
    Format {
        /// The file.
        path: String,
        /// Why.
        source: RecordError,
    },
    /// Its shards live in another process.
    #[error(
        "routing file {path} is of a topology on the embedded engine, whose shards no other process can reach: \
         run it with `up --engine etcd`"
    )]
    Embedded {
        /// The file.
        path: String,
    },
    /// A field makes no sense.
    #[error("routing file {path}: {problem}")]
    Field {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
}

/// One shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutedShard {
    /// Its incarnation.
    pub incarnation: u32,
    /// Client URLs of its members.
    pub endpoints: Vec<String>,
}

/// The contents of a routing file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Routing {
    /// Identity of the topology, compared with what meta says.
    pub uid: String,
    /// A shard manager that finds meta and all shards empty starts the topology: so under Kubernetes. `up` does it
    /// itself, before it writes this file.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bootstrap: bool,
    /// What answers as a shard.
    pub engine: Engine,
    /// Client URLs of meta's members.
    pub meta: Vec<String>,
    /// The shards, by name.
    pub shards: BTreeMap<String, RoutedShard>,
    /// The resource: keyspace rules, pins, limits.
    pub resource: ShardedEtcd,
}

impl Record for Routing {
    const WHAT: &'static str = "a routing file";
}

impl Routing {
    /// The routing in a file's text; `path` is for messages.
    ///
    /// # Errors
    /// See [`RoutingError`].
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self, RoutingError> {
        let path = path.display().to_string();
        let routing =
            Self::decode(text).map_err(|source| RoutingError::Format { path: path.clone(), source })?;
        if routing.engine == Engine::Embedded {
            return Err(RoutingError::Embedded { path });
        }
        let field = |problem: String| RoutingError::Field { path: path.clone(), problem };
        if routing.meta.is_empty() {
            return Err(field("meta has no endpoints".to_owned()));
        }
        if let Some((name, _)) = routing.shards.iter().find(|(_, shard)| shard.endpoints.is_empty()) {
            return Err(field(format!("{name} has no endpoints")));
        }
        let resource = serde_json::to_string(&routing.resource).expect("a resource is plain data");
        parse_json(&resource).map_err(|error| field(format!("resource: {error}")))?;
        Ok(routing)
    }

    /// The topology that the resource asks for.
    ///
    /// # Errors
    /// Never for a routing that [`Routing::parse`] gave.
    pub fn topology(&self) -> Result<Topology, Vec<FieldError>> {
        let mut topology = self.resource.topology()?;
        topology.generation = self.resource.metadata.generation.unwrap_or(0);
        Ok(topology)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn routing(engine: Engine) -> Routing {
        let shard = RoutedShard { incarnation: 0, endpoints: vec!["http://127.0.0.1:1".into()] };
        Routing {
            uid: "u".into(),
            bootstrap: false,
            engine,
            meta: vec!["http://127.0.0.1:2".into()],
            shards: BTreeMap::from([("shard-0".into(), shard)]),
            resource: ShardedEtcd::with_shards("demo", 1),
        }
    }

    #[test]
    fn is_read_back() {
        let routing = routing(Engine::Etcd);
        assert_eq!(Routing::parse(Path::new("r.json"), &routing.encode()).unwrap(), routing);
    }

    #[test]
    fn the_generation_of_the_resource_is_passed_on() {
        let mut routing = routing(Engine::Etcd);
        assert_eq!(routing.topology().unwrap().generation, 0);
        routing.resource.metadata.generation = Some(7);
        routing.resource.metadata.uid = Some("8f2c".into());
        let read = Routing::parse(Path::new("r.json"), &routing.encode()).unwrap();
        assert_eq!(read.topology().unwrap().generation, 7);
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let path = Path::new("r.json");
        let refused = |routing: &Routing| Routing::parse(path, &routing.encode()).unwrap_err();
        assert!(matches!(refused(&routing(Engine::Embedded)), RoutingError::Embedded { .. }));
        let mut none = routing(Engine::Etcd);
        none.meta.clear();
        assert!(refused(&none).to_string().contains("meta has no endpoints"));
        let mut empty = routing(Engine::Etcd);
        empty.shards.get_mut("shard-0").unwrap().endpoints.clear();
        assert!(refused(&empty).to_string().contains("shard-0 has no endpoints"));
        let mut nonsense = routing(Engine::Etcd);
        nonsense.resource.spec.shards = 0;
        assert!(refused(&nonsense).to_string().contains("spec.shards"));
        let newer =
            String::from_utf8(routing(Engine::Etcd).encode().to_vec()).unwrap().replace("\"v\":1", "\"v\":7");
        assert!(matches!(Routing::parse(path, newer.as_bytes()), Err(RoutingError::Format { .. })));
        assert!(matches!(Routing::parse(path, b"x"), Err(RoutingError::Format { .. })));
    }
}
