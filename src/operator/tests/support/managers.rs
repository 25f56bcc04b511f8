//! A model of the shard managers: what the real ones (`src/manager/src/members.rs`) do, a step at a time, seen from
//! outside. It never forgives: whatever would lose data is written down.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sharded_etcd_crd::routing::Routing;
use sharded_etcd_operator::{
    ask::Ask,
    model::{TopologyAnswer, TopologyReport},
};

use super::{controllers::is_ready, kinds, store::Store};

/// Ranges of a topology: they are dealt out evenly.
const RANGES: u32 = 12;
/// Steps from a change of the routing's ConfigMap until its readers see it.
const MOUNT_STEPS: u32 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    Serving,
    Draining,
}

/// A shard of the line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    pub incarnation: u32,
    pub phase: Phase,
    pub ranges: u32,
    reachable: bool,
}

/// What meta of one resource holds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Topology {
    pub started: bool,
    pub generation: i64,
    pub shards: BTreeMap<String, Shard>,
    /// The newest incarnation of each shard that has left.
    pub left: BTreeMap<String, u32>,
    waits: BTreeMap<String, (u32, String)>,
    settled: bool,
}

#[derive(Debug, Clone, Default)]
struct Mounted {
    text: String,
    newer: Option<(String, u32)>,
}

#[derive(Debug, Clone, Default)]
pub struct Managers {
    /// By uid of the resource.
    pub topologies: BTreeMap<String, Topology>,
    mounted: BTreeMap<(String, String), Mounted>,
    /// Uid of the resource that the shard manager of a name acts for; absent while none is ready.
    answering: BTreeMap<(String, String), String>,
    /// What must never happen, and did.
    pub violations: BTreeSet<String>,
    /// Ranges move only while it is false.
    pub frozen: bool,
}

/// The models of all shard managers, to be asked.
#[derive(Clone, Default)]
pub struct SharedManagers(pub Arc<Mutex<Managers>>);

#[async_trait]
impl Ask for SharedManagers {
    async fn ask(&self, namespace: &str, name: &str) -> TopologyAnswer {
        self.0.lock().answer(namespace, name)
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The pod of a member's URL, `http://<pod>.<set>.<namespace>.svc:2379`.
fn pod_of(url: &str) -> &str {
    url.trim_start_matches("http://").split('.').next().unwrap_or_default()
}

impl Managers {
    /// One step of every shard manager in a namespace; true if there may be more to do.
    pub fn step(&mut self, store: &Store, namespace: &str) -> bool {
        let before = format!("{:?}{:?}", self.topologies, self.mounted);
        let maps = store.list(&kinds::CONFIG_MAPS, Some(namespace));
        let mut answering = BTreeMap::new();
        for map in &maps {
            let Some(name) = text(&map["metadata"]["name"]).strip_suffix("-routing") else { continue };
            let Some(routing) = map["data"]["routing.json"].as_str() else { continue };
            let key = (namespace.to_owned(), name.to_owned());
            let manager_runs = store.list(&kinds::PODS, Some(namespace)).iter().any(|pod| {
                let labels = &pod["metadata"]["labels"];
                labels["app.kubernetes.io/instance"] == *name
                    && labels["app.kubernetes.io/component"] == "shard-manager"
                    && is_ready(pod)
            });
            let seen = self.mounted.entry(key.clone()).or_default().see(routing);
            if !manager_runs || seen.is_empty() {
                continue;
            }
            let routing = match Routing::parse(Path::new("routing.json"), seen.as_bytes()) {
                Ok(routing) => routing,
                Err(error) => {
                    self.violations.insert(format!("the routing of {name} cannot be read: {error}"));
                    continue;
                }
            };
            answering.insert(key, routing.uid.clone());
            let frozen = self.frozen;
            let topology = self.topologies.entry(routing.uid.clone()).or_default();
            topology.step(store, namespace, &routing, frozen, &mut self.violations);
        }
        self.answering.retain(|(n, _), _| n != namespace);
        self.mounted.retain(|(n, name), _| {
            n != namespace || maps.iter().any(|m| m["metadata"]["name"] == format!("{name}-routing"))
        });
        self.answering.extend(answering);
        before != format!("{:?}{:?}", self.topologies, self.mounted)
    }

    fn answer(&self, namespace: &str, name: &str) -> TopologyAnswer {
        let topology = self
            .answering
            .get(&(namespace.to_owned(), name.to_owned()))
            .and_then(|uid| self.topologies.get(uid));
        match topology {
            Some(topology) => TopologyAnswer::Known(Box::new(topology.report())),
            None => TopologyAnswer::Unknown("no shard manager answers".to_owned()),
        }
    }

    /// Whether a cluster of a resource holds data that is nowhere else.
    pub fn needs(&self, uid: &str, cluster: &str, incarnation: u32) -> bool {
        let Some(topology) = self.topologies.get(uid) else { return false };
        match cluster {
            "meta" => topology.started,
            shard => topology.shards.get(shard).is_some_and(|s| s.incarnation == incarnation),
        }
    }
}

impl Mounted {
    fn see(&mut self, routing: &str) -> String {
        if self.text == routing {
            self.newer = None;
        } else {
            let steps = match &self.newer {
                Some((text, steps)) if text == routing => steps + 1,
                _ => 0,
            };
            if steps >= MOUNT_STEPS || self.text.is_empty() {
                self.text = routing.to_owned();
                self.newer = None;
            } else {
                self.newer = Some((routing.to_owned(), steps));
            }
        }
        self.text.clone()
    }
}

/// More than half of the members are ready, and they are of the right incarnation.
fn reachable(store: &Store, namespace: &str, endpoints: &[String], incarnation: Option<u32>) -> bool {
    let up = endpoints.iter().filter(|url| {
        store.get(&kinds::PODS, namespace, pod_of(url)).is_some_and(|pod| {
            let of = text(&pod["metadata"]["labels"]["shardedetcd.io/incarnation"]).parse().ok();
            is_ready(&pod) && incarnation.is_none_or(|i| of == Some(i))
        })
    });
    up.count() > endpoints.len() / 2
}

impl Topology {
    fn step(
        &mut self,
        store: &Store,
        namespace: &str,
        routing: &Routing,
        frozen: bool,
        violations: &mut BTreeSet<String>,
    ) {
        let wanted = u32::try_from(routing.resource.spec.shards).expect("checked");
        let name = |index: u32| format!("shard-{index}");
        for shard in self.shards.values_mut() {
            shard.reachable = false;
        }
        if !reachable(store, namespace, &routing.meta, None) {
            self.settled = false;
            return;
        }
        let up = |shard: &str, incarnation: u32| {
            routing.shards.get(shard).is_some_and(|routed| {
                routed.incarnation == incarnation
                    && reachable(store, namespace, &routed.endpoints, Some(incarnation))
            })
        };
        if !self.started {
            let ready = (0..wanted).all(|index| up(&name(index), 0));
            if !(routing.bootstrap && ready) {
                return;
            }
            self.started = true;
            for index in 0..wanted {
                let shard = Shard { incarnation: 0, phase: Phase::Serving, ranges: 0, reachable: true };
                self.shards.insert(name(index), shard);
            }
            self.shards.get_mut("shard-0").expect("there is one").ranges = RANGES;
        }
        self.generation = routing.resource.metadata.generation.unwrap_or(0);
        for (shard, state) in &mut self.shards {
            state.reachable = up(shard, state.incarnation);
            let index: u32 = shard.trim_start_matches("shard-").parse().expect("a shard's name");
            state.phase = if index < wanted { Phase::Serving } else { Phase::Draining };
            if routing.shards.get(shard).is_none_or(|r| r.incarnation != state.incarnation) {
                violations
                    .insert(format!("the routing of {namespace} leaves out {shard}, which has not left"));
            }
        }
        self.waits.clear();
        for index in 0..wanted {
            let shard = name(index);
            if self.shards.contains_key(&shard) {
                continue;
            }
            let incarnation = self.left.get(&shard).map_or(0, |i| i + 1);
            if up(&shard, incarnation) {
                let new = Shard { incarnation, phase: Phase::Serving, ranges: 0, reachable: true };
                self.shards.insert(shard, new);
            } else {
                let why = "it is not running yet, or there is no connection to it".to_owned();
                self.waits.insert(shard, (incarnation, why));
            }
        }
        let moved = !frozen && self.move_one();
        let gone: Vec<String> = self
            .shards
            .iter()
            .filter(|(_, s)| !moved && s.phase == Phase::Draining && s.ranges == 0 && s.reachable)
            .map(|(shard, _)| shard.clone())
            .collect();
        for shard in &gone {
            let state = self.shards.remove(shard).expect("just seen");
            self.left.insert(shard.clone(), state.incarnation);
        }
        let draining = self.shards.values().any(|s| s.phase == Phase::Draining);
        self.settled = !moved && gone.is_empty() && self.waits.is_empty() && !draining;
    }

    /// Moves a range to where it should be.
    fn move_one(&mut self) -> bool {
        let to = self
            .shards
            .iter()
            .filter(|(_, s)| s.phase == Phase::Serving && s.reachable)
            .min_by_key(|(_, s)| s.ranges)
            .map(|(shard, s)| (shard.clone(), s.ranges));
        let from = self
            .shards
            .iter()
            .filter(|(_, s)| s.reachable && s.ranges > 0)
            .max_by_key(|(_, s)| (s.phase == Phase::Draining, s.ranges))
            .map(|(shard, s)| (shard.clone(), s.ranges, s.phase));
        let (Some((to, few)), Some((from, many, phase))) = (to, from) else { return false };
        if from == to || (phase == Phase::Serving && many <= few + 1) {
            return false;
        }
        // Two at a time, so that an even spread is reached soon.
        let count = if phase == Phase::Draining { many.min(2) } else { 1 };
        self.shards.get_mut(&from).expect("just seen").ranges -= count;
        self.shards.get_mut(&to).expect("just seen").ranges += count;
        true
    }

    fn report(&self) -> TopologyReport {
        let mut topology: Vec<Value> = self
            .shards
            .iter()
            .map(|(shard, s)| {
                let phase = match s.phase {
                    _ if !s.reachable => "Unreachable",
                    Phase::Serving => "Serving",
                    Phase::Draining => "Draining",
                };
                json!({
                    "shard": shard, "incarnation": s.incarnation, "phase": phase, "members": 1,
                    "ready": i32::from(s.reachable), "dbSize": 1 << 20, "keys": s.ranges * 10,
                    "bytes": s.ranges * 1000, "ranges": s.ranges,
                })
            })
            .collect();
        for (shard, (incarnation, why)) in &self.waits {
            topology.push(json!({
                "shard": shard, "incarnation": incarnation, "phase": "Joining", "members": 1, "ready": 0,
                "dbSize": 0, "keys": 0, "bytes": 0, "ranges": 0, "message": why,
            }));
        }
        let condition = |kind: &str, status: &str, reason: &str| json!({"type": kind, "status": status, "reason": reason, "message": reason});
        let unreachable = self.shards.values().any(|s| !s.reachable) || !self.started;
        let conditions = [
            if unreachable {
                condition("Ready", "False", "ShardsUnavailable")
            } else {
                condition("Ready", "True", "Serving")
            },
            if self.settled {
                condition("Reconciling", "False", "Settled")
            } else {
                condition("Reconciling", "True", "Rebalancing")
            },
            if self.settled {
                condition("Balanced", "True", "Balanced")
            } else {
                condition("Balanced", "False", "Unbalanced")
            },
        ];
        let left: Vec<Value> =
            self.left.iter().map(|(shard, i)| json!({"shard": shard, "incarnation": i})).collect();
        let report = json!({
            "observedGeneration": self.generation, "shards": topology.len(), "keys": RANGES * 10,
            "bytes": RANGES * 1000, "revision": 7, "compactRevision": 1, "conditions": conditions,
            "topology": topology, "rangeMap": {"generation": 1, "total": RANGES, "ranges": []}, "moves": [],
            "left": left,
        });
        serde_json::from_value(report).expect("the shape of a report")
    }
}
