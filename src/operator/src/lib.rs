//! The Kubernetes shell: reconciles `ShardedEtcd` resources into StatefulSets, Services, Deployments and the rest.
