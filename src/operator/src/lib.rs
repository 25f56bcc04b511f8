//! The Kubernetes shell: reconciles `ShardedEtcd` resources into StatefulSets, Services, Deployments and the rest.
//!
//! Five steps, a file each: dereference (client) → validate (pure) → build (pure) → apply (client) → status.

pub mod model;
